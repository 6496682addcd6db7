"""Install into this Python's environment by uv, or by pip where uv cannot do what pip is set to do.

    .venv/bin/python tools/install.py -c constraints.txt -e '.[demo]'

The arguments are those of ``pip install``. uv is several times as fast as pip, and reads neither
pip.conf nor PIP_* variables: a mirror, a certificate or a proxy that is set for pip would not be
used. So pip's settings are read and handed to uv. pip installs, and one line says why, where a
setting has no counterpart, where uv cannot be installed, or where uv fails.
TINYNET_INSTALLER=pip leaves uv out; TINYNET_INSTALLER=uv ends with an error in the place of pip.
"""

import ast
import ipaddress
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
# Sections of pip's configuration that pip install reads; a later one overrides an earlier one.
SECTIONS = ("global", "install", ":env:")
OFF = ("0", "f", "false", "n", "no", "off")
# Settings of pip whose value is the value of a variable that uv reads.
VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "retries": "UV_HTTP_RETRIES",
}
LISTS = ("extra-index-url", "trusted-host")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
# Certificates that pip takes from the environment where its setting names none. uv reads neither.
BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# Settings that decide neither what is installed nor where it comes from.
HARMLESS = {
    "break-system-packages",
    "cache-dir",
    "compile",
    "config-file",
    "debug",
    "disable-pip-version-check",
    "exists-action",
    "log",
    "no-color",
    "no-compile",
    "no-input",
    "no-python-version-warning",
    "no-warn-conflicts",
    "no-warn-script-location",
    "progress-bar",
    "quiet",
    "require-virtualenv",
    "resume-retries",
    "root-user-action",
    "use-pep517",
    "verbose",
}


class UvError(Exception):
    """uv cannot install: the message says why, in one line."""


@dataclass
class Handed:
    """pip's settings as uv takes them.

    Attributes:
        variables: environment variables. Addresses are among them, since they may hold a password
            and every user of the machine can see a command's options.
        options: options of ``uv pip install``.
    """

    variables: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Install by uv or by pip.

    Args:
        arguments: those of ``pip install``.

    Returns:
        The exit status: the installer's, 1 where uv is demanded and cannot install, 2 where
        TINYNET_INSTALLER names no installer.
    """
    wanted = os.environ.get("TINYNET_INSTALLER", "")
    if wanted not in ("", "pip", "uv"):
        return _failed(f"TINYNET_INSTALLER is {wanted!r}, neither pip nor uv", 2)
    try:
        if wanted == "pip":
            raise UvError("TINYNET_INSTALLER=pip")
        by_uv(arguments)
        return 0
    except UvError as error:
        if wanted == "uv":
            return _failed(f"uv cannot install: {error}", 1)
        print(f"install.py: pip installs in the place of uv: {error}", file=sys.stderr, flush=True)
    return subprocess.run(_pip("install", "--quiet", *arguments), check=False).returncode


def by_uv(arguments: Sequence[str]) -> None:
    """Install uv by pip, and the rest by uv.

    Args:
        arguments: those of ``pip install``.

    Raises:
        UvError: a setting of pip has no counterpart, or uv cannot be installed, or uv fails.
    """
    settings = settings_of(_output("pip's settings cannot be read", _pip("config", "list")))
    handed = handed_over(settings, os.environ)
    _output("uv cannot be installed", _pip("install", "--quiet", "-c", str(CONSTRAINTS), "uv"))
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
    # To compile all 18,000 files takes 31 s of CPU; the first import of what the demo uses compiles
    # a third of them in 8 s. So it is left to Python, except where Python is told to write no
    # bytecode: there every process would compile them again.
    command += ["--compile-bytecode"] if sys.dont_write_bytecode else []
    # What builds our own package is held to the constraints too.
    command += ["--build-constraints", str(CONSTRAINTS), *handed.options, *arguments]
    status = subprocess.run(command, env=_environment(handed.variables), check=False).returncode
    if status:
        raise UvError(f"uv ended with status {status}")


def settings_of(listed: str) -> dict[str, str]:
    """pip's settings for ``pip install`` by name.

    Args:
        listed: what ``pip config list`` printed. Empty values are left out, as pip leaves them out.
    """
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listed.splitlines():
        if match := re.fullmatch(r"(global|install|:env:)\.([^=]+)=(['\"].*)", line):
            section, name, value = match.groups()
            if value := ast.literal_eval(value).strip():
                found[section][name] = value
    return {name: value for section in SECTIONS for name, value in found[section].items()}


def handed_over(settings: Mapping[str, str], environment: Mapping[str, str]) -> Handed:
    """pip's settings as uv takes them.

    Args:
        settings: from ``settings_of``.
        environment: pip takes certificates from it too.

    Raises:
        UvError: a setting has no counterpart.
    """
    handed = Handed()
    for name, value in settings.items():
        _hand_over(name, value, handed)
    for name in BUNDLES:
        if environment.get(name):
            handed.variables.setdefault("SSL_CERT_FILE", environment[name])
    if "--no-index" in handed.options:
        # As pip does: then no index is asked, whatever else is set.
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX"):
            handed.variables.pop(name, None)
    if "UV_INDEX" in handed.variables:
        # pip takes the best version of all indexes; uv by itself stops at the first that has one.
        handed.variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if refused := next(_refused(handed.variables), None):
        raise UvError(f"pip refuses {refused}, whose host is not trusted, and uv would not")
    return handed


def _hand_over(name: str, value: str, handed: Handed) -> None:
    words = value.split()
    if name in VARIABLES:
        handed.variables[VARIABLES[name]] = " ".join(words) if name in LISTS else value
    elif name == "find-links" and "," not in value:
        handed.variables["UV_FIND_LINKS"] = ",".join(words)
    elif name in ("timeout", "default-timeout"):
        handed.variables["UV_HTTP_TIMEOUT"] = str(_seconds(name, value))
    elif name == "proxy":
        handed.variables |= dict.fromkeys(PROXIES, value)
    elif name == "constraint":
        # pip holds what it builds with to them too.
        for path in words:
            handed.options += ["--constraints", path, "--build-constraints", path]
    elif name == "no-cache-dir":
        handed.variables["UV_NO_CACHE"] = "1"
    elif name == "no-index":
        handed.options += [] if value.lower() in OFF else ["--no-index"]
    elif name not in HARMLESS and value.lower() not in OFF:
        raise UvError(f"pip's setting {name} cannot be handed to uv")


def _seconds(name: str, value: str) -> int:
    """Whole seconds, which uv takes; at least one."""
    try:
        return max(1, math.ceil(float(value)))
    except (ValueError, OverflowError):
        raise UvError(f"pip's setting {name} is no number of seconds") from None


def _refused(variables: Mapping[str, str]) -> Iterator[str]:
    """Hosts that pip would not ask: over plain HTTP, neither trusted nor this machine.

    Raises:
        UvError: an address is malformed; the message leaves it out, since it may hold a password.
    """
    trusted = variables.get("UV_INSECURE_HOST", "").split()
    addresses = [variables.get("UV_DEFAULT_INDEX", ""), *variables.get("UV_INDEX", "").split()]
    for address in (*addresses, *variables.get("UV_FIND_LINKS", "").split(",")):
        try:
            url = urlsplit(address)
        except ValueError:
            raise UvError("an address that pip is set to cannot be read") from None
        host = url.hostname or ""
        named = host in trusted or url.netloc.rpartition("@")[2] in trusted
        if url.scheme == "http" and not named and not _loopback(host):
            yield host


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """This process's environment and pip's settings; a UV_* variable that is set already stays."""
    own = {name: value for name, value in os.environ.items() if name.startswith("UV_")}
    return {**os.environ, **variables, **own}


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def _output(failed: str, command: Sequence[str]) -> str:
    """What a command printed.

    Args:
        failed: what it means that the command fails.

    Raises:
        UvError: it failed.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise UvError(": ".join([failed, *said[:1]]))
    return done.stdout


def _failed(message: str, status: int) -> int:
    print(f"install.py: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
