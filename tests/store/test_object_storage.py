"""Tests searches on S3, through pyarrow and against a local server.

They cover the folder's contract, a complete search, and a trial that is resumed.
"""

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
from tests.tracking.helpers import MlflowSearch, expected_points, wait_until
from tests.trainables.helpers import without_times
from tinynet_search.cli.main import run
from tinynet_search.cluster.ray_internals import drop_aws_variables
from tinynet_search.formula import files as formula_io
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.plan.candidates import candidates_of, grow
from tinynet_search.plan.plan import load_or_create_plan
from tinynet_search.search.driver import run_search
from tinynet_search.store.directory import FORMULA, SearchStore
from trainables.result import EpochRecord, TrialResult
from trainables.spec import LocalReporter, TrialSpec
from trainables.storage.folder import Folder, StorageError, open_folder
from trainables.trial import run_trial

MakeUrl = Callable[[str], str]


@pytest.fixture
def folder(object_storage: MakeUrl) -> Folder:
    return open_folder(object_storage(f"search-{uuid.uuid4().hex[:8]}"))


def test_listing_of_more_than_one_page(folder: Folder) -> None:
    """S3 lists a thousand keys per page."""
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    prefix = folder.url.removeprefix("s3://bucket/").partition("?")[0]
    names = [f"{number:04d}.json" for number in range(1005)]
    for name in names:  # written to the server's backend: over HTTP it would take ten seconds
        s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(
            "bucket", f"{prefix}/results/{name}", b"{}"
        )
    assert folder.names("results") == names
    folder.remove("results")
    assert folder.names() == []


def test_formula_is_read_from_the_search_directory(
    folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The URL is the one that the search prints, with the storage options after the file name."""
    address = SearchStore(folder.url).url_of(FORMULA)
    assert "/formula.json?" in address
    assert run(["suggest", "0.5", "--formula", address]) == 2
    message = capsys.readouterr().err
    assert "formula.json" in message
    assert "no such file" in message
    published = TinyFormula.load("published")
    folder.write(FORMULA, published.to_json().encode())
    assert TinyFormula.load(address).points == published.points
    assert run(["suggest", "0.5", "--formula", address, "--json"]) == 0
    by_url = json.loads(capsys.readouterr().out)
    assert run(["suggest", "0.5", "--json"]) == 0
    built_in = json.loads(capsys.readouterr().out)
    assert [[row[key] for key in ("r", "d", "w")] for row in by_url] == [
        [row[key] for key in ("r", "d", "w")] for row in built_in
    ]
    monkeypatch.setattr(formula_io, "MAX_BYTES", 100)
    with pytest.raises(RequestError, match="too large for a formula"):
        TinyFormula.load(address)


def test_two_concurrent_writers_leave_one_complete_file(folder: Folder) -> None:
    """Without exclusive create both writers may succeed, and one complete file remains."""
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


def test_interrupted_upload_leaves_no_file(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow completes an interrupted upload, so its data must not be under the file's name."""

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


def test_unavailable_storage_is_reported(object_storage: MakeUrl, tmp_path: Path) -> None:
    missing = open_folder(object_storage("x").replace("s3://bucket/", "s3://no-such-bucket/"))
    with pytest.raises(
        StorageError, match=r"no-such-bucket/x/plan\.json.* cannot be written"
    ) as refused:
        missing.write("plan.json", b"{}")
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
    """They would become part of directory names, messages, and the records of Ray and MLflow."""
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
def local_trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrialSpec, TrialResult]:
    """A trial that is trained on the local disk without interruption."""
    storage = tmp_path_factory.mktemp("local")
    store = SearchStore(str(storage / "demo"))
    plan = load_or_create_plan(store, tiny_config(storage).resolve())
    spec = min(grow(plan, store, 6, 2), key=lambda c: c.network.macs).spec
    return spec, run_trial(spec, store.url, LocalReporter())


def test_interrupted_trial_is_resumed(
    object_storage: MakeUrl, local_trial: tuple[TrialSpec, TrialResult]
) -> None:
    spec, expected = local_trial
    root = object_storage(f"trial-{uuid.uuid4().hex[:8]}")

    class Stops(LocalReporter):
        def report(self, record: EpochRecord) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trial(spec, root, Stops())
    folder = open_folder(root)
    assert folder.names(spec.folder) == ["epoch-0001"]
    result = run_trial(spec, root, LocalReporter())
    assert without_times(result) == without_times(expected)
    assert folder.names(spec.folder) == ["config.json", "weights.safetensors"]
    assert run_trial(spec, root, LocalReporter()) == result


def test_aws_keys_are_not_passed_to_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tune would set them in the environment of every trial's actor, which every node logs."""
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
def test_complete_search_and_its_rerun(
    ray_cluster: Any, object_storage: MakeUrl, tmp_path: Path
) -> None:
    """The results equal those on a local disk, and contain no location but the storage URL."""
    config = tiny_config(tmp_path, f'storage.path="{object_storage("searches")}"', trials=3)
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    outcome = run_search(config, tracking=tracking)
    assert (outcome.new, outcome.lost) == (3, [])
    local_config = tiny_config(tmp_path / "local", trials=3)
    (tmp_path / "local").mkdir()
    local_outcome = run_search(local_config, tracking=tracking)
    remote, local = (o.store.results(o.results) for o in (outcome, local_outcome))
    assert {run: without_times(r) for run, r in remote.items()} == {
        run: without_times(r) for run, r in local.items()
    }
    assert outcome.frontier == local_outcome.frontier
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
# A driver that ignores existing leases, as if both had read the lease before either wrote one.
UNAWARE = f"from tinynet_search.store import lease; lease._is_live = lambda *_: False; {DRIVER}"


@pytest.mark.ray
def test_two_concurrent_drivers_keep_results_complete(
    ray_cluster: Any, object_storage: MakeUrl, tmp_path: Path
) -> None:
    """Without exclusive create both drivers start, and one stops at its next heartbeat.

    No result is lost or duplicated.
    """
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
    output = [process.communicate(timeout=240)[1] for process in (first, second)]
    assert first.returncode == 2 and "has been taken over by" in output[0], output
    assert second.returncode == 0 and "[4/4]" in output[1], output
    store = SearchStore(folder.url)
    results = store.results(sorted(store.finished()))
    local = tiny_config(tmp_path / "local", "recipe.epochs=4", trials=4)
    (tmp_path / "local").mkdir()
    local_store = SearchStore(local.url)
    expected = {
        c.run: run_trial(c.spec, local_store.url, LocalReporter())
        for c in grow(load_or_create_plan(local_store, local.resolve()), local_store, 4, 4)
    }
    assert {run: without_times(r) for run, r in results.items()} == {
        run: without_times(r) for run, r in expected.items()
    }
    in_mlflow = MlflowSearch(tracking, "demo")
    assert {run: in_mlflow.points(run) for run in in_mlflow.runs} == {
        run: expected_points(r.epochs) for run, r in results.items()
    }
    assert in_mlflow.statuses() == ["FINISHED"] * 4
