"""Formats a search for the user: its plan and cost before it runs, and its outcome.

Used by ``tinynet search`` and ``tinynet submit``.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from search_spaces.own import is_own
from tinynet_search.cli.network_table import figures, frontier_table
from tinynet_search.commands import mlflow_server, tinynet
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
    """The plan of a search, its candidates and their cost."""
    lines = [
        f"search {preview.search} at {preview.directory} (nothing written)",
        *plan_lines(preview),
        "",
    ]
    if preview.adaptive:
        return "\n".join([*lines, adaptive_line(preview)])
    head = ("id", "r", "d", "w", "pixels", "FLOPs", "c", "params", "training", "")
    rows = [
        (*figures(row), _operations(row.training_macs), "done" if row.done else "")
        for row in preview.candidates
    ]
    return "\n".join([*lines, table(head, rows), "", *cost_lines(preview)])


def _operations(macs: float, digits: int = 2) -> str:
    """``1.23T`` multiply-adds, and below a tenth of that unit ``12.30G``."""
    return f"{macs / 1e12:.{digits}f}T" if macs >= 1e11 else f"{macs / 1e9:.{digits}f}G"


def adaptive_line(preview: Preview) -> str:
    """A line that replaces the candidates of an adaptive sampler."""
    return f"{preview.trials} candidates are drawn during the search, each from previous results"


def plan_lines(preview: Preview) -> list[str]:
    """The space, recipe and data of a search."""
    recipe, data, space = preview.recipe, preview.data, preview.space
    band = f"[{space.band[0]:g}, {space.band[1]:g}]"
    images = f"{data.train} training and {data.val} validation images, {space.num_classes} classes"
    return [
        f"space {space.name}, c in {band}, sampler {preview.sampler.name}",
        f"recipe {recipe.name}: {recipe.epochs} epochs, batch {recipe.batch}; "
        f"data {data.fingerprint}: {images}",
    ]


def cost_lines(preview: Preview) -> list[str]:
    """The remaining trials, their multiply-adds and their storage."""
    left = sum(not row.done for row in preview.candidates)
    lines = [
        f"{left} of {preview.trials} to train: {_operations(preview.training_macs_left, 1)} "
        "multiply-adds of training (three forward passes per image and epoch, "
        "two evaluations per epoch)"
    ]
    lines += [line for line in (preview.warning, preview.continued) if line]
    kept = preview.kept_bytes
    last = f" and {megabytes(kept)} of last checkpoints, for longer trainings" if kept else ""
    weights, peak = megabytes(preview.weights_bytes), megabytes(preview.checkpoint_bytes_peak)
    return [
        *lines,
        f"{weights} of weights{last} at the end, up to {peak} of checkpoints per running trial",
    ]


def text(outcome: SearchOutcome) -> str:
    """The report that ``tinynet search`` prints at its end."""
    parts = [
        ("Failed trials", _failures(outcome)),
        ("Frontier", frontier_table(outcome.frontier) if outcome.frontier else ""),
        ("Frontier models trained for more epochs", longer_table(outcome)),
        ("Spearman's rank correlation with FLOPs on the frontier", _spearman_line(outcome)),
        (
            "The formula and the published one (fitted to the paper's TinyNets on EfficientNet-B0)",
            formula_table(outcome.formula),
        ),
        ("Final networks at equal FLOPs", finals_table(outcome)),
        ("Time", _time_lines(outcome)),
        ("Locations", _locations(outcome)),
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
        "lost": {c.run: outcome.lost_reasons.get(c.run) for c in outcome.lost},
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
    """r(c) and d(c) of a formula and of the published one; dots outside the data of a formula."""
    if not formula.usable:
        return f"not usable: {formula.reason}"
    published, span = TinyFormula.load("published"), formula.range or (0.0, 0.0)
    rows = []
    for c in sorted({*BUDGETS, *(round(edge, 3) for edge in span)}, reverse=True):
        fitted, reference = _predicted(formula, c), _predicted(published, c)
        cells = ["..."] * 4
        if fitted:
            cells[0] = f"{fitted.r_mean:.2f} ± {fitted.r_std:.2f}"
            cells[1] = f"{fitted.d_mean:.2f} ± {fitted.d_std:.2f}"
        if reference:
            cells[2] = number(reference.r_mean, 2)
            cells[3] = number(reference.d_mean, 2)
        rows.append((f"{c:g}", *cells))
    head = ("c", "r(c)", "d(c)", "published r(c)", "published d(c)")
    return f"{table(head, rows)}\nfitted for c in [{span[0]:.3f}, {span[1]:.3f}]"


def _predicted(formula: TinyFormula, c: float) -> Prediction | None:
    """r(c) and d(c); None outside the formula's data, whose ends count as inside after rounding."""
    low, high = formula.range or (1.0, 0.0)
    return formula.predict(min(max(c, low), high)) if low - 5e-4 <= c <= high + 5e-4 else None


@dataclass(frozen=True)
class FinalResult:
    """A final training and its result, which is None until the training has one."""

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
        """The row of ``finals_table``; the training must have a result."""
        row, result = self.row, self.result
        assert result is not None
        return (
            "formula" if row.label == TINY else f"shrunken baseline ({row.label})",
            self.id,
            f"{row.c:g}",
            *(number(value, 3) for value in row.spec.rdw),
            f"{result.resolution:g}",
            short_millions(result.macs),
            number(result.c, 3),
            short_millions(result.params),
            number(result.top1, 1),
            "outside the data" if row.extrapolated else row.note or "",
        )


def finals(outcome: SearchOutcome) -> list[FinalResult]:
    """The final trainings and their results."""
    return [FinalResult(row, outcome.results.get(row.run)) for row in outcome.final_rows]


def finals_table(outcome: SearchOutcome) -> str:
    """The final networks that have a result; empty if there are none."""
    cells = [final.cells() for final in finals(outcome) if final.result]
    if not cells:
        return ""
    head = (
        "network",
        "trial",
        "budget",
        "r",
        "d",
        "w",
        "pixels",
        "FLOPs",
        "c",
        "params",
        "top-1 %",
    )
    return table((*head, ""), cells)


def longer_table(outcome: SearchOutcome) -> str:
    """The models of the frontier that were also trained for more epochs."""
    head = ("trial", "c", "epochs", "top-1 %", "more epochs", "top-1 % after")
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
    finished = sum(candidate.run in results for candidate in outcome.candidates)
    finals_count = len({candidate.run for candidate in outcome.finals})
    text = (
        f"Search {outcome.store.name}: {finished} trials and {finals_count} finals, "
        f"{outcome.new} trained now"
    )
    reasons = Counter(result.reason for result in outcome.failed)
    if not reasons:
        return text
    counts = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f"{text}, {reasons.total()} failed ({counts})"


def _failures(outcome: SearchOutcome) -> str:
    """The reasons of the first five failed trials."""
    failed = outcome.failed
    if not failed:
        return ""
    lines = [f"{result.run.id}  {result.reason}: {result.detail}" for result in failed[:5]]
    if len(failed) > 5:
        lines.append(f"and {len(failed) - 5} more")
    lines.append(
        "train them again with --retry failed, or --retry and one reason; "
        "trials that diverged will diverge again"
    )
    return "\n".join(lines)


def _spearman_line(outcome: SearchOutcome) -> str:
    if not outcome.frontier:
        return ""
    correlations = "  ".join(
        f"{key} {number(value, 2)}" for key, value in spearman_of(outcome.frontier).items()
    )
    return f"{correlations}  over {len(outcome.frontier)} models"


def _time_lines(outcome: SearchOutcome) -> str:
    """Where the time was spent.

    ``bare`` is the wall time of the trainings without any overhead if they filled all slots: the
    sum of their seconds divided by the number of concurrent trials. The rest is overhead.
    """
    if not outcome.new or "trials" not in outcome.seconds:
        total = in_seconds(outcome.seconds["total"], 1)
        return f"{total}: all results existed, no trial was trained"
    seconds, bare = outcome.seconds, outcome.trained / outcome.at_once
    total, ray, trials = seconds["total"], seconds["ray"], seconds["trials"]
    share = percent(100 * (total - bare) / total, 0)
    lines = [
        f"{in_seconds(total)} in total, {outcome.at_once} concurrent trials: "
        f"{in_seconds(outcome.trained)} of pure training, {in_seconds(bare)} of wall time",
        f"overhead {in_seconds(total - bare)} ({share} of the wall time): "
        f"start and stop of Ray {in_seconds(ray, 1)}; "
        f"process start, imports, data, checkpoints and idle slots {in_seconds(trials - bare, 1)}; "
        f"plan, frontier, formula, tracking {in_seconds(total - ray - trials, 1)}",
        f"MLflow took {in_seconds(seconds['mlflow'], 1)}, concurrently with the trials",
    ]
    return "\n".join(lines)


def _locations(outcome: SearchOutcome) -> str:
    formula = outcome.store.url_of(FORMULA)
    lines = [f"search directory  {outcome.store.url}", f"formula           {formula}"]
    if outcome.link:
        lines.append(f"MLflow            {outcome.link}")
    if outcome.tracking.startswith("sqlite:"):
        lines.append(f"open with         {mlflow_server(outcome.tracking)}")
    if outcome.formula.usable:
        own = outcome.plan.space.name
        space = ["--space", own] if is_own(own) else []
        low, high = outcome.formula.range or (0.3, 0.3)
        middle = (low * min(high, 1.0)) ** 0.5
        suggest = tinynet(["suggest", f"{middle:.2g}", *space, "--formula", formula], space=own)
        lines.append(f"use the formula   {suggest}")
    return "\n".join(lines)


def _flat(row: FrontierRow) -> dict[str, Any]:
    """A row of the frontier with r, d and w as separate keys."""
    return {
        **{key: value for key, value in row.to_json().items() if key != "rdw"},
        **dict(zip("rdw", row.rdw, strict=True)),
    }
