"""The owner of a search or a training job: the person that others on the cluster can ask about it.

Called by the configuration; the owner is stored in plans and jobs.
"""

import getpass
import os

ENVIRONMENT = "TINYNET_OWNER"
# An owner becomes part of MLflow tags, Prometheus labels and messages.
OWNER = r"^[A-Za-z0-9_][A-Za-z0-9_.@+-]{0,63}$"


def default_owner() -> str:
    """Return ``$TINYNET_OWNER`` if it is set, else ``login_name()``."""
    return os.environ.get(ENVIRONMENT, "").strip() or login_name()


def login_name() -> str:
    """Return the login name, or the number of a user that has no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
