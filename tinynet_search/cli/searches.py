"""``tinynet search``, ``frontier`` and ``sync``: runs a search, lists models, updates MLflow.

Registered with the application by ``main``; ``jobs`` uses the same options for ``tinynet submit``.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import AsJson, Tracking, app, example
from tinynet_search.cli.completion import complete_from
from tinynet_search.errors import one_line
from tinynet_search.text import seconds

if TYPE_CHECKING:
    from tinynet_search.config import Config, Override
    from tinynet_search.search.outcome import SearchOutcome
    from tinynet_search.tracking.queries import SearchModels

ConfigFile = Annotated[
    Path | None,
    typer.Argument(metavar="CONFIG", help="Path of a TOML configuration.", show_default=False),
]
Preset = Annotated[
    str | None,
    typer.Option(
        help="Start from a built-in configuration: demo or imagenet100.",
        autocompletion=complete_from("demo", "imagenet100"),
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="Override a setting by section.key=value; pass it once per setting."
    ),
]
Trials = Annotated[
    int | None,
    typer.Option(help="Run this number of trials in total.", show_default="search.trials, or 100"),
]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Store all searches in this folder or under this URL.",
        show_default="storage.path, or ./searches",
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option(
        help="Train each trial, or with --continue the frontier, for this number of epochs.",
        show_default="recipe.epochs",
    ),
]
TrialTimeout = Annotated[
    str | None,
    typer.Option(
        help="Fail a trial that reports no epoch for this long (600, 30m, 6h).",
        show_default="run.trial_timeout, or 6h",
    ),
]
Retry = Annotated[
    list[str] | None,
    typer.Option(
        help="Train failed trials again: all (failed) or those with one reason; pass it once per "
        "reason."
    ),
]
Continue = Annotated[
    str | None,
    typer.Option(
        "--continue",
        help="Continue training the frontier models up to --epochs; the value is frontier.",
        autocompletion=complete_from("frontier"),
    ),
]
FromScratch = Annotated[
    bool,
    typer.Option(
        "--from-scratch",
        help="Train the models of --continue from scratch; cosine schedules cannot be continued.",
    ),
]
SearchFolder = Annotated[
    str,
    typer.Option(
        "--storage",
        help="Use the searches in this folder or under this URL, or the search of this directory.",
    ),
]


@app.command(epilog=example("search search.toml"))
def search(
    config: ConfigFile = None,
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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print the candidates and their cost; run and write nothing."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a search, or resume it from its last checkpoints.

    The steps are the plan, trials, frontier, formula and final networks. After the first Ctrl-C,
    every training commits a checkpoint before the search stops.
    """
    loaded = load_search_config(
        config,
        preset,
        settings,
        trials,
        storage,
        training_overrides(epochs, trial_timeout, continue_, from_scratch),
    )
    from tinynet_search.cli.summary import preview_text, search_summary, text
    from tinynet_search.plan.preview import preview

    if dry_run and retry:
        raise RequestError("--dry-run does not support --retry: remove one of them")
    if dry_run:
        plan_preview = preview(loaded.resolve())
        document = plan_preview.to_json()
        print(json.dumps(document, indent=1) if as_json else preview_text(plan_preview))
        return
    from tinynet_search.search.driver import run_search

    outcome = run_search(loaded, tracking=tracking, retry=retry or ())
    print(json.dumps(search_summary(outcome), indent=1) if as_json else text(outcome))
    _report_unfinished(outcome)


def load_search_config(
    config: Path | None,
    preset: str | None,
    settings: list[str] | None,
    trials: int | None,
    storage: str | None,
    extra: Mapping[str, "Override"] = MappingProxyType({}),
) -> "Config":
    """The configuration that the options of a search select.

    Args:
        extra: more overrides by section.key; they take precedence.

    Raises:
        RequestError: no configuration is given, or it is invalid.
    """
    from tinynet_search.config import load_config, values_from_options

    if config is None and preset is None:
        raise RequestError("no configuration given: pass a TOML file or --preset demo")
    options = values_from_options({"search.trials": trials, "storage.path": storage, **extra})
    return load_config(config, preset=preset, settings=settings or (), overrides=options)


def training_overrides(
    epochs: int | None, trial_timeout: str | None, part: str | None, from_scratch: bool
) -> "dict[str, Override]":
    """The overrides that --epochs, --trial-timeout, --continue and --from-scratch select.

    Raises:
        RequestError: the options contradict each other.
    """
    timeout = {"run.trial_timeout": seconds(trial_timeout)}
    return {**timeout, **_epoch_overrides(epochs, part, from_scratch)}


def _epoch_overrides(
    epochs: int | None, part: str | None, from_scratch: bool
) -> "dict[str, Override]":
    if part is None:
        if from_scratch:
            raise RequestError("--from-scratch needs --continue frontier: pass both or neither")
        return {"recipe.epochs": epochs}
    if part != "frontier":
        raise RequestError(f"--continue {part!r} is not valid: pass --continue frontier")
    if epochs is None:
        raise RequestError(
            "--continue frontier needs --epochs: pass the total epochs of the frontier models"
        )
    return {"search.frontier_epochs": epochs, "search.from_scratch": from_scratch or None}


def _report_unfinished(outcome: "SearchOutcome") -> None:
    """Exit with code 1 and a message if the search stopped early or trials have no result."""
    from tinynet_search.search.driver import print_message

    if outcome.stopped:
        print_message(f"tinynet: the search stopped early: {outcome.stopped}")
    if outcome.lost:
        reasons = [outcome.lost_reasons.get(candidate.run) for candidate in outcome.lost]
        known = [reason for reason in reasons if reason]
        reason = known[0] if known else "their processes were lost too often"
        print_message(
            f"tinynet: {len(outcome.lost)} trials have no result ({one_line(reason)}): "
            "run the same command again"
        )
    if outcome.stopped or outcome.lost:
        raise typer.Exit(1)


@app.command(epilog=example("frontier --search demo"))
def frontier(
    search_name: Annotated[
        str | None,
        typer.Option(
            "--search",
            help="Select the search by name, directory or key.",
            show_default="the newest",
        ),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            "--storage",
            help="Select only searches in this folder or under this URL, or the search of "
            "this directory.",
            show_default="all in MLflow, or ./searches without a server",
        ),
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Select only searches of this owner.")] = None,
    tracking: Tracking = None,
    all_trials: Annotated[
        bool, typer.Option("--all", help="List all trials, not only the frontier.")
    ] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
) -> None:
    """List the frontier models of a search from MLflow."""
    from tinynet_search.tracking.queries import rows_as_table, search_models

    models = search_models(
        search_name, owner=owner, tracking_uri=tracking, storage=storage, all_trials=all_trials
    )
    if as_json:
        print(json.dumps([asdict(row) for row in models.rows], indent=1))
    elif as_csv:
        print(rows_as_table(models.rows).to_csv(index=False), end="")
    elif models.rows:
        from tinynet_search.cli.network_table import frontier_table

        print(frontier_table(models.rows))
    if not models.rows:
        print(_no_models(models, all_trials=all_trials), file=sys.stderr)


def _no_models(models: "SearchModels", *, all_trials: bool) -> str:
    """One line about a search without rows."""
    running = models.status in ("RUNNING", "SCHEDULED")
    state = "it is running" if running else f"its status is {models.status}"
    if all_trials:
        return f"search {models.search} of {models.owner} has no trials yet: {state}"
    return (
        f"search {models.search} of {models.owner} has no frontier yet: {state}; "
        "--all lists the trials that have started"
    )


@app.command(epilog=example("sync --search demo"))
def sync(
    search_name: Annotated[
        str | None,
        typer.Option(
            "--search",
            help="Select the search or training job by the name of its directory.",
            show_default="all",
        ),
    ] = None,
    storage: SearchFolder = "searches",
    tracking: Tracking = None,
    space: Annotated[
        str | None,
        typer.Option(help="Load your own search space from this module:attribute."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Register formulas as versions of this name and the space.",
            show_default="that of the last registration, or tiny-formula",
        ),
    ] = None,
    promote: Annotated[
        bool,
        typer.Option(
            "--promote",
            help="Make the formula of --search, or the weights of a job, the champion of its "
            "registered model.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Update MLflow from the results of searches and training jobs.

    Running it twice changes nothing. Without --tracking and MLFLOW_TRACKING_URI, the database in
    the storage folder is used; it is created only if there are results to publish.
    """
    from tinynet_search.mlflow_client.connection import (
        RejectedRequestError,
        address,
        resolve_uri,
    )
    from tinynet_search.mlflow_client.names import check_model_name
    from tinynet_search.store.directory import SearchStore
    from tinynet_search.tracking.registered_formula import Registration
    from tinynet_search.tracking.selection import storage_and_search
    from tinynet_search.tracking.sync import (
        SyncReport,
        has_nothing_to_publish,
        missing_default_database,
        require_stored,
        stored_names,
        sync_stored,
    )
    from trainables.storage.folder import child_url

    storage, search_name = storage_and_search(storage, search_name)
    if promote and not search_name:
        raise RequestError("--promote needs --search: pass the name of the search or job")
    if search_name:
        require_stored(storage, search_name)
    registration = Registration(check_model_name(model), promote)
    names = [search_name] if search_name else stored_names(storage)
    uri = resolve_uri(tracking, None, storage)
    missing = missing_default_database(tracking, uri)
    reports: dict[str, SyncReport] = {}
    rejected = False
    for name in names:
        store = SearchStore(child_url(storage, name))
        try:
            creates = missing is not None and not missing.exists() and not promote
            if creates and has_nothing_to_publish(store, space):
                # Without results there is nothing to create a database for.
                reports[name] = SyncReport(name, 0, 0, None)
            else:
                reports[name] = sync_stored(store, uri, space, registration)
        except (RejectedRequestError, RequestError) as error:
            if search_name:
                raise
            # A search of another owner does not prevent the others from being sent.
            rejected = True
            print(f"tinynet: {name}: {error}", file=sys.stderr)
    if missing and missing.exists():
        print(
            f"created {address(uri)}, since neither --tracking nor MLFLOW_TRACKING_URI is set",
            file=sys.stderr,
        )
    if as_json:
        print(json.dumps({name: vars(done) for name, done in reports.items()}, indent=1))
    else:
        for name, done in reports.items():
            # A search keeps its name if its directory is renamed.
            label = name if name == done.search else f"{done.search} (directory {name})"
            if done.held:
                print(f"{label}: held by {done.held}, which publishes new results itself")
            elif missing and not missing.exists():
                print(f"{label}: no results to publish")
            else:
                print(f"{label}: {done.runs} runs, {done.epochs} epochs at {address(uri)}")
            if done.promoted:
                print(f"{label}: {done.promoted} is the champion")
    if rejected:
        raise typer.Exit(1)
