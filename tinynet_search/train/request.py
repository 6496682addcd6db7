"""Converts the arguments of ``tinynet train`` into a configuration and a training job.

Called by the ``train`` command, by evaluations and by the submission of training jobs.
"""

import re
import sys
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
    read_values,
    validate,
    values_from_options,
    with_settings,
)
from tinynet_search.errors import one_line
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.plan.plan import check_batch
from tinynet_search.store.train_job import TrainJob
from trainables.data import ImageData, open_data_cached
from trainables.spec import Settings, TrialSpec

# Section 4.1: the paper's final networks on the thousand classes of ImageNet.
IMAGENET_CLASSES, IMAGENET_EPOCHS = 1000, 450
MAX_NAME_LENGTH = 64


@dataclass(frozen=True)
class TrainRequest:
    """The arguments of the command; exactly one of ``network``, ``rdw`` and ``c`` is given.

    Attributes:
        rdw: ``R,D,W``, the multipliers of a network in ``space``.
        c: A budget for ``formula``, in ``space`` or in the formula's own space.
        data: ``petals`` or a folder.
        settings: ``section.key=value`` texts, which override the other values.
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
                    f"--{option} {value!r} is empty: omit the option, or pass a value"
                )
        if self.name is not None and not re.fullmatch(
            rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_NAME_LENGTH - 1}}}", self.name
        ):
            raise RequestError(
                f"--name {one_line(self.name, 80)!r} is not a valid job name: use at most "
                f"{MAX_NAME_LENGTH} letters, digits and . _ -, starting with a letter, a digit or _"
            )


class SelectedNetwork(NamedTuple):
    """A network with its label and the name of its space, as accepted by ``get_space``."""

    label: str
    space: str
    network: Network


def make_job(request: TrainRequest) -> tuple[Config, TrainJob]:
    """Create the requested configuration and job.

    Opens the data to read its fingerprint and its number of classes.

    Raises:
        RequestError: The request contradicts itself, or something it names does not exist.
    """
    requested = RequestedNetwork(request)
    values = read_request(request)
    if not values.get("data"):
        raise RequestError(
            "no data to train on: pass --data petals, --data with a folder of images, "
            "or set [data] in a configuration"
        )
    settings = complete_config(values, requested.space, request).data_settings()
    data = open_data_cached(settings)
    classes = len(data.class_names)
    chosen = requested.network(classes)
    name = request.name or _job_name(chosen.label, settings)
    config = complete_config(values, requested.space, request, name=name, classes=classes)
    inputs = config.resolve()
    check_batch(data, inputs.recipe)
    return config, TrainJob(
        name=name,
        owner=inputs.owner,
        network=chosen.label,
        spec=_spec(inputs, chosen, data),
        train=data.train_size,
        val=data.val_size,
        class_names=list(data.class_names),
        created=int(time.time()),
        experiment=inputs.experiment,
    )


def _spec(inputs: PlanInputs, chosen: SelectedNetwork, data: ImageData) -> TrialSpec:
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


class RequestedNetwork:
    """The network of a request; it is built once the number of classes is known.

    Raises:
        RequestError: The options that select the network are missing or contradict each other.
    """

    def __init__(self, request: TrainRequest) -> None:
        given = [each for each in (request.network, request.rdw, request.c) if each is not None]
        if len(given) != 1:
            problem = "no network to train" if not given else "more than one network to train"
            raise RequestError(
                f"{problem}: pass exactly one of a name listed by tinynet networks, "
                "--rdw R,D,W with --space, or --c C"
            )
        if request.network is not None and request.space is not None:
            raise RequestError(
                f"--space requires --rdw or --c: {request.network!r} has its own space"
            )
        if request.rdw is not None and request.space is None:
            raise RequestError(
                f"--rdw {request.rdw} requires a space: "
                "pass --space, for example --space efficientnet_b0"
            )
        if request.c is None and (request.formula is not None or request.extrapolate):
            raise RequestError("--formula and --extrapolate require --c")
        self._request = request
        self._formula: TinyFormula | None = None
        if request.c is not None:
            self._formula = TinyFormula.load(
                request.formula or "published",
                tracking_uri=request.tracking,
                space=request.space,
            )
            if self._formula.note:
                print(self._formula.note, file=sys.stderr)
        if request.space:
            self._space = request.space
        elif self._formula:
            self._space = self._formula.get_space(None).name
        else:
            self._space = get_named(request.network or "").space

    @property
    def space(self) -> str:
        return self._space

    def network(self, classes: int) -> SelectedNetwork:
        """The network with a classifier for this number of classes."""
        request, space = self._request, get_space(self._space)
        if self._formula is not None:
            assert request.c is not None
            suggestion = self._formula.suggest(
                request.c, space=request.space, num_classes=classes, extrapolate=request.extrapolate
            )
            return SelectedNetwork(
                _plain(f"{self._space}-c{request.c:g}"), self._space, suggestion.network
            )
        if request.rdw is not None:
            r, d, w = rdw = _multipliers(request.rdw)
            return SelectedNetwork(
                _plain(f"{self._space}-r{r:g}-d{d:g}-w{w:g}"),
                self._space,
                space.network(rdw, classes),
            )
        row = get_named(request.network or "")
        return SelectedNetwork(row.name, self._space, space.network(row.network().rdw, classes))


def read_request(request: TrainRequest) -> dict[str, Any]:
    """Merge the configuration file, the options and ``--set``, without validation.

    Later sources override earlier ones.
    """
    values = read_values(request.config)
    if request.data is not None:
        values["data"] = data_settings(request.data)
    options = values_from_options(
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
    from trainables.data.detect import detect_data

    return dict(detect_data(data))


def complete_config(
    values: Values,
    space: str,
    request: TrainRequest,
    *,
    name: str = "job",
    classes: int | None = None,
) -> Config:
    """The validated configuration, with defaults that depend on the space and the data.

    The network replaces ``[space]``, and only the seed of ``[search]`` is used.
    """
    complete = {
        key: dict(section) if isinstance(section, Mapping) else section
        for key, section in values.items()
    }
    data = complete.setdefault("data", {})
    complete["space"] = {"name": space}
    search, recipe = complete.setdefault("search", {}), complete.setdefault("recipe", {})
    if isinstance(search, dict):
        search["name"] = name
    if isinstance(data, dict):
        data.setdefault("name", "petals")
    if isinstance(recipe, dict):
        petals = isinstance(data, dict) and data["name"] == "petals"
        recipe.setdefault("name", default_recipe(get_space(space), petals=petals))
        if classes == IMAGENET_CLASSES and str(recipe["name"]).startswith("efficientnet"):
            recipe.setdefault("epochs", IMAGENET_EPOCHS)
    return validate(complete, str(request.config or "the request"))


def default_recipe(space: SearchSpace, *, petals: bool) -> str:
    """``short`` on the built-in images, else the recipe of section 4.1 for the network family."""
    if petals:
        return "short"
    return "resnet" if space.name.startswith("resnet") else "efficientnet"


def _multipliers(text: str) -> tuple[float, float, float]:
    try:
        r, d, w = (float(part) for part in text.split(","))
    except ValueError as error:
        raise RequestError(
            f"--rdw {text!r} is not a valid r,d,w: pass three numbers such as 0.86,1.2,1.0"
        ) from error
    return r, d, w


def _job_name(label: str, settings: Settings) -> str:
    """The network's label, followed by the name of the data or of its folder."""
    path = settings.get("path")
    data = Path(str(path)).name if path else str(settings["name"])
    return _plain(f"{label}-{data}".lstrip(".-"))[:MAX_NAME_LENGTH]


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", text)
