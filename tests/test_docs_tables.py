"""The measured tables of the documentation are those of ``benchmarks/results``."""

import shutil
from pathlib import Path

import pytest

from benchmarks.docs_tables import BLOCKS, ROOT, with_block, write

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_current(name: str) -> None:
    page, render = BLOCKS[name]
    text = (ROOT / page).read_text(encoding="utf-8")
    assert with_block(text, name, render(ROOT / "benchmarks" / "results")) == text, (
        "run python -m benchmarks.docs_tables"
    )


def test_write_replaces_an_edited_table(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    for page, _ in BLOCKS.values():
        (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    assert write(tmp_path) == []

    page = tmp_path / BLOCKS["kill-table"][0]
    original = page.read_text(encoding="utf-8")
    page.write_text(original.replace("| all |", "| every |"), encoding="utf-8")
    assert write(tmp_path) == [page]
    assert page.read_text(encoding="utf-8") == original


def test_a_page_without_its_comments_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one block 'demo' between its comments, found 0"):
        with_block("no table here", "demo", "table")
