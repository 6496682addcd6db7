"""Loads the files of deploy/ and KubeRay's schemas.

The tests of this folder use it for Kubernetes manifests, compose files and launcher configurations.
"""

import json
import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SETS = ("dev", "production")
KUBERAY_KINDS = {"RayCluster": "rayclusters.json", "RayJob": "rayjobs.json"}
UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
# Text files of deploy/, in contrast to files that tools may write there.
TEXT_SUFFIXES = (
    ".yaml",
    ".md",
    ".sbatch",
    ".py",
    ".ini",
    ".toml",
    ".txt",
    ".sql",
    ".example",
    ".dockerignore",
    ".gitignore",
)


def text_files() -> list[Path]:
    """Return the text files of deploy/, sorted by path."""
    return sorted(
        path
        for path in DEPLOY.rglob("*")
        if path.is_file() and (path.name.endswith(TEXT_SUFFIXES) or path.name == "Dockerfile")
    )


def manifests(which: str) -> list[Path]:
    """Return the manifest files of a set (``dev`` or ``production``), sorted by path."""
    return sorted((DEPLOY / "kuberay" / which).rglob("*.yaml"))


@cache
def documents(which: str) -> tuple[tuple[Path, dict[str, Any]], ...]:
    """Return every Kubernetes object of a set, with its file."""
    return tuple(
        (path, document)
        for path in manifests(which)
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    )


def of_kind(which: str, *kinds: str) -> list[dict[str, Any]]:
    """Return the Kubernetes objects of a set that have one of these kinds."""
    return [document for _, document in documents(which) if document["kind"] in kinds]


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    """Load a compose file."""
    return yaml.safe_load((DEPLOY / "compose" / name).read_text(encoding="utf-8"))


def launcher(name: str) -> dict[str, Any]:
    """Load a configuration of Ray's cluster launcher."""
    return yaml.safe_load((DEPLOY / "vm" / name).read_text(encoding="utf-8"))


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every mapping in a document, at any depth."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def pods(which: str) -> list[tuple[str, dict[str, Any]]]:
    """Return every pod template of a set, with the kind and name of the object that contains it."""
    pod_templates: list[tuple[str, dict[str, Any]]] = []
    for _, document in documents(which):
        name = f"{document['kind']}/{document['metadata']['name']}"
        templates = (
            inner[key]
            for inner in walk(document)
            for key in ("template", "submitterPodTemplate")
            if key in inner
        )
        pod_templates += [
            (name, template) for template in templates if "containers" in template.get("spec", {})
        ]
    return pod_templates


def quantity(text: str) -> int:
    """Convert a memory limit of Kubernetes (``5Gi``) or compose (``5g``) to bytes."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return int(number) * UNITS[unit.removesuffix("i").lower()]


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the containers of a pod template, init containers first."""
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


@cache
def crd(kind: str) -> dict[str, Any]:
    """Return KubeRay's schema of a kind, made strict: unknown keys are errors.

    Skips the test if the schemas are not available.
    """
    setting = os.environ.get("KUBERAY_SCHEMAS")
    folder = Path(setting) if setting else ROOT.parent / "shared" / "schemas" / "kuberay"
    file = folder / KUBERAY_KINDS[kind]
    if not file.is_file():
        pytest.skip(
            f"{file} does not exist: set KUBERAY_SCHEMAS to a folder with KubeRay's schemas"
        )
    schema = json.loads(file.read_text(encoding="utf-8"))["openAPIV3Schema"]
    for part in walk(schema):
        if (
            isinstance(part.get("properties"), dict)
            and part.get("type") == "object"
            and not part.get("x-kubernetes-preserve-unknown-fields")
        ):
            part.setdefault("additionalProperties", False)
        # A keyword of Kubernetes, not of JSON Schema.
        if part.get("x-kubernetes-int-or-string"):
            part.pop("type", None)
    # Kubernetes itself validates the metadata.
    schema["properties"]["metadata"] = {"type": "object"}
    return schema
