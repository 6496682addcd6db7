"""The order of packages and rooms: imports run one way, without circles, and a suggestion stays light."""

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
# Every package and every room imports only what stands before it here; docs/architecture.md describes them.
PACKAGES = ["search_spaces", "trainables", "tinynet_search"]
ROOMS = {
    "trainables": [
        *["storage", "run_name", "recipe", "execution", "optim", "modules", "watch", "evaluation"],
        *[
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
        *["errors", "text", "version", "signals", "store"],
        *["mlflow_client", "export"],
        *["formula", "config", "plan"],
        *["cluster", "callbacks", "tracking", "search", "train"],
        *["jobs", "__init__", "cli"],
    ],
}
MOST_FLOORS = 10
# The one file that may use Ray's private internals, and the attributes of Ray's objects that are private.
RAY_INTERNALS = "tinynet_search.cluster.ray_internals"
PRIVATE_PACKAGES = ("ray.core", "ray.dashboard", "ray.tune.execution", "ray.train.v2")
PRIVATE_ATTRIBUTES = {"temporary_state", "_actor_id", "_do_request"}


def modules(package: str) -> dict[str, Path]:
    """Every file of a package by its dotted name, ``a.b.__init__`` for a folder's own."""
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


@cache
def imports() -> dict[str, set[str]]:
    """The files that each file of the three packages imports, anywhere in its text."""
    known = {name for package in PACKAGES for name in modules(package)}
    files = {name: path for package in PACKAGES for name, path in modules(package).items()}
    return {name: set(_imported(path, known)) - {name} for name, path in files.items()}


def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _names(tree: ast.Module) -> Iterator[str]:
    """What a file imports, as dotted names: of ``from a import b``, ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported(file: Path, known: set[str]) -> Iterator[str]:
    for name in _names(_tree(file)):
        # The module itself, or the one that the name is taken from.
        parents = [name, f"{name}.__init__", name.rpartition(".")[0]]
        parents.append(f"{parents[-1]}.__init__")
        yield from [parent for parent in parents if parent in known][:1]


def _is_folder(room: str) -> bool:
    return (ROOT / "tinynet_search" / room).is_dir()


def room_of(module: str) -> str:
    """``tinynet_search.store.lease`` is in the room ``store``."""
    return module.split(".")[1]


def room_graph(package: str) -> dict[str, set[str]]:
    """The rooms of a package that each of its rooms imports."""
    graph: dict[str, set[str]] = {}
    for module, imported in imports().items():
        if module.startswith(f"{package}."):
            own = {room_of(name) for name in imported if name.startswith(f"{package}.")}
            graph.setdefault(room_of(module), set()).update(own - {room_of(module)})
    return graph


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    above = set(PACKAGES[PACKAGES.index(package) + 1 :])
    for file in (ROOT / package).rglob("*.py"):
        wrong = [name for name in _names(_tree(file)) if name.split(".")[0] in above]
        assert not wrong, f"{file.name} imports {wrong[0]}"


@pytest.mark.parametrize("package", ROOMS)
def test_rooms_import_one_way(package: str) -> None:
    graph, order = room_graph(package), ROOMS[package]
    assert sorted({*graph, "__init__"}) == sorted({*order, "__init__"})
    upward = [
        f"{room} imports {other}"
        for room, others in graph.items()
        for other in others
        if room in order and order.index(other) > order.index(room)
    ]
    assert not upward


def test_no_file_is_in_an_import_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize("package", ROOMS)
def test_the_floors_are_few(package: str) -> None:
    graph = room_graph(package)
    floor: dict[str, int] = {}
    for room in TopologicalSorter(graph).static_order():
        floor[room] = 1 + max((floor[other] for other in graph.get(room, ())), default=0)
    assert max(floor.values()) <= MOST_FLOORS


@pytest.mark.parametrize("room", [room for room in ROOMS["tinynet_search"] if _is_folder(room)])
def test_make_check_touches_every_room(room: str) -> None:
    """The tests of every room are in a folder of its name, and some of them are quick."""
    files = (ROOT / "tests" / room).glob("test_*.py")
    assert any("mark.quick" in file.read_text(encoding="utf-8") for file in files)


def is_private_in_ray(name: str) -> bool:
    """Of a dotted name: ``ray._private.state``, ``ray.autoscaler._private``, or a package without a public interface."""
    parts = name.split(".")
    hidden = any(part.startswith("_") and not part.endswith("__") for part in parts)
    packages = tuple(f"{package}." for package in PRIVATE_PACKAGES)
    return parts[0] == "ray" and (hidden or f"{name}.".startswith(packages))


def _uses_of_ray_internals(tree: ast.Module) -> Iterator[str]:
    """Imports of private modules of Ray, and accesses like ``ray._private`` and ``trial.temporary_state``."""
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
def test_uses_of_ray_internals_are_seen(code: str, is_use: bool) -> None:
    assert any(_uses_of_ray_internals(ast.parse(code))) is is_use


@pytest.mark.parametrize("package", PACKAGES)
def test_one_file_uses_rays_private_internals(package: str) -> None:
    uses = {
        name: sorted(set(_uses_of_ray_internals(_tree(path))))
        for name, path in modules(package).items()
    }
    assert {name for name, found in uses.items() if found} <= {RAY_INTERNALS}, uses
    assert uses.get(RAY_INTERNALS) != [], "the check finds nothing where there is something"


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
        "from search_spaces.samplers import draw; from search_spaces import get_space; "
        "draw(get_space('efficientnet_b0'), 'uniform', 9, 0)",
    ],
)
def test_a_suggestion_and_a_draw_load_numpy_alone(code: str) -> None:
    assert not _loaded(code) & HEAVY


def test_the_training_loop_needs_no_ray() -> None:
    parts = ["trainer", "trial", "checkpoint", "data.per_image"]
    loaded = _loaded("import " + ", ".join(f"trainables.{part}" for part in parts))
    assert not loaded & {"ray", "mlflow", "pydantic", "tinynet_search", "sklearn"}
