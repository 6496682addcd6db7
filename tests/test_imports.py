"""Tests the import order of packages and subpackages, and that light commands import little.

A subpackage is a folder or a module directly in a package.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
# A package or subpackage imports only those listed before it: docs/design/architecture.md.
PACKAGES = ["search_spaces", "trainables", "tinynet_search"]
SUBPACKAGES = {
    "trainables": [
        *["storage", "run_name", "recipe", "execution", "optim", "modules", "classes", "watch"],
        *[
            "evaluation",
            "stopping",
            "result",
            "spec",
            "trial_folder",
            "memory",
            "data",
            "checkpoint",
            "trainer",
            "try_step",
            "trial",
        ],
        *["calibration", "executors"],
    ],
    "tinynet_search": [
        *["errors", "text", "version", "owner", "signals", "store"],
        *["mlflow_client", "commands", "export"],
        *["formula", "config", "plan"],
        *["cluster", "callbacks", "tracking", "search", "train"],
        *["jobs", "__init__", "cli"],
    ],
}
MAX_LEVELS = 10
# The only file that may use private internals of Ray, and the private attributes of Ray's objects.
RAY_INTERNALS = "tinynet_search.cluster.ray_internals"
PRIVATE_PACKAGES = ("ray.core", "ray.dashboard", "ray.tune.execution", "ray.train.v2")
PRIVATE_ATTRIBUTES = {"temporary_state", "_actor_id", "_do_request"}


def modules(package: str) -> dict[str, Path]:
    """The files of a package by dotted name; that of a folder is ``a.b.__init__``."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


@cache
def imports() -> dict[str, set[str]]:
    """The modules of the three packages that each module imports, at any level of its code."""
    known = {name for package in PACKAGES for name in modules(package)}
    files = {name: path for package in PACKAGES for name, path in modules(package).items()}
    return {name: set(_imported(path, known)) - {name} for name, path in files.items()}


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _names(tree: ast.Module) -> Iterator[str]:
    """Imported dotted names; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported(file: Path, known: set[str]) -> Iterator[str]:
    for name in _names(_tree(file)):
        # The module itself, or the module that defines the name.
        parents = [name, f"{name}.__init__", name.rpartition(".")[0]]
        parents.append(f"{parents[-1]}.__init__")
        yield from [parent for parent in parents if parent in known][:1]


def _is_folder(subpackage: str) -> bool:
    return (ROOT / "tinynet_search" / subpackage).is_dir()


def subpackage_of(module: str) -> str:
    """The subpackage of a module: ``store`` for ``tinynet_search.store.lease``."""
    return module.split(".")[1]


def subpackage_graph(package: str) -> dict[str, set[str]]:
    """The subpackages of a package that each of its subpackages imports."""
    graph: dict[str, set[str]] = {}
    for module, imported in imports().items():
        if module.startswith(f"{package}."):
            own = {subpackage_of(name) for name in imported if name.startswith(f"{package}.")}
            subpackage = subpackage_of(module)
            graph.setdefault(subpackage, set()).update(own - {subpackage})
    return graph


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    above = set(PACKAGES[PACKAGES.index(package) + 1 :])
    for file in (ROOT / package).rglob("*.py"):
        wrong = [name for name in _names(_tree(file)) if name.split(".")[0] in above]
        assert not wrong, f"{file.name} imports {wrong[0]}"


@pytest.mark.parametrize("package", SUBPACKAGES)
def test_subpackages_import_one_way(package: str) -> None:
    graph, order = subpackage_graph(package), SUBPACKAGES[package]
    assert sorted({*graph, "__init__"}) == sorted({*order, "__init__"})
    upward = [
        f"{subpackage} imports {other}"
        for subpackage, others in graph.items()
        for other in others
        if subpackage in order and order.index(other) > order.index(subpackage)
    ]
    assert not upward


def test_there_is_no_circular_import() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"circular import: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", SUBPACKAGES)
def test_import_levels_are_limited(package: str) -> None:
    graph = subpackage_graph(package)
    level: dict[str, int] = {}
    for subpackage in TopologicalSorter(graph).static_order():
        imported = graph.get(subpackage, ())
        level[subpackage] = 1 + max((level[other] for other in imported), default=0)
    assert max(level.values()) <= MAX_LEVELS


FOLDERS = [name for name in SUBPACKAGES["tinynet_search"] if _is_folder(name)]


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_has_quick_tests(folder: str) -> None:
    """The tests of a folder are in tests/ under the same name; ``make check`` runs some of them."""
    files = (ROOT / "tests" / folder).glob("test_*.py")
    assert any("mark.quick" in file.read_text(encoding="utf-8") for file in files)


def is_private_in_ray(name: str) -> bool:
    """Whether a dotted name is internal to Ray.

    Examples are ``ray._private.state``, ``ray.autoscaler._private`` and packages without a public
    interface.
    """
    parts = name.split(".")
    hidden = any(part.startswith("_") and not part.endswith("__") for part in parts)
    packages = tuple(f"{package}." for package in PRIVATE_PACKAGES)
    return parts[0] == "ray" and (hidden or f"{name}.".startswith(packages))


def _uses_of_ray_internals(tree: ast.Module) -> Iterator[str]:
    """Private imports from Ray, and accesses such as ``ray._private`` or ``temporary_state``."""
    yield from filter(is_private_in_ray, _names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if node.attr in PRIVATE_ATTRIBUTES or is_private_in_ray(name):
                yield name


@pytest.mark.parametrize(
    ("code", "is_use"),
    [
        ("from ray._private import state", True),
        ("from ray import _raylet", True),
        ("import ray._private.utils as utils", True),
        ("from ray.core.generated import gcs_pb2", True),
        ("from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE", True),
        ("import ray\nray._private.worker.global_worker", True),
        ("actor = trial.temporary_state.ray_actor", True),
        ("number = handle._actor_id.binary()", True),
        ("from ray.tune.search import Searcher", False),
        ("from ray.util.placement_group import PlacementGroup", False),
        ("import ray\nray.get_runtime_context().get_job_id()", False),
        ("import ray\nprint(ray.__version__)", False),
        ("from tinynet_search.cluster.ray_internals import trial_actor", False),
    ],
)
def test_uses_of_ray_internals_are_detected(code: str, is_use: bool) -> None:
    assert any(_uses_of_ray_internals(ast.parse(code))) is is_use


@pytest.mark.parametrize("package", PACKAGES)
def test_one_file_uses_ray_internals(package: str) -> None:
    uses = {
        name: sorted(set(_uses_of_ray_internals(_tree(path))))
        for name, path in modules(package).items()
    }
    assert {name for name, internals in uses.items() if internals} <= {RAY_INTERNALS}, uses
    assert uses.get(RAY_INTERNALS) != [], "the check does not detect known uses"


def _loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


HEAVY = {"torch", "ray", "timm", "mlflow", "sklearn", "scipy", "pandas", "pymoo", "optuna"}


@pytest.mark.parametrize(
    "code",
    [
        "import tinynet_search; r, d, w = tinynet_search.suggest_rdw(0.25)",
        "from tinynet_search.cli.main import run; run(['suggest', '0.25'])",
        "from tinynet_search.cli.main import run; run(['--help']); run(['submit', '--help'])",
        "from search_spaces.samplers import draw; from search_spaces import get_space; "
        "draw(get_space('efficientnet_b0'), 'uniform', 9, 0)",
    ],
)
def test_suggesting_and_drawing_import_only_numpy(code: str) -> None:
    assert not _loaded(code) & HEAVY


def test_the_training_loop_does_not_import_ray() -> None:
    parts = ["trainer", "trial", "checkpoint", "data.per_image"]
    loaded = _loaded("import " + ", ".join(f"trainables.{part}" for part in parts))
    assert not loaded & {"ray", "mlflow", "pydantic", "tinynet_search", "sklearn"}
