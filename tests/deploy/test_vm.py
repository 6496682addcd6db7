"""Tests of the configurations of Ray's cluster launcher, with the first checks of ``ray up``."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.deploy.manifests import launcher

FILES = ("aws.yaml", "local.yaml")


def schema() -> dict[str, Any]:
    """Load the schema of the launcher from the installed Ray."""
    import ray.autoscaler

    return json.loads(
        (Path(str(ray.autoscaler.__file__)).parent / "ray-schema.json").read_text(encoding="utf-8")
    )


@pytest.mark.parametrize("file", FILES)
def test_file_passes_rays_schema_and_checks(file: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = launcher(file)
    jsonschema.validate(config, schema())
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    assert prepared["head_node_type"] in prepared["available_node_types"]


@pytest.mark.parametrize("file", FILES)
def test_schema_rejects_a_typo(file: str) -> None:
    config = launcher(file) | {"head_start_ray_command": []}
    with pytest.raises(jsonschema.ValidationError, match="head_start_ray_command"):
        jsonschema.validate(config, schema())


@pytest.mark.parametrize("file", FILES)
def test_ray_requires_a_token_and_its_dashboard_is_on_loopback(file: str) -> None:
    config = launcher(file)
    commands = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert re.search(r"export RAY_AUTH_MODE=token .*; .*ray start", command), command
        assert "RAY_AUTH_TOKEN=" not in command
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert config["file_mounts"]["~/.mlflow/credentials"] == "~/.mlflow/credentials"
    assert not re.search(r"\b0\.0\.0\.0\b", json.dumps(config).replace("10.0.0.0/16", ""))


def test_local_launcher_copies_files_of_the_repository() -> None:
    from tests.deploy.manifests import DEPLOY, ROOT

    mounts = launcher("local.yaml")["file_mounts"]
    assert (
        DEPLOY / "vm" / mounts["~/tinynet/constraints.txt"]
    ).resolve() == ROOT / "constraints.txt"
    assert (DEPLOY / "vm" / mounts["~/tinynet/dist"]).resolve() == ROOT / "dist"
