"""Reads and validates formula files: the published one, local or stored files, and MLflow models.

Called by ``TinyFormula`` and by the MLflow publisher. Formulas are JSON; no code is executed.
"""

import json
from pathlib import Path
from typing import NamedTuple

from search_spaces import RequestError, SearchSpace
from tinynet_search.errors import one_line
from tinynet_search.formula.contents import DamagedError, FormulaContents

MAX_BYTES = 5_000_000
PUBLISHED = "published"

_PUBLISHED = Path(__file__).parent / "published.json"


class FormulaText(NamedTuple):
    """The text of a formula.

    Attributes:
        source: the name that it was read from.
        note: how the name was chosen, None if it is the name that was given.
    """

    text: str
    source: str
    note: str | None = None


def read_text(
    name: str, tracking_uri: str | None = None, space: str | SearchSpace | None = None
) -> FormulaText:
    """Read the text of a formula.

    Args:
        name: ``published``, a local .json file, the URL of a stored one, ``models:/name@alias`` or
            ``models:/name/version``. A registered model contains formula.json.
        tracking_uri: Address of MLflow.
        space: Selects the registered model ``name-<space>`` if ``name`` is not the name of one of
            this space; None selects the only one.

    Raises:
        RequestError: The formula does not exist, or its file is unreadable or exceeds
            ``MAX_BYTES``, or no space selects one of several registered models.
        TrackingError: MLflow does not respond.
    """
    if name == PUBLISHED:
        return FormulaText(_read_file(_PUBLISHED), name)
    if name.startswith("models:"):
        return _read_registered(name, tracking_uri, space)
    if "://" in name and name.partition("?")[0].endswith(".json"):
        return FormulaText(_read_stored(name), name)
    if name.endswith(".json"):
        return FormulaText(_read_file(Path(name)), name)
    raise RequestError(
        f"unknown formula {one_line(repr(name))}: "
        "pass published, a .json file, models:/name@alias or models:/name/version"
    )


def _read_registered(
    name: str, tracking_uri: str | None, space: str | SearchSpace | None
) -> FormulaText:
    """Read a registered model, or that of the space.

    The model with exactly this name is read if it is of the space, or if no other one is.
    """
    from tinynet_search.mlflow_client.connection import RejectedRequestError
    from tinynet_search.mlflow_client.formula_models import RequestedSpace, model_for_space
    from tinynet_search.mlflow_client.registry import (
        MissingModelError,
        ModelReference,
        downloaded_file,
    )

    def text_of(uri: str) -> str:
        with downloaded_file(uri, "formula.json", tracking_uri) as path:
            return _read_file(path, uri)

    model = ModelReference.parse(name)
    requested = None if space is None else RequestedSpace.of(space)
    missing: MissingModelError | RejectedRequestError | None = None
    exact = ""
    try:
        exact = text_of(name)
        if requested is None or _space_name(exact) == requested.name:
            return FormulaText(exact, name)
    except (MissingModelError, RejectedRequestError) as error:
        # A server with accounts responds to a name that does not exist as to one without READ.
        missing = error
    try:
        chosen = model_for_space(model, tracking_uri, requested)
    except RequestError:
        if missing:
            raise
        chosen = None
    if chosen is not None:
        return FormulaText(text_of(str(chosen)), str(chosen), f"{name} is {chosen}")
    if missing:
        raise missing
    return FormulaText(exact, name)


def _space_name(text: str) -> str | None:
    """Return the space of a formula, None if the text is not valid; the reader reports that."""
    try:
        return parse(text).space
    except DamagedError:
        return None


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
    """Read a formula from an object store: ``s3://bucket/searches/demo/formula.json?region=...``."""
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


def parse(text: str) -> FormulaContents:
    """Parse and validate the JSON of a formula: each field is present, typed, finite and in range.

    Raises:
        DamagedError: The text is not a formula of this schema. The message names the invalid field.
    """
    from tinynet_search.formula.document import check_document

    if len(text) > MAX_BYTES:
        raise DamagedError(f"over {MAX_BYTES // 1_000_000} MB, too large for a formula")
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"not JSON ({one_line(error, 80)})") from error
    if not isinstance(document, dict):
        raise DamagedError("not a JSON object")
    return check_document(document)
