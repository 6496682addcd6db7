"""The configuration of a search: TOML, presets, ``--set key=value``, checked before anything runs.

``[space] [search] [recipe] [data]`` decide results and must match the plan of a search that exists (trials, finals
and epochs may grow); ``[run] [scaling] [execution] [storage] [tracking]`` say where and how it runs and may change from run to run.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from search_spaces import RequestError, SearchSpace, get_space
from search_spaces.errors import unknown
from search_spaces.samplers import ADAPTIVE, SAMPLERS
from search_spaces.space import SANE
from tinynet_search.errors import one_line
from tinynet_search.formula.baselines import RULES
from tinynet_search.text import seconds
from trainables.data import absolute
from trainables.execution import Execution, Switch
from trainables.recipe import Recipe, get_recipe, validated
from trainables.spec import Settings
from trainables.storage.documents import parsed
from trainables.storage.folder import below, read_file

PRESETS = ("demo", "imagenet100")


# Values by section and key, as TOML and JSON have them, before they are checked.
Values = Mapping[str, Any]
# Of one option of a command.
Override = str | int | float | bool | None
# Bytes of a file, and dots in one of its lines.
LARGEST, LARGEST_LINE = 1_000_000, 1000


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpaceSection(Section):
    """``name`` is a built-in space or ``module:attribute``; ranges and band replace the space's own."""

    name: str = "efficientnet_b0"
    r: tuple[float, float] | None = None
    d: tuple[float, float] | None = None
    w: tuple[float, float] | None = None
    band: tuple[float, float] | None = None

    @field_validator("r", "d", "w", "band")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not (0 < value[0] < value[1] <= SANE[1]):
            raise ValueError(f"give [lowest, highest], both above 0 and at most {SANE[1]:g}")
        return value


class SearchSection(Section):
    """What is searched and what follows: ``finals`` are the budgets c that the formula's networks are trained for,
    ``compare`` the rules whose networks are trained beside them (``baselines.RULES``; true is the inverse giant formula).
    ``frontier_epochs``: the frontier's models are trained on to so many epochs, or ``anew`` from the start."""

    name: str | None = None
    trials: int = Field(default=100, ge=1, le=100_000)
    seed: int = Field(default=0, ge=0, lt=2**31)
    sampler: str = "uniform"
    c: float | None = Field(default=None, gt=0, le=1.05)
    tol: float = Field(default=0.03, gt=0, le=0.5)
    fraction: float = Field(default=0.2, gt=0, le=1)
    minimum: int = Field(default=6, ge=1)
    finals: tuple[float, ...] = ()
    compare: tuple[str, ...] = ("inverse giant",)
    frontier_epochs: int | None = Field(default=None, ge=1)
    anew: bool = False

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", value):
            raise ValueError(
                "give the search a name of letters, digits and . _ - (without one it is the file's)"
            )
        return value

    @field_validator("compare", mode="before")
    @classmethod
    def _rules(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return ("inverse giant",) if value else ()
        rules = value if isinstance(value, list | tuple) else [value]
        for rule in rules:
            if not isinstance(rule, str) or rule not in RULES:
                raise ValueError(str(unknown("rule", str(rule), RULES)))
        return tuple(dict.fromkeys(rules))

    @field_validator("finals")
    @classmethod
    def _budgets(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for c in value:
            if not 0 < c <= 1:
                raise ValueError(
                    f"{c:g} is no budget: c is a fraction of the baseline's FLOPs in (0, 1]"
                )
        return value


class OpenSection(BaseModel):
    """A section whose further keys are checked by what it names."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str


class RunSection(Section):
    """``address``: of a Ray cluster; empty starts one here unless RAY_ADDRESS names one. ``trial_timeout``: seconds, or "30m",
    "6h", without an epoch after which a trial has failed. ``stop_at_failed``: the share of failed trials above which a search stops.
    ``wait_for_nodes``: seconds, or "30m", that a cluster which scales up gets to hold its first trial, and each later one."""

    executor: Literal["inline", "ray_train"] = "inline"
    address: str | None = None
    concurrency: int | None = Field(default=None, ge=1)
    max_failures: int = Field(default=5, ge=0)
    trial_timeout: float = Field(default=6 * 3600, gt=0)
    stop_at_failed: float = Field(default=0.5, ge=0, le=1)
    wait_for_nodes: float = Field(default=0.0, ge=0)

    @field_validator("trial_timeout", "wait_for_nodes", mode="before")
    @classmethod
    def _time(cls, value: Any) -> Any:
        return seconds(value) if isinstance(value, str) else value


class ScalingSection(Section):
    """Of one trial. ``auto``: workers, whatever stands there, and what else is not named are chosen from the cluster's nodes."""

    auto: bool = False
    workers: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, gt=0, le=4096)
    gpus: float = Field(default=0.0, ge=0, le=4096)
    loader_workers: int = Field(default=0, ge=0)
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"


class ExecutionSection(Section):
    """How trainings are computed (``trainables.execution.Execution``); ``auto`` is on where it helps on the device at hand."""

    precision: Literal["auto", "float32", "bf16"] = "auto"
    channels_last: Switch = "auto"
    compile: Switch = "auto"
    fused: Switch = "auto"
    autotune: Switch = "auto"
    pinned: Switch = "auto"
    checkpoint_every_steps: int = Field(default=0, ge=0)


class StorageSection(Section):
    path: str = Field(default="searches", min_length=1)


class TrackingSection(Section):
    uri: str | None = None


class Config(BaseModel):
    """A whole configuration; every section has defaults."""

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
        """What the configuration names, loaded: the space, the recipe, where the data are.

        Raises:
            RequestError: an unknown space, recipe, recipe setting or sampler.
        """
        recipe, named, search = _recipe(self.recipe), self.space, self.search
        spans = {"r": named.r, "d": named.d, "w": named.w}
        ranges = {key: span for key, span in spans.items() if span is not None}
        space = get_space(named.name).narrowed(ranges, named.band)
        if search.sampler not in (*SAMPLERS, *ADAPTIVE):
            raise unknown("sampler", search.sampler, (*SAMPLERS, *ADAPTIVE))
        return PlanInputs(
            name=str(search.name),
            url=self.url,
            space=space,
            space_name=named.name if ":" in named.name else space.name,
            recipe=recipe,
            data=self.data_settings(),
            search=search,
        )

    def data_settings(self) -> Settings:
        return absolute(self.data.model_dump())

    @property
    def url(self) -> str:
        """The search directory; a storage URL keeps its options (``s3://bucket/searches?region=...``) behind it."""
        return below(self.storage.path, str(self.search.name))

    @property
    def computed(self) -> Execution:
        """How trainings are computed; the readers of images are part of the scaling."""
        return Execution(**self.execution.model_dump())


@dataclass(frozen=True)
class PlanInputs:
    """What a plan is made of, resolved once from a configuration.

    Attributes:
        name: of the search; url: of its directory.
        space: with the configuration's ranges and band; space_name: as ``get_space`` takes it.
        data: ``[data]`` settings with absolute paths.
    """

    name: str
    url: str
    space: SearchSpace
    space_name: str
    recipe: Recipe
    data: Settings
    search: SearchSection

    @property
    def adaptive(self) -> bool:
        """Whether candidates are drawn while the search runs, each from the results before it."""
        return self.search.sampler in ADAPTIVE


def _recipe(section: OpenSection) -> Recipe:
    """The named recipe with the section's other keys in place of its settings."""
    recipe, changes = get_recipe(section.name), section.model_extra or {}
    known = [field.name for field in fields(recipe) if field.name != "name"]
    for key in changes:
        if key not in known:
            raise unknown("recipe setting", key, known)
    try:
        values = TypeAdapter(Recipe).validate_python({**asdict(recipe), **changes})
    except ValidationError as error:
        raise _explained(error, "recipe") from None
    return validated(values)


def load_config(
    source: str | Path | None = None,
    *,
    preset: str | None = None,
    settings: Iterable[str] = (),
    overrides: Values = MappingProxyType({}),
) -> Config:
    """Read a configuration.

    Args:
        source: a TOML file, or a JSON one of the same sections.
        preset: a shipped configuration, ``demo`` or ``imagenet100``; a file on top of it changes what it names.
        settings: ``section.key=value`` texts on top of both; values are TOML, or plain text.
        overrides: values by section and key, which come last.

    Raises:
        RequestError: no such file or preset, an unknown key, a value out of range.
    """
    values = merged(with_settings(read_values(source, preset=preset), settings), overrides)
    name = Path(source).stem if source is not None else preset or "search"
    defaults = {"search": name, "recipe": "efficientnet", "data": "petals"}
    for section, named in defaults.items():
        if isinstance(values.setdefault(section, {}), dict):
            values[section] = {"name": named, **values[section]}
    return validate(values, str(source or preset or "the settings"))


def read_values(source: str | Path | None = None, *, preset: str | None = None) -> dict[str, Any]:
    """The values of a preset and of a file on top of it, not checked yet.

    Raises:
        RequestError: no such file or preset.
    """
    values = _preset(preset) if preset is not None else {}
    return values if source is None else merged(values, _file(Path(source)))


def with_settings(values: Values, settings: Iterable[str]) -> dict[str, Any]:
    """Values with ``section.key=value`` texts on top.

    Raises:
        RequestError: a text is not of that form.
    """
    changed = dict(values)
    for setting in settings:
        changed = merged(changed, _setting(setting))
    return changed


def overriding(options: Mapping[str, Override]) -> dict[str, dict[str, Override]]:
    """Options of a command by ``section.key`` as values by section and key; those that are None were not given."""
    values: dict[str, dict[str, Override]] = {}
    for name, value in options.items():
        section, _, key = name.partition(".")
        if value is not None:
            values.setdefault(section, {})[key] = value
    return values


def validate(values: Values, where: str) -> Config:
    """A configuration from values by section and key.

    Raises:
        RequestError: as ``load_config``.
    """
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise _explained(error, where) from None
    _check(config, config.resolve())
    return config


def _check(config: Config, inputs: PlanInputs) -> None:
    """What no section can check alone.

    Raises:
        RequestError: two settings contradict each other.
    """
    search, scaling, recipe = config.search, config.scaling, inputs.recipe
    if (search.sampler == "near") != (search.c is not None):
        raise RequestError("search.c is the target of the sampler 'near': give both or neither")
    if config.run.executor == "inline" and (scaling.workers > 1 or scaling.gpus > 1):
        raise RequestError(
            'scaling: more than one worker or GPU a trial needs run.executor = "ray_train"'
        )
    if scaling.workers > 1 and 0 < scaling.gpus < 1:
        raise RequestError(
            "scaling: workers of one trial cannot share a GPU; use scaling.workers = 1 with a fraction of a GPU"
        )
    if not (scaling.auto and "gpus" not in scaling.model_fields_set):
        refuse_sync_bn(recipe, scaling)
    _check_continuing(search, recipe)
    if recipe.micro_batches % scaling.workers:
        raise RequestError(
            f"scaling.workers = {scaling.workers} cannot share the recipe's {recipe.micro_batches} micro-batches a step: use a divisor"
        )


def refuse_sync_bn(recipe: Recipe, scaling: ScalingSection) -> None:
    """Raises RequestError where batch norm is to be synchronised and workers have no GPU."""
    if recipe.sync_bn and scaling.gpus < 1:
        raise RequestError(
            "recipe.sync_bn: synchronised batch norm exists on GPUs only; set scaling.gpus = 1, or leave it out"
        )


def _check_continuing(search: SearchSection, recipe: Recipe) -> None:
    epochs = search.frontier_epochs
    if epochs is None:
        return
    if epochs <= recipe.epochs:
        raise RequestError(
            f"{epochs} epochs for the frontier are no more than the search's {recipe.epochs}: give more"
        )
    if not (recipe.continues or search.anew):
        ends = f"the cosine schedule of recipe {recipe.name!r} ends at epoch {recipe.epochs}, so its models cannot go on to {epochs}"
        raise RequestError(f"{ends}: train them from the start by --anew (search.anew = true)")


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return tomllib.loads(
        resources.files("tinynet_search").joinpath(f"presets/{name}.toml").read_text()
    )


def _file(path: Path) -> dict[str, Any]:
    try:
        data = read_file(path, LARGEST)
        return _json(data) if path.suffix == ".json" else _toml(data.decode())
    except FileNotFoundError:
        near = f", or --preset {path}" if str(path) in PRESETS else ""
        raise RequestError(f"no configuration {str(path)!r}: give a TOML file{near}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RequestError(
            f"configuration {str(path)!r} cannot be read: {one_line(error)}"
        ) from None


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError or RecursionError where it is none; Python's reader takes the square of a dotted key's parts in memory."""
    if len(text) > LARGEST or max(line.count(".") for line in text.split("\n")) > LARGEST_LINE:
        raise ValueError("it is too large for a configuration")
    return tomllib.loads(text)


def _json(data: bytes) -> dict[str, Any]:
    values = parsed(data)
    if not isinstance(values, dict):
        raise ValueError("it is no object of sections")
    return values


def _setting(text: str) -> dict[str, Any]:
    key, equals, value = text.partition("=")
    section, dot, name = key.strip().partition(".")
    if not (equals and dot and name):
        raise RequestError(f"--set {text!r}: write section.key=value, as in search.trials=20")
    try:
        parsed = _toml(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        parsed = value.strip()
    return {section: {name: parsed}}


def merged(base: Values, top: Values) -> dict[str, Any]:
    """Section by section; a section that names another thing (recipe, data, space) starts anew."""
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
    """The first mistake, in one line."""
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
    return RequestError(
        f"{where}: {'.'.join(path)}: {first['msg'].removeprefix('Value error, ')} (it is {one_line(repr(first['input']), 200)})"
    )
