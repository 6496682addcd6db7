"""Programs, files and modules that tests need and a machine may lack.

A test asks for one by a function of this module. Where it is not installed, the test is skipped with a reason that says what to
install, or fails where the variable TINYNET_REQUIRE_ALL is set, as ``.ci/run`` sets it.
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
    """Skip the test that runs, or fail it where everything is required.

    Args:
        reason: what is missing, and how it is installed.
    """
    if os.environ.get(REQUIRE_ALL):
        pytest.fail(f"{reason} ({REQUIRE_ALL} is set)", pytrace=False)
    pytest.skip(reason)


def require_program(name: str, package: str) -> Path:
    """A program on the path.

    Args:
        package: Debian's, which brings it.
    """
    found = shutil.which(name)
    return (
        Path(found)
        if found
        else not_installed(f"{name} is not installed: apt-get install {package}")
    )


def require_file(path: Path, package: str) -> Path:
    """A file or a folder of a package of Debian's."""
    return (
        path if path.exists() else not_installed(f"{path} is not there: apt-get install {package}")
    )


def require_module(name: str, package: str) -> ModuleType:
    """A module, imported.

    Args:
        package: Python's, which brings it.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that is there and lacks one of its own is broken, not missing.
        if error.name != name:
            raise
        return not_installed(f"{name} is not installed: pip install {package}")


def require_postgres() -> Path:
    """The folder of PostgreSQL's programs, which Debian keeps off the path."""
    return postgres_programs() or not_installed(NO_POSTGRES)


def require_fashion_mnist() -> Path:
    """The folder of Fashion-MNIST's four files."""
    return require_file(FASHION_MNIST, "dataset-fashion-mnist")
