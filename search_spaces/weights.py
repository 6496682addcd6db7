"""Loads weights into a built network, from a file or from timm's published ones on the hub.

``Network.build``, training, evaluation and export call it. Every name and shape must match. If the
weights cannot be loaded, the error is one line and the module stays unchanged.
"""

import argparse
import contextlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import RequestError
from search_spaces.origin import find_origin
from search_spaces.published import check_function, download, find_published

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_FILE_BYTES = 16 * 2**30
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
# Averaged weights come first, as in timm.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.")
# Counters that do not affect the output: those of batch norm, and those of a profiler that the
# GhostNet authors left in their weights.
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")


@dataclass(frozen=True)
class Source:
    """The source of weights.

    Attributes:
        path: the file.
        label: the name in messages and reports: the file as given, or timm's ``architecture.tag``.
        published: timm's configuration (``mean``, ``std``, ``architecture``, ...) of published
            weights, and of a file whose origin is stated beside or in it; None for other files.
        architecture: timm's architecture of the weights, None if it is unknown.
        stated_by: where the architecture of a file is stated; None for weights from the hub.
    """

    path: Path
    label: str
    published: Any = None
    architecture: str | None = None
    stated_by: str | None = None

    @property
    def origin(self) -> str:
        """Where the weights are from, without a local path: a name on the hub, or a file's name."""
        from_hub = self.published is not None and self.stated_by is None
        return f"timm/{self.label}" if from_hub else self.path.name


def load_weights(module: "torch.nn.Module", source: str | Path | Source) -> None:
    """Load weights into a module, every parameter and buffer by name, in the module's dtype.

    Args:
        module: the module to load into.
        source: a .safetensors or torch file, the name of timm's published weights, or the result of
            ``locate``.

    Raises:
        RequestError: the weights do not exist, are damaged, or belong to a different network; the
            module stays unchanged.
    """
    import torch

    located = source if isinstance(source, Source) else locate(source)
    own = module.state_dict()
    given = _without_prefixes(read_weights(located), own)
    differing = list(_differences(own, given, located.label))
    if differing:
        raise RequestError(
            _classes_message(module, own, given, differing, located.label) or differing[0][1]
        )
    chosen = {
        name: given[name]
        for name, tensor in own.items()
        if name in given and given[name].shape == tensor.shape
    }
    architecture = located.published.architecture if located.published else located.architecture
    if architecture:
        check_function(module, chosen, architecture, located.label, located.stated_by)
    with torch.no_grad():
        for name, tensor in chosen.items():
            own[name].copy_(tensor)


def output_count(module: "torch.nn.Module", source: Source) -> int | None:
    """Return the number of classes of weights for a network of any number of classes.

    Args:
        module: the network.
        source: the weights.

    Returns:
        The number, or None if the weights lack the network's classifier.

    Raises:
        RequestError: the weights are damaged.
    """
    classifier = _classifier(module)
    given = _without_prefixes(read_weights(source), module.state_dict())
    weight = given.get(f"{classifier}.weight")
    return None if classifier is None or weight is None else len(weight)


def file_metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of a safetensors file, or None if it has none or is another file."""
    if path.suffix != ".safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata()
    except (OSError, SafetensorError, ValueError):
        return None


def locate(source: str | Path) -> Source:
    """Return the source for a path or a published name.

    Published weights are downloaded once, into the hub's usual cache.

    Raises:
        RequestError: the file or the name does not exist, or the hub cannot be reached.
    """
    if not isinstance(source, str | Path):
        raise RequestError(
            f"pretrained={source!r} is not valid: pass a file, or a name such as 'tinynet_e.in1k'"
        )
    path, text = Path(os.path.expanduser(source)), str(source)
    # os.path.isfile also returns False if the text is too long for a path.
    if os.path.isfile(path):
        return _with_origin(Source(path, text))
    # A folder may have a published name, often as an export of that network, so it is an error only
    # if the text cannot be a published name.
    if isinstance(source, Path) or path.suffix in SUFFIXES or "/" in text.removeprefix("timm/"):
        if path.is_dir():
            raise RequestError(
                f"weights {text!r} is a folder: pass the .safetensors or .pth file in it"
            )
        raise RequestError(
            f"weights file {text!r} does not exist: pass a .safetensors or .pth file, "
            "or a name such as 'tinynet_e.in1k'"
        )
    published = find_published(text)
    label = ".".join(part for part in (published.architecture, published.tag) if part)
    return Source(download(published, label), label, published)


def _with_origin(source: Source) -> Source:
    """Return the source of a file with what is stated beside it or in it."""
    content, shapes = _content(source)
    origin = find_origin(source.path, source.label, content, shapes)
    if origin is None:
        return source
    return replace(
        source,
        published=origin.published,
        architecture=origin.architecture,
        stated_by=origin.stated_by,
    )


def _content(source: Source) -> tuple[Mapping[str, object], dict[str, tuple[int, ...]]]:
    """Return the entries of a file apart from its tensors, and the shapes of its tensors.

    Raises:
        RequestError: as ``read_weights``.
    """
    from safetensors import safe_open

    if source.path.suffix == ".safetensors":
        with _readable(source), safe_open(source.path, "pt") as file:
            names = list(file.keys())
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
            return file.metadata() or {}, shapes
    content = _read(source)
    shapes = {name: tuple(tensor.shape) for name, tensor in _state_dict(content, source).items()}
    return content, shapes


def read_weights(source: Source) -> dict[str, "Tensor"]:
    """Read the state dict from a file, also from within the usual containers.

    Raises:
        RequestError: the file is damaged, contains code, or contains no state dict.
    """
    return _state_dict(_read(source), source)


def _state_dict(state: Any, source: Source) -> dict[str, "Tensor"]:
    for key in CONTAINERS:
        if isinstance(state, Mapping) and isinstance(inner := state.get(key), Mapping) and inner:
            state = inner
            break
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(k, str) and _is_dense_tensor(v) for k, v in state.items())
    ):
        raise RequestError(
            f"weights {source.label!r} contain no state dict: "
            "write the file with torch.save(module.state_dict(), ...)"
        )
    return dict(state)


def _read(source: Source) -> Any:
    import torch
    from safetensors.torch import load_file

    with _readable(source):
        if source.path.suffix == ".safetensors":
            return load_file(source.path)
        if zipfile.is_zipfile(source.path) and not _is_valid_archive(source.path):
            raise RequestError(_damaged(source))
        # timm's training checkpoints contain an argparse.Namespace. Torch warns about a TorchScript
        # archive before it rejects it.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source.path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _readable(source: Source) -> Iterator[None]:
    """Read a file of limited size, and turn every error into a RequestError."""
    try:
        if source.path.stat().st_size > MAX_FILE_BYTES:
            raise RequestError(
                f"weights {source.label!r} have more than {MAX_FILE_BYTES // 2**30} GiB, "
                "the limit for any network"
            )
        yield
    except RequestError:
        raise
    except OSError as error:
        raise RequestError(
            f"weights {source.label!r} cannot be read: {error.strerror or error}"
        ) from error
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise RequestError(_damaged(source)) from error
        raise RequestError(
            f"weights {source.label!r} contain Python objects in addition to tensors, and loading "
            "them could run code: save them again with torch.save(module.state_dict(), ...)"
        ) from error
    # On invalid bytes, readers raise almost any error: struct.error, OverflowError, ...
    except Exception as error:
        raise RequestError(_damaged(source)) from error


def _is_valid_archive(path: Path) -> bool:
    """Return whether an archive is uncompressed and its checksums match.

    Torch does not verify the checksums of its own archives and never compresses them. A compressed
    archive may be a zip bomb.
    """
    with zipfile.ZipFile(path) as archive:
        return (
            all(each.compress_type == zipfile.ZIP_STORED for each in archive.infolist())
            and not archive.testzip()
        )


def _is_dense_tensor(value: Any) -> bool:
    """Return whether the value is a tensor that can be copied: dense, not nested, with values."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_nested
        and value.device.type == "cpu"
    )


def _damaged(source: Source) -> str:
    kind = "safetensors" if source.path.suffix == ".safetensors" else "torch"
    from_hub = source.published is not None and source.stated_by is None
    fix = f"remove {source.path} and try again" if from_hub else "download them again"
    return f"weights {source.label!r} are damaged or not a {kind} file: {fix}"


def _without_prefixes(
    given: Mapping[str, "Tensor"], own: Mapping[str, "Tensor"]
) -> dict[str, "Tensor"]:
    """Remove the prefixes that data-parallel training or torch.compile add to all names."""
    names = dict(given)
    while prefix := _wrapper_prefix(names, own):
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def _wrapper_prefix(names: Iterable[str], own: Iterable[str]) -> str | None:
    """Return the wrapper prefix that every name has and no name of the network has, or None."""
    for prefix in WRAPPERS:
        given = all(name.startswith(prefix) for name in names)
        if given and not any(name.startswith(prefix) for name in own):
            return prefix
    return None


def _differences(
    own: Mapping[str, "Tensor"], given: Mapping[str, "Tensor"], label: str
) -> Iterator[tuple[str, str]]:
    """Yield (name, message) for each difference, in the network's order and then the file's."""
    other = f"weights {label!r} belong to a different network"
    for name, tensor in own.items():
        if name.endswith(COUNTERS):
            continue
        if name not in given:
            yield name, f"{other}: they lack {name}"
        elif tensor.shape != given[name].shape:
            yield (
                name,
                f"{other}: expected {name} of shape {tuple(tensor.shape)}, "
                f"got {tuple(given[name].shape)}",
            )
        elif tensor.is_floating_point() != given[name].is_floating_point():
            yield (
                name,
                f"weights {label!r} have an unsupported type: expected {name} of {tensor.dtype}, "
                f"got {given[name].dtype}",
            )
    for name in given:
        if name not in own and not name.endswith(COUNTERS):
            yield name, f"{other}: they have {name}, which the network lacks"


def _classes_message(
    module: "torch.nn.Module",
    own: Mapping[str, "Tensor"],
    given: Mapping[str, "Tensor"],
    differing: list[tuple[str, str]],
    label: str,
) -> str | None:
    """Return the message for weights that differ only in the number of classes, else None."""
    last = _classifier(module)
    if last is None or {name for name, _ in differing} - {f"{last}.weight", f"{last}.bias"}:
        return None
    weight, given_weight = own[f"{last}.weight"], given.get(f"{last}.weight")
    if (
        given_weight is None
        or given_weight.shape[1:] != weight.shape[1:]
        or given_weight.shape == weight.shape
    ):
        return None
    classes = len(given_weight)
    return (
        f"weights {label!r} are for {classes} classes, and the network has {len(weight)}: "
        f"pass num_classes={classes} (--classes {classes})"
    )


def _classifier(module: "torch.nn.Module") -> str | None:
    """Return the name of the last linear layer of a module, or None if it has none."""
    from torch import nn

    names = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    return names[-1] if names else None
