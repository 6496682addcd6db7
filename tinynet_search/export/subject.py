"""Which network is meant: a named one, a twist r,d,w of a space, or what a trial or an earlier export left."""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces import Network, RequestError, get_space
from search_spaces.errors import unknown
from search_spaces.networks import NETWORKS, get_named
from tinynet_search.errors import one_line
from trainables.recipe import recipe_from
from trainables.storage.documents import SMALL, parsed
from trainables.storage.folder import read_file

CONFIG, WEIGHTS = "config.json", "weights.safetensors"
# What a trial's configuration says of its training; an export of the trial keeps it.
TRAINED = ("recipe", "data", "data_fingerprint", "seed", "metrics")


@dataclass(frozen=True)
class Subject:
    """A network and what is known of it.

    Attributes:
        name: of the files.
        space: as ``get_space`` takes it.
        weights: the file that lies beside the configuration, None where none does; origin: where it came from.
        trained: recipe, data, seed and metrics of its training, empty where nobody knows.
        preprocessing: of an earlier export, None elsewhere.
    """

    name: str
    space: str
    network: Network
    weights: Path | None = None
    origin: str = ""
    trained: Mapping[str, Any] | None = None
    preprocessing: Mapping[str, Any] | None = None


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
        found = parsed(read_file(file, SMALL))
        r, d, w = (float(value) for value in found["rdw"])
        own = str(found["space"])
        version, classes, figures = (
            int(found["space_version"]),
            int(found["num_classes"]),
            dict(found["network"]),
        )
        trained = {key: found[key] for key in TRAINED if key in found} or dict(
            found.get("trained") or {}
        )
        trained |= {key: dict(trained[key]) for key in ("recipe", "data") if key in trained}
        preprocessing = (
            _preprocessing(found["preprocessing"]) if found.get("preprocessing") else None
        )
        origin = (
            str(found["weights"]["from"])
            if "weights" in found
            else f"trial {file.parent.resolve().name}"
        )
        digest = dict(dict(found.get("files") or {}).get(WEIGHTS) or {}).get("sha256")
        if "recipe" in trained:
            recipe_from(trained["recipe"])
    except OSError as error:
        raise RequestError(
            f"{str(file)!r} {error.strerror}: give the folder of a trial or an export"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            f"{str(file)!r} is no configuration of a trial or an export, or damaged ({one_line(error, 80)})"
        ) from error
    _check_space(file, own, space)
    network = get_space(own).network((r, d, w), classes)
    if network.space.version != version:
        raise RequestError(
            f"{str(file)!r} is of version {version} of {own}, which meant other networks: here is {network.space.version}"
        )
    if (network.macs, network.resolution) != (figures.get("macs"), figures.get("resolution")):
        raise RequestError(
            f"{str(file)!r} is damaged: its figures are not those of its own r, d, w and classes"
        )
    weights = file.parent / WEIGHTS
    if digest and weights.is_file() and file_digest(weights) != digest:
        raise RequestError(
            f"{str(weights)!r} is not the file that {CONFIG} lists: it is damaged, or another's"
        )
    named = (
        found.get("name")
        or _job_network(file.parent, space)
        or f"{own}-{file.parent.resolve().name}"
    )
    # The name becomes a file's: nothing in it may lead elsewhere.
    name = re.sub(r"[^\w.-]", "_", str(named))[:100]
    return Subject(
        name, own, network, weights if weights.is_file() else None, origin, trained, preprocessing
    )


def file_digest(file: Path) -> str:
    """SHA-256 of a file of any size."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _preprocessing(found: Mapping[str, Any]) -> dict[str, Any]:
    """Raises ValueError, KeyError or TypeError where images could not be prepared so."""
    mean, std = ([float(value) for value in found[key]] for key in ("mean", "std"))
    sound = (
        len(mean) == len(std) == 3
        and all(1e-6 <= value <= 1e6 for value in std)
        and all(abs(value) <= 1e6 for value in mean)
    )
    if not sound or not 0.1 <= float(found["crop_ratio"]) <= 1:
        raise ValueError("its preprocessing is none")
    return dict(found)


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
