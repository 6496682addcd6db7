"""Searches and trainings as jobs of a Ray cluster: submitted from anywhere, followed, stopped and resumed."""

from tinynet_search.jobs.submission import Submitted, submit_search, submit_train

__all__ = ["Submitted", "submit_search", "submit_train"]
