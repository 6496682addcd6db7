"""Runs one ``tinynet`` command as the driver of a Ray job.

Ray starts it with ``python -m tinynet_search.cli.job_entrypoint``. The arguments and the
configuration are in the metadata of the job, which Ray passes in the environment; they contain
neither code nor secrets.
"""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from search_spaces.errors import RequestError
from tinynet_search.jobs.command import CONFIG, REQUEST

# The variable in which Ray passes the configuration of a job to its processes.
VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"


def request(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The request in the metadata of this job.

    Raises:
        RequestError: this process is not a job that ``tinynet submit`` submitted.
    """
    try:
        values = json.loads(json.loads(environment[VARIABLE])["metadata"][REQUEST])
        arguments, name = values["arguments"], values["name"]
        if not (
            isinstance(name, str)
            and isinstance(arguments, list)
            and all(isinstance(argument, str) for argument in arguments)
        ):
            raise ValueError
    except (KeyError, ValueError, TypeError):
        raise RequestError(
            "not a job of tinynet submit: only Ray starts "
            "python -m tinynet_search.cli.job_entrypoint"
        ) from None
    return values


@contextlib.contextmanager
def lasting_directory(folder: Path) -> Iterator[None]:
    """Run in a folder with links to the contents of the current folder.

    Ray runs a job with ``--working-dir`` in the uploaded folder. Each node of a host unpacks it to
    the same path, and removes what was there. A process whose folder was removed has no current
    directory, although the path exists again, and Ray itself needs one.
    """
    uploaded = Path.cwd()
    folder.mkdir()
    for entry in uploaded.iterdir():
        (folder / entry.name).symlink_to(entry)
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(tempfile.gettempdir())


def main() -> None:
    from tinynet_search.cli.main import main as command

    try:
        values = request()
    except RequestError as error:
        print(f"tinynet: {error}", file=sys.stderr)
        sys.exit(2)
    with tempfile.TemporaryDirectory(prefix="tinynet-job-") as scratch:
        file = Path(scratch) / f"{values['name']}.json"
        file.write_text(json.dumps(values.get("config", {})), encoding="utf-8")
        sys.argv[1:] = [
            str(file) if argument == CONFIG else argument for argument in values["arguments"]
        ]
        with lasting_directory(Path(scratch) / "directory"):
            command()


if __name__ == "__main__":
    main()
