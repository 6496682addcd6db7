"""The walls of the house: imports run one way, and asking for a suggestion stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).parents[1]
ORDER = ["search_spaces", "trainables", "tinynet_search"]


@pytest.mark.parametrize("package", ORDER)
def test_imports_run_one_way(package: str) -> None:
    above = set(ORDER[ORDER.index(package) + 1 :])
    for file in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong = [n for n in names if n.split(".")[0] in above]
            assert not wrong, f"{file.name} imports {wrong[0]}"


def _loaded(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(out.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import tinynet_search; r, d, w = tinynet_search.suggest_rdw(0.25)",
        "from tinynet_search.cli.main import run; run(['suggest', '0.25'])",
        "from search_spaces.samplers import draw; from search_spaces import get_space; draw(get_space('efficientnet_b0'), 'uniform', 9, 0)",
    ],
)
def test_light(code: str) -> None:
    assert not _loaded(code) & {
        "torch",
        "ray",
        "timm",
        "mlflow",
        "sklearn",
        "scipy",
        "pandas",
        "pymoo",
        "optuna",
    }


def test_the_training_loop_needs_no_ray() -> None:
    loaded = _loaded(
        "import trainables.trainer, trainables.trial, trainables.checkpoint, trainables.data.per_image"
    )
    assert not loaded & {"ray", "mlflow", "pydantic", "tinynet_search", "sklearn"}
