"""Commands in the program's output work as printed, from another folder.

``printed_commands`` collects them from the output of real commands. A command ends at the end of
its line, or at a comma or semicolon before a space.
"""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search_spaces.own import load_space
from tests.cli.test_help import SEARCH_TOML, SQLALCHEMY, write_imagenet
from tests.data.test_imagefolder import make_tree
from tests.search.helpers import tiny_arguments
from tests.train.helpers import arguments
from tinynet_search.cli.main import run
from tinynet_search.commands import jobs_command, mlflow_server, sync_command, tinynet

ROOT = Path(__file__).parents[2]
PACKAGES = ("search_spaces", "trainables", "tinynet_search")
WORD = r"(?:'[^']*'|\"[^\"]*\"|[^\s'\",;]|[,;](?!\s|$))+"
PRINTED = re.compile(
    rf"(?:PYTHONPATH={WORD} )?(?:'[^']*/tinynet'|(?:/[^\s']*/)?\btinynet)(?: {WORD})+", re.MULTILINE
)
# Calls that build a printed command, by file and function, and the test that runs the command.
BUILT = {
    ("tinynet_search/cli/data.py", "imagenet100", "tinynet"): "subset",
    ("tinynet_search/cli/jobs.py", "submit", "jobs_command"): "jobs",
    ("tinynet_search/cli/jobs.py", "stop", "jobs_command"): "jobs",
    ("tinynet_search/cli/jobs.py", "_follow", "jobs_command"): "arguments of jobs",
    ("tinynet_search/cli/summary.py", "_locations", "tinynet"): "search",
    ("tinynet_search/cli/summary.py", "_locations", "mlflow_server"): "starts a server",
    ("tinynet_search/cli/train.py", "_text", "mlflow_server"): "starts a server",
    ("tinynet_search/jobs/submission.py", "_require_not_running", "jobs_command"): "jobs",
    ("tinynet_search/jobs/watching.py", "stop", "jobs_command"): "arguments of jobs",
    ("tinynet_search/search/driver.py", "run", "sync_command"): "search",
    ("tinynet_search/tracking/job_publisher.py", "__init__", "sync_command"): "training",
    ("tinynet_search/tracking/publisher.py", "__init__", "sync_command"): "search",
    ("tinynet_search/tracking/selection.py", "_not_published", "sync_storage_command"): "search",
    ("tinynet_search/train/run.py", "run_job", "sync_command"): "training",
    ("tinynet_search/train/run.py", "_skipping", "tinynet"): "unreadable image",
}
BUILDERS = {"tinynet", "sync_command", "sync_storage_command", "mlflow_server", "jobs_command"}
# Other texts with the name of a command, with the reason why they are not run.
NAMES_A_COMMAND = "the name of a command in a sentence"
PLACEHOLDER = "contains a placeholder, since the folder of the images is unknown"
TEXTS = {
    "run tinynet search first, or tinynet train, or pass a different --storage": NAMES_A_COMMAND,
    ": run tinynet search first, or pass --storage or --tracking": NAMES_A_COMMAND,
    "run the same tinynet data pack command again": NAMES_A_COMMAND,
    "A name from tinynet networks, r,d,w, or the folder of a trial or an export.": NAMES_A_COMMAND,
    "A name from tinynet networks; omit it with --rdw or --c.": NAMES_A_COMMAND,
    "Path of a TOML configuration, or train and the arguments of tinynet train.": NAMES_A_COMMAND,
    "tinynet submit train accepts the options of tinynet train: remove --preset, ": NAMES_A_COMMAND,
    "--eval-only and --weights are for tinynet train: remove them": NAMES_A_COMMAND,
    "not a job of tinynet submit: only Ray starts ": NAMES_A_COMMAND,
    ": pass exactly one of a name listed by tinynet networks, ": NAMES_A_COMMAND,
    ", which tinynet networks does not list: pass weights of a listed network": NAMES_A_COMMAND,
    "tinynet submit train": "the name of the program in messages about its options",
    "tinynet train": "the source of a run in MLflow",
    "tinynet search": "the source of a run in MLflow",
    ": see tinynet submit --help": "help",
    "or run the search as a job with tinynet submit": NAMES_A_COMMAND,
    "for a cluster, pass it to tinynet submit --working-dir": NAMES_A_COMMAND,
    "`--promote` of `tinynet sync` moves it in any case": NAMES_A_COMMAND,
    "create one with tinynet data pack --data DIR --out NEW_DIR": PLACEHOLDER,
    " does not exist: create it with tinynet data pack --data DIR --out ": PLACEHOLDER,
}


def printed_commands(*texts: str) -> list[str]:
    """The commands in the output of a command."""
    return [match[0].rstrip() for text in texts for match in PRINTED.finditer(text)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the first command; its name must be quoted in a shell."""
    folder = tmp_path / "my work, new"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A function that runs a printed command in another folder, which stays empty."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()

    def run_printed(command: str, code: int = 0) -> str:
        paths = [str(Path(sys.executable).parent), os.environ["PATH"]]
        environment = os.environ | {"PATH": ":".join(paths), "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    yield run_printed
    assert list(folder.iterdir()) == []


def only(commands: list[str], words: str) -> str:
    """The single command, possibly printed several times, that contains some words."""
    (command,) = {command for command in commands if words in command}
    return command


@pytest.mark.ray
@pytest.mark.filterwarnings(SQLALCHEMY)
def test_commands_of_a_search(
    ray_cluster: Any,
    here: Path,
    elsewhere: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A file in the place of MLflow's folder fails the first run; sync then fills the database."""
    (here / "track").touch()
    search = ["search", *tiny_arguments("all searches", trials=3)]
    search += ["--tracking", "sqlite:///track/mlflow.db"]
    assert run(search) == 0
    output = capfd.readouterr()
    sync = only(printed_commands(output.out), " sync ")
    assert only(printed_commands(output.err), " sync ") == sync
    (here / "track").unlink()
    (here / "track").mkdir()
    database = here / "track" / "mlflow.db"
    assert f"demo: 3 runs, 6 epochs at sqlite:///{database}" in elsewhere(sync)
    assert database.exists()
    assert not (here / "all searches" / "mlflow.db").exists()
    assert run(search) == 0
    out = capfd.readouterr().out
    suggest = printed_commands(out)
    for command in suggest:
        assert "pixels" in elsewhere(command)
    assert f"--backend-store-uri 'sqlite:///{database}'" in out
    other = ("--tracking", "sqlite:///track/other.db")
    assert run([*arguments(Path("jobs"), *other, epochs=1)]) == 0
    capfd.readouterr()
    assert run(["frontier", "--search", "demo", "--storage", "all searches", *other]) == 2
    sync = only(printed_commands(capfd.readouterr().err), " sync ")
    assert f"demo: 3 runs, 6 epochs at sqlite:///{here}/track/other.db" in elsewhere(sync)
    assert json.loads((here / "all searches/demo/formula.json").read_text())["usable"] == bool(
        suggest
    )


def test_command_of_a_training(
    here: Path, elsewhere: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    (here / "track").touch()
    train = arguments(Path("jobs"), "--tracking", "sqlite:///track/mlflow.db", epochs=1)
    assert run(train) == 0
    sync = only(printed_commands(capfd.readouterr().err), " sync ")
    (here / "track").unlink()
    (here / "track").mkdir()
    assert "tiny: 1 runs, 1 epochs" in elsewhere(sync)
    assert (here / "track" / "mlflow.db").exists()
    assert not (here / "jobs" / "mlflow.db").exists()


def test_command_after_an_unreadable_image(
    here: Path, elsewhere: Callable[..., str], capfd: pytest.CaptureFixture[str]
) -> None:
    make_tree(here / "my images")
    broken = next((here / "my images" / "train" / "cat").iterdir())
    broken.write_bytes(broken.read_bytes()[:60])
    train = "train --rdw 0.4,0.4,0.5 --space efficientnet_mini --epochs 1 --recipe short"
    sizes = "--set recipe.batch=8 --set recipe.micro_batch=8"
    assert run([*train.split(), *sizes.split(), "--data", "my images", "--storage", "jobs"]) == 1
    pack = only(printed_commands(capfd.readouterr().err), " data pack ")
    assert "skipped 1 unreadable" in elsewhere(pack)
    assert (here / "my images-packed").is_dir()


def test_command_after_drawing_a_subset(
    here: Path, elsewhere: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_imagenet(here / "imagenet", classes=3, train=4, val=2)
    options = ["--num-classes", "2", "--images-per-class", "3"]
    assert run(["data", "imagenet100", "--imagenet", "imagenet", "--out", "sub set", *options]) == 0
    pack = only(printed_commands(capsys.readouterr().out), " data pack ")
    assert "packed 6 training and 4 validation images" in elsewhere(pack)
    assert (here / "sub set-packed").is_dir()


@pytest.mark.ray
def test_commands_of_jobs(
    ray_cluster: Any,
    here: Path,
    elsewhere: Callable[..., str],
    capfd: pytest.CaptureFixture[str],
) -> None:
    """The other folder has no address of the cluster in its environment."""
    cluster = f"http://{ray_cluster.head_node.address_info['webui_url']}"
    text = SEARCH_TOML.format(path=json.dumps(str(here / "searches")))
    (here / "searches").mkdir()
    (here / "search.toml").write_text(text)
    submit = ["submit", "search.toml", "--yes", "--no-wait", "--address", cluster]
    assert run(submit) == 0
    commands = printed_commands(capfd.readouterr().err)
    assert run(submit) == 2
    assert set(printed_commands(capfd.readouterr().err)) == set(commands)
    stopped = elsewhere(only(commands, " stop "))
    (resume,) = printed_commands(stopped)
    assert "resumes demo" in elsewhere(resume)
    elsewhere(only(commands, " logs "), code=143)  # the first job was stopped


@pytest.mark.quick
@pytest.mark.parametrize("verb", ["logs", "status", "stop", "resume"])
def test_arguments_of_jobs_commands(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """Each command connects to the address that it contains."""
    (command,) = printed_commands(f"see {jobs_command(verb, 'demo-1', 'http://127.0.0.1:9')}")
    words = command.split()
    assert run(words[words.index("jobs") :]) == 2
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_command_with_a_space_of_the_current_folder(
    here: Path, elsewhere: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "printed_space.py").write_text(
        "from search_spaces.efficientnet import *\nfrom search_spaces import get_space\n"
        "Space = get_space('efficientnet_mini')\n"
    )
    monkeypatch.syspath_prepend("")
    load_space("printed_space:Space")
    command = tinynet(
        ["suggest", "0.4", "--space", "printed_space:Space", "--formula", "published"],
        space="printed_space:Space",
    )
    assert printed_commands(f"use the formula   {command}") == [command]
    assert "r(c) and d(c) were fitted on efficientnet_b0" in elsewhere(command)
    bare = command.partition('}" ')[2]
    assert "cannot be loaded" in elsewhere(bare, 2)


@pytest.mark.quick
def test_parts_of_sync_commands(here: Path) -> None:
    words = sync_command(
        "s3://bucket/all/demo?region=eu", "http://me:SECRET@mlflow:5000", "ghostnet"
    )
    assert words.endswith(
        " sync --search demo --storage 's3://bucket/all?region=eu' --tracking http://mlflow:5000 "
        "(with user and password in the URI)"
    )
    words = sync_command("/demo", "sqlite:///here.db", "own:Space")
    assert words.endswith(
        f" sync --search demo --storage / --tracking 'sqlite:///{here}/here.db' --space own:Space"
    )
    assert f"'sqlite:///{here}/here.db'" in mlflow_server("sqlite:///here.db")


def functions(tree: ast.AST, name: str = "<module>") -> Iterator[tuple[ast.AST, str]]:
    """All descendants of a node, each with the name of its innermost function."""
    for node in ast.iter_child_nodes(tree):
        own = node.name if isinstance(node, ast.FunctionDef) else name
        yield node, own
        yield from functions(node, own)


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of the nodes of docstrings."""
    bodies = [node.body for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef)]
    bodies += [node.body for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    first = [body[0].value for body in bodies if body and isinstance(body[0], ast.Expr)]
    return {id(node) for node in first}


@pytest.mark.quick
def test_every_command_in_the_source_is_run_or_excepted() -> None:
    built, texts = set(), set()
    for file in (file for package in PACKAGES for file in (ROOT / package).rglob("*.py")):
        path = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documentation = docstrings(tree)
        for node, function in functions(tree):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Name) and called.id in BUILDERS:
                built.add((path, function, called.id))
            text = node.value if isinstance(node, ast.Constant) else None
            shown = isinstance(text, str) and id(node) not in documentation
            if shown and re.search(r"\btinynet [a-z]", str(text)):
                texts.add((path, str(text)))
    built = {(path, *call) for path, *call in built if path != "tinynet_search/commands.py"}
    assert built == set(BUILT)
    unknown = {(path, text) for path, text in texts if not any(each in text for each in TEXTS)}
    assert unknown == set()
    assert [each for each in TEXTS if not any(each in text for _, text in texts)] == []


@pytest.mark.quick
def test_sync_creates_a_database_only_for_results(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A search without results, a search that does not exist, and an empty storage."""
    from tests.search.helpers import tiny_config, tiny_search

    (here / "searches").mkdir()
    for options in (["--search", "demo"], []):
        assert run(["sync", *options]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert list(here.iterdir()) == [here / "searches"]
    assert list((here / "searches").iterdir()) == []
    tiny_search(tiny_config(here / "searches", trials=2))
    assert run(["sync"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("demo: no results to publish\n", "")
    assert list((here / "searches").iterdir()) == [here / "searches" / "demo"]


def test_sync_reports_a_database_that_it_creates(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ("--tracking", f"sqlite:///{here}/named.db")
    assert run(arguments(Path("searches"), *named, epochs=1)) == 0
    capsys.readouterr()
    assert run(["sync"]) == 0
    output = capsys.readouterr()
    assert "tiny: 1 runs, 1 epochs" in output.out
    database = f"sqlite:///{here}/searches/mlflow.db"
    created = f"created {database}, since neither --tracking nor MLFLOW_TRACKING_URI is set\n"
    assert output.err == created
    assert run(["sync"]) == 0
    assert capsys.readouterr().err == ""
