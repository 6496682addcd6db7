"""Tests the messages for registered models, aliases and versions that do not exist."""

from pathlib import Path

import pytest

from search_spaces import RequestError
from tests.tracking.helpers import SQLALCHEMY, tracking_environment
from tinynet_search.formula.tiny_formula import TinyFormula
from tinynet_search.mlflow_client.connection import connect, mlflow_access

pytestmark = pytest.mark.filterwarnings(SQLALCHEMY)


def test_missing_versions_are_explained(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def message(model: str) -> str:
        with pytest.raises(RequestError) as caught:
            TinyFormula.load(f"models:/{model}", tracking_uri=uri)
        start = f"no formula models:/{model} at {uri}: "
        assert str(caught.value).startswith(start)
        return str(caught.value).removeprefix(start)

    with tracking_environment():
        with mlflow_access(uri):
            client = connect(uri)
        assert message("own@champion") == "it has no registered models"
        client.create_registered_model("own")
        assert message("own@champion") == "the registered model own has no versions"
        for _ in range(2):
            client.create_model_version("own", str(tmp_path))
        assert message("own@champion") == (
            "the registered model own has no alias champion, it has none; "
            "models:/own/2 is its newest version"
        )
        client.set_registered_model_alias("own", "best", "1")
        assert message("own@champion") == (
            "the registered model own has no alias champion, its aliases are best; "
            "models:/own/2 is its newest version"
        )
        assert message("own/7") == "the newest version of own is 2"
        assert message("other/1") == "the registered models are own"
