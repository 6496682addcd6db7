"""Tests of tools/install.py and of the set-up targets of the Makefile.

uv and pip install a small package from a local index. Other tests check how the script converts
pip's settings for uv.
"""

import base64
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.server import SimpleHTTPRequestHandler
from importlib import metadata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.deploy.manifests import ROOT
from tests.tracking.servers import serving

SCRIPT = ROOT / "tools/install.py"
PACKAGE, VERSIONS = "tiny-thing", ("1.0", "2.0")
PIP_INSTEAD = "install.py: using pip instead of uv: "


def write_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, bytes], *, tag: str = "py3-none-any"
) -> None:
    """Write a wheel and the page of its project in a simple index."""
    page = folder / re.sub(r"[-_.]+", "-", name).lower()
    page.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    metadata_text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    wheel_text = f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n"
    contents = {
        **files,
        f"{stem}.dist-info/METADATA": metadata_text.encode(),
        f"{stem}.dist-info/WHEEL": wheel_text.encode(),
    }
    record = "".join(
        f"{path},sha256={digest(data)},{len(data)}\n" for path, data in contents.items()
    )
    with zipfile.ZipFile(page / f"{stem}-{tag}.whl", "w") as wheel:
        for path, data in {
            **contents,
            f"{stem}.dist-info/RECORD": f"{record}{stem}.dist-info/RECORD,,\n".encode(),
        }.items():
            file = zipfile.ZipInfo(path)
            file.external_attr = 0o100755 << 16
            wheel.writestr(file, data)
    links = "".join(
        f'<a href="{file.name}">{file.name}</a>\n' for file in sorted(page.glob("*.whl"))
    )
    (page / "index.html").write_text(f"<!DOCTYPE html><html><body>\n{links}</body></html>\n")


def digest(data: bytes) -> str:
    """Return the SHA-256 hash as RECORD files encode it."""
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def write_uv(folder: Path) -> None:
    """Write a wheel of the installed uv, so that pip can install uv from the local index."""
    uv = metadata.distribution("uv")
    files: dict[str, bytes] = {}
    for path in uv.files or ():
        if ".dist-info" not in path.parts[0] and path.suffix != ".pyc":
            is_script = path.parts[0] == ".."
            name = f"uv-{uv.version}.data/scripts/{path.name}" if is_script else str(path)
            files[name] = Path(str(path.locate())).read_bytes()
    write_wheel(folder, "uv", uv.version, files)


@dataclass
class Machine:
    """An environment that contains only pip, and the settings of pip.

    It is isolated from the settings of the real machine.
    """

    home: Path
    index: str

    @property
    def python(self) -> Path:
        return self.home / "venv/bin/python"

    def install(
        self, settings: str, *arguments: str, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run the script with these settings in pip.conf."""
        conf = self.home / "pip.conf"
        conf.write_text(f"[global]\nindex-url = {self.index}\n{settings}")
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(("PIP_", "UV_", "XDG_"))
        }
        isolated = {
            "HOME": str(self.home),
            "NO_PROXY": "127.0.0.1",
            "XDG_CONFIG_DIRS": str(self.home),
            "PIP_CONFIG_FILE": str(conf),
            "PIP_NO_CACHE_DIR": "1",
        }
        environment = {
            **inherited,
            **isolated,
            "UV_CACHE_DIR": str(self.home / "cache"),
            **variables,
        }
        command = [str(self.python), str(SCRIPT), *arguments]
        return subprocess.run(
            command,
            env=environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )

    def installed(self, name: str = PACKAGE) -> tuple[str, str] | None:
        """Return the installer and the version of a package, or None if it is not installed."""
        folders = [str(path) for path in self.home.glob("venv/lib/*/site-packages")]
        for package in metadata.distributions(path=folders):
            if package.name == name:
                return (package.read_text("INSTALLER") or "").strip(), package.version
        return None


@pytest.fixture(scope="module")
def empty_venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that contains only pip; tests copy it, because creating one takes seconds."""
    home = tmp_path_factory.mktemp("empty") / "venv"
    venv.create(home, with_pip=True, symlinks=True)
    return home


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Return a function that maps the name of a simple index to its URL.

    ``with_uv`` has uv and the first version of the package, ``without_uv`` only that version, and
    ``newer`` only the second version.
    """
    folder = tmp_path_factory.mktemp("indexes")
    versions = {"with_uv": VERSIONS[0], "without_uv": VERSIONS[0], "newer": VERSIONS[1]}
    for name, version in versions.items():
        files = {"tiny_thing.py": f"VERSION = {version!r}\n".encode()}
        write_wheel(folder / name, PACKAGE, version, files)
    write_uv(folder / "with_uv")
    serve = functools.partialmethod(SimpleHTTPRequestHandler.__init__, directory=str(folder))
    with serving(type("Files", (SimpleHTTPRequestHandler,), {"__init__": serve})) as address:
        yield lambda name: f"{address}/{name}/" if name == "with_uv" else (folder / name).as_uri()


@pytest.fixture
def machine(empty_venv: Path, index: Callable[[str], str], tmp_path: Path) -> Machine:
    shutil.copytree(empty_venv, tmp_path / "venv", symlinks=True)
    return Machine(tmp_path, index("with_uv"))


def test_uv_installs_from_the_index_of_pip(machine: Machine) -> None:
    completed = machine.install("", PACKAGE)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert machine.installed() == ("uv", VERSIONS[0])
    assert machine.installed("uv") == ("pip", metadata.version("uv"))


def test_uv_installs_the_best_version_of_all_indexes_like_pip(
    machine: Machine, index: Callable[[str], str]
) -> None:
    completed = machine.install(
        f"extra-index-url =\n    {index('without_uv')}\n    {index('newer')}\n", PACKAGE
    )
    assert (completed.returncode, completed.stderr) == (0, "")
    assert machine.installed() == ("uv", VERSIONS[1])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("pre = true\n", "pip's setting pre has no counterpart in uv"),
        (
            "platform-of-next-year = 1\n",
            "pip's setting platform-of-next-year has no counterpart in uv",
        ),
    ],
)
def test_pip_installs_if_a_setting_has_no_counterpart(
    settings: str, reason: str, machine: Machine
) -> None:
    completed = machine.install(settings, PACKAGE)
    assert (completed.returncode, completed.stderr) == (0, f"{PIP_INSTEAD}{reason}\n")
    assert machine.installed() == ("pip", VERSIONS[0])
    assert machine.installed("uv") is None


def test_pip_installs_if_the_index_has_no_uv(machine: Machine, index: Callable[[str], str]) -> None:
    machine.index = index("without_uv")
    completed = machine.install("", PACKAGE)
    assert completed.returncode == 0
    (line,) = completed.stderr.splitlines()
    assert line.startswith(f"{PIP_INSTEAD}uv cannot be installed: ERROR: ")
    assert machine.installed() == ("pip", VERSIONS[0])


def test_pip_installs_if_uv_fails(machine: Machine) -> None:
    completed = machine.install("", PACKAGE, UV_DEFAULT_INDEX=(machine.home / "nowhere").as_uri())
    assert completed.returncode == 0
    assert f"{PIP_INSTEAD}uv ended with status " in completed.stderr
    assert machine.installed() == ("pip", VERSIONS[0])


def test_installer_can_be_chosen(machine: Machine) -> None:
    completed = machine.install("", PACKAGE, TINYNET_INSTALLER="conda")
    assert (completed.returncode, completed.stderr) == (
        2,
        "install.py: expected TINYNET_INSTALLER to be pip or uv, got 'conda'\n",
    )
    completed = machine.install("pre = true\n", PACKAGE, TINYNET_INSTALLER="uv")
    assert (completed.returncode, completed.stderr) == (
        1,
        "install.py: uv cannot install: pip's setting pre has no counterpart in uv\n",
    )
    assert machine.installed() is None
    completed = machine.install("", PACKAGE, TINYNET_INSTALLER="pip")
    assert (completed.returncode, completed.stderr) == (0, f"{PIP_INSTEAD}TINYNET_INSTALLER=pip\n")
    assert machine.installed() == ("pip", VERSIONS[0])
    assert machine.installed("uv") is None


@pytest.mark.parametrize(("forbidden", "compiled"), [("", 0), ("1", 1)])
def test_uv_compiles_bytecode_if_python_must_not(
    forbidden: str, compiled: int, machine: Machine
) -> None:
    completed = machine.install("", PACKAGE, PYTHONDONTWRITEBYTECODE=forbidden)
    assert (completed.returncode, completed.stderr) == (0, "")
    assert (
        len(list(machine.home.glob("venv/lib/*/site-packages/__pycache__/tiny_thing.*.pyc")))
        == compiled
    )


def test_unknown_package_is_an_error(machine: Machine) -> None:
    completed = machine.install("", "no-such-thing")
    assert completed.returncode == 1
    assert "No matching distribution found for no-such-thing" in completed.stderr


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """Import tools/install.py."""
    spec = spec_from_file_location("tinynet_install", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    # The decorator of its dataclass looks up the module in sys.modules.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_settings_are_read_in_the_order_of_pip(script: ModuleType) -> None:
    listed = r"""
:env:.find-links='/of/the/environment'
:env:.timeout=''
download.index-url='https://of.another.command'
global.extra-index-url='file:///one\nfile:///two'
global.find-links='/of/all'
global.index-url='https://of.all'
global.proxy="it's"
global.timeout='20'
install.index-url='https://of.install'
"""
    assert script.parse_settings(listed) == {
        "extra-index-url": "file:///one\nfile:///two",
        "find-links": "/of/the/environment",
        "index-url": "https://of.install",
        "proxy": "it's",
        "timeout": "20",
    }


# pip's settings, and the variables and options of uv that they are converted to.
CONVERTED: list[tuple[dict[str, str], dict[str, str], list[str]]] = [
    ({}, {}, []),
    ({"index-url": "https://a/simple"}, {"UV_DEFAULT_INDEX": "https://a/simple"}, []),
    (
        {"extra-index-url": "https://b\n https://c"},
        {"UV_INDEX": "https://b https://c", "UV_INDEX_STRATEGY": "unsafe-best-match"},
        [],
    ),
    ({"find-links": "/a file:///b"}, {"UV_FIND_LINKS": "/a,file:///b"}, []),
    (
        {
            "no-index": "true",
            "index-url": "https://a",
            "extra-index-url": "https://b",
            "find-links": "/c",
        },
        {"UV_FIND_LINKS": "/c"},
        ["--no-index"],
    ),
    ({"no-index": "false", "pre": "0"}, {}, []),
    ({"cert": "/my certificates.pem"}, {"SSL_CERT_FILE": "/my certificates.pem"}, []),
    ({"client-cert": "/me.pem"}, {"SSL_CLIENT_CERT": "/me.pem"}, []),
    ({"timeout": "2.5", "retries": "7"}, {"UV_HTTP_TIMEOUT": "3", "UV_HTTP_RETRIES": "7"}, []),
    ({"default-timeout": "180"}, {"UV_HTTP_TIMEOUT": "180"}, []),
    ({"trusted-host": "a\nb:8080"}, {"UV_INSECURE_HOST": "a b:8080"}, []),
    (
        {"index-url": "http://u:p@b:8080/x", "trusted-host": "b"},
        {"UV_DEFAULT_INDEX": "http://u:p@b:8080/x", "UV_INSECURE_HOST": "b"},
        [],
    ),
    ({"index-url": "http://127.0.0.1:80"}, {"UV_DEFAULT_INDEX": "http://127.0.0.1:80"}, []),
    (
        {"constraint": "/a.txt b.txt"},
        {},
        [o for p in ("/a.txt", "b.txt") for o in ("--constraints", p, "--build-constraints", p)],
    ),
    ({"no-cache-dir": "1"}, {"UV_NO_CACHE": "1"}, []),
    ({"cache-dir": "/c", "disable-pip-version-check": "1", "config-file": "/d"}, {}, []),
]


@pytest.mark.parametrize(
    ("settings", "variables", "options"),
    CONVERTED,
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_are_converted_for_uv(
    settings: dict[str, str], variables: dict[str, str], options: list[str], script: ModuleType
) -> None:
    converted = script.uv_settings(settings, {})
    assert (converted.variables, converted.options) == (variables, options)


def test_proxy_applies_to_every_url(script: ModuleType) -> None:
    assert script.uv_settings({"proxy": "http://p:3128"}, {}).variables == dict.fromkeys(
        script.PROXIES, "http://p:3128"
    )


def test_certificates_of_pip_override_the_environment(script: ModuleType) -> None:
    environment = {"REQUESTS_CA_BUNDLE": "/r", "CURL_CA_BUNDLE": "/c"}
    assert script.uv_settings({}, environment).variables == {"SSL_CERT_FILE": "/r"}
    assert script.uv_settings({"cert": "/own"}, environment).variables == {"SSL_CERT_FILE": "/own"}


def test_existing_variables_of_uv_are_kept(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "5")
    monkeypatch.setenv("SSL_CERT_FILE", "/other")
    environment = script._environment({"UV_HTTP_TIMEOUT": "3", "SSL_CERT_FILE": "/own"})
    assert (environment["UV_HTTP_TIMEOUT"], environment["SSL_CERT_FILE"]) == ("5", "/own")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"require-hashes": "1"}, "require-hashes has no counterpart"),
        ({"target": "/elsewhere"}, "target has no counterpart"),
        ({"find-links": "/with,comma"}, "find-links has no counterpart"),
        ({"timeout": "soon"}, "timeout is not a valid number of seconds"),
        ({"index-url": "http://u:p@[::/simple"}, "a URL in pip's settings is malformed"),
        ({"index-url": "http://mirror/simple"}, "pip rejects the untrusted host mirror"),
        (
            {"extra-index-url": "https://a http://10.0.0.1", "trusted-host": "a"},
            "pip rejects the untrusted host 10.0.0.1",
        ),
    ],
)
def test_settings_without_a_counterpart_are_errors(
    settings: dict[str, str], message: str, script: ModuleType
) -> None:
    with pytest.raises(script.UvError, match=re.escape(message)) as caught:
        script.uv_settings(settings, {})
    assert "\n" not in str(caught.value)


def test_settings_of_the_script_exist_in_pip(script: ModuleType) -> None:
    # Runs in a separate process: if pip is loaded, setuptools yields to the standard library's
    # distutils.
    code = (
        "from pip._internal.commands import create_command\n"
        "options = create_command('install').parser.option_list_all\n"
        "print(*[name.removeprefix('--') for option in options for name in option._long_opts])"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    known = set(listed.stdout.split())
    # Settings of a later or an earlier version of pip, and one that pip reads without an option.
    assert script.IGNORED_SETTINGS - known <= {
        "config-file",
        "resume-retries",
        "no-python-version-warning",
        "break-system-packages",
    }
    assert {
        *script.VARIABLES,
        "find-links",
        "timeout",
        "default-timeout",
        "proxy",
        "constraint",
        "no-cache-dir",
        "no-index",
    } <= known


def extras() -> dict[str, Any]:
    """Return the optional dependencies of pyproject.toml by extra."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]


def test_makefile_installs_the_extras_of_each_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    installed = re.findall(r"\$\(INSTALL\) -e '\.\[([\w,-]+)\]'", makefile)
    assert installed == ["demo", "search,dev", "search,dev,dev-deploy,dev-docs"]
    assert "tinynet-search[demo]" in extras()["search"]


def test_repeated_set_up_installs_no_packages(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (
        "pyproject.toml",
        "constraints.txt",
        ".venv/bin/python",
        ".venv/.ready",
        ".venv/.ready-check",
        ".venv/.ready-demo",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    # If make runs the tests, it passes its options to this make, which would print the folder that
    # it enters.
    environment = {
        name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    dry_run = functools.partial(
        subprocess.run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert dry_run(["make", "-n", "demo"]).stdout.split() == [
        ".venv/bin/tinynet",
        "search",
        "--preset",
        "demo",
    ]
    assert "install.py" not in dry_run(["make", "-n", "test"]).stdout
    (tmp_path / ".venv/.ready").unlink()
    assert "install.py" not in dry_run(["make", "-n", "demo"]).stdout
    assert "install.py" not in dry_run(["make", "-n", "check"]).stdout
    assert "-e '.[search,dev,dev-deploy,dev-docs]'" in dry_run(["make", "-n", "test"]).stdout
