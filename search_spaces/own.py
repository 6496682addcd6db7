"""A user's own space by name, ``module:attribute``; whatever is wrong with it is one line."""

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
    """Whether a space's name is meant as a module's, or as a file's, and not as a built-in one's."""
    return ":" in name or _is_file(name)


def load_space(name: str) -> SearchSpace:
    """The space that ``module:attribute`` names: a SearchSpace, or a class or function that gives one without arguments.

    Raises:
        RequestError: the module or the attribute is not there, fails, or gives no whole SearchSpace.
    """
    if _is_file(name):
        raise _refusal(name, _as_module(name))
    module, _, attribute = name.rpartition(":")
    if not (module and attribute):
        raise _refusal(name, "give module:attribute, as in my_space:Space")
    loaded = _imported(name, module)
    if not hasattr(loaded, attribute):
        raise _no_attribute(name, loaded)
    space = _made(name, module, getattr(loaded, attribute))
    lacking = [needed for needed in ("name", "base_resolution") if not hasattr(space, needed)]
    if lacking:
        raise _refusal(name, f"its class lacks {' and '.join(lacking)}, which every space has")
    _try(name, module, space)
    return space


def _try(name: str, module: str, space: SearchSpace) -> None:
    """Its baseline costed in numbers and in arrays: a fault is said here and not in the middle of a search."""
    hold = "hold it to search_spaces.testing.SpaceContract"
    for one in (1.0, np.ones(2)):
        kind = "arrays" if isinstance(one, np.ndarray) else "numbers"
        try:
            cost = space.cost(space.decode(one, one, one), 10)
        except Exception as error:  # a user's module may raise anything
            said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise _refusal(
                name, f"{_place(module, error)} fails on {kind} ({said}); {hold}"
            ) from error
        if not isinstance(cost, Cost):
            raise _refusal(
                name, f"its cost gives a {type(cost).__name__} and no search_spaces.Cost; {hold}"
            )


def _refusal(name: str, reason: str) -> RequestError:
    return RequestError(f"space {name!r} cannot be loaded: {reason}")


def _is_file(name: str) -> bool:
    return (
        "/" in name
        or "\\" in name
        or name.endswith(".py")
        or name.rpartition(":")[0].endswith(".py")
    )


def _as_module(name: str) -> str:
    file, _, attribute = name.rpartition(":")
    # The colon of a drive is no attribute's.
    file, attribute = (file, attribute) if file and attribute.isidentifier() else (name, "Space")
    stem = PureWindowsPath(file).stem
    return f"it is a file; give module:attribute, {stem}:{attribute}, and run from the folder that {stem}.py lies in"


def _imported(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if f"{module}.".startswith(f"{missing}."):
            mend = f"run from the folder that {missing} lies in, put that folder on PYTHONPATH, or install it"
            raise _refusal(name, f"there is no module {missing!r}; {mend}") from error
        raise _refusal(
            name, f"{_place(module, error)} needs {missing}, which is not installed; install it"
        ) from error
    except (Exception, SystemExit) as error:  # a user's module may raise anything
        raise _failed(name, module, error) from error


def _no_attribute(name: str, module: ModuleType) -> RequestError:
    known = [key for key, value in vars(module).items() if _is_space(value)]
    if known:
        return unknown("space", name, [f"{module.__name__}:{key}" for key in known])
    return _refusal(
        name,
        f"{module.__name__} has neither that name nor any other space; subclass search_spaces.SearchSpace in it",
    )


def _is_space(value: Any) -> bool:
    return isinstance(value, SearchSpace) or (
        isinstance(value, type) and issubclass(value, SearchSpace) and value is not SearchSpace
    )


def _made(name: str, module: str, found: Any) -> SearchSpace:
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise _refusal(
            name,
            f"its class lacks the method {missing}; search_spaces.SearchSpace says what to write",
        )
    if not isinstance(found, SearchSpace) and callable(found):
        try:
            inspect.signature(found).bind()
        except TypeError as error:
            mend = f"make it in the module, SPACE = {name.rpartition(':')[2]}(...), and give {module}:SPACE"
            raise _refusal(name, f"it needs arguments ({error}); {mend}") from error
        try:
            found = found()
        except Exception as error:
            raise _failed(name, module, error) from error
    if not isinstance(found, SearchSpace):
        mend = "name one, or a class or function that gives one without arguments"
        raise _refusal(
            name, f"it is of type {type(found).__name__}, no search_spaces.SearchSpace; {mend}"
        )
    return found


def _failed(name: str, module: str, error: BaseException) -> RequestError:
    said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return _refusal(name, f"{_place(module, error)} raises {said}; mend it there")


def _place(module: str, error: BaseException) -> str:
    """File and line of the user's module where an error came up, or the module alone."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno},"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).stem == module.rpartition(".")[2]
    ]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}," if frames else module
