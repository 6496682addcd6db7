"""The language check finds the phrases of its table, and accepts ordinary English."""

from pathlib import Path

import pytest

from tools.check_language import PHRASES, main, problems

pytestmark = pytest.mark.quick
REJECTED = (
    "c = 2 is no budget",
    "the file is none",
    "it is built anew",
    "mended",
    "a search is taken up",
    "it goes on from the checkpoint",
    "the server says that it is full",
    "the file lies in a folder",
    "it stands in the table",
    "fails after so many tries",
    "as many as there are",
    "somebody else's job",
    "tinynet knows no '--x'",
    "it loses nothing",
    "nothing is doubled",
    "close the lid",
    "every twist is trained",
    "a row a stage",
    "one seam",
    "dropped without a word",
    "what it hands on",
    "a GPU is at hand",
    "text of other origin",
)
ACCEPTED = (
    "there is no GPU on this machine",
    "the loss is no longer finite",
    "twisting r, d and w, as in the paper",
    "one row per stage",
    "c stands for the budget",
    "resumes from the last checkpoint",
    "a line and a row",
)


@pytest.mark.parametrize("text", REJECTED)
def test_phrase_is_rejected_with_its_repair(text: str) -> None:
    (problem,) = problems("docs/page.md", text)
    assert problem.startswith("docs/page.md:1: ") and "; write: " in problem


def test_every_phrase_has_an_example() -> None:
    assert all(any(rule.pattern.search(text) for text in REJECTED) for rule in PHRASES)


@pytest.mark.parametrize("text", ACCEPTED)
def test_ordinary_english_is_accepted(text: str) -> None:
    assert list(problems("docs/page.md", text)) == []


def test_names_are_checked_in_code_only() -> None:
    assert len(list(problems("a.py", "    found = 1"))) == 1
    assert list(problems("a.py", "    result = 1")) == []
    assert list(problems("a.md", "    found = 1")) == []


def test_long_lines_are_rejected_outside_tables_and_output() -> None:
    long = "x" * 101
    assert len(list(problems("a.md", long))) == 1
    assert list(problems("a.md", f"| {long} |")) == []
    assert list(problems("a.md", f"```\n{long}\n```")) == []
    # ruff checks Python.
    assert list(problems("a.py", f"# {long}")) == []


def test_files_are_read_from_git(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tools/install.py"]) == 0
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    assert "not a git repository" in capsys.readouterr().err
