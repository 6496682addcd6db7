"""The network for a budget."""

import json
import sys
from typing import Annotated

import typer

from tinynet_search.commands.app import AsJson, Tracking, app, millions


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
