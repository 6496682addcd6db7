"""Tests of the progress display: a bar and a table on a terminal, lines on other outputs."""

import io
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.search.helpers import tiny_config, tiny_search
from tinynet_search.callbacks.progress import Progress
from tinynet_search.store.directory import Candidate

pytestmark = pytest.mark.quick


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    @property
    def text(self) -> str:
        """The output without colours and cursor movements."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.getvalue())


@pytest.fixture
def candidates(tmp_path: Path) -> list[Candidate]:
    return tiny_search(tiny_config(tmp_path, trials=3))[2]


def finish(progress: Progress, candidate: Candidate) -> None:
    """Report one trial from its start to its end, as Tune does."""
    trial: Any = SimpleNamespace(trial_id=candidate.id, config={"run": candidate.run})
    progress.on_trial_start(0, [], trial)
    epochs = candidate.spec.recipe.epochs
    result = {"epochs_done": epochs, "seconds": 12.3, "top1": 75.26, "status": "finished"}
    progress.on_trial_result(0, [], trial, result)
    progress.on_trial_complete(0, [], trial)


def test_terminal_shows_bar_above_table(
    candidates: list[Candidate], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    progress = Progress(at_once=1)
    progress.watch(candidates, {})
    with progress.shown():
        finish(progress, candidates[0])
        end = time.monotonic() + 30
        while "1/3 trials" not in terminal.text:
            assert time.monotonic() < end, terminal.text
            time.sleep(0.05)
    bar, table = terminal.text.rpartition("1/3 trials")[::2]
    assert bar.rstrip().endswith("━")
    assert re.match(r" \d+ s elapsed, about \d+ s left", table)
    assert re.search(rf"{candidates[0].id} .* 75\.3 .* finished", table)
    assert re.search(rf"{candidates[1].id} .* waiting", table)
    assert "[1/3]" not in terminal.text


def test_other_outputs_get_one_line_per_trial(
    candidates: list[Candidate], capsys: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(at_once=1)
    progress.watch(candidates, {})
    with progress.shown():
        for candidate in candidates:
            finish(progress, candidate)
    lines = capsys.readouterr().err.splitlines()
    r, d, w = candidates[0].spec.rdw
    first = f"[1/3] {candidates[0].id}  r {r:.2f}  d {d:.2f}  w {w:.2f}  "
    assert lines[0].startswith(first)
    assert re.fullmatch(r".* px  c 0\.\d{3}  finished  top-1 75\.3 %  12 s  \d+ s left", lines[0])
    assert lines[2].endswith("  finished  top-1 75.3 %  12 s")
