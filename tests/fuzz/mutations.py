"""Hypothesis strategies for corrupted documents and files.

Nodes of a document are replaced, removed or duplicated, and bytes are cut, flipped or replaced. The
fuzz tests of the readers use them.
"""

import copy
import json
from collections.abc import Iterator
from typing import Any

from hypothesis import strategies as st

# The name of a module in a hostile file. A reader that imports it would run code; the tests detect
# this in sys.modules.
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


def node_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the paths of all nodes, at most 9 levels deep and for the first 8 items of a list."""
    yield path
    if len(path) > 8:
        return
    if isinstance(value, dict):
        for key in value:
            yield from node_paths(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 8)):
            yield from node_paths(value[index], (*path, index))


def _nested_list(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


# Copies, since a later mutation may change a value that an earlier one inserted.
hostile = (
    st.sampled_from((*HOSTILE, _nested_list(200)))
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
).map(copy.deepcopy)


@st.composite
def documents(draw: st.DrawFn, original: Any) -> Any:
    """A copy of the document with one to three mutated nodes."""
    value = copy.deepcopy(original)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(node_paths(value))))
        if not path:
            value = draw(hostile) if draw(st.booleans()) else value
            continue
        parent: Any = value
        for key in path[:-1]:
            parent = parent[key]
        kind = draw(st.sampled_from(("replace", "replace", "remove", "duplicate")))
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
def corrupted(draw: st.DrawFn, original: bytes) -> bytes:
    """Corrupted bytes of a document, or other bytes in its place."""
    kind = draw(st.sampled_from(("cut", "flip", "zero", "other", "deep", "number", "twice")))
    at = draw(st.integers(0, max(0, len(original) - 1)))
    if kind == "cut":
        return original[:at]
    if kind == "flip":
        flipped = bytes([original[at] ^ (1 << draw(st.integers(0, 7)))])
        return original[:at] + flipped + original[at + 1 :]
    if kind == "zero":
        return original[:at] + bytes(len(original) - at)
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
    return original + original


def files(original: bytes) -> st.SearchStrategy[bytes]:
    """Contents that may replace those of a JSON file."""
    mutated = documents(json.loads(original)).map(lambda value: json.dumps(value).encode())
    return mutated | corrupted(original)
