"""tools/install.py: a package from a local index by uv and by pip, and pip's settings as uv takes them."""

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
from tests.tracking.servers import playing

SCRIPT = ROOT / "tools/install.py"
PACKAGE, VERSIONS = "tiny-thing", ("1.0", "2.0")
PIP_INSTEAD = "install.py: pip installs in the place of uv: "


def write_wheel(
    folder: Path, name: str, version: str, files: Mapping[str, bytes], *, tag: str = "py3-none-any"
) -> None:
    """A wheel, written by hand, in its project's page of a simple index."""
    page = folder / re.sub(r"[-_.]+", "-", name).lower()
    page.mkdir(parents=True, exist_ok=True)
    stem = f"{name.replace('-', '_')}-{version}"
    contents = {
        **files,
        f"{stem}.dist-info/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{stem}.dist-info/WHEEL": f"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
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
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def write_uv(folder: Path) -> None:
    """The installed uv as a wheel again: an index of this machine from which pip takes it."""
    found = metadata.distribution("uv")
    files: dict[str, bytes] = {}
    for path in found.files or ():
        if ".dist-info" not in path.parts[0] and path.suffix != ".pyc":
            to = (
                f"uv-{found.version}.data/scripts/{path.name}"
                if path.parts[0] == ".."
                else str(path)
            )
            files[to] = Path(str(path.locate())).read_bytes()
    write_wheel(folder, "uv", found.version, files)


@dataclass
class Machine:
    """An environment that has pip alone, and pip's settings; nothing of this machine's own settings reaches it."""

    home: Path
    index: str

    @property
    def python(self) -> Path:
        return self.home / "venv/bin/python"

    def install(
        self, settings: str, *arguments: str, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run the script with the settings of a pip.conf."""
        conf = self.home / "pip.conf"
        conf.write_text(f"[global]\nindex-url = {self.index}\n{settings}")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.upper().startswith(("PIP_", "UV_", "XDG_"))
        }
        own = {
            "HOME": str(self.home),
            "NO_PROXY": "127.0.0.1",
            "XDG_CONFIG_DIRS": str(self.home),
            "PIP_CONFIG_FILE": str(conf),
            "PIP_NO_CACHE_DIR": "1",
        }
        environment = {**kept, **own, "UV_CACHE_DIR": str(self.home / "cache"), **variables}
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
        """(installer, version) of a package; None where it is not installed."""
        found = [
            d
            for d in metadata.distributions(
                path=[str(p) for p in self.home.glob("venv/lib/*/site-packages")]
            )
            if d.name == name
        ]
        return (
            ((found[0].read_text("INSTALLER") or "").strip(), found[0].version) if found else None
        )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with pip alone, to be copied: to make one takes seconds."""
    home = tmp_path_factory.mktemp("plain") / "venv"
    venv.create(home, with_pip=True, symlinks=True)
    return home


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], str]]:
    """Addresses of simple indexes: ``whole`` has uv and the package's first version, ``without`` no uv, ``newer`` another version."""
    folder = tmp_path_factory.mktemp("indexes")
    for name, version in (("whole", VERSIONS[0]), ("without", VERSIONS[0]), ("newer", VERSIONS[1])):
        write_wheel(
            folder / name, PACKAGE, version, {"tiny_thing.py": f"VERSION = {version!r}\n".encode()}
        )
    write_uv(folder / "whole")
    serve = functools.partialmethod(SimpleHTTPRequestHandler.__init__, directory=str(folder))
    with playing(type("Files", (SimpleHTTPRequestHandler,), {"__init__": serve})) as address:
        yield lambda name: f"{address}/{name}/" if name == "whole" else (folder / name).as_uri()


@pytest.fixture
def machine(plain: Path, index: Callable[[str], str], tmp_path: Path) -> Machine:
    shutil.copytree(plain, tmp_path / "venv", symlinks=True)
    return Machine(tmp_path, index("whole"))


def test_uv_installs_from_the_index_that_pip_is_set_to(machine: Machine) -> None:
    done = machine.install("", PACKAGE)
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.installed() == ("uv", VERSIONS[0])
    assert machine.installed("uv") == ("pip", metadata.version("uv"))


def test_uv_takes_the_best_version_of_all_indexes_as_pip_does(
    machine: Machine, index: Callable[[str], str]
) -> None:
    done = machine.install(
        f"extra-index-url =\n    {index('without')}\n    {index('newer')}\n", PACKAGE
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert machine.installed() == ("uv", VERSIONS[1])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ("pre = true\n", "pip's setting pre cannot be handed to uv"),
        (
            "platform-of-next-year = 1\n",
            "pip's setting platform-of-next-year cannot be handed to uv",
        ),
    ],
)
def test_pip_installs_where_a_setting_cannot_be_handed_over(
    settings: str, reason: str, machine: Machine
) -> None:
    done = machine.install(settings, PACKAGE)
    assert (done.returncode, done.stderr) == (0, f"{PIP_INSTEAD}{reason}\n")
    assert machine.installed() == ("pip", VERSIONS[0])
    assert machine.installed("uv") is None


def test_pip_installs_where_the_index_has_no_uv(
    machine: Machine, index: Callable[[str], str]
) -> None:
    machine.index = index("without")
    done = machine.install("", PACKAGE)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{PIP_INSTEAD}uv cannot be installed: ERROR: ")
    assert machine.installed() == ("pip", VERSIONS[0])


def test_pip_installs_where_uv_fails(machine: Machine) -> None:
    done = machine.install("", PACKAGE, UV_DEFAULT_INDEX=(machine.home / "nowhere").as_uri())
    assert done.returncode == 0
    assert f"{PIP_INSTEAD}uv ended with status " in done.stderr
    assert machine.installed() == ("pip", VERSIONS[0])


def test_the_installer_can_be_named(machine: Machine) -> None:
    done = machine.install("", PACKAGE, TINYNET_INSTALLER="conda")
    assert (done.returncode, done.stderr) == (
        2,
        "install.py: TINYNET_INSTALLER is 'conda', neither pip nor uv\n",
    )
    done = machine.install("pre = true\n", PACKAGE, TINYNET_INSTALLER="uv")
    assert (done.returncode, done.stderr) == (
        1,
        "install.py: uv cannot install: pip's setting pre cannot be handed to uv\n",
    )
    assert machine.installed() is None
    done = machine.install("", PACKAGE, TINYNET_INSTALLER="pip")
    assert (done.returncode, done.stderr) == (0, f"{PIP_INSTEAD}TINYNET_INSTALLER=pip\n")
    assert machine.installed() == ("pip", VERSIONS[0])
    assert machine.installed("uv") is None


@pytest.mark.parametrize(("forbidden", "compiled"), [("", 0), ("1", 1)])
def test_uv_compiles_where_python_writes_no_bytecode(
    forbidden: str, compiled: int, machine: Machine
) -> None:
    done = machine.install("", PACKAGE, PYTHONDONTWRITEBYTECODE=forbidden)
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        len(list(machine.home.glob("venv/lib/*/site-packages/__pycache__/tiny_thing.*.pyc")))
        == compiled
    )


def test_what_cannot_be_found_fails(machine: Machine) -> None:
    done = machine.install("", "no-such-thing")
    assert done.returncode == 1
    assert "No matching distribution found for no-such-thing" in done.stderr


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = spec_from_file_location("tinynet_install", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    # Its dataclass looks its module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_settings_are_read_as_pip_orders_them(script: ModuleType) -> None:
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
    assert script.settings_of(listed) == {
        "extra-index-url": "file:///one\nfile:///two",
        "find-links": "/of/the/environment",
        "index-url": "https://of.install",
        "proxy": "it's",
        "timeout": "20",
    }


HANDED: list[tuple[dict[str, str], dict[str, str], list[str]]] = [
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
    HANDED,
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_settings_are_handed_over(
    settings: dict[str, str], variables: dict[str, str], options: list[str], script: ModuleType
) -> None:
    handed = script.handed_over(settings, {})
    assert (handed.variables, handed.options) == (variables, options)


def test_a_proxy_is_for_every_address(script: ModuleType) -> None:
    assert script.handed_over({"proxy": "http://p:3128"}, {}).variables == dict.fromkeys(
        script.PROXIES, "http://p:3128"
    )


def test_certificates_of_the_environment_come_after_pips_own(script: ModuleType) -> None:
    environment = {"REQUESTS_CA_BUNDLE": "/r", "CURL_CA_BUNDLE": "/c"}
    assert script.handed_over({}, environment).variables == {"SSL_CERT_FILE": "/r"}
    assert script.handed_over({"cert": "/own"}, environment).variables == {"SSL_CERT_FILE": "/own"}


def test_a_variable_of_uvs_own_stays(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_HTTP_TIMEOUT", "5")
    monkeypatch.setenv("SSL_CERT_FILE", "/other")
    environment = script._environment({"UV_HTTP_TIMEOUT": "3", "SSL_CERT_FILE": "/own"})
    assert (environment["UV_HTTP_TIMEOUT"], environment["SSL_CERT_FILE"]) == ("5", "/own")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"require-hashes": "1"}, "require-hashes cannot be handed"),
        ({"target": "/elsewhere"}, "target cannot be handed"),
        ({"find-links": "/with,comma"}, "find-links cannot be handed"),
        ({"timeout": "soon"}, "timeout is no number of seconds"),
        ({"index-url": "http://u:p@[::/simple"}, "an address that pip is set to cannot be read"),
        ({"index-url": "http://mirror/simple"}, "pip refuses mirror, whose host is not trusted"),
        (
            {"extra-index-url": "https://a http://10.0.0.1", "trusted-host": "a"},
            "pip refuses 10.0.0.1",
        ),
    ],
)
def test_what_has_no_counterpart_is_said(
    settings: dict[str, str], said: str, script: ModuleType
) -> None:
    with pytest.raises(script.UvError, match=re.escape(said)) as caught:
        script.handed_over(settings, {})
    assert "\n" not in str(caught.value)


def test_every_harmless_setting_is_one_that_pip_has(script: ModuleType) -> None:
    # In a process of its own: setuptools gives way to the standard library's distutils where pip is loaded.
    code = (
        "from pip._internal.commands import create_command\n"
        "options = create_command('install').parser.option_list_all\n"
        "print(*[name.removeprefix('--') for option in options for name in option._long_opts])"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    known = set(listed.stdout.split())
    # Of a later or an earlier pip, or no option but read by pip.
    assert script.HARMLESS - known <= {
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
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "optional-dependencies"
    ]


def test_set_up_installs_the_demos_extra_and_the_tests_all() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "$(INSTALL) -e '.[demo]'" in makefile and "$(INSTALL) -e '.[search,dev]'" in makefile
    assert "tinynet-search[demo]" in extras()["search"]


def test_a_second_set_up_installs_nothing(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in (
        "pyproject.toml",
        "constraints.txt",
        ".venv/bin/python",
        ".venv/.ready",
        ".venv/.ready-demo",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    # A make that runs the tests hands its options on, and then prints which folder it enters.
    own = {
        name: text for name, text in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
    }
    planned = functools.partial(
        subprocess.run, cwd=tmp_path, env=own, capture_output=True, text=True, check=True
    )
    assert planned(["make", "-n", "demo"]).stdout.split() == [
        ".venv/bin/tinynet",
        "search",
        "--preset",
        "demo",
    ]
    assert "install.py" not in planned(["make", "-n", "test"]).stdout
    (tmp_path / ".venv/.ready").unlink()
    assert "install.py" not in planned(["make", "-n", "demo"]).stdout
    assert "-e '.[search,dev]'" in planned(["make", "-n", "test"]).stdout
