"""Submits searches and trainings as jobs of a Ray cluster; follows, stops and resumes them.

Called by ``tinynet submit`` and ``tinynet jobs``, and by users of the Python API.
"""

from tinynet_search.jobs.submission import Submitted, submit_search, submit_train

__all__ = ["Submitted", "submit_search", "submit_train"]
