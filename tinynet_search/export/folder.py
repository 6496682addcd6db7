"""An export's folder: config.json, the files it lists, and what may be written into one that exists."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from search_spaces import Network, RequestError
from tinynet_search.export.subject import CONFIG, WEIGHTS, read_subject
from trainables.storage.documents import SMALL, parsed
from trainables.storage.folder import open_folder, read_file

if TYPE_CHECKING:
    import torch

SCHEMA = 1


@dataclass(frozen=True)
class ExportFolder:
    """A folder that takes files of one network with one set of weights.

    Attributes:
        scratch: a hidden folder beside the files, for what is not finished.
        files: what an earlier export left, by name.
    """

    path: Path
    scratch: Path
    files: Mapping[str, Mapping[str, Any]]

    def check_free(self, name: str) -> None:
        """Raises RequestError where a file is there that no export wrote."""
        if name not in self.files and (self.path / name).exists():
            raise RequestError(
                f"{str(self.path / name)!r} is there, and no export wrote it: choose another --out"
            )

    def publish(
        self, config: Mapping[str, Any], files: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Put finished files in place, then the configuration that lists them with those of earlier exports."""
        for name in files:
            os.replace(self.scratch / name, self.path / name)
        whole = {"schema": SCHEMA, **config, "files": {**self.files, **files}}
        open_folder(self.path).write(CONFIG, json.dumps(whole, indent=1).encode())
        return whole


@contextlib.contextmanager
def export_folder(path: Path, network: Mapping[str, Any]) -> Iterator[ExportFolder]:
    """The folder, made where there is none and removed again where nothing was written.

    Args:
        network: of config.json, what decides which network and weights are meant.

    Raises:
        RequestError: it cannot be written, or holds something else.
    """
    earlier = _earlier(path, network)
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path) as scratch:
            yield ExportFolder(path, Path(scratch), earlier)
    except OSError as error:
        raise RequestError(
            f"{str(path)!r} cannot be written ({error.strerror or error}): choose another --out"
        ) from error
    finally:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _earlier(path: Path, network: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """Files of an earlier export of the same network and weights."""
    if path.exists() and not path.is_dir():
        raise RequestError(f"{str(path)!r} is a file: --out takes a folder")
    file = path / CONFIG
    if not file.exists():
        return {}
    try:
        found = parsed(read_file(file, SMALL))
        ours = found.get("schema") == SCHEMA and all(
            isinstance(each, dict) for each in found["files"].values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        ours, found = False, {}
    if not ours:
        raise RequestError(f"{str(file)!r} is there, and no export wrote it: choose another --out")
    for key, value in network.items():
        if found.get(key) != value:
            raise RequestError(
                f"{str(path)!r} holds an export of another network or of other weights ({key}): remove it or choose another --out"
            )
    return found["files"]


def load_exported(
    folder: str | Path, *, space: str | None = None
) -> tuple[Network, "torch.nn.Module"]:
    """Rebuild what ``tinynet export --format safetensors`` (or a trial) left: the network and its module in evaluation mode.

    Args:
        space: repeats a user's own ``module:attribute``, since importing what a file names would run code.

    Raises:
        RequestError: the folder holds no export or no weights, or is damaged.
    """
    subject = read_subject(Path(folder), space)
    if subject.weights is None:
        raise RequestError(
            f"{str(folder)!r} holds no {WEIGHTS}: export the network with --format safetensors"
        )
    return subject.network, subject.network.build(pretrained=subject.weights).eval()
