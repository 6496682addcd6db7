"""Test of two users on one secured cluster and one MLflow server with accounts.

Both have a search of the same name in a storage folder of their own; neither may get the other's.
"""

import json
import secrets
import subprocess
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import pytest

from tests.deploy.processes import (
    PROGRAMS,
    Ports,
    descendants,
    environment,
    kill,
    short_folder,
    start_head,
)
from tests.search.helpers import results, tiny_arguments
from tests.tracking.servers import AccountsServer, accounts_server
from tests.train.helpers import arguments
from trainables.run_name import RunName

TRIALS = {"ada": 3, "grace": 4}
# The account of the cluster's nodes, with which jobs publish.
CLUSTER = "cluster"


@dataclass(frozen=True)
class User:
    """A person with a machine, an account of MLflow and a storage folder.

    Attributes:
        name: the login name and the account.
        storage: folder of the searches.
        variables: the environment of the person's commands.
    """

    name: str
    storage: Path
    variables: dict[str, str]

    def tinynet(
        self, *arguments: object, code: int = 0, variables: Mapping[str, str] = MappingProxyType({})
    ) -> str:
        """Run a command that must end with this code; return its stdout, or stderr on failure."""
        done = subprocess.run(
            [str(PROGRAMS / "tinynet"), *map(str, arguments)],
            cwd=self.storage,
            env=self.variables | dict(variables),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, (arguments, done.stdout, done.stderr)
        return done.stderr if code else done.stdout

    def frontier(self, *options: object) -> list[str]:
        """The ids of all trials that ``tinynet frontier`` lists for the search demo."""
        shown = self.tinynet("frontier", "--search", "demo", "--all", "--json", *options)
        return sorted(row["id"] for row in json.loads(shown))

    def trials(self) -> list[str]:
        """The ids of the trials in the own search directory."""
        return sorted(RunName.parse(run).id for run in results(self.storage))


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AccountsServer]:
    with accounts_server(tmp_path_factory.mktemp("mlflow"), CLUSTER, *TRIALS) as server:
        yield server


@pytest.fixture(scope="module")
def users(
    mlflow: AccountsServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[User, User]]:
    """Two users of a cluster that requires a token, after both have run a search."""
    token = secrets.token_hex(32)
    secured = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    with short_folder() as folder:
        node = secured | mlflow.environment(CLUSTER)
        head = start_head(folder, Ports.free(), "--num-cpus=4", variables=node)
        try:
            head.wait()
            people = []
            for name in TRIALS:
                storage = tmp_path_factory.mktemp(name)
                account = mlflow.environment(name)
                own = {"TINYNET_OWNER": name, "HOME": str(storage)}
                address = {"RAY_API_SERVER_ADDRESS": head.dashboard}
                people.append(
                    User(name, storage, environment(**secured, **account, **own, **address))
                )
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(_submit, people))
            yield people[0], people[1]
        finally:
            kill([*descendants(head.process.pid), head.process.pid])
            head.process.wait(20)


def _submit(user: User) -> None:
    search = tiny_arguments(user.storage, trials=TRIALS[user.name])
    user.tinynet("submit", *search, "--yes")


def test_two_users_with_a_search_of_the_same_name(
    users: tuple[User, User], mlflow: AccountsServer
) -> None:
    ada, grace = users
    assert [len(user.trials()) for user in users] == [3, 4]
    jobs = json.loads(ada.tinynet("jobs", "list", "--json"))
    assert {(job["name"], job["owner"], job["storage"]) for job in jobs} == {
        ("demo", user.name, f"{user.storage}/demo") for user in users
    }
    for command in ("status", "logs", "stop", "resume"):
        refused = ada.tinynet("jobs", command, "demo", code=2)
        assert all(word in refused for word in ("owner ada", "owner grace", "--owner"))
    for user in users:
        status = json.loads(ada.tinynet("jobs", "status", "demo", "--owner", user.name, "--json"))
        assert status["storage"] == f"{user.storage}/demo"
        log = ada.tinynet("jobs", "logs", "demo", "--storage", user.storage)
        assert f"{TRIALS[user.name]} trials" in log
        # In MLflow, to which the jobs have published with the account of the cluster.
        for reader in users:
            assert reader.frontier("--owner", user.name) == user.trials()
            assert reader.frontier("--storage", user.storage) == user.trials()
    refused = grace.tinynet("frontier", "--search", "demo", code=2)
    assert all(word in refused for word in ("ada", "grace", str(ada.storage), "--owner"))


def test_accounts_are_told_what_they_may_not_change(
    users: tuple[User, User], mlflow: AccountsServer
) -> None:
    ada, grace = users
    sync = ("sync", "--search")
    # What the cluster has published is complete, and everyone may read it.
    for user in users:
        shown = user.tinynet(*sync, "demo", "--storage", user.storage)
        assert f"demo: {TRIALS[user.name]} runs, 0 epochs" in shown
    # The experiment of the space belongs to the account of the cluster.
    train = arguments(ada.storage, "--name", "mine")
    ada.tinynet(*train)
    refused = ada.tinynet(*sync, "mine", "--storage", ada.storage, code=1)
    assert "account 'ada' has no permission to change experiment tinynet-" in refused
    assert "MLFLOW_EXPERIMENT_NAME" in refused
    own = {"MLFLOW_EXPERIMENT_NAME": "{owner}-{space}"}
    shown = ada.tinynet(*sync, "mine", "--storage", ada.storage, variables=own)
    assert "mine: 1 runs, 2 epochs" in shown
    longer = arguments(ada.storage, "--name", "mine", epochs=3)
    grace.tinynet(*longer, variables={"MLFLOW_TRACKING_URI": f"sqlite:///{grace.storage}/own.db"})
    refused = grace.tinynet(*sync, "mine", "--storage", ada.storage, code=1)
    assert "account 'grace' has no permission to change experiment ada-efficientnet_mini" in refused
    wrong = {"MLFLOW_TRACKING_PASSWORD": "not it"}
    refused = ada.tinynet("frontier", "--search", "demo", code=1, variables=wrong)
    assert "rejects account 'ada' or its password" in refused
    missing = {"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}
    refused = ada.tinynet("frontier", "--search", "demo", code=1, variables=missing)
    assert "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in refused
