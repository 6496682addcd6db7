"""Search spaces over (r, d, w), with exact costs and samplers.

The search service, the command line and user code use it. Importing it loads neither torch nor ray.
"""

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
    """Return the names of the built-in spaces."""
    return sorted(_built_in())


def get_space(name: str) -> SearchSpace:
    """Return a built-in space by name, or load a custom one given as ``module:attribute``.

    The attribute is a SearchSpace, or a class or function that returns one.

    Raises:
        RequestError: the name is unknown, or the module does not provide a valid space.
    """
    if not isinstance(name, str):
        raise RequestError(
            f"expected the name of a space, got {name!r}: "
            f"pass one of {', '.join(list_spaces())}, or module:attribute"
        )
    if is_own(name):
        return load_space(name)
    if name not in _built_in():
        raise unknown("space", name, _built_in())
    return _built_in()[name]
