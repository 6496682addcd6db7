"""Names of MLflow experiments: the default, and names that users choose, with placeholders.

Used by the configuration, the publishers and the readers of MLflow.
"""

import os
import re
from typing import TYPE_CHECKING

from search_spaces.errors import RequestError
from tinynet_search.errors import one_line
from tinynet_search.mlflow_client.names import plain

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

DEFAULT_NAME = "tinynet-{space}"
# MLflow's own clients use this variable, too.
VARIABLE = "MLFLOW_EXPERIMENT_NAME"
MAX_TEMPLATE_LENGTH, MAX_NAME_LENGTH = 200, 255
# The tag of every experiment that this project publishes to: a name may be anything.
MARK = "tinynet.experiment"
MARKED = f"tags.`{MARK}` = 'true'"


def checked_template(template: str) -> str:
    """Return a name of an experiment that may contain ``{space}`` and ``{owner}``.

    Raises:
        ValueError: it is not valid.
    """
    rest = template.replace("{space}", "").replace("{owner}", "")
    printable = template.isprintable() and template == template.strip()
    if (
        not template
        or len(template) > MAX_TEMPLATE_LENGTH
        or not printable
        or re.search(r"[{}]", rest)
    ):
        raise ValueError(
            f"expected 1 to {MAX_TEMPLATE_LENGTH} printable characters without a space at the "
            "ends; the placeholders are {space} and {owner}"
        )
    return template


def chosen_experiment(configured: str | None, space: str, owner: str) -> str | None:
    """Return the experiment that the user has chosen, None for the default.

    Args:
        configured: ``[tracking] experiment``, which takes precedence over MLFLOW_EXPERIMENT_NAME.
        space: name of the space.
        owner: owner of the search or job.

    Raises:
        RequestError: the name is not valid.
    """
    template = configured or os.environ.get(VARIABLE)
    return experiment_name(space, owner, template) if template else None


def experiment_name(space: str, owner: str, template: str = DEFAULT_NAME) -> str:
    """Return the name of an experiment, with the placeholders replaced.

    The default contains no slash: MLflow's pages show only the part of a name after the last slash.

    Raises:
        RequestError: the name is not valid.
    """
    try:
        checked_template(template)
    except ValueError as error:
        raise RequestError(
            f"{VARIABLE} {one_line(template, 80)!r} is not a valid name of an experiment: {error}"
        ) from error
    name = template.replace("{space}", plain(space)).replace("{owner}", owner)
    if len(name) > MAX_NAME_LENGTH:
        raise RequestError(
            f"experiment {one_line(name, 80)!r} has {len(name)} characters: "
            f"set a name of at most {MAX_NAME_LENGTH} with tracking.experiment"
        )
    return name


def artifact_folder(name: str) -> str:
    """Return the folder of an experiment's artifacts next to a local database."""
    return re.sub(r"[^A-Za-z0-9_.@=+-]", "-", name).lstrip(".") or "_"


def marked_experiments(client: "MlflowClient") -> "list[Experiment]":
    """Return the active experiments of this project that the account may read."""
    experiments: list[Experiment] = []
    token = None
    while True:
        page = client.search_experiments(filter_string=MARKED, page_token=token)
        experiments += page
        token = page.token
        if not token or not page:
            return experiments
