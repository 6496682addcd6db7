"""Create the bucket and the user of an MLflow server.

Compose and Kubernetes run it in the image of the server: ``setup.py bucket`` before the server
starts, ``setup.py user`` after it. Both commands can be repeated, wait for a server that is still
starting, and read these environment variables:

- bucket: MLFLOW_S3_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
  MLFLOW_ARTIFACTS_DESTINATION (``s3://bucket``) and AWS_DEFAULT_REGION (default ``us-east-1``).
- user: MLFLOW_TRACKING_URI, MLFLOW_AUTH_ADMIN_PASSWORD, and MLFLOW_TRACKING_USERNAME and
  MLFLOW_TRACKING_PASSWORD of the new user.
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
# Maximum time in seconds to wait for a server to start.
STARTUP_TIMEOUT = 300.0


class SetupError(Exception):
    """The setup failed; the message is the reason, in one line."""


def main() -> None:
    """Run the command given as the only argument: ``bucket`` or ``user``."""
    jobs: Mapping[str, Callable[[Mapping[str, str]], str]] = {
        "bucket": create_bucket,
        "user": create_user,
    }
    if len(sys.argv) != 2 or sys.argv[1] not in jobs:
        sys.exit("usage: setup.py bucket|user")
    try:
        print(run_with_retries(jobs[sys.argv[1]], os.environ))
    except SetupError as error:
        sys.exit(f"setup.py: {error}")


def run_with_retries(
    job: Callable[[Mapping[str, str]], str],
    environment: Mapping[str, str],
    timeout: float = STARTUP_TIMEOUT,
    interval: float = 3.0,
) -> str:
    """Run a job, and repeat it while its server does not respond.

    Args:
        job: ``create_bucket`` or ``create_user``.
        environment: the environment variables.
        timeout: seconds after which a ConnectionError is not retried.
        interval: seconds between two attempts.

    Returns:
        The line that the job returns.

    Raises:
        SetupError: a variable is missing, the server rejects the request, or it did not start
            within ``timeout``.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            return job(environment)
        except KeyError as missing:
            raise SetupError(f"{missing.args[0]} is not set") from None
        except ConnectionError as error:
            if time.monotonic() > end:
                raise SetupError(f"no response for {timeout:.0f} s: {error}") from error
            time.sleep(interval)


def create_bucket(environment: Mapping[str, str]) -> str:
    """Create the bucket of MLFLOW_ARTIFACTS_DESTINATION unless it exists.

    Returns:
        One line about the result.

    Raises:
        KeyError: a variable is not set.
        SetupError: the S3 server rejects the request.
        ConnectionError: the S3 server does not respond or returns a server error (5xx).
    """
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
        if bucket in {listed["Name"] for listed in client.list_buckets()["Buckets"]}:
            return f"bucket {bucket} exists"
        client.create_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        if status >= 500:
            raise ConnectionError(f"{endpoint}: {error}") from error
        raise SetupError(f"bucket {bucket} at {endpoint}: {error}") from error
    except BotoCoreError as error:
        raise ConnectionError(str(error)) from error
    return f"created bucket {bucket}"


def create_user(environment: Mapping[str, str]) -> str:
    """Create the MLflow user MLFLOW_TRACKING_USERNAME unless it exists.

    Returns:
        One line about the result.

    Raises:
        KeyError: a variable is not set.
        SetupError: the user is ``admin``, it exists with a different password, or the MLflow
            server rejects the request.
        ConnectionError: the MLflow server does not respond or returns a server error (5xx).
    """
    server = environment["MLFLOW_TRACKING_URI"].rstrip("/")
    name, password = (
        environment["MLFLOW_TRACKING_USERNAME"],
        environment["MLFLOW_TRACKING_PASSWORD"],
    )
    admin = (ADMIN, environment["MLFLOW_AUTH_ADMIN_PASSWORD"])
    if name == ADMIN:
        raise SetupError(
            f"searches must not run as {ADMIN}: set MLFLOW_TRACKING_USERNAME to a different name"
        )
    lookup = f"{server}/api/2.0/mlflow/users/get?{urlencode({'username': name})}"
    status, text = send_request(lookup, admin)
    if status == 200:
        if send_request(lookup, (name, password))[0] != 200:
            raise SetupError(
                f"user {name} exists with a different password than MLFLOW_TRACKING_PASSWORD"
            )
        return f"user {name} exists"
    if status != 404:
        raise SetupError(f"{server} returned status {status} for user {ADMIN}: {text[:200]}")
    status, text = send_request(
        f"{server}/api/2.0/mlflow/users/create", admin, {"username": name, "password": password}
    )
    if status != 200:
        raise SetupError(
            f"{server} returned status {status} when creating user {name}: {text[:200]}"
        )
    return f"created user {name}"


def send_request(
    url: str, credentials: tuple[str, str], body: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Send one request with HTTP basic authentication.

    Args:
        url: the complete address.
        credentials: user name and password.
        body: sent as JSON in a POST request; None sends a GET request.

    Returns:
        Status code and text of the response.

    Raises:
        ConnectionError: the server does not respond or returns a server error (5xx).
    """
    token = base64.b64encode(":".join(credentials).encode()).decode()
    headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, data, headers), timeout=30
        ) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            if error.code >= 500:
                raise ConnectionError(f"{url} returned status {error.code}") from error
            return error.code, error.read().decode(errors="replace")
    except (urllib.error.URLError, TimeoutError) as error:
        raise ConnectionError(f"{url}: {error}") from error


if __name__ == "__main__":
    main()
