"""The documented custom space: it passes the contract, and the document's commands work as shown.

Also tests the messages for mistakes in a custom space.
"""

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
DOCUMENT = (ROOT / "docs" / "guides" / "your-own-space.md").read_text()
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
    """Run the console script as a user does; the space is imported from the current folder."""
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


def test_baseline_matches_torchvision() -> None:
    """Compares names and shapes, logits with the same weights, and the known figures."""
    baseline = Space().baseline()
    module, reference = baseline.build().eval(), torchvision.models.mobilenet_v3_large().eval()
    assert {k: v.shape for k, v in module.state_dict().items()} == {
        k: v.shape for k, v in reference.state_dict().items()
    }
    module.load_state_dict(reference.state_dict())
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(module(image), reference(image))
    assert (baseline.params, baseline.macs, baseline.activations) == (
        5_483_032,
        216_589_760,
        4_404_888,
    )
    assert baseline.activation_bytes == 4 * measured_peak(reference, 224)


def test_example_is_short() -> None:
    assert len((EXAMPLES / "mobilenet_v3_large.py").read_text().splitlines()) < 130
    assert len(DOCUMENT.splitlines()) < 130


def test_document_shows_the_printed_output() -> None:
    published, fitted = re.findall(r"```\n\$ (tinynet suggest .*?)```", DOCUMENT, re.DOTALL)
    command, _, printed = published.partition("\n")
    completed = tinynet(*command.split()[1:])
    assert completed.stdout + completed.stderr == printed
    # This formula comes from a search of minutes, which the test does not repeat.
    assert fitted.startswith(
        f"tinynet suggest 0.5 --space {SPACE} --formula searches/mine/formula.json"
    )


@pytest.mark.ray
def test_search_over_the_example(ray_cluster: Any, tmp_path: Path) -> None:
    """Runs the document's configuration at a smaller size.

    Trial processes import the space by its name, and the search fits a formula for it.
    """
    (toml,) = re.findall(r"```toml\n(.*?)```", DOCUMENT, re.DOTALL)
    config = tmp_path / "mine.toml"
    config.write_text(toml)
    settings = [argument for setting in TINY for argument in ("--set", setting)]
    completed = tinynet(
        "search",
        str(config),
        "--storage",
        str(tmp_path),
        "--json",
        *settings,
        RAY_ADDRESS=ray_cluster.address,
    )
    assert completed.returncode == 0, completed.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "mine" / "results").iterdir()]
    assert [(result["status"], result["space"]) for result in results] == [("finished", SPACE)] * 6
    formula = str(tmp_path / "mine" / "formula.json")
    c = str(json.loads(Path(formula).read_text())["range"][1])
    (row,) = json.loads(
        tinynet("suggest", c, "--space", SPACE, "--formula", formula, "--json").stdout
    )
    assert (row["space"], row["num_classes"], row["note"]) == ("mobilenet_v3_large", 24, None)


def test_files_in_the_current_folder_do_not_hide_installed_modules(tmp_path: Path) -> None:
    (tmp_path / "numpy.py").write_text("raise RuntimeError")
    assert tinynet("suggest", "0.5", folder=tmp_path).returncode == 0


IMPORTS = "from search_spaces import SearchSpace, get_space\n"
INCOMPLETE = IMPORTS + (
    "class Space(SearchSpace):\n"
    "    def decode(self, r, d, w): ...\n"
    "    def cost(self, shape, num_classes): ...\n"
    "    def build(self, network, **options): ...\n"
)
CUSTOM = (
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
        "there is no module 'no_such_module'; run from the folder that contains no_such_module",
    ),
    (IMPORTS + "class Mine(SearchSpace): ...", "own_space:Mini", "did you mean 'own_space:Mine'?"),
    (
        "",
        "own_space:Space",
        "own_space does not define it and contains no other space; "
        "subclass search_spaces.SearchSpace",
    ),
    (
        "Space = {}",
        "own_space:Space",
        "expected a search_spaces.SearchSpace, or a class or function that returns one without "
        "arguments, got dict",
    ),
    (
        "def Space(table): ...",
        "own_space:Space",
        "it needs arguments (missing a required argument: 'table'); add SPACE = Space(...)",
    ),
    (
        "def Space():\n    return 1 / 0",
        "own_space:Space",
        "own_space.py, line 2, raises ZeroDivisionError: division by zero; fix it there",
    ),
    (
        "\nraise ValueError('no\\nlicence')",
        "own_space:Space",
        "own_space.py, line 2, raises ValueError: no licence; fix it there",
    ),
    ("import sys\nsys.exit(3)", "own_space:Space", "own_space.py, line 2, raises SystemExit: 3"),
    ("def Space(:", "own_space:Space", "own_space.py, line 1, raises SyntaxError: invalid syntax"),
    (
        "import not_there",
        "own_space:Space",
        "own_space.py, line 1, needs not_there, which is not installed; install it",
    ),
    (
        INCOMPLETE,
        "own_space:Space",
        "its class lacks the method describe; search_spaces.SearchSpace documents it",
    ),
    (
        INCOMPLETE + "    def describe(self, shape): ...",
        "own_space:Space",
        "its class does not set name and base_resolution, which every space needs",
    ),
    (
        CUSTOM.format("tuple(r)", "None"),
        "own_space:Space",
        "own_space.py, line 4, fails on numbers (TypeError: 'float' object is not iterable); test",
    ),
    (
        CUSTOM.format("int(r)", "None"),
        "own_space:Space",
        "expected its cost() to return search_spaces.Cost, got NoneType; test it with",
    ),
    (
        CUSTOM.format("int(r)", "Cost(1, 1, 1, 1)"),
        "own_space:Space",
        "own_space.py, line 4, fails on arrays (TypeError",
    ),
    (
        "",
        "own_space.py:Mine",
        "it is a file; pass own_space:Mine (module:attribute) and run from the folder of "
        "own_space.py",
    ),
    ("", "C:\\spaces\\own_space.py:Mine", "it is a file; pass own_space:Mine"),
    ("", "C:\\spaces\\own_space.py", "it is a file; pass own_space:Space"),
    ("", "./own_space.py", "it is a file; pass own_space:Space"),
    ("", "own_space:", "pass module:attribute, such as my_space:Space"),
]


@pytest.mark.parametrize(("source", "name", "message"), MISTAKES)
def test_mistakes_in_a_space_are_reported_in_one_line(
    source: str, name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_space.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_space", raising=False)
    importlib.invalidate_caches()
    with pytest.raises(RequestError, match=re.escape(message)) as caught:
        get_space(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("attribute", ["SPACE", "make", "Mine"])
def test_attribute_may_be_an_object_a_function_or_a_class(
    attribute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert get_space(f"own_space:{attribute}").name == "mobilenet_v3_large"
