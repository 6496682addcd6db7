"""The verbs of the ``tinynet`` command, a file for each subject; ``cli.py`` runs them."""

from tinynet_search.commands import (
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
from tinynet_search.commands.app import app

__all__ = [
    "app",
    "baselines",
    "data",
    "data_pack",
    "export",
    "jobs",
    "networks",
    "searches",
    "suggest",
    "train",
]
