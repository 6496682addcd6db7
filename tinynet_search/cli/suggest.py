"""``tinynet suggest``: prints the network that the formula suggests for a budget or limits.

Registered with the application by ``main``.
"""

import json
import re
import sys
from typing import Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import SPACES, AsJson, Tracking, app, example
from tinynet_search.cli.completion import complete_from, complete_space
from tinynet_search.text import memory_size, millions, number, table

_DIGITS = r"([0-9.]+(?:e[+-]?[0-9]+)?)"
_BYTES = re.compile(_DIGITS + "(?:([kmg])(i?))?b?", re.IGNORECASE)
# The paper writes 4.1B for 4.1 billion.
_COUNT = re.compile(_DIGITS + "([kmgb]?)()", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "b": 3}


@app.command(epilog=example("suggest 0.25 --space ghostnet_a"))
def suggest(
    budgets: Annotated[
        list[float] | None,
        typer.Argument(
            metavar="C", help="Budgets: FLOPs as fractions of the baseline's, in (0, 1]."
        ),
    ] = None,
    params: Annotated[
        str | None, typer.Option(metavar="N", help="Limit the number of parameters.")
    ] = None,
    activation_bytes: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Limit the peak memory of feature maps (float32, batch 1); for 8-bit maps pass "
            "four times the bytes.",
        ),
    ] = None,
    macs: Annotated[
        str | None, typer.Option(metavar="N", help="Limit the FLOPs (multiply-adds).")
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help=f"Use this search space ({SPACES}).",
            show_default="the formula's",
            autocompletion=complete_space,
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(
            help="Set the number of classes.", show_default="the formula's, or the space's"
        ),
    ] = None,
    formula: Annotated[
        str,
        typer.Option(
            help="Use this formula (published, a formula.json, models:/tiny-formula@champion)."
        ),
    ] = "published",
    form: Annotated[
        str,
        typer.Option(
            help="Use this form of the formula: default, or paper (exactly equations 2-4).",
            autocompletion=complete_from("default", "paper"),
        ),
    ] = "default",
    extrapolate: Annotated[
        bool, typer.Option("--extrapolate", help="Allow budgets outside the formula's data.")
    ] = False,
    tracking: Tracking = None,
    as_json: AsJson = False,
) -> None:
    """Suggest a network for a budget of FLOPs or within limits.

    The FLOPs are within 3 % of C; --macs, --params and --activation-bytes are never exceeded. The
    number N of a limit may end with K, M or G (powers of 1000; for parameters and FLOPs also B) or,
    for memory, with Ki, Mi or Gi (powers of 1024).
    """
    from tinynet_search.formula.budget import checked_request
    from tinynet_search.formula.tiny_formula import TinyFormula

    given = {"macs": macs, "params": params, "activation_bytes": activation_bytes}
    limits = {name: _number(name, text) for name, text in given.items() if text is not None}
    requests = [checked_request({"c": c, **limits}) for c in budgets or [None]]
    fitted = TinyFormula.load(formula, tracking_uri=tracking, space=space)
    suggestions = [
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
        print(json.dumps([s.to_dict() for s in suggestions], indent=1))
        return
    from tinynet_search.formula.digits import format_rdw

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
            *format_rdw(s.network),
            str(s.resolution),
            millions(s.macs),
            number(s.c, 4),
            millions(s.params, 2),
            memory_size(s.activation_bytes),
            number(s.r_std, 3),
            number(s.d_std, 3),
            *([", ".join(s.binding) or "none"] if limits else []),
        )
        for s in suggestions
    ]
    print(table(head, rows))
    for note in dict.fromkeys(s.note for s in suggestions if s.note):
        print(note, file=sys.stderr)


def _number(name: str, text: str) -> float:
    """Parse a limit such as ``2e6``, ``1.5M`` or ``4.1B``; for memory also ``512KiB``.

    Raises:
        RequestError: the text is not a valid number.
    """
    memory = name == "activation_bytes"
    match = (_BYTES if memory else _COUNT).fullmatch(text.strip())
    try:
        digits, prefix, binary = match.groups(default="") if match else ("", "", "")
        return float(digits) * (1024 if binary else 1000) ** _POWERS[prefix.lower()]
    except ValueError:
        examples = "1.5e6, 1.5MB or 512KiB" if memory else "2e6, 1.5M or 4.1B"
        raise RequestError(
            f"--{name.replace('_', '-')} {text!r} is not a valid number: "
            f"expected a number such as {examples}"
        ) from None
