"""Every reader of files and of MLflow, on documents that somebody else has changed: read right, or refused in one line."""

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
from tinynet_search.plan.candidates import candidates_of, final_candidates, grow
from tinynet_search.plan.plan import agreed_plan, too_large
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.lease import Holder, read_lease
from tinynet_search.store.train_job import TrainJob, ended_or_begun, read_job
from tinynet_search.tracking import projection
from trainables.checkpoint import newest_checkpoint
from trainables.result import EpochRecord
from trainables.spec import Alone, TrialSpec
from trainables.storage.folder import open_folder
from trainables.trial import run_trial

# A hang guard: every case takes milliseconds.
LONGEST = 10.0
fuzzed = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[
        Phase.explicit,
        Phase.generate,
    ],  # shrinking takes minutes, and the first case says enough
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.function_scoped_fixture,
        HealthCheck.data_too_large,
    ],
)


@contextmanager
def one_line() -> Iterator[None]:
    """Whatever is inside succeeds, or refuses in one line, and soon; nothing that a file names was imported."""
    started = time.process_time()
    try:
        yield
    except (RequestError, TrackingError) as error:
        said = str(error)
        assert said
        assert "\n" not in said
        assert "\x1b" not in said
        assert len(said) < 2500
    assert time.process_time() - started < LONGEST
    assert EVIL not in sys.modules


class Place:
    """A search, a job and a half-trained trial, whole; each case has one file of them changed and put back."""

    def __init__(self, storage: Path) -> None:
        self.storage = storage
        self.store = SearchStore(str(storage / "demo"))
        config = tiny_config(storage, "recipe.epochs=1")
        self.plan = agreed_plan(self.store, config.resolve())
        candidate = min(grow(self.plan, self.store, 6, 1), key=lambda c: c.network.macs)
        spec = candidate.spec
        self.run, self.spec = spec.run, spec

        class Stops(Alone):
            def report(self, record: EpochRecord) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_trial(spec, self.store.url, Stops())
        half = storage / "half" / "trials" / spec.run
        shutil.copytree(storage / "demo" / "trials" / spec.run, half)
        self.half = half
        run_trial(spec, self.store.url, Alone())
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
            "job.json", TrainJob("job", "tinynet_e", spec, 96, 48, 1_700_000_000).to_json()
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
            "progress": self.half / "epoch-0001" / "progress.json",
            "formula": self.storage / "formula.json",
        }[name]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    evil = tmp_path_factory.mktemp("evil")
    (evil / f"{EVIL}.py").write_text("Space = print\n")
    sys.path.append(str(evil))
    yield Place(tmp_path_factory.mktemp("fuzzed"))
    sys.path.remove(str(evil))


def _plan(place: Place) -> None:
    plan = place.store.plan()
    assert plan is not None
    projection.search_key(plan)
    projection.search_tags(plan)
    projection.search_params(plan)
    projection.created_ms(plan)
    projection.experiment_name(plan.space.name)
    too_large(plan.data.largest_pixels, [64])
    candidates_of(plan, place.store, 1)


def _candidates(place: Place) -> None:
    for candidate in candidates_of(place.plan, place.store, 1):
        projection.trial_params(candidate)
        projection.figure_points(candidate, 0)


def _result(place: Place) -> None:
    result = place.store.result(place.run)
    assert result is not None
    SearchStore(place.store.url).summary(place.run)
    projection.epoch_points(result.epochs)
    projection.result_points(result)
    projection.result_tags(result)
    projection.begun_ms(result.epochs, result)
    projection.ended_ms(result)


def _frontier(place: Place) -> None:
    for row in place.store.frontier_rows() or []:
        assert row.id
        assert row.pareto_rank > 0
        assert all(0 < value < 100 for value in row.rdw)


def _finals(place: Place) -> None:
    assert all(row.label.isprintable() and row.run for row in place.store.final_rows())
    for candidate in final_candidates(place.store):
        assert len(candidate.run) > 12


def _job(place: Place) -> None:
    from tinynet_search.tracking.job_publisher import job_sheet

    job = read_job(place.job)
    assert job is not None
    job_sheet(job, [])
    ended_or_begun(place.job, job)


def _formula(place: Place) -> None:
    formula = TinyFormula.load(place.file("formula"))
    if formula.usable:
        formula.predict(0.25)
        suggest_rdw(0.25, formula=formula)


def _lease(place: Place) -> None:
    assert read_lease(place.store.folder) is not None


def _progress(place: Place) -> None:
    store = SearchStore(str(place.storage / "half"))
    projection.epoch_points(store.progress(place.run))
    newest_checkpoint(open_folder(place.half), place.run)


def _config(place: Place) -> None:
    subject = find_subject(str(place.file("config").parent))
    assert "/" not in subject.name


def _export(place: Place) -> None:
    subject = find_subject(str(place.file("export").parent))
    assert "/" not in subject.name


READERS: dict[str, Callable[[Place], None]] = {
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
def test_files(place: Place, name: str) -> None:
    file = place.file(name)
    whole = file.read_bytes()
    READERS[name](place)

    @fuzzed
    @given(files(whole))
    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with one_line():
            READERS[name](place)

    try:
        check()
    finally:
        file.write_bytes(whole)
    READERS[name](place)


@pytest.mark.parametrize("name", READERS)
def test_other_things_in_the_place_of_files(place: Place, name: str) -> None:
    """A folder, a link to nowhere or to itself, an endless device, and a file of four terabytes."""
    file = place.file(name)
    whole = file.read_bytes()

    def folder() -> None:
        file.mkdir()

    def sparse() -> None:
        with file.open("wb") as opened:
            opened.truncate(2**42)

    links = [
        lambda target=target: file.symlink_to(target)
        for target in ("/dev/zero", "nowhere", file.name, "/etc/hostname")
    ]
    for make in (folder, sparse, *links):
        file.unlink()
        make()
        try:
            with one_line():
                _storage_line(READERS[name], place)
        finally:
            file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
            file.write_bytes(whole)


def _storage_line(reader: Callable[[Place], None], place: Place) -> None:
    """As the command does: storage that fails is one line, too; a file that is not there is no fault of a reader."""
    from trainables.storage.folder import StorageError

    try:
        reader(place)
    except StorageError as error:
        raise RequestError(str(error)) from error
    except AssertionError:
        assert not any(place.file(name).exists() for name in READERS if READERS[name] is reader)


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
    """The configuration is the user's own: a space that it names is imported, but not in this test."""
    if EVIL in json.dumps(values):
        return
    with one_line():
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
    with one_line():
        load_config(tmp_path / "odd.toml")
    if EVIL not in setting:
        with one_line():
            load_config(preset="demo", settings=[*TINY, setting])
        with one_line():
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
    """A run's tags and metrics, which anybody with the server's address may set."""
    import pandas as pd

    from tinynet_search.cli.network_table import frontier_table
    from tinynet_search.mlflow_client.reading import Found
    from tinynet_search.tracking import queries as tracking

    run = Found("r" * 32, tags.get("label", "x"), "RUNNING", "1", metrics, tags)
    with one_line():
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
    with one_line():
        open_folder("/nonexistent").sub(str(value))
    with one_line():
        suggest_rdw(0.25, formula=str(value) if EVIL not in str(value) else "published")
    assert TrialSpec.__dataclass_fields__.keys() >= {"space", "rdw"}
