"""Tests that a missing program skips a test or fails it in CI, and that CI installs programs."""

import gzip
import os
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests import required

ROOT = Path(__file__).parents[1]
MISSING: dict[str, Callable[[], object]] = {
    "no-such-program is not installed: apt-get install its-package": lambda: (
        required.require_program("no-such-program", "its-package")
    ),
    "/no/such/file does not exist: apt-get install its-package": lambda: required.require_file(
        Path("/no/such/file"), "its-package"
    ),
    "no_such_module is not installed: pip install its-package": lambda: required.require_module(
        "no_such_module", "its-package"
    ),
    "no PostgreSQL server is installed: apt-get install postgresql": required.require_postgres,
    "/no/data does not exist: apt-get install dataset-fashion-mnist": (
        required.require_fashion_mnist
    ),
}


@pytest.fixture(autouse=True)
def nothing_installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests with a ``reason``: PostgreSQL and Fashion-MNIST are not installed."""
    if "reason" in request.fixturenames:
        monkeypatch.setattr(required, "postgres_programs", lambda: None)
        monkeypatch.setattr(required, "FASHION_MNIST", Path("/no/data"))


@pytest.mark.parametrize("reason", MISSING)
def test_a_missing_requirement_skips_the_test(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(required.REQUIRE_ALL, raising=False)
    with pytest.raises(pytest.skip.Exception) as caught:
        MISSING[reason]()
    assert str(caught.value) == reason


@pytest.mark.parametrize("reason", MISSING)
def test_a_missing_requirement_fails_the_test_if_all_are_required(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(required.REQUIRE_ALL, "1")
    with pytest.raises(pytest.fail.Exception) as caught:
        MISSING[reason]()
    assert str(caught.value) == f"{reason} (TINYNET_REQUIRE_ALL is set)"


def test_an_installed_requirement_is_returned(tmp_path: Path) -> None:
    assert required.require_program("sh", "dash").name == "sh"
    assert required.require_file(tmp_path, "none") == tmp_path
    assert required.require_module("tomllib", "none") is tomllib


def test_a_module_with_a_missing_dependency_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_module.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        required.require_module("broken_module", "its-package")


def test_a_browser_renders_a_page(tmp_path: Path) -> None:
    browser = required.require_program("chromium", "chromium")
    page = tmp_path / "page.html"
    page.write_text(
        "<p id=sum></p><script>"
        "document.getElementById('sum').textContent = 'sum ' + (19 + 23)"
        "</script>"
    )
    # Chromium has no sandbox for root. No option uses the network.
    options = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
    ]
    command = [
        str(browser),
        "--headless",
        *options,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        page.as_uri(),
    ]
    environment = os.environ | {"HOME": str(tmp_path)}
    completed = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert '<p id="sum">sum 42</p>' in completed.stdout, completed.stderr


@pytest.mark.parametrize(("part", "count"), [("train", 60_000), ("t10k", 10_000)])
def test_fashion_mnist_can_be_read(part: str, count: int) -> None:
    folder = required.require_fashion_mnist()
    images, labels = (
        gzip.decompress((folder / f"{part}-{kind}-ubyte.gz").read_bytes())
        for kind in ("images-idx3", "labels-idx1")
    )
    # An idx file: a magic number that ends with the number of dimensions, then the dimensions, four
    # bytes each, then the values.
    assert np.frombuffer(images, ">i4", 4).tolist() == [0x803, count, 28, 28]
    assert len(images) == 16 + count * 28 * 28
    assert np.frombuffer(labels, ">i4", 2).tolist() == [0x801, count]
    assert np.bincount(np.frombuffer(labels, np.uint8, offset=8)).tolist() == [count // 10] * 10


@dataclass
class Ci:
    """``.ci/run`` with scripts as dpkg-query, apt-get and make that log their arguments."""

    home: Path

    def program(self, name: str, body: str) -> None:
        file = self.home / "bin" / name
        file.write_text(
            f'#!{shutil.which("bash")}\necho "{name} $*" >> "{self.home}/calls"\n{body}\n'
        )
        file.chmod(0o755)

    def run(self) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": str(self.home / "bin")}
        return subprocess.run(
            [str(self.home / ".ci/run")],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def calls(self) -> list[str]:
        """The logged calls except those of dpkg-query."""
        return [
            line
            for line in (self.home / "calls").read_text().splitlines()
            if not line.startswith("dpkg-query")
        ]


@pytest.fixture
def ci(tmp_path: Path) -> Ci:
    for name in (".ci", "bin"):
        (tmp_path / name).mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    for name in ("bash", "dirname"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    ci = Ci(tmp_path)
    ci.program("dpkg-query", '[ "${@: -1}" = postgresql ] && printf installed')
    ci.program("make", f'echo "{required.REQUIRE_ALL}=${required.REQUIRE_ALL}"')
    return ci


def test_ci_installs_missing_packages_and_requires_all(ci: Ci) -> None:
    ci.program("apt-get", '[ "$DEBIAN_FRONTEND" = noninteractive ]')
    completed = ci.run()
    assert (completed.returncode, completed.stdout, completed.stderr) == (
        0,
        f"{required.REQUIRE_ALL}=1\n",
        "",
    )
    update, install, tests = ci.calls
    assert update.startswith("apt-get update ")
    assert install.startswith("apt-get install ") and install.endswith(
        " chromium dataset-fashion-mnist"
    )
    assert tests == "make test"


def test_ci_installs_nothing_if_all_packages_are_installed(ci: Ci) -> None:
    ci.program("dpkg-query", "printf installed")
    assert ci.run().returncode == 0
    assert ci.calls == ["make test"]


def test_ci_fails_with_one_line_if_it_cannot_install(ci: Ci) -> None:
    completed = ci.run()
    assert (completed.returncode, completed.stderr) == (
        1,
        ".ci/run: apt-get is not available to install chromium dataset-fashion-mnist\n",
    )
    ci.program("apt-get", "[ $1 = update ]")
    completed = ci.run()
    assert (completed.returncode, completed.stderr) == (
        1,
        ".ci/run: apt-get could not install chromium dataset-fashion-mnist\n",
    )
    assert not [call for call in ci.calls if call.startswith("make")]
