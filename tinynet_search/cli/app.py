"""Defines the ``tinynet`` application and the options that several commands share.

Each module of commands adds its commands to ``app``; ``main`` runs it.
"""

from typing import Annotated

import typer

from tinynet_search.version import __version__

ABOUT = "Suggest a network for any FLOPs budget, search for better ones, train and export them."


def example(arguments: str) -> str:
    """The epilog of a command or a group: one call as the last line of its help.

    ``tests/cli/test_help.py`` runs every example. Typer does not wrap a paragraph that starts with
    a backspace character.
    """
    return f"\b\nExample: tinynet {arguments}"


def print_help(context: typer.Context) -> None:
    """The callback of a group: print its help if it is called without a command."""
    if context.invoked_subcommand is None:
        print(context.get_help())


app = typer.Typer(
    help=ABOUT,
    epilog=example("suggest 0.25"),
    # Commands and groups inherit these names.
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(value: bool) -> None:
    if value:
        print(f"tinynet {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Define the options of ``tinynet`` itself."""


SPACES = "efficientnet_b0, resnet50, ghostnet_a, ..., or module:attribute"

Tracking = Annotated[
    str | None,
    typer.Option(
        help="Use the MLflow server or database at this URI.",
        show_default="MLFLOW_TRACKING_URI, the configuration, or a SQLite file in the storage",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
