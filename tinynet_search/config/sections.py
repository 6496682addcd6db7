"""The sections of a configuration: keys, types, defaults, limits and descriptions.

``config`` combines them; ``tools/write_reference.py`` writes the configuration reference from them.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from search_spaces.errors import unknown
from search_spaces.space import RDW_LIMITS
from tinynet_search.formula.baselines import RULES
from tinynet_search.mlflow_client.experiments import checked_template
from tinynet_search.mlflow_client.names import MODEL_NAME
from tinynet_search.owner import OWNER
from tinynet_search.text import seconds
from trainables.execution import Switch


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SpaceSection(Section):
    """The search space."""

    name: str = Field(
        default="efficientnet_b0",
        description="A built-in space, or `module:attribute` of your own.",
    )
    r: tuple[float, float] | None = Field(
        default=None,
        description="Lowest and highest r to draw; replaces the range of the space.",
    )
    d: tuple[float, float] | None = Field(
        default=None,
        description="Lowest and highest d to draw; replaces the range of the space.",
    )
    w: tuple[float, float] | None = Field(
        default=None,
        description="Lowest and highest w to draw; replaces the range of the space.",
    )
    band: tuple[float, float] | None = Field(
        default=None,
        description="Lowest and highest c of a candidate; replaces the band of the space.",
    )

    @field_validator("r", "d", "w", "band")
    @classmethod
    def _ordered(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not (0 < value[0] < value[1] <= RDW_LIMITS[1]):
            raise ValueError(
                f"expected [lowest, highest], both above 0 and at most {RDW_LIMITS[1]:g}"
            )
        return value


class SearchSection(Section):
    """The trials, the frontier, and the networks that are trained after the trials."""

    name: str | None = Field(
        default=None,
        description=(
            "Name of the search and of its directory; by default the name of the file or "
            "of the preset."
        ),
    )
    owner: str | None = Field(
        default=None,
        description=(
            "Owner of the search in MLflow, jobs and metrics; by default `TINYNET_OWNER`, or the "
            "login name."
        ),
    )
    trials: int = Field(default=100, ge=1, le=100_000, description="Number of trials.")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed of the candidates and of every training."
    )
    sampler: str = Field(
        default="uniform", description="`uniform` (the paper's), `stratified`, `near` or `optuna`."
    )
    c: float | None = Field(
        default=None, gt=0, le=1.05, description="Target of the sampler `near`."
    )
    tol: float = Field(
        default=0.03,
        gt=0,
        le=0.5,
        description="Largest relative distance of a candidate of `near` from its target.",
    )
    fraction: float = Field(
        default=0.2, gt=0, le=1, description="Fraction of the trials that are kept as the frontier."
    )
    minimum: int = Field(default=6, ge=1, description="Minimum number of models on the frontier.")
    finals: tuple[float, ...] = Field(
        default=(),
        description="Budgets c; the formula's network for each of them is trained at the end.",
    )
    compare: tuple[str, ...] = Field(
        default=("inverse giant",),
        description=(
            "Rules whose networks are trained for the same budgets; true selects `inverse giant`."
        ),
    )
    frontier_epochs: int | None = Field(
        default=None,
        ge=1,
        description="Total epochs to which the models of the frontier are trained.",
    )
    from_scratch: bool = Field(
        default=False,
        description="Train those models from scratch instead of from their last checkpoint.",
    )

    @field_validator("name")
    @classmethod
    def _valid_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", value):
            raise ValueError(
                "expected letters, digits and . _ - (the default is the name of the file)"
            )
        return value

    @field_validator("owner")
    @classmethod
    def _valid_owner(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(OWNER, value):
            raise ValueError("expected at most 64 letters, digits and . _ @ + -")
        return value

    @field_validator("compare", mode="before")
    @classmethod
    def _known_rules(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return ("inverse giant",) if value else ()
        rules = value if isinstance(value, list | tuple) else [value]
        for rule in rules:
            if not isinstance(rule, str) or rule not in RULES:
                raise ValueError(str(unknown("rule", str(rule), RULES)))
        return tuple(dict.fromkeys(rules))

    @field_validator("finals")
    @classmethod
    def _valid_budgets(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        for c in value:
            if not 0 < c <= 1:
                raise ValueError(
                    f"{c:g} is not a valid budget: "
                    "expected c in (0, 1], a fraction of the baseline's FLOPs"
                )
        return value


class OpenSection(BaseModel):
    """A section with a name; the recipe or data set of this name validates its other keys."""

    model_config = ConfigDict(extra="allow", frozen=True)
    name: str


class RunSection(Section):
    """How trials are run."""

    executor: Literal["inline", "ray_train"] = Field(
        default="inline",
        description="`inline`: the trial's process trains. `ray_train`: workers of Ray Train.",
    )
    address: str | None = Field(
        default=None,
        description=(
            "Address of a Ray cluster. Without it and `RAY_ADDRESS`, a local cluster is started."
        ),
    )
    concurrency: int | None = Field(
        default=None,
        ge=1,
        description=(
            "Maximum number of concurrent trials; the number that fits at the start if "
            "it is not set."
        ),
    )
    max_failures: int = Field(
        default=5, ge=0, description="Maximum number of restarts of a trial whose process died."
    )
    trial_timeout: float = Field(
        default=6 * 3600,
        gt=0,
        description="A trial that reports no epoch for this long fails; seconds, `30m` or `6h`.",
    )
    stop_at_failed: float = Field(
        default=0.5, ge=0, le=1, description="Share of failed trials above which the search stops."
    )
    wait_for_nodes: float = Field(
        default=0.0,
        ge=0,
        description=(
            "Time in which an autoscaling cluster must have room for the first trial, "
            "and for each later one; seconds or `30m`."
        ),
    )

    @field_validator("trial_timeout", "wait_for_nodes", mode="before")
    @classmethod
    def _parse_time(cls, value: Any) -> Any:
        return seconds(value) if isinstance(value, str) else value


class ScalingSection(Section):
    """Resources of one trial."""

    auto: bool = Field(
        default=False,
        description="Choose the workers, and what is not set here, from the cluster's nodes.",
    )
    workers: int = Field(default=1, ge=1, description="Data-parallel workers of one trial.")
    cpus: float = Field(default=1.0, gt=0, le=4096, description="CPUs of one worker.")
    gpus: float = Field(
        default=0.0,
        ge=0,
        le=4096,
        description="GPUs of one worker; a fraction lets several trials share one.",
    )
    loader_workers: int = Field(
        default=0, ge=0, description="Processes or threads of one worker that prepare images."
    )
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = Field(
        default="PACK", description="Ray's placement strategy for the workers of a trial."
    )


class ExecutionSection(Section):
    """How trainings are executed (``trainables.execution.Execution``).

    ``auto`` enables a feature where it is faster on the available device.
    """

    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="Of the forward pass; `auto` is bf16 on GPUs that support it."
    )
    channels_last: Switch = Field(
        default="auto", description="Memory layout of weights and images."
    )
    compile: Switch = Field(
        default="auto",
        description="`torch.compile` of the network; `auto` is on for long trainings on GPUs.",
    )
    fused: Switch = Field(
        default="auto", description="Optimizer steps over flat buffers with torch's fused kernels."
    )
    autotune: Switch = Field(
        default="auto", description="cuDNN tries its kernels once and keeps the fastest; GPUs only."
    )
    pinned: Switch = Field(default="auto", description="Page-locked batches; GPUs only.")
    checkpoint_every_steps: int = Field(
        default=0, ge=0, description="Steps between checkpoints; 0 is one per epoch."
    )


class StorageSection(Section):
    path: str = Field(
        default="searches",
        min_length=1,
        description="Folder or URL of all searches; every node must have access to it.",
    )


class TrackingSection(Section):
    uri: str | None = Field(
        default=None, description="MLflow's URI; without it, SQLite next to a local storage folder."
    )
    model: str | None = Field(
        default=None,
        pattern=MODEL_NAME,
        description=(
            "First part of the name of the registered formula, `<model>-<space>`; by default "
            "that of the search's last registration, or `tiny-formula`."
        ),
    )
    promote: bool = Field(
        default=False,
        description=(
            "Make the formula of this search, or the weights of this training, the `champion` of "
            "its registered model in any case."
        ),
    )
    experiment: str | None = Field(
        default=None,
        description=(
            "MLflow experiment of a new search or job, with the placeholders `{space}` and "
            "`{owner}`; by default `MLFLOW_EXPERIMENT_NAME`, or `tinynet-{space}`."
        ),
    )

    @field_validator("experiment")
    @classmethod
    def _valid_experiment(cls, value: str | None) -> str | None:
        return None if value is None else checked_template(value)
