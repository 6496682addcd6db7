"""Where a formula's text comes from, and whether it is one: the package, a file or MLflow's registry; JSON only, nothing is run."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_spaces.errors import RequestError
from tinynet_search.errors import one_line

SCHEMA = 1
FORMS = ("paper", "default")
MAX_BYTES = 5_000_000
MIN_POINTS = 5
# A formula keeps a dense kernel matrix of its points for each of its four kernels: 32 MB each at this many.
MAX_POINTS = 2000
# A multiplier beyond these is no network (search_spaces refuses it too); a cost or variance beyond these is a damaged file.
MULTIPLIER = (0.01, 64.0)
COST = (1e-6, 100.0)
VARIANCE = (0.0, 1e6)
SCALE = (1e-6, 1e6)

_PUBLISHED = Path(__file__).parent / "published.json"


class DamagedError(ValueError):
    """What is wrong with a formula, without the name of its file."""


def read_text(name: str, tracking_uri: str | None = None) -> str:
    """The text of ``published``, of a .json file here or at a storage URL, or of formula.json in ``models:/name@alias`` or
    ``models:/name/version``.

    Raises:
        RequestError: there is no such formula, or its file is unreadable or over ``MAX_BYTES``.
        TrackingError: MLflow does not answer.
    """
    if name == "published":
        return _read_file(_PUBLISHED)
    if name.startswith("models:"):
        from tinynet_search.mlflow_client.registry import fetched

        with fetched(name, "formula.json", tracking_uri) as path:
            return _read_file(path, name)
    if "://" in name and name.partition("?")[0].endswith(".json"):
        return _read_stored(name)
    if name.endswith(".json"):
        return _read_file(Path(name))
    raise RequestError(
        f"unknown formula {one_line(repr(name))}: give published, a .json file, models:/name@alias or models:/name/version"
    )


def _read_file(path: Path, label: str | None = None) -> str:
    label = label or str(path)
    try:
        if not path.is_file():
            raise RequestError(f"formula {label}: no such file")
        if path.stat().st_size > MAX_BYTES:
            raise RequestError(
                f"formula {label}: over {MAX_BYTES // 1_000_000} MB, too large for a formula"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise RequestError(f"formula {label}: cannot be read ({reason})") from error


def _read_stored(url: str) -> str:
    """Of an object store, ``s3://bucket/searches/demo/formula.json?region=...``."""
    from trainables.storage.folder import TooLargeError, open_folder

    place, query, options = url.partition("?")
    folder, _, file = place.rpartition("/")
    try:
        return open_folder(f"{folder}{query}{options}").read(file, MAX_BYTES).decode()
    except FileNotFoundError as error:
        raise RequestError(f"formula {one_line(url)}: no such file") from error
    except TooLargeError as error:
        raise RequestError(
            f"formula {one_line(url)}: over {MAX_BYTES // 1_000_000} MB, too large for a formula"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"formula {one_line(url)}: cannot be read ({one_line(error, 200)})"
        ) from error


def parse(text: str) -> dict[str, Any]:
    """A formula's JSON as checked plain data: every field present, typed, finite and in range.

    Raises:
        DamagedError: it is no formula of this schema; says which field is wrong.
    """
    if len(text) > MAX_BYTES:
        raise DamagedError(f"over {MAX_BYTES // 1_000_000} MB, too large for a formula")
    try:
        data = json.loads(text, parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"not JSON ({one_line(error, 80)})") from error
    if not isinstance(data, dict):
        raise DamagedError("not a JSON object")
    if data.get("schema") != SCHEMA or isinstance(data.get("schema"), bool):
        raise DamagedError(
            f"schema is {one_line(repr(data.get('schema')), 40)}, this version reads {SCHEMA}"
        )
    usable = _take(data, "usable", bool)
    points = _take(data, "points", list)
    if len(points) > MAX_POINTS:
        raise DamagedError(f"{len(points)} points, more than {MAX_POINTS}")
    checked = {
        "space": _take(data, "space", str),
        "space_version": _whole(data, "space_version", 0),
        "num_classes": _whole(data, "num_classes", 2),
        "reason": None if usable else _take(data, "reason", str),
        "points": [check_point(point, f"points[{i}]") for i, point in enumerate(points)],
        "forms": _forms(_take(data, "forms", dict)) if usable else {},
        "provenance": _take(data, "provenance", dict),
    }
    if usable and len(points) < MIN_POINTS:
        raise DamagedError(
            f"usable is true with {len(points)} points, at least {MIN_POINTS} are needed"
        )
    costs = [c for c, _, _ in checked["points"]]
    # A range wider than the points would extrapolate in silence.
    if _take(data, "range", object) != ([min(costs), max(costs)] if costs else None):
        raise DamagedError("range is not that of its points")
    _check_depth(checked["provenance"])
    return checked


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{one_line(text, 40)} is no finite number")
    return value


def _take(data: Mapping[str, Any], key: str, kind: type, where: str = "") -> Any:
    if key not in data:
        raise DamagedError(f"{where}{key} is missing")
    if not isinstance(data[key], kind):
        raise DamagedError(f"{where}{key} is not a {kind.__name__}")
    return data[key]


def _whole(data: Mapping[str, Any], key: str, low: int) -> int:
    value = _take(data, key, int)
    if isinstance(value, bool) or not low <= value <= 10**9:
        raise DamagedError(f"{key} is not a whole number of at least {low}")
    return value


def _number(data: Mapping[str, Any], key: str, span: tuple[float, float], where: str) -> float:
    value = data.get(key)
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not span[0] <= value <= span[1]
    ):
        raise DamagedError(f"{where}{key} is not a number in [{span[0]:g}, {span[1]:g}]")
    return float(value)


def check_point(point: Any, where: str) -> tuple[float, float, float]:
    """(c, r, d) of a training point; raises ``DamagedError`` naming ``where`` and the wrong one."""
    if not isinstance(point, dict):
        raise DamagedError(f"{where} is not an object")
    spans = {"c": COST, "r": MULTIPLIER, "d": MULTIPLIER}
    c, r, d = (_number(point, key, span, f"{where}.") for key, span in spans.items())
    return c, r, d


def _forms(forms: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    return {form: {target: _kernel(forms, form, target) for target in "rd"} for form in FORMS}


def _kernel(forms: Mapping[str, Any], form: str, target: str) -> dict[str, Any]:
    where = f"forms.{form}.{target}."
    kernel = _take(_take(forms, form, dict, "forms."), target, dict, f"forms.{form}.")
    spans = {
        "amplitude": SCALE,
        "length_scale": SCALE,
        "noise": VARIANCE,
        "mean": (-MULTIPLIER[1], MULTIPLIER[1]),
    }
    return {
        **{key: _number(kernel, key, span, where) for key, span in spans.items()},
        "log_c": _take(kernel, "log_c", bool, where),
    }


def _check_depth(value: Any, left: int = 20) -> None:
    """What is nested without end can be read, but not written or shown."""
    if left == 0:
        raise DamagedError("provenance is nested too deeply")
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        _check_depth(inner, left - 1)
