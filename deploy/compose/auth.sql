-- MLflow's second database, for its users. POSTGRES_DB creates the first one.
CREATE DATABASE mlflow_auth;
