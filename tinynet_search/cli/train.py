"""One network trained to its end, or weights evaluated."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import SPACES, AsJson, Tracking, app
from tinynet_search.text import duration, millions, number, table

if TYPE_CHECKING:
    from search_spaces import Network
    from tinynet_search.train.request import TrainRequest
    from tinynet_search.train.run import TrainOutcome
    from trainables.result import TrialResult


@app.command()
def train(
    network: Annotated[
        str | None,
        typer.Argument(
            metavar="NETWORK",
            help="A name of tinynet networks; none with --rdw or --c.",
            show_default=False,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="A TOML configuration, as a search's.", show_default=False
        ),
    ] = None,
    rdw: Annotated[str | None, typer.Option(metavar="R,D,W", help="A twist of --space.")] = None,
    c: Annotated[
        float | None,
        typer.Option(
            metavar="C", help="A budget: the formula's network for this fraction of the FLOPs."
        ),
    ] = None,
    space: Annotated[str | None, typer.Option(help=f"Of --rdw and --c. {SPACES}")] = None,
    formula: Annotated[
        str | None,
        typer.Option(help="Of --c: published, a formula.json, or models:/tiny-formula@champion."),
    ] = None,
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="With --c: outside the formula's data too.")
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="A folder of images of any known kind, or petals, the built-in set.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="efficientnet, resnet, short, ...; by default what suits the network, and short on petals."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="By default the recipe's own (100, resnet 90, short 10); 450 by EfficientNet's recipes on 1000 classes. "
            "Another number is another result of the job: a step schedule goes on from a shorter one, a cosine one starts anew."
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of weights, order and augmentation: search.seed (0).")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Of the job; by default the network's and the data's.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value; comes last. May be repeated."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Folder or URL of all jobs and searches: storage.path (./searches)."),
    ] = None,
    tracking: Tracking = None,
    eval_only: Annotated[
        bool,
        typer.Option(
            "--eval-only", help="Train nothing: evaluate --weights on the validation images."
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Of --eval-only: a .safetensors or .pth file, timm's name, or a folder: of a job, a trial, an export or a checkpoint."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train one network to its end, or take it up where it was left.

    The same command again goes on from the last checkpoint, and prints the result of a job that has ended. Trains in
    this process, on its GPU, or on its CPUs, all of them where the network is large enough; with scaling.workers above 1,
    run.executor = "ray_train" or run.address through Ray.

    --eval-only evaluates weights instead, and writes nothing; with --tracking it leaves a run in MLflow. The folder of
    a job, a trial or a checkpoint brings its network and, unless --data says otherwise, its data; an export brings its
    network, and timm's name the one of that name.
    """
    request = requested(
        network=network,
        config=config,
        rdw=rdw,
        c=c,
        space=space,
        formula=formula,
        extrapolate=extrapolate,
        data=data,
        settings=settings or (),
        recipe=recipe,
        epochs=epochs,
        seed=seed,
        name=name,
        storage=storage,
        tracking=tracking,
    )
    if eval_only != (weights is not None):
        raise RequestError("--eval-only and --weights go together: give both, or neither to train")
    if weights is not None:
        _evaluate(request, weights, as_json=as_json)
    else:
        _train(request, as_json=as_json)


def requested(*, network: str | None, config: Path | None, **options: Any) -> "TrainRequest":
    """The command's arguments as a request; a configuration may stand where the network does."""
    from tinynet_search.train.request import TrainRequest

    if network is not None and network.endswith((".toml", ".json")) and config is None:
        network, config = None, Path(network)
    return TrainRequest(network=network, config=config, **options)


def _train(request: "TrainRequest", *, as_json: bool) -> None:
    from tinynet_search.train.request import make_job
    from tinynet_search.train.run import advice, job_summary, run_job

    config, job = make_job(request)
    outcome = run_job(config, job, tracking=request.tracking, say=_say)
    result = outcome.result
    if as_json:
        print(json.dumps(job_summary(outcome), indent=1))
    elif result is not None and result.finished:
        print(_text(outcome, result))
    if result is None:
        why = outcome.stopped or "its processes were lost too often"
        _say(f"tinynet: job {job.name} has no result ({why}): run the same command again")
        raise typer.Exit(1)
    if not result.finished:
        _say(
            f"tinynet: job {job.name} failed: {result.reason}: {result.detail}; {advice(outcome.job, outcome.store, result)}"
        )
        raise typer.Exit(1)


def _text(outcome: "TrainOutcome", result: "TrialResult") -> str:
    from tinynet_search.cli.summary import mlflow_server

    job, last = outcome.job, result.epochs[-1]
    head = (
        "network",
        "pixels",
        "FLOPs",
        "params",
        "epochs",
        "top-1 %",
        "top-5 %",
        "loss",
        "trained in",
    )
    row = (
        *_network(job.network, job.spec.network()),
        str(len(result.epochs)),
        number(last.top1, 2),
        number(last.top5, 2),
        number(last.val_loss, 4),
        duration(result.seconds),
    )
    places = [
        ("weights", outcome.store.at(job.spec.folder)),
        ("MLflow", outcome.tracking),
        ("", outcome.link or ""),
    ]
    if outcome.tracking.startswith("sqlite:"):
        places.append(("opened by", mlflow_server(outcome.tracking)))
    lines = [f"{label:<9}  {place}" for label, place in places if place]
    return "\n".join([table(head, [row]), "", *lines])


def _evaluate(request: "TrainRequest", weights: str, *, as_json: bool) -> None:
    from tinynet_search.mlflow_client.connection import resolve_uri
    from tinynet_search.train.evaluate import evaluate_weights

    uri = resolve_uri(request.tracking, None, "searches") if request.tracking is not None else None
    report = evaluate_weights(request, weights, _say)
    if as_json:
        print(json.dumps(report.to_json(), indent=1))
    else:
        head = (
            "network",
            "pixels",
            "FLOPs",
            "params",
            "images",
            "top-1 %",
            "top-5 %",
            "loss",
            "images/s",
        )
        row = (
            *_network(report.label, report.network),
            str(report.images),
            f"{report.top1:.2f}",
            f"{report.top5:.2f}",
            f"{report.loss:.4f}",
            f"{report.images_per_s:,.0f}",
        )
        print(table(head, [row]))
        if report.checkpoint:
            print(f"\nof {report.checkpoint}, its {report.weight_set} weights")
    if uri is not None:
        from tinynet_search.tracking.evaluations import log_evaluation

        _say(log_evaluation(uri, report))


def _network(label: str, network: "Network") -> tuple[str, ...]:
    return (
        label,
        str(network.resolution),
        millions(network.macs),
        millions(network.params, 2),
    )


def _say(message: str) -> None:
    """In one write: an interruption leaves no half line."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
