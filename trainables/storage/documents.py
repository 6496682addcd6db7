"""JSON from shared storage as bounded plain data: a file there may be damaged, or written by somebody else.

What passes has no NaN or infinity, no number beyond 64 bits, no deep nesting and no key that is a page long, so that
whoever reads it may compare, convert and print its values.
"""

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

# Bytes: of a document that describes one thing, and of one that lists every epoch or every trial.
SMALL, LARGE = 4_000_000, 128_000_000
DEPTH = 24
# Of a whole number, either way; and of a key.
WHOLE, LONGEST_KEY = 2**63, 200
# An epoch's figures that are always there.
FIGURES = ("ts", "seconds", "top1", "top1_raw", "top1_ema", "train_loss")
MOST_EPOCHS = 100_000
# Of a result, since a driver keeps them of ten thousand.
MOST_METRICS, LONGEST_TEXT = 100, 10_000
# Seconds since 1970: far enough ahead, and MLflow takes the milliseconds.
LAST_DATE = 1e11


class DocumentError(ValueError):
    """What is wrong with a document, in one short line without the name of its file."""


def parsed(data: bytes | str) -> Any:
    """The content of a JSON document.

    Raises:
        DocumentError: it is damaged, or holds what no document of ours does.
    """
    try:
        value = json.loads(data, parse_constant=_refused)
    except DocumentError:
        raise
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"no JSON: {' '.join(str(error).split())[:80]}") from error
    _check(value)
    return value


def _refused(name: str) -> Any:
    raise DocumentError(f"{name} is no number")


def _check(whole: Any) -> None:
    """Level by level, so that depth costs no stack; in few passes over each, since a search reads thousands of results."""
    level = [whole]
    for _ in range(DEPTH):
        floats = [value for value in level if type(value) is float]
        if floats and not all(map(math.isfinite, floats)):
            raise DocumentError("a number is too large")
        wholes = [value for value in level if type(value) is int]
        if wholes and not -WHOLE <= min(wholes) <= max(wholes) < WHOLE:
            raise DocumentError("a whole number is too large")
        below: list[Any] = []
        for value in level:
            if type(value) is dict:
                longest = max(map(len, value), default=0)
                if longest > LONGEST_KEY:
                    raise DocumentError(f"a key has {longest} letters")
                below += value.values()
            elif type(value) is list:
                below += value
        if not below:
            return
        level = below
    raise DocumentError(f"it is nested deeper than {DEPTH} levels")


def check_epochs(epochs: Any) -> None:
    """Make sure that it is a training's record: every epoch from the first on, with the figures that all have.

    Raises:
        DocumentError: it is not.
    """
    if not isinstance(epochs, list) or len(epochs) > MOST_EPOCHS:
        raise DocumentError("epochs is no list of epochs")
    for number, epoch in enumerate(epochs, 1):
        check_figures(epoch, f"epoch {number}")
        if epoch["epoch"] != number:
            raise DocumentError(f"epoch {number} is not where it belongs")


def check_figures(row: Any, what: str) -> None:
    """Make sure that one epoch's figures are numbers, those that are always there and ``epoch``, a whole one."""
    if not isinstance(row, Mapping):
        raise DocumentError(f"{what} is no object")
    for key in ("epoch", *FIGURES):
        if not is_number(row.get(key)):
            raise DocumentError(f"{key} of {what} is no number")
    if (
        not isinstance(row["epoch"], int)
        or not 0 <= row["ts"] < 1000 * LAST_DATE
        or row["seconds"] < 0
    ):
        raise DocumentError(f"{what} has no such time")


def check_numbers(values: Any, keys: Iterable[str], what: str) -> None:
    """Make sure that an object has numbers under these keys."""
    if not isinstance(values, Mapping):
        raise DocumentError(f"{what} is no object")
    for key in keys:
        if not is_number(values.get(key)):
            raise DocumentError(f"{key} of {what} is no number")


def is_number(value: Any) -> bool:
    return type(value) is not bool and isinstance(value, (int, float)) and math.isfinite(value)


def check_result(result: Any, run: str) -> None:
    """Make sure that it is the result of a trial, of the one that is meant.

    Raises:
        DocumentError: it is not.
    """
    if (
        not isinstance(result, dict)
        or result.get("run") != run
        or result.get("status") not in ("finished", "failed")
    ):
        raise DocumentError("it is no result of this trial")
    epochs, metrics = result.get("epochs"), result.get("metrics")
    check_epochs(epochs)
    if (
        not isinstance(metrics, dict)
        or len(metrics) > MOST_METRICS
        or not all(map(is_number, metrics.values()))
    ):
        raise DocumentError("it has no metrics")
    if result["status"] == "finished":
        if not epochs:
            raise DocumentError("it is finished without an epoch")
        check_figures(metrics, "metrics")
    check_numbers(result.get("network"), ("c", "macs", "params", "resolution"), "network")
    check_numbers(result, ("started", "ended"), "the result")
    if not 0 <= result["started"] < LAST_DATE or not 0 <= result["ended"] < LAST_DATE:
        raise DocumentError("it has no such time")
    if not all(
        isinstance(text := result.get(key), str | None) and len(text or "") <= LONGEST_TEXT
        for key in ("reason", "detail")
    ):
        raise DocumentError("its reason is no text, or has more than a page")
    if not isinstance(result.get("execution", {}), dict):
        raise DocumentError("execution is no object")
