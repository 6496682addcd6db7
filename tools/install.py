"""Install packages into this Python's environment with uv, or with pip if uv cannot be used.

The Makefile calls it:

    .venv/bin/python tools/install.py -c constraints.txt -e '.[demo]'

The arguments are those of ``pip install``. uv is several times as fast as pip, but reads neither
pip.conf nor PIP_* variables, so it would not use a mirror, a certificate or a proxy that is
configured for pip. The script therefore reads pip's settings and passes them to uv. It falls back
to pip, with the reason in one line, if a setting has no counterpart, if uv cannot be installed, or
if uv fails. TINYNET_INSTALLER=pip does not use uv; with TINYNET_INSTALLER=uv an error replaces the
fallback.
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
# Settings of pip, and the environment variable of uv that takes the same value.
VARIABLES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "client-cert": "SSL_CLIENT_CERT",
    "retries": "UV_HTTP_RETRIES",
}
LIST_SETTINGS = ("extra-index-url", "trusted-host")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
# pip reads certificates from these variables if its setting is empty. uv reads neither variable.
CERTIFICATE_VARIABLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
# Settings that affect neither what is installed nor its source.
IGNORED_SETTINGS = {
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
    """uv cannot install; the message is the reason, in one line."""


@dataclass
class UvSettings:
    """pip's settings, converted for uv.

    Attributes:
        variables: environment variables. They include URLs, since a URL may contain a password and
            every user of the machine can see the options of a command.
        options: options of ``uv pip install``.
    """

    variables: dict[str, str] = field(default_factory=dict)
    options: list[str] = field(default_factory=list)


def main(arguments: Sequence[str]) -> int:
    """Install with uv or with pip.

    Args:
        arguments: those of ``pip install``.

    Returns:
        The exit status: that of the installer, 1 if uv is required and cannot install, or 2 if
        TINYNET_INSTALLER is not valid.
    """
    installer = os.environ.get("TINYNET_INSTALLER", "")
    if installer not in ("", "pip", "uv"):
        return _failed(f"expected TINYNET_INSTALLER to be pip or uv, got {installer!r}", 2)
    try:
        if installer == "pip":
            raise UvError("TINYNET_INSTALLER=pip")
        install_with_uv(arguments)
        return 0
    except UvError as error:
        if installer == "uv":
            return _failed(f"uv cannot install: {error}", 1)
        print(f"install.py: using pip instead of uv: {error}", file=sys.stderr, flush=True)
    return subprocess.run(_pip("install", "--quiet", *arguments), check=False).returncode


def install_with_uv(arguments: Sequence[str]) -> None:
    """Install uv with pip, and everything else with uv.

    Args:
        arguments: those of ``pip install``.

    Raises:
        UvError: a setting of pip has no counterpart, uv cannot be installed, or uv fails.
    """
    settings = parse_settings(_output("pip's settings cannot be read", _pip("config", "list")))
    converted = uv_settings(settings, os.environ)
    _output("uv cannot be installed", _pip("install", "--quiet", "-c", str(CONSTRAINTS), "uv"))
    command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", sys.executable]
    # Compiling all 18,000 files takes 31 s of CPU. The first import by the demo compiles a third of
    # them in 8 s, so compilation is left to Python. If Python must not write bytecode, uv compiles
    # the files, since otherwise every process would compile them again.
    command += ["--compile-bytecode"] if sys.dont_write_bytecode else []
    # The constraints also apply to the packages that build ours.
    command += ["--build-constraints", str(CONSTRAINTS), *converted.options, *arguments]
    status = subprocess.run(command, env=_environment(converted.variables), check=False).returncode
    if status:
        raise UvError(f"uv ended with status {status}")


def parse_settings(listed: str) -> dict[str, str]:
    """Return pip's settings for ``pip install`` by name.

    Args:
        listed: the output of ``pip config list``. Empty values are omitted, as in pip.
    """
    settings: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in listed.splitlines():
        if match := re.fullmatch(r"(global|install|:env:)\.([^=]+)=(['\"].*)", line):
            section, name, value = match.groups()
            if value := ast.literal_eval(value).strip():
                settings[section][name] = value
    return {name: value for section in SECTIONS for name, value in settings[section].items()}


def uv_settings(settings: Mapping[str, str], environment: Mapping[str, str]) -> UvSettings:
    """Convert pip's settings for uv.

    Args:
        settings: from ``parse_settings``.
        environment: environment variables, from which pip also reads certificates.

    Raises:
        UvError: a setting has no counterpart.
    """
    converted = UvSettings()
    for name, value in settings.items():
        _convert(name, value, converted)
    for name in CERTIFICATE_VARIABLES:
        if environment.get(name):
            converted.variables.setdefault("SSL_CERT_FILE", environment[name])
    if "--no-index" in converted.options:
        # Like pip, do not query any index, regardless of the other settings.
        for name in ("UV_DEFAULT_INDEX", "UV_INDEX"):
            converted.variables.pop(name, None)
    if "UV_INDEX" in converted.variables:
        # pip chooses the best version of all indexes; uv stops at the first index that has one.
        converted.variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    for host in _untrusted_hosts(converted.variables):
        raise UvError(f"pip rejects the untrusted host {host}, but uv would accept it")
    return converted


def _convert(name: str, value: str, converted: UvSettings) -> None:
    words = value.split()
    if name in VARIABLES:
        converted.variables[VARIABLES[name]] = " ".join(words) if name in LIST_SETTINGS else value
    elif name == "find-links" and "," not in value:
        converted.variables["UV_FIND_LINKS"] = ",".join(words)
    elif name in ("timeout", "default-timeout"):
        converted.variables["UV_HTTP_TIMEOUT"] = str(_seconds(name, value))
    elif name == "proxy":
        converted.variables |= dict.fromkeys(PROXIES, value)
    elif name == "constraint":
        # pip also applies them to build dependencies.
        for path in words:
            converted.options += ["--constraints", path, "--build-constraints", path]
    elif name == "no-cache-dir":
        converted.variables["UV_NO_CACHE"] = "1"
    elif name == "no-index":
        converted.options += [] if value.lower() in OFF else ["--no-index"]
    elif name not in IGNORED_SETTINGS and value.lower() not in OFF:
        raise UvError(f"pip's setting {name} has no counterpart in uv")


def _seconds(name: str, value: str) -> int:
    """Round up to whole seconds, which uv requires; at least one."""
    try:
        return max(1, math.ceil(float(value)))
    except (ValueError, OverflowError):
        raise UvError(f"pip's setting {name} is not a valid number of seconds") from None


def _untrusted_hosts(variables: Mapping[str, str]) -> Iterator[str]:
    """Yield the hosts that pip would reject: plain HTTP, not trusted and not this machine.

    Raises:
        UvError: a URL is malformed. The message omits it, since it may contain a password.
    """
    trusted = variables.get("UV_INSECURE_HOST", "").split()
    urls = [variables.get("UV_DEFAULT_INDEX", ""), *variables.get("UV_INDEX", "").split()]
    for text in (*urls, *variables.get("UV_FIND_LINKS", "").split(",")):
        try:
            url = urlsplit(text)
        except ValueError:
            raise UvError("a URL in pip's settings is malformed") from None
        host = url.hostname or ""
        is_trusted = host in trusted or url.netloc.rpartition("@")[2] in trusted
        if url.scheme == "http" and not is_trusted and not _is_loopback(host):
            yield host


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with pip's settings; UV_* variables keep their values."""
    already_set = {name: value for name, value in os.environ.items() if name.startswith("UV_")}
    return {**os.environ, **variables, **already_set}


def _pip(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]


def _output(failure: str, command: Sequence[str]) -> str:
    """Run a command and return its output.

    Args:
        failure: start of the message if the command fails.
        command: the command and its arguments.

    Raises:
        UvError: the command failed.
    """
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode:
        errors = [line for line in completed.stderr.splitlines() if line.startswith("ERROR")]
        raise UvError(": ".join([failure, *errors[:1]]))
    return completed.stdout


def _failed(message: str, status: int) -> int:
    print(f"install.py: {message}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
