#!/usr/bin/env bash
# MLflow 3.17.2 (source: mlflow on PyPI, the basic-auth application of its server).
#
# Expectation: an account with the permission EDIT on an experiment can delete a run that it
# created itself, since EDIT lets it create, change and end that run. MLflow describes EDIT as
# permission to read and update.
#
# Behaviour: the account can create a run, log to it, delete its tags, end it and change its status
# again. It cannot delete the run, nor restore one: both require MANAGE on the experiment, even for
# the account's own runs. A client that creates a run again after a lost response, or that removes
# the run of a repeated training, therefore fails on a shared experiment in the rare case only.
#
# Observed output:
#   bob creates a run: allowed
#   bob logs a metric: allowed
#   bob deletes a tag: allowed
#   bob ends the run: allowed
#   bob deletes the run: PERMISSION_DENIED
#   bob deletes the run with MANAGE: allowed
set -euo pipefail

scratch=$(mktemp -d)
server=""
cleanup() {
  [ -z "$server" ] || { kill "$server" 2> /dev/null || true; wait "$server" 2> /dev/null || true; }
  rm -rf "$scratch"
}
trap cleanup EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet 'mlflow[auth]==3.17.2'

cat > "$scratch/auth.ini" << INI
[mlflow]
default_permission = READ
database_uri = sqlite:///$scratch/users.db
admin_username = admin
admin_password = $(head -c 18 /dev/urandom | od -An -tx1 | tr -d ' \n')
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
INI
port=$("$scratch/venv/bin/python" -c \
  'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export MLFLOW_DISABLE_TELEMETRY=true MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false
export MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT=true
export MLFLOW_AUTH_CONFIG_PATH="$scratch/auth.ini"
MLFLOW_FLASK_SERVER_SECRET_KEY=$(head -c 18 /dev/urandom | od -An -tx1 | tr -d ' \n') \
  "$scratch/venv/bin/python" -m mlflow server --host 127.0.0.1 --port "$port" --workers 1 \
  --app-name basic-auth --backend-store-uri "sqlite:///$scratch/mlflow.db" \
  --artifacts-destination "$scratch/artifacts" > "$scratch/log" 2>&1 &
server=$!

cat > "$scratch/permissions.py" << 'PYTHON'
import configparser
import os
import secrets
import sys
import time
import urllib.request

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.server.auth.client import AuthServiceClient

url, config = sys.argv[1:]
options = configparser.ConfigParser()
options.read(config)
passwords = {"admin": options["mlflow"]["admin_password"], "bob": secrets.token_hex(16)}


def become(name):
    os.environ["MLFLOW_TRACKING_USERNAME"] = name
    os.environ["MLFLOW_TRACKING_PASSWORD"] = passwords[name]


def attempt(action, call):
    try:
        call()
        print(f"bob {action}: allowed")
    except MlflowException as error:
        print(f"bob {action}: {error.error_code}")


def responds():
    try:
        return urllib.request.urlopen(f"{url}/health", timeout=5).status == 200
    except OSError:
        return False


end = time.monotonic() + 180
while not responds():
    if time.monotonic() > end:
        sys.exit("the server does not respond")
    time.sleep(0.5)
become("admin")
accounts, client = AuthServiceClient(url), MlflowClient(url)
experiment = client.create_experiment("shared")
accounts.create_user("bob", passwords["bob"])
accounts.grant_user_permission("bob", "experiment", experiment, "EDIT")
become("bob")
run = client.create_run(experiment, tags={"tag": "value"}).info.run_id
print("bob creates a run: allowed")
attempt("logs a metric", lambda: client.log_metric(run, "top1", 1.0))
attempt("deletes a tag", lambda: client.delete_tag(run, "tag"))
attempt("ends the run", lambda: client.set_terminated(run))
attempt("deletes the run", lambda: client.delete_run(run))
become("admin")
accounts.revoke_user_permission("bob", "experiment", experiment)
accounts.grant_user_permission("bob", "experiment", experiment, "MANAGE")
become("bob")
attempt("deletes the run with MANAGE", lambda: client.delete_run(run))
PYTHON

"$scratch/venv/bin/python" -W ignore "$scratch/permissions.py" "http://127.0.0.1:$port" \
  "$scratch/auth.ini" > "$scratch/output"
cat "$scratch/output"
diff "$scratch/output" - << 'OUTPUT'
bob creates a run: allowed
bob logs a metric: allowed
bob deletes a tag: allowed
bob ends the run: allowed
bob deletes the run: PERMISSION_DENIED
bob deletes the run with MANAGE: allowed
OUTPUT
