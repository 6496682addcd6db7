"""Tests of ``tinynet train``: jobs in this process and on Ray, resumed jobs, and evaluations."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from search_spaces import RequestError, get_space
from tests.data.test_imagefolder import make_tree
from tests.tracking.helpers import SQLALCHEMY, free_port, tracking_environment
from tests.train.helpers import (
    LABEL,
    MINI,
    NETWORK,
    RDW,
    JobRuns,
    arguments,
    assert_rejected,
    call,
    run_and_signal,
    train_json,
)
from tinynet_search import suggest_rdw
from tinynet_search.export import load_exported
from tinynet_search.export.subject import read_subject
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.train_job import load_or_create_job, read_job
from tinynet_search.train.request import TrainRequest, complete_config, make_job
from tinynet_search.train.run import _resume_position, advice
from trainables.storage.folder import LocalFolder
from trainables.trial import write_failure
from trainables.trial_folder import checkpoints

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)

CURVES = ("train_loss", "lr", "images_per_s", "epoch_seconds", "eta_s")
SCORES = tuple(
    f"{name}{which}" for name in ("top1", "top5", "val_loss") for which in ("", "_raw", "_ema")
)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    with tracking_environment():
        yield


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder whose database all tests share, because creating one takes seconds."""
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def uri(storage: Path) -> str:
    return f"sqlite:///{storage}/mlflow.db"


@pytest.fixture(scope="module")
def done(storage: Path) -> dict[str, Any]:
    """The summary of a finished job."""
    import contextlib
    import io

    from tinynet_search.cli.main import run

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run([*arguments(storage), "--json"]) == 0
    return json.loads(out.getvalue())


def test_job_is_tracked_in_mlflow(done: dict[str, Any], storage: Path, uri: str) -> None:
    result = json.loads((storage / "tiny" / "results" / f"{done['run']}.json").read_text())
    assert (done["status"], done["trained_now"], done["metrics"]) == (
        "finished",
        True,
        result["metrics"],
    )
    runs = JobRuns(uri)
    run = runs.only()
    assert (run.info.status, run.info.run_name) == ("FINISHED", "tiny · 2 epochs")
    for metric in (*CURVES, *SCORES):
        name = {"epoch_seconds": "seconds"}.get(metric, metric)
        points = runs.steps(metric)
        assert [(step, ms) for step, ms, _ in points] == [
            (e["epoch"], e["ts"]) for e in result["epochs"]
        ]
        if metric != "eta_s":
            assert [value for _, _, value in points] == [e[name] for e in result["epochs"]]
    first = result["epochs"][0]["seconds"]
    assert [value for _, _, value in runs.steps("eta_s")] == [pytest.approx(first, abs=0.06), 0.0]
    network = get_space(MINI).network((0.4, 0.4, 0.5), 24)
    figures = {
        "r": 0.4,
        "d": 0.4,
        "w": 0.5,
        "c": network.c,
        "macs": network.macs,
        "params": network.params,
    }
    figures |= {"resolution": network.resolution, "activation_bytes": network.activation_bytes}
    assert {key: run.data.metrics[key] for key in figures} == figures
    assert {key: float(run.data.params[key]) for key in figures} == figures
    assert run.data.metrics["final_top1"] == result["metrics"]["top1"]
    assert run.data.metrics["final_top5"] == result["metrics"]["top5"]
    assert (
        run.data.params["recipe"],
        run.data.params["recipe.batch"],
        run.data.params["data.train"],
    ) == ("short", "32", "96")
    assert float(run.data.params["peak_lr"]) == done["recipe"]["lr"]
    assert {key: run.data.params[key] for key in ("workers", "precision")} == {
        "workers": "1",
        "precision": "auto",
    }
    assert run.data.tags["tinynet.network"] == LABEL
    assert (
        run.data.tags["tinynet.data"]
        == run.data.params["data.fingerprint"]
        == "petals-v1-seed0-96-48"
    )
    names = [item.path for item in runs.client.list_artifacts(run.info.run_id, "model")]
    assert sorted(names) == ["model/config.json", "model/weights.safetensors"]
    file = runs.client.download_artifacts(run.info.run_id, "class_names.json")
    job = json.loads((storage / "tiny" / "job.json").read_text())
    assert json.loads(Path(file).read_text()) == job["images"]["class_names"]
    assert not [key for key in run.data.params if "class_names" in key]


def test_finished_job_is_not_trained_again(
    capsys: pytest.CaptureFixture[str],
    done: dict[str, Any],
    storage: Path,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainables.trial._trained", pytest.fail)
    before = JobRuns(uri).only().to_dictionary()
    again = train_json(capsys, *arguments(storage))
    assert again == done | {"trained_now": False}
    assert JobRuns(uri).only().to_dictionary() == before
    code, out, err = call(capsys, *arguments(storage))
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split()[:3] == ["network", "pixels", "FLOPs"]
    assert f"{done['metrics']['top1']:.2f}" in out and done["weights"] in out
    assert f"server --backend-store-uri {uri} --host" in out


def test_registered_model_version_loads_the_trained_network(
    done: dict[str, Any], uri: str, tmp_path: Path
) -> None:
    import mlflow
    from mlflow.artifacts import download_artifacts

    mlflow.set_tracking_uri(uri)
    try:
        folder = download_artifacts(f"models:/{LABEL}@champion", dst_path=str(tmp_path))
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    network, module = load_exported(folder)
    expected = load_exported(done["weights"])
    assert network == expected[0] == get_space(MINI).network((0.4, 0.4, 0.5), 24)
    images = torch.randn(2, 3, network.resolution, network.resolution)
    with torch.inference_mode():
        assert torch.equal(module(images), expected[1](images))
    runs = JobRuns(uri)
    version = runs.client.get_model_version_by_alias(LABEL, "champion")
    tags = version.tags
    assert (tags["data"], tags["run_id"], version.run_id) == (
        "petals-v1-seed0-96-48",
        *2 * (runs.only().info.run_id,),
    )
    assert float(tags["top1"]) == pytest.approx(done["metrics"]["top1"], abs=1e-4)


def test_champion_moves_only_to_better_weights_on_the_same_data_or_by_promotion(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], storage: Path, uri: str
) -> None:
    more = ["--set", "recipe.lr=0.005"]
    better = train_json(capsys, *arguments(storage, "--name", "better", *more, epochs=8))
    assert better["metrics"]["top1"] > done["metrics"]["top1"]
    client = JobRuns(uri).client
    champion = lambda: client.get_model_version_by_alias(LABEL, "champion").tags["run_id"]  # noqa: E731
    best = JobRuns(uri, "better").only().info.run_id
    assert champion() == best
    worse = train_json(capsys, *arguments(storage, "--name", "worse", "--seed", "7"))
    assert worse["metrics"]["top1"] < better["metrics"]["top1"]
    assert champion() == best
    train_json(capsys, *arguments(storage, "--name", "elsewhere", "--set", "data.val=24"))
    assert champion() == best
    assert len(client.search_model_versions(f"name = '{LABEL}'")) == 4

    sync = ["sync", "--storage", str(storage), "--promote"]
    assert call(capsys, *sync) == (
        2,
        "",
        "tinynet: --promote needs --search: pass the name of the search or job\n",
    )
    code, out, _ = call(capsys, *sync, "--search", "elsewhere")
    promoted = JobRuns(uri, "elsewhere").only().info.run_id
    assert code == 0 and champion() == promoted
    version = client.get_model_version_by_alias(LABEL, "champion").version
    assert out.splitlines()[1] == f"elsewhere: models:/{LABEL}/{version} is the champion"
    # Neither sync nor a run of a finished job moves it again.
    assert call(capsys, "sync", "--storage", str(storage))[0] == 0
    train_json(capsys, *arguments(storage, "--name", "better", *more, epochs=8))
    assert champion() == promoted
    promote = ["--set", "tracking.promote=true"]
    train_json(capsys, *arguments(storage, "--name", "better", *more, *promote, epochs=8))
    assert champion() == best


def test_different_number_of_epochs_is_a_separate_run(
    capsys: pytest.CaptureFixture[str], storage: Path, uri: str
) -> None:
    both = [
        train_json(capsys, *arguments(storage, "--name", "grown", epochs=epochs))
        for epochs in (1, 2)
    ]
    assert [summary["epochs"] for summary in both] == [1, 2]
    code, _, err = call(capsys, *arguments(storage, "--name", "grown", epochs=3))
    assert (code, err.splitlines()[2]) == (
        0,
        "training for 3 epochs starts from scratch; existing results are kept (epochs: 1, 2)",
    )
    job = train_json(capsys, "train", "--eval-only", "--weights", str(storage / "grown"))
    assert job["weights"].endswith("-e3")
    runs = {run.info.run_name: run for run in JobRuns(uri, "grown").runs}
    assert set(runs) == {"grown · 1 epoch", "grown · 2 epochs", "grown · 3 epochs"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}


def test_stopped_and_killed_job_resumes(
    capsys: pytest.CaptureFixture[str], storage: Path, uri: str
) -> None:
    """After SIGTERM and SIGKILL the job has one run, each epoch once, and unchanged numbers."""
    args = arguments(storage, "--name", "cut", epochs=24)
    folder = storage / "cut" / "trials"

    def beyond(epoch: int) -> bool:
        return any(
            int(path.name[6:10]) >= epoch
            for path in folder.glob("*/epoch-*")
            if (path / "progress.json").exists()
        )

    for sent, code, epoch in ((signal.SIGTERM, 143, 2), (signal.SIGKILL, -9, 6)):
        ended, out, err = run_and_signal(args, sent, lambda epoch=epoch: beyond(epoch))
        assert (ended, out) == (code, ""), err
        assert "Traceback" not in err
        if code > 0:
            assert err.splitlines()[-1] == "tinynet: interrupted: run the same command to continue"
            assert JobRuns(uri, "cut").only().info.status == "KILLED"
    check_checkpoint(capsys, next(folder.iterdir()))
    resumed = train_json(capsys, *args)
    assert resumed["epochs"] == 24
    runs = JobRuns(uri, "cut")
    assert runs.only().info.status == "FINISHED"
    for metric in ("top1", "train_loss", "eta_s"):
        assert [step for step, _, _ in runs.steps(metric)] == list(range(1, 25))
    undisturbed = train_json(capsys, *arguments(storage, "--name", "undisturbed", epochs=24))
    times = ("ts", "seconds", "images_per_s")
    metrics = [
        {key: value for key, value in each["metrics"].items() if key not in times}
        for each in (resumed, undisturbed)
    ]
    assert metrics[0] == metrics[1]


def check_checkpoint(capsys: pytest.CaptureFixture[str], trial: Path) -> None:
    """Evaluating a checkpoint or a trial's folder reproduces the scores of its last epoch."""
    newest = checkpoints(LocalFolder(trial))[-1]
    record = json.loads((trial / newest / "progress.json").read_text())["epochs"][-1]
    for folder in (trial, trial / newest, trial.parent.parent):
        figures = train_json(capsys, "train", "--eval-only", "--weights", str(folder))
        assert (figures["top1"], figures["top5"]) == (record["top1"], record["top5"])
        assert (figures["checkpoint"], figures["set"]) == (newest, "EMA")
    weights = trial / newest / "weights.safetensors"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    assert_rejected(capsys, "is damaged", "train", "--eval-only", "--weights", str(trial / newest))
    assert (
        train_json(capsys, "train", "--eval-only", "--weights", str(trial))["checkpoint"]
        == checkpoints(LocalFolder(trial))[-2]
    )
    weights.write_bytes(intact)


def test_failure_is_recorded_as_result(
    capsys: pytest.CaptureFixture[str], storage: Path, uri: str
) -> None:
    diverging = [
        part
        for text in ("recipe.lr=1e30", "recipe.optimizer=sgd", "recipe.warmup_epochs=0")
        for part in ("--set", text)
    ]
    args = arguments(storage, "--name", "wild", *diverging)
    code, out, err = call(capsys, *args)
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    assert line.startswith("tinynet: job wild failed: diverged: loss") and line.endswith(
        "; try a lower recipe.lr under another --name"
    )
    assert call(capsys, *args) == (1, "", f"{line}\n")
    run = JobRuns(uri, "wild").only()
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "diverged")
    assert "final_top1" not in run.data.metrics


def test_unreachable_server_warns_once_and_sync_sends_the_rest(
    capsys: pytest.CaptureFixture[str], storage: Path, uri: str
) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    code, out, err = call(
        capsys, *arguments(storage, "--name", "alone", "--tracking", address), "--json"
    )
    result = json.loads(out)
    assert (code, result["status"], result["link"]) == (0, "finished", None)
    assert err.count("Connection refused") == 1
    assert err.splitlines()[-1].endswith(
        f"tinynet sync --search alone --storage {storage} --tracking {address}"
    )
    assert JobRuns(uri, "alone").runs == []
    code, out, err = call(capsys, *arguments(storage, "--name", "alone", "--tracking", address))
    assert (code, err.count("\n")) == (0, 1)
    assert "Connection refused" in err and "resuming" not in err
    for epochs in (2, 0):
        code, out, err = call(
            capsys, "sync", "--search", "alone", "--storage", str(storage), "--json"
        )
        assert (code, json.loads(out)["alone"]["epochs"]) == (0, epochs), err
    assert JobRuns(uri, "alone").only().info.status == "FINISHED"
    assert train_json(capsys, *arguments(storage, "--name", "alone"))["link"] is not None


def test_evaluation_reproduces_the_scores_of_a_job(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], tmp_path: Path, uri: str
) -> None:
    before = len(JobRuns(uri, kind="evaluation").runs)
    figures = train_json(capsys, "train", "--eval-only", "--weights", done["weights"])
    assert [figures[key] for key in ("top1", "top5", "images")] == [
        done["metrics"]["top1"],
        done["metrics"]["top5"],
        48,
    ]
    assert figures["loss"] == pytest.approx(done["metrics"]["val_loss"])
    assert (figures["network"]["name"], figures["preprocessing"]["assumed"]) == (LABEL, False)
    file = tmp_path / "own.pth"
    torch.save(load_exported(done["weights"])[1].state_dict(), file)
    from_file = train_json(
        capsys,
        "train",
        *NETWORK,
        "--eval-only",
        "--weights",
        str(file),
        "--data",
        "petals",
        *few_images(),
    )
    assert [from_file[key] for key in ("top1", "loss")] == [
        figures["top1"],
        pytest.approx(figures["loss"]),
    ]
    assert from_file["preprocessing"]["assumed"] is True
    code, out, err = call(capsys, "train", "--eval-only", "--weights", done["weights"])
    assert (code, err) == (0, "")
    assert f"{figures['top1']:.2f}" in out
    assert len(JobRuns(uri, kind="evaluation").runs) == before


def few_images() -> list[str]:
    return ["--set", "data.train=96", "--set", "data.val=48"]


def test_evaluation_is_tracked_with_the_tracking_option(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], uri: str
) -> None:
    from mlflow import MlflowClient

    args = ("train", "--eval-only", "--weights", done["weights"], "--tracking", uri, "--json")
    call(capsys, *args)
    code, out, err = call(capsys, *args)
    assert (code, err.count("/#/experiments/")) == (0, 1)
    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    (run,) = client.search_runs(experiments, "tags.`tinynet.kind` = 'evaluation'")
    assert (run.info.status, run.data.metrics["top1"]) == ("FINISHED", json.loads(out)["top1"])


def test_published_weights_use_timm_preprocessing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean, standard deviation and crop of timm are applied to weights that mock the hub's."""
    import timm
    from safetensors.torch import save_file
    from timm.models import get_pretrained_cfg

    from search_spaces.weights import Source

    torch.manual_seed(0)
    module = timm.create_model("tinynet_e", num_classes=2).eval()
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    published = get_pretrained_cfg("tinynet_e.in1k")
    assert published is not None
    published.num_classes, published.mean, published.std, published.crop_pct = (
        2,
        (0.5,) * 3,
        (0.5,) * 3,
        0.9,
    )
    source = Source(tmp_path / "model.safetensors", "tinynet_e.in1k", published)
    monkeypatch.setattr("tinynet_search.train.evaluate.locate", lambda text: source)
    tree = make_tree(tmp_path / "tree")
    figures = train_json(
        capsys, "train", "--eval-only", "--weights", "tinynet_e.in1k", "--data", str(tree)
    )
    assert (figures["network"]["name"], figures["checkpoint"]) == ("tinynet_e", None)
    assert (figures["preprocessing"]["crop_ratio"], figures["preprocessing"]["mean"]) == (
        0.9,
        [0.5, 0.5, 0.5],
    )
    correct, images = timm_scores(module, tree, published)
    assert (figures["top1"], figures["images"]) == (pytest.approx(100 * correct / images), images)


def timm_scores(module: torch.nn.Module, tree: Path, published: Any) -> tuple[int, int]:
    """(correct predictions, images) with timm's own transform."""
    from timm.data.transforms_factory import create_transform

    size = (3, 106, 106)
    step: Any = create_transform(
        size,
        mean=published.mean,
        std=published.std,
        crop_pct=published.crop_pct,
        interpolation="bicubic",
    )
    correct = images = 0
    for label, name in enumerate(("cat", "dog")):
        for file in sorted((tree / "val" / name).iterdir()):
            with torch.inference_mode():
                batch = step(Image.open(file).convert("RGB"))[None]
                correct += int(module(batch).argmax() == label)
            images += 1
    return correct, images


@pytest.mark.parametrize(
    ("words", "args"),
    [
        ("no network to train", ["--data", "petals"]),
        ("more than one network", ["tinynet_e", "--c", "0.2", "--data", "petals"]),
        ("did you mean 'tinynet_e'", ["tinynet_f", "--data", "petals"]),
        ("--space requires --rdw or --c", ["tinynet_e", "--space", MINI, "--data", "petals"]),
        ("pass --space", ["--rdw", RDW, "--data", "petals"]),
        ("is not a valid r,d,w", ["--rdw", "1,2", "--space", MINI, "--data", "petals"]),
        ("unknown space", ["--rdw", RDW, "--space", "mini", "--data", "petals"]),
        ("require --c", ["tinynet_e", "--formula", "published", "--data", "petals"]),
        ("no data to train on", ["tinynet_e"]),
        ("'nowhere' does not exist", ["tinynet_e", "--data", "nowhere"]),
        ("configuration 'nowhere.toml' does not exist", ["tinynet_e", "nowhere.toml"]),
        ("configuration 'nowhere.toml' does not exist", [*NETWORK, "nowhere.toml"]),
        ("--extrapolate", ["--c", "0.001", "--data", "petals"]),
        ("unknown recipe 'resent'", ["tinynet_e", "--data", "petals", "--recipe", "resent"]),
        ("expected section.key=value", ["tinynet_e", "--data", "petals", "--set", "epochs=3"]),
        (
            "recipe setting 'epoch': did you mean 'epochs'",
            ["tinynet_e", "--data", "petals", "--set", "recipe.epoch=3"],
        ),
        ("epochs must be", ["tinynet_e", "--data", "petals", "--epochs", "0"]),
        (
            "--name 'a/b' is not a valid job name: use at most 64",
            ["tinynet_e", "--data", "petals", "--name", "a/b"],
        ),
        ("--name '' is empty", ["tinynet_e", "--data", "petals", "--name", ""]),
        ("--data '' is empty", ["tinynet_e", "--data", ""]),
        (
            "--weights '' is empty",
            ["tinynet_e", "--data", "petals", "--eval-only", "--weights", ""],
        ),
        (
            "'foo://x' is not a URI that MLflow supports",
            ["tinynet_e", "--data", "petals", "--tracking", "foo://x"],
        ),
        ("torch finds no GPU", ["tinynet_e", "--data", "petals", "--set", "scaling.gpus=1"]),
        (
            "no Ray cluster responds",
            ["tinynet_e", "--data", "petals", "--set", "run.address='127.0.0.1:1'"],
        ),
        (
            "fewer than one batch",
            ["tinynet_e", "--data", "petals", "--set", "data.train=24", "--recipe", "efficientnet"],
        ),
        ("set a divisor", ["tinynet_e", "--data", "petals", "--set", "scaling.workers=2"]),
        (
            'requires run.executor = "ray_train"',
            [
                "tinynet_e",
                "--data",
                "petals",
                "--set",
                "scaling.workers=2",
                "--set",
                "run.executor=inline",
            ],
        ),
        ("go together", ["tinynet_e", "--data", "petals", "--eval-only"]),
        ("go together", ["tinynet_e", "--data", "petals", "--weights", "x.pth"]),
        (
            "'x.pth' does not exist",
            ["tinynet_e", "--data", "petals", "--eval-only", "--weights", "x.pth"],
        ),
        ("'x.pth' does not exist", ["--data", "petals", "--eval-only", "--weights", "x.pth"]),
        (
            "did you mean 'tinynet_e",
            ["--data", "petals", "--eval-only", "--weights", "tinynet_e.in1"],
        ),
        (
            "timm's mixnet_s, which tinynet networks does not list",
            ["--data", "petals", "--eval-only", "--weights", "mixnet_s"],
        ),
        ("contains no weights", ["--data", "petals", "--eval-only", "--weights", "."]),
    ],
)
def test_invalid_requests_print_one_line_and_exit_with_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    args: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    # Hide the cluster of other tests.
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    assert_rejected(capsys, words, "train", *args)
    assert list(tmp_path.iterdir()) == []


def test_different_training_under_the_same_name_is_rejected(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], storage: Path
) -> None:
    result = (storage / "tiny" / "results" / f"{done['run']}.json").read_bytes()
    for words, more in (
        ("recipe.lr was 0.002, now 0.1", ["--set", "recipe.lr=0.1"]),
        ("seed was 0, now 3", ["--seed", "3"]),
        ("data was 'petals-v1-seed0-96-48', now 'petals-v1-seed0-96-24'", ["--set", "data.val=24"]),
    ):
        assert_rejected(capsys, words, *arguments(storage, *more))
    assert (storage / "tiny" / "results" / f"{done['run']}.json").read_bytes() == result


def test_job_without_training_is_replaced(tmp_path: Path) -> None:
    old, new, scaled = (
        make_job(
            TrainRequest(
                "tinynet_e",
                data="petals",
                recipe="efficientnet",
                seed=seed,
                settings=[f"recipe.lr={rate}"],
            )
        )[1]
        for seed, rate in ((1, 0.05), (2, 0.05), (2, 0.06))
    )
    store = SearchStore(str(tmp_path / "x"))
    load_or_create_job(store, old)
    (tmp_path / "x" / "trials").mkdir()
    assert load_or_create_job(store, new).spec == new.spec
    assert read_job(store) == new
    (tmp_path / "x" / "trials" / new.spec.run).mkdir()
    with pytest.raises(RequestError, match="seed was 2, now 1"):
        load_or_create_job(store, old)
    with pytest.raises(RequestError, match=r"recipe.lr \(scaled to the batch\) was 0.05, now 0.06"):
        load_or_create_job(store, scaled)


def test_job_runs_in_one_process_at_a_time(
    capsys: pytest.CaptureFixture[str], storage: Path, done: dict[str, Any]
) -> None:
    code = """
import sys
from tinynet_search.store.lease import Lease
from trainables.storage.folder import open_folder
with Lease(open_folder(sys.argv[1]), "job", "train"):
    print(flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code, str(storage / "tiny")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert_rejected(capsys, f"job {storage}/tiny is held by", *arguments(storage, epochs=3))
        assert train_json(capsys, *arguments(storage))["trained_now"] is False
        process.communicate()


def test_export_keeps_the_name_of_the_network(done: dict[str, Any]) -> None:
    assert read_subject(Path(done["weights"])).name == LABEL


def test_data_packed_for_fewer_pixels_warns(
    capsys: pytest.CaptureFixture[str],
    done: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainables.data.petals.arrays.ArrayData.largest_pixels", 8, raising=False)
    code, out, err = call(
        capsys,
        *arguments(tmp_path, "--tracking", f"sqlite:///{Path(done['directory']).parent}/mlflow.db"),
        "--json",
    )
    assert code == 0
    assert (
        "warning: the data were packed for up to 8 pixels" in err
        and json.loads(out)["warning"] in err
    )
    code, out, err = call(capsys, "train", "--eval-only", "--weights", done["weights"], "--json")
    assert (code, err) == (0, f"warning: {json.loads(out)['warning']}\n")


@pytest.mark.quick
def test_advice_by_failure_reason(tmp_path: Path) -> None:
    _, job = make_job(TrainRequest("tinynet_e", data="petals"))
    store = SearchStore(str(tmp_path))
    for reason, words in (
        ("unreadable data", "fix the file, or remove it and train under another --name"),
        ("out of memory", f"or remove {tmp_path}/results/{job.spec.run}.json to try again"),
        ("error", f"remove {tmp_path}/results/{job.spec.run}.json to try again"),
    ):
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        assert write_failure(job.spec, store.folder, reason, "detail")
        result = store.result(job.spec.run)
        assert result is not None and words in advice(job, store, result)


@pytest.mark.quick
def test_resume_position_needs_a_complete_checkpoint(tmp_path: Path) -> None:
    _, job = make_job(TrainRequest("tinynet_e", data="petals"))
    store = SearchStore(str(tmp_path))
    folder = tmp_path / job.spec.folder / "epoch-0001-step-000010"
    folder.mkdir(parents=True)
    assert _resume_position(store, job) is None
    (folder / "progress.json").write_text('{"epochs": [{}]}')
    assert _resume_position(store, job) == "epoch 1, step 10"


def test_searches_and_jobs_do_not_share_a_directory(
    capsys: pytest.CaptureFixture[str], storage: Path, tmp_path: Path, done: dict[str, Any]
) -> None:
    assert_rejected(
        capsys,
        "is a training job",
        "search",
        "--preset",
        "demo",
        "--storage",
        str(storage),
        "--set",
        "search.name=tiny",
    )
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "plan.json").write_text("{}")
    assert_rejected(
        capsys,
        "is a search: pass a different --name for the training job",
        *arguments(tmp_path, "--name", "taken"),
    )
    (tmp_path / "broken").mkdir()
    for text in ("{", "[]", '{"schema": 9}', json.dumps({"schema": 1, "job": "x", "trial": {}})):
        (tmp_path / "broken" / "job.json").write_text(text)
        assert_rejected(capsys, "is damaged", *arguments(tmp_path, "--name", "broken"))
        assert_rejected(
            capsys, "is damaged", "sync", "--search", "broken", "--storage", str(tmp_path)
        )


def test_weights_and_data_with_different_classes_are_rejected(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], tmp_path: Path
) -> None:
    tree = str(make_tree(tmp_path / "tree"))
    assert_rejected(
        capsys,
        "class 'cat' of the data is not a class of weights",
        "train",
        "--eval-only",
        "--weights",
        done["weights"],
        "--data",
        tree,
    )
    file = tmp_path / "own.pth"
    torch.save(load_exported(done["weights"])[1].state_dict(), file)
    words = "are for 24 classes, but the data has 2: pass data with 24 classes"
    assert_rejected(
        capsys, words, "train", *NETWORK, "--eval-only", "--weights", str(file), "--data", tree
    )
    assert_rejected(
        capsys,
        f"the network of {str(file)!r} is unknown",
        "train",
        "--eval-only",
        "--weights",
        str(file),
        "--data",
        tree,
    )
    other = (
        "train",
        "--rdw",
        "0.4,0.4,0.9",
        "--space",
        MINI,
        "--eval-only",
        "--weights",
        done["weights"],
    )
    assert_rejected(capsys, "omit the network", *other)


def test_default_recipe_depends_on_the_space_and_the_data(tmp_path: Path) -> None:
    def chosen(space: str, name: str, classes: int, **values: Any) -> tuple[str, int]:
        values = {"data": {"name": name}, **values}
        config = complete_config(values, space, TrainRequest(), classes=classes)
        recipe = config.resolve().recipe
        return recipe.name, recipe.epochs

    assert chosen("efficientnet_b0", "petals", 24) == ("short", 10)
    assert chosen("efficientnet_b0", "imagenet", 100) == ("efficientnet", 100)
    assert chosen("efficientnet_b0", "imagenet", 1000) == ("efficientnet", 450)
    assert chosen("ghostnet_a", "imagenet", 1000) == ("efficientnet", 450)
    assert chosen("resnet50", "imagenet", 1000) == ("resnet", 90)
    assert chosen("efficientnet_b0", "imagenet", 1000, recipe={"epochs": 7}) == ("efficientnet", 7)
    assert chosen("efficientnet_b0", "imagenet", 1000, recipe={"name": "resnet"}) == ("resnet", 90)
    tree = make_tree(tmp_path / "pets")
    _, job = make_job(
        TrainRequest(
            "tinynet_e", data=str(tree), settings=["recipe.batch=8", "recipe.micro_batch=8"]
        )
    )
    assert (job.name, job.spec.num_classes, job.spec.recipe.name) == (
        "tinynet_e-pets",
        2,
        "efficientnet",
    )
    with pytest.raises(RequestError, match="fewer than one batch of 1024"):
        make_job(TrainRequest("tinynet_e", data=str(tree)))


@pytest.mark.quick
def test_budget_selects_the_network_of_the_formula() -> None:
    _, job = make_job(TrainRequest(c=0.25, data="petals"))
    assert job.name == "efficientnet_b0-c0.25-petals"
    assert job.spec.network() == suggest_rdw(0.25, num_classes=24).network


@pytest.mark.quick
def test_job_reads_the_configuration_of_a_search(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        '[search]\nname = "x"\nseed = 4\n[recipe]\nname = "short"\nepochs = 5\n'
        '[data]\nname = "petals"\nval = 48\n'
    )
    config, job = make_job(
        TrainRequest("tinynet_e", config=file, settings=["data.train=96", "recipe.lr=0.1"])
    )
    assert (job.name, job.spec.seed, job.spec.recipe.epochs, job.spec.recipe.lr) == (
        "tinynet_e-petals",
        4,
        5,
        0.1,
    )
    assert (job.train, job.val, config.storage.path) == (96, 48, "searches")


@pytest.mark.ray
def test_two_workers_through_ray(
    ray_cluster: Any,
    capsys: pytest.CaptureFixture[str],
    done: dict[str, Any],
    storage: Path,
    uri: str,
) -> None:
    """Two gloo workers give the results of one process, up to the order of summation."""
    code, out, err = call(
        capsys, *arguments(storage, "--name", "two", "--set", "scaling.workers=2"), "--json"
    )
    assert code == 0, err
    two = json.loads(out)
    assert (two["status"], two["workers"], two["run"]) == ("finished", 2, done["run"])
    assert two["metrics"]["train_loss"] == pytest.approx(done["metrics"]["train_loss"], rel=1e-3)
    lines = [line for line in err.splitlines() if line.startswith("epoch ")]
    assert [line.split()[1] for line in lines] == ["1/2", "2/2"]
    assert JobRuns(uri, "two").only().info.status == "FINISHED"
