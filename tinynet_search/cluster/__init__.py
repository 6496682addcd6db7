"""The Ray cluster of a search: connection, preflight checks, placement and Tune runs.

Called by the driver of a search, by trainings on Ray, and by ``jobs``.
"""
