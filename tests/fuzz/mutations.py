"""Documents as somebody else might have left them: any node replaced, removed or doubled, and bytes cut, flipped or other ones."""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# Importing it would leave a mark: whoever names it in a file wants code to be run.
EVIL = "tinynet_fuzz_evil"
HOSTILE: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2,
    3.5,
    1e-300,
    1e300,
    2**31,
    2**63,
    -(2**70),
    10**400,
    "",
    "x",
    "1",
    "nan",
    "a b\nc\x1b[31m\x00",
    "../../../etc/passwd",
    "/etc/passwd",
    "..",
    "é" * 300,
    "9" * 5000,
    f"{EVIL}:Space",
    f"{EVIL}.py",
    [],
    [[]],
    [None],
    [1, 2, 3],
    [0.5, 0.5, 1e9],
    ["a"] * 2000,
    {},
    {"": None},
    {"name": f"{EVIL}:Space"},
    {"k" * 5000: 1},
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all nodes."""
    yield path
    if len(path) > 8:
        return
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 8)):
            yield from places(value[index], (*path, index))


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


# Copies, since a later change may reach into an earlier one.
hostile = (
    st.sampled_from((*HOSTILE, _deep(200))) | st.integers() | st.floats() | st.text(max_size=20)
).map(copy.deepcopy)


@st.composite
def documents(draw: st.DrawFn, whole: Any) -> Any:
    """A document with one to three nodes that are not as they were."""
    value = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(places(value))))
        if not path:
            value = draw(hostile) if draw(st.booleans()) else value
            continue
        parent: Any = value
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(("replace", "replace", "remove", "double")))
        if kind == "remove":
            del parent[path[-1]]
        elif kind == "replace":
            parent[path[-1]] = draw(hostile)
        elif isinstance(parent, list):
            parent.insert(path[-1], copy.deepcopy(parent[path[-1]]))
        else:
            parent[f"{path[-1]}2"] = parent[path[-1]]
    return value


@st.composite
def spoiled(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bytes that were a document."""
    kind = draw(st.sampled_from(("cut", "flip", "zero", "other", "deep", "number", "twice")))
    at = draw(st.integers(0, max(0, len(whole) - 1)))
    if kind == "cut":
        return whole[:at]
    if kind == "flip":
        return whole[:at] + bytes([whole[at] ^ (1 << draw(st.integers(0, 7)))]) + whole[at + 1 :]
    if kind == "zero":
        return whole[:at] + bytes(len(whole) - at)
    if kind == "other":
        return draw(st.binary(max_size=100))
    if kind == "deep":
        return b'{"a":' * 100_000
    if kind == "number":
        return draw(
            st.sampled_from(
                (b"1" * 1_000_000, b"[1e999]", b"NaN", b'{"schema": Infinity}', b"-" + b"9" * 4000)
            )
        )
    return whole + whole


def files(whole: bytes) -> st.SearchStrategy[bytes]:
    """What may stand in the place of a JSON file."""
    return documents(json.loads(whole)).map(lambda value: json.dumps(value).encode()) | spoiled(
        whole
    )
