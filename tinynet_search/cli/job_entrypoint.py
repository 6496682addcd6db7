"""The first process of a job on the cluster: ``python -m tinynet_search.cli.job_entrypoint``.

What it is to do stands in the job's metadata, which Ray hands to it in the environment: the arguments of one ``tinynet``
command, and the values of its configuration. Nothing of it is code, and nothing of it is secret.
"""

import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from search_spaces.errors import RequestError
from tinynet_search.jobs.submission import CONFIG, REQUEST

# Where Ray keeps a job's configuration for its processes.
VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def request(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What this job was submitted for.

    Raises:
        RequestError: this process is no job, or one that somebody else submitted.
    """
    try:
        wanted = json.loads(json.loads(environment[VARIABLE])["metadata"][REQUEST])
        arguments, name = wanted["arguments"], wanted["name"]
        if not (
            isinstance(name, str)
            and isinstance(arguments, list)
            and all(isinstance(argument, str) for argument in arguments)
        ):
            raise ValueError
    except (KeyError, ValueError, TypeError):
        raise RequestError(
            "this is no job of tinynet submit: python -m tinynet_search.cli.job_entrypoint is started by Ray alone"
        ) from None
    return wanted


def main() -> None:
    from tinynet_search.cli.main import main as command

    try:
        wanted = request()
    except RequestError as error:
        print(f"tinynet: {error}", file=sys.stderr)
        sys.exit(2)
    with tempfile.TemporaryDirectory(prefix="tinynet-job-") as scratch:
        file = Path(scratch) / f"{wanted['name']}.json"
        file.write_text(json.dumps(wanted.get("config", {})), encoding="utf-8")
        sys.argv[1:] = [
            str(file) if argument == CONFIG else argument for argument in wanted["arguments"]
        ]
        command()


if __name__ == "__main__":
    main()
