"""``tinynet train``: jobs in this process and on Ray, taken up and repeated, their window in MLflow, and evaluations."""

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
from tests.tracking.helpers import SQLALCHEMY, calm, free_port
from tests.train.helpers import (
    LABEL,
    MINI,
    NETWORK,
    RDW,
    JobRuns,
    arguments,
    call,
    refused,
    stopped,
    trained,
)
from tinynet_search import suggest_rdw
from tinynet_search.export import load_exported
from tinynet_search.export.subject import read_subject
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.train_job import agreed_job, read_job
from tinynet_search.train.request import TrainRequest, make_job, settled
from tinynet_search.train.run import _left_at, advice
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
    with calm():
        yield


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage folder whose database all tests share: making one takes seconds."""
    return tmp_path_factory.mktemp("searches")


@pytest.fixture(scope="module")
def uri(storage: Path) -> str:
    return f"sqlite:///{storage}/mlflow.db"


@pytest.fixture(scope="module")
def done(storage: Path) -> dict[str, Any]:
    """A finished job, as its summary."""
    import contextlib
    import io

    from tinynet_search.cli.main import run

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run([*arguments(storage), "--json"]) == 0
    return json.loads(out.getvalue())


def test_a_job_in_mlflow(done: dict[str, Any], storage: Path, uri: str) -> None:
    result = json.loads((storage / "tiny" / "results" / f"{done['run']}.json").read_text())
    assert (done["status"], done["trained_now"], done["metrics"]) == (
        "finished",
        True,
        result["metrics"],
    )
    window = JobRuns(uri)
    found = window.only()
    assert (found.info.status, found.info.run_name) == ("FINISHED", "tiny · 2 epochs")
    for metric in (*CURVES, *SCORES):
        name = {"epoch_seconds": "seconds"}.get(metric, metric)
        points = window.steps(metric)
        assert [(step, ms) for step, ms, _ in points] == [
            (e["epoch"], e["ts"]) for e in result["epochs"]
        ]
        if metric != "eta_s":
            assert [value for _, _, value in points] == [e[name] for e in result["epochs"]]
    first = result["epochs"][0]["seconds"]
    assert [value for _, _, value in window.steps("eta_s")] == [pytest.approx(first, abs=0.06), 0.0]
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
    assert {key: found.data.metrics[key] for key in figures} == figures
    assert {key: float(found.data.params[key]) for key in figures} == figures
    assert found.data.metrics["final_top1"] == result["metrics"]["top1"]
    assert found.data.metrics["final_top5"] == result["metrics"]["top5"]
    assert (
        found.data.params["recipe"],
        found.data.params["recipe.batch"],
        found.data.params["data.train"],
    ) == ("short", "32", "96")
    assert float(found.data.params["peak_lr"]) == done["recipe"]["lr"]
    assert {key: found.data.params[key] for key in ("workers", "precision")} == {
        "workers": "1",
        "precision": "auto",
    }
    assert found.data.tags["tinynet.network"] == LABEL
    assert (
        found.data.tags["tinynet.data"]
        == found.data.params["data.fingerprint"]
        == "petals-v1-seed0-96-48"
    )
    names = [item.path for item in window.client.list_artifacts(found.info.run_id, "model")]
    assert sorted(names) == ["model/config.json", "model/weights.safetensors"]


def test_a_job_that_has_ended_trains_nothing(
    capsys: pytest.CaptureFixture[str],
    done: dict[str, Any],
    storage: Path,
    uri: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("trainables.trial._trained", pytest.fail)
    before = JobRuns(uri).only().to_dictionary()
    again = trained(capsys, *arguments(storage))
    assert again == done | {"trained_now": False}
    assert JobRuns(uri).only().to_dictionary() == before
    code, out, err = call(capsys, *arguments(storage))
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split()[:3] == ["network", "pixels", "FLOPs"]
    assert f"{done['metrics']['top1']:.2f}" in out and done["weights"] in out
    assert f"server --backend-store-uri {uri} --host" in out


def test_the_registered_version_is_the_network(
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
    wanted = load_exported(done["weights"])
    assert network == wanted[0] == get_space(MINI).network((0.4, 0.4, 0.5), 24)
    images = torch.randn(2, 3, network.resolution, network.resolution)
    with torch.inference_mode():
        assert torch.equal(module(images), wanted[1](images))
    window = JobRuns(uri)
    version = window.client.get_model_version_by_alias(LABEL, "champion")
    tags = version.tags
    assert (tags["data"], tags["run_id"], version.run_id) == (
        "petals-v1-seed0-96-48",
        *2 * (window.only().info.run_id,),
    )
    assert float(tags["top1"]) == pytest.approx(done["metrics"]["top1"], abs=1e-4)


def test_champion_is_the_best_on_the_data_registered_last(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], storage: Path, uri: str
) -> None:
    more = ["--set", "recipe.lr=0.005"]
    better = trained(capsys, *arguments(storage, "--name", "better", *more, epochs=8))
    assert better["metrics"]["top1"] > done["metrics"]["top1"]
    client = JobRuns(uri).client
    champion = lambda: client.get_model_version_by_alias(LABEL, "champion").tags["run_id"]  # noqa: E731
    best = JobRuns(uri, "better").only().info.run_id
    assert champion() == best
    worse = trained(capsys, *arguments(storage, "--name", "worse", "--seed", "7"))
    assert worse["metrics"]["top1"] < better["metrics"]["top1"]
    assert champion() == best
    trained(capsys, *arguments(storage, "--name", "elsewhere", "--set", "data.val=24"))
    assert champion() == JobRuns(uri, "elsewhere").only().info.run_id
    assert len(client.search_model_versions(f"name = '{LABEL}'")) == 4


def test_another_number_of_epochs_is_a_run_of_its_own(
    capsys: pytest.CaptureFixture[str], storage: Path, uri: str
) -> None:
    both = [
        trained(capsys, *arguments(storage, "--name", "grown", epochs=epochs)) for epochs in (1, 2)
    ]
    assert [summary["epochs"] for summary in both] == [1, 2]
    asked = arguments(storage, "--name", "grown", epochs=3)
    code, _, err = call(capsys, *asked)
    assert (code, err.splitlines()[2]) == (
        0,
        "3 epochs are a training of their own, from the start; the results for 1, 2 stay",
    )
    job = trained(capsys, "train", "--eval-only", "--weights", str(storage / "grown"))
    assert job["weights"].endswith("-e3")
    runs = {found.info.run_name: found for found in JobRuns(uri, "grown").runs}
    assert set(runs) == {"grown · 1 epoch", "grown · 2 epochs", "grown · 3 epochs"}
    assert {found.info.status for found in runs.values()} == {"FINISHED"}


def test_stopped_and_killed_and_taken_up(
    capsys: pytest.CaptureFixture[str], storage: Path, uri: str
) -> None:
    """SIGTERM and SIGKILL in the middle, the same command again: one run, every epoch once, the same numbers."""
    asked = arguments(storage, "--name", "cut", epochs=24)
    folder = storage / "cut" / "trials"

    def beyond(epoch: int) -> bool:
        return any(
            int(path.name[6:10]) >= epoch
            for path in folder.glob("*/epoch-*")
            if (path / "progress.json").exists()
        )

    for sent, code, epoch in ((signal.SIGTERM, 143, 2), (signal.SIGKILL, -9, 6)):
        ended, out, err = stopped(asked, sent, lambda epoch=epoch: beyond(epoch))
        assert (ended, out) == (code, ""), err
        assert "Traceback" not in err
        if code > 0:
            assert (
                err.splitlines()[-1] == "tinynet: interrupted: the same command goes on from here"
            )
            assert JobRuns(uri, "cut").only().info.status == "KILLED"
    check_checkpoint(capsys, next(folder.iterdir()))
    whole = trained(capsys, *asked)
    assert whole["epochs"] == 24
    window = JobRuns(uri, "cut")
    assert window.only().info.status == "FINISHED"
    for metric in ("top1", "train_loss", "eta_s"):
        assert [step for step, _, _ in window.steps(metric)] == list(range(1, 25))
    undisturbed = trained(capsys, *arguments(storage, "--name", "uncut", epochs=24))
    times = ("ts", "seconds", "images_per_s")
    same = [
        {key: value for key, value in each["metrics"].items() if key not in times}
        for each in (whole, undisturbed)
    ]
    assert same[0] == same[1]


def check_checkpoint(capsys: pytest.CaptureFixture[str], trial: Path) -> None:
    """A checkpoint, and a trial's folder by its newest one, score what their last epoch did."""
    newest = checkpoints(LocalFolder(trial))[-1]
    record = json.loads((trial / newest / "progress.json").read_text())["epochs"][-1]
    for folder in (trial, trial / newest, trial.parent.parent):
        figures = trained(capsys, "train", "--eval-only", "--weights", str(folder))
        assert (figures["top1"], figures["top5"]) == (record["top1"], record["top5"])
        assert (figures["checkpoint"], figures["set"]) == (newest, "EMA")
    weights = trial / newest / "weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(capsys, "is damaged", "train", "--eval-only", "--weights", str(trial / newest))
    assert (
        trained(capsys, "train", "--eval-only", "--weights", str(trial))["checkpoint"]
        == checkpoints(LocalFolder(trial))[-2]
    )
    weights.write_bytes(whole)


def test_a_failure_is_a_result(capsys: pytest.CaptureFixture[str], storage: Path, uri: str) -> None:
    wild = [
        part
        for text in ("recipe.lr=1e30", "recipe.optimizer=sgd", "recipe.warmup_epochs=0")
        for part in ("--set", text)
    ]
    asked = arguments(storage, "--name", "wild", *wild)
    code, out, err = call(capsys, *asked)
    assert (code, out) == (1, "")
    line = err.splitlines()[-1]
    assert line.startswith("tinynet: job wild failed: diverged: loss") and line.endswith(
        "; try a lower recipe.lr under another --name"
    )
    assert call(capsys, *asked) == (1, "", f"{line}\n")
    found = JobRuns(uri, "wild").only()
    assert (found.info.status, found.data.tags["reason"]) == ("FAILED", "diverged")
    assert "final_top1" not in found.data.metrics


def test_a_dead_server_warns_once_and_sync_catches_up(
    capsys: pytest.CaptureFixture[str], storage: Path, uri: str
) -> None:
    where = f"http://127.0.0.1:{free_port()}"
    code, out, err = call(
        capsys, *arguments(storage, "--name", "alone", "--tracking", where), "--json"
    )
    result = json.loads(out)
    assert (code, result["status"], result["link"]) == (0, "finished", None)
    assert err.count("Connection refused") == 1
    assert err.splitlines()[-1].endswith(
        "the same command, or tinynet sync --search alone, catches up"
    )
    assert JobRuns(uri, "alone").runs == []
    code, out, err = call(capsys, *arguments(storage, "--name", "alone", "--tracking", where))
    assert (
        (code, err.count("\n")) == (0, 1) and "Connection refused" in err and "goes on" not in err
    )
    for epochs in (2, 0):
        code, out, err = call(
            capsys, "sync", "--search", "alone", "--storage", str(storage), "--json"
        )
        assert (code, json.loads(out)["alone"]["epochs"]) == (0, epochs), err
    assert JobRuns(uri, "alone").only().info.status == "FINISHED"
    assert trained(capsys, *arguments(storage, "--name", "alone"))["link"] is not None


def test_evaluation_gives_a_jobs_own_scores(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], tmp_path: Path, uri: str
) -> None:
    before = len(JobRuns(uri, kind="evaluation").runs)
    figures = trained(capsys, "train", "--eval-only", "--weights", done["weights"])
    assert [figures[key] for key in ("top1", "top5", "images")] == [
        done["metrics"]["top1"],
        done["metrics"]["top5"],
        48,
    ]
    assert figures["loss"] == pytest.approx(done["metrics"]["val_loss"])
    assert (figures["network"]["name"], figures["preprocessing"]["assumed"]) == (LABEL, False)
    file = tmp_path / "own.pth"
    torch.save(load_exported(done["weights"])[1].state_dict(), file)
    named = trained(
        capsys, "train", *NETWORK, "--eval-only", "--weights", str(file), "--data", "petals", *few()
    )
    assert [named[key] for key in ("top1", "loss")] == [
        figures["top1"],
        pytest.approx(figures["loss"]),
    ]
    assert named["preprocessing"]["assumed"] is True
    code, out, err = call(capsys, "train", "--eval-only", "--weights", done["weights"])
    assert (code, err) == (0, "")
    assert f"{figures['top1']:.2f}" in out
    assert len(JobRuns(uri, kind="evaluation").runs) == before


def few() -> list[str]:
    return ["--set", "data.train=96", "--set", "data.val=48"]


def test_an_evaluation_is_tracked_where_it_is_told_to(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], uri: str
) -> None:
    from mlflow import MlflowClient

    asked = ("train", "--eval-only", "--weights", done["weights"], "--tracking", uri, "--json")
    call(capsys, *asked)
    code, out, err = call(capsys, *asked)
    assert (code, err.count("/#/experiments/")) == (0, 1)
    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments()]
    (found,) = client.search_runs(experiments, "tags.`tinynet.kind` = 'evaluation'")
    assert (found.info.status, found.data.metrics["top1"]) == ("FINISHED", json.loads(out)["top1"])


def test_published_weights_keep_timms_preprocessing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights that stand in for the hub's, on a tree of images: timm's mean, deviation and crop are what is applied."""
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
    figures = trained(
        capsys, "train", "--eval-only", "--weights", "tinynet_e.in1k", "--data", str(tree)
    )
    assert (figures["network"]["name"], figures["checkpoint"]) == ("tinynet_e", None)
    assert (figures["preprocessing"]["crop_ratio"], figures["preprocessing"]["mean"]) == (
        0.9,
        [0.5, 0.5, 0.5],
    )
    right, images = theirs(module, tree, published)
    assert (figures["top1"], figures["images"]) == (pytest.approx(100 * right / images), images)


def theirs(module: torch.nn.Module, tree: Path, published: Any) -> tuple[int, int]:
    """(right, images) with timm's own transform."""
    from timm.data.transforms_factory import create_transform

    size = (3, 106, 106)
    step: Any = create_transform(
        size,
        mean=published.mean,
        std=published.std,
        crop_pct=published.crop_pct,
        interpolation="bicubic",
    )
    right = images = 0
    for label, name in enumerate(("cat", "dog")):
        for file in sorted((tree / "val" / name).iterdir()):
            with torch.inference_mode():
                right += int(module(step(Image.open(file).convert("RGB"))[None]).argmax() == label)
            images += 1
    return right, images


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("no network to train", ["--data", "petals"]),
        ("more than one network", ["tinynet_e", "--c", "0.2", "--data", "petals"]),
        ("did you mean 'tinynet_e'", ["tinynet_f", "--data", "petals"]),
        ("--space goes with --rdw and --c", ["tinynet_e", "--space", MINI, "--data", "petals"]),
        ("give --space", ["--rdw", RDW, "--data", "petals"]),
        ("is no r,d,w", ["--rdw", "1,2", "--space", MINI, "--data", "petals"]),
        ("unknown space", ["--rdw", RDW, "--space", "mini", "--data", "petals"]),
        ("go with --c", ["tinynet_e", "--formula", "published", "--data", "petals"]),
        ("nothing to train on", ["tinynet_e"]),
        ("'nowhere' does not exist", ["tinynet_e", "--data", "nowhere"]),
        ("no configuration 'nowhere.toml'", ["tinynet_e", "nowhere.toml"]),
        ("no configuration 'nowhere.toml'", [*NETWORK, "nowhere.toml"]),
        ("--extrapolate", ["--c", "0.001", "--data", "petals"]),
        ("unknown recipe 'resent'", ["tinynet_e", "--data", "petals", "--recipe", "resent"]),
        ("write section.key=value", ["tinynet_e", "--data", "petals", "--set", "epochs=3"]),
        (
            "recipe setting 'epoch': did you mean 'epochs'",
            ["tinynet_e", "--data", "petals", "--set", "recipe.epoch=3"],
        ),
        ("epochs must be", ["tinynet_e", "--data", "petals", "--epochs", "0"]),
        (
            "--name 'a/b' is no name for a job: give at most 64",
            ["tinynet_e", "--data", "petals", "--name", "a/b"],
        ),
        ("--name '' names nothing", ["tinynet_e", "--data", "petals", "--name", ""]),
        ("--data '' names nothing", ["tinynet_e", "--data", ""]),
        (
            "--weights '' names nothing",
            ["tinynet_e", "--data", "petals", "--eval-only", "--weights", ""],
        ),
        (
            "'foo://x' is no address that MLflow knows",
            ["tinynet_e", "--data", "petals", "--tracking", "foo://x"],
        ),
        ("torch finds no GPU", ["tinynet_e", "--data", "petals", "--set", "scaling.gpus=1"]),
        (
            "no Ray cluster answers",
            ["tinynet_e", "--data", "petals", "--set", "run.address='127.0.0.1:1'"],
        ),
        (
            "fewer than one batch",
            ["tinynet_e", "--data", "petals", "--set", "data.train=24", "--recipe", "efficientnet"],
        ),
        ("use a divisor", ["tinynet_e", "--data", "petals", "--set", "scaling.workers=2"]),
        (
            'needs run.executor = "ray_train"',
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
            "timm's mixnet_s, which is none of",
            ["--data", "petals", "--eval-only", "--weights", "mixnet_s"],
        ),
        ("holds no weights", ["--data", "petals", "--eval-only", "--weights", "."]),
    ],
)
def test_one_line_and_two(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: str,
    asked: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(
        "ray.is_initialized", lambda: False
    )  # other tests' cluster is none of a user's
    refused(capsys, words, "train", *asked)
    assert list(tmp_path.iterdir()) == []


def test_another_training_under_the_name_is_refused(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], storage: Path
) -> None:
    result = (storage / "tiny" / "results" / f"{done['run']}.json").read_bytes()
    for words, more in (
        ("recipe.lr was 0.002, now 0.1", ["--set", "recipe.lr=0.1"]),
        ("seed was 0, now 3", ["--seed", "3"]),
        ("data was 'petals-v1-seed0-96-48', now 'petals-v1-seed0-96-24'", ["--set", "data.val=24"]),
    ):
        refused(capsys, words, *arguments(storage, *more))
    assert (storage / "tiny" / "results" / f"{done['run']}.json").read_bytes() == result


def test_a_job_that_was_never_trained_gives_way(tmp_path: Path) -> None:
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
    agreed_job(store, old)
    (tmp_path / "x" / "trials").mkdir()
    assert agreed_job(store, new).spec == new.spec
    assert read_job(store) == new
    (tmp_path / "x" / "trials" / new.spec.run).mkdir()
    with pytest.raises(RequestError, match="seed was 2, now 1"):
        agreed_job(store, old)
    with pytest.raises(RequestError, match=r"recipe.lr \(scaled to the batch\) was 0.05, now 0.06"):
        agreed_job(store, scaled)


def test_one_process_a_job(
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
        refused(capsys, f"job {storage}/tiny is held by", *arguments(storage, epochs=3))
        assert trained(capsys, *arguments(storage))["trained_now"] is False
        process.communicate()


def test_an_export_keeps_the_networks_name(done: dict[str, Any]) -> None:
    assert read_subject(Path(done["weights"])).name == LABEL


def test_data_packed_for_fewer_pixels(
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
def test_what_a_failure_advises(tmp_path: Path) -> None:
    _, job = make_job(TrainRequest("tinynet_e", data="petals"))
    store = SearchStore(str(tmp_path))
    for reason, words in (
        ("unreadable data", "tinynet data pack --on-error skip"),
        ("out of memory", f"or remove {tmp_path}/results/{job.spec.run}.json to try again"),
        ("error", f"remove {tmp_path}/results/{job.spec.run}.json to try again"),
    ):
        shutil.rmtree(tmp_path / "results", ignore_errors=True)
        assert write_failure(job.spec, store.folder, reason, "it was so")
        result = store.result(job.spec.run)
        assert result is not None and words in advice(job, store, result)


@pytest.mark.quick
def test_where_a_job_goes_on(tmp_path: Path) -> None:
    _, job = make_job(TrainRequest("tinynet_e", data="petals"))
    store = SearchStore(str(tmp_path))
    folder = tmp_path / job.spec.folder / "epoch-0001-step-000010"
    folder.mkdir(parents=True)
    assert _left_at(store, job) is None
    (folder / "progress.json").write_text('{"epochs": [{}]}')
    assert _left_at(store, job) == "epoch 1, step 10"


def test_searches_and_jobs_keep_apart(
    capsys: pytest.CaptureFixture[str], storage: Path, tmp_path: Path, done: dict[str, Any]
) -> None:
    refused(
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
    refused(
        capsys,
        "is a search: give the training job another --name",
        *arguments(tmp_path, "--name", "taken"),
    )
    (tmp_path / "broken").mkdir()
    for text in ("{", "[]", '{"schema": 9}', json.dumps({"schema": 1, "job": "x", "trial": {}})):
        (tmp_path / "broken" / "job.json").write_text(text)
        refused(capsys, "is damaged", *arguments(tmp_path, "--name", "broken"))
        refused(capsys, "is damaged", "sync", "--search", "broken", "--storage", str(tmp_path))


def test_weights_and_data_of_other_classes(
    capsys: pytest.CaptureFixture[str], done: dict[str, Any], tmp_path: Path
) -> None:
    tree = str(make_tree(tmp_path / "tree"))
    refused(
        capsys,
        "are for 24 classes, and the data has 2",
        "train",
        "--eval-only",
        "--weights",
        done["weights"],
        "--data",
        tree,
    )
    file = tmp_path / "own.pth"
    torch.save(load_exported(done["weights"])[1].state_dict(), file)
    words = "are for 24 classes, and the network has 2: give data of as many classes"
    refused(capsys, words, "train", *NETWORK, "--eval-only", "--weights", str(file), "--data", tree)
    refused(
        capsys,
        "which network are these weights of?",
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
    refused(capsys, "leave the network out", *other)


def test_defaults_follow_the_space_and_the_data(tmp_path: Path) -> None:
    def chosen(space: str, name: str, classes: int, **values: Any) -> tuple[str, int]:
        found = settled({"data": {"name": name}, **values}, space, TrainRequest(), classes=classes)
        recipe = found.resolve().recipe
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
def test_a_budget_is_the_formulas_network() -> None:
    _, job = make_job(TrainRequest(c=0.25, data="petals"))
    assert job.name == "efficientnet_b0-c0.25-petals"
    assert job.spec.network() == suggest_rdw(0.25, num_classes=24).network


@pytest.mark.quick
def test_a_configuration_is_a_searchs(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(
        '[search]\nname = "x"\nseed = 4\n[recipe]\nname = "short"\nepochs = 5\n[data]\nname = "petals"\nval = 48\n'
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
    """Two gloo workers give what one process does, up to the order of sums."""
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
