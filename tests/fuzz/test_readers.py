"""Fuzz tests of all readers of files and of MLflow.

A reader must read a mutated document correctly or reject it in one line.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from search_spaces import RequestError
from tests.fuzz.mutations import EVIL, HOSTILE, documents, files, hostile
from tests.search.helpers import TINY, tiny_config
from tinynet_search.config import load_config, validate
from tinynet_search.errors import TrackingError
from tinynet_search.export import ExportRequest, export_network
from tinynet_search.export.subject import find_subject
from tinynet_search.formula.tiny_formula import TinyFormula, suggest_rdw
from tinynet_search.mlflow_client.experiments import experiment_name
from tinynet_search.plan.candidates import candidates_of, final_candidates, grow
from tinynet_search.plan.plan import load_or_create_plan, packing_warning
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.lease import Holder, read_lease
from tinynet_search.store.train_job import TrainJob, read_job, started_jobs
from tinynet_search.tracking import projection
from trainables.checkpoint import newest_checkpoint
from trainables.result import EpochRecord
from trainables.spec import LocalReporter, TrialSpec
from trainables.storage.folder import open_folder
from trainables.trial import run_trial

# CPU seconds, as a guard against hangs: every case takes milliseconds.
MAX_SECONDS = 10.0
fuzzed = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    # No shrinking: it takes minutes, and the first failing case is sufficient.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)


@contextmanager
def succeeds_or_fails_in_one_line() -> Iterator[None]:
    """Check that the block succeeds or fails with a one-line message, within ``MAX_SECONDS``.

    The module that hostile files name must not be imported.
    """
    started = time.process_time()
    try:
        yield
    except (RequestError, TrackingError) as error:
        message = str(error)
        assert message
        assert "\n" not in message
        assert "\x1b" not in message
        assert len(message) < 2500
    assert time.process_time() - started < MAX_SECONDS
    assert EVIL not in sys.modules


class Workspace:
    """Valid files of a search, a job and a partly trained trial.

    Each case changes one of the files and then restores it.
    """

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.store = SearchStore(str(storage / "demo"))
        config = tiny_config(storage, "recipe.epochs=1")
        self.plan = load_or_create_plan(self.store, config.resolve())
        candidate = min(grow(self.plan, self.store, 6, 1), key=lambda c: c.network.macs)
        spec = candidate.spec
        self.run, self.spec = spec.run, spec

        class Interrupting(LocalReporter):
            def report(self, record: EpochRecord) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_trial(spec, self.store.url, Interrupting())
        partial = storage / "partial" / "trials" / spec.run
        shutil.copytree(storage / "demo" / "trials" / spec.run, partial)
        self.partial = partial
        run_trial(spec, self.store.url, LocalReporter())
        final = {
            "run": spec.run,
            "label": "tiny formula",
            "c": 0.3,
            "rdw": list(spec.rdw),
            "note": None,
            "extrapolated": False,
        }
        self.store.write_json(
            "finals.json", [{**final, "spec": {**spec.to_json(), "kind": "final"}}]
        )
        network = candidate.network
        figures = {"macs": network.macs, "params": network.params, "resolution": network.resolution}
        row = {
            "id": candidate.id,
            "run": spec.run,
            "rdw": list(spec.rdw),
            "c": candidate.c,
            "top1": 40.0,
            "pareto_rank": 1,
        }
        self.store.write_json("frontier.json", [{**row, **figures}])
        self.job = SearchStore(str(storage / "job"))
        self.job.write_json(
            "job.json",
            TrainJob("job", "me", "tinynet_e", spec, 96, 48, ["a", "b"], 1_700_000_000).to_json(),
        )
        holder = Holder(
            **{
                **dict.fromkeys(Holder.__annotations__, "x"),
                "number": 1,
                "pid": 1,
                "since": 1.7e9,
                "seen": 1.7e9,
                "released": False,
            }
        )
        self.store.folder.write("lease/000001.json", holder.to_json())
        export_network(
            ExportRequest(
                str(storage / "demo" / "trials" / spec.run), "safetensors", storage / "export"
            )
        )
        shutil.copy(
            Path(sys.modules[TinyFormula.__module__].__file__ or "").parent / "published.json",
            storage / "formula.json",
        )

    def file(self, name: str) -> Path:
        return {
            "plan": self.storage / "demo" / "plan.json",
            "candidates": self.storage / "demo" / "candidates" / "000000.json",
            "result": self.storage / "demo" / "results" / f"{self.run}.json",
            "frontier": self.storage / "demo" / "frontier.json",
            "finals": self.storage / "demo" / "finals.json",
            "config": self.storage / "demo" / "trials" / self.run / "config.json",
            "export": self.storage / "export" / "config.json",
            "lease": self.storage / "demo" / "lease" / "000001.json",
            "job": self.storage / "job" / "job.json",
            "progress": self.partial / "epoch-0001" / "progress.json",
            "formula": self.storage / "formula.json",
        }[name]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    evil = tmp_path_factory.mktemp("evil")
    (evil / f"{EVIL}.py").write_text("Space = print\n")
    sys.path.append(str(evil))
    yield Workspace(tmp_path_factory.mktemp("fuzzed"))
    sys.path.remove(str(evil))


def _plan(workspace: Workspace) -> None:
    plan = workspace.store.plan()
    assert plan is not None
    projection.search_key(plan)
    projection.search_tags(plan, workspace.store.url)
    projection.search_params(plan)
    projection.created_ms(plan)
    experiment_name(plan.space.name, plan.owner)
    packing_warning(plan.data.largest_pixels, [64])
    candidates_of(plan, workspace.store, 1)


def _candidates(workspace: Workspace) -> None:
    for candidate in candidates_of(workspace.plan, workspace.store, 1):
        projection.trial_params(candidate)
        projection.figure_points(candidate, 0)


def _result(workspace: Workspace) -> None:
    result = workspace.store.result(workspace.run)
    assert result is not None
    SearchStore(workspace.store.url).summary(workspace.run)
    projection.epoch_points(result.epochs)
    projection.result_points(result)
    projection.result_tags(result)
    projection.begun_ms(result.epochs, result)
    projection.ended_ms(result)


def _frontier(workspace: Workspace) -> None:
    for row in workspace.store.frontier_rows() or []:
        assert row.id
        assert row.pareto_rank > 0
        assert all(0 < value < 100 for value in row.rdw)


def _finals(workspace: Workspace) -> None:
    assert all(row.label.isprintable() and row.run for row in workspace.store.final_rows())
    for candidate in final_candidates(workspace.store):
        assert len(candidate.run) > 12


def _job(workspace: Workspace) -> None:
    from tinynet_search.tracking.job_publisher import job_contents

    job = read_job(workspace.job)
    assert job is not None
    job_contents(job, [])
    started_jobs(workspace.job, job)


def _formula(workspace: Workspace) -> None:
    formula = TinyFormula.load(workspace.file("formula"))
    if formula.usable:
        formula.predict(0.25)
        suggest_rdw(0.25, formula=formula)


def _lease(workspace: Workspace) -> None:
    assert read_lease(workspace.store.folder) is not None


def _progress(workspace: Workspace) -> None:
    store = SearchStore(str(workspace.storage / "partial"))
    projection.epoch_points(store.progress(workspace.run))
    newest_checkpoint(open_folder(workspace.partial), workspace.run)


def _config(workspace: Workspace) -> None:
    subject = find_subject(str(workspace.file("config").parent))
    assert "/" not in subject.name


def _export(workspace: Workspace) -> None:
    subject = find_subject(str(workspace.file("export").parent))
    assert "/" not in subject.name


READERS: dict[str, Callable[[Workspace], None]] = {
    "plan": _plan,
    "candidates": _candidates,
    "result": _result,
    "frontier": _frontier,
    "finals": _finals,
    "job": _job,
    "formula": _formula,
    "lease": _lease,
    "progress": _progress,
    "config": _config,
    "export": _export,
}


@pytest.mark.parametrize("name", READERS)
def test_files(workspace: Workspace, name: str) -> None:
    file = workspace.file(name)
    original = file.read_bytes()
    READERS[name](workspace)

    @fuzzed
    @given(files(original))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with succeeds_or_fails_in_one_line():
            READERS[name](workspace)

    try:
        check()
    finally:
        file.write_bytes(original)
    READERS[name](workspace)


@pytest.mark.parametrize("name", READERS)
def test_special_files(workspace: Workspace, name: str) -> None:
    """Replaces the file by a folder, a link, a device, or a sparse file of four terabytes.

    The links point to a missing file, to themselves, to an endless device and to another file.
    """
    file = workspace.file(name)
    original = file.read_bytes()

    def create_folder() -> None:
        file.mkdir()

    def create_sparse_file() -> None:
        with file.open("wb") as opened:
            opened.truncate(2**42)

    links = [
        lambda target=target: file.symlink_to(target)
        for target in ("/dev/zero", "nowhere", file.name, "/etc/hostname")
    ]
    for create in (create_folder, create_sparse_file, *links):
        file.unlink()
        create()
        try:
            with succeeds_or_fails_in_one_line():
                _with_storage_errors(READERS[name], workspace)
        finally:
            file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
            file.write_bytes(original)


def _with_storage_errors(reader: Callable[[Workspace], None], workspace: Workspace) -> None:
    """Convert storage errors to one-line errors, as the commands do.

    A reader's assertion may fail if its file does not exist.
    """
    from trainables.storage.folder import StorageError

    try:
        reader(workspace)
    except StorageError as error:
        raise RequestError(str(error)) from error
    except AssertionError:
        assert not any(workspace.file(name).exists() for name in READERS if READERS[name] is reader)


@fuzzed
@given(
    documents(
        {
            "search": {
                "trials": 10,
                "seed": 0,
                "finals": [0.3],
                "compare": ["inverse giant"],
                "sampler": "uniform",
            },
            "space": {"name": "efficientnet_mini", "r": [0.35, 0.7], "band": [0.08, 0.5]},
            "recipe": {"name": "short", "epochs": 2, "lr": 0.1},
            "data": {"name": "petals", "train": 96},
            "run": {"executor": "inline", "max_failures": 1},
            "scaling": {"cpus": 1.0, "workers": 1},
            "execution": {"precision": "auto"},
            "storage": {"path": "searches"},
            "tracking": {"uri": None},
        }
    )
)
def test_configurations(values: Any) -> None:
    """A configuration comes from the user, so its space is imported, but not in this test."""
    if EVIL in json.dumps(values):
        return
    with succeeds_or_fails_in_one_line():
        validate(values if isinstance(values, dict) else {"search": values}, "odd.toml")


@fuzzed
@given(
    raw=st.binary(max_size=200) | st.text(max_size=100).map(str.encode),
    setting=st.text(max_size=40),
)
@example(raw=b"[search]\ntrials = 1" + b"0" * 5000, setting="search.trials=1" + "0" * 5000)
@example(raw=b"a" + b".a" * 50_000 + b" = 1", setting="search.finals=" + "[" * 100_000)
@example(raw=b"[search]\nfinals = " + b"[" * 100_000, setting="search.seed=nan")
@example(raw=b'[storage]\npath = "s3://user:word@bucket"', setting="run.trial_timeout=inf")
def test_configuration_files(tmp_path: Path, raw: bytes, setting: str) -> None:
    (tmp_path / "odd.toml").write_bytes(raw)
    with succeeds_or_fails_in_one_line():
        load_config(tmp_path / "odd.toml")
    if EVIL not in setting:
        with succeeds_or_fails_in_one_line():
            load_config(preset="demo", settings=[*TINY, setting])
        with succeeds_or_fails_in_one_line():
            load_config(preset="demo", settings=[f"search.trials={setting}"])


texts = (
    st.sampled_from([value for value in HOSTILE if isinstance(value, str)])
    | st.text(max_size=30)
    | st.just("true")
)


@fuzzed
@given(
    st.dictionaries(
        st.sampled_from(
            (
                "frontier",
                "pareto_rank",
                "tinynet.id",
                "tinynet.search",
                "tinynet.key",
                "tinynet.kind",
                "label",
            )
        ),
        texts,
        max_size=5,
    ),
    st.dictionaries(
        st.sampled_from(
            (
                "r",
                "d",
                "w",
                "c",
                "macs",
                "params",
                "resolution",
                "activation_bytes",
                "top1",
                "top1_ema",
            )
        ),
        st.floats(),
        max_size=9,
    ),
)
def test_mlflow_rows(tags: dict[str, str], metrics: dict[str, float]) -> None:
    """A run's tags and metrics, which anyone with the server's address can set."""
    import pandas as pd

    from tinynet_search.cli.network_table import frontier_table
    from tinynet_search.mlflow_client.reading import RunRecord
    from tinynet_search.tracking import queries as tracking

    run = RunRecord("r" * 32, tags.get("label", "x"), "RUNNING", "1", 0, metrics, tags)
    with succeeds_or_fails_in_one_line():
        row = tracking.model_row(run)
        if row is None:
            return
        json.dumps(asdict(row), allow_nan=False)
        kinds = dict.fromkeys(tracking.INTS[:3], "int64") | dict.fromkeys(
            ("pareto_rank", "activation_bytes"), "Int64"
        )
        pd.DataFrame([asdict(row)]).astype(kinds)
        assert "\x1b" not in frontier_table([row])


@fuzzed
@given(hostile)
def test_trial_descriptions(value: Any) -> None:
    """A name from a file never becomes a path or a module."""
    with succeeds_or_fails_in_one_line():
        open_folder("/nonexistent").sub(str(value))
    with succeeds_or_fails_in_one_line():
        suggest_rdw(0.25, formula=str(value) if EVIL not in str(value) else "published")
    assert TrialSpec.__dataclass_fields__.keys() >= {"space", "rdw"}
