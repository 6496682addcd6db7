"""``tinynet train``: trains one network, or evaluates weights.

Registered with the application by ``main``; ``jobs`` uses ``train_request`` for
``tinynet submit train``.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import SPACES, AsJson, Tracking, app, example
from tinynet_search.cli.completion import complete_network, complete_space
from tinynet_search.text import duration, millions, number, table

if TYPE_CHECKING:
    from search_spaces import Network
    from tinynet_search.train.request import TrainRequest
    from tinynet_search.train.run import TrainOutcome
    from trainables.result import TrialResult


@app.command(
    epilog=example("train --rdw 0.5,0.5,0.5 --space efficientnet_mini --data petals --epochs 2")
)
def train(
    network: Annotated[
        str | None,
        typer.Argument(
            metavar="NETWORK",
            help="A name from tinynet networks; omit it with --rdw or --c.",
            show_default=False,
            autocompletion=complete_network,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="Path of a TOML configuration of a search.", show_default=False
        ),
    ] = None,
    rdw: Annotated[
        str | None, typer.Option(metavar="R,D,W", help="Train this (r, d, w) of --space.")
    ] = None,
    c: Annotated[
        float | None,
        typer.Option(
            metavar="C", help="Train the formula's network for this fraction of the FLOPs."
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help=f"Use this search space for --rdw and --c ({SPACES}).",
            autocompletion=complete_space,
        ),
    ] = None,
    formula: Annotated[
        str | None,
        typer.Option(
            help="Use this formula for --c (published, a formula.json, "
            "models:/tiny-formula@champion).",
            show_default="published",
        ),
    ] = None,
    extrapolate: Annotated[
        bool,
        typer.Option("--extrapolate", help="Allow a --c outside the formula's data."),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Train on the images of this folder (any known kind) or on the built-in petals.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Train with this recipe (efficientnet, resnet, short, ...).",
            show_default="short on petals, else the recipe of the network's family",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Train for this number of epochs; each number has its own result: a step schedule "
            "continues from a shorter one, a cosine schedule starts from scratch.",
            show_default="the recipe's: 100, resnet 90, short 10; "
            "450 for EfficientNet recipes on 1000 classes",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed weights, order and augmentation.", show_default="search.seed, or 0"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name the job.", show_default="from the network and the data"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Override a setting by section.key=value; pass it once per setting."
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Store all jobs and searches in this folder or under this URL.",
            show_default="storage.path, or ./searches",
        ),
    ] = None,
    tracking: Tracking = None,
    eval_only: Annotated[
        bool,
        typer.Option(
            "--eval-only", help="Evaluate --weights on the validation images without training."
        ),
    ] = False,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Evaluate these weights: a .safetensors or .pth file, timm's name, or the folder "
            "of a job, trial, export or checkpoint."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train one network, or resume its training.

    The same command resumes a stopped job from its last checkpoint and prints the result of a
    finished one. Training runs in this process, on its GPU or on its CPUs (on all of them if the
    network is large enough); with scaling.workers above 1, run.executor = "ray_train" or
    run.address, it runs on Ray.

    --eval-only evaluates weights and writes no files; with --tracking it logs a run to MLflow. The
    folder of a job, trial or checkpoint provides the network and, without --data, the data; an
    export provides the network; timm's name selects the network of that name.
    """
    request = train_request(
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
        raise RequestError("--eval-only and --weights go together: pass both, or neither to train")
    if weights is not None:
        _evaluate(request, weights, as_json=as_json)
    else:
        _train(request, as_json=as_json)


def train_request(*, network: str | None, config: Path | None, **options: Any) -> "TrainRequest":
    """The request of the command; the first argument may be a configuration, not a network."""
    from tinynet_search.train.request import TrainRequest

    if network is not None and network.endswith((".toml", ".json")) and config is None:
        network, config = None, Path(network)
    return TrainRequest(network=network, config=config, **options)


def _train(request: "TrainRequest", *, as_json: bool) -> None:
    from tinynet_search.train.request import make_job
    from tinynet_search.train.run import advice, job_summary, run_job

    config, job = make_job(request)
    outcome = run_job(config, job, tracking=request.tracking, log=_say)
    result = outcome.result
    if as_json:
        print(json.dumps(job_summary(outcome), indent=1))
    elif result is not None and result.finished:
        print(_text(outcome, result))
    if result is None:
        reason = outcome.stopped or "its processes were lost too often"
        _say(f"tinynet: job {job.name} has no result ({reason}): run the same command again")
        raise typer.Exit(1)
    if not result.finished:
        _say(
            f"tinynet: job {job.name} failed: {result.reason}: {result.detail}; "
            f"{advice(outcome.job, outcome.store, result)}"
        )
        raise typer.Exit(1)


def _text(outcome: "TrainOutcome", result: "TrialResult") -> str:
    from tinynet_search.commands import mlflow_server

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
        ("weights", outcome.store.url_of(job.spec.folder)),
        ("MLflow", outcome.tracking),
        ("", outcome.link or ""),
    ]
    if outcome.tracking.startswith("sqlite:"):
        places.append(("open with", mlflow_server(outcome.tracking)))
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
            print(f"\n{report.weight_set} weights of {report.checkpoint}")
    if uri is not None:
        from tinynet_search.tracking.evaluations import log_evaluation
        from tinynet_search.train.request import complete_config, read_request

        config = complete_config(read_request(request), report.space, request)
        experiment = config.experiment(report.space)
        _say(log_evaluation(uri, report, config.owner, experiment))


def _network(label: str, network: "Network") -> tuple[str, ...]:
    return (
        label,
        str(network.resolution),
        millions(network.macs),
        millions(network.params, 2),
    )


def _say(message: str) -> None:
    """Print a line in one write, so that an interruption cannot leave half of it."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()
