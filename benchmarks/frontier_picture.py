"""Plot a finished search; ``PICTURE`` defaults to ``docs/frontier.svg``.

Run by hand: ``python -m benchmarks.frontier_picture SEARCH_DIRECTORY [PICTURE]``.

The plot shows top-1 over FLOPs: every trial (the marker size encodes r), the frontier that the
formula was fitted to, and for each final budget the formula's network and the baseline shrunk by
the inverse giant rule.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.markers import CARETDOWN, CARETUP
from matplotlib.ticker import FuncFormatter, LogLocator

from search_spaces import RequestError, get_space
from tinynet_search.plan.candidates import candidates_of, final_candidates
from tinynet_search.search.conclusion import TINY
from tinynet_search.store.directory import Candidate, SearchStore
from tinynet_search.store.schema import FinalRow, FrontierRow, Plan
from trainables.run_name import RunName

TARGET = Path(__file__).resolve().parents[1] / "docs" / "frontier.svg"
INK, GREY, EDGE, BLUE, ORANGE, GREEN, SOFT = (
    "#1f2328",
    "#c9ced6",
    "#8b949e",
    "#1f6feb",
    "#e3670d",
    "#1a7f4b",
    "#59636e",
)
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.edgecolor": EDGE,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    # Text as outlines and fixed ids make the file reproducible and independent of fonts.
    "svg.fonttype": "path",
    "svg.hashsalt": "frontier",
}


class Point(NamedTuple):
    """A trained network: multiply-adds in millions, top-1 in percent, resolution multiplier."""

    macs: float
    top1: float
    r: float


def main(arguments: Sequence[str]) -> int:
    if not 1 <= len(arguments) <= 2:
        print(
            "usage: python -m benchmarks.frontier_picture SEARCH_DIRECTORY [PICTURE]",
            file=sys.stderr,
        )
        return 2
    target = Path(arguments[1]) if len(arguments) == 2 else TARGET
    try:
        draw(SearchStore(arguments[0]), target)
    except RequestError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {target.name}: {target.stat().st_size / 1e3:.0f} kB")
    return 0


def draw(store: SearchStore, target: Path) -> None:
    """Plot a search to ``target``.

    Raises:
        RequestError: the directory has no search, or no trial of the search has finished.
    """
    plan = store.plan()
    if plan is None:
        raise RequestError(
            f"no search at {store.url}: pass the directory that contains its plan.json"
        )
    trials = trained(store, candidates_of(plan, store))
    if not trials:
        raise RequestError(f"no trial of {store.url} has finished: run the search first")
    finals = trained(store, final_candidates(store))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8.2, 5.0), layout="constrained", facecolor="white")
        frontier = store.frontier_rows() or []
        _trials(
            axes,
            [point for run, point in trials.items() if run not in {row.run for row in frontier}],
        )
        _frontier(axes, frontier)
        rows = store.final_rows()
        _budgets(axes, plan, rows)
        for label, name, marker, colour in (
            (TINY, "the tiny formula's network (the tip marks the value)", CARETDOWN, ORANGE),
            (
                "inverse giant",
                "the inverse giant rule's network, at the same FLOPs",
                CARETUP,
                GREEN,
            ),
        ):
            runs = [row.run for row in rows if row.label == label]
            _finals(axes, [finals[run] for run in runs if run in finals], name, marker, colour)
        _decorate(axes, plan, len(trials))
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(
            target, dpi=160, metadata={"Date": None} if target.suffix == ".svg" else None
        )
        plt.close(figure)


def trained(store: SearchStore, candidates: Sequence[Candidate]) -> dict[RunName, Point]:
    """The points of the finished candidates, by run."""
    results = store.results(dict.fromkeys(c.run for c in candidates))
    return {
        run: Point(result.network.macs / 1e6, result.metrics.top1, result.rdw[0])
        for run, result in results.items()
        if result.finished and result.metrics
    }


def _trials(axes: Axes, points: Sequence[Point]) -> None:
    sizes = [_size(p.r) for p in points]
    axes.scatter(
        [p.macs for p in points],
        [p.top1 for p in points],
        sizes,
        color=GREY,
        edgecolor=EDGE,
        linewidth=0.8,
        zorder=2,
    )
    axes.scatter(
        [],
        [],
        _size(1.0),
        color=GREY,
        edgecolor=EDGE,
        linewidth=0.8,
        label="a trial; the marker grows with its resolution",
    )


def _size(r: float) -> float:
    """Marker area in square points; its side grows with r."""
    return (3.0 + 8.0 * r) ** 2


def _frontier(axes: Axes, rows: Sequence[FrontierRow]) -> None:
    """Plot the models the formula was fitted to; a line joins those of the first front."""
    first = [row for row in rows if row.pareto_rank == 1]
    axes.plot(
        [row.macs / 1e6 for row in first],
        [row.top1 for row in first],
        color=BLUE,
        linewidth=1.8,
        zorder=3,
    )
    for row in rows:
        axes.scatter(
            row.macs / 1e6,
            row.top1,
            _size(row.r),
            color=BLUE,
            edgecolor="white",
            linewidth=1.0,
            zorder=4,
        )
    axes.plot(
        [],
        [],
        color=BLUE,
        linewidth=1.8,
        marker="o",
        markersize=9,
        label="the frontier that r(c) and d(c) are fitted to",
    )


def _finals(axes: Axes, points: Sequence[Point], name: str, marker: int, colour: str) -> None:
    """Plot the finals as carets whose tips are the values.

    The two kinds point down and up, so that neither hides the other or the frontier.
    """
    x, y = [p.macs for p in points], [p.top1 for p in points]
    axes.scatter(x, y, 170, color=colour, marker=marker, zorder=6)  # pyright: ignore[reportArgumentType]
    axes.scatter([], [], 90, color=colour, marker="v" if marker == CARETDOWN else "^", label=name)


def _budgets(axes: Axes, plan: Plan, rows: Sequence[FinalRow]) -> None:
    """Plot a dotted line at each budget for which finals were trained."""
    baseline = get_space(plan.space.name).baseline_macs(plan.space.num_classes) / 1e6
    for c in sorted({row.c for row in rows}):
        axes.axvline(c * baseline, color=EDGE, linewidth=1.0, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            f"c = {c:g}",
            (c * baseline, 1.015),
            xycoords=("data", "axes fraction"),
            ha="center",
            color=SOFT,
            fontsize=9.5,
        )


def _decorate(axes: Axes, plan: Plan, trials: int) -> None:
    petals = plan.data.settings["name"] == "petals"
    title = (
        "Accuracy over FLOPs on the demo's synthetic set, not ImageNet"
        if petals
        else f"Accuracy over FLOPs in search {plan.search}"
    )
    axes.set_title(title, loc="left", fontsize=12.5, fontweight="bold", pad=36)
    about = f"{trials} networks of {plan.space.name}, {plan.recipe.epochs} epochs each"
    axes.text(0, 1.085, about, transform=axes.transAxes, color=SOFT)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    axes.set_xlabel("FLOPs (multiply-adds), millions, log scale")
    axes.set_ylabel("top-1, %")
    axes.grid(True, which="major", color="#eaeef2", zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.07)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        labels,
        loc="lower right",
        frameon=True,
        facecolor="white",
        edgecolor="#eaeef2",
        framealpha=0.95,
        labelspacing=0.8,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
