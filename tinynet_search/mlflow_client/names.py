"""Builds the names of this project's objects in MLflow, and those of the registered formulas.

Called by ``tinynet_search.tracking``, which registers formulas, and by ``formula_models``, which
finds them.
"""

import hashlib
import re

from search_spaces import RequestError, is_own
from tinynet_search.errors import one_line

# The first part of the names of registered formulas, unless ``tracking.model`` sets another.
DEFAULT_MODEL = "tiny-formula"
# A valid ``tracking.model``.
MODEL_NAME = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}$"
# Tags of a registered formula: the first part of its name, the argument of ``get_space``, and the
# name that the space gives itself.
BASE_TAG, SPACE_TAG, SPACE_NAME_TAG = "tinynet.base", "tinynet.space", "tinynet.space_name"


def plain(name: str) -> str:
    """Replace the characters that MLflow does not allow in all kinds of names."""
    return re.sub(r"[^\w.@=+-]", "-", name)


def check_model_name(name: str | None) -> str | None:
    """Return a valid ``tracking.model``, or None.

    Raises:
        RequestError: the name is not valid.
    """
    if name is not None and not re.fullmatch(MODEL_NAME, name):
        raise RequestError(
            f"model {one_line(name, 80)!r} is not valid: "
            "expected at most 64 letters, digits and . _ -"
        )
    return name


def formula_model(base: str, space: str, space_name: str) -> str:
    """Return the name of the registered formula of a space: ``<base>-<space>``.

    A custom space gets a digest, so that it never has the name of another space.

    Args:
        base: ``tiny-formula``, or the ``tracking.model`` of the configuration.
        space: the argument of ``get_space``.
        space_name: the name that the space gives itself.
    """
    if not is_own(space):
        return f"{base}-{space}"
    return f"{base}-{re.sub(r'[^a-zA-Z0-9_.-]', '-', space)[:100]}-{digest(space, space_name)}"


def search_alias(owner: str, search: str) -> str:
    """Return the alias of a search's newest formula: ``<owner>-<search>``.

    Two pairs of owner and search never share an alias: names with characters that MLflow does not
    allow in aliases, and owners with a hyphen, get a digest.
    """
    alias = f"{owner}-{search}"
    if re.fullmatch(r"\w+-[\w-]+", alias, re.ASCII) and "-" not in owner:
        return alias
    return f"{re.sub(r'[^a-zA-Z0-9_-]', '-', alias)}-{digest(owner, search)}"


def digest(*texts: str) -> str:
    """Return a short digest of several texts."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:8]
