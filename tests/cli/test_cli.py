"""Tests the ``tinynet`` command: its output, the stream it is printed on, and its exit codes."""

import json
from pathlib import Path

import pytest

from tinynet_search.cli.main import run

pytestmark = pytest.mark.quick


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_suggest_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = call(capsys, "suggest", "0.9", "0.5", "0.25", "0.13", "0.06", "--json")
    suggestions = json.loads(out)
    assert (code, err) == (0, "")
    assert [s["resolution"] for s in suggestions] == [192, 188, 184, 152, 106]
    assert all(abs(s["c"] - s["budget"]) <= 0.03 * s["budget"] for s in suggestions)


def test_networks(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "networks", "tinynet_c", "--json")
    assert code == 0
    assert json.loads(out)[0]["macs"] == 99536432
    code, out, _ = call(capsys, "networks")
    assert "tinynet_e" in out
    assert "inferred" in out


def test_dry_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = call(
        capsys, "search", "--preset", "demo", "--dry-run", "--storage", str(tmp_path)
    )
    assert (code, err) == (0, "")
    assert "16 of 16 to train" in out
    code, out, _ = call(
        capsys, "search", "--preset", "demo", "--dry-run", "--json", "--storage", str(tmp_path)
    )
    assert len(json.loads(out)["candidates"]) == 16
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "pass a TOML file or --preset demo"),
        (["search", "nowhere.toml"], "configuration 'nowhere.toml' does not exist"),
        (
            ["search", "--preset", "demo", "--set", "search.trails=3"],
            "did you mean 'search.trials'",
        ),
        (["search", "--preset", "demo", "--trials", "0"], "search.trials"),
        (
            [
                "search",
                "--preset",
                "demo",
                "--set",
                "data.name=imagefolder",
                "--set",
                "data.path=/nope",
            ],
            "'/nope' does not exist",
        ),
        (
            ["search", "--preset", "demo", "--set", "space.band=[1e-6, 2e-6]"],
            "has no network with c",
        ),
        (["suggest", "1.5"], "c = 1.5 is not a valid budget"),
        (["suggest", "0"], "is not a valid budget"),
        (["suggest", "0.01"], "--extrapolate"),
        (["suggest", "nan"], "is not a valid budget"),
        (["suggest", "0.5", "--space", "resnet"], "unknown space"),
        (["suggest", "0.5", "--formula", "nowhere.json"], "nowhere.json"),
        (["suggest", "half"], "valid number"),
        (["suggest", "0.5", "--space", "os:path"], "cannot be loaded"),
        (["suggest", "0.5", "--space", "os:getcwd"], "got str"),
        (["suggest", "0.5", "--space", ":x"], "cannot be loaded"),
        (["search", "--preset", "demo", "--set", "data.vall=3"], "did you mean 'val'"),
        (
            ["search", "--preset", "demo", "--set", "data.name=imagefolder"],
            "data.path of 'imagefolder' is missing",
        ),
        (["search", "--preset", "demo", "--set", "data.val=100000000000"], "from 24 to 1000000"),
        (
            ["search", "--preset", "demo", "--set", "recipe.batch=0"],
            "micro_batch must divide batch",
        ),
        (["search", "--preset", "demo", "--set", "space.band=[0.1, inf]"], "at most 64"),
        (["search", "--preset", "demo", "--storage", ""], "storage.path"),
        (["frontier", "--tracking", "http://[bad"], "is not a valid URI"),
        (["networks", "tinynet_f"], "did you mean"),
        (["frontier"], "run tinynet search first"),
        (["sync"], "run tinynet search first"),
        (["serch"], "Did you mean 'search'"),
        (["suggest", "0.5", "--jason"], "--jason"),
    ],
)
def test_invalid_request_prints_one_line_and_exits_with_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 99}', '{"schema": 1, "points": [{"c": "x"}]}']
)
def test_damaged_formula(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str) -> None:
    file = tmp_path / "formula.json"
    file.write_text(content)
    code, out, err = call(capsys, "suggest", "0.5", "--formula", str(file))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "formula.json" in err


@pytest.mark.parametrize(
    "arguments", [["frontier"], ["suggest", "0.5", "--formula", "models:/tiny-formula@champion"]]
)
def test_unreachable_mlflow_prints_one_line_and_exits_with_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, out, err = call(capsys, *arguments, "--tracking", "http://127.0.0.1:9")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "127.0.0.1:9" in err


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys)
    assert code == 0
    assert all(name in out for name in ("search", "suggest", "frontier", "networks", "sync"))
