"""Tests that every notebook runs from top to bottom and prints its committed output."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

from tinynet_search import suggest_rdw

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[NotebookNode, NotebookNode]:
    """The committed notebook and a fresh run in a checkout without searches; errors raise here."""
    checkout = tmp_path_factory.mktemp("checkout")
    (checkout / "tinynet_search").symlink_to(ROOT / "tinynet_search")
    (checkout / "notebooks").mkdir()
    committed, fresh = (nbformat.read(request.param, as_version=4) for _ in range(2))
    resources = {"metadata": {"path": str(checkout / "notebooks")}}
    NotebookClient(fresh, timeout=120, kernel_name="python3", resources=resources).execute()
    return committed, fresh


def printed(notebook: NotebookNode) -> list[str]:
    """The stdout of each code cell; stderr, where libraries log, is ignored."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        "".join(o.text for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
        for cell in cells
    ]


def rounded(text: str) -> str:
    """Round long fractions to four digits; the last digits differ between processors."""
    return re.sub(r"\d+\.\d{5,}", lambda number: f"{float(number[0]):.4f}", text)


def test_output_matches_the_committed_output(notebook: tuple[NotebookNode, NotebookNode]) -> None:
    committed, fresh = notebook
    assert [rounded(text) for text in printed(fresh)] == [
        rounded(text) for text in printed(committed)
    ]
    kinds = [
        [set(o.data) for cell in version.cells for o in cell.get("outputs", []) if "data" in o]
        for version in notebook
    ]
    assert kinds[0] == kinds[1]


def test_no_absolute_path_is_committed(notebook: tuple[NotebookNode, NotebookNode]) -> None:
    text = nbformat.writes(notebook[0])
    assert not [
        folder
        for folder in ("/home/", "/Users/", "/tmp/", "site-packages", str(ROOT))
        if folder in text
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS[:1], indirect=True, ids=lambda path: path.stem)
def test_first_notebook_prints_the_suggested_rdw(
    notebook: tuple[NotebookNode, NotebookNode],
) -> None:
    """The first notebook starts with (r, d, w) for a quarter of the FLOPs."""
    output = printed(notebook[1])[0].splitlines()[0].removeprefix("r, d, w = ")
    assert ast.literal_eval(output) == tuple(suggest_rdw(0.25))
