"""The application that every verb joins, the options that several share, and how figures are written."""

from typing import Annotated

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

Tracking = Annotated[str | None, typer.Option(help="MLflow's URI; else MLFLOW_TRACKING_URI, the configuration, a SQLite file in storage.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def millions(value: float, digits: int = 1) -> str:
    return f"{value / 1e6:.{digits}f}M"
