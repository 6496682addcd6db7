"""What a search is shown as: what it will cost before it runs, and what it came to."""

import os
import shlex
import shutil
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinynet_search.cli.network_table import figures, frontier_table
from tinynet_search.formula.gaussian_process import Prediction
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.plan.preview import Preview
from tinynet_search.search.conclusion import TINY, spearman_of
from tinynet_search.search.outcome import SearchOutcome
from tinynet_search.store.directory import FORMULA
from tinynet_search.store.schema import FinalRow, FrontierRow
from tinynet_search.text import in_seconds, megabytes, number, percent, short_millions, table
from trainables.result import ResultSummary

BUDGETS = (0.9, 0.5, 0.25, 0.13, 0.06)


def preview_text(preview: Preview) -> str:
    lines = [
        f"search {preview.search} at {preview.directory} (nothing written)",
        *plan_lines(preview),
        "",
    ]
    if preview.adaptive:
        return "\n".join(
            [
                *lines,
                f"{preview.trials} candidates are drawn while the search runs, each from the results before it",
            ]
        )
    head = ("id", "r", "d", "w", "pixels", "FLOPs", "c", "params", "training", "")
    rows = [
        (*figures(row), f"{row.training_macs / 1e12:.2f}T", "done" if row.done else "")
        for row in preview.candidates
    ]
    return "\n".join([*lines, table(head, rows), "", *cost_lines(preview)])


def plan_lines(preview: Preview) -> list[str]:
    """What is trained, on what, and for how long."""
    recipe, data, space = preview.recipe, preview.data, preview.space
    band = f"[{space.band[0]:g}, {space.band[1]:g}]"
    images = f"{data.train} training and {data.val} validation images, {space.num_classes} classes"
    return [
        f"space {space.name}, c in {band}, sampler {preview.sampler.name}",
        f"recipe {recipe.name}: {recipe.epochs} epochs, batch {recipe.batch}; data {data.fingerprint}: {images}",
    ]


def cost_lines(preview: Preview) -> list[str]:
    """What is left to train, and what it takes."""
    left = sum(not row.done for row in preview.candidates)
    lines = [
        f"{left} of {preview.trials} to train: {preview.training_macs_left / 1e12:.1f}T multiply-adds of training "
        f"(three forward passes an image and epoch, two evaluations an epoch)"
    ]
    lines += [line for line in (preview.warning, preview.continued) if line]
    kept = preview.kept_bytes
    last = f" and {megabytes(kept)} of last checkpoints, for longer trainings" if kept else ""
    weights, peak = megabytes(preview.weights_bytes), megabytes(preview.checkpoint_bytes_peak)
    return [
        *lines,
        f"{weights} of weights{last} at the end, up to {peak} of checkpoints a running trial",
    ]


def text(outcome: SearchOutcome) -> str:
    """A search's outcome, as ``tinynet search`` ends with."""
    parts = [
        ("Failed trials", _failures(outcome)),
        ("Frontier", frontier_table(outcome.frontier) if outcome.frontier else ""),
        ("Frontier models trained on", longer_table(outcome)),
        ("Spearman's rank correlation with FLOPs on the frontier", _spearman_line(outcome)),
        (
            "The formula beside the published one (fitted to the paper's TinyNets on EfficientNet-B0)",
            formula_table(outcome.formula),
        ),
        ("Final networks at equal FLOPs", finals_table(outcome)),
        ("Time", _time_lines(outcome)),
        ("Where everything lies", _places(outcome)),
    ]
    sections = [f"{title}\n\n{body}" for title, body in parts if body]
    early = [f"Stopped early: {outcome.stopped}."] if outcome.stopped else []
    return "\n\n".join([_headline(outcome), *early, *sections, *outcome.notes])


def search_summary(outcome: SearchOutcome) -> dict[str, Any]:
    """The outcome as one JSON document."""
    return {
        "search": outcome.store.name,
        "directory": outcome.store.url,
        "tracking": outcome.tracking,
        "trials": len(outcome.candidates),
        "trained_now": outcome.new,
        "stopped": outcome.stopped,
        "lost": {c.run: outcome.lost_why.get(c.run) for c in outcome.lost},
        "failed": {result.run: result.reason for result in outcome.failed},
        "frontier": [_flat(row) for row in outcome.frontier],
        "spearman": spearman_of(outcome.frontier),
        "formula_usable": outcome.formula.usable,
        "finals": [final.to_json() for final in finals(outcome)],
        "seconds": outcome.seconds,
        "trained_seconds": outcome.trained,
        "notes": outcome.notes,
    }


def formula_table(formula: TinyFormula) -> str:
    """r(c) and d(c) of a formula and of the published one; dots outside the formula's data."""
    if not formula.usable:
        return f"not usable: {formula.reason}"
    published, span = TinyFormula.load("published"), formula.range or (0.0, 0.0)
    rows = []
    for c in sorted({*BUDGETS, *(round(edge, 3) for edge in span)}, reverse=True):
        ours, theirs = _predicted(formula, c), _predicted(published, c)
        cells = (
            [f"{ours.r_mean:.2f} ± {ours.r_std:.2f}", f"{ours.d_mean:.2f} ± {ours.d_std:.2f}"]
            if ours
            else ["...", "..."]
        )
        rows.append(
            (
                f"{c:g}",
                *cells,
                *(
                    [number(theirs.r_mean, 2), number(theirs.d_mean, 2)]
                    if theirs
                    else ["...", "..."]
                ),
            )
        )
    return (
        table(("c", "r(c)", "d(c)", "published r(c)", "published d(c)"), rows)
        + f"\nfitted for c in [{span[0]:.3f}, {span[1]:.3f}]"
    )


def _predicted(formula: TinyFormula, c: float) -> Prediction | None:
    """r(c) and d(c), or None outside the formula's data (its ends count as inside, however they are printed)."""
    low, high = formula.range or (1.0, 0.0)
    return formula.predict(min(max(c, low), high)) if low - 5e-4 <= c <= high + 5e-4 else None


@dataclass(frozen=True)
class FinalResult:
    """A final job with its result, which is None before it has one."""

    row: FinalRow
    result: ResultSummary | None

    @property
    def id(self) -> str:
        return self.row.run.id

    @property
    def status(self) -> str:
        return self.result.status if self.result else "missing"

    def to_json(self) -> dict[str, Any]:
        row, result = self.row, self.result
        names = ("resolution", "macs", "params", "c") if result else ()
        return {
            "budget": row.c,
            "label": row.label,
            "extrapolated": row.extrapolated,
            "note": row.note,
            "id": self.id,
            **dict(zip("rdw", row.spec.rdw, strict=True)),
            **{name: getattr(result, name) for name in names},
            "top1": result.top1 if result else None,
            "status": self.status,
        }

    def cells(self) -> tuple[str, ...]:
        """Of ``finals_table``; for a job that has a result."""
        row, result = self.row, self.result
        assert result is not None
        return (
            "formula" if row.label == TINY else f"shrunken baseline ({row.label})",
            f"{row.c:g}",
            *(number(value, 3) for value in row.spec.rdw),
            f"{result.resolution:g}",
            short_millions(result.macs),
            number(result.c, 3),
            short_millions(result.params),
            number(result.top1, 1),
            "beyond the data" if row.extrapolated else row.note or "",
        )


def finals(outcome: SearchOutcome) -> list[FinalResult]:
    """The final jobs with their results."""
    return [FinalResult(row, outcome.results.get(row.run)) for row in outcome.final_rows]


def finals_table(outcome: SearchOutcome) -> str:
    cells = [final.cells() for final in finals(outcome) if final.result]
    if not cells:
        return ""
    head = ("network", "budget", "r", "d", "w", "pixels", "FLOPs", "c", "params", "top-1 %", "")
    return table(head, cells)


def longer_table(outcome: SearchOutcome) -> str:
    """Models of the frontier that were trained for more epochs too."""
    head = ("trial", "c", "epochs", "top-1 %", "epochs then", "top-1 % then")
    cells = [
        (
            row.id,
            number(row.c, 3),
            str(row.run.epochs),
            number(row.top1, 1),
            str(row.longer.epochs),
            number(row.longer.top1, 1),
        )
        for row in outcome.frontier
        if row.longer
    ]
    return table(head, cells) if cells else ""


def _headline(outcome: SearchOutcome) -> str:
    results = outcome.results
    reasons = Counter(result.reason for result in outcome.failed)
    done = f"{len([c for c in outcome.candidates if c.run in results])} trials and {len({c.run for c in outcome.finals})} finals"
    failed = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    return f"Search {outcome.store.name}: {done}, {outcome.new} trained now" + (
        f", {reasons.total()} failed ({failed})" if failed else ""
    )


def _failures(outcome: SearchOutcome) -> str:
    """Why trials failed, the first few of them."""
    failed = outcome.failed
    lines = [f"{each.run.id}  {each.reason}: {each.detail}" for each in failed[:5]]
    more = [f"and {len(failed) - 5} more"] if len(failed) > 5 else []
    again = (
        "--retry failed tries them again, or --retry with one reason; what diverged diverges again"
    )
    return "\n".join([*lines, *more, again]) if failed else ""


def _spearman_line(outcome: SearchOutcome) -> str:
    if not outcome.frontier:
        return ""
    found = spearman_of(outcome.frontier)
    return (
        "  ".join(f"{key} {number(value, 2)}" for key, value in found.items())
        + f"  over {len(outcome.frontier)} models"
    )


def _time_lines(outcome: SearchOutcome) -> str:
    if not outcome.new or "trials" not in outcome.seconds:
        return f"{in_seconds(outcome.seconds['total'], 1)}: every trial had its result"
    seconds, bare = outcome.seconds, outcome.trained / outcome.at_once
    total, ray, trials = seconds["total"], seconds["ray"], seconds["trials"]
    overhead = (
        f"{in_seconds(total - bare)} ({percent(100 * (total - bare) / total, 0)} of the wall)"
    )
    return (
        f"{in_seconds(total)} in all, {outcome.at_once} trials at a time: {in_seconds(outcome.trained)} of bare training, "
        f"{in_seconds(bare)} of the wall\n"
        f"overhead {overhead}: Ray's start and stop {in_seconds(ray, 1)}; "
        f"process start, imports, data, checkpoints and idle ends {in_seconds(trials - bare, 1)}; "
        f"plan, frontier, formula, tracking {in_seconds(total - ray - trials, 1)}\n"
        f"MLflow took {in_seconds(seconds['mlflow'], 1)}, beside the trials"
    )


def _places(outcome: SearchOutcome) -> str:
    formula = outcome.store.at(FORMULA)
    lines = [f"search directory  {outcome.store.url}", f"formula           {formula}"]
    if outcome.link:
        lines.append(f"MLflow            {outcome.link}")
    if outcome.tracking.startswith("sqlite:"):
        lines.append(f"opened by         {mlflow_server(outcome.tracking)}")
    if outcome.formula.usable:
        own = outcome.plan.space.name
        space = f" --space {shlex.quote(own)}" if ":" in own else ""
        low, high = outcome.formula.range or (0.3, 0.3)
        middle = (low * min(high, 1.0)) ** 0.5
        lines.append(
            f"ask the formula   {_command('tinynet')} suggest {middle:.2g}{space} --formula {shlex.quote(formula)}"
        )
    return "\n".join(lines)


def mlflow_server(uri: str) -> str:
    """The command that opens a tracking database in a browser."""
    return f"{_command('mlflow')} server --backend-store-uri {shlex.quote(uri)} --host 127.0.0.1 --port 5000"


def _command(name: str) -> str:
    """How this installation's command is called from here: by name where the shell finds it, else by its place."""
    place = Path(sys.executable).with_name(name)
    if shutil.which(name) == str(place) or not place.exists():
        return name
    return os.path.relpath(place) if place.is_relative_to(Path.cwd()) else str(place)


def _flat(row: FrontierRow) -> dict[str, Any]:
    """A row of the frontier with r, d and w beside its other figures."""
    return {
        **{key: value for key, value in row.to_json().items() if key != "rdw"},
        **dict(zip("rdw", row.rdw, strict=True)),
    }
