"""Which network is meant: a named one, a twist r,d,w of a space, or what a trial or an earlier export left."""

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from search_spaces import Network, RequestError, get_space
from search_spaces.errors import unknown
from search_spaces.networks import NETWORKS, get_named
from tinynet_search.errors import one_line
from tinynet_search.export.document import ExportConfig, Preprocessing, TrainedBy, read_config

CONFIG, WEIGHTS = "config.json", "weights.safetensors"


@dataclass(frozen=True)
class Subject:
    """A network and what is known of it.

    Attributes:
        name: of the files.
        space: as ``get_space`` takes it.
        weights: the file that lies beside the configuration, None where none does; origin: where it came from.
        trained: how, None where nobody knows.
        preprocessing: of an earlier export, None elsewhere.
    """

    name: str
    space: str
    network: Network
    weights: Path | None = None
    origin: str = ""
    trained: TrainedBy | None = None
    preprocessing: Preprocessing | None = None


def find_subject(text: str, space: str | None = None, classes: int | None = None) -> Subject:
    """The network that a text means.

    Args:
        text: a name of ``tinynet networks``, ``r,d,w``, or a folder or config.json.
        space: of ``r,d,w``; a folder whose space is a user's own module has it repeated here.
        classes: instead of the space's own number.

    Raises:
        RequestError: nothing is meant by it, or the folder's configuration is damaged or of another version.
    """
    path = Path(os.path.expanduser(text))
    if text in NETWORKS:
        if space is not None:
            raise RequestError(f"--space goes with r,d,w: {text!r} has its own")
        row = get_named(text)
        network = row.network()
        return Subject(text, row.space, network.space.network(network.rdw, classes))
    if path.is_dir() or path.suffix == ".json":
        if classes is not None:
            raise RequestError(
                f"--classes goes with a name or r,d,w: {text!r} says itself how many it has"
            )
        return read_subject(path, space)
    if "," in text:
        return _twist(text, space, classes)
    if "/" in text or text.startswith("."):
        raise RequestError(
            f"no folder {text!r}: give a network's name, r,d,w with --space, or the folder of a trial or an export"
        )
    raise unknown("network", text, NETWORKS)


def _twist(text: str, space: str | None, classes: int | None) -> Subject:
    if space is None:
        raise RequestError(
            f"{text} is a twist of what? give --space, for example --space efficientnet_b0"
        )
    try:
        r, d, w = (float(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(
            f"{text!r} is no r,d,w: give three numbers such as 0.86,1.2,1.0"
        ) from error
    network = get_space(space).network((r, d, w), classes)
    return Subject(re.sub(r"[^\w.-]", "_", f"{space}-r{r:g}-d{d:g}-w{w:g}"), space, network)


def read_subject(path: Path, space: str | None = None) -> Subject:
    """The network of a folder or config.json that a trial or an export left.

    Raises:
        RequestError: it is not there, damaged, another version's, or names a user's module that ``space`` does not repeat.
    """
    file = path / CONFIG if path.is_dir() else path
    try:
        config = read_config(file)
    except OSError as error:
        raise RequestError(
            f"{str(file)!r} {error.strerror}: give the folder of a trial or an export"
        ) from error
    except ValueError as error:
        raise RequestError(
            f"{str(file)!r} is no configuration of a trial or an export, or damaged ({one_line(error, 200)})"
        ) from error
    _check_space(file, config.space, space)
    r, d, w = config.rdw
    network = get_space(config.space).network((r, d, w), config.num_classes)
    if network.space.version != config.space_version:
        raise RequestError(
            f"{str(file)!r} is of version {config.space_version} of {config.space}, which meant other networks: here is {network.space.version}"
        )
    figures = config.network
    if (network.macs, network.resolution) != (figures.macs, figures.resolution):
        raise RequestError(
            f"{str(file)!r} is damaged: its figures are not those of its own r, d, w and classes"
        )
    folder = file.parent.resolve().name
    weights = file.parent / WEIGHTS if (file.parent / WEIGHTS).is_file() else None
    if isinstance(config, ExportConfig):
        _check_digest(config, weights)
        name, origin, preprocessing = config.name, config.weights.origin, config.preprocessing
    else:
        name = _job_network(file.parent, space) or f"{config.space}-{folder}"
        origin, preprocessing = f"trial {folder}", None
    # The name becomes a file's: nothing in it may lead elsewhere.
    name = re.sub(r"[^\w.-]", "_", name)[:100]
    return Subject(name, config.space, network, weights, origin, config.trained, preprocessing)


def _check_digest(config: ExportConfig, weights: Path | None) -> None:
    listed = config.files.get(WEIGHTS)
    if weights and listed and file_digest(weights) != listed.sha256:
        raise RequestError(
            f"{str(weights)!r} is not the file that {CONFIG} lists: it is damaged, or another's"
        )


def file_digest(file: Path) -> str:
    """SHA-256 of a file of any size."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _job_network(trial: Path, space: str | None) -> str | None:
    """What the job around a trial's folder calls its network."""
    from tinynet_search.store.train_job import job_around

    with contextlib.suppress(RequestError):
        job = job_around(trial, space)
        return job.network if job else None
    return None


def _check_space(file: Path, own: str, space: str | None) -> None:
    """A module's name in a file would be code to run: the user says it again."""
    if space is not None and space != own:
        raise RequestError(
            f"--space is {space!r}, and {str(file)!r} is a network of {own!r}: leave --space out or give that one"
        )
    if ":" in own and space is None:
        raise RequestError(
            f"{str(file)!r} is of {own!r}, which would be code to run: say --space {own} if it is yours"
        )
