"""What can be twisted: search spaces, exact costs, samplers. Importing this loads neither torch nor ray."""

from functools import lru_cache

from search_spaces import efficientnet, ghostnet, resnet
from search_spaces.errors import RequestError, unknown
from search_spaces.own import is_own, load_space
from search_spaces.space import RDW, Cost, Details, Network, SearchSpace

__all__ = [
    "RDW",
    "Cost",
    "Details",
    "Network",
    "RequestError",
    "SearchSpace",
    "get_space",
    "is_own",
    "list_spaces",
]

_FAMILIES = (efficientnet, resnet, ghostnet)


@lru_cache(maxsize=1)
def _built_in() -> dict[str, SearchSpace]:
    return {name: space for family in _FAMILIES for name, space in family.spaces().items()}


def list_spaces() -> list[str]:
    """Names of the built-in spaces."""
    return sorted(_built_in())


def get_space(name: str) -> SearchSpace:
    """A built-in space by name, or a user's own as ``module:attribute`` (a SearchSpace, or a class or function giving one).

    Raises:
        RequestError: nobody knows the name, or the module gives no space; the line says what is wrong with it.
    """
    if not isinstance(name, str):
        raise RequestError(
            f"space {name!r} is no name: give one of {', '.join(list_spaces())}, or module:attribute"
        )
    if is_own(name):
        return load_space(name)
    if name not in _built_in():
        raise unknown("space", name, _built_in())
    return _built_in()[name]
