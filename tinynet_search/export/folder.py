"""Reads and writes the folder of an export: config.json and the files it lists.

Called by the exporter. An existing folder is extended only by the same network and weights.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search_spaces import Network, RequestError
from tinynet_search.export.document import ExportConfig, ExportedFile, read_config
from tinynet_search.export.subject import CONFIG, WEIGHTS, read_subject
from trainables.storage.folder import open_folder

if TYPE_CHECKING:
    import torch

# The fields that identify the network and its weights.
IDENTITY = ("space", "space_version", "num_classes", "class_names", "network", "weights_sha256")


@dataclass(frozen=True)
class ExportFolder:
    """A folder for files of one network with one set of weights.

    Attributes:
        path: The folder.
        scratch: A hidden subfolder for unfinished files.
        config: The configuration to write, including the files of earlier exports.
    """

    path: Path
    scratch: Path
    config: ExportConfig

    def check_free(self, name: str) -> None:
        """Raise RequestError if a file exists that was not written by an export."""
        if name not in self.config.files and (self.path / name).exists():
            raise _not_an_export(self.path / name)

    def publish(self, files: Mapping[str, ExportedFile]) -> ExportConfig:
        """Move finished files into the folder, then write the configuration with all files."""
        for name in files:
            os.replace(self.scratch / name, self.path / name)
        config = self.config.model_copy(update={"files": {**self.config.files, **files}})
        open_folder(self.path).write(CONFIG, json.dumps(config.to_json(), indent=1).encode())
        return config


@contextlib.contextmanager
def export_folder(path: Path, config: ExportConfig) -> Iterator[ExportFolder]:
    """Open the folder of an export.

    A missing folder is created, and removed again if nothing was written.

    Args:
        config: The configuration of this export, without files.

    Raises:
        RequestError: The folder cannot be written, or contains something else.
    """
    earlier = _earlier_files(path, config)
    created = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path) as scratch:
            yield ExportFolder(path, Path(scratch), config.model_copy(update={"files": earlier}))
    except OSError as error:
        raise RequestError(
            f"{str(path)!r} cannot be written ({error.strerror or error}): choose another --out"
        ) from error
    finally:
        if created:
            with contextlib.suppress(OSError):
                path.rmdir()


def _not_an_export(path: Path) -> RequestError:
    return RequestError(
        f"{str(path)!r} already exists and was not written by an export: choose another --out"
    )


def _earlier_files(path: Path, config: ExportConfig) -> dict[str, ExportedFile]:
    """Files of an earlier export of the same network and weights."""
    if path.exists() and not path.is_dir():
        raise RequestError(f"{str(path)!r} is a file: pass a folder as --out")
    file = path / CONFIG
    if not file.exists():
        return {}
    try:
        earlier = read_config(file)
    except (OSError, ValueError):
        earlier = None
    if not isinstance(earlier, ExportConfig):
        raise _not_an_export(file)
    for key in IDENTITY:
        if getattr(earlier, key) != getattr(config, key):
            raise RequestError(
                f"{str(path)!r} contains an export of a different network or of different weights "
                f"({key}): remove it or choose another --out"
            )
    return earlier.files


def load_exported(
    folder: str | Path, *, space: str | None = None
) -> tuple[Network, "torch.nn.Module"]:
    """Load a network and its module in evaluation mode.

    Args:
        folder: Folder written by ``tinynet export --format safetensors``, or folder of a trial.
        space: A user-defined space as ``module:attribute``. It must be passed explicitly, because
            importing a module that a file names would run code.

    Raises:
        RequestError: The folder contains no export or no weights, or is damaged.
    """
    subject = read_subject(Path(folder), space)
    if subject.weights is None:
        raise RequestError(
            f"{str(folder)!r} contains no {WEIGHTS}: export the network with --format safetensors"
        )
    return subject.network, subject.network.build(pretrained=subject.weights).eval()
