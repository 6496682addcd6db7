"""The ``tinynet`` command: one module per group of commands, and the text that they print.

The entry points are ``main`` on the user's machine and ``job_entrypoint`` on a cluster.
"""
