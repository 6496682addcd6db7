"""What travels to the cluster with a job: the user's modules, our wheel, and settings of the environment that are no secrets."""

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

# Seconds that a stopped job has to commit checkpoints before Ray kills it; Ray's own are three.
STOP_SECONDS = 90
# Ray refuses larger uploads itself, after having packed them.
LARGEST = 500 * 2**20
PACKAGE = "tinynet_search"
MAKE = "make one by pip wheel --no-deps ."


class RuntimeEnv(TypedDict, total=False):
    """Ray's runtime environment, as far as a job of ours has one."""

    env_vars: dict[str, str]
    working_dir: str
    py_modules: list[str]


@contextlib.contextmanager
def runtime_env(working_dir: str | None, wheel: str | None) -> Iterator[RuntimeEnv]:
    """Ray's runtime environment of a job; to be sent while inside.

    Args:
        working_dir: a folder of the user's own modules, which the job and all its processes can import; None ships nothing.
        wheel: a ``.whl`` of this package, for a cluster whose image has none, or another.

    Raises:
        RequestError: one of them is not there, too large, or something else.
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
            f"--working-dir {one_line(path)!r} is no folder: give the one that holds your module"
        )
    require_client()
    size = upload_size(folder)
    if size > LARGEST:
        much = f"{mebibytes(size)}, and {LARGEST / 2**20:.0f} can be sent"
        better = "give a folder of code, or name in its .rayignore what stays here; data belong where the nodes reach them"
        raise RequestError(f"--working-dir {one_line(path)!r} has {much}: {better}")
    return str(folder)


def _unpacked(path: str, scratch: Path) -> list[str]:
    """A wheel's folders. Ray would install the file with all that it depends on, from an index that a cluster may not reach."""
    file = Path(path).expanduser().absolute()
    try:
        with zipfile.ZipFile(file) as archive:
            ours = file.suffix == ".whl" and f"{PACKAGE}/__init__.py" in archive.namelist()
            if ours:
                archive.extractall(scratch)
    except (OSError, zipfile.BadZipFile) as error:
        raise RequestError(
            f"--wheel {one_line(path)!r} cannot be read ({one_line(error)}): {MAKE}"
        ) from error
    if not ours:
        raise RequestError(f"--wheel {one_line(path)!r} is no wheel of tinynet-search: {MAKE}")
    return sorted(str(folder) for folder in scratch.iterdir())
