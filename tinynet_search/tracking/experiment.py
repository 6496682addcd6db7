"""The experiment of a space, created where it is missing."""

from typing import TYPE_CHECKING

from tinynet_search.errors import TrackingError
from tinynet_search.mlflow_client.connection import address, database_file
from tinynet_search.mlflow_client.sqlite import ARTIFACTS
from tinynet_search.tracking.projection import experiment_name

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment


def experiment_of(client: "MlflowClient", uri: str, space: str) -> "Experiment":
    """Every search and job of a space is in one experiment.

    Raises:
        TrackingError: someone has deleted it.
    """
    from mlflow.exceptions import MlflowException

    name = experiment_name(space)
    path = database_file(uri)
    place = None
    if path is not None:
        # Without a server the artifacts' place is ours to choose: MLflow's default is the working directory.
        path.parent.mkdir(parents=True, exist_ok=True)
        place = (path.parent / ARTIFACTS / name).as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            client.create_experiment(name, artifact_location=place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        found = client.get_experiment_by_name(name)
    if found is None or found.lifecycle_stage != "active":
        where = f"experiment {name} at {address(uri)}"
        raise TrackingError(
            f"{where} is deleted: restore it (mlflow experiments restore), or name another server"
        )
    return found
