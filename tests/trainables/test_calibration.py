"""Speed measurements with a short training, and the estimates that use them."""

import time
from pathlib import Path

import pytest

from tests.search.helpers import tiny_config
from tinynet_search.cluster.estimate import assumed_rate, estimate_time, median_trial
from tinynet_search.cluster.placement import GPU_RATE, START_SECONDS, ClusterRequest, Placement
from tinynet_search.plan.candidates import TRAIN_PASSES
from tinynet_search.plan.preview import preview
from trainables.calibration import WARMUP_STEPS, _Clock, images_per_s


def test_warm_up_steps_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = _Clock(2.0)
    for _ in range(WARMUP_STEPS):
        assert not clock()
        now[0] += 10.0
    while not clock():
        now[0] += 0.5
    assert clock.images_per_s(64) == pytest.approx(64 / 0.5)


def test_an_epoch_shorter_than_the_measurement_gives_the_speed(tmp_path: Path) -> None:
    """The speeds of a complete epoch and of single steps are similar, and no files remain."""
    inputs = tiny_config(tmp_path, "data.train=960", trials=3).resolve()
    spec = median_trial(inputs, preview(inputs).candidates)
    by_epoch, by_steps = images_per_s(spec, 60.0), images_per_s(spec, 0.5)
    assert by_epoch > 0
    assert 0.2 < by_steps / by_epoch < 5
    assert not list(tmp_path.iterdir())


def test_an_estimate_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "run.executor=ray_train", "scaling.gpus=1")
    macs = [3600 * GPU_RATE] * 4
    request = ClusterRequest.of(config, config.resolve())
    estimate = estimate_time(Placement(request, 2), macs, GPU_RATE, "assumed")
    assert estimate.wall_seconds == pytest.approx(2 * (3600 + START_SECONDS))
    assert estimate.worker_hours == pytest.approx(4 * (3600 + START_SECONDS) / 3600)
    rate, source = assumed_rate("A100", "resnet50")
    assert (rate, source) == (156e12 * 0.15, "assumed: 15% of the peak of one A100")
    assert assumed_rate("a100", "efficientnet_b0")[0] == 156e12 * 0.02
    with pytest.raises(ValueError, match="a100"):
        assumed_rate("a1000", "efficientnet_b0")


def test_the_median_trial_by_macs_is_chosen(tmp_path: Path) -> None:
    inputs = tiny_config(tmp_path, trials=5).resolve()
    rows = preview(inputs).candidates
    spec = median_trial(inputs, rows)
    assert TRAIN_PASSES == 3
    assert sorted(row.macs for row in rows)[2] == spec.network().macs
