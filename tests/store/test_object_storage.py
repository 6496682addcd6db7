"""Searches on S3, through pyarrow and against a local server: the folder's contract, a whole search, a trial that is taken up."""

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import tiny_arguments, tiny_config
from tests.tracking.helpers import Window, wait_until, wanted_points
from tests.trainables.helpers import without_times
from tinynet_search.cli.main import run
from tinynet_search.cluster.ray_internals import drop_aws_variables
from tinynet_search.formula import files as formula_io
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.plan.candidates import candidates_of, grow
from tinynet_search.plan.plan import agreed_plan
from tinynet_search.search.driver import run_search
from tinynet_search.store.directory import FORMULA, SearchStore
from trainables.result import EpochRecord, TrialResult
from trainables.spec import Alone, TrialSpec
from trainables.storage.folder import Folder, StorageError, open_folder
from trainables.trial import run_trial

Place = Callable[[str], str]


@pytest.fixture
def folder(object_storage: Place) -> Folder:
    return open_folder(object_storage(f"search-{uuid.uuid4().hex[:8]}"))


def test_more_names_than_a_page_of_them(folder: Folder) -> None:
    """S3 lists a thousand keys at a time."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    place = folder.url.removeprefix("s3://bucket/").partition("?")[0]
    wanted = [f"{number:04d}.json" for number in range(1005)]
    for name in wanted:  # the server's own store: over HTTP it would take ten seconds
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(
            "bucket", f"{place}/results/{name}", b"{}"
        )
    assert folder.names("results") == wanted
    folder.remove("results")
    assert folder.names() == []


def test_a_formula_is_asked_where_the_search_wrote_it(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the address that a search's report gives, options of the storage behind the file's name."""
    address = SearchStore(folder.url).at(FORMULA)
    assert "/formula.json?" in address
    assert run(["suggest", "0.5", "--formula", address]) == 2
    assert "formula.json" in (said := capsys.readouterr().err)
    assert "no such file" in said
    published = TinyFormula.load("published")
    folder.write(FORMULA, published.to_json().encode())
    assert TinyFormula.load(address).points == published.points
    assert run(["suggest", "0.5", "--formula", address, "--json"]) == 0
    mine = json.loads(capsys.readouterr().out)
    assert run(["suggest", "0.5", "--json"]) == 0
    theirs = json.loads(capsys.readouterr().out)
    assert [[row[key] for key in ("r", "d", "w")] for row in mine] == [
        [row[key] for key in ("r", "d", "w")] for row in theirs
    ]
    monkeypatch.setattr(formula_io, "MAX_BYTES", 100)
    with pytest.raises(RequestError, match="too large for a formula"):
        TinyFormula.load(address)


def test_two_writers_at_once_leave_one_whole_file(folder: Folder) -> None:
    """No exclusive create there: both may believe they were first, and what stays is one of the two, whole."""
    texts = [bytes([65 + i]) * 300_000 for i in range(2)]
    barrier = threading.Barrier(2)

    def write(data: bytes) -> None:
        barrier.wait()
        folder.write_once("results/a.json", data)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read("results/a.json") in texts
    assert folder.names("results") == ["a.json"]
    assert not folder.write_once("results/a.json", b"late")
    assert folder.read("results/a.json") in texts


def test_a_broken_upload_leaves_nothing(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow ends an upload that is broken off as if it were whole: none of it may show under the file's name."""

    class Broken:
        def __init__(self, filesystem: Any) -> None:
            self._fs = filesystem

        def __getattr__(self, name: str) -> Any:
            return getattr(self._fs, name)

        def open_output_stream(self, path: str) -> Any:
            stream = self._fs.open_output_stream(path)

            class Half:
                def __enter__(self) -> Any:
                    return self

                def __exit__(self, *_: Any) -> None:
                    stream.close()

                def write(self, data: bytes) -> None:
                    stream.write(data[: len(data) // 2])
                    raise KeyboardInterrupt

            return Half()

    folder.write("plan.json", b"old")
    monkeypatch.setattr(folder, "_fs", Broken(folder._fs))  # type: ignore[attr-defined]
    for name in ("plan.json", "new.json"):
        with pytest.raises(KeyboardInterrupt):
            folder.write(name, b"new bytes")
    monkeypatch.undo()
    assert folder.read("plan.json") == b"old"
    assert folder.names() == ["plan.json"]


def test_what_cannot_be_reached_is_named(object_storage: Place, tmp_path: Path) -> None:
    nowhere = open_folder(object_storage("x").replace("s3://bucket/", "s3://no-such-bucket/"))
    with pytest.raises(
        StorageError, match=r"no-such-bucket/x/plan\.json.* cannot be written"
    ) as refused:
        nowhere.write("plan.json", b"{}")
    assert "\n" not in str(refused.value)
    options = "endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1&allow_delayed_open=false"
    with pytest.raises(RequestError, match="cannot be opened"):
        open_folder(f"s3://bucket/x?{options}&what=1")


@pytest.mark.parametrize(
    "url",
    [
        "s3://KEYID:SECRETWORD@bucket/searches",
        "s3://SECRETWORD@bucket/searches",
        "s3://bucket/searches?secret_key=SECRETWORD&region=x",
        "abfs://:SECRETWORD@account.blob.core.windows.net/searches",
        "gs://bucket/searches?access_token=SECRETWORD",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would stand in the plan's directory name, in messages and in Ray's and MLflow's records."""
    from tinynet_search.cli.main import run

    with pytest.raises(RequestError, match="credentials") as refused:
        open_folder(url)
    assert "SECRETWORD" not in str(refused.value)
    for arguments in (
        [
            "search",
            "--preset",
            "demo",
            "--storage",
            url,
            "--tracking",
            f"sqlite:///{tmp_path}/m.db",
        ],
        ["search", "--preset", "demo", "--storage", url],
        ["sync", "--storage", url],
        ["frontier", "--storage", url],
    ):
        assert run(arguments) == 2
        shown = capsys.readouterr()
        assert "SECRETWORD" not in shown.out + shown.err


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialSpec, TrialResult]:
    """A trial on the local disk."""
    storage = tmp_path_factory.mktemp("undisturbed")
    store = SearchStore(str(storage / "demo"))
    plan = agreed_plan(store, tiny_config(storage).resolve())
    spec = min(grow(plan, store, 6, 2), key=lambda c: c.network.macs).spec
    return spec, run_trial(spec, store.url, Alone())


def test_a_broken_off_trial_is_taken_up(
    object_storage: Place, undisturbed: tuple[TrialSpec, TrialResult]
) -> None:
    spec, whole = undisturbed
    root = object_storage(f"trial-{uuid.uuid4().hex[:8]}")

    class Stops(Alone):
        def report(self, record: EpochRecord) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(spec, root, Stops())
    folder = open_folder(root)
    assert folder.names(spec.folder) == ["epoch-0001"]
    result = run_trial(spec, root, Alone())
    assert without_times(result) == without_times(whole)
    assert folder.names(spec.folder) == ["config.json", "weights.safetensors"]
    assert run_trial(spec, root, Alone()) == result


def test_keys_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune would put them into the environment of every trial's actor, and every node's log would tell them."""
    from ray.tune.execution.class_cache import _ActorClassCache

    for name in (
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_SECURITY_TOKEN",
    ):
        monkeypatch.setenv(name, "SECRETWORD")
    drop_aws_variables()
    assert "SECRETWORD" not in str(vars(_ActorClassCache().get(type("Trainable", (), {}))))


@pytest.mark.ray
def test_a_whole_search_and_its_rerun(
    ray_cluster: Any, object_storage: Place, tmp_path: Path
) -> None:
    """The same results as on a disk; nothing in them or in MLflow tells an address beyond the storage's own."""
    config = tiny_config(tmp_path, f'storage.path="{object_storage("searches")}"', trials=3)
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    outcome = run_search(config, tracking=tracking)
    assert (outcome.new, outcome.lost) == (3, [])
    local = tiny_config(tmp_path / "local", trials=3)
    (tmp_path / "local").mkdir()
    here = run_search(local, tracking=tracking)
    there, beside = (o.store.results(o.results) for o in (outcome, here))
    assert {run: without_times(r) for run, r in there.items()} == {
        run: without_times(r) for run, r in beside.items()
    }
    assert outcome.frontier == here.frontier
    again = run_search(config, tracking=tracking)
    assert again.new == 0
    assert again.frontier == outcome.frontier
    folder = open_folder(outcome.store.url)
    assert {"plan.json", "frontier.json", "formula.json", "results"} <= set(folder.names())
    store = SearchStore(outcome.store.url)
    plan = store.plan()
    assert plan is not None
    assert "test" not in json.dumps(plan.to_json()["data"])
    assert len(candidates_of(plan, store)) == 3


DRIVER = "import sys; from tinynet_search.cli import main as cli; sys.exit(cli.run(sys.argv[1:]))"
# One that sees no other's lease when it starts, as if both had looked before either wrote.
UNAWARE = f"from tinynet_search.store import lease; lease._holds = lambda *_: False; {DRIVER}"


@pytest.mark.ray
def test_two_drivers_at_once_are_harmless(
    ray_cluster: Any, object_storage: Place, tmp_path: Path
) -> None:
    """No exclusive create keeps them apart there: one stops at its next sign of life, nothing is missing and nothing doubled."""
    name = f"two-{uuid.uuid4().hex[:8]}"
    url, tracking = object_storage(name), f"sqlite:///{tmp_path}/mlflow.db"
    arguments = [
        "search",
        *tiny_arguments(url, "run.concurrency=1", "recipe.epochs=4", trials=4),
        "--tracking",
        tracking,
    ]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster.address}

    def driver(program: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )

    folder = open_folder(object_storage(f"{name}/demo"))
    first = driver(DRIVER)
    wait_until(lambda: bool(folder.names("trials")), 90)
    second = driver(UNAWARE)
    said = [process.communicate(timeout=240)[1] for process in (first, second)]
    assert first.returncode == 2 and "has been taken over by" in said[0], said
    assert second.returncode == 0 and "[4/4]" in said[1], said
    store = SearchStore(folder.url)
    there = store.results(sorted(store.finished()))
    local = tiny_config(tmp_path / "local", "recipe.epochs=4", trials=4)
    (tmp_path / "local").mkdir()
    beside = SearchStore(local.url)
    alone = {
        c.run: run_trial(c.spec, beside.url, Alone())
        for c in grow(agreed_plan(beside, local.resolve()), beside, 4, 4)
    }
    assert {run: without_times(r) for run, r in there.items()} == {
        run: without_times(r) for run, r in alone.items()
    }
    window = Window(tracking, "demo")
    assert {run: window.points(run) for run in window.runs} == {
        run: wanted_points(r.epochs) for run, r in there.items()
    }
    assert window.statuses() == ["FINISHED"] * 4
