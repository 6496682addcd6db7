"""The wheel: built, installed in an empty environment, and used as the quick start shows."""

import email
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tinynet_search.version import __version__

ROOT = Path(__file__).parents[1]
PACKAGES = ("search_spaces", "tinynet_search", "trainables")


def environment() -> dict[str, str]:
    """The environment without this checkout on Python's path."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


def run(*command: str, folder: Path) -> str:
    """Run a command that must succeed, and return its standard output."""
    completed = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=600
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def quick_start() -> tuple[str, str]:
    """The first example of the README, and what it prints there."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    match = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", readme, re.DOTALL)
    assert match
    code = [line for line in match[1].splitlines() if line]
    return "\n".join(code), match[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that the installed backend builds from the files that git tracks."""
    source = tmp_path_factory.mktemp("source")
    tracked = run("git", "-C", str(ROOT), "ls-files", "-z", folder=ROOT).split("\0")
    for name in filter(None, tracked):
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            target.write_bytes((ROOT / name).read_bytes())
    wheels = tmp_path_factory.mktemp("wheels")
    run(
        *(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(wheels)),
        folder=source,
    )
    (path,) = wheels.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = [name for name in names if name.endswith(".dist-info/METADATA")]
        fields = email.message_from_bytes(archive.read(metadata))
    folder = metadata.partition("/")[0]
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, folder}
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(names)
    assert f"{folder}/licenses/LICENSE" in names
    assert "tinynet_search/formula/published.json" in names
    assert fields["Version"] == __version__
    assert (fields["License-Expression"], fields["Requires-Python"]) == ("Apache-2.0", ">=3.11")
    # In metadata 2.4 this is the only field for an author without an address.
    assert fields["Author"] == "the tinynet-search developers"


@pytest.mark.slow
def test_quick_start_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "environment", folder=tmp_path)
    binaries = tmp_path / "environment" / "bin"

    def install(package: str) -> None:
        """Install the exact versions, with uv if possible, in the same way as the Makefile."""
        script, constraints = ROOT / "tools" / "install.py", ROOT / "constraints.txt"
        command = (str(binaries / "python"), str(script), "-c", str(constraints), package)
        run(*command, folder=tmp_path)

    install(str(wheel))
    code, expected = quick_start()
    python, tinynet = str(binaries / "python"), str(binaries / "tinynet")
    # Without an extra, suggestions work. Building a network fails with a line that names the extra.
    without_build = "\n".join(code.splitlines()[:-1])
    assert run(python, "-c", without_build, folder=tmp_path) == expected
    failed = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
    )
    assert failed.stderr.splitlines()[-1].endswith(
        "install the extra 'search' (in a checkout: pip install '.[search]')"
    )

    install(f"{wheel}[demo]")
    assert run(python, "-c", code, folder=tmp_path) == expected
    printed = run(tinynet, "suggest", "0.25", folder=tmp_path)
    assert re.search(r"^0\.25 .* 184 .* 94\.0M ", printed, re.MULTILINE)
    assert run(tinynet, "--version", folder=tmp_path).split()[-1] == __version__


@pytest.mark.quick
def test_the_version_is_written_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    for page in ("README.md", "docs/quick-start.md"):
        wheels = re.findall(
            r"tinynet_search-([\d.]+)-py3", (ROOT / page).read_text(encoding="utf-8")
        )
        assert set(wheels) == {__version__}, page
    assert "version:" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8").replace(
        "cff-version:", ""
    )
