"""MLflow as this project reaches it: addresses, its SQLite database, its registry, runs read back."""
