"""The demo's recipe learns, and its accuracy depends on (r, d, w)."""

from pathlib import Path

import pytest
import torch

from tests.trainables.helpers import tiny_spec
from trainables.data import open_data
from trainables.recipe import get_recipe
from trainables.spec import LocalReporter, TrialSpec
from trainables.trial import run_trial


def _top1(rdw: tuple[float, float, float], root: Path) -> float:
    data = {"name": "petals", "val": 480}
    fingerprint = open_data(data).fingerprint
    spec = TrialSpec("efficientnet_mini", 1, rdw, 24, get_recipe("short"), data, fingerprint, 0)
    result = run_trial(spec, str(root), LocalReporter())
    assert result.finished
    return result.epochs[-1].top1


def test_accuracy_depends_on_resolution(tmp_path: Path) -> None:
    """At 32 pixels top-1 is at least 85 %; at 13 pixels only hue and outline are visible.

    Chance level is 4.2 %.
    """
    torch.set_num_threads(1)
    assert _top1((1.01, 0.45, 0.625), tmp_path) >= 85
    assert 15 <= _top1((0.41, 0.45, 0.625), tmp_path) <= 60


@pytest.mark.parametrize(
    ("space", "rdw"), [("resnet18", (0.15, 0.5, 0.25)), ("ghostnet_a_hswish", (0.14, 0.3, 0.4))]
)
def test_every_family_trains(space: str, rdw: tuple[float, float, float], tmp_path: Path) -> None:
    """The loss decreases with dropout and stochastic depth, which a recipe can enable."""
    result = run_trial(
        tiny_spec(rdw, space=space, epochs=4, dropout=0.1, drop_path=0.1),
        str(tmp_path),
        LocalReporter(),
    )
    assert result.status == "finished"
    assert result.epochs[-1].train_loss < result.epochs[0].train_loss
