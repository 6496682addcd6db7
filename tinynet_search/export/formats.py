"""The export formats of a network.

Called by the exporter. Each file is read back and compared with torch at several batch sizes.
"""

import contextlib
import importlib.metadata
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from search_spaces import Network, RequestError
from search_spaces.weights import load_weights
from tinynet_search.errors import one_line, require
from tinynet_search.export.document import CheckedFile
from tinynet_search.export.subject import file_digest

if TYPE_CHECKING:
    import onnx

INPUT, OUTPUT = "images", "logits"
BATCH_SIZES = (1, 3)


class ExportError(RuntimeError):
    """A network cannot be written, or the file differs from torch.

    The message is one line. The command exits with code 1, and no file is kept.
    """


@dataclass(frozen=True)
class Format:
    """How a network is written to a file, and how the file is run.

    Attributes:
        file: Name of the file, where ``{name}`` is replaced by the name of the network.
        tolerance: Largest accepted difference from torch, as a share of the largest output.
        packages: Required packages, whose versions are recorded in config.json.
        write: Writes a module and metadata to a file.
        run: Loads the file and returns a function from images to logits.
    """

    file: str
    tolerance: float
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Network, Path, Mapping[str, str]], None]
    run: Callable[[Network, Path], Callable[[Tensor], Tensor]]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress output, warnings and logs of the exporters: stdout is reserved for the result."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def export_errors(kind: str) -> Iterator[None]:
    """Suppress output, and convert the errors of an exporter to one line.

    A user-defined space can make an exporter raise any exception.

    Raises:
        ExportError: The network cannot be written in this format.
    """
    try:
        with quiet():
            yield
    except (OSError, ImportError, RequestError):
        raise
    except Exception as error:
        raise ExportError(
            f"this network cannot be written as {kind}: {type(error).__name__}: {one_line(error)}"
        ) from error


def write_checked(
    kind: str, module: nn.Module, network: Network, path: Path, metadata: Mapping[str, str]
) -> CheckedFile:
    """Write a network in evaluation mode to ``path``, read it back and compare it with torch.

    Args:
        metadata: Recorded in the file, such as the class names.

    Returns:
        Format, size, digest, versions and the largest difference, as recorded in config.json.

    Raises:
        ExportError: torch cannot export the network, or the outputs of the file differ.
    """
    form = FORMATS[kind]
    require(*form.packages)
    with export_errors(kind):
        form.write(module, network, path, metadata)
        difference, largest = compare_outputs(module, network, form.run(network, path))
    if not math.isfinite(largest):
        raise ExportError(
            "the network's outputs are not finite: its weights contain NaN or infinity, "
            f"or are far too large ({largest:g})"
        )
    if not difference <= form.tolerance * largest:
        raise ExportError(
            f"the {kind} file differs from torch by {difference:.3g}, with a largest output of "
            f"{largest:.3g} (accepted: {form.tolerance:g} of it); the file is not kept"
        )
    return CheckedFile(
        format=kind,
        bytes=path.stat().st_size,
        sha256=file_digest(path),
        versions=versions(form.packages),
        batches_compared=list(BATCH_SIZES),
        largest_difference=difference,
        largest_output=largest,
        tolerance=form.tolerance,
    )


def compare_outputs(
    module: nn.Module, network: Network, run: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """Compare torch with a file on random images; return the largest difference and output."""
    generator = torch.Generator().manual_seed(0)
    difference, largest = 0.0, 0.0
    for batch in BATCH_SIZES:
        images = torch.randn(batch, 3, network.resolution, network.resolution, generator=generator)
        with torch.inference_mode():
            expected, actual = module(images), run(images)
        if actual.shape != expected.shape:
            return float("nan"), expected.abs().max().item()
        # torch's max propagates NaN, Python's does not.
        error = (actual - expected).abs().max().item()
        difference = torch.tensor([difference, error]).max().item()
        largest = torch.tensor([largest, expected.abs().max().item()]).max().item()
    return difference, largest


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions of the packages that wrote a file, by package."""
    return {
        package: importlib.metadata.version(package)
        for package in ("tinynet-search", "torch", "timm", *packages)
    }


def session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Load an ONNX file in ONNX Runtime, with the number of threads that torch uses.

    Returns:
        A function from float32 arrays of images to arrays of logits.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runtime = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(runtime.run([OUTPUT], {INPUT: images})[0])


def strip_traces(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """Remove the paths and source lines that the exporter records at each node."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        del value.metadata_props[:]
    return model


def _write_onnx(
    module: nn.Module, network: Network, path: Path, metadata: Mapping[str, str]
) -> None:
    import onnx

    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        module,
        (_example(network),),
        dynamo=True,
        dynamic_shapes=({0: batch},),
        input_names=[INPUT],
        output_names=[OUTPUT],
        external_data=False,
        verbose=False,
    )
    assert program is not None
    model = strip_traces(program.model_proto)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _run_onnx(network: Network, path: Path) -> Callable[[Tensor], Tensor]:
    run = session(path)
    return lambda images: torch.from_numpy(run(images.numpy()))


def _write_pt2(
    module: nn.Module, network: Network, path: Path, metadata: Mapping[str, str]
) -> None:
    with torch.no_grad():
        program = torch.export.export(
            module, (_example(network),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
    # Remove local source paths, and the example input, which would be most of a small file.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    with path.open("wb") as file:
        torch.export.save(program, file, extra_files=dict(metadata))


def _run_pt2(network: Network, path: Path) -> Callable[[Tensor], Tensor]:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_safetensors(
    module: nn.Module, network: Network, path: Path, metadata: Mapping[str, str]
) -> None:
    path.write_bytes(weights_bytes(module, metadata))


def weights_bytes(module: nn.Module, metadata: Mapping[str, str] | None = None) -> bytes:
    """All parameters and buffers as safetensors, under the names used by timm."""
    from safetensors.torch import save

    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()
    }
    return save(tensors, dict(metadata) if metadata else None)


def _run_safetensors(network: Network, path: Path) -> Callable[[Tensor], Tensor]:
    module = network.build().eval()
    load_weights(module, path)
    return module


def _example(network: Network) -> Tensor:
    return torch.zeros(2, 3, network.resolution, network.resolution)


FORMATS: Mapping[str, Format] = {
    "onnx": Format(
        "{name}.onnx", 1e-4, ("onnx", "onnxruntime", "onnxscript"), _write_onnx, _run_onnx
    ),
    "pt2": Format("{name}.pt2", 1e-4, (), _write_pt2, _run_pt2),
    "safetensors": Format(
        "weights.safetensors", 0.0, ("safetensors",), _write_safetensors, _run_safetensors
    ),
}
