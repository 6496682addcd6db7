"""What ``tinynet train`` is asked for, made into a configuration, opened data and a network."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from search_spaces import Network, RequestError, SearchSpace, get_space
from search_spaces.networks import get_named
from tinynet_search.config import (
    Config,
    PlanInputs,
    Values,
    merged,
    overriding,
    read_values,
    validate,
    with_settings,
)
from tinynet_search.errors import one_line
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.plan.plan import check_batch
from tinynet_search.store.train_job import TrainJob
from trainables.data import ImageData, opened_data
from trainables.spec import Settings, TrialSpec

# Section 4.1: the paper's final networks on ImageNet's thousand classes.
IMAGENET_CLASSES, IMAGENET_EPOCHS = 1000, 450
LONGEST_NAME = 64


@dataclass(frozen=True)
class TrainRequest:
    """The command's arguments; exactly one of ``network``, ``rdw`` and ``c`` names the network.

    Attributes:
        rdw: ``R,D,W``, a twist of ``space``; c: a budget for ``formula``, in ``space`` or the formula's own.
        data: ``petals`` or a folder; settings: ``section.key=value`` texts, which come last.
    """

    network: str | None = None
    config: Path | None = None
    rdw: str | None = None
    c: float | None = None
    space: str | None = None
    formula: str | None = None
    extrapolate: bool = False
    data: str | None = None
    settings: Sequence[str] = ()
    recipe: str | None = None
    epochs: int | None = None
    seed: int | None = None
    name: str | None = None
    storage: str | None = None
    tracking: str | None = None

    def __post_init__(self) -> None:
        for option, value in (("data", self.data), ("name", self.name)):
            if value is not None and not value.strip():
                raise RequestError(
                    f"--{option} {value!r} names nothing: leave it out, or give it a value"
                )
        if self.name is not None and not re.fullmatch(
            rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{LONGEST_NAME - 1}}}", self.name
        ):
            plain = f"at most {LONGEST_NAME} letters, digits and . _ -, the first a letter, a digit or _"
            raise RequestError(
                f"--name {one_line(self.name, 80)!r} is no name for a job: give {plain}"
            )


class Chosen(NamedTuple):
    """A network with its label, and its space as ``get_space`` takes it."""

    label: str
    space: str
    network: Network


def make_job(request: TrainRequest) -> tuple[Config, TrainJob]:
    """The configuration and the job that are asked for; opens the data for its fingerprint and classes.

    Raises:
        RequestError: the request contradicts itself, or names what is not there.
    """
    chooser = Chooser(request)
    values = read_request(request)
    if not values.get("data"):
        raise RequestError(
            "nothing to train on: give --data petals, --data with a folder of images, or [data] in a configuration"
        )
    settings = settled(values, chooser.space, request).data_settings()
    data = opened_data(settings)
    chosen = chooser.network(len(data.class_names))
    name = request.name or _job_name(chosen.label, settings)
    config = settled(values, chooser.space, request, name=name, classes=len(data.class_names))
    inputs = config.resolve()
    check_batch(data, inputs.recipe)
    return config, TrainJob(
        name,
        chosen.label,
        _spec(inputs, chosen, data),
        data.train_size,
        data.val_size,
        int(time.time()),
    )


def _spec(inputs: PlanInputs, chosen: Chosen, data: ImageData) -> TrialSpec:
    network = chosen.network
    return TrialSpec(
        space=chosen.space,
        space_version=network.space.version,
        rdw=network.rdw,
        num_classes=network.num_classes,
        recipe=inputs.recipe,
        data=inputs.data,
        data_fingerprint=data.fingerprint,
        seed=inputs.search.seed,
        kind="final",
    )


class Chooser:
    """The network of a request, which waits for the number of classes."""

    def __init__(self, request: TrainRequest) -> None:
        given = [each for each in (request.network, request.rdw, request.c) if each is not None]
        if len(given) != 1:
            found = "no network to train" if not given else "more than one network to train"
            raise RequestError(
                f"{found}: give a name of tinynet networks, --rdw R,D,W with --space, or --c C, and only one of them"
            )
        if request.network is not None and request.space is not None:
            raise RequestError(f"--space goes with --rdw and --c: {request.network!r} has its own")
        if request.rdw is not None and request.space is None:
            raise RequestError(
                f"--rdw {request.rdw} is a twist of what? give --space, for example --space efficientnet_b0"
            )
        if request.c is None and (request.formula is not None or request.extrapolate):
            raise RequestError("--formula and --extrapolate go with --c")
        self._request = request
        self._formula = (
            TinyFormula.load(request.formula or "published", tracking_uri=request.tracking)
            if request.c is not None
            else None
        )
        self._space = request.space or (
            self._formula.get_space(None).name
            if self._formula
            else get_named(request.network or "").space
        )

    @property
    def space(self) -> str:
        return self._space

    def network(self, classes: int) -> Chosen:
        """The network with a classifier for as many classes."""
        request, space = self._request, get_space(self._space)
        if self._formula is not None:
            assert request.c is not None
            found = self._formula.suggest(
                request.c, space=request.space, num_classes=classes, extrapolate=request.extrapolate
            )
            return Chosen(_plain(f"{self._space}-c{request.c:g}"), self._space, found.network)
        if request.rdw is not None:
            r, d, w = rdw = _multipliers(request.rdw)
            return Chosen(
                _plain(f"{self._space}-r{r:g}-d{d:g}-w{w:g}"),
                self._space,
                space.network(rdw, classes),
            )
        row = get_named(request.network or "")
        return Chosen(row.name, self._space, space.network(row.network().rdw, classes))


def read_request(request: TrainRequest) -> dict[str, Any]:
    """Configuration file, flags, then ``--set``: plain values, not checked yet."""
    values = read_values(request.config)
    if request.data is not None:
        values["data"] = data_settings(request.data)
    options = overriding(
        {
            "recipe.name": request.recipe,
            "recipe.epochs": request.epochs,
            "search.seed": request.seed,
            "storage.path": request.storage,
        }
    )
    values = with_settings(merged(values, options), request.settings)
    scaling, run = values.get("scaling"), values.get("run", {})
    if isinstance(scaling, dict) and isinstance(run, dict) and scaling.get("workers", 1) != 1:
        values["run"] = {"executor": "ray_train", **run}
    return values


def data_settings(data: str) -> Settings:
    """The ``[data]`` settings of ``petals`` or a folder."""
    if data == "petals":
        return {"name": "petals"}
    from trainables.data.detect import detected

    return dict(detected(data))


def settled(
    values: Values,
    space: str,
    request: TrainRequest,
    *,
    name: str = "job",
    classes: int | None = None,
) -> Config:
    """The checked configuration, with what follows from the space and the data where nobody said otherwise.

    ``[space]`` gives way to the network, and of ``[search]`` the seed alone counts.
    """
    whole = {
        key: dict(section) if isinstance(section, Mapping) else section
        for key, section in values.items()
    }
    data = whole.setdefault("data", {})
    whole["space"] = {"name": space}
    search, recipe = whole.setdefault("search", {}), whole.setdefault("recipe", {})
    if isinstance(search, dict):
        search["name"] = name
    if isinstance(data, dict):
        data.setdefault("name", "petals")
    if isinstance(recipe, dict):
        petals = isinstance(data, dict) and data["name"] == "petals"
        recipe.setdefault("name", default_recipe(get_space(space), petals=petals))
        if classes == IMAGENET_CLASSES and str(recipe["name"]).startswith("efficientnet"):
            recipe.setdefault("epochs", IMAGENET_EPOCHS)
    return validate(whole, str(request.config or "the request"))


def default_recipe(space: SearchSpace, *, petals: bool) -> str:
    """``short`` on the built-in images, else section 4.1's for the family."""
    if petals:
        return "short"
    return "resnet" if space.name.startswith("resnet") else "efficientnet"


def _multipliers(text: str) -> tuple[float, float, float]:
    try:
        r, d, w = (float(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(
            f"--rdw {text!r} is no r,d,w: give three numbers such as 0.86,1.2,1.0"
        ) from error
    return r, d, w


def _job_name(label: str, settings: Settings) -> str:
    """The network's name and the data's: of a folder its own."""
    path = settings.get("path")
    data = Path(str(path)).name if path else str(settings["name"])
    return _plain(f"{label}-{data}".lstrip(".-"))[:LONGEST_NAME]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)
