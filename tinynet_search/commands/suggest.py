"""The network for a budget, or within limits."""

import json
import re
import sys
from typing import Annotated, Any

import typer

from search_spaces.errors import RequestError
from tinynet_search.commands.app import AsJson, Tracking, app, millions

_NUMBER = re.compile(r"([0-9.]+(?:e[+-]?[0-9]+)?)(?:([kmg])(i?))?b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3}


@app.command()
def suggest(
    budgets: Annotated[
        list[float] | None, typer.Argument(metavar="[C...]", help="FLOPs as a fraction of the baseline's, in (0, 1].")
    ] = None,
    params: Annotated[str | None, typer.Option(metavar="N", help="Most parameters.")] = None,
    activation_bytes: Annotated[
        str | None,
        typer.Option(metavar="N", help="Most peak memory of feature maps, float32 at batch 1; for 8 bits give four times the bytes."),
    ] = None,
    macs: Annotated[str | None, typer.Option(metavar="N", help="Most FLOPs (multiply-adds).")] = None,
    space: Annotated[str | None, typer.Option(help="Search space; the formula's own where none is given.")] = None,
    formula: Annotated[str, typer.Option(help="published, a formula.json, or models:/tiny-formula@champion.")] = "published",
    form: Annotated[str, typer.Option(help="default, or paper (equations 2-4 to the letter).")] = "default",
    extrapolate: Annotated[bool, typer.Option("--extrapolate", help="Answer outside the formula's data too.")] = False,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """The network for a FLOPs budget, or the largest within limits: r, d, w, pixels, FLOPs, params, memory.

    After the number N of a limit K, M and G are powers of 1000, Ki, Mi and Gi of 1024: 2e6, 1.5M, 512KiB.
    """
    from tinynet_search.formula import TinyFormula
    from tinynet_search.limits import checked_request

    given = {"macs": macs, "params": params, "activation_bytes": activation_bytes}
    limits = {name: _number(name, text) for name, text in given.items() if text is not None}
    asked: list[dict[str, Any]] = [checked_request({"c": c, **limits}) for c in budgets or [None]]
    fitted = TinyFormula.load(formula, tracking_uri=tracking)
    found = [fitted.suggest(**request, space=space, form=form, extrapolate=extrapolate) for request in asked]
    if as_json:
        print(json.dumps([s.to_dict() for s in found], indent=1))
        return
    from tinynet_search.tables import table

    head = ("budget", "r", "d", "w", "pixels", "FLOPs", "c", "params", "memory", "± r", "± d", *(["binds"] if limits else []))
    rows = [
        (
            f"{s.limits.get('c', s.budget):g}",
            f"{s.r:.3f}",
            f"{s.d:.3f}",
            f"{s.w:g}",
            str(s.resolution),
            millions(s.macs),
            f"{s.c:.4f}",
            millions(s.params, 2),
            f"{millions(s.activation_bytes, 2)}B",
            f"{s.r_std:.3f}",
            f"{s.d_std:.3f}",
            *([", ".join(s.binding) or "none"] if limits else []),
        )
        for s in found
    ]
    print(table(head, rows))
    for note in dict.fromkeys(s.note for s in found if s.note):
        print(note, file=sys.stderr)


def _number(name: str, text: str) -> float:
    """A limit as people write it: ``2e6``, ``1.5M``, ``512KiB``."""
    match = _NUMBER.fullmatch(text.strip())
    try:
        digits, prefix, binary = match.groups(default="") if match else ("", "", "")
        return float(digits) * (1024 if binary else 1000) ** _POWERS[prefix.lower()]
    except ValueError:
        raise RequestError(f"--{name.replace('_', '-')} {text!r} is no number: give one such as 2e6, 1.5M or 512KiB") from None
