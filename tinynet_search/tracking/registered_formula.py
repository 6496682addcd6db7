"""Registers the formula of a search in MLflow: a JSON file without code, one model per space.

Called by ``conclusion``. ``tinynet_search.mlflow_client.formula_models`` finds the formulas again.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.mlflow_client.connection import is_served
from tinynet_search.mlflow_client.names import (
    BASE_TAG,
    DEFAULT_MODEL,
    MODEL_NAME,
    SPACE_NAME_TAG,
    SPACE_TAG,
    formula_model,
    search_alias,
)
from tinynet_search.tracking.projection import KEY, OWNER, SEARCH
from tinynet_search.tracking.registered_models import (
    DATA_TAG,
    DIGEST,
    REGISTERED,
    content_digest,
    deduplicated_version,
    ensure_model,
    number_of,
    update_champion,
)
from tinynet_search.tracking.search_runs import SearchRuns

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

# Type of the logged model of a formula.
MODEL_TYPE = "tiny-formula"
# Tag of a parent run: the name of the registered model.
MODEL_TAG = "tinynet.model"
# Tags of a version: the number of points, and ``TinyFormula.leave_one_out_error``.
POINTS_TAG, ERROR_TAG = "points", "leave_one_out_error"


@dataclass(frozen=True)
class Registration:
    """How the formula of a search is registered.

    Attributes:
        base: the first part of the model's name; None keeps that of the last registration, or
            selects ``tiny-formula``.
        promote: whether the formula becomes the champion in any case.
    """

    base: str | None = None
    promote: bool = False


DEFAULT_REGISTRATION = Registration()


def register_formula(runs: SearchRuns, text: str, registration: Registration) -> str | None:
    """Register a usable formula as a version of the model of its space, unless it is registered.

    A new version gets the alias of its search. The alias ``champion`` follows the rule of
    ``update_champion``: a formula is better than an earlier one if it has at least as many points
    and no larger leave-one-out error. Registering the same formula again moves neither.

    Returns:
        The version that was registered or promoted, ``models:/name/version``; None if there was
        nothing to do.

    Raises:
        RequestError: the formula is damaged.
    """
    digest, base = content_digest(text), _base(runs, registration)
    formula = TinyFormula.from_json(text, "formula.json")
    model = formula_model(base, runs.plan.space.name, formula.space)
    if runs.tags.get(REGISTERED) == _registered(model, digest) and not registration.promote:
        return None
    tags = _version_tags(runs, formula) | {DIGEST: digest}
    _ensure_model(runs, model, base, formula.space)
    client = runs.client
    version = deduplicated_version(client, model, runs.key, digest)
    if version is None:
        version = _new_version(runs, model, text, tags)
    if runs.tags.get(REGISTERED) != _registered(model, digest):
        alias = search_alias(runs.plan.owner, runs.plan.search)
        client.set_registered_model_alias(model, alias, version)
    update_champion(client, model, version, _is_better, promote=registration.promote)
    runs.set_parent_tags({REGISTERED: _registered(model, digest), MODEL_TAG: model, BASE_TAG: base})
    return f"models:/{model}/{version}"


def _base(runs: SearchRuns, registration: Registration) -> str:
    registered = runs.tags.get(BASE_TAG, "")
    known = registered if re.fullmatch(MODEL_NAME, registered) else DEFAULT_MODEL
    return registration.base or known


def _registered(model: str, digest: str) -> str:
    return f"{model}/{digest}"


def _version_tags(runs: SearchRuns, formula: TinyFormula) -> dict[str, str]:
    plan = runs.plan
    return {
        KEY: runs.key,
        SEARCH: plan.search,
        OWNER: plan.owner,
        SPACE_TAG: plan.space.name,
        "run_id": runs.parent_id,
        DATA_TAG: plan.data.fingerprint,
        POINTS_TAG: str(len(formula.points)),
        ERROR_TAG: f"{formula.leave_one_out_error:.6g}",
    }


def _is_better(new: "ModelVersion", champion: "ModelVersion") -> bool:
    """Whether a formula is later, and has at least as many points and no larger error.

    The condition on the order makes the choice independent of repeated registrations.
    """
    points, error = number_of(new, POINTS_TAG), number_of(new, ERROR_TAG)
    best_points, best_error = number_of(champion, POINTS_TAG), number_of(champion, ERROR_TAG)
    if points is None or error is None or best_points is None or best_error is None:
        return False
    later = int(new.version) > int(champion.version)
    return later and points >= best_points and error <= best_error


def _ensure_model(runs: SearchRuns, model: str, base: str, space_name: str) -> None:
    """Create the registered model with the tags by which it is found."""
    space = runs.plan.space.name
    ensure_model(
        runs.client,
        model,
        f"r(c) and d(c) of the tiny formula for the space {space}: formula.json",
        {BASE_TAG: base, SPACE_TAG: space, SPACE_NAME_TAG: space_name},
    )


def _new_version(runs: SearchRuns, name: str, formula: str, tags: dict[str, str]) -> str:
    client, model = runs.client, _logged_model(runs, tags)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "formula.json").write_text(formula, encoding="utf-8")
        client.log_model_artifacts(model.model_id, folder)
    client.finalize_logged_model(model.model_id, "READY")
    # Without a server, MLflow would resolve models:/ with its global URI, which is not this one.
    source = f"models:/{model.model_id}" if is_served(runs.uri) else model.artifact_location
    client.create_model_version(
        name,
        source,
        run_id=runs.parent_id,
        tags=tags,
        model_id=model.model_id,
        await_creation_for=0,
    )
    version = deduplicated_version(client, name, runs.key, tags[DIGEST])
    assert version is not None
    return version


def _logged_model(runs: SearchRuns, tags: dict[str, str]) -> "LoggedModel":
    """Return the logged model of the formula, created if it does not exist.

    Lost responses may have left duplicates: all but one are deleted.
    """
    client = runs.client
    query = f"tags.`{KEY}` = '{tags[KEY]}' and tags.`{DIGEST}` = '{tags[DIGEST]}'"
    models = client.search_logged_models([runs.experiment_id], query)
    if not models:
        client.create_logged_model(
            runs.experiment_id,
            MODEL_TYPE,
            source_run_id=runs.parent_id,
            tags=tags,
            model_type=MODEL_TYPE,
        )
        models = client.search_logged_models([runs.experiment_id], query)
    kept, *duplicates = sorted(models, key=lambda model: model.model_id)
    for model in duplicates:
        client.delete_logged_model(model.model_id)
    return kept
