"""What lies in deploy/, read once: the sets of Kubernetes manifests, compose's file, the launcher's files, and schemas."""

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
# Text files of deploy/, as opposed to what a tool may leave there.
TEXTS = (
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


def texts() -> list[Path]:
    return sorted(
        path
        for path in DEPLOY.rglob("*")
        if path.is_file() and (path.name.endswith(TEXTS) or path.name == "Dockerfile")
    )


def manifests(which: str) -> list[Path]:
    return sorted((DEPLOY / "kuberay" / which).rglob("*.yaml"))


@cache
def documents(which: str) -> tuple[tuple[Path, dict[str, Any]], ...]:
    """Every Kubernetes object of a set, with its file."""
    return tuple(
        (path, document)
        for path in manifests(which)
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8"))
    )


def of_kind(which: str, *kinds: str) -> list[dict[str, Any]]:
    return [document for _, document in documents(which) if document["kind"] in kinds]


def compose(name: str = "compose.yaml") -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose" / name).read_text(encoding="utf-8"))


def launcher(name: str) -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "vm" / name).read_text(encoding="utf-8"))


def walk(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a document."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from walk(inner)


def pods(which: str) -> list[tuple[str, dict[str, Any]]]:
    """Every pod template of a set: the object it is in, and the template."""
    found: list[tuple[str, dict[str, Any]]] = []
    for _, document in documents(which):
        name = f"{document['kind']}/{document['metadata']['name']}"
        templates = (
            inner[key]
            for inner in walk(document)
            for key in ("template", "submitterPodTemplate")
            if key in inner
        )
        found += [
            (name, template) for template in templates if "containers" in template.get("spec", {})
        ]
    return found


def quantity(text: str) -> int:
    """Bytes of a memory limit, of Kubernetes (``5Gi``) or of compose (``5g``)."""
    number, unit = re.fullmatch(r"(\d+)([A-Za-z]+)", text).groups()  # pyright: ignore[reportOptionalMemberAccess]
    return int(number) * UNITS[unit.removesuffix("i").lower()]


def containers(template: dict[str, Any]) -> list[dict[str, Any]]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


@cache
def crd(kind: str) -> dict[str, Any]:
    """KubeRay's schema of a kind, strict: what it does not name is an error. Skips where the schemas are not at hand."""
    named = os.environ.get("KUBERAY_SCHEMAS")
    folder = Path(named) if named else ROOT.parent / "shared" / "schemas" / "kuberay"
    file = folder / KUBERAY_KINDS[kind]
    if not file.is_file():
        pytest.skip(
            f"KubeRay's schemas are not at hand: KUBERAY_SCHEMAS names no folder with {file.name}"
        )
    schema = json.loads(file.read_text(encoding="utf-8"))["openAPIV3Schema"]
    for part in walk(schema):
        if (
            isinstance(part.get("properties"), dict)
            and part.get("type") == "object"
            and not part.get("x-kubernetes-preserve-unknown-fields")
        ):
            part.setdefault("additionalProperties", False)
        # Of Kubernetes, not of JSON Schema.
        if part.get("x-kubernetes-int-or-string"):
            part.pop("type", None)
    # Kubernetes itself checks these two.
    schema["properties"]["metadata"] = {"type": "object"}
    return schema
