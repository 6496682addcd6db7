"""Tests the help of every command, runs the example at its end, and tests shell completion."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from PIL import Image

from search_spaces import list_spaces
from search_spaces.networks import NETWORKS
from tinynet_search.cli.app import app
from tinynet_search.cli.main import run

# A warning of MLflow's store under SQLAlchemy 2.1.
SQLALCHEMY = "ignore:The ``noload`` loader strategy is deprecated"
EXAMPLE = "Example: tinynet "
# Examples that run on a Ray cluster, and those that take seconds; the others are quick.
ON_CLUSTER = {
    "check",
    "search",
    "frontier",
    "sync",
    "submit",
    "jobs",
    "jobs list",
    "jobs status",
    "jobs logs",
    "jobs stop",
    "jobs resume",
}
SLOW = {"export", "train"}
SEARCH_TOML = """
[space]
name = "efficientnet_mini"
r = [0.35, 0.7]
d = [0.35, 1.0]
w = [0.35, 1.2]
band = [0.08, 0.5]
[search]
name = "demo"
trials = 3
sampler = "stratified"
[recipe]
name = "short"
epochs = 2
batch = 32
micro_batch = 16
[data]
name = "petals"
train = 96
val = 48
[run]
concurrency = 1
[storage]
path = {path}
"""


def commands() -> dict[str, Any]:
    """All commands and groups of ``tinynet`` by name; the name of the root is empty."""

    def collect(name: str, command: Any) -> Iterator[tuple[str, Any]]:
        yield name, command
        for child, subcommand in getattr(command, "commands", {}).items():
            yield from collect(f"{name} {child}".strip(), subcommand)

    return dict(collect("", typer.main.get_command(app)))


COMMANDS = commands()


def example_of(name: str) -> list[str]:
    """The arguments of the example of a command."""
    return shlex.split(COMMANDS[name].epilog.removeprefix(f"\b\n{EXAMPLE}"))


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = run(list(arguments))
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


@pytest.mark.quick
@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name or "tinynet")
def test_help_ends_with_one_example(capsys: pytest.CaptureFixture[str], name: str) -> None:
    """``-h`` and ``--help`` print the same; the example starts with the words of the command."""
    text = printed(capsys, *name.split(), "--help")
    assert printed(capsys, *name.split(), "-h") == text
    assert text.count(EXAMPLE) == 1
    example = text.rstrip().splitlines()[-1].strip().removeprefix(EXAMPLE)
    assert shlex.split(example) == example_of(name)
    assert example.startswith(name)
    assert "Usage: tinynet" in text.splitlines()[0]


@pytest.mark.quick
@pytest.mark.parametrize("name", COMMANDS, ids=lambda name: name or "tinynet")
def test_every_parameter_has_one_sentence_of_help(name: str) -> None:
    for parameter in COMMANDS[name].params:
        if parameter.name in ("help", "context"):
            continue
        assert parameter.help.endswith("."), parameter.name
        assert parameter.help[0].isupper(), parameter.name
        assert ". " not in parameter.help.replace("...", ""), parameter.name


@pytest.mark.quick
@pytest.mark.parametrize("name", [name for name in COMMANDS if hasattr(COMMANDS[name], "commands")])
def test_group_without_a_command_prints_its_help(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert printed(capsys, *name.split()) == printed(capsys, *name.split(), "--help")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_example(name: str) -> None:
    assert run(example_of(name)) == 0


QUICK = [name for name in COMMANDS if name not in ON_CLUSTER | SLOW and not name.startswith("data")]


@pytest.mark.quick
@pytest.mark.parametrize("name", QUICK, ids=lambda name: name or "tinynet")
def test_example(folder: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    """Examples that need no files."""
    run_example(name)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) >= 3
    assert err.count("\n") <= 1  # a note on the formula
    assert list(folder.iterdir()) == []


def write_imagenet(root: Path, *, classes: int, train: int, val: int) -> None:
    """A train/ and val/ tree of random JPEG images."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            wnid = f"n{label + 1:08d}"
            (root / split / wnid).mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8))
                number = label * count + index + 1
                name = f"{wnid}_{index}" if split == "train" else f"ILSVRC2012_val_{number:08d}"
                image.save(root / split / wnid / f"{name}.JPEG")


def test_examples_of_data(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draw a subset of a small ImageNet, with smaller defaults, and pack it."""
    from tinynet_search.cli import data

    write_imagenet(folder / "imagenet", classes=5, train=6, val=3)
    monkeypatch.setattr(data, "NUM_CLASSES", 4)
    monkeypatch.setattr(data, "IMAGES_PER_CLASS", 5)
    run_example("data imagenet100")
    assert "20 training and 12 validation images of 4 classes" in capsys.readouterr().out
    run_example("data pack")
    assert "packed 20 training and 12 validation images" in capsys.readouterr().out
    run_example("data")
    assert "already packed" in capsys.readouterr().out


@pytest.mark.slow
def test_example_of_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.save(NETWORKS["tinynet_e"].network().build().state_dict(), "tinynet_e.pth")
    run_example("export")
    assert "tinynet_e.onnx" in capsys.readouterr().out
    assert (folder / "exported/tinynet_e.onnx").stat().st_size > 8_000_000


@pytest.mark.slow
def test_example_of_train(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_example("train")
    assert "top-1 %" in capsys.readouterr().out
    (result,) = folder.glob("searches/*/results/*.json")
    assert len(json.loads(result.read_text())["epochs"]) == 2


@pytest.fixture
def search_file(folder: Path) -> Path:
    """The ``search.toml`` of the examples: a search that takes seconds."""
    (folder / "searches").mkdir()
    file = folder / "search.toml"
    file.write_text(SEARCH_TOML.format(path=json.dumps(str(folder / "searches"))))
    return file


@pytest.fixture
def cluster(ray_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of a cluster's dashboard, which the examples read from the environment."""
    url = f"http://{ray_cluster.head_node.address_info['webui_url']}"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", url)
    return url


@pytest.mark.ray
@pytest.mark.filterwarnings(SQLALCHEMY)
def test_examples_of_a_search(
    ray_cluster: Any, folder: Path, search_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Check and run a search, list its frontier from the SQLite database, and sync the database."""
    run_example("check")
    assert "3 of 3 to train" in capfd.readouterr().out
    run_example("search")
    assert "Frontier" in capfd.readouterr().out
    assert (folder / "searches/mlflow.db").exists()
    run_example("frontier")
    assert len(capfd.readouterr().out.splitlines()) == 2 + 3
    run_example("sync")
    assert "demo: 3 runs" in capfd.readouterr().out


@pytest.mark.ray
def test_examples_of_jobs(
    cluster: str, folder: Path, search_file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Submit a search, read its job; stop and resume a longer search of the same name."""
    from tinynet_search.config import load_config
    from tinynet_search.jobs import submit_search
    from tinynet_search.jobs.watching import Jobs

    run_example("submit")
    assert "Frontier" in capfd.readouterr().out
    for name in ("jobs", "jobs list", "jobs status", "jobs logs"):
        run_example(name)
        assert capfd.readouterr().out
    shutil.rmtree(folder / "searches" / "demo")
    settings = ["recipe.epochs=40", "data.train=960"]
    longer = load_config(search_file, settings=settings)
    job, jobs = submit_search(longer, cluster, check=False), Jobs(cluster)
    end = time.monotonic() + 120
    while not list(folder.glob("searches/demo/trials/*/epoch-*")):
        assert time.monotonic() < end, jobs.logs(job.id)
        time.sleep(0.1)
    run_example("jobs stop")
    assert f"job {job.id} stopped" in capfd.readouterr().err
    run_example("jobs resume")
    assert "resumes demo" in capfd.readouterr().err
    jobs.stop("demo")


def complete(*words: str) -> list[str]:
    """The completions that bash offers for the last word, computed in a separate process."""
    environment = os.environ | {
        "_TINYNET_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["tinynet", *words]),
        "COMP_CWORD": str(len(words)),
    }
    code = (
        "import sys; from tinynet_search.cli.main import main\n"
        "try: main()\n"
        "finally: assert not {'torch', 'ray', 'mlflow', 'pandas'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.split()


@pytest.mark.quick
@pytest.mark.parametrize(
    ("words", "completions"),
    [
        (["sug"], ["suggest"]),
        (["jobs", "st"], ["status", "stop"]),
        (["suggest", "0.25", "--space", "ghostnet_a_"], ["ghostnet_a_hswish"]),
        (["suggest", "--form", ""], ["default", "paper"]),
        (["search", "--preset", "d"], ["demo"]),
        (["train", "tinynet_"], [name for name in NETWORKS if name.startswith("tinynet_")]),
        (["export", "resnet18", "--format", "s"], ["safetensors"]),
        (["train", "--space", ""], list_spaces()),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_completion(words: list[str], completions: list[str]) -> None:
    assert complete(*words) == completions


@pytest.fixture
def bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, and a ``tinynet`` command on the path."""
    command = tmp_path / "bin" / "tinynet"
    command.parent.mkdir()
    root = Path(__file__).parents[2]
    command.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={shlex.quote(str(root))}\n"
        f'exec {shlex.quote(sys.executable)} -m tinynet_search.cli.main "$@"\n'
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(command.parent), os.environ["PATH"]]))
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def in_bash(script: str) -> str:
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.quick
def test_completion_is_installed_in_bash(bash: Path) -> None:
    """``--install-completion`` detects the shell; in the next shell, TAB completes commands."""
    assert "bash completion installed" in in_bash("tinynet --install-completion; true")
    assert ".bash_completions/tinynet.sh" in (bash / ".bashrc").read_text()
    press_tab = (
        "source ~/.bashrc; COMP_WORDS=(tinynet sug); COMP_CWORD=1; "
        '_tinynet_completion tinynet; echo "${COMPREPLY[@]}"'
    )
    assert in_bash(press_tab) == "suggest\n"


@pytest.mark.quick
def test_show_completion_prints_the_script(bash: Path) -> None:
    script = in_bash("tinynet --show-completion; true")
    source = in_bash("_TINYNET_COMPLETE=source_bash tinynet; true")
    assert script.strip() == source.strip()
    assert "complete -o default -F _tinynet_completion tinynet" in script
    assert not (bash / ".bashrc").exists()
