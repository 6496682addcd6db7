"""The application that every verb joins, and the options that several share."""

from typing import Annotated

import typer

ABOUT = "Networks twisted in resolution, depth and width to any budget: ask for one, search for better ones, export them."
app = typer.Typer(
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=ABOUT
)

SPACES = (
    "Search space: efficientnet_b0, resnet50, ghostnet_a, ..., or module:attribute of your own."
)

Tracking = Annotated[
    str | None,
    typer.Option(
        help="MLflow's URI; else MLFLOW_TRACKING_URI, the configuration, a SQLite file in storage."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
