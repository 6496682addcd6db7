"""Clusters: what one sees of a search, and searches and trainings as its jobs."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import AsJson, Tracking, app
from tinynet_search.cli.searches import (
    Anew,
    ConfigFile,
    Continue,
    Epochs,
    Preset,
    Retry,
    Settings,
    Storage,
    Trials,
    TrialTimeout,
    chosen,
    configured,
)
from tinynet_search.text import duration, local_minute, table

if TYPE_CHECKING:
    from tinynet_search.cluster.preflight import Findings, NodeRow
    from tinynet_search.jobs.watching import JobRow
    from tinynet_search.train.request import TrainRequest

Address = Annotated[
    str | None,
    typer.Option(help="The cluster's dashboard, http://HEAD:8265; else RAY_API_SERVER_ADDRESS."),
]
WorkingDir = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="A folder with modules of your own, sent with the job."),
]
Wheel = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="A wheel of tinynet-search, for a cluster that has none or another."
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Submit without asking.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once the job is queued.")]
Gpu = Annotated[
    str | None,
    typer.Option(
        help="Estimate the time for a GPU of this name, without the short training: a100, h100, ..."
    ),
]
Name = Annotated[
    str, typer.Argument(metavar="JOB", help="A job's id, or the name of a search: its newest job.")
]

jobs = typer.Typer(
    no_args_is_help=True, help="Searches and trainings that were submitted to a cluster."
)
app.add_typer(jobs, name="jobs")


@app.command()
def check(
    config: ConfigFile = None,
    preset: Preset = None,
    settings: Settings = None,
    trials: Trials = None,
    storage: Storage = None,
    tracking: Tracking = None,
    gpu: Gpu = None,
    no_plan: Annotated[
        bool, typer.Option("--no-plan", help="Without candidates and cost: for a single training.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """See whether a search can run here: data, storage, MLflow, nodes, room for a trial. Trains nothing."""
    from tinynet_search.cluster.preflight import check_search

    found = check_search(
        configured(config, preset, settings, trials, storage), tracking, gpu, plan=not no_plan
    )
    print(json.dumps(found.to_json()) if as_json else _findings_text(found))
    if found.problems:
        _say(*(f"tinynet: {problem}" for problem in found.problems))
        raise typer.Exit(1)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def submit(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Argument(help="A TOML configuration, or train and what tinynet train takes."),
    ] = None,
    preset: Preset = None,
    settings: Settings = None,
    trials: Trials = None,
    epochs: Epochs = None,
    storage: Storage = None,
    tracking: Tracking = None,
    trial_timeout: TrialTimeout = None,
    retry: Retry = None,
    continue_: Continue = None,
    anew: Anew = False,
    address: Address = None,
    working_dir: WorkingDir = None,
    wheel: Wheel = None,
    gpu: Gpu = None,
    yes: Yes = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Run a search on a cluster, or take it up there. Closing the lid, or Ctrl-C, leaves it running.

    The cluster looks at data, storage, MLflow and its nodes first; what that found and what the search will cost is shown.
    tinynet submit train ... sends one training the same way, without asking.
    """
    from tinynet_search.jobs import submit_search, submit_train

    if working_dir is not None:
        sys.path.append(str(Path(working_dir).expanduser().absolute()))
    if str(config) == "train":
        if preset or trials is not None or trial_timeout or retry or continue_ or anew or gpu:
            mend = "leave out --preset, --trials, --trial-timeout, --retry, --continue, --anew and --gpu"
            raise RequestError(f"tinynet submit train takes what tinynet train takes: {mend}")
        arguments = [*context.args, *(["--epochs", str(epochs)] if epochs is not None else [])]
        request = _training(arguments, settings, storage, tracking)
        done = submit_train(request, address, working_dir=working_dir, wheel=wheel)
        if done.findings and done.findings.notes:
            _say(*done.findings.notes)
    elif (
        unknown := [
            argument for argument in (str(config or ""), *context.args) if argument.startswith("-")
        ]
        or context.args
    ):
        raise RequestError(f"tinynet submit knows no {unknown[0]!r}: see tinynet submit --help")
    else:
        loaded = configured(
            config,
            preset,
            settings,
            trials,
            storage,
            chosen(epochs, trial_timeout, continue_, anew),
        )
        _agreeable(yes)
        agree: Callable[[Findings], bool] = lambda found: _asked(found, yes)  # noqa: E731
        done = submit_search(
            loaded,
            address,
            tracking=tracking,
            retry=retry or (),
            working_dir=working_dir,
            wheel=wheel,
            gpu=gpu,
            agree=agree,
        )
    if as_json:
        print(json.dumps(done.to_json()), flush=True)
    else:
        _say(
            f"job {done.id} at {done.address}: tinynet jobs logs {done.id} follows it, tinynet jobs stop {done.id} ends it"
        )
    if not no_wait:
        _follow(done.id, done.address, sys.stderr if as_json else sys.stdout)


@jobs.command("list")
def list_(address: Address = None, as_json: AsJson = False) -> None:
    """Every job that tinynet submitted to this cluster, the oldest first."""
    from tinynet_search.jobs.watching import Jobs

    found = Jobs(address).all()
    if as_json:
        print(json.dumps([asdict(job) for job in found], indent=1))
    else:
        print(
            table(
                ("job", "kind", "status", "started", "for", "storage"), [_row(job) for job in found]
            )
        )


@jobs.command()
def status(job: Name, address: Address = None, as_json: AsJson = False) -> None:
    """How a job stands, and the last that it said."""
    from tinynet_search.jobs.watching import Jobs

    cluster = Jobs(address)
    found = cluster.find(job)
    last = [line for line in cluster.logs(found.id).splitlines() if line.strip()][-1:]
    if as_json:
        print(json.dumps({**asdict(found), "last": last[0] if last else None}, indent=1))
        return
    lines = [
        ("job", found.id),
        ("kind", found.kind),
        ("status", found.status),
        ("started", local_minute(found.started)),
    ]
    lines += [
        ("for", _for(found)),
        ("storage", found.storage),
        ("MLflow", found.tracking),
        ("says", last[0] if last else ""),
    ]
    lines += [("message", found.message)] if found.status == "FAILED" else []
    print("\n".join(f"{label:<8} {text}" for label, text in lines if text))


@jobs.command()
def logs(job: Name, address: Address = None, follow: Follow = False) -> None:
    """What a job has said."""
    from tinynet_search.jobs.watching import Jobs

    if follow:
        _follow(job, address)
    else:
        print(Jobs(address).logs(job), end="")


@jobs.command()
def stop(job: Name, address: Address = None) -> None:
    """Have a job's trainings commit a checkpoint, and end it."""
    from tinynet_search.jobs.watching import Jobs

    found = Jobs(address).stop(job)
    _say(f"job {found.id} {found.status.lower()}: tinynet jobs resume {found.id} goes on")


@jobs.command()
def resume(
    job: Name,
    address: Address = None,
    working_dir: WorkingDir = None,
    wheel: Wheel = None,
    no_wait: NoWait = False,
) -> None:
    """Submit what a job was submitted for once more; it goes on where it was left."""
    from tinynet_search.jobs.watching import Jobs

    done = Jobs(address).resume(job, working_dir=working_dir, wheel=wheel)
    _say(f"job {done.id} at {done.address} goes on with {done.name}")
    if not no_wait:
        _follow(done.id, done.address)


def _follow(job: str, address: str | None, where: TextIO | None = None) -> None:
    """Until it ends; with its exit code, and Ctrl-C leaves it alone."""
    from tinynet_search.jobs.watching import Jobs

    try:
        found = Jobs(address).follow(job, lambda text: print(text, end="", flush=True, file=where))
    except KeyboardInterrupt:
        _say(f"job {job} goes on without you: tinynet jobs logs {job} --follow")
        raise typer.Exit(130) from None
    if found.status != "SUCCEEDED":
        code = found.exit_code or 1
        why = f": {found.message}" if found.exit_code is None else ""
        _say(
            f"tinynet: job {found.id} {found.status.lower()}{why}: tinynet jobs resume {found.id} takes it up"
        )
        raise typer.Exit(code)


def _training(
    arguments: list[str], settings: list[str] | None, storage: str | None, tracking: str | None
) -> "TrainRequest":
    """The request behind ``train``, by that command's own options; those that both have were taken by ``submit``."""
    from tinynet_search.cli.train import requested

    group: Any = typer.main.get_command(app)
    with group.commands["train"].make_context("tinynet submit train", list(arguments)) as parsed:
        given = dict(parsed.params)
    if given.pop("eval_only") or given.pop("weights") is not None:
        raise RequestError(
            "tinynet submit train trains: --eval-only and --weights are for tinynet train"
        )
    del given["as_json"]
    given |= {"settings": settings or (), "storage": storage, "tracking": tracking}
    config = given.pop("config")
    return requested(network=given.pop("network"), config=Path(config) if config else None, **given)


def _agreeable(yes: bool) -> None:
    if not yes and not sys.stdin.isatty():
        raise RequestError("nobody is there to agree to what it will cost: add --yes")


def _asked(found: "Findings", yes: bool) -> bool:
    _say(_findings_text(found), "")
    return yes or typer.confirm("Submit it?", default=False, err=True)


def _findings_text(found: "Findings") -> str:
    """What a cluster saw, as people read it."""
    versions = found.versions
    rows = [(node.name, *_has(node), "driver" if node.driver else "") for node in found.nodes]
    lines = [
        f"tinynet-search {versions.get('tinynet-search')}, Ray {versions.get('ray')}, Python {versions['python']}"
    ]
    lines += ["", table(("node", "CPUs", "GPUs", ""), rows)] if rows else []
    lines += ["", f"storage  {found.storage}", f"MLflow   {found.tracking}"]
    if plan := found.plan:
        from tinynet_search.cli.summary import cost_lines, plan_lines

        adaptive = [
            f"{plan.trials} candidates are drawn while the search runs, each from the results before it"
        ]
        lines += ["", *plan_lines(plan), *(adaptive if plan.adaptive else cost_lines(plan))]
        lines.append(found.why or f"{found.at_once} trials at once")
    if estimate := found.estimate:
        hours = (
            f"{estimate.worker_hours:.1f} {estimate.unit}, {duration(estimate.wall_seconds)} in all"
        )
        lines.append(f"{hours}, finals included ({estimate.source})")
    lines += found.notes
    return "\n".join(lines)


def _has(node: "NodeRow") -> list[str]:
    return [f"{node.resources.get(key, 0):g}" for key in ("CPU", "GPU")]


def _row(job: "JobRow") -> tuple[str, ...]:
    return (
        job.id,
        job.kind,
        job.status.lower(),
        local_minute(job.started),
        _for(job),
        job.storage,
    )


def _for(job: "JobRow") -> str:
    return duration((job.ended or time.time()) - job.started) if job.started else ""


def _say(*lines: str) -> None:
    print("\n".join(lines), file=sys.stderr, flush=True)
