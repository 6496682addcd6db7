"""Finds the network to export: a named one, (r, d, w) of a space, or that of a trial or an export.

Called by the exporter, by ``load_exported`` and by evaluations.
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from search_spaces import Network, RequestError, get_space
from search_spaces.errors import unknown
from search_spaces.networks import NETWORKS, get_named
from search_spaces.origin import METADATA
from search_spaces.published import HUB_FILES, imagenet_classes, published_classes
from search_spaces.weights import Source, file_metadata
from tinynet_search.errors import one_line
from tinynet_search.export.document import ExportConfig, Preprocessing, TrainedBy, read_config
from trainables.classes import ClassMatch, classes_in, match_classes

CONFIG, WEIGHTS = "config.json", "weights.safetensors"


@dataclass(frozen=True)
class Subject:
    """A network and its known properties.

    Attributes:
        name: Base name of the exported files.
        space: Name of the space, as accepted by ``get_space``.
        network: The network.
        weights: Weights file next to the configuration, None if missing.
        class_names: The class of each output with these weights, None if unknown.
        origin: Origin of the weights.
        trained: How the weights were trained, None if unknown.
        preprocessing: Preprocessing recorded by an earlier export, else None.
    """

    name: str
    space: str
    network: Network
    weights: Path | None = None
    class_names: list[str] | None = None
    origin: str = ""
    trained: TrainedBy | None = None
    preprocessing: Preprocessing | None = None


def find_subject(text: str, space: str | None = None, classes: int | None = None) -> Subject:
    """Find the network that a text describes.

    Args:
        text: A name listed by ``tinynet networks``, ``r,d,w``, a folder, or a config.json.
        space: Space of ``r,d,w``. For a folder whose space is a user-defined module, the same
            module must be passed here.
        classes: Number of classes; None is the space's default.

    Raises:
        RequestError: The text describes no network, or the folder's configuration is damaged or has
            a different version.
    """
    path = Path(os.path.expanduser(text))
    if text in NETWORKS:
        if space is not None:
            raise RequestError(f"--space requires r,d,w: {text!r} has its own space")
        row = get_named(text)
        network = row.network()
        return Subject(text, row.space, network.space.network(network.rdw, classes))
    if path.is_dir() or path.suffix == ".json":
        if classes is not None:
            raise RequestError(
                f"--classes requires a name or r,d,w: {text!r} has a fixed number of classes"
            )
        return read_subject(path, space)
    if "," in text:
        return _from_multipliers(text, space, classes)
    if "/" in text or text.startswith("."):
        raise RequestError(
            f"no folder {text!r}: pass a network's name, r,d,w with --space, "
            "or the folder of a trial or an export"
        )
    raise unknown("network", text, NETWORKS)


def _from_multipliers(text: str, space: str | None, classes: int | None) -> Subject:
    if space is None:
        raise RequestError(
            f"{text} requires a space: pass --space, for example --space efficientnet_b0"
        )
    try:
        r, d, w = (float(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(
            f"{text!r} is not a valid r,d,w: pass three numbers such as 0.86,1.2,1.0"
        ) from error
    network = get_space(space).network((r, d, w), classes)
    return Subject(re.sub(r"[^\w.-]", "_", f"{space}-r{r:g}-d{d:g}-w{w:g}"), space, network)


def read_subject(path: Path, space: str | None = None) -> Subject:
    """Read the network of a folder or config.json written by a trial or an export.

    Raises:
        RequestError: The configuration is missing, damaged or of a different version, or it names a
            user-defined module that is not passed as ``space``.
    """
    file = path / CONFIG if path.is_dir() else path
    try:
        config = read_config(file)
    except OSError as error:
        raise RequestError(
            f"{str(file)!r} {error.strerror}: pass the folder of a trial or an export"
        ) from error
    except ValueError as error:
        hub = next((each for name in HUB_FILES if (each := file.parent / name).is_file()), None)
        if hub is not None:
            raise RequestError(
                f"{str(path)!r} is in the format of the hub: pass its file as --weights {hub}"
            ) from error
        raise RequestError(
            f"{str(file)!r} is not a valid configuration of a trial or an export "
            f"({one_line(error, 200)})"
        ) from error
    _check_space(file, config.space, space)
    r, d, w = config.rdw
    network = get_space(config.space).network((r, d, w), config.num_classes)
    if network.space.version != config.space_version:
        raise RequestError(
            f"{str(file)!r} uses version {config.space_version} of {config.space}, which defines "
            f"different networks: the installed version is {network.space.version}"
        )
    figures = config.network
    if (network.macs, network.resolution) != (figures.macs, figures.resolution):
        raise RequestError(
            f"{str(file)!r} is damaged: its figures do not match its r, d, w and classes"
        )
    if config.class_names is not None and len(config.class_names) != config.num_classes:
        raise RequestError(
            f"{str(file)!r} is damaged: it has {len(config.class_names)} class names "
            f"for {config.num_classes} classes"
        )
    folder = file.parent.resolve().name
    weights = file.parent / WEIGHTS if (file.parent / WEIGHTS).is_file() else None
    if isinstance(config, ExportConfig):
        _check_digest(config, weights)
        name, origin, preprocessing = config.name, config.weights.origin, config.preprocessing
    else:
        name = _job_network(file.parent, space) or f"{config.space}-{folder}"
        origin, preprocessing = f"trial {folder}", None
    # The name becomes a file name and must not contain path separators.
    name = re.sub(r"[^\w.-]", "_", name)[:100]
    return Subject(
        name=name,
        space=config.space,
        network=network,
        weights=weights,
        class_names=config.class_names,
        origin=origin,
        trained=config.trained,
        preprocessing=preprocessing,
    )


def class_names_of(subject: Subject, source: Source) -> list[str] | None:
    """The class of each output of a network with the weights of ``source``; None if unknown.

    Trials and exports record it in their config.json and in the metadata of their weights;
    published weights have the classes of ImageNet. A training checkpoint states its architecture,
    but not its classes.
    """
    if source.published is not None and source.stated_by != METADATA:
        names = published_classes(source.published)
    elif source.path == subject.weights:
        names = subject.class_names
    else:
        names = classes_in(file_metadata(source.path))
    return names if names and len(names) == subject.network.num_classes else None


def matched_classes(subject: Subject, source: Source, data: Sequence[str]) -> ClassMatch:
    """Match the outputs of a network with the classes of a data set by name.

    If the classes of the outputs are unknown, 1000 outputs are assumed to be those of ImageNet if
    all classes of the data are classes of ImageNet; else the order of the data is assumed.

    Args:
        data: The class of each label.

    Raises:
        RequestError: The classes do not match; the message names the first class that differs.
    """
    label, outputs = f"weights {source.label!r}", subject.network.num_classes
    names = class_names_of(subject, source)
    if names is None:
        imagenet = imagenet_classes()
        if outputs == len(imagenet) and set(data) <= set(imagenet):
            match = match_classes(label, outputs, imagenet, data)
            note = f"{label} do not record their classes: assuming those of ImageNet in its order"
            return replace(match, note="; ".join(filter(None, (note, match.note))))
    return match_classes(label, outputs, names, data)


def _check_digest(config: ExportConfig, weights: Path | None) -> None:
    listed = config.files.get(WEIGHTS)
    if weights and listed and file_digest(weights) != listed.sha256:
        raise RequestError(
            f"{str(weights)!r} does not match its digest in {CONFIG}: "
            "it is damaged or belongs to a different export"
        )


def file_digest(file: Path) -> str:
    """SHA-256 of a file of any size."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _job_network(trial: Path, space: str | None) -> str | None:
    """The name of a trial's network in the job that contains the trial, None without a job."""
    from tinynet_search.store.train_job import job_of_trial

    with contextlib.suppress(RequestError):
        job = job_of_trial(trial, space)
        return job.network if job else None
    return None


def _check_space(file: Path, own: str, space: str | None) -> None:
    """Require that the user passes a module that a file names, because importing it runs code."""
    if space is not None and space != own:
        raise RequestError(
            f"--space is {space!r}, but {str(file)!r} contains a network of {own!r}: "
            f"omit --space or pass --space {own}"
        )
    if ":" in own and space is None:
        raise RequestError(
            f"{str(file)!r} uses the space {own!r}, which is user-defined code and is not loaded "
            f"from a file: pass --space {own} if you trust it"
        )
