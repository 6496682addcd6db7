"""The version of the package: the only place where it is defined.

Read by the build backend, the ``tinynet`` command and the metadata of runs.
"""

__version__ = "0.1.0"
