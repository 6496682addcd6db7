"""Tests that the README is short, and that the commands print the output that it shows."""

import re
from pathlib import Path

import pytest

from tinynet_search.cli.main import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAX_WORDS = 700


def blocks(language: str) -> list[str]:
    """The contents of the fenced blocks of a language; ``""`` is printed output."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [content for name, content in fenced if name == language]


@pytest.mark.quick
def test_length() -> None:
    assert len(README.split()) <= MAX_WORDS
    (toml,) = blocks("toml")
    assert len(toml.splitlines()) == 12


@pytest.mark.quick
def test_suggestion_prints_the_shown_output(capsys: pytest.CaptureFixture[str]) -> None:
    suggestion, *_ = blocks("python")
    without_build = [line for line in suggestion.splitlines() if ".build()" not in line]
    exec("\n".join(without_build), {})
    assert capsys.readouterr().out == blocks("")[0]


@pytest.mark.quick
def test_networks_are_rows_of_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["networks"]) == 0
    printed = capsys.readouterr().out.splitlines()
    shown = blocks("")[1].splitlines()
    assert len(shown) == 2 + 5
    assert [line for line in shown if line not in printed] == []


@pytest.mark.slow
def test_configuration_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.toml"
    config.write_text(blocks("toml")[0], encoding="utf-8")
    assert run(["search", str(config), "--dry-run", "--storage", str(tmp_path)]) == 0
    assert "8 of 8 to train" in capsys.readouterr().out
