"""Builds Ray's runtime environment of a job: the user's modules, a wheel, environment variables.

Called by ``submission``. It contains no secrets.
"""

import contextlib
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from search_spaces.errors import RequestError
from tinynet_search.cluster.ray_internals import upload_size
from tinynet_search.errors import one_line
from tinynet_search.jobs.connection import require_client
from tinynet_search.text import mebibytes

# Seconds that a stopped job has to commit checkpoints before Ray kills it; Ray's default is three.
STOP_SECONDS = 90
# Ray itself rejects larger uploads, but only after packing them.
MAX_UPLOAD_SIZE = 500 * 2**20
PACKAGE = "tinynet_search"
BUILD_WHEEL = "build a wheel with pip wheel --no-deps ."


class RuntimeEnv(TypedDict, total=False):
    """The keys of Ray's runtime environment that jobs use."""

    env_vars: dict[str, str]
    working_dir: str
    py_modules: list[str]


@contextlib.contextmanager
def runtime_env(working_dir: str | None, wheel: str | None) -> Iterator[RuntimeEnv]:
    """Ray's runtime environment of a job; valid only within this context.

    Args:
        working_dir: a folder with the user's modules, which the job and its processes can import;
            None uploads no folder.
        wheel: a ``.whl`` file of this package, for a cluster whose image does not have it, or has
            a different version.

    Raises:
        RequestError: the folder or the wheel does not exist, is too large, or is not a folder or a
            wheel of this package.
    """
    env: RuntimeEnv = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}}
    if working_dir is not None:
        env["working_dir"] = _folder(working_dir)
    with tempfile.TemporaryDirectory(prefix="tinynet-wheel-") as scratch:
        if wheel is not None:
            env["py_modules"] = _unpacked(wheel, Path(scratch))
        yield env


def _folder(path: str) -> str:
    folder = Path(path).expanduser().absolute()
    if not folder.is_dir():
        raise RequestError(
            f"--working-dir {one_line(path)!r} is not a folder: pass the folder of your module"
        )
    require_client()
    size = upload_size(folder)
    if size > MAX_UPLOAD_SIZE:
        raise RequestError(
            f"--working-dir {one_line(path)!r} has {mebibytes(size)}, the limit is "
            f"{mebibytes(MAX_UPLOAD_SIZE)}: pass a folder of code, or list other files in its "
            ".rayignore; put data where the nodes can access them"
        )
    return str(folder)


def _unpacked(path: str, scratch: Path) -> list[str]:
    """The folders of a wheel.

    Given the file, Ray would also install its dependencies, from an index that a cluster may not
    be able to access.
    """
    file = Path(path).expanduser().absolute()
    try:
        with zipfile.ZipFile(file) as archive:
            valid = file.suffix == ".whl" and f"{PACKAGE}/__init__.py" in archive.namelist()
            if valid:
                archive.extractall(scratch)
    except (OSError, zipfile.BadZipFile) as error:
        raise RequestError(
            f"--wheel {one_line(path)!r} cannot be read ({one_line(error)}): {BUILD_WHEEL}"
        ) from error
    if not valid:
        raise RequestError(
            f"--wheel {one_line(path)!r} is not a wheel of tinynet-search: {BUILD_WHEEL}"
        )
    return sorted(str(folder) for folder in scratch.iterdir())
