"""The formula's networks beside the rules it has to beat."""

import json
import sys
from typing import Annotated, Any

import typer

from tinynet_search.commands.app import AsJson, Tracking, app, millions


@app.command()
def baselines(
    budgets: Annotated[list[float], typer.Argument(metavar="C...", help="FLOPs as a fraction of the baseline's, in (0, 1].")],
    space: Annotated[str, typer.Option(help="Search space.")] = "efficientnet_b0",
    formula: Annotated[str, typer.Option(help="The formula beside the rules, as tinynet suggest takes it.")] = "published",
    classes: Annotated[int | None, typer.Option(help="Classes; the space's own where none is given.")] = None,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """At each budget the formula's network, the inverse giant formula's, and r, d or w shrunk alone (Table 1)."""
    from search_spaces import RequestError, get_space
    from tinynet_search.baselines import Baseline
    from tinynet_search.baselines import baselines as ruled
    from tinynet_search.formula import TinyFormula

    target, fitted = get_space(space), TinyFormula.load(formula, tracking_uri=tracking)
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
        print(json.dumps([_figures(c, row) for c, row in rows], indent=1))
        return
    from tinynet_search.tables import table

    head = ("network", "budget", "r", "d", "w", "pixels", "FLOPs", "c", "params", "memory", "")
    # What holds for every row of the formula is said once.
    said = [row.note for _, row in rows if row.rule == "tiny formula" and row.network]
    print(table(head, [_cells(c, row, "" if row.note in said else row.note or "") for c, row in rows]))
    for note in dict.fromkeys(note for note in said if note):
        print(f"tiny formula: {note}", file=sys.stderr)


def _figures(c: float, row: Any) -> dict[str, Any]:
    names = ("resolution", "macs", "c", "params", "activation_bytes")
    own = {**row.network.rdw._asdict(), **{name: getattr(row.network, name) for name in names}} if row.network else {}
    return {"budget": c, "rule": row.rule, **dict.fromkeys(("r", "d", "w", *names)), **own, "note": row.note}


def _cells(c: float, row: Any, note: str) -> tuple[str, ...]:
    network = row.network
    if network is None:
        return (row.rule, f"{c:g}", *[""] * 8, note)
    r, d, w = network.rdw
    twist = (f"{r:.3f}", f"{d:.3f}", f"{w:.4g}", str(network.resolution))
    costs = (millions(network.macs), f"{network.c:.4f}", millions(network.params, 2), f"{millions(network.activation_bytes, 2)}B")
    return (row.rule, f"{c:g}", *twist, *costs, note)
