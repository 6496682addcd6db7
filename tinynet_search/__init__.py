"""Searches over (r, d, w): plans and runs them, fits the tiny formula and suggests networks.

This is the public Python interface. Names are imported on first use, so that ``suggest_rdw`` loads
no third-party package except numpy.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tinynet_search.version import __version__

if TYPE_CHECKING:
    from search_spaces import RDW, RequestError, get_space, list_spaces
    from tinynet_search.config import load_config
    from tinynet_search.errors import TrackingError
    from tinynet_search.formula.suggestion import Suggestion
    from tinynet_search.formula.tiny_formula import TinyFormula, suggest_rdw
    from tinynet_search.search.driver import run_search
    from tinynet_search.tracking.queries import frontier_models

__all__ = [
    "RDW",
    "RequestError",
    "Suggestion",
    "TinyFormula",
    "TrackingError",
    "__version__",
    "frontier_models",
    "get_space",
    "list_spaces",
    "load_config",
    "run_search",
    "suggest_rdw",
]

_MODULES = {
    "RDW": "search_spaces",
    "RequestError": "search_spaces",
    "Suggestion": "tinynet_search.formula.suggestion",
    "TinyFormula": "tinynet_search.formula.tiny_formula",
    "TrackingError": "tinynet_search.errors",
    "frontier_models": "tinynet_search.tracking.queries",
    "get_space": "search_spaces",
    "list_spaces": "search_spaces",
    "load_config": "tinynet_search.config",
    "run_search": "tinynet_search.search.driver",
    "suggest_rdw": "tinynet_search.formula.tiny_formula",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
