"""The network for a budget, or within limits."""

import json
import re
import sys
from typing import Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import SPACES, AsJson, Tracking, app
from tinynet_search.text import memory_size, millions, number, table

_DIGITS = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
_BYTES = re.compile(_DIGITS + "(?:([kmg])(i?))?b?", re.IGNORECASE)
# The paper writes 4.1B for 4.1 billion.
_COUNT = re.compile(_DIGITS + "([kmgb]?)()", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "b": 3}


@app.command()
def suggest(
    budgets: Annotated[
        list[float] | None,
        typer.Argument(metavar="[C...]", help="FLOPs as a fraction of the baseline's, in (0, 1]."),
    ] = None,
    params: Annotated[str | None, typer.Option(metavar="N", help="Most parameters.")] = None,
    activation_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Most peak memory of feature maps, float32 at batch 1; for 8 bits give four times the bytes.",
        ),
    ] = None,
    macs: Annotated[
        str | None, typer.Option(metavar="N", help="Most FLOPs (multiply-adds).")
    ] = None,
    space: Annotated[
        str | None, typer.Option(help=f"{SPACES} The formula's own where none is given.")
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(help="Classes; the formula's or the space's own where none is given."),
    ] = None,
    formula: Annotated[
        str, typer.Option(help="published, a formula.json, or models:/tiny-formula@champion.")
    ] = "published",
    form: Annotated[
        str, typer.Option(help="default, or paper (equations 2-4 to the letter).")
    ] = "default",
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Answer outside the formula's data too.")
    ] = False,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """The network for a budget of FLOPs, or within limits.

    C is met within 3 % either way; --macs, --params and --activation-bytes are never exceeded. After the number N of a
    limit K, M and G are powers of 1000 (B too, of parameters and FLOPs); of memory Ki, Mi and Gi are powers of 1024.
    """
    from tinynet_search.formula.budget import checked_request
    from tinynet_search.formula.tiny_formula import TinyFormula

    given = {"macs": macs, "params": params, "activation_bytes": activation_bytes}
    limits = {name: _number(name, text) for name, text in given.items() if text is not None}
    requests = [checked_request({"c": c, **limits}) for c in budgets or [None]]
    fitted = TinyFormula.load(formula, tracking_uri=tracking)
    found = [
        fitted.suggest(
            request.get("c"),
            macs=request.get("macs"),
            params=request.get("params"),
            activation_bytes=request.get("activation_bytes"),
            space=space,
            num_classes=classes,
            form=form,
            extrapolate=extrapolate,
        )
        for request in requests
    ]
    if as_json:
        print(json.dumps([s.to_dict() for s in found], indent=1))
        return
    from tinynet_search.formula.digits import spelled

    head = (
        "budget",
        "r",
        "d",
        "w",
        "pixels",
        "FLOPs",
        "c",
        "params",
        "memory",
        "± r",
        "± d",
        *(["binds"] if limits else []),
    )
    rows = [
        (
            f"{s.budget:.4g}",
            *spelled(s.network),
            str(s.resolution),
            millions(s.macs),
            number(s.c, 4),
            millions(s.params, 2),
            memory_size(s.activation_bytes),
            number(s.r_std, 3),
            number(s.d_std, 3),
            *([", ".join(s.binding) or "none"] if limits else []),
        )
        for s in found
    ]
    print(table(head, rows))
    for note in dict.fromkeys(s.note for s in found if s.note):
        print(note, file=sys.stderr)


def _number(name: str, text: str) -> float:
    """A limit as people write it: ``2e6``, ``1.5M``, ``4.1B``; ``512KiB`` of memory."""
    memory = name == "activation_bytes"
    match = (_BYTES if memory else _COUNT).fullmatch(text.strip())
    try:
        digits, prefix, binary = match.groups(default="") if match else ("", "", "")
        return float(digits) * (1024 if binary else 1000) ** _POWERS[prefix.lower()]
    except ValueError:
        such = "1.5e6, 1.5MB or 512KiB" if memory else "2e6, 1.5M or 4.1B"
        raise RequestError(
            f"--{name.replace('_', '-')} {text!r} is no number: give one such as {such}"
        ) from None
