"""How candidates are drawn. Every sampler is seeded, gives distinct real networks, and builds no module.

``draw(space, "uniform", n, seed)`` gives the first n of one endless sequence: a longer draw with the same seed starts
with the same networks, so a search can grow without touching what it has.

| name | what is drawn |
|-|-|
| uniform | the paper's (section 4.2): r, d, w uniform in the ranges, kept when c lies in the band |
| stratified | c spread evenly in log c over the band; r, d uniform; w solved on the exact cost |
| near | as stratified, at one c (Figure 2: width tuned so that FLOPs are within 3 % of the target) |
| optuna | c, d, r drawn by Optuna (adaptive, in ``tinynet_search.search.adaptive``); w solved by :func:`solved_width` |
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count, islice

import numpy as np

from search_spaces.errors import RequestError, unknown
from search_spaces.space import RDW, Network, SearchSpace

CHUNK = 256
# A budget that no draw of this many meets is a band or range without networks.
PATIENCE = 400_000
GOLDEN = (math.sqrt(5) - 1) / 2

Stream = Iterator[Network]


def uniform(space: SearchSpace, seed: int, num_classes: int | None) -> Stream:
    """The paper's rejection sampler: cost is computed for all draws, networks are made for the kept ones only."""
    rng = np.random.default_rng(seed)
    low, high = _box(space)
    baseline = space.baseline_macs(num_classes)
    barren = 0
    while barren < PATIENCE:
        draws = low + (high - low) * rng.random((CHUNK, 3))
        r, d, w = draws.T
        c = space.macs(r, d, w, num_classes) / baseline
        kept = draws[(c >= space.band[0]) & (c <= space.band[1])]
        barren = 0 if len(kept) else barren + CHUNK
        yield from (space.network(_rdw(row), num_classes) for row in kept)
    raise _no_network(space, f"c in [{space.band[0]:g}, {space.band[1]:g}]")


def stratified(space: SearchSpace, seed: int, num_classes: int | None) -> Stream:
    """c on a golden-ratio sequence in log c: any first n cover the band evenly."""
    rng = np.random.default_rng(seed)
    low, high = (math.log(edge) for edge in space.band)
    start = rng.random()
    for index in count():
        target = math.exp(low + (high - low) * ((start + index * GOLDEN) % 1.0))
        yield _solved(space, target, rng, num_classes)


def near(
    space: SearchSpace, seed: int, num_classes: int | None, *, c: float, tol: float = 0.03
) -> Stream:
    """Random r and d, width tuned around sqrt(c / (r^2 d)) until the cost is within ``tol`` of c (Figure 2)."""
    rng = np.random.default_rng(seed)
    while True:
        yield _solved(space, c, rng, num_classes, tol)


SAMPLERS: dict[str, Callable[..., Stream]] = {
    "uniform": uniform,
    "stratified": stratified,
    "near": near,
}
ADAPTIVE = ("optuna",)


def draw(
    space: SearchSpace,
    sampler: str,
    n: int,
    seed: int,
    *,
    num_classes: int | None = None,
    **options: float,
) -> list[Network]:
    """The first ``n`` distinct networks of a sampler's sequence.

    Raises:
        RequestError: unknown sampler, or the band and ranges hold fewer than ``n`` distinct networks.
    """
    if sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    return list(
        islice(
            _distinct(partial(SAMPLERS[sampler], space, seed, num_classes, **options)(), space), n
        )
    )


def _distinct(stream: Stream, space: SearchSpace) -> Stream:
    """Drop networks that came before: two twists may round to the same one."""
    seen: set[str] = set()
    repeats = 0
    for network in stream:
        if network.key in seen:
            repeats += 1
            if repeats > 200 + len(seen):
                raise RequestError(
                    f"space {space.name} holds only {len(seen)} distinct networks here: ask for fewer trials or widen the band"
                )
            continue
        seen.add(network.key)
        yield network


def _solved(
    space: SearchSpace,
    c: float,
    rng: np.random.Generator,
    num_classes: int | None,
    tol: float = 0.03,
) -> Network:
    """A random (r, d) for which a width inside its range meets c, from draws costed together at both ends of the range."""
    low, high = _box(space)
    budget = c * space.baseline_macs(num_classes)
    for _ in range(PATIENCE // CHUNK):
        draws = low[:2] + (high - low)[:2] * rng.random((CHUNK, 2))
        ends = [
            space.macs(draws[:, 0], draws[:, 1], np.full(CHUNK, w), num_classes)
            for w in (low[2], high[2])
        ]
        for r, d in draws[(ends[0] <= budget * (1 + tol)) & (ends[1] >= budget * (1 - tol))]:
            network = solved_width(space, c, float(r), float(d), num_classes, tol)
            if network is not None:
                return network
    raise _no_network(space, f"c = {c:g}")


def solved_width(
    space: SearchSpace, c: float, r: float, d: float, num_classes: int | None, tol: float = 0.03
) -> Network | None:
    """The network at exactly (r, d) with the width solved for c, or None where none meets ``tol`` inside the ranges."""
    network = space.nearest_width(c, r, d, num_classes)
    low, high = space.ranges["w"]
    meets = abs(network.c - c) <= tol * c and space.band[0] <= network.c <= space.band[1]
    return network if meets and low <= network.rdw.w <= high else None


def _box(space: SearchSpace) -> tuple[np.ndarray, np.ndarray]:
    edges = np.array([space.ranges[k] for k in RDW._fields])
    return edges[:, 0], edges[:, 1]


def _rdw(row: np.ndarray) -> RDW:
    return RDW(*(float(v) for v in row))


def _no_network(space: SearchSpace, what: str) -> RequestError:
    ranges = ", ".join(f"{k} in [{low:g}, {high:g}]" for k, (low, high) in space.ranges.items())
    return RequestError(
        f"space {space.name} has no network with {what} among {ranges}: widen the band or the ranges"
    )
