"""``tinynet search``, ``frontier`` and ``sync``: runs a search, lists models, updates MLflow.

Registered with the application by ``main``; ``jobs`` uses the same options for ``tinynet submit``.
"""

import json
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
SearchName = Annotated[
    str | None,
    typer.Option("--search", help="Select the search by name.", show_default="the newest"),
]
SearchFolder = Annotated[
    str, typer.Option("--storage", help="Use the searches in this folder or under this URL.")
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
    search_name: SearchName = None,
    storage: SearchFolder = "searches",
    tracking: Tracking = None,
    all_trials: Annotated[
        bool, typer.Option("--all", help="List all trials, not only the frontier.")
    ] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV on stdout.")] = False,
) -> None:
    """List the frontier models of a search from MLflow."""
    from tinynet_search.tracking.queries import frontier_models, trial_rows

    if as_csv and not as_json:
        models = frontier_models(
            search_name, tracking_uri=tracking, storage=storage, all_trials=all_trials
        )
        print(models.to_csv(index=False), end="")
        return
    rows = trial_rows(search_name, tracking_uri=tracking, storage=storage, all_trials=all_trials)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        from tinynet_search.cli.network_table import frontier_table

        print(frontier_table(rows))


@app.command(epilog=example("sync --search demo"))
def sync(
    search_name: Annotated[
        str | None,
        typer.Option(
            "--search", help="Select the search or training job by name.", show_default="all"
        ),
    ] = None,
    storage: SearchFolder = "searches",
    tracking: Tracking = None,
    space: Annotated[
        str | None,
        typer.Option(help="Load your own search space from this module:attribute."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Update MLflow from the results of searches and training jobs.

    Running it twice changes nothing.
    """
    from tinynet_search.mlflow_client.connection import address, resolve_uri
    from tinynet_search.store.directory import SearchStore
    from tinynet_search.tracking.sync import stored_names, sync_stored
    from trainables.storage.folder import child_url

    names = [search_name] if search_name else stored_names(storage)
    uri = resolve_uri(tracking, None, storage)
    reports = {
        name: sync_stored(SearchStore(child_url(storage, name)), uri, space) for name in names
    }
    if as_json:
        print(json.dumps({name: vars(done) for name, done in reports.items()}, indent=1))
    else:
        for name, done in reports.items():
            if done.held:
                print(f"{name}: held by {done.held}, which publishes new results itself")
            else:
                print(f"{name}: {done.runs} runs, {done.epochs} epochs at {address(uri)}")
