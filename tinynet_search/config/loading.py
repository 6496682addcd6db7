"""Loads the configuration of a search from TOML, presets and ``--set key=value``, and validates it.

Used by the commands, the search driver and the training jobs. The sections ``[space] [search]
[recipe] [data]`` determine results and must match the plan of an existing search (trials, finals
and epochs may grow); ``[run] [scaling] [execution] [storage] [tracking]`` set where and how it
runs and may change between runs.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from search_spaces import RequestError, SearchSpace, get_space
from search_spaces.errors import unknown
from search_spaces.samplers import ADAPTIVE, SAMPLERS
from tinynet_search.config.sections import (
    ExecutionSection,
    OpenSection,
    RunSection,
    ScalingSection,
    SearchSection,
    SpaceSection,
    StorageSection,
    TrackingSection,
)
from tinynet_search.errors import one_line
from tinynet_search.mlflow_client.experiments import chosen_experiment
from tinynet_search.owner import OWNER, default_owner
from trainables.data import absolute_folders
from trainables.execution import Execution
from trainables.recipe import Recipe, get_recipe, validate_recipe
from trainables.spec import Settings
from trainables.storage.documents import parsed
from trainables.storage.folder import child_url, read_file

PRESETS = ("demo", "imagenet100")


# Unvalidated values by section and key, as read from TOML or JSON.
Values = Mapping[str, Any]
# The value of one command-line option.
Override = str | int | float | bool | None
# Maximum number of bytes in a file, and of dots in one line.
MAX_FILE_BYTES, MAX_LINE_DOTS = 1_000_000, 1000


class Config(BaseModel):
    """A complete configuration; every section has defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    space: SpaceSection = SpaceSection()
    search: SearchSection = SearchSection()
    recipe: OpenSection = OpenSection(name="efficientnet")
    data: OpenSection = OpenSection(name="petals")
    run: RunSection = RunSection()
    scaling: ScalingSection = ScalingSection()
    execution: ExecutionSection = ExecutionSection()
    storage: StorageSection = StorageSection()
    tracking: TrackingSection = TrackingSection()

    def resolve(self) -> "PlanInputs":
        """Resolve the space, the recipe and the location of the data.

        Raises:
            RequestError: an unknown space, recipe, recipe setting or sampler.
        """
        recipe, section, search = _recipe(self.recipe), self.space, self.search
        spans = {"r": section.r, "d": section.d, "w": section.w}
        ranges = {key: span for key, span in spans.items() if span is not None}
        space = get_space(section.name).narrowed(ranges, section.band)
        if search.sampler not in (*SAMPLERS, *ADAPTIVE):
            raise unknown("sampler", search.sampler, (*SAMPLERS, *ADAPTIVE))
        space_name = section.name if ":" in section.name else space.name
        return PlanInputs(
            name=str(search.name),
            owner=self.owner,
            experiment=self.experiment(space_name),
            url=self.url,
            space=space,
            space_name=space_name,
            recipe=recipe,
            data=self.data_settings(),
            search=search,
        )

    def data_settings(self) -> Settings:
        """The ``[data]`` settings with absolute paths."""
        return absolute_folders(self.data.model_dump())

    @property
    def owner(self) -> str:
        """The owner of the search or job: ``search.owner``, or the default of this process.

        Characters that are not valid in an owner become ``_``.
        """
        if self.search.owner is not None:
            return self.search.owner
        name = re.sub(r"[^A-Za-z0-9_.@+-]", "_", default_owner())[:64]
        return name if re.fullmatch(OWNER, name) else f"_{name}"[:64]

    def experiment(self, space: str) -> str | None:
        """The MLflow experiment that the user has chosen for a space, None for the default.

        Raises:
            RequestError: MLFLOW_EXPERIMENT_NAME is not valid.
        """
        return chosen_experiment(self.tracking.experiment, space, self.owner)

    @property
    def url(self) -> str:
        """The search directory; options of a storage URL (``s3://bucket/searches?region=...``)
        stay at its end."""
        return child_url(self.storage.path, str(self.search.name))

    @property
    def training_execution(self) -> Execution:
        """The ``[execution]`` settings; the number of image readers is part of ``[scaling]``."""
        return Execution(**self.execution.model_dump())


@dataclass(frozen=True)
class PlanInputs:
    """The inputs of a plan, resolved once from a configuration.

    Attributes:
        name, owner: of the search; url: of its directory.
        experiment: MLflow experiment that the user has chosen, None for the default.
        space: with the ranges and band of the configuration.
        space_name: the argument of ``get_space``.
        data: ``[data]`` settings with absolute paths.
    """

    name: str
    owner: str
    experiment: str | None
    url: str
    space: SearchSpace
    space_name: str
    recipe: Recipe
    data: Settings
    search: SearchSection

    @property
    def adaptive(self) -> bool:
        """Whether candidates are drawn during the search, each from the previous results."""
        return self.search.sampler in ADAPTIVE


def _recipe(section: OpenSection) -> Recipe:
    """The recipe of this name, with the other keys of the section replacing its settings."""
    recipe, changes = get_recipe(section.name), section.model_extra or {}
    known = [field.name for field in fields(recipe) if field.name != "name"]
    for key in changes:
        if key not in known:
            raise unknown("recipe setting", key, known)
    try:
        values = TypeAdapter(Recipe).validate_python({**asdict(recipe), **changes})
    except ValidationError as error:
        raise _explained(error, "recipe") from None
    return validate_recipe(values)


def load_config(
    source: str | Path | None = None,
    *,
    preset: str | None = None,
    settings: Iterable[str] = (),
    overrides: Values = MappingProxyType({}),
) -> Config:
    """Read a configuration.

    Args:
        source: a TOML file, or a JSON file with the same sections.
        preset: a built-in configuration, ``demo`` or ``imagenet100``; ``source`` overrides it.
        settings: ``section.key=value`` texts that override both; values are TOML or plain text.
        overrides: values by section and key that override all others.

    Raises:
        RequestError: the file or preset does not exist, a key is unknown, a value is out of range.
    """
    values = merged(with_settings(read_values(source, preset=preset), settings), overrides)
    name = Path(source).stem if source is not None else preset or "search"
    defaults = {"search": name, "recipe": "efficientnet", "data": "petals"}
    for section, default_name in defaults.items():
        if isinstance(values.setdefault(section, {}), dict):
            values[section] = {"name": default_name, **values[section]}
    return validate(values, str(source or preset or "the settings"))


def read_values(source: str | Path | None = None, *, preset: str | None = None) -> dict[str, Any]:
    """The values of a preset, overridden by those of a file; not yet validated.

    Raises:
        RequestError: the file or preset does not exist.
    """
    values = _preset(preset) if preset is not None else {}
    return values if source is None else merged(values, _file(Path(source)))


def with_settings(values: Values, settings: Iterable[str]) -> dict[str, Any]:
    """Values overridden by ``section.key=value`` texts.

    Raises:
        RequestError: a text does not have this form.
    """
    changed = dict(values)
    for setting in settings:
        changed = merged(changed, _setting(setting))
    return changed


def values_from_options(options: Mapping[str, Override]) -> dict[str, dict[str, Override]]:
    """Convert options of a command by ``section.key`` to values by section and key; skip None."""
    values: dict[str, dict[str, Override]] = {}
    for name, value in options.items():
        section, _, key = name.partition(".")
        if value is not None:
            values.setdefault(section, {})[key] = value
    return values


def validate(values: Values, where: str) -> Config:
    """A configuration from values by section and key.

    Args:
        where: the source of the values, for error messages.

    Raises:
        RequestError: as in ``load_config``.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _explained(error, where) from None
    _check(config, config.resolve())
    return config


def _check(config: Config, inputs: PlanInputs) -> None:
    """Validate settings that depend on more than one section.

    Raises:
        RequestError: two settings contradict each other.
    """
    search, scaling, recipe = config.search, config.scaling, inputs.recipe
    if (search.sampler == "near") != (search.c is not None):
        raise RequestError("search.c is the target of the sampler 'near': set both or neither")
    if config.run.executor == "inline" and (scaling.workers > 1 or scaling.gpus > 1):
        raise RequestError(
            'scaling: more than one worker or GPU per trial requires run.executor = "ray_train"'
        )
    if scaling.workers > 1 and 0 < scaling.gpus < 1:
        raise RequestError(
            "scaling: the workers of a trial cannot share a GPU: "
            "set scaling.workers = 1 to use a fraction of a GPU"
        )
    if not (scaling.auto and "gpus" not in scaling.model_fields_set):
        check_sync_bn(recipe, scaling)
    _check_continuing(search, recipe)
    if recipe.micro_batches % scaling.workers:
        raise RequestError(
            f"scaling.workers = {scaling.workers} does not divide the recipe's "
            f"{recipe.micro_batches} micro-batches per step: set a divisor of this number"
        )


def check_sync_bn(recipe: Recipe, scaling: ScalingSection) -> None:
    """Check that workers have a GPU if batch norm is synchronised.

    Raises:
        RequestError: a worker has no GPU.
    """
    if recipe.sync_bn and scaling.gpus < 1:
        raise RequestError(
            "recipe.sync_bn: synchronised batch norm requires GPUs: "
            "set scaling.gpus = 1, or remove recipe.sync_bn"
        )


def _check_continuing(search: SearchSection, recipe: Recipe) -> None:
    epochs = search.frontier_epochs
    if epochs is None:
        return
    if epochs <= recipe.epochs:
        raise RequestError(
            f"the frontier must be trained for more than the {recipe.epochs} epochs of the search, "
            f"got {epochs}: increase search.frontier_epochs (--epochs)"
        )
    if not (recipe.extendable or search.from_scratch):
        raise RequestError(
            f"the cosine schedule of recipe {recipe.name!r} ends at epoch {recipe.epochs}, "
            f"so its models cannot continue to {epochs}: "
            "train them from scratch with --from-scratch (search.from_scratch = true)"
        )


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return tomllib.loads(
        resources.files("tinynet_search").joinpath(f"presets/{name}.toml").read_text()
    )


def _file(path: Path) -> dict[str, Any]:
    try:
        data = read_file(path, MAX_FILE_BYTES)
        return _json(data) if path.suffix == ".json" else _toml(data.decode())
    except FileNotFoundError:
        hint = f", or --preset {path}" if str(path) in PRESETS else ""
        raise RequestError(
            f"configuration {str(path)!r} does not exist: pass a TOML file{hint}"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"configuration {str(path)!r} cannot be read: {one_line(error)}"
        ) from None


def _toml(text: str) -> dict[str, Any]:
    """Parse TOML, with a limit on dots.

    The memory of Python's parser grows with the square of the parts of a dotted key.

    Raises:
        ValueError: the text is not TOML, or is too large.
        RecursionError: it is nested too deeply.
    """
    dots = [line.count(".") for line in text.split("\n")]
    if len(text) > MAX_FILE_BYTES or max(dots) > MAX_LINE_DOTS:
        raise ValueError("the file is too large for a configuration")
    return tomllib.loads(text)


def _json(data: bytes) -> dict[str, Any]:
    values = parsed(data)
    if not isinstance(values, dict):
        raise ValueError("expected a JSON object of sections")
    return values


def _setting(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise RequestError(f"--set {text!r}: expected section.key=value, such as search.trials=20")
    try:
        result = _toml(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        result = value.strip()
    return {section: {name: result}}


def merged(base: Values, top: Values) -> dict[str, Any]:
    """Merge values section by section.

    A recipe, data or space section with a different name replaces the section of ``base``.
    """
    merged = dict(base)
    for section, values in top.items():
        old = merged.get(section, {})
        both = isinstance(old, dict) and isinstance(values, dict)
        renamed = (
            both and section != "search" and values.get("name", old.get("name")) != old.get("name")
        )
        merged[section] = {**old, **values} if both and not renamed else values
    return merged


def _explained(error: ValidationError, where: str) -> RequestError:
    """The first validation error, as one line."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        model: Any = Config
        for part in path[:-1]:
            model = model.model_fields[part].annotation
        known = list(model.model_fields)
        return unknown(
            f"key in {where}:", ".".join(path), [".".join([*path[:-1], key]) for key in known]
        )
    message = first["msg"].removeprefix("Value error, ")
    value = one_line(repr(first["input"]), 200)
    return RequestError(f"{where}: {'.'.join(path)}: {message} (got {value})")
