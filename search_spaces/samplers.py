"""Samplers that draw the candidates of a search from a space.

The search plan and ``tinynet_search.search.adaptive`` call them. Every sampler is seeded, yields
distinct real networks, and builds no module. ``draw(space, "uniform", n, seed)`` returns the first
n of one endless sequence: a longer draw with the same seed starts with the same networks, so a
search can grow without changing the candidates that it has.

| name | what is drawn |
|-|-|
| uniform | the paper's (section 4.2): r, d, w uniform in the ranges, kept when c is in the band |
| stratified | c spread evenly in log c over the band; r, d uniform; w solved on the exact cost |
| near | like stratified, at one c (Figure 2: w tuned until FLOPs are within 3 % of the target) |
| optuna | c, d, r drawn by Optuna (adaptive); w solved by ``solved_width`` |
"""

import math
from collections.abc import Callable, Iterator
from itertools import count, islice

import numpy as np

from search_spaces.errors import RequestError, unknown
from search_spaces.space import RDW, Network, SearchSpace

CHUNK = 256
# If this many draws in a row fail, the band and the ranges contain no network.
MAX_REJECTED_DRAWS = 400_000
GOLDEN = (math.sqrt(5) - 1) / 2

Stream = Iterator[Network]


def uniform(space: SearchSpace, seed: int, num_classes: int | None) -> Stream:
    """Draw as the paper's rejection sampler does.

    The cost of all draws is computed, but networks are created only for those in the band.
    """
    rng = np.random.default_rng(seed)
    low, high = _range_bounds(space)
    baseline = space.baseline_macs(num_classes)
    rejected = 0
    while rejected < MAX_REJECTED_DRAWS:
        draws = low + (high - low) * rng.random((CHUNK, 3))
        r, d, w = draws.T
        c = space.macs(r, d, w, num_classes) / baseline
        kept = draws[(c >= space.band[0]) & (c <= space.band[1])]
        rejected = 0 if len(kept) else rejected + CHUNK
        yield from (space.network(_rdw(row), num_classes) for row in kept)
    raise _no_network(space, f"c in [{space.band[0]:g}, {space.band[1]:g}]")


def stratified(space: SearchSpace, seed: int, num_classes: int | None) -> Stream:
    """Draw c from a golden-ratio sequence in log c.

    For any n, the first n values cover the band evenly.
    """
    rng = np.random.default_rng(seed)
    low, high = (math.log(edge) for edge in space.band)
    start = rng.random()
    for index in count():
        target = math.exp(low + (high - low) * ((start + index * GOLDEN) % 1.0))
        yield _solved(space, target, rng, num_classes)


def near(
    space: SearchSpace, seed: int, num_classes: int | None, *, c: float, tol: float = 0.03
) -> Stream:
    """Draw r and d at random and tune w to a cost within ``tol`` of c (Figure 2).

    The search for w starts at sqrt(c / (r^2 d)).
    """
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
    """Return the first ``n`` distinct networks of a sampler's sequence.

    Raises:
        RequestError: the sampler is unknown, or the band and ranges contain fewer than ``n``
            distinct networks.
    """
    if sampler not in SAMPLERS:
        raise unknown("sampler", sampler, SAMPLERS)
    stream = SAMPLERS[sampler](space, seed, num_classes, **options)
    return list(islice(_distinct(stream, space), n))


def _distinct(stream: Stream, space: SearchSpace) -> Stream:
    """Drop repeated networks: two different (r, d, w) may round to the same one."""
    seen: set[str] = set()
    repeats = 0
    for network in stream:
        if network.key in seen:
            repeats += 1
            if repeats > 200 + len(seen):
                raise RequestError(
                    f"space {space.name} has only {len(seen)} distinct networks in its ranges and "
                    "band: request fewer trials or widen the band"
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
    """Return a network at a random (r, d) whose width meets c within the range of widths.

    Draws are costed in chunks at the narrowest and the widest width. The width is solved only for
    draws whose budget is between these two costs.
    """
    low, high = _range_bounds(space)
    budget = c * space.baseline_macs(num_classes)
    for _ in range(MAX_REJECTED_DRAWS // CHUNK):
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
    """Return the network at exactly (r, d) with the width solved for c.

    Returns None if no width within the range meets c within ``tol``.
    """
    network = space.nearest_width(c, r, d, num_classes)
    low, high = space.ranges["w"]
    meets = abs(network.c - c) <= tol * c and space.band[0] <= network.c <= space.band[1]
    return network if meets and low <= network.rdw.w <= high else None


def _range_bounds(space: SearchSpace) -> tuple[np.ndarray, np.ndarray]:
    edges = np.array([space.ranges[k] for k in RDW._fields])
    return edges[:, 0], edges[:, 1]


def _rdw(row: np.ndarray) -> RDW:
    return RDW(*(float(v) for v in row))


def _no_network(space: SearchSpace, what: str) -> RequestError:
    ranges = ", ".join(f"{k} in [{low:g}, {high:g}]" for k, (low, high) in space.ranges.items())
    return RequestError(
        f"space {space.name} has no network with {what} for {ranges}: widen the band or the ranges"
    )
