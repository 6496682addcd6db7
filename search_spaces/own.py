"""Loads custom search spaces by name, ``module:attribute``, and checks that they work.

``search_spaces.get_space`` calls it. Every problem is reported in one line.
"""

import importlib
import inspect
import traceback
from pathlib import Path, PureWindowsPath
from types import ModuleType
from typing import Any

import numpy as np

from search_spaces.errors import RequestError, unknown
from search_spaces.space import Cost, SearchSpace


def is_own(name: str) -> bool:
    """Return whether a name refers to a custom space (a module or a file), not a built-in one."""
    return ":" in name or _is_file(name)


def load_space(name: str) -> SearchSpace:
    """Load the space ``module:attribute``.

    The attribute is a SearchSpace, or a class or function that returns one without arguments.

    Raises:
        RequestError: the module or the attribute does not exist, fails, or does not give a complete
            SearchSpace.
    """
    if _is_file(name):
        raise _load_error(name, _file_advice(name))
    module, _, attribute = name.rpartition(":")
    if not (module and attribute):
        raise _load_error(name, "pass module:attribute, such as my_space:Space")
    loaded = _import(name, module)
    if not hasattr(loaded, attribute):
        raise _no_attribute(name, loaded)
    space = _create(name, module, getattr(loaded, attribute))
    missing = [needed for needed in ("name", "base_resolution") if not hasattr(space, needed)]
    if missing:
        attributes = " and ".join(missing)
        raise _load_error(name, f"its class does not set {attributes}, which every space needs")
    _check_baseline(name, module, space)
    return space


def _check_baseline(name: str, module: str, space: SearchSpace) -> None:
    """Cost the baseline in numbers and in arrays, to report an error before a search starts."""
    advice = "test it with search_spaces.testing.SpaceContract"
    for one in (1.0, np.ones(2)):
        kind = "arrays" if isinstance(one, np.ndarray) else "numbers"
        try:
            cost = space.cost(space.decode(one, one, one), 10)
        except Exception as error:  # a user's module may raise anything
            message = _one_line(error)
            raise _load_error(
                name, f"{_location(module, error)} fails on {kind} ({message}); {advice}"
            ) from error
        if not isinstance(cost, Cost):
            raise _load_error(
                name,
                f"expected its cost() to return search_spaces.Cost, got {type(cost).__name__}; "
                f"{advice}",
            )


def _load_error(name: str, reason: str) -> RequestError:
    return RequestError(f"space {name!r} cannot be loaded: {reason}")


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _is_file(name: str) -> bool:
    return (
        "/" in name
        or "\\" in name
        or name.endswith(".py")
        or name.rpartition(":")[0].endswith(".py")
    )


def _file_advice(name: str) -> str:
    file, _, attribute = name.rpartition(":")
    # A colon may also belong to a drive letter.
    file, attribute = (file, attribute) if file and attribute.isidentifier() else (name, "Space")
    stem = PureWindowsPath(file).stem
    return (
        f"it is a file; pass {stem}:{attribute} (module:attribute) and run from the folder of "
        f"{stem}.py"
    )


def _import(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if f"{module}.".startswith(f"{missing}."):
            fix = (
                f"run from the folder that contains {missing}, add that folder to PYTHONPATH, "
                "or install it; for a cluster, pass it to tinynet submit --working-dir"
            )
            raise _load_error(name, f"there is no module {missing!r}; {fix}") from error
        raise _load_error(
            name, f"{_location(module, error)} needs {missing}, which is not installed; install it"
        ) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise _module_error(name, module, error) from error


def _no_attribute(name: str, module: ModuleType) -> RequestError:
    known = [key for key, value in vars(module).items() if _is_space(value)]
    if known:
        return unknown("space", name, [f"{module.__name__}:{key}" for key in known])
    return _load_error(
        name,
        f"{module.__name__} does not define it and contains no other space; "
        "subclass search_spaces.SearchSpace in it",
    )


def _is_space(value: Any) -> bool:
    return isinstance(value, SearchSpace) or (
        isinstance(value, type) and issubclass(value, SearchSpace) and value is not SearchSpace
    )


def _create(name: str, module: str, value: Any) -> SearchSpace:
    if inspect.isabstract(value):
        missing = ", ".join(sorted(value.__abstractmethods__))
        raise _load_error(
            name,
            f"its class lacks the method {missing}; search_spaces.SearchSpace documents it",
        )
    if not isinstance(value, SearchSpace) and callable(value):
        try:
            inspect.signature(value).bind()
        except TypeError as error:
            attribute = name.rpartition(":")[2]
            fix = f"add SPACE = {attribute}(...) to the module and pass {module}:SPACE"
            raise _load_error(name, f"it needs arguments ({error}); {fix}") from error
        try:
            value = value()
        except Exception as error:
            raise _module_error(name, module, error) from error
    if not isinstance(value, SearchSpace):
        raise _load_error(
            name,
            "expected a search_spaces.SearchSpace, or a class or function that returns one "
            f"without arguments, got {type(value).__name__}",
        )
    return value


def _module_error(name: str, module: str, error: BaseException) -> RequestError:
    return _load_error(name, f"{_location(module, error)} raises {_one_line(error)}; fix it there")


def _location(module: str, error: BaseException) -> str:
    """Return file and line of the error in the user's module, or else only the module's name."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno},"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).stem == module.rpartition(".")[2]
    ]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}," if frames else module
