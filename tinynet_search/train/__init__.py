"""Training jobs: trains a single network to its end, or evaluates weights.

Called by ``tinynet train``.
"""
