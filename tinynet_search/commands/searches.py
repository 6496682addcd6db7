"""Searches: run one, look at its frontier, bring MLflow up to date."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from search_spaces.errors import RequestError
from tinynet_search.commands.app import AsJson, Tracking, app

ConfigFile = Annotated[Path | None, typer.Argument(help="A TOML configuration.", show_default=False)]
Preset = Annotated[str | None, typer.Option(help="A shipped configuration: demo or imagenet100.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; comes last. May be repeated.")]
Trials = Annotated[int | None, typer.Option(help="How many trials in all: search.trials.")]
Storage = Annotated[str | None, typer.Option(help="Folder or URL of all searches: storage.path (./searches).")]
SearchName = Annotated[str | None, typer.Option("--search", help="Name of the search; the newest where none is given.")]


@app.command()
def search(
    config: ConfigFile = None,
    preset: Preset = None,
    settings: Settings = None,
    trials: Trials = None,
    storage: Storage = None,
    tracking: Tracking = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the candidates and what they will cost; run and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a search, or take it up where it was left.

    Plan, trials, frontier, formula, final networks.
    """
    from tinynet_search.config import load_config

    if config is None and preset is None:
        raise RequestError("nothing to search: give a TOML configuration or --preset demo")
    extra = [("search.trials", trials), ("storage.path", storage)]
    flags = [f"{key}={json.dumps(value)}" for key, value in extra if value is not None]
    loaded = load_config(config, preset=preset, settings=[*(settings or []), *flags])
    from tinynet_search import report

    if dry_run:
        preview = report.preview(loaded)
        print(json.dumps(preview, indent=1) if as_json else report.preview_text(preview))
        return
    from tinynet_search.search import run_search, say

    outcome = run_search(loaded, tracking=tracking)
    print(json.dumps(report.summary(outcome), indent=1) if as_json else report.text(outcome))
    if outcome.lost:
        say(f"{len(outcome.lost)} trials have no result (their processes were lost too often): run the same command again")
        raise typer.Exit(1)


@app.command()
def frontier(
    search_name: SearchName = None,
    storage: Annotated[str, typer.Option(help="Folder of all searches.")] = "searches",
    tracking: Tracking = None,
    all_trials: Annotated[bool, typer.Option("--all", help="Every trial, not the frontier alone.")] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
) -> None:
    """A search's frontier models, as MLflow has them."""
    from tinynet_search.tracking import frontier_models, trial_rows

    asked: dict[str, Any] = {"tracking_uri": tracking, "storage": storage, "all_trials": all_trials}
    if as_json:
        print(json.dumps(trial_rows(search_name, **asked), indent=1))
        return
    models = frontier_models(search_name, **asked)
    if as_csv:
        print(models.to_csv(index=False), end="")
    else:
        from tinynet_search.report import frontier_table

        print(frontier_table(models.to_dict("records")))


@app.command()
def sync(
    search_name: SearchName = None,
    storage: Annotated[str, typer.Option(help="Folder of all searches.")] = "searches",
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Bring MLflow up to date with a search, or a training job.

    Sending twice changes nothing.
    """
    from tinynet_search.store import SearchStore
    from tinynet_search.tracking import resolve_uri, stored, sync_stored
    from tinynet_search.tracking.connection import address

    names = [search_name] if search_name else stored(storage)
    uri = resolve_uri(tracking, None, storage)
    reports = {name: sync_stored(SearchStore(f"{storage.rstrip('/')}/{name}"), uri) for name in names}
    if as_json:
        print(json.dumps({name: vars(done) for name, done in reports.items()}, indent=1))
    else:
        for name, done in reports.items():
            print(f"{name}: {done.runs} runs, {done.epochs} epochs at {address(uri)}")
