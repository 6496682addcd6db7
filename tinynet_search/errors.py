"""The error for a tracking server that does not answer; mistakes in a request are ``RequestError``."""


class TrackingError(RuntimeError):
    """MLflow could not be reached or read: the message is one line that names its address.

    The command line prints the message alone and exits with 1.
    """
