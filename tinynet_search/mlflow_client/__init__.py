"""MLflow client of this project: tracking URIs, the SQLite database, the registry, reading runs."""
