"""Searches and training jobs in MLflow: published from their directories, and queried."""
