"""Defines the training recipes, their validation, and their learning-rate and EMA-decay schedules.

Used by the configuration, the plan and the training loop.

A recipe is named, complete and frozen. It fixes the global batch and the micro-batch: each
optimizer step processes ``batch`` images as ``batch / micro_batch`` micro-batches, divided over
workers and accumulation steps. Batch norm normalises one micro-batch, so a trial's result does not
depend on where it runs.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

from search_spaces.errors import RequestError, unknown
from trainables.storage.documents import DocumentError, typed

# Maximum batch size; a larger one is a typing error or a damaged file.
MAX_BATCH = 2**20
_RANDAUGMENT = re.compile(r"rand(-(m|n|p|mstd|mmax|inc|w|t)\d+(\.\d+)?)*")


@dataclass(frozen=True)
class Recipe:
    """All settings of a training except network, data and seed.

    Attributes:
        epochs: passes over the training set.
        batch, micro_batch: images per optimizer step, and images per batch-norm batch.
        optimizer: a name in ``trainables.optim.optimizers.OPTIMIZERS``.
        lr, lr_batch: peak learning rate for a batch of ``lr_batch`` images; it scales linearly with
            the global batch (``peak_lr``). Without ``lr_batch``, ``lr`` is the peak rate for every
            batch.
        schedule: ``step`` (``lr * decay ** floor(epoch / decay_epochs)``, constant within an epoch)
            or ``cosine`` (to zero over all steps).
        warmup_epochs, warmup_lr: linear warm-up from ``warmup_lr``; per epoch for ``step``, per
            step for ``cosine``.
        weight_decay: applied to parameters with two or more dimensions only.
        bn_momentum: in torch's convention; None keeps torch's .1 (the paper's .99 is .01 here).
        ema_decay, ema_warmup: moving average of weights and batch-norm statistics, updated after
            every step; with warm-up the decay is min(ema_decay, (1 + t) / (10 + t)).
        sync_bn: batch norm over the micro-batches of all ranks, which makes the result depend on
            the number of workers; GPUs only.
        ranks: which weights' last top-1 is ``top1``, the value that the search ranks by.
        augment: ``paper`` (random-resized crop, flip, colour jitter) or ``shift`` (shift by
            ``shift`` of the side, brightness and contrast jitter).
        hflip: probability of a horizontal flip.
        randaugment: policy string in timm's format, or empty.
        eval_ratio: evaluation resizes the short side to pixels / eval_ratio, then crops the centre.
    """

    name: str
    epochs: int
    batch: int
    micro_batch: int
    optimizer: Literal["rmsprop_tf", "rmsprop", "sgd", "adamw"]
    lr: float
    schedule: Literal["step", "cosine"]
    warmup_epochs: float
    warmup_lr: float
    weight_decay: float
    decay: float = 0.97
    decay_epochs: float = 2.4
    bn_momentum: float | None = None
    ema_decay: float = 0.9999
    ema_warmup: bool = True
    ranks: Literal["ema", "raw"] = "ema"
    dropout: float = 0.0
    drop_path: float = 0.0
    label_smoothing: float = 0.0
    augment: Literal["paper", "shift"] = "paper"
    hflip: float = 0.5
    jitter: float = 0.4
    shift: float = 0.0
    randaugment: str = ""
    eval_ratio: float = 0.875
    lr_batch: int | None = None
    sync_bn: bool = False

    def __post_init__(self) -> None:
        # 1 and 1.0 are the same setting: they must have the same text in the id of a trial.
        for key in _FLOAT_SETTINGS:
            value = getattr(self, key)
            if type(value) is int:
                object.__setattr__(self, key, float(value))

    @property
    def peak_lr(self) -> float:
        """The highest learning rate; linear in the global batch if ``lr_batch`` is set."""
        return self.lr if self.lr_batch is None else self.lr * self.batch / self.lr_batch

    @property
    def micro_batches(self) -> int:
        """Micro-batches in one optimizer step."""
        return self.batch // self.micro_batch

    @property
    def extendable(self) -> bool:
        """Whether a longer training can continue from a shorter one.

        True if no setting of the first epochs depends on the total number of epochs.
        """
        return self.schedule == "step"

    def identity(self) -> dict[str, str | int | float | bool | None]:
        """The settings that are part of a trial's id: all except the name and the epochs.

        Results for different numbers of epochs share one id. ``lr`` is the effective rate,
        ``peak_lr``. Settings that were added later are included only if they are set, so that
        existing ids do not change.
        """
        settings = asdict(self) | {"lr": self.peak_lr}
        excluded = {"name", "epochs", "lr_batch"} | ({"sync_bn"} if not self.sync_bn else set())
        return {key: value for key, value in settings.items() if key not in excluded}


_FLOAT_SETTINGS = [field.name for field in fields(Recipe) if "float" in str(field.type)]


EFFICIENTNET = Recipe(
    name="efficientnet",
    epochs=100,
    batch=1024,
    micro_batch=128,
    optimizer="rmsprop_tf",
    lr=0.048,
    lr_batch=1024,
    schedule="step",
    warmup_epochs=3,
    warmup_lr=1e-6,
    weight_decay=1e-5,
    dropout=0.2,
    label_smoothing=0.1,
)
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        # The authors' script with EMA warm-up: after 4,882 steps, an average with a constant decay
        # of .9999 still contains 61 % of the random initial weights.
        EFFICIENTNET,
        # Exactly section 4.1.
        replace(EFFICIENTNET, name="efficientnet_paper", bn_momentum=0.01, ema_warmup=False),
        Recipe(
            name="resnet",
            epochs=90,
            batch=1024,
            micro_batch=128,
            optimizer="sgd",
            lr=0.4,
            lr_batch=1024,
            schedule="step",
            warmup_epochs=0,
            warmup_lr=0.0,
            weight_decay=1e-4,
            decay=0.1,
            decay_epochs=30,
            ranks="raw",
        ),
        # Not from the paper: for the built-in image set and small networks, in minutes instead of
        # days.
        Recipe(
            name="short",
            epochs=10,
            batch=48,
            micro_batch=48,
            optimizer="rmsprop",
            lr=2e-3,
            schedule="cosine",
            warmup_epochs=1,
            warmup_lr=0.0,
            weight_decay=1e-5,
            ema_decay=0.99,
            augment="shift",
            hflip=0.5,
            jitter=0.2,
            shift=0.06,
            eval_ratio=1.0,
        ),
    )
}


def get_recipe(name: str, **overrides: Any) -> Recipe:
    """Return a recipe by name with some settings changed.

    Raises:
        RequestError: the recipe or a setting is unknown, or the settings are not compatible.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    known = {field.name for field in fields(Recipe)} - {"name"}
    for key in overrides:
        if key not in known:
            raise unknown("recipe setting", key, known)
    return validate_recipe(replace(RECIPES[name], **overrides))


def recipe_from(settings: Mapping[str, Any]) -> Recipe:
    """Build a recipe from the dictionary of ``dataclasses.asdict``, which may come from a file.

    Raises:
        RequestError: a setting is unknown, missing, of the wrong type or out of range.
    """
    try:
        return _recipe_of(tuple((key, type(value), value) for key, value in settings.items()))
    except TypeError as error:  # an unhashable value, such as a list
        raise RequestError("recipe: every setting must be a number or a string") from error


@lru_cache(maxsize=64)
def _recipe_of(settings: tuple[tuple[str, type, Any], ...]) -> Recipe:
    """Build a recipe; cached because all candidates of a search have the same one.

    The cache key contains the types because 1 == True.
    """
    values = {key: value for key, _, value in settings}
    known = [field.name for field in fields(Recipe)]
    for key in values:
        if key not in known:
            raise unknown("recipe setting", str(key)[:100], known)
    try:
        typed(Recipe, values)
    except DocumentError as error:
        raise RequestError(f"recipe: {error}") from error
    # Use the original values, not those that pydantic returns: an id distinguishes 3 from 3.0.
    return validate_recipe(Recipe(**values))


def validate_recipe(recipe: Recipe) -> Recipe:
    """Check a recipe and return it unchanged.

    Raises:
        RequestError: a setting is out of range.
    """
    rules = {
        "epochs must be an integer from 1 to 100000": 1 <= recipe.epochs <= 100_000,
        f"batch must be at most {MAX_BATCH}": recipe.batch <= MAX_BATCH,
        f"micro_batch must divide batch, got batch = {recipe.batch} and micro_batch = "
        f"{recipe.micro_batch}: set both": recipe.batch >= recipe.micro_batch >= 2
        and recipe.batch % recipe.micro_batch == 0,
        "lr must be above 0, warmup_lr, warmup_epochs and weight_decay at least 0": recipe.lr > 0
        and min(recipe.warmup_lr, recipe.warmup_epochs, recipe.weight_decay) >= 0,
        "decay and decay_epochs must be above 0": recipe.decay > 0 and recipe.decay_epochs > 0,
        "bn_momentum must be in (0, 1]": recipe.bn_momentum is None or 0 < recipe.bn_momentum <= 1,
        "hflip must be in [0, 1]": 0 <= recipe.hflip <= 1,
        "jitter must be in [0, 1]": 0 <= recipe.jitter <= 1,
        "dropout and drop_path must be in [0, 1)": 0 <= recipe.dropout < 1
        and 0 <= recipe.drop_path < 1,
        "ema_decay must be in [0, 1)": 0 <= recipe.ema_decay < 1,
        "label_smoothing must be in [0, 1)": 0 <= recipe.label_smoothing < 1,
        "eval_ratio must be in [.1, 1]": 0.1 <= recipe.eval_ratio <= 1,
        "shift must be in [0, .5]": 0 <= recipe.shift <= 0.5,
        "lr_batch must be at least 1": recipe.lr_batch is None or recipe.lr_batch >= 1,
        "randaugment must be a timm policy string, such as rand-m9-mstd0.5": not recipe.randaugment
        or _RANDAUGMENT.fullmatch(recipe.randaugment),
    }
    for key, value in asdict(recipe).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(f"recipe {recipe.name}: {key} must be a finite number, got {value}")
    for rule, holds in rules.items():
        if not holds:
            raise RequestError(f"recipe {recipe.name}: {rule}")
    return recipe


def lr_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of an optimizer step (0 is the first): section 4.1's schedule, or a cosine."""
    peak = recipe.peak_lr
    if recipe.schedule == "step":
        epoch = step // steps_per_epoch
        if epoch < recipe.warmup_epochs:
            return recipe.warmup_lr + epoch * (peak - recipe.warmup_lr) / recipe.warmup_epochs
        return peak * recipe.decay ** math.floor(epoch / recipe.decay_epochs)
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if step < warmup:
        return recipe.warmup_lr + (step + 1) * (peak - recipe.warmup_lr) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def ema_decay_at(recipe: Recipe, step: int) -> float:
    """Decay of the moving average after a step (1 is the first)."""
    return (
        min(recipe.ema_decay, (1 + step) / (10 + step)) if recipe.ema_warmup else recipe.ema_decay
    )
