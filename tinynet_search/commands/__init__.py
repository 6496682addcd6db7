"""The verbs of the ``tinynet`` command, a file for each subject; ``cli.py`` runs them."""

from tinynet_search.commands import baselines, export, networks, searches, suggest
from tinynet_search.commands.app import app

__all__ = ["app", "baselines", "export", "networks", "searches", "suggest"]
