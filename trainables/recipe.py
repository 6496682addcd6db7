"""Recipes: named, complete, frozen settings of one training, and the curves that follow from them.

A recipe fixes the global batch and the micro-batch. Workers and accumulation steps fill the rest: each optimizer
step sees ``batch`` images as ``batch / micro_batch`` micro-batches, whoever computes them. Batch norm normalises one
micro-batch, so where a trial runs is no part of its result.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

from search_spaces.errors import RequestError, unknown
from trainables.storage.documents import DocumentError, typed

# In a batch: beyond it is a typing error or a damaged file.
MOST_IMAGES = 2**20
_RANDAUGMENT = re.compile(r"rand(-(m|n|p|mstd|mmax|inc|w|t)\d+(\.\d+)?)*")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training besides network, data and seed.

    Attributes:
        epochs: passes over the training set.
        batch, micro_batch: images a step, and images batch norm sees at once.
        optimizer: a name in ``trainables.optim.optimizers.OPTIMIZERS``.
        lr, lr_batch: peak learning rate at a batch of ``lr_batch`` images; it scales linearly with the global batch
            (``peak_lr``). Without ``lr_batch`` it is the rate itself, whatever the batch.
        schedule: ``step`` (``lr * decay ** floor(epoch / decay_epochs)``, constant within an epoch) or ``cosine``
            (to zero over all steps).
        warmup_epochs, warmup_lr: linear warm-up from ``warmup_lr``; by whole epochs for ``step``, by steps for ``cosine``.
        weight_decay: on parameters of two dimensions and more only.
        bn_momentum: torch's convention; None keeps torch's .1 (the paper's .99 is .01 here).
        ema_decay, ema_warmup: average of weights and batch-norm statistics after every step; with warm-up the decay
            is min(ema_decay, (1 + t) / (10 + t)).
        sync_bn: batch norm over the micro-batches of all ranks at once, which makes the number of workers part of the
            result; GPUs only.
        ranks: which top-1 of the last epoch is ``top1``, what the search ranks by.
        augment: ``paper`` (random-resized crop, flip, colour jitter), ``shift`` (shift by ``shift`` of the side,
            brightness and contrast jitter).
        hflip: probability of a horizontal flip.
        randaugment: timm's policy text, or empty.
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

    @property
    def peak_lr(self) -> float:
        """The highest learning rate: linear in the global batch where the recipe says for which batch ``lr`` is."""
        return self.lr if self.lr_batch is None else self.lr * self.batch / self.lr_batch

    @property
    def micro_batches(self) -> int:
        """Micro-batches in one optimizer step."""
        return self.batch // self.micro_batch

    @property
    def continues(self) -> bool:
        """Whether a longer training begins as a shorter one: nothing in the first epochs depends on how many there are."""
        return self.schedule == "step"

    def identity(self) -> dict[str, str | int | float | bool | None]:
        """What is part of a trial's id: all but the name and the epochs (each epoch budget is a result under the id).

        The learning rate is the one that is used. Settings younger than some ids are in only where they are set.
        """
        settings = asdict(self) | {"lr": self.peak_lr}
        left_out = {"name", "epochs", "lr_batch"} | ({"sync_bn"} if not self.sync_bn else set())
        return {key: value for key, value in settings.items() if key not in left_out}


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
        # The authors' script, with the EMA warmed up: after 4,882 steps a plain .9999 is still 61 % random start.
        EFFICIENTNET,
        # Section 4.1 to the letter.
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
        # Minutes instead of days: for the built-in image set and small networks; not the paper's.
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
    """A named recipe with some settings changed.

    Raises:
        RequestError: unknown recipe or setting, or settings that do not go together.
    """
    if name not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    known = {field.name for field in fields(Recipe)} - {"name"}
    for key in overrides:
        if key not in known:
            raise unknown("recipe setting", key, known)
    return validated(replace(RECIPES[name], **overrides))


def recipe_from(settings: Mapping[str, Any]) -> Recipe:
    """A recipe from the plain dictionary that ``dataclasses.asdict`` gave; it may come from a file.

    Raises:
        RequestError: a setting is unknown, missing, of another type or out of range.
    """
    try:
        return _recipe_of(tuple((key, type(value), value) for key, value in settings.items()))
    except TypeError as error:  # a list has no hash
        raise RequestError("recipe: a setting is neither a number nor text") from error


@lru_cache(maxsize=64)
def _recipe_of(settings: tuple[tuple[str, type, Any], ...]) -> Recipe:
    """Searches ask for the same recipe with every candidate. The types are in the key since 1 and True are one."""
    values = {key: value for key, _, value in settings}
    known = [field.name for field in fields(Recipe)]
    for key in values:
        if key not in known:
            raise unknown("recipe setting", str(key)[:100], known)
    try:
        typed(Recipe, values)
    except DocumentError as error:
        raise RequestError(f"recipe: {error}") from error
    # The numbers as they were written, not as pydantic returns them: an id tells 3 from 3.0.
    return validated(Recipe(**values))


def validated(recipe: Recipe) -> Recipe:
    """The recipe itself.

    Raises:
        RequestError: a setting is out of range.
    """
    rules = {
        "epochs must be a whole number from 1 to 100000": 1 <= recipe.epochs <= 100_000,
        f"batch must be at most {MOST_IMAGES}": recipe.batch <= MOST_IMAGES,
        "micro_batch must divide batch": recipe.batch >= recipe.micro_batch >= 2
        and recipe.batch % recipe.micro_batch == 0,
        "lr must be above 0, warmup_lr, warmup_epochs and weight_decay at least 0": recipe.lr > 0
        and min(recipe.warmup_lr, recipe.warmup_epochs, recipe.weight_decay) >= 0,
        "decay and decay_epochs must be above 0": recipe.decay > 0 and recipe.decay_epochs > 0,
        "bn_momentum must lie in (0, 1]": recipe.bn_momentum is None or 0 < recipe.bn_momentum <= 1,
        "hflip must lie in [0, 1]": 0 <= recipe.hflip <= 1,
        "jitter must lie in [0, 1]": 0 <= recipe.jitter <= 1,
        "dropout and drop_path must lie in [0, 1)": 0 <= recipe.dropout < 1
        and 0 <= recipe.drop_path < 1,
        "ema_decay must lie in [0, 1)": 0 <= recipe.ema_decay < 1,
        "label_smoothing must lie in [0, 1)": 0 <= recipe.label_smoothing < 1,
        "eval_ratio must lie in [.1, 1]": 0.1 <= recipe.eval_ratio <= 1,
        "shift must lie in [0, .5]": 0 <= recipe.shift <= 0.5,
        "lr_batch must be at least 1": recipe.lr_batch is None or recipe.lr_batch >= 1,
        "randaugment is timm's text, as in rand-m9-mstd0.5": not recipe.randaugment
        or _RANDAUGMENT.fullmatch(recipe.randaugment),
    }
    for key, value in asdict(recipe).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise RequestError(
                f"recipe {recipe.name}: {key} must be a finite number (it is {value})"
            )
    for rule, holds in rules.items():
        if not holds:
            raise RequestError(f"recipe {recipe.name}: {rule}")
    return recipe


def lr_at(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """Learning rate of an optimizer step (0 is the first): section 4.1's curve, or a cosine to zero."""
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
    """Share of the old average that stays after a step (1 is the first)."""
    return (
        min(recipe.ema_decay, (1 + step) / (10 + step)) if recipe.ema_warmup else recipe.ema_decay
    )
