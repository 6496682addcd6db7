"""The ``tinynet`` command. stdout holds what was asked for; messages go to stderr.

Exit codes: 0 done, 1 the work failed, 2 the request was wrong (one line says what and how to mend it),
130 or 143 interrupted.
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
from tinynet_search.errors import JobError, TrackingError, extras
from tinynet_search.version import __version__
from trainables.storage.folder import StorageError


def main() -> None:
    """The command's entry: mistakes of the request are one line and exit code 2."""
    signal.signal(signal.SIGTERM, _terminated)
    # A space of the user's may lie in the current folder; last, so that no file there is taken for an installed module.
    sys.path.append("")
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command in this process and return its exit code."""
    if arguments == ["--version"]:
        print(f"tinynet {__version__}")
        return 0
    try:
        with extras():
            code = (
                app(args=arguments or ["--help"], prog_name="tinynet", standalone_mode=False) or 0
            )
        if code == 130:  # typer's answer to KeyboardInterrupt
            raise KeyboardInterrupt
        return code
    except RequestError as error:
        return _fail(str(error), 2)
    except (TrackingError, JobError) as error:
        return _fail(str(error), 1)
    except StorageError as error:
        return _fail(
            f"storage: {error}: what is written there is kept; mend it and run the same command again",
            1,
        )
    except _USAGE as error:
        return _fail(error.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted: the same command goes on from here", _interrupted)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


# BadParameter's grandparent, the ancestor of all of typer's usage errors; typer exports no name for it.
_USAGE: Any = typer.BadParameter.__mro__[2]
_interrupted = 130


def _terminated(*_: Any) -> None:
    global _interrupted
    _interrupted = 143
    raise KeyboardInterrupt


def _fail(message: str, code: int) -> int:
    print(f"tinynet: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
