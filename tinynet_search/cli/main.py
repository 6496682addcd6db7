"""Runs the ``tinynet`` command: results are printed on stdout, messages on stderr.

The console script and ``job_entrypoint`` call ``main``. Exit codes: 0 success; 1 the work failed;
2 the request was wrong (one line on stderr states the error and the fix); 130 or 143 interrupted.
"""

import os
import signal
import sys
from typing import Any

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli import (  # noqa: F401
    baselines,
    data,
    data_pack,
    export,
    jobs,
    networks,
    searches,
    suggest,
    train,
)
from tinynet_search.cli.app import app
from tinynet_search.cli.data_notes import data_notes
from tinynet_search.errors import JobError, TrackingError, explain_missing_modules
from trainables.storage.folder import StorageError


def main() -> None:
    """Run the command with the arguments of this process and exit."""
    signal.signal(signal.SIGTERM, _terminate)
    # The user's search spaces may be in the current folder. It comes last on the path, so that its
    # files do not shadow installed modules.
    sys.path.append("")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command in this process and return its exit code."""
    try:
        with explain_missing_modules(), data_notes():
            code = (
                app(args=arguments or ["--help"], prog_name="tinynet", standalone_mode=False) or 0
            )
        if code == 130:  # Typer returns it after a KeyboardInterrupt
            raise KeyboardInterrupt
        return code
    except RequestError as error:
        return _fail(str(error), 2)
    except (TrackingError, JobError) as error:
        return _fail(str(error), 1)
    except StorageError as error:
        return _fail(
            f"storage: {error}: written results are kept; fix it and run the same command again",
            1,
        )
    except _USAGE as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted: run the same command to continue", _interrupted)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


# The base class of Typer's usage errors, the grandparent of BadParameter; Typer does not export it.
_USAGE: Any = typer.BadParameter.__mro__[2]
_interrupted = 130


def _terminate(*_: Any) -> None:
    global _interrupted
    _interrupted = 143
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    print(f"tinynet: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
