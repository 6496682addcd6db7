"""The formula's networks beside the rules it has to beat."""

import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from tinynet_search.cli.app import SPACES, AsJson, Tracking, app
from tinynet_search.text import apart, memory_size, millions, number, table

if TYPE_CHECKING:
    from search_spaces import SearchSpace
    from tinynet_search.formula.baselines import Baseline


class BaselineRow(NamedTuple):
    """A rule at a budget, as ``--json`` has it; the network's figures are None where the rule cannot go so low."""

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


@app.command()
def baselines(
    budgets: Annotated[
        list[float],
        typer.Argument(metavar="C...", help="FLOPs as a fraction of the baseline's, in (0, 1]."),
    ],
    space: Annotated[
        str | None, typer.Option(help=f"{SPACES} The formula's own where none is given.")
    ] = None,
    formula: Annotated[
        str, typer.Option(help="The formula beside the rules, as tinynet suggest takes it.")
    ] = "published",
    classes: Annotated[
        int | None, typer.Option(help="Classes; the space's own where none is given.")
    ] = None,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Other rules at the same budget, beside the formula.

    The inverse giant formula, tuned to the budget and as it stands, and r, d or w shrunk alone (Table 1).
    """
    from search_spaces import RequestError
    from tinynet_search.formula.baselines import Baseline
    from tinynet_search.formula.baselines import baselines as ruled
    from tinynet_search.formula.tiny_formula import TinyFormula

    fitted = TinyFormula.load(formula, tracking_uri=tracking)
    target = fitted.get_space(space)
    classes = fitted.classes(target) if classes is None else classes
    rows: list[tuple[float, Baseline]] = []
    for c in budgets:
        others = ruled(target, c, classes)
        try:
            found = fitted.suggest(c, space=target, num_classes=classes, extrapolate=True)
            tiny = Baseline("tiny formula", found.network, found.note)
        except RequestError as error:
            tiny = Baseline("tiny formula", None, str(error))
        rows += [(c, row) for row in (tiny, *others)]
    if as_json:
        print(json.dumps([_row(target, c, row)._asdict() for c, row in rows], indent=1))
        return

    head = ("network", "budget", "r", "d", "w", "pixels", "FLOPs", "c", "params", "memory", "")
    # What holds for every row of the formula is said once.
    said = [row.note for _, row in rows if row.rule == "tiny formula" and row.network]
    groups = groupby(rows, lambda pair: pair[0])
    print(
        table(
            head,
            apart(
                [
                    [_cells(c, row, "" if row.note in said else row.note or "") for c, row in group]
                    for _, group in groups
                ]
            ),
        )
    )
    for note in dict.fromkeys(note for note in said if note):
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
    from tinynet_search.formula.digits import spelled

    twist = (*spelled(network), str(network.resolution))
    costs = (
        millions(network.macs),
        number(network.c, 4),
        millions(network.params, 2),
        memory_size(network.activation_bytes),
    )
    return (row.rule, f"{c:g}", *twist, *costs, note)
