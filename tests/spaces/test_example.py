"""The documented space of a user's own: it keeps the contract, and everything that the document shows works as shown."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from docs.examples.mobilenet_v3_large import Space
from search_spaces import RequestError, get_space
from search_spaces.testing import SpaceContract, measured_peak

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
DOCUMENT = (ROOT / "docs" / "your-own-space.md").read_text()
SPACE = "mobilenet_v3_large:Space"
TINY = (
    "data.train=96",
    "data.val=48",
    "recipe.epochs=1",
    "space.r=[0.35, 0.4]",
    "space.band=[0.02, 0.06]",
    "search.trials=6",
)


def tinynet(
    *arguments: str, folder: Path = EXAMPLES, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The console script, as a user runs it: only the current folder leads to the space."""
    command = [str(Path(sys.executable).parent / "tinynet"), *arguments]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


class TestExample(SpaceContract):
    space = Space()
    twists = 12


def test_the_baseline_is_torchvisions() -> None:
    """Names and shapes, logits under the same weights, and the known figures."""
    baseline = Space().baseline()
    ours, theirs = baseline.build().eval(), torchvision.models.mobilenet_v3_large().eval()
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(image), theirs(image))
    assert (baseline.params, baseline.macs, baseline.activations) == (
        5_483_032,
        216_589_760,
        4_404_888,
    )
    assert baseline.activation_bytes == 4 * measured_peak(theirs, 224)


def test_the_example_is_short() -> None:
    assert len((EXAMPLES / "mobilenet_v3_large.py").read_text().splitlines()) < 120
    assert len(DOCUMENT.splitlines()) < 120


def test_the_document_shows_what_is_printed() -> None:
    published, own = re.findall(r"```\n\$ (tinynet suggest .*?)```", DOCUMENT, re.DOTALL)
    command, _, printed = published.partition("\n")
    done = tinynet(*command.split()[1:])
    assert done.stdout + done.stderr == printed
    # The formula of a search of minutes is not made again here.
    assert own.startswith(
        f"tinynet suggest 0.5 --space {SPACE} --formula searches/mine/formula.json"
    )


@pytest.mark.ray
def test_a_search_over_it(ray_cluster: Any, tmp_path: Path) -> None:
    """The document's configuration, smaller: trial processes import the space by its name, the formula is its own."""
    (toml,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    config = tmp_path / "mine.toml"
    config.write_text(toml)
    settings = [argument for setting in TINY for argument in ("--set", setting)]
    done = tinynet(
        "search",
        str(config),
        "--storage",
        str(tmp_path),
        "--json",
        *settings,
        RAY_ADDRESS=ray_cluster.address,
    )
    assert done.returncode == 0, done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "mine" / "results").iterdir()]
    assert [(result["status"], result["space"]) for result in results] == [("finished", SPACE)] * 6
    formula = str(tmp_path / "mine" / "formula.json")
    c = str(json.loads(Path(formula).read_text())["range"][1])
    (row,) = json.loads(
        tinynet("suggest", c, "--space", SPACE, "--formula", formula, "--json").stdout
    )
    assert (row["space"], row["num_classes"], row["note"]) == ("mobilenet_v3_large", 24, None)


def test_no_file_of_the_current_folder_hides_a_module(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError")
    assert tinynet("suggest", "0.5", folder=tmp_path).returncode == 0


GOOD = "from search_spaces import SearchSpace, get_space\n"
LACKING = GOOD + (
    "class Space(SearchSpace):\n"
    "    def decode(self, r, d, w): ...\n"
    "    def cost(self, shape, num_classes): ...\n"
    "    def build(self, network, **options): ...\n"
)
MADE = (
    "from search_spaces import Cost, SearchSpace\n"
    "class Space(SearchSpace):\n"
    "    name, base_resolution = 'mine', 32\n"
    "    def decode(self, r, d, w): return {}\n"
    "    def cost(self, shape, num_classes): return {}\n"
    "    def build(self, network, **options): ...\n"
    "    def describe(self, shape): ...\n"
)
MISTAKES = [
    (
        "",
        "no_such_module:Space",
        "there is no module 'no_such_module'; run from the folder that no_such_module lies in",
    ),
    (GOOD + "class Mine(SearchSpace): ...", "own_space:Mini", "did you mean 'own_space:Mine'?"),
    (
        "",
        "own_space:Space",
        "own_space has neither that name nor any other space; subclass search_spaces.SearchSpace in it",
    ),
    (
        "Space = {}",
        "own_space:Space",
        "it is of type dict, no search_spaces.SearchSpace; name one, or a class or function",
    ),
    (
        "def Space(table): ...",
        "own_space:Space",
        "it needs arguments (missing a required argument: 'table'); make it in the module",
    ),
    (
        "def Space():\n    return 1 / 0",
        "own_space:Space",
        "own_space.py, line 2, raises ZeroDivisionError: division by zero; mend it there",
    ),
    (
        "\nraise ValueError('no\\nlicence')",
        "own_space:Space",
        "own_space.py, line 2, raises ValueError: no licence; mend it there",
    ),
    ("import sys\nsys.exit(3)", "own_space:Space", "own_space.py, line 2, raises SystemExit: 3"),
    ("def Space(:", "own_space:Space", "own_space.py, line 1, raises SyntaxError: invalid syntax"),
    (
        "import not_there",
        "own_space:Space",
        "own_space.py, line 1, needs not_there, which is not installed; install it",
    ),
    (
        LACKING,
        "own_space:Space",
        "its class lacks the method describe; search_spaces.SearchSpace says what to write",
    ),
    (
        LACKING + "    def describe(self, shape): ...",
        "own_space:Space",
        "its class lacks name and base_resolution, which every space has",
    ),
    (
        MADE.format("tuple(r)", "None"),
        "own_space:Space",
        "own_space.py, line 4, fails on numbers (TypeError: 'float' object is not iterable); hold it to",
    ),
    (
        MADE.format("int(r)", "None"),
        "own_space:Space",
        "its cost gives a NoneType and no search_spaces.Cost; hold it to",
    ),
    (
        MADE.format("int(r)", "Cost(1, 1, 1, 1)"),
        "own_space:Space",
        "own_space.py, line 4, fails on arrays (TypeError",
    ),
    (
        "",
        "own_space.py:Mine",
        "it is a file; give module:attribute, own_space:Mine, and run from the folder that own_space.py lies in",
    ),
    ("", "C:\\spaces\\own_space.py:Mine", "it is a file; give module:attribute, own_space:Mine"),
    ("", "C:\\spaces\\own_space.py", "it is a file; give module:attribute, own_space:Space"),
    ("", "./own_space.py", "it is a file; give module:attribute, own_space:Space"),
    ("", "own_space:", "give module:attribute, as in my_space:Space"),
]


@pytest.mark.parametrize(("source", "name", "words"), MISTAKES)
def test_a_mistake_in_a_space_is_one_line(
    source: str, name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_space.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_space", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(RequestError, match=re.escape(words)) as caught:
        get_space(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("named", ["SPACE", "make", "Mine"])
def test_an_object_a_function_or_a_class_will_do(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (
        "from docs.examples.mobilenet_v3_large import Space",
        "SPACE = Space()",
        "make = lambda: SPACE",
        "class Mine(Space): ...",
    )
    (tmp_path / "own_space.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_space", raising=False)
    assert get_space(f"own_space:{named}").name == "mobilenet_v3_large"
