"""Finds the registered formula of a space: ``models:/tiny-formula@champion`` has one per space.

The registered models are named ``tiny-formula-<space>``. Called by
``tinynet_search.formula.files``.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from search_spaces import RequestError, SearchSpace, get_space, is_own, list_spaces
from tinynet_search.errors import one_line
from tinynet_search.mlflow_client.connection import address
from tinynet_search.mlflow_client.names import BASE_TAG, SPACE_NAME_TAG, SPACE_TAG, formula_model
from tinynet_search.mlflow_client.registry import (
    ModelReference,
    models_with_prefix,
    registry_uri,
)

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

# Maximum number of models that an error message names.
MAX_NAMED = 10


@dataclass(frozen=True)
class RequestedSpace:
    """The space for which a formula is requested.

    Attributes:
        reference: the argument of ``get_space``; None for an object of a custom space.
        name: the name that the space gives itself.
    """

    reference: str | None
    name: str

    @classmethod
    def of(cls, space: str | SearchSpace) -> "RequestedSpace":
        """Describe a space.

        Raises:
            RequestError: there is no space with this name.
        """
        if isinstance(space, str):
            return cls(space, get_space(space).name)
        built_in = space.name in list_spaces() and type(get_space(space.name)) is type(space)
        return cls(space.name if built_in else None, space.name)


def model_for_space(
    model: ModelReference, tracking_uri: str | None, space: RequestedSpace | None
) -> ModelReference | None:
    """Return the model ``<name>-<space>`` for a name without a space.

    Args:
        model: such as ``models:/tiny-formula@champion``.
        tracking_uri: see ``registry_uri``.
        space: the space; None selects the only registered model ``<name>-...`` of a built-in space,
            or else of a custom one.

    Returns:
        The same version of that model; None if there is no model ``<name>-...`` at all.

    Raises:
        RequestError: there is none of the space, or there are several and no space is given. The
            message names them.
        TrackingError: MLflow does not respond.
    """
    registry = registry_uri(tracking_uri, str(model))
    models = [
        registered
        for registered in models_with_prefix(registry, f"{model.name}-")
        if model.alias is None or model.alias in registered.aliases
    ]
    matching = [each.name for each in models if _matches(each, model.name, space)]
    if space is None:
        # The formula of a custom space is of no use without the space itself.
        built_in = [each.name for each in models if not is_own(each.tags.get(SPACE_TAG, ""))]
        matching = [name for name in matching if name in built_in] or matching
    if len(matching) == 1:
        return ModelReference(matching[0], model.alias, model.version)
    names = matching or [each.name for each in models if _matches(each, model.name, None)]
    if not names:
        return None
    of = f" for the space {one_line(space.reference or space.name)}" if space else ""
    choices = ", ".join(
        str(ModelReference(one_line(name), model.alias, model.version))
        for name in names[:MAX_NAMED]
    )
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    count = "more than one" if matching else "no"
    fix = "pass one of" if space else "pass a space (--space), or one of"
    raise RequestError(f"{count} formula {model}{of} at {address(registry)}: {fix} {choices}{more}")


def _matches(model: "RegisteredModel", base: str, space: RequestedSpace | None) -> bool:
    if space is None:
        return model.tags.get(BASE_TAG) == base
    if space.reference is not None:
        return model.name == formula_model(base, space.reference, space.name)
    tags = model.tags
    return (
        tags.get(BASE_TAG) == base
        and tags.get(SPACE_NAME_TAG) == space.name
        and is_own(tags.get(SPACE_TAG, ""))
    )
