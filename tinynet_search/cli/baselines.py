"""``tinynet baselines``: compares the networks of the formula with those of simpler rules.

Registered with the application by ``main``.
"""

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from tinynet_search.cli.app import SPACES, AsJson, Tracking, app, example
from tinynet_search.cli.completion import complete_space
from tinynet_search.text import memory_size, millions, number, table, with_blank_rows

if TYPE_CHECKING:
    from search_spaces import SearchSpace
    from tinynet_search.formula.baselines import Baseline


class BaselineRow(NamedTuple):
    """The network of a rule at a budget, as ``--json`` prints it.

    The figures of the network are None if the rule cannot reach the budget.
    """

    budget: float
    rule: str
    space: str
    r: float | None = None
    d: float | None = None
    w: float | None = None
    resolution: int | None = None
    macs: int | None = None
    c: float | None = None
    params: int | None = None
    activation_bytes: int | None = None
    note: str | None = None


@app.command(epilog=example("baselines 0.5 0.25"))
def baselines(
    budgets: Annotated[
        list[float],
        typer.Argument(
            metavar="C", help="Budgets: FLOPs as fractions of the baseline's, in (0, 1]."
        ),
    ],
    space: Annotated[
        str | None,
        typer.Option(
            help=f"Use this search space ({SPACES}).",
            show_default="the formula's",
            autocompletion=complete_space,
        ),
    ] = None,
    formula: Annotated[
        str,
        typer.Option(
            help="Use this formula (published, a formula.json, models:/tiny-formula@champion)."
        ),
    ] = "published",
    classes: Annotated[
        int | None,
        typer.Option(help="Set the number of classes.", show_default="the space's"),
    ] = None,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Compare the formula with other rules at the same budgets.

    The other rules are the inverse giant formula, tuned to the budget and untuned, and shrinking
    only r, d or w (Table 1 of the paper).
    """
    from search_spaces import RequestError
    from tinynet_search.formula.baselines import Baseline
    from tinynet_search.formula.baselines import baselines as baselines_at
    from tinynet_search.formula.tiny_formula import TinyFormula

    fitted = TinyFormula.load(formula, tracking_uri=tracking, space=space)
    target = fitted.get_space(space)
    classes = fitted.classes(target) if classes is None else classes
    rows: list[tuple[float, Baseline]] = []
    for c in budgets:
        others = baselines_at(target, c, classes)
        try:
            suggestion = fitted.suggest(c, space=target, num_classes=classes, extrapolate=True)
            tiny = Baseline("tiny formula", suggestion.network, suggestion.note)
        except RequestError as error:
            tiny = Baseline("tiny formula", None, str(error))
        rows += [(c, row) for row in (tiny, *others)]
    if as_json:
        print(json.dumps([_row(target, c, row)._asdict() for c, row in rows], indent=1))
        return

    head = ("network", "budget", "r", "d", "w", "pixels", "FLOPs", "c", "params", "memory", "")
    # Notes on networks of the formula are printed once, below the table.
    formula_notes = [row.note for _, row in rows if row.rule == "tiny formula" and row.network]
    groups = []
    for _, group in groupby(rows, lambda pair: pair[0]):
        cells = []
        for c, row in group:
            note = "" if row.note in formula_notes else row.note or ""
            cells.append(_cells(c, row, note))
        groups.append(cells)
    print(table(head, with_blank_rows(groups)))
    for note in dict.fromkeys(note for note in formula_notes if note):
        print(f"tiny formula: {note}", file=sys.stderr)


def _row(space: "SearchSpace", c: float, row: "Baseline") -> BaselineRow:
    network = row.network
    if network is None:
        return BaselineRow(c, row.rule, space.name, note=row.note)
    return BaselineRow(
        budget=c,
        rule=row.rule,
        space=space.name,
        r=network.rdw.r,
        d=network.rdw.d,
        w=network.rdw.w,
        resolution=network.resolution,
        macs=network.macs,
        c=network.c,
        params=network.params,
        activation_bytes=network.activation_bytes,
        note=row.note,
    )


def _cells(c: float, row: "Baseline", note: str) -> tuple[str, ...]:
    network = row.network
    if network is None:
        return (row.rule, f"{c:g}", *[""] * 8, note)
    from tinynet_search.formula.digits import format_rdw

    shape = (*format_rdw(network), str(network.resolution))
    costs = (
        millions(network.macs),
        number(network.c, 4),
        millions(network.params, 2),
        memory_size(network.activation_bytes),
    )
    return (row.rule, f"{c:g}", *shape, *costs, note)
