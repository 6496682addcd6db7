"""Samplers: seeded, distinct, in band, and a longer draw starts with the same networks."""

import copy

import numpy as np
import pytest

from search_spaces import RequestError, SearchSpace, get_space
from search_spaces.samplers import draw

pytestmark = pytest.mark.quick

B0 = get_space("efficientnet_b0")
CASES = [("uniform", {}), ("stratified", {}), ("near", {"c": 0.5})]


@pytest.mark.parametrize(("sampler", "options"), CASES)
@pytest.mark.parametrize("name", ["efficientnet_b0", "efficientnet_mini"])
def test_draws(name: str, sampler: str, options: dict[str, float]) -> None:
    space = get_space(name)
    drawn = draw(space, sampler, 60, 7, num_classes=24, **options)
    assert len({n.key for n in drawn}) == 60
    assert all(space.band[0] * 0.97 <= n.c <= space.band[1] * 1.03 for n in drawn)
    assert all(
        space.ranges[k][0] <= v <= space.ranges[k][1]
        for n in drawn
        for k, v in n.rdw._asdict().items()
    )
    assert [n.rdw for n in draw(space, sampler, 20, 7, num_classes=24, **options)] == [
        n.rdw for n in drawn[:20]
    ]
    assert [n.rdw for n in draw(space, sampler, 20, 8, num_classes=24, **options)] != [
        n.rdw for n in drawn[:20]
    ]


def test_uniform_matches_the_papers_population() -> None:
    """All networks are in band, and the quartiles of c are near .30/.53/.78."""
    drawn = draw(B0, "uniform", 2000, 0)
    c = np.array([n.c for n in drawn])
    assert c.min() >= 0.03
    assert c.max() <= 1.05
    assert np.quantile(c, [0.25, 0.5, 0.75]) == pytest.approx([0.30, 0.53, 0.78], abs=0.04)


def test_uniform_equals_plain_rejection() -> None:
    """The reference draws and costs one network at a time."""
    rng = np.random.default_rng(3)
    kept = []
    while len(kept) < 25:
        r, d, w = (0.35 + (2.8 - 0.35) * rng.random(3)).tolist()
        network = B0.network((r, d, w))
        if 0.03 <= network.c <= 1.05 and network.key not in {n.key for n in kept}:
            kept.append(network)
    assert [n.rdw for n in draw(B0, "uniform", 25, 3)] == [n.rdw for n in kept]


def test_no_network_is_created_for_a_draw_out_of_band(monkeypatch: pytest.MonkeyPatch) -> None:
    created: list[float] = []
    network = SearchSpace.network

    def recorded(self: SearchSpace, *args: object) -> object:
        result = network(self, *args)  # type: ignore[arg-type]
        created.append(result.c)
        return result

    B0.baseline_macs()
    monkeypatch.setattr(SearchSpace, "network", recorded)
    draw(B0, "uniform", 50, 0)
    assert created
    assert all(0.03 <= c <= 1.05 for c in created)


def test_stratified_covers_log_c_evenly() -> None:
    """Each quarter of log c contains a quarter of the first 16 networks, at most one fewer."""
    c = np.log([n.c for n in draw(B0, "stratified", 16, 0)])
    counts, _ = np.histogram(c, bins=np.linspace(np.log(0.029), np.log(1.06), 5))
    assert counts.min() >= 3


def test_near_is_within_three_percent_of_the_target() -> None:
    drawn = draw(B0, "near", 40, 0, c=0.5)
    assert all(abs(n.c - 0.5) <= 0.03 * 0.5 for n in drawn)
    assert np.ptp([n.rdw.r for n in drawn]) > 0.5


def test_band_without_networks_raises() -> None:
    space = copy.copy(B0)
    space.band = (1e-5, 2e-5)
    for sampler in ("uniform", "stratified"):
        with pytest.raises(RequestError, match="has no network with"):
            draw(space, sampler, 3, 0)


def test_more_trials_than_networks_raises() -> None:
    space = copy.copy(get_space("efficientnet_mini"))
    space.ranges = {"r": (0.5, 0.55), "d": (0.5, 0.51), "w": (0.5, 0.6)}
    with pytest.raises(RequestError, match="distinct networks"):
        draw(space, "uniform", 500, 0)


def test_unknown_sampler() -> None:
    with pytest.raises(RequestError, match="did you mean 'stratified'"):
        draw(B0, "stratifed", 3, 0)
