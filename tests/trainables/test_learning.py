"""The demo's recipe really learns, and how much depends on the twist."""

from dataclasses import asdict
from pathlib import Path

import torch

from trainables.data import open_data
from trainables.recipe import get_recipe
from trainables.trial import Alone, TrialSpec, run_trial


def _top1(rdw: tuple[float, float, float], root: Path) -> float:
    data = {"name": "petals", "val": 480}
    fingerprint = open_data(data).fingerprint
    spec = TrialSpec("efficientnet_mini", 1, rdw, 24, asdict(get_recipe("short")), data, fingerprint, 0)
    return run_trial(spec, str(root), Alone())["metrics"]["top1"]


def test_fine_detail_needs_pixels(tmp_path: Path) -> None:
    """Chance is 4.2 %: 32 pixels reach 85 % and more; at 13 pixels the fills are gone and hue and outline stay."""
    torch.set_num_threads(1)
    assert _top1((1.01, 0.45, 0.625), tmp_path) >= 85
    assert 15 <= _top1((0.41, 0.45, 0.625), tmp_path) <= 60
