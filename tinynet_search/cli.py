"""The ``tinynet`` command. stdout holds what was asked for; messages go to stderr.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one line says what and how to mend it),
130 or 143 interrupted.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from search_spaces.errors import RequestError
from tinynet_search import __version__
from tinynet_search.errors import TrackingError, extras

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

ConfigFile = Annotated[Path | None, typer.Argument(help="A TOML configuration.", show_default=False)]
Preset = Annotated[str | None, typer.Option(help="A shipped configuration: demo or imagenet100.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="section.key=value; comes last. May be repeated.")]
Trials = Annotated[int | None, typer.Option(help="How many trials in all: search.trials.")]
Storage = Annotated[str | None, typer.Option(help="Folder or URL of all searches: storage.path (./searches).")]
Tracking = Annotated[str | None, typer.Option(help="MLflow's URI; else MLFLOW_TRACKING_URI, the configuration, a SQLite file in storage.")]
SearchName = Annotated[str | None, typer.Option("--search", help="Name of the search; the newest where none is given.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


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
    """Run a search, or take it up where it was left: plan, trials, frontier, formula, final networks."""
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
def suggest(
    budgets: Annotated[list[float], typer.Argument(metavar="C...", help="FLOPs as a fraction of the baseline's, in (0, 1].")],
    space: Annotated[str | None, typer.Option(help="Search space; the formula's own where none is given.")] = None,
    formula: Annotated[str, typer.Option(help="published, a formula.json, or models:/tiny-formula@champion.")] = "published",
    form: Annotated[str, typer.Option(help="default, or paper (equations 2-4 to the letter).")] = "default",
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Answer outside the formula's data too.")] = False,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """The network for a FLOPs budget: r, d, w, pixels, FLOPs, params."""
    from tinynet_search.formula import TinyFormula

    fitted = TinyFormula.load(formula, tracking_uri=tracking)
    found = [fitted.suggest(c, space=space, form=form, extrapolate=extrapolate) for c in budgets]
    if as_json:
        print(json.dumps([s.to_dict() for s in found], indent=1))
        return
    from tinynet_search.tables import table

    head = ("budget", "r", "d", "w", "pixels", "FLOPs", "c", "params", "± r", "± d")
    rows = [
        (
            f"{s.budget:g}",
            f"{s.r:.3f}",
            f"{s.d:.3f}",
            f"{s.w:g}",
            str(s.resolution),
            millions(s.macs),
            f"{s.c:.4f}",
            millions(s.params, 2),
            f"{s.r_std:.3f}",
            f"{s.d_std:.3f}",
        )
        for s in found
    ]
    print(table(head, rows))
    for note in dict.fromkeys(s.note for s in found if s.note):
        print(note, file=sys.stderr)


@app.command()
def frontier(
    search_name: SearchName = None,
    storage: Annotated[str, typer.Option(help="Folder of all searches.")] = "searches",
    tracking: Tracking = None,
    all_trials: Annotated[bool, typer.Option("--all", help="Every trial, not the frontier alone.")] = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="CSV on stdout.")] = False,
) -> None:
    """The frontier models of a search, as MLflow has them."""
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
def networks(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME...]", help="Names; all of them where none is given.")] = None,
    as_json: AsJson = False,
) -> None:
    """Every named network: (r, d, w), pixels, params, FLOPs, beside the paper's figures."""
    from search_spaces.networks import NETWORKS, get_named
    from tinynet_search.tables import table

    rows = [(row, row.network()) for row in map(get_named, names or NETWORKS)]
    if as_json:
        print(json.dumps([_network_row(row, network) for row, network in rows], indent=1))
        return
    head = ("network", "r", "d", "w", "pixels", "params", "paper", "FLOPs", "paper", "off", "source")
    print(table(head, [_network_cells(row, network) for row, network in rows]))


@app.command()
def sync(
    search_name: SearchName = None,
    storage: Annotated[str, typer.Option(help="Folder of all searches.")] = "searches",
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Bring MLflow up to date with what lies in the search directory; sending twice changes nothing."""
    from tinynet_search.report import stored_searches
    from tinynet_search.store import SearchStore
    from tinynet_search.tracking import resolve_uri, sync_search
    from tinynet_search.tracking.connection import address

    names = [search_name] if search_name else stored_searches(storage)
    uri = resolve_uri(tracking, None, storage)
    reports = {}
    for name in names:
        store = SearchStore(f"{storage.rstrip('/')}/{name}")
        if store.plan() is None:
            raise RequestError(f"no search at {store.url}: give --search and --storage")
        reports[name] = sync_search(store, uri)
    if as_json:
        print(json.dumps({name: vars(done) for name, done in reports.items()}, indent=1))
    else:
        for name, done in reports.items():
            print(f"{name}: {done.runs} runs, {done.epochs} epochs at {address(uri)}")


def millions(value: float, digits: int = 1) -> str:
    return f"{value / 1e6:.{digits}f}M"


def _network_cells(row: Any, network: Any) -> tuple[str, ...]:
    r, d, w = network.rdw
    figures = (f"{r:.3f}", f"{d:g}", f"{w:g}", str(network.resolution), millions(network.params, 2))
    params = "" if row.paper_params is None else f"{row.paper_params:g}M"
    off = 100 * (network.macs / 1e6 / row.paper_flops - 1)
    return (row.name, *figures, params, millions(network.macs), f"{row.paper_flops:g}M", f"{off:+.1f} %", row.source)


def _network_row(row: Any, network: Any) -> dict[str, Any]:
    figures = {"space": row.space, "r": network.rdw.r, "d": network.rdw.d, "w": network.rdw.w, "resolution": network.resolution}
    ours = {"macs": network.macs, "params": network.params, "c": network.c, "source": row.source}
    return {"name": row.name, **figures, **ours, "paper_macs": row.paper_flops * 1e6, "paper_params": (row.paper_params or 0) * 1e6 or None}


def main() -> None:
    """The command's entry: mistakes of the request are one line and exit code 2."""
    signal.signal(signal.SIGTERM, _terminated)
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command in this process and return its exit code."""
    if arguments == ["--version"]:
        print(f"tinynet {__version__}")
        return 0
    try:
        with extras():
            code = app(args=arguments or ["--help"], prog_name="tinynet", standalone_mode=False) or 0
        if code == 130:  # typer's answer to KeyboardInterrupt
            raise KeyboardInterrupt
        return code
    except RequestError as error:
        return _fail(str(error), 2)
    except TrackingError as error:
        return _fail(str(error), 1)
    except _USAGE as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted: the same command goes on from here", _interrupted)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


# BadParameter's grandparent, the ancestor of all of typer's usage errors; typer exports no name for it.
_USAGE: Any = typer.BadParameter.__mro__[2]
_interrupted = 130


def _terminated(*_: Any) -> None:
    global _interrupted
    _interrupted = 143
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    print(f"tinynet: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
