"""An export's folder: config.json, the files it lists, and what may be written into one that exists."""

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

# What decides which network and weights are meant.
IDENTITY = ("space", "space_version", "num_classes", "network", "weights_sha256")


@dataclass(frozen=True)
class ExportFolder:
    """A folder that takes files of one network with one set of weights.

    Attributes:
        scratch: a hidden folder beside the files, for what is not finished.
        config: what will be written, with the files that earlier exports left.
    """

    path: Path
    scratch: Path
    config: ExportConfig

    def check_free(self, name: str) -> None:
        """Raises RequestError where a file is there that no export wrote."""
        if name not in self.config.files and (self.path / name).exists():
            raise RequestError(
                f"{str(self.path / name)!r} is there, and no export wrote it: choose another --out"
            )

    def publish(self, files: Mapping[str, ExportedFile]) -> ExportConfig:
        """Put finished files in place, then the configuration that lists them with those of earlier exports."""
        for name in files:
            os.replace(self.scratch / name, self.path / name)
        whole = self.config.model_copy(update={"files": {**self.config.files, **files}})
        open_folder(self.path).write(CONFIG, json.dumps(whole.to_json(), indent=1).encode())
        return whole


@contextlib.contextmanager
def export_folder(path: Path, config: ExportConfig) -> Iterator[ExportFolder]:
    """The folder, made where there is none and removed again where nothing was written.

    Args:
        config: what is exported, without files.

    Raises:
        RequestError: it cannot be written, or holds something else.
    """
    earlier = _earlier(path, config)
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=path) as scratch:
            whole = config.model_copy(update={"files": earlier})
            yield ExportFolder(path, Path(scratch), whole)
    except OSError as error:
        raise RequestError(
            f"{str(path)!r} cannot be written ({error.strerror or error}): choose another --out"
        ) from error
    finally:
        if made:
            with contextlib.suppress(OSError):
                path.rmdir()


def _earlier(path: Path, config: ExportConfig) -> dict[str, ExportedFile]:
    """Files of an earlier export of the same network and weights."""
    if path.exists() and not path.is_dir():
        raise RequestError(f"{str(path)!r} is a file: --out takes a folder")
    file = path / CONFIG
    if not file.exists():
        return {}
    try:
        earlier = read_config(file)
    except (OSError, ValueError):
        earlier = None
    if not isinstance(earlier, ExportConfig):
        raise RequestError(f"{str(file)!r} is there, and no export wrote it: choose another --out")
    for key in IDENTITY:
        if getattr(earlier, key) != getattr(config, key):
            raise RequestError(
                f"{str(path)!r} holds an export of another network or of other weights ({key}): remove it or choose another --out"
            )
    return earlier.files


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
