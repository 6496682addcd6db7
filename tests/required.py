"""Returns programs, files and modules that tests need and that may not be installed.

Tests call the functions of this module. If the requirement is not installed, the test is skipped,
and the reason names the package; if TINYNET_REQUIRE_ALL is set, as in ``.ci/run``, the test fails.
"""

import importlib
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

from tests.tracking.servers import NO_POSTGRES, postgres_programs

REQUIRE_ALL = "TINYNET_REQUIRE_ALL"
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


def not_installed(reason: str) -> NoReturn:
    """Skip the running test, or fail it if everything is required.

    Args:
        reason: the missing requirement and how to install it.
    """
    if os.environ.get(REQUIRE_ALL):
        pytest.fail(f"{reason} ({REQUIRE_ALL} is set)", pytrace=False)
    pytest.skip(reason)


def require_program(name: str, package: str) -> Path:
    """Return a program on the path.

    Args:
        package: the Debian package that contains it.
    """
    path = shutil.which(name)
    if path is None:
        not_installed(f"{name} is not installed: apt-get install {package}")
    return Path(path)


def require_file(path: Path, package: str) -> Path:
    """Return a file or a folder of a Debian package."""
    if not path.exists():
        not_installed(f"{path} does not exist: apt-get install {package}")
    return path


def require_module(name: str, package: str) -> ModuleType:
    """Import and return a module.

    Args:
        package: the Python package that contains it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # An installed module with a missing dependency is broken, not missing.
        if error.name != name:
            raise
        return not_installed(f"{name} is not installed: pip install {package}")


def require_postgres() -> Path:
    """Return the folder of PostgreSQL's programs, which Debian does not add to the path."""
    return postgres_programs() or not_installed(NO_POSTGRES)


def require_fashion_mnist() -> Path:
    """Return the folder with the four files of Fashion-MNIST."""
    return require_file(FASHION_MNIST, "dataset-fashion-mnist")
