"""Publishes searches and training jobs from their directories to MLflow, and queries them."""
