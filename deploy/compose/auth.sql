-- The second database of MLflow, for its users; POSTGRES_DB makes the first.
CREATE DATABASE mlflow_auth;
