"""Runs a search with the real command, kills its processes, and repeats the command until it ends.

Called by the chaos suite and by its quick form.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.cluster import ChaosCluster, is_running, kill_all
from tests.chaos.injected.killer import ACTORS, children, kill
from tests.chaos.scenarios import POINTS, Kill
from tests.search.helpers import tiny_arguments
from tinynet_search.config.sections import RunSection

ROOT = Path(__file__).resolve().parents[2]
INJECTED = Path(__file__).parent / "injected"
# Timeouts in seconds: one run of the command, and a driver whose cluster was killed.
RUN_TIMEOUT, NO_CLUSTER_TIMEOUT = 600.0, 180.0
MAX_LAUNCHES = 40
COMMON = ("recipe.epochs=3", "data.train=192", "execution.checkpoint_every_steps=2")
TRAIN = ("run.executor=ray_train", "scaling.workers=2")
SETTINGS = {
    "inline": (*COMMON, "search.finals=[0.3]"),
    "ray_train": (*COMMON, *TRAIN),
    "quick inline": COMMON,
    "quick ray_train": (*COMMON, *TRAIN),
}
TRIALS = {"inline": 6, "ray_train": 2, "quick inline": 4, "quick ray_train": 1}


@dataclass
class Outcome:
    """What happened to one search.

    Attributes:
        seconds: wall time from the first launch of the command to the end of the last.
        run_seconds: wall time of each launch.
        steps: optimizer steps trained by all processes, repeated steps included.
        kills: the kills that happened, in order.
        codes: exit code of each launch; -9 if it was killed.
    """

    storage: Path
    seconds: float = 0.0
    steps: int = 0
    kills: list[Kill] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    run_seconds: list[float] = field(default_factory=list)


class SearchRunner:
    """Runs searches on a cluster whose processes all import the killer.

    ``home`` is the folder that this process and the killers share.
    """

    def __init__(self, home: Path, cluster: ChaosCluster) -> None:
        self.home, self.cluster = home, cluster
        self._armed: Kill | None = None

    def run(
        self,
        storage: Path,
        kills: list[Kill],
        *,
        executor: str = "inline",
        tracking: str | None = None,
        undisturbed_seconds: float = 0.0,
    ) -> Outcome:
        """Run a search and carry out the kills, in order, until the search ends.

        Args:
            undisturbed_seconds: wall time of an undisturbed search, for kills at a share of it.
        """
        self._disarm()
        outcome, before, started = Outcome(storage), self._steps(), time.monotonic()
        command = _command(storage, executor, tracking)
        for launch in range(MAX_LAUNCHES):
            code = self._launch(
                command,
                outcome,
                kills,
                undisturbed_seconds,
                storage.parent / f"{storage.name}-{launch}.log",
            )
            outcome.codes.append(code)
            if code == 0:
                break
        assert outcome.codes[-1] == 0, f"not finished after {outcome.codes}: {storage.parent}"
        outcome.seconds = time.monotonic() - started
        self.cluster.wait_until_idle()
        outcome.steps = self._steps() - before
        return outcome

    def _launch(
        self,
        command: list[str],
        outcome: Outcome,
        kills: list[Kill],
        undisturbed_seconds: float,
        log: Path,
    ) -> int:
        """Launch the command once and carry out the kills that are due; returns its exit code."""
        environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
        self.cluster.remember()
        with log.open("wb") as output:
            driver = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        (self.home / "driver.pid").write_text(str(driver.pid))
        started, earlier = time.monotonic(), len(outcome.kills)
        try:
            while driver.poll() is None:
                assert time.monotonic() - started < RUN_TIMEOUT, f"the command hangs, see {log}"
                share = (
                    (sum(outcome.run_seconds) + time.monotonic() - started) / undisturbed_seconds
                    if undisturbed_seconds
                    else 0.0
                )
                if not self._record_kill(kills, outcome) and kills and is_running(driver.pid):
                    self._carry_out(kills[0], share)
                time.sleep(0.05)
            self._record_kill(kills, outcome)
        finally:
            kill_all([driver.pid] if driver.poll() is None else [])
            driver.wait()
        outcome.run_seconds.append(time.monotonic() - started)
        assert not _session_members(driver.pid), (
            f"the driver left processes behind: {_session_members(driver.pid)}"
        )
        self._check_exit(driver.returncode, outcome.kills[earlier:], log)
        return driver.returncode

    def _carry_out(self, due: Kill, share: float) -> None:
        """Arm the kill for its named point, or kill now if its share of the search has passed."""
        if due.point:
            self._arm(due)
        elif share >= due.share:
            self._kill_now(due)

    def _record_kill(self, kills: list[Kill], outcome: Outcome) -> bool:
        """Record the first kill if it has happened, and repair the cluster.

        Returns whether the kill has happened.
        """
        log = self.home / "kills.jsonl"
        if not (log.exists() and log.read_text().endswith("\n")):
            return False
        (line,) = map(json.loads, log.read_text().splitlines())
        log.unlink()
        end = time.monotonic() + NO_CLUSTER_TIMEOUT
        while any(map(is_running, line["pids"])) and time.monotonic() < end:
            time.sleep(0.01)
        assert kills and line["name"] == kills[0].name, f"{line} is not the expected kill"
        outcome.kills.append(kills.pop(0))
        victim = outcome.kills[-1].victim
        if victim.startswith("cluster"):
            self._wait_without_cluster(victim)
        if victim.startswith(("node", "cluster")):
            self.cluster.repair()
        return True

    def _wait_without_cluster(self, victim: str) -> None:
        """Wait until a driver whose cluster was killed has ended, without killing it."""
        driver, end = (
            int((self.home / "driver.pid").read_text()),
            time.monotonic() + NO_CLUSTER_TIMEOUT,
        )
        while victim == "cluster" and is_running(driver):
            assert time.monotonic() < end, "the driver did not end after its cluster was killed"
            time.sleep(0.1)
        kill_all([driver])

    def _arm(self, due: Kill) -> None:
        if due is self._armed:
            return
        self._armed = due
        order: dict[str, Any] = {
            **POINTS[due.point]._asdict(),
            "name": due.name,
            "victim": due.victim,
        }
        order |= {"raylets": self.cluster.raylets(), "services": self.cluster.services()}
        staged = self.home / "arming"
        staged.write_text(json.dumps(order))
        staged.rename(self.home / "armed.json")

    def _disarm(self) -> None:
        self._armed = None
        for name in ("armed.json", "kills.jsonl"):
            (self.home / name).unlink(missing_ok=True)

    def _kill_now(self, due: Kill) -> None:
        """Kill the victim from this process, or do nothing if the victim is not running yet."""
        driver = int((self.home / "driver.pid").read_text())
        all_pids = lambda: [*self.cluster.services(), *children(self.cluster.raylets())]  # noqa: E731
        pids = {
            "driver": lambda: [driver],
            "node": self.cluster.node_pids,
            "cluster": all_pids,
            "cluster and driver": lambda: [*all_pids(), driver],
        }.get(due.victim, lambda: self.cluster.actors(ACTORS[due.victim])[:1])()
        if pids:
            kill(due.name, "", pids)

    def _check_exit(self, code: int, kills: list[Kill], log: Path) -> None:
        """Check that only a kill ended the command early.

        The kill may be of the command, of its cluster, or of trial processes more often than
        ``run.max_failures``.
        """
        if code == 0 or (
            code == -9 and any("driver" in k.victim or k.victim == "cluster" for k in kills)
        ):
            return
        too_often = len(kills) > RunSection().max_failures and "have no result" in log.read_text()
        is_expected = too_often or any(k.victim == "cluster" for k in kills)
        assert is_expected, (
            f"the command ended with {code} and was not killed: {log.read_text()[-3000:]}"
        )

    def _steps(self) -> int:
        counted = self.home / "steps"
        return counted.stat().st_size if counted.exists() else 0


def _command(storage: Path, executor: str, tracking: str | None) -> list[str]:
    arguments = tiny_arguments(storage, *SETTINGS[executor], trials=TRIALS[executor])
    return [
        str(Path(sys.executable).with_name("tinynet")),
        "search",
        *arguments,
        *(["--tracking", tracking] if tracking else []),
    ]


def database_template(home: Path) -> Path:
    """Create an MLflow database without searches, unless it exists; returns its path."""
    path = home / "template.db"
    if not path.exists():
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def prepare_storage(storage: Path, template: Path) -> Path:
    """Create a storage folder with a copy of the template.

    Creating the tables of a new database takes longer than a trial.
    """
    storage.mkdir(parents=True)
    shutil.copy(template, storage / "mlflow.db")
    return storage


def _session_members(leader: int) -> list[int]:
    """Process ids of a session, without its leader."""
    pids = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and int(pid) != leader and fields[0] != "Z":
            pids.append(int(pid))
    return pids
