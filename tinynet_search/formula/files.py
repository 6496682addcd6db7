"""Reads and validates formula files: the published one, local or stored files, and MLflow models.

Called by ``TinyFormula`` and by the MLflow publisher. Formulas are JSON; no code is executed.
"""

import json
from pathlib import Path

from search_spaces.errors import RequestError
from tinynet_search.errors import one_line
from tinynet_search.formula.contents import DamagedError, FormulaContents

MAX_BYTES = 5_000_000
PUBLISHED = "published"

_PUBLISHED = Path(__file__).parent / "published.json"


def read_text(name: str, tracking_uri: str | None = None) -> str:
    """Read the text of a formula.

    Args:
        name: ``published``, a local .json file, the URL of a stored one, ``models:/name@alias`` or
            ``models:/name/version``. A registered model contains formula.json.
        tracking_uri: Address of MLflow.

    Raises:
        RequestError: The formula does not exist, or its file is unreadable or exceeds
            ``MAX_BYTES``.
        TrackingError: MLflow does not respond.
    """
    if name == PUBLISHED:
        return _read_file(_PUBLISHED)
    if name.startswith("models:"):
        from tinynet_search.mlflow_client.registry import downloaded_file

        with downloaded_file(name, "formula.json", tracking_uri) as path:
            return _read_file(path, name)
    if "://" in name and name.partition("?")[0].endswith(".json"):
        return _read_stored(name)
    if name.endswith(".json"):
        return _read_file(Path(name))
    raise RequestError(
        f"unknown formula {one_line(repr(name))}: "
        "pass published, a .json file, models:/name@alias or models:/name/version"
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
