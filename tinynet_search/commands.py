"""Builds the commands in messages so that they work as printed, from any folder.

Called by the driver, training, tracking, jobs and the command line.
"""

import importlib.util
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from search_spaces.own import is_own
from tinynet_search.mlflow_client.connection import address, database_file
from trainables.storage.folder import parent_and_name


def program(name: str) -> str:
    """The shell word for a program of this installation; its path if it is not on PATH."""
    path = Path(sys.executable).absolute().with_name(name)
    if shutil.which(name) == str(path) or not path.exists():
        return name
    return shlex.quote(str(path))


def tinynet(arguments: Sequence[str], *, space: str | None = None) -> str:
    """The shell command for arguments of ``tinynet``.

    Args:
        arguments: the arguments; relative paths must be converted with ``absolute``.
        space: a search space that the command loads. The module of a custom space in the current
            folder is found from other folders with PYTHONPATH.
    """
    return f"{_module_path(space)}{program('tinynet')} {shlex.join(arguments)}"


def absolute(location: str | Path) -> str:
    """An absolute path for a path; a URL is unchanged."""
    text = str(location)
    return text if "://" in text else str(Path(text).expanduser().absolute())


def sync_command(url: str, uri: str, space: str) -> str:
    """The command that publishes a search or a training job to MLflow.

    Args:
        url: path or URL of the directory.
        uri: MLflow's tracking URI. A password in it is not printed.
        space: the search space.
    """
    storage, name = parent_and_name(url)
    return sync_storage_command(storage, name, uri, space)


def sync_storage_command(storage: str, name: str | None, uri: str, space: str | None = None) -> str:
    """The command that publishes one or all directories of a storage folder to MLflow.

    Args:
        storage: the folder or URL.
        name: the name of a directory; None for all.
        uri: MLflow's tracking URI. A password in it is not printed.
        space: the search space, None if it is unknown.
    """
    arguments = ["sync", *(["--search", name] if name else []), "--storage", absolute(storage)]
    arguments += ["--tracking", _absolute_tracking(uri)]
    if space is not None and is_own(space):
        arguments += ["--space", space]
    command = tinynet(arguments, space=space)
    hidden = database_file(uri) is None and address(uri) != uri.rstrip("/")
    return f"{command} (with user and password in the URI)" if hidden else command


def mlflow_server(uri: str) -> str:
    """The command that opens a tracking database in a browser."""
    options = ["--backend-store-uri", _absolute_tracking(uri), "--host", "127.0.0.1"]
    return f"{program('mlflow')} server {shlex.join([*options, '--port', '5000'])}"


def jobs_command(verb: str, job: str, cluster: str | None, *options: str) -> str:
    """The command ``tinynet jobs VERB`` for a job of a cluster.

    Args:
        verb: ``logs``, ``stop``, ...
        job: id or name of the job.
        cluster: address of the dashboard; None leaves it to the environment.
        options: options of the command.
    """
    return tinynet(["jobs", verb, job, *(["--address", cluster] if cluster else []), *options])


def _absolute_tracking(uri: str) -> str:
    database = database_file(uri)
    if database is None:
        return address(uri)
    return f"sqlite:///{database}{''.join(uri.partition('?')[1:])}"


def _module_path(space: str | None) -> str:
    """The prefix of a command that loads a module in the current folder, empty for others."""
    if space is None or not is_own(space):
        return ""
    module = space.partition(":")[0].partition(".")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return ""
    file = Path(spec.origin).absolute() if spec and spec.origin else None
    here = Path.cwd()
    if file is None or here not in (file.parent, file.parent.parent):
        return ""
    return f'PYTHONPATH={shlex.quote(str(here))}"${{PYTHONPATH:+:$PYTHONPATH}}" '
