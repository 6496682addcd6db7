"""``tinynet check``, ``submit`` and ``jobs``: runs searches and trainings as jobs of a Ray cluster.

Registered with the application by ``main``.
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import AsJson, Tracking, app, example, print_help
from tinynet_search.cli.searches import (
    ConfigFile,
    Continue,
    Epochs,
    FromScratch,
    Preset,
    Retry,
    Settings,
    Storage,
    Trials,
    TrialTimeout,
    load_search_config,
    training_overrides,
)
from tinynet_search.commands import jobs_command
from tinynet_search.errors import one_line
from tinynet_search.text import duration, local_minute, table

if TYPE_CHECKING:
    from tinynet_search.cluster.preflight import Findings, NodeRow
    from tinynet_search.jobs.watching import JobRow
    from tinynet_search.train.request import TrainRequest

Address = Annotated[
    str | None,
    typer.Option(
        help="Connect to the cluster's dashboard at this URL, http://HEAD:8265.",
        show_default="RAY_API_SERVER_ADDRESS",
    ),
]
WorkingDir = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="Upload this folder of your own modules with the job."),
]
Wheel = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Upload this wheel of tinynet-search, if the cluster has none or a different version.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Skip the confirmation.")]
Follow = Annotated[
    bool, typer.Option("--follow", "-f", help="Print new output until the job ends.")
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Return once the job is queued.")]
Gpu = Annotated[
    str | None,
    typer.Option(
        help="Estimate the time for this GPU (a100, h100, ...) without a short training run."
    ),
]
JobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="Id of a job, or name of a search or training (its newest job)."
    ),
]

OwnerOption = Annotated[
    str | None,
    typer.Option("--owner", help="Choose the job of this owner, if several have the name."),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="DIR",
        help="Choose the job that writes to this folder or URL, if several have the name.",
    ),
]

jobs = typer.Typer(
    callback=print_help,
    invoke_without_command=True,
    help="List, follow, stop and resume jobs on a cluster.",
    epilog=example("jobs list"),
)
app.add_typer(jobs, name="jobs")


@app.command(epilog=example("check search.toml"))
def check(
    config: ConfigFile = None,
    preset: Preset = None,
    settings: Settings = None,
    trials: Trials = None,
    storage: Storage = None,
    tracking: Tracking = None,
    gpu: Gpu = None,
    no_plan: Annotated[
        bool,
        typer.Option("--no-plan", help="Skip candidates and cost, as for a single training."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check whether a search can run here.

    Checks data, storage, MLflow, nodes and the resources of a trial, without training candidates.
    """
    from tinynet_search.cluster.preflight import check_search

    findings = check_search(
        load_search_config(config, preset, settings, trials, storage),
        tracking,
        gpu,
        plan=not no_plan,
    )
    print(json.dumps(findings.to_json()) if as_json else _findings_text(findings))
    if findings.problems:
        _say(*(f"tinynet: {problem}" for problem in findings.problems))
        raise typer.Exit(1)


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    epilog=example("submit search.toml --yes"),
)
def submit(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG",
            help="Path of a TOML configuration, or train and the arguments of tinynet train.",
        ),
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
    from_scratch: FromScratch = False,
    address: Address = None,
    working_dir: WorkingDir = None,
    wheel: Wheel = None,
    gpu: Gpu = None,
    yes: Yes = False,
    no_wait: NoWait = False,
    as_json: AsJson = False,
) -> None:
    """Run or resume a search on a cluster.

    The job keeps running after you disconnect or press Ctrl-C. Before it is queued, the cluster
    checks data, storage, MLflow and its nodes; the result and the cost of the search are printed.

    tinynet submit train ... submits a single training in the same way, without confirmation.
    """
    from tinynet_search.jobs import submit_search, submit_train

    if working_dir is not None:
        sys.path.append(str(Path(working_dir).expanduser().absolute()))
    if str(config) == "train":
        if (
            preset
            or trials is not None
            or trial_timeout
            or retry
            or continue_
            or from_scratch
            or gpu
        ):
            raise RequestError(
                "tinynet submit train accepts the options of tinynet train: remove --preset, "
                "--trials, --trial-timeout, --retry, --continue, --from-scratch and --gpu"
            )
        arguments = [*context.args, *(["--epochs", str(epochs)] if epochs is not None else [])]
        request = _train_request(arguments, settings, storage, tracking)
        submitted = submit_train(request, address, working_dir=working_dir, wheel=wheel)
        if submitted.findings and submitted.findings.notes:
            _say(*submitted.findings.notes)
    else:
        _reject_unknown([str(config or ""), *context.args], context.args)
        overrides = training_overrides(epochs, trial_timeout, continue_, from_scratch)
        loaded = load_search_config(config, preset, settings, trials, storage, overrides)
        _require_terminal(yes)

        def confirm(findings: "Findings") -> bool:
            return _confirm(findings, yes)

        submitted = submit_search(
            loaded,
            address,
            tracking=tracking,
            retry=retry or (),
            working_dir=working_dir,
            wheel=wheel,
            gpu=gpu,
            confirm=confirm,
        )
    job = submitted.id
    if as_json:
        print(json.dumps(submitted.to_json()), flush=True)
    else:
        _say(
            f"job {job} at {submitted.address}: "
            f"follow it with {jobs_command('logs', job, submitted.address, '--follow')}, "
            f"stop it with {jobs_command('stop', job, submitted.address)}"
        )
    if not no_wait:
        _follow(job, submitted.address, sys.stderr if as_json else sys.stdout)


def _reject_unknown(arguments: list[str], extra: list[str]) -> None:
    """Raise RequestError for an option or an argument that ``submit`` does not have."""
    options = [argument for argument in arguments if argument.startswith("-")]
    if options:
        raise RequestError(f"unknown option {options[0]!r}: see tinynet submit --help")
    if extra:
        raise RequestError(f"unexpected argument {extra[0]!r}: see tinynet submit --help")


@jobs.command("list", epilog=example("jobs list"))
def list_(address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs that tinynet submitted, oldest first."""
    from tinynet_search.jobs.watching import Jobs

    rows = Jobs(address).all()
    if as_json:
        print(json.dumps([asdict(job) for job in rows], indent=1))
    else:
        head = ("job", "owner", "kind", "status", "started", "for", "storage")
        print(table(head, [_row(job) for job in rows]))


@jobs.command(epilog=example("jobs status demo"))
def status(
    job: JobName,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    address: Address = None,
    as_json: AsJson = False,
) -> None:
    """Print the status of a job and its last line of output."""
    from tinynet_search.jobs.watching import Jobs

    cluster = Jobs(address)
    row = cluster.find(job, owner=owner, storage=storage)
    log = cluster.logs(row.id, owner=row.owner, storage=row.storage)
    output = [line for line in log.splitlines() if line.strip()]
    last = output[-1] if output else None
    if as_json:
        print(json.dumps({**asdict(row), "last": last}, indent=1))
        return
    lines = [
        ("job", row.id),
        ("owner", one_line(row.owner, 80)),
        ("kind", one_line(row.kind, 80)),
        ("status", row.status),
        ("started", local_minute(row.started)),
        ("for", _elapsed(row)),
        ("storage", one_line(row.storage)),
        ("MLflow", one_line(row.tracking)),
        ("output", last),
    ]
    if row.status == "FAILED":
        lines.append(("message", row.message))
    print("\n".join(f"{label:<8} {text}" for label, text in lines if text))


@jobs.command(epilog=example("jobs logs demo --follow"))
def logs(
    job: JobName,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    address: Address = None,
    follow: Follow = False,
) -> None:
    """Print the output of a job."""
    from tinynet_search.jobs.watching import Jobs

    if follow:
        _follow(job, address, owner=owner, storage=storage)
    else:
        print(Jobs(address).logs(job, owner=owner, storage=storage), end="")


@jobs.command(epilog=example("jobs stop demo"))
def stop(
    job: JobName,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    address: Address = None,
) -> None:
    """Stop a job after its trainings have committed a checkpoint."""
    from tinynet_search.jobs.watching import Jobs

    cluster = Jobs(address)
    row = cluster.stop(job, owner=owner, storage=storage)
    command = jobs_command("resume", row.id, cluster.address)
    _say(f"job {row.id} {row.status.lower()}: resume it with {command}")


@jobs.command(epilog=example("jobs resume demo --no-wait"))
def resume(
    job: JobName,
    owner: OwnerOption = None,
    storage: StorageOption = None,
    address: Address = None,
    working_dir: WorkingDir = None,
    wheel: Wheel = None,
    no_wait: NoWait = False,
) -> None:
    """Submit a job again; it continues from its last checkpoints."""
    from tinynet_search.jobs.watching import Jobs

    submitted = Jobs(address).resume(
        job, working_dir=working_dir, wheel=wheel, owner=owner, storage=storage
    )
    _say(f"job {submitted.id} at {submitted.address} resumes {submitted.name}")
    if not no_wait:
        _follow(submitted.id, submitted.address)


def _follow(
    job: str,
    address: str | None,
    stream: TextIO | None = None,
    *,
    owner: str | None = None,
    storage: str | None = None,
) -> None:
    """Print the output of a job until it ends, then exit with its code; Ctrl-C does not stop it."""
    from tinynet_search.jobs.watching import Jobs

    try:
        cluster = Jobs(address)
        address = cluster.address
        row = cluster.follow(
            job,
            lambda text: print(text, end="", flush=True, file=stream),
            owner=owner,
            storage=storage,
        )
    except KeyboardInterrupt:
        command = jobs_command("logs", job, address, "--follow")
        _say(f"job {job} keeps running: follow it with {command}")
        raise typer.Exit(130) from None
    if row.status != "SUCCEEDED":
        reason = f": {row.message}" if row.exit_code is None else ""
        _say(
            f"tinynet: job {row.id} {row.status.lower()}{reason}: "
            f"resume it with {jobs_command('resume', row.id, address)}"
        )
        raise typer.Exit(row.exit_code or (143 if row.status == "STOPPED" else 1))


def _train_request(
    arguments: list[str], settings: list[str] | None, storage: str | None, tracking: str | None
) -> "TrainRequest":
    """Parse the arguments after ``submit train`` with the options of ``tinynet train``.

    ``submit`` has already parsed the options that both commands have: ``settings``, ``storage`` and
    ``tracking``.
    """
    from tinynet_search.cli.train import train_request

    group: Any = typer.main.get_command(app)
    with group.commands["train"].make_context("tinynet submit train", list(arguments)) as parsed:
        options = dict(parsed.params)
    if options.pop("eval_only") or options.pop("weights") is not None:
        raise RequestError("--eval-only and --weights are for tinynet train: remove them")
    del options["as_json"]
    options |= {"settings": settings or (), "storage": storage, "tracking": tracking}
    config = options.pop("config")
    network = options.pop("network")
    return train_request(network=network, config=Path(config) if config else None, **options)


def _require_terminal(yes: bool) -> None:
    """Raise RequestError if the user has to confirm and there is no terminal to ask on."""
    if not yes and not sys.stdin.isatty():
        raise RequestError("stdin is not a terminal, so the cost cannot be confirmed: pass --yes")


def _confirm(findings: "Findings", yes: bool) -> bool:
    _say(_findings_text(findings), "")
    return yes or typer.confirm("Submit the job?", default=False, err=True)


def _findings_text(findings: "Findings") -> str:
    """The checks of a cluster as text for the user."""
    versions = findings.versions
    rows = [(node.name, *_cores(node), "driver" if node.driver else "") for node in findings.nodes]
    lines = [
        f"tinynet-search {versions.get('tinynet-search')}, Ray {versions.get('ray')}, "
        f"Python {versions['python']}"
    ]
    if rows:
        lines += ["", table(("node", "CPUs", "GPUs", ""), rows)]
    lines += ["", f"storage  {findings.storage}", f"MLflow   {findings.tracking}"]
    if findings.plan:
        from tinynet_search.cli.summary import adaptive_line, cost_lines, plan_lines

        plan = findings.plan
        cost = [adaptive_line(plan)] if plan.adaptive else cost_lines(plan)
        lines += ["", *plan_lines(plan), *cost]
        lines.append(findings.why or f"{findings.at_once} concurrent trials")
    if findings.estimate:
        estimate = findings.estimate
        lines.append(
            f"{estimate.worker_hours:.1f} {estimate.unit}, {duration(estimate.wall_seconds)} "
            f"in total, finals included ({estimate.source})"
        )
    lines += findings.notes
    return "\n".join(lines)


def _cores(node: "NodeRow") -> list[str]:
    return [f"{node.resources.get(key, 0):g}" for key in ("CPU", "GPU")]


def _row(job: "JobRow") -> tuple[str, ...]:
    # Any client of the cluster may have written owner and storage.
    return (
        job.id,
        one_line(job.owner, 80),
        one_line(job.kind, 80),
        job.status.lower(),
        local_minute(job.started),
        _elapsed(job),
        one_line(job.storage),
    )


def _elapsed(job: "JobRow") -> str:
    return duration((job.ended or time.time()) - job.started) if job.started else ""


def _say(*lines: str) -> None:
    print("\n".join(lines), file=sys.stderr, flush=True)
