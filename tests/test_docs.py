"""Tests that the documentation builds without warnings, and that a broken link fails the build.

Run by ``make test``. Zensical writes next to its configuration, so it builds a copy of the sources.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.required import require_module

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
PACKAGES = ("search_spaces", "trainables", "tinynet_search")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The generated pages."""
    require_module("zensical", "zensical")
    require_module("mkdocstrings_handlers.python", "mkdocstrings-python")
    folder = tmp_path_factory.mktemp("reference")
    command = [sys.executable, ROOT / "tools" / "write_reference.py", folder]
    subprocess.run(command, env=ENVIRONMENT, check=True)
    return folder


@pytest.fixture
def sources(reference: Path, tmp_path: Path) -> Path:
    """A folder with the configuration, the pages and the packages."""
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copytree(reference, tmp_path / "docs" / "reference", dirs_exist_ok=True)
    for package in PACKAGES:
        (tmp_path / package).symlink_to(ROOT / package)
    return tmp_path


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    # The environment's bin directory: Zensical is a command without ``python -m``.
    command = [Path(sys.executable).parent / "zensical", "build", "--strict", "--clean"]
    return subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_site_builds_without_warnings(sources: Path) -> None:
    built = build(sources)
    assert built.returncode == 0, built.stdout + built.stderr
    assert built.stderr == "No issues found\n"
    pages = {page.relative_to(sources / "docs").with_suffix(".html") for page in _pages(sources)}
    missing = [str(page) for page in pages if not (sources / "site" / page).is_file()]
    assert missing == []
    api = (sources / "site" / "reference" / "api.html").read_text(encoding="utf-8")
    assert 'id="tinynet_search.suggest_rdw"' in api


def test_every_page_is_in_the_navigation(sources: Path) -> None:
    configuration = (sources / "zensical.toml").read_text(encoding="utf-8")
    names = [page.relative_to(sources / "docs").as_posix() for page in _pages(sources)]
    assert [name for name in names if f'"{name}"' not in configuration] == []


@pytest.mark.parametrize("link", ["guides/missing.md", "guides/training.md#missing"])
def test_a_broken_link_fails_the_build(sources: Path, link: str) -> None:
    with (sources / "docs" / "index.md").open("a", encoding="utf-8") as index:
        index.write(f"\n[broken]({link})\n")
    built = build(sources)
    assert built.returncode != 0
    assert "1 issue found" in built.stderr


def _pages(folder: Path) -> list[Path]:
    return sorted((folder / "docs").rglob("*.md"))
