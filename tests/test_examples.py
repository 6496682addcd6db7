"""Every script of ``examples/`` runs, prints what its docstring describes, and stays short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
MAX_LINES = 60


def run(name: str, folder: Path, *arguments: str) -> list[str]:
    """Run an example in ``folder``, and return the lines that it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for variable in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(variable, None)
    completed = subprocess.run(
        [sys.executable, str(ROOT / "examples" / f"{name}.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout.splitlines()


@pytest.mark.quick
def test_examples_are_short_and_tested() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    assert len(EXAMPLES) == 6
    for path in EXAMPLES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES, path.name
        assert f'run("{path.stem}"' in source, path.name


@pytest.mark.slow
def test_suggest(tmp_path: Path) -> None:
    lines = run("suggest", tmp_path)
    assert lines[1] == "c = 0.25: r = 0.821, d = 0.850, w = 0.536"
    assert lines[-1] == "input 153 x 153 pixels, 2290330 parameters"


@pytest.mark.slow
def test_own_space(tmp_path: Path) -> None:
    assert run("own_space", tmp_path) == [
        "c = 0.5: 53px-24x2.56x2.104x3-10, 24.3M multiply-adds",
        "c = 0.25: 48px-24x2.40x2.80x3-10, 11.9M multiply-adds",
    ]


@pytest.mark.slow
def test_own_space_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    from search_spaces.testing import check_space

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    # Another test may have imported a module of this name.
    monkeypatch.delitem(sys.modules, "own_space", raising=False)
    from own_space import PlainNet  # pyright: ignore[reportMissingImports]

    check_space(PlainNet())


@pytest.mark.slow
def test_search_then_query_mlflow(tmp_path: Path) -> None:
    searched = run("search", tmp_path, "storage")
    frontier = [line.split()[0].removesuffix("-e4") for line in searched if line.startswith("  ")]
    assert frontier and searched[-1] == f"directory: {tmp_path / 'storage' / 'example'}"

    queried = run("query_mlflow", tmp_path, "storage", "example")
    assert [line.split()[0] for line in queried[1:-1]] == frontier
    assert queried[-1].startswith("best with c <= 0.25: ")


@pytest.mark.slow
def test_train_continues_a_finished_job(tmp_path: Path) -> None:
    first = run("train", tmp_path, "storage")
    assert any(line.startswith("epoch 2/2") for line in first)
    assert (tmp_path / first[-1].removeprefix("weights: ") / "weights.safetensors").exists()

    second = run("train", tmp_path, "storage")
    assert not any(line.startswith("epoch ") for line in second)
    assert second[-2:] == first[-2:]


@pytest.mark.slow
def test_export_onnx(tmp_path: Path) -> None:
    assert run("export_onnx", tmp_path, "out") == [
        "wrote tinynet_e.onnx, 8.1 MB",
        "(2, 3, 106, 106) images, (2, 1000) logits",
    ]
    assert (tmp_path / "out" / "tinynet_e" / "tinynet_e.onnx").stat().st_size > 8e6
