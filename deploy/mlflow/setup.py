"""Before and after an MLflow server starts: ``setup.py bucket`` makes its bucket, ``setup.py user`` the user of the searches.

Both may be run any number of times, wait for a server that is still starting, and read everything from the environment.

bucket: MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, MLFLOW_ARTIFACTS_DESTINATION (``s3://bucket``).
user: MLFLOW_TRACKING_URI, MLFLOW_AUTH_ADMIN_PASSWORD, and MLFLOW_TRACKING_USERNAME and _PASSWORD of the user to be made.
"""

import base64
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from urllib.parse import urlencode, urlsplit

ADMIN = "admin"
# Seconds that a server has to come up.
PATIENCE = 300.0


class SetupError(Exception):
    """What is wrong, in one line."""


def main() -> None:
    jobs: Mapping[str, Callable[[Mapping[str, str]], str]] = {
        "bucket": make_bucket,
        "user": make_user,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in jobs:
        sys.exit("usage: setup.py bucket|user")
    try:
        print(persistently(jobs[sys.argv[1]], os.environ))
    except SetupError as error:
        sys.exit(f"setup.py: {error}")


def persistently(
    job: Callable[[Mapping[str, str]], str],
    environment: Mapping[str, str],
    patience: float = PATIENCE,
    pause: float = 3.0,
) -> str:
    """Do a job, again and again while its server does not answer yet.

    Raises:
        SetupError: a variable is missing, the server refuses, or it did not come up in time.
    """
    end = time.monotonic() + patience
    while True:
        try:
            return job(environment)
        except KeyError as missing:
            raise SetupError(f"{missing.args[0]} is not set") from None
        except ConnectionError as error:
            if time.monotonic() > end:
                raise SetupError(f"no answer for {patience:.0f} s: {error}") from error
            time.sleep(pause)


def make_bucket(environment: Mapping[str, str]) -> str:
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = urlsplit(environment["MLFLOW_ARTIFACTS_DESTINATION"]).netloc
    endpoint = environment["MLFLOW_S3_ENDPOINT_URL"]
    keys = {
        "aws_access_key_id": environment["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
    }
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name=environment.get("AWS_DEFAULT_REGION", "us-east-1"),
        **keys,
    )
    try:
        if bucket in {found["Name"] for found in client.list_buckets()["Buckets"]}:
            return f"bucket {bucket} is there"
        client.create_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        if status >= 500:
            raise ConnectionError(f"{endpoint}: {error}") from error
        raise SetupError(f"bucket {bucket} at {endpoint}: {error}") from error
    except BotoCoreError as error:
        raise ConnectionError(str(error)) from error
    return f"bucket {bucket} made"


def make_user(environment: Mapping[str, str]) -> str:
    server = environment["MLFLOW_TRACKING_URI"].rstrip("/")
    name, password = (
        environment["MLFLOW_TRACKING_USERNAME"],
        environment["MLFLOW_TRACKING_PASSWORD"],
    )
    boss = (ADMIN, environment["MLFLOW_AUTH_ADMIN_PASSWORD"])
    if name == ADMIN:
        raise SetupError(
            f"searches must not be {ADMIN}: give MLFLOW_TRACKING_USERNAME another name"
        )
    lookup = f"{server}/api/2.0/mlflow/users/get?{urlencode({'username': name})}"
    status, said = asked(lookup, boss)
    if status == 200:
        if asked(lookup, (name, password))[0] != 200:
            raise SetupError(
                f"user {name} is there, with another password than MLFLOW_TRACKING_PASSWORD"
            )
        return f"user {name} is there"
    if status != 404:
        raise SetupError(f"{server} answers {status} to {ADMIN}: {said[:200]}")
    status, said = asked(
        f"{server}/api/2.0/mlflow/users/create", boss, {"username": name, "password": password}
    )
    if status != 200:
        raise SetupError(f"{server} answers {status} to the making of user {name}: {said[:200]}")
    return f"user {name} made"


def asked(url: str, who: tuple[str, str], body: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Status and text of one request; raises ConnectionError where nobody answers, or with a server's error."""
    token = base64.b64encode(":".join(who).encode()).decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers), timeout=30
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500:
                raise ConnectionError(f"{url} answers {error.code}") from error
            return error.code, error.read().decode(errors="replace")
    except (urllib.error.URLError, TimeoutError) as error:
        raise ConnectionError(f"{url}: {error}") from error


if __name__ == "__main__":
    main()
