"""Weights for a built network: from a file, or timm's published ones from the hub.

Every name and shape must match; what cannot be loaded is said in one line, and leaves the module as it was.
"""

import argparse
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces.errors import RequestError
from search_spaces.published import check_function, download, find_published

if TYPE_CHECKING:
    import torch
    from torch import Tensor

# Bytes of a file.
LARGEST = 16 * 2**30
SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
# Averaged weights first, as timm takes them.
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
WRAPPERS = ("module.", "_orig_mod.")
# Counters that no output depends on: of batch norm, and of a profiler that the GhostNet authors left in.
COUNTERS = ("num_batches_tracked", "total_ops", "total_params")


@dataclass(frozen=True)
class Source:
    """Where weights come from.

    Attributes:
        label: as messages and reports name it: the file as it was given, or timm's ``architecture.tag``.
        published: timm's configuration of published weights (``mean``, ``std``, ``architecture``, ...), None for a file.
    """

    path: Path
    label: str
    published: Any = None


def load_weights(module: "torch.nn.Module", source: str | Path | Source) -> None:
    """Load weights into a module, every parameter and buffer by its name, in the module's own dtype.

    Args:
        source: a .safetensors or torch file, the name of timm's published weights, or what ``locate`` found.

    Raises:
        RequestError: the weights are not there, damaged, or of another network; the module is as it was.
    """
    import torch

    found = source if isinstance(source, Source) else locate(source)
    own = module.state_dict()
    given = _bare(read_weights(found), own)
    differing = list(_differences(own, given, found.label))
    if differing:
        raise RequestError(
            _classes_differ(module, own, given, differing, found.label) or differing[0][1]
        )
    chosen = {
        name: given[name]
        for name, tensor in own.items()
        if name in given and given[name].shape == tensor.shape
    }
    if found.published is not None:
        check_function(module, chosen, found.published, found.label)
    with torch.no_grad():
        for name, tensor in chosen.items():
            own[name].copy_(tensor)


def locate(source: str | Path) -> Source:
    """The file behind a path or a published name; published weights are downloaded once, into the hub's usual cache.

    Raises:
        RequestError: there is no such file or name, or the hub cannot be reached.
    """
    if not isinstance(source, str | Path):
        raise RequestError(
            f"pretrained={source!r} names no weights: give a file, or a name such as 'tinynet_e.in1k'"
        )
    path, text = Path(os.path.expanduser(source)), str(source)
    if os.path.isfile(path):  # False, too, where the text is too long for a path
        return Source(path, text)
    # A folder with a published name is often an export of that network.
    if isinstance(source, Path) or path.suffix in SUFFIXES or "/" in text.removeprefix("timm/"):
        if path.is_dir():
            raise RequestError(
                f"weights {text!r} is a folder: give the .safetensors or .pth file in it"
            )
        raise RequestError(
            f"weights file {text!r} does not exist: give a .safetensors or .pth file, or a name such as 'tinynet_e.in1k'"
        )
    published = find_published(text)
    label = ".".join(part for part in (published.architecture, published.tag) if part)
    return Source(download(published, label), label, published)


def read_weights(source: Source) -> dict[str, "Tensor"]:
    """The state dict in a file, out of the usual containers.

    Raises:
        RequestError: the file is damaged, holds code, or holds no state dict.
    """
    state = _read(source)
    for key in CONTAINERS:
        if isinstance(state, Mapping) and isinstance(inner := state.get(key), Mapping) and inner:
            state = inner
            break
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(k, str) and _plain(v) for k, v in state.items())
    ):
        raise RequestError(
            f"weights {source.label!r} hold no state dict: write the file with torch.save(module.state_dict(), ...)"
        )
    return dict(state)


def _read(source: Source) -> Any:
    import torch
    from safetensors.torch import load_file

    try:
        if source.path.stat().st_size > LARGEST:
            raise RequestError(
                f"weights {source.label!r} have more than {LARGEST // 2**30} GiB: no network here has so many"
            )
        if source.path.suffix == ".safetensors":
            return load_file(source.path)
        if zipfile.is_zipfile(source.path) and not _sound_archive(source.path):
            raise RequestError(_damaged(source))
        # timm's training checkpoints hold their argparse.Namespace; torch warns of a script's archive before it refuses it.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(source.path, map_location="cpu", weights_only=True)
    except RequestError:
        raise
    except OSError as error:
        raise RequestError(
            f"weights {source.label!r} cannot be read: {error.strerror or error}"
        ) from error
    except pickle.UnpicklingError as error:
        if "GLOBAL" not in str(error):
            raise RequestError(_damaged(source)) from error
        advice = "write torch.save(module.state_dict(), ...) where they were made"
        raise RequestError(
            f"weights {source.label!r} hold Python objects beside tensors, which would be code to run: {advice}"
        ) from error
    except Exception as error:  # on bytes that make no sense readers raise almost anything: struct.error, OverflowError, ...
        raise RequestError(_damaged(source)) from error


def _sound_archive(path: Path) -> bool:
    """Torch does not look at the checksums of its own archives, and never compresses: what is compressed may be a bomb."""
    with zipfile.ZipFile(path) as archive:
        return (
            all(each.compress_type == zipfile.ZIP_STORED for each in archive.infolist())
            and not archive.testzip()
        )


def _plain(value: Any) -> bool:
    """Whether it is a tensor that can be copied from: dense, whole and with its values."""
    import torch

    return (
        isinstance(value, torch.Tensor)
        and value.layout is torch.strided
        and not value.is_nested
        and value.device.type == "cpu"
    )


def _damaged(source: Source) -> str:
    kind = "safetensors" if source.path.suffix == ".safetensors" else "torch"
    again = f"remove {source.path} and try again" if source.published else "get them again"
    return f"weights {source.label!r} are damaged or no {kind} file: {again}"


def _bare(given: Mapping[str, "Tensor"], own: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    """Names without what data-parallel training or torch.compile put before them all."""
    names = dict(given)
    while prefix := _wrapper(names, own):
        names = {name.removeprefix(prefix): tensor for name, tensor in names.items()}
    return names


def _wrapper(names: Iterable[str], own: Iterable[str]) -> str | None:
    """The prefix of a wrapper that every name has and no name of the network has."""
    for prefix in WRAPPERS:
        given = all(name.startswith(prefix) for name in names)
        if given and not any(name.startswith(prefix) for name in own):
            return prefix
    return None


def _differences(
    own: Mapping[str, "Tensor"], given: Mapping[str, "Tensor"], label: str
) -> Iterator[tuple[str, str]]:
    """(name, what differs), in the network's own order and then the file's."""
    other = f"weights {label!r} are another network's"
    for name, tensor in own.items():
        if name.endswith(COUNTERS):
            continue
        if name not in given:
            yield name, f"{other}: {name} is missing in them"
        elif tensor.shape != given[name].shape:
            yield (
                name,
                f"{other}: {name} is {tuple(tensor.shape)} in the network and {tuple(given[name].shape)} in them",
            )
        elif tensor.is_floating_point() != given[name].is_floating_point():
            yield (
                name,
                f"weights {label!r} are no plain ones: {name} is {given[name].dtype}, where the network has {tensor.dtype}",
            )
    for name in given:
        if name not in own and not name.endswith(COUNTERS):
            yield name, f"{other}: they have {name}, which the network lacks"


def _classes_differ(
    module: "torch.nn.Module",
    own: Mapping[str, "Tensor"],
    given: Mapping[str, "Tensor"],
    differing: list[tuple[str, str]],
    label: str,
) -> str | None:
    """The line for weights that differ in the classifier's rows alone."""
    from torch import nn

    last = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)][-1:]
    if not last or {name for name, _ in differing} - {f"{last[0]}.weight", f"{last[0]}.bias"}:
        return None
    ours, theirs = own[f"{last[0]}.weight"], given.get(f"{last[0]}.weight")
    if theirs is None or theirs.shape[1:] != ours.shape[1:] or theirs.shape == ours.shape:
        return None
    ask = f"ask for {len(theirs)} (num_classes={len(theirs)}, --classes {len(theirs)})"
    return (
        f"weights {label!r} are for {len(theirs)} classes, and the network has {len(ours)}: {ask}"
    )
