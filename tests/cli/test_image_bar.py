"""Tests the progress bar of commands that process images; it is drawn on terminals only."""

import io
import sys

import pytest

from tinynet_search.cli.image_bar import ImageBar

pytestmark = pytest.mark.quick


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bar_is_drawn_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with ImageBar() as bar:
        bar.begin(40)
        assert bar.drawn
        bar.advance()
        bar.advance(9)
    text = terminal.getvalue()
    assert "10/40" in text
    assert "elapsed" in text
    assert text.rstrip().endswith("\x1b[2K")  # erased at the end


def test_no_bar_without_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    with ImageBar() as bar:
        bar.begin(0)
        assert not bar.drawn


def test_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ImageBar() as bar:
        bar.begin(40)
        bar.advance(40)
        assert not bar.drawn
    assert capsys.readouterr() == ("", "")
