"""The formats a network is written in; what was written is read again and compared with torch at several batch sizes."""

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
BATCHES = (1, 3)


class ExportError(RuntimeError):
    """A network could not be written, or the file disagrees with torch: one line, exit code 1, and no file is kept."""


@dataclass(frozen=True)
class Format:
    """How a network is written and run again.

    Attributes:
        file: the file's name, ``{name}`` standing for the network's.
        tolerance: largest accepted difference from torch, as a share of the largest output.
        packages: what wrote it, named in config.json.
    """

    file: str
    tolerance: float
    packages: tuple[str, ...]
    write: Callable[[nn.Module, Network, Path], None]
    run: Callable[[Network, Path], Callable[[Tensor], Tensor]]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters print, warn and log of their progress; stdout holds what was asked for."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def attempted(kind: str) -> Iterator[None]:
    """Quietly, and with whatever a space of the user's own makes an exporter raise as one line.

    Raises:
        ExportError: the network cannot be written so.
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


def write_checked(kind: str, module: nn.Module, network: Network, path: Path) -> CheckedFile:
    """Write a network, in evaluation mode, to ``path``, read it again, and compare.

    Returns:
        Format, size, digest, versions and the largest difference, as config.json holds them.

    Raises:
        ExportError: torch cannot export the network, or the file computes something else.
    """
    form = FORMATS[kind]
    require(*form.packages)
    with attempted(kind):
        form.write(module, network, path)
        difference, largest = compared(module, network, form.run(network, path))
    if not math.isfinite(largest):
        raise ExportError(
            f"the network's outputs are not finite: its weights hold NaN or infinity, or are far too large ({largest:g})"
        )
    if not difference <= form.tolerance * largest:
        raise ExportError(
            f"the {kind} file disagrees with torch by {difference:.3g} where the largest output is {largest:.3g} "
            f"(accepted: {form.tolerance:g} of it); it is not kept"
        )
    return CheckedFile(
        format=kind,
        bytes=path.stat().st_size,
        sha256=file_digest(path),
        versions=versions(form.packages),
        batches_compared=list(BATCHES),
        largest_difference=difference,
        largest_output=largest,
        tolerance=form.tolerance,
    )


def compared(
    module: nn.Module, network: Network, run: Callable[[Tensor], Tensor]
) -> tuple[float, float]:
    """(largest difference, largest output) of torch and a file over random images."""
    generator = torch.Generator().manual_seed(0)
    difference, largest = 0.0, 0.0
    for batch in BATCHES:
        images = torch.randn(batch, 3, network.resolution, network.resolution, generator=generator)
        with torch.inference_mode():
            wanted, got = module(images), run(images)
        if got.shape != wanted.shape:
            return float("nan"), wanted.abs().max().item()
        # Torch's max keeps a NaN, Python's would lose it.
        difference = torch.tensor([difference, (got - wanted).abs().max().item()]).max().item()
        largest = torch.tensor([largest, wanted.abs().max().item()]).max().item()
    return difference, largest


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """The versions that wrote a file, by package."""
    return {
        package: importlib.metadata.version(package)
        for package in ("tinynet-search", "torch", "timm", *packages)
    }


def session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """An ONNX file in ONNX Runtime on as many cores as torch takes: float32 arrays of images to arrays of logits."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runtime = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: np.asarray(runtime.run([OUTPUT], {INPUT: images})[0])


def without_traces(model: "onnx.ModelProto") -> "onnx.ModelProto":
    """An ONNX model without the paths and source lines that the exporter notes at every node."""
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


def _write_onnx(module: nn.Module, network: Network, path: Path) -> None:
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
    model = without_traces(program.model_proto)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _run_onnx(network: Network, path: Path) -> Callable[[Tensor], Tensor]:
    run = session(path)
    return lambda images: torch.from_numpy(run(images.numpy()))


def _write_pt2(module: nn.Module, network: Network, path: Path) -> None:
    with torch.no_grad():
        program = torch.export.export(
            module, (_example(network),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )
    # Neither source paths of this machine nor the example, which would be most of a small network's file.
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    with path.open("wb") as file:
        torch.export.save(program, file)


def _run_pt2(network: Network, path: Path) -> Callable[[Tensor], Tensor]:
    with path.open("rb") as file:
        return torch.export.load(file).module()


def _write_safetensors(module: nn.Module, network: Network, path: Path) -> None:
    path.write_bytes(weights_bytes(module))


def weights_bytes(module: nn.Module) -> bytes:
    """Every parameter and buffer as safetensors, with the names that timm gives them."""
    from safetensors.torch import save

    return save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
    )


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
