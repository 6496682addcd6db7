"""Searches: run one, look at its frontier, bring MLflow up to date."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import AsJson, Tracking, app
from tinynet_search.errors import one_line
from tinynet_search.text import seconds

if TYPE_CHECKING:
    from tinynet_search.config import Config, Override
    from tinynet_search.search.outcome import SearchOutcome

ConfigFile = Annotated[
    Path | None, typer.Argument(help="A TOML configuration.", show_default=False)
]
Preset = Annotated[str | None, typer.Option(help="A shipped configuration: demo or imagenet100.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="section.key=value; comes last. May be repeated.")
]
Trials = Annotated[int | None, typer.Option(help="How many trials in all: search.trials.")]
Storage = Annotated[
    str | None, typer.Option(help="Folder or URL of all searches: storage.path (./searches).")
]
Epochs = Annotated[
    int | None,
    typer.Option(help="Epochs a trial: recipe.epochs; with --continue those of the frontier."),
]
TrialTimeout = Annotated[
    str | None, typer.Option(help="A trial without an epoch for so long has failed: 600, 30m, 6h.")
]
Retry = Annotated[
    list[str] | None,
    typer.Option(help="Train failed trials again: failed, or a reason. May be repeated."),
]
Continue = Annotated[
    str | None, typer.Option("--continue", help="frontier: train its models on, to --epochs.")
]
Anew = Annotated[
    bool,
    typer.Option("--anew", help="With --continue: from the start, where a schedule cannot go on."),
]
SearchName = Annotated[
    str | None, typer.Option("--search", help="Name of the search; the newest where none is given.")
]


@app.command()
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
    anew: Anew = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Show the candidates and what they will cost; run and write nothing."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a search, or take it up where it was left.

    Plan, trials, frontier, formula, final networks. Ctrl-C once lets every training commit a checkpoint.
    """
    loaded = configured(
        config, preset, settings, trials, storage, chosen(epochs, trial_timeout, continue_, anew)
    )
    from tinynet_search.cli.summary import preview_text, search_summary, text
    from tinynet_search.plan.preview import preview

    if dry_run and retry:
        raise RequestError("--dry-run shows what is left to train as it is: leave out --retry")
    if dry_run:
        planned = preview(loaded.resolve())
        print(json.dumps(planned.to_json(), indent=1) if as_json else preview_text(planned))
        return
    from tinynet_search.search.driver import run_search

    outcome = run_search(loaded, tracking=tracking, retry=retry or ())
    print(json.dumps(search_summary(outcome), indent=1) if as_json else text(outcome))
    _unfinished(outcome)


def configured(
    config: Path | None,
    preset: str | None,
    settings: list[str] | None,
    trials: int | None,
    storage: str | None,
    more: Mapping[str, "Override"] = MappingProxyType({}),
) -> "Config":
    """The configuration that a search's options stand for; those in ``more``, by section.key, come last.

    Raises:
        RequestError: there is none, or it says what cannot be.
    """
    from tinynet_search.config import load_config, overriding

    if config is None and preset is None:
        raise RequestError("nothing to search: give a TOML configuration or --preset demo")
    options = overriding({"search.trials": trials, "storage.path": storage, **more})
    return load_config(config, preset=preset, settings=settings or (), overrides=options)


def chosen(
    epochs: int | None, trial_timeout: str | None, part: str | None, anew: bool
) -> "dict[str, Override]":
    """The settings that --epochs, --trial-timeout, --continue and --anew stand for."""
    return {"run.trial_timeout": seconds(trial_timeout), **_epochs(epochs, part, anew)}


def _epochs(epochs: int | None, part: str | None, anew: bool) -> "dict[str, Override]":
    if part is None:
        if anew:
            raise RequestError("--anew says how --continue frontier trains: give both, or neither")
        return {"recipe.epochs": epochs}
    if part != "frontier":
        raise RequestError(f"--continue {part!r}: give frontier, whose models can be trained on")
    if epochs is None:
        raise RequestError(
            "--continue frontier needs --epochs: how many its models are to have in all"
        )
    return {"search.frontier_epochs": epochs, "search.anew": anew or None}


def _unfinished(outcome: "SearchOutcome") -> None:
    """Say what is missing and end with exit code 1, if anything is."""
    from tinynet_search.search.driver import say

    if outcome.stopped:
        say(f"tinynet: the search stopped early: {outcome.stopped}")
    if outcome.lost:
        why = next(
            (outcome.lost_why[c.run] for c in outcome.lost if outcome.lost_why.get(c.run)),
            "their processes were lost too often",
        )
        say(
            f"tinynet: {len(outcome.lost)} trials have no result ({one_line(why)}): run the same command again"
        )
    if outcome.stopped or outcome.lost:
        raise typer.Exit(1)


@app.command()
def frontier(
    search_name: SearchName = None,
    storage: Annotated[str, typer.Option(help="Folder of all searches.")] = "searches",
    tracking: Tracking = None,
    all_trials: Annotated[
        bool, typer.Option("--all", help="Every trial, not the frontier alone.")
    ] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
) -> None:
    """A search's frontier models, as MLflow has them."""
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


@app.command()
def sync(
    search_name: SearchName = None,
    storage: Annotated[str, typer.Option(help="Folder of all searches.")] = "searches",
    tracking: Tracking = None,
    space: Annotated[
        str | None,
        typer.Option(help="module:attribute, where the search or job is of your own space."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring MLflow up to date with a search, or a training job.

    Sending twice changes nothing.
    """
    from tinynet_search.mlflow_client.connection import address, resolve_uri
    from tinynet_search.store.directory import SearchStore
    from tinynet_search.tracking.sync import stored, sync_stored
    from trainables.storage.folder import below

    names = [search_name] if search_name else stored(storage)
    uri = resolve_uri(tracking, None, storage)
    reports = {name: sync_stored(SearchStore(below(storage, name)), uri, space) for name in names}
    if as_json:
        print(json.dumps({name: vars(done) for name, done in reports.items()}, indent=1))
    else:
        for name, done in reports.items():
            sent = f"{done.runs} runs, {done.epochs} epochs at {address(uri)}"
            print(
                f"{name}: "
                + (f"held by {done.held}, whose publisher sends what is new" if done.held else sent)
            )
