"""Finds the timm architecture that is stated for a weights file, and its preprocessing.

``search_spaces.weights`` calls it. The statement is in config.json beside the file (in timm's
format), in the metadata of the file, or in the name of its folder in the hub's cache. It is only
read: no code is loaded, and nothing is downloaded.
"""

import json
import os
from argparse import Namespace
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from search_spaces.errors import RequestError

CONFIG = "config.json"
METADATA = "the file's metadata"  # where an architecture is stated
MAX_CONFIG_BYTES = 4 * 2**20  # label names of 20 000 classes need 1 MiB
MAX_CLASSES = 1_000_000
MAX_LINKS = 40
# Keys that distinguish timm's config.json from that of other programs, this one included.
TIMM_KEYS = ("pretrained_cfg", "num_features", "hf_hub_id")
# Arguments of timm's models that do not change the function, and those that do not with this value.
HARMLESS = (
    *("num_classes", "drop_rate", "drop_path_rate", "drop_block_rate", "bn_momentum", "bn_tf"),
    *("img_size", "scriptable", "exportable", "zero_init_last"),
)
HARMLESS_VALUES = {"in_chans": 3, "global_pool": "avg"}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class StatedOrigin:
    """What is stated for a weights file.

    Attributes:
        architecture: timm's architecture.
        stated_by: where it is stated, for messages.
        published: timm's configuration with ``architecture``, ``num_classes``, ``mean``, ``std``
            and ``crop_pct``; None if the preprocessing is unknown.
    """

    architecture: str
    stated_by: str
    published: Any = None


def find_origin(
    path: Path, label: str, content: Mapping[str, object], shapes: Shapes
) -> StatedOrigin | None:
    """Return what is stated for a weights file, None if nothing is.

    Args:
        path: the file.
        label: the name of the file in messages.
        content: the entries of the file except its tensors: the metadata of a safetensors file, or
            a training checkpoint.
        shapes: the shapes of its tensors.

    Raises:
        RequestError: config.json is damaged, names an architecture that timm does not have, or
            contradicts the weights; or the weights belong to a network with changed arguments.
    """
    inside = _of_metadata(content, label)
    beside = next(filter(None, (_of_config(each, label) for each in _links(path))), None)
    if beside and inside and beside.architecture != inside.architecture:
        beside = None  # the metadata was written with the weights
    cached = next(filter(None, map(_of_cache_folder, _links(path))), None)
    origin = beside or inside or cached
    if origin is None or origin.published is None:
        return origin
    return replace(origin, published=_with_classes(origin, label, shapes))


def _links(path: Path) -> Iterator[Path]:
    """Yield the path and, for a link, each file that it leads to: files of the hub are links."""
    for _ in range(MAX_LINKS):
        yield path
        if not path.is_symlink():
            return
        path = path.parent / os.readlink(path)


def _of_config(path: Path, label: str) -> StatedOrigin | None:
    """Return what config.json beside the file states, None if it is not in timm's format."""
    file = path.absolute().parent / CONFIG
    if not file.is_file():
        return None
    try:
        config = _parsed(file)
        if not isinstance(config, dict) or "architecture" not in config:
            return None
        name = config["architecture"]
        architecture = _known(name)
        if not architecture and not any(key in config for key in TIMM_KEYS):
            return None  # that of another program
        if not isinstance(name, str):
            raise ValueError(f"expected the name of an architecture, got {name!r:.60}")
        if not architecture:
            raise ValueError(f"the installed timm has no architecture {name!r:.60}")
        # timm's first format had no "pretrained_cfg": all keys were at the top.
        values = config.get("pretrained_cfg", config)
        arguments = config.get("model_args") or {}
        if not isinstance(values, dict) or not isinstance(arguments, dict):
            raise ValueError("expected objects as pretrained_cfg and model_args")
        labels = config.get("label_names", values.get("label_names"))
        classes = config.get("num_classes", values.get("num_classes"))
        stated = {**values, "num_classes": classes, "label_names": labels}
        published = _published(architecture, stated)
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise RequestError(
            f"{str(file)!r} beside weights {label!r} is damaged or not supported ({reason}): "
            "download it again, or move the weights to another folder"
        ) from error
    stated_by = f"{CONFIG} beside the file"
    pool = {"global_pool": config.get("global_pool")}
    _check_arguments({**pool, **arguments}, architecture, stated_by, label)
    return StatedOrigin(architecture, stated_by, published)


def _parsed(file: Path) -> Any:
    with file.open("rb") as stream:
        data = stream.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise ValueError(f"more than {MAX_CONFIG_BYTES // 2**20} MiB")
    return json.loads(data)


def _of_metadata(content: Mapping[str, object], label: str) -> StatedOrigin | None:
    """Return what the file itself states: its metadata, or the entries of a training checkpoint.

    timm's training script writes the same name to ``arch`` and ``args.model``, and its
    preprocessing to ``args``. Other programs write one of the two (PyTorch's ImageNet example,
    torchvision's references): it determines the function, but the preprocessing is unknown.
    """
    given = content.get("args")
    options = vars(given) if isinstance(given, Namespace) else given
    options = options if isinstance(options, Mapping) else {}
    names = [content.get("architecture"), options.get("model"), content.get("arch")]
    name = next(filter(_known, names), None)
    if name is None:
        return None
    architecture, stated_by = _known(name) or "", METADATA
    if name == content.get("architecture"):
        return StatedOrigin(architecture, stated_by, _published(name, {}))
    if options.get("model") != content.get("arch"):
        return StatedOrigin(architecture, stated_by)
    _check_options(options, architecture, label)
    try:
        return StatedOrigin(architecture, stated_by, _published(name, _preprocessing(options)))
    except ValueError as error:
        raise RequestError(
            f"weights {label!r} are a training checkpoint with invalid options ({error}): "
            "save the state dict only, with torch.save(module.state_dict(), ...)"
        ) from error


def _preprocessing(options: Mapping[str, object]) -> dict[str, object]:
    """Return the preprocessing options of timm's training script that are set."""
    keys = ("mean", "std", "crop_pct", "interpolation")
    stated = {key: options[key] for key in keys if options.get(key) is not None}
    for key in ("mean", "std"):
        value = stated.get(key)
        if isinstance(value, list | tuple) and len(value) == 1:
            stated[key] = [value[0]] * 3  # one number for all channels
    return stated


def _check_options(options: Mapping[str, object], architecture: str, label: str) -> None:
    """Check the options of timm's training script that change the function of a network."""
    arguments = options.get("model_kwargs") or {}
    renamed = {"global_pool": options.get("gp"), "in_chans": options.get("in_chans")}
    given = {**renamed, "bn_eps": options.get("bn_eps")}
    if isinstance(arguments, Mapping):
        given.update({str(key): value for key, value in arguments.items()})
    _check_arguments(given, architecture, METADATA, label)


def _of_cache_folder(path: Path) -> StatedOrigin | None:
    """Return what ``models--timm--NAME/snapshots/REVISION/`` in the hub's cache states."""
    snapshots, prefix = path.absolute().parent.parent, "models--timm--"
    repository = snapshots.parent.name
    name = repository.removeprefix(prefix)
    architecture = _known(name)
    if snapshots.name != "snapshots" or name == repository or not architecture:
        return None
    return StatedOrigin(architecture, "the folder of the hub's cache", _published(name, {}))


def _known(name: object) -> str | None:
    """Return timm's architecture of ``architecture`` or ``architecture.tag``, else None."""
    import timm

    if not isinstance(name, str):
        return None
    architecture = name.partition(".")[0]
    return architecture if timm.is_model(architecture) else None


def _check_arguments(
    arguments: Mapping[str, object], architecture: str, stated_by: str, label: str
) -> None:
    """Raise RequestError for arguments with which timm's network computes another function."""
    for name, value in arguments.items():
        if value is not None and name not in HARMLESS and HARMLESS_VALUES.get(name) != value:
            shown = " ".join(f"{name}={value!r}".split())[:80]
            raise RequestError(
                f"weights {label!r} are for timm's {architecture} with {shown} ({stated_by}), "
                "which computes a different function: pass weights that were trained without it"
            )


def _published(name: str, stated: Mapping[str, object]) -> Any:
    """Return timm's configuration of an architecture with the stated values.

    Args:
        name: ``architecture`` or ``architecture.tag``, of a known architecture.
        stated: values that replace those of timm.

    Raises:
        ValueError: a value is invalid.
    """
    from timm.models import PretrainedCfg, get_pretrained_cfg, is_model_pretrained

    architecture, _, tag = name.partition(".")
    known = name if tag and is_model_pretrained(name) else architecture
    default = get_pretrained_cfg(known) or PretrainedCfg()
    classes = stated.get("num_classes")
    return PretrainedCfg(
        architecture=architecture,
        tag=_text(stated.get("tag", tag or None)),
        num_classes=default.num_classes if classes is None else _classes(classes),
        mean=_channels("mean", stated.get("mean", default.mean), above_zero=False),
        std=_channels("std", stated.get("std", default.std), above_zero=True),
        crop_pct=_crop(stated.get("crop_pct", default.crop_pct)),
        interpolation=_text(stated.get("interpolation")) or default.interpolation,
        classifier=default.classifier,
        label_names=_labels(stated.get("label_names")),
    )


def _text(value: object) -> str | None:
    return value[:100] if isinstance(value, str) else None


def _classes(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_CLASSES:
        raise ValueError(f"num_classes {value!r:.40} is not a number of classes")
    return value


def _channels(key: str, value: object, *, above_zero: bool) -> tuple[float, ...]:
    """Return three numbers, one per colour channel."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"{key} {value!r:.40} is not a list of three numbers")
    if not all(_is_number(each) and (each > 0 or not above_zero) for each in value):
        raise ValueError(f"{key} {value!r:.40} is not a list of three valid numbers")
    return tuple(float(each) for each in value)


def _crop(value: Any) -> float:
    if not _is_number(value) or not 0.05 <= value <= 1:
        raise ValueError(f"crop_pct {value!r:.40} is not a fraction from 0.05 to 1")
    return float(value)


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number; the comparison excludes NaN and infinity."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6


def _labels(value: object) -> Any:
    """Return the class names in the order of the outputs, None if they are not a complete list."""
    if not isinstance(value, list | tuple) or not all(isinstance(each, str) for each in value):
        return None
    return tuple(value) or None


def _with_classes(origin: StatedOrigin, label: str, shapes: Shapes) -> Any:
    """Return the configuration with the number of classes that the weights have.

    Raises:
        RequestError: config.json states another number.
    """
    published = origin.published
    classes = _rows(shapes, f"{published.classifier}.weight")
    if classes is None or classes == published.num_classes:
        return published
    if origin.stated_by.startswith(CONFIG):
        raise RequestError(
            f"{CONFIG} beside weights {label!r} states {published.num_classes} classes, but the "
            f"weights have {classes}: download both again, or move the weights to another folder"
        )
    return replace(published, num_classes=classes)


def _rows(shapes: Shapes, name: str) -> int | None:
    """Return the first dimension of a tensor, whose name may have prefixes; None without it."""
    matches = [shape for key, shape in shapes.items() if key == name or key.endswith(f".{name}")]
    return matches[0][0] if len(matches) == 1 and matches[0] else None
