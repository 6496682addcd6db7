"""Schedules and settings of the recipes, compared with timm's scheduler and the paper."""

import json
from dataclasses import asdict

import pytest
import torch

from search_spaces import RequestError
from trainables.recipe import RECIPES, ema_decay_at, get_recipe, lr_at, recipe_from

pytestmark = pytest.mark.quick

STEPS = 48


def test_efficientnet_learning_rates_match_timm() -> None:
    """Warm-up of 1e-6, .016, .032, then .048 * .97 ** floor(epoch / 2.4)."""
    from timm.scheduler.step_lr import StepLRScheduler

    recipe = RECIPES["efficientnet"]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.048)
    scheduler = StepLRScheduler(
        optimizer,
        decay_t=2.4,
        decay_rate=0.97,
        warmup_t=3,
        warmup_lr_init=1e-6,
        warmup_prefix=False,
    )
    for epoch in range(100):
        scheduler.step(epoch)
        expected = optimizer.param_groups[0]["lr"]
        assert lr_at(recipe, epoch * STEPS, STEPS) == pytest.approx(expected, rel=1e-12)
        assert lr_at(recipe, epoch * STEPS + STEPS - 1, STEPS) == pytest.approx(expected, rel=1e-12)
    assert [round(lr_at(recipe, e * STEPS, STEPS), 6) for e in range(3)] == [1e-6, 0.016001, 0.032]


# Section 4.1's schedule over the first 26 epochs, computed by hand: three epochs of warm-up, then a
# factor of .97 for every 2.4 epochs that have passed at the start of an epoch (once at epoch 3,
# twice at epoch 5, three times at epoch 8, ...).
WARM_UP = (0.000001, 0.016000667, 0.032000333)
DECAYS = (1, 1, 2, 2, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 7, 7, 7, 8, 8, 9, 9, 10, 10)


@pytest.mark.parametrize(("batch", "scale"), [(1024, 1.0), (256, 0.25), (2048, 2.0)])
def test_golden_learning_rates_step_by_step(batch: int, scale: float) -> None:
    """Rates are linear in the global batch, except the start of the warm-up."""
    recipe = get_recipe("efficientnet_paper", batch=batch)
    peak = 0.048 * scale
    warm_up = [WARM_UP[0] + (peak - WARM_UP[0]) * k / 3 for k in range(3)]
    if scale == 1:
        assert warm_up == pytest.approx(WARM_UP, rel=1e-6)
    epochs = [*warm_up, *(peak * 0.97**k for k in DECAYS)]
    curve = [lr_at(recipe, step, STEPS) for step in range(26 * STEPS)]
    assert curve == pytest.approx([rate for rate in epochs for _ in range(STEPS)], rel=1e-12)
    assert round(lr_at(recipe, 99 * STEPS, STEPS) / scale, 9) == round(0.048 * 0.97**41, 9)


def test_golden_resnet_rates_step_by_step() -> None:
    curve = [lr_at(RECIPES["resnet"], step, STEPS) for step in range(90 * STEPS)]
    assert curve == pytest.approx(
        [0.4] * 30 * STEPS + [0.04] * 30 * STEPS + [0.004] * 30 * STEPS, rel=1e-12
    )


def test_an_id_contains_the_effective_learning_rate() -> None:
    """Recipes from before ``lr_batch`` and ``sync_bn`` keep their ids."""
    recipe = RECIPES["efficientnet"]
    assert (recipe.peak_lr, get_recipe("short", batch=96).peak_lr) == (0.048, 2e-3)
    before = {
        key: value for key, value in asdict(recipe).items() if key not in ("lr_batch", "sync_bn")
    }
    assert recipe_from(before).identity() == recipe.identity()
    assert not {"lr_batch", "sync_bn"} & recipe.identity().keys()
    assert get_recipe("efficientnet", batch=512).identity()["lr"] == 0.024
    assert get_recipe("efficientnet", sync_bn=True).identity()["sync_bn"]


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5", "rand-m9-mstd0.5-inc1", "rand-n3-m7-p0.5", ""])
def test_randaugment_policies_are_valid_in_timm(text: str) -> None:
    from timm.data.auto_augment import rand_augment_transform

    assert get_recipe("efficientnet", randaugment=text).randaugment == text
    if text:
        rand_augment_transform(text, {"translate_const": 100, "img_mean": (1, 1, 1)})


def test_resnet_rate_drops_tenfold() -> None:
    recipe = RECIPES["resnet"]
    assert [round(lr_at(recipe, e * STEPS, STEPS), 6) for e in (0, 29, 30, 59, 60, 89)] == [
        0.4,
        0.4,
        0.04,
        0.04,
        0.004,
        0.004,
    ]


def test_cosine_warms_up_and_ends_near_zero() -> None:
    recipe = get_recipe("short", epochs=4)
    curve = [lr_at(recipe, s, 10) for s in range(40)]
    assert curve[9] == pytest.approx(recipe.lr)
    assert curve[:10] == sorted(curve[:10])
    assert curve[10:] == sorted(curve[10:], reverse=True)
    assert 0 < curve[-1] < recipe.lr / 100


def test_settings_of_section_4_1() -> None:
    paper = RECIPES["efficientnet_paper"]
    assert (paper.batch, paper.micro_batch, paper.optimizer, paper.lr, paper.weight_decay) == (
        1024,
        128,
        "rmsprop_tf",
        0.048,
        1e-5,
    )
    assert (paper.bn_momentum, paper.ema_decay, paper.ema_warmup, paper.dropout, paper.epochs) == (
        0.01,
        0.9999,
        False,
        0.2,
        100,
    )
    assert RECIPES["efficientnet"].ema_warmup


def test_ema_warm_up() -> None:
    recipe = RECIPES["efficientnet"]
    assert ema_decay_at(recipe, 1) == 2 / 11
    assert ema_decay_at(recipe, 10**6) == 0.9999
    assert ema_decay_at(RECIPES["efficientnet_paper"], 1) == 0.9999


def test_identity_excludes_only_name_and_epochs() -> None:
    one, other = get_recipe("short", epochs=3), get_recipe("short", epochs=9)
    assert one.identity() == other.identity()
    assert one.identity() != get_recipe("short", lr=0.5).identity()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs must be"),
        ({"batch": 50, "micro_batch": 20}, "micro_batch must divide batch"),
        ({"lr": 0.0}, "lr must be"),
        ({"lr": float("inf")}, "lr must be a finite number"),
        ({"weight_decay": float("nan")}, "weight_decay must be a finite number"),
        ({"randaugment": "nonsense"}, "randaugment must be a timm policy"),
        ({"ema_decay": 1.0}, "ema_decay"),
    ],
)
def test_invalid_settings_are_rejected(settings: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        get_recipe("short", **settings)


def test_unknown_recipe() -> None:
    with pytest.raises(RequestError, match="did you mean 'resnet'"):
        get_recipe("resnets")


def test_round_trip() -> None:
    """Integers stay integers: ids are computed from JSON, where 3 and 3.0 differ."""
    for recipe in RECIPES.values():
        again = recipe_from(asdict(recipe))
        assert again == recipe
        assert json.dumps(again.identity()) == json.dumps(recipe.identity())


def test_integers_in_float_settings_do_not_change_the_id() -> None:
    """A configuration gives 1.0 for a value that a program or a file gives as 1."""
    texts = {
        json.dumps(get_recipe("short", warmup_epochs=value, hflip=hflip).identity())
        for value, hflip in ((1, 1), (1.0, 1.0))
    }
    assert len(texts) == 1
    document = asdict(get_recipe("short")) | {"warmup_epochs": 1, "shift": 0}
    assert type(recipe_from(document).shift) is float
    assert type(get_recipe("short").epochs) is int
