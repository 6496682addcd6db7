"""A search under siege: the real command, killed and run again until every kill has happened and it ends by itself."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.cluster import ChaosCluster, kill_all, there
from tests.chaos.injected.killer import ACTORS, children, kill
from tests.chaos.scenarios import POINTS, Kill
from tests.search.helpers import tiny_arguments
from tinynet_search.config import RunSection

ROOT = Path(__file__).resolve().parents[2]
INJECTED = Path(__file__).parent / "injected"
# Hang guards, in seconds: of one run of the command, and of a driver whose cluster is gone.
LONGEST, HEADLESS = 600.0, 180.0
MOST_LAUNCHES = 40
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
class Told:
    """What happened to one search.

    Attributes:
        seconds: wall time of all runs of the command and of what lay between them; alone: of each run.
        steps: optimizer steps that were trained in all.
        kills: those that happened, with where and when.
        codes: exit codes of the command, one a launch; -9 where it was killed.
    """

    storage: Path
    seconds: float = 0.0
    steps: int = 0
    kills: list[Kill] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)


class Siege:
    """Runs searches on a cluster, with the killer in every process. ``home`` is what the suite shares with it."""

    def __init__(self, home: Path, cluster: ChaosCluster) -> None:
        self.home, self.cluster = home, cluster
        self._armed: Kill | None = None

    def endure(
        self,
        storage: Path,
        kills: list[Kill],
        *,
        executor: str = "inline",
        tracking: str | None = None,
        length: float = 0.0,
    ) -> Told:
        """Run a search and kill as told, in order, until it ends; ``length`` is an undisturbed search's, in seconds."""
        self._disarm()
        told, before, started = Told(storage), self._steps(), time.monotonic()
        command = _command(storage, executor, tracking)
        for launch in range(MOST_LAUNCHES):
            code = self._launch(
                command, told, kills, length, storage.parent / f"{storage.name}-{launch}.log"
            )
            told.codes.append(code)
            if code == 0:
                break
        assert told.codes[-1] == 0, f"still not at its end after {told.codes}: {storage.parent}"
        told.seconds = time.monotonic() - started
        self.cluster.wait_quiet()
        told.steps = self._steps() - before
        return told

    def _launch(
        self, command: list[str], told: Told, kills: list[Kill], length: float, log: Path
    ) -> int:
        """One run of the command, with the kills that fall into it; its exit code."""
        environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
        self.cluster.remember()
        with log.open("wb") as said:
            driver = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
            )
        (self.home / "driver.pid").write_text(str(driver.pid))
        started, mine = time.monotonic(), len(told.kills)
        try:
            while driver.poll() is None:
                assert time.monotonic() - started < LONGEST, f"the command hangs, see {log}"
                share = (sum(told.alone) + time.monotonic() - started) / length if length else 0.0
                if not self._fallen(kills, told) and kills and there(driver.pid):
                    self._see_to(kills[0], share)
                time.sleep(0.05)
            self._fallen(kills, told)
        finally:
            kill_all([driver.pid] if driver.poll() is None else [])
            driver.wait()
        told.alone.append(time.monotonic() - started)
        assert not _session(driver.pid), f"the driver left processes behind: {_session(driver.pid)}"
        self._explained(driver.returncode, told.kills[mine:], log)
        return driver.returncode

    def _see_to(self, due: Kill, share: float) -> None:
        """Have it happen at its point, or now that its share of the search is over."""
        if due.point:
            self._arm(due)
        elif share >= due.share:
            self._now(due)

    def _fallen(self, kills: list[Kill], told: Told) -> bool:
        """Whether the kill at hand has happened; then the cluster is whole again."""
        log = self.home / "kills.jsonl"
        if not (log.exists() and log.read_text().endswith("\n")):
            return False
        (line,) = map(json.loads, log.read_text().splitlines())
        log.unlink()
        end = time.monotonic() + HEADLESS
        while any(map(there, line["pids"])) and time.monotonic() < end:
            time.sleep(0.01)
        assert kills and line["name"] == kills[0].name, f"{line} was not the kill at hand"
        told.kills.append(kills.pop(0))
        victim = told.kills[-1].victim
        if victim.startswith("cluster"):
            self._headless(victim)
        if victim.startswith(("node", "cluster")):
            self.cluster.heal()
        return True

    def _headless(self, victim: str) -> None:
        """A driver without its cluster: it has to end by itself, sooner or later."""
        driver, end = int((self.home / "driver.pid").read_text()), time.monotonic() + HEADLESS
        while victim == "cluster" and there(driver):
            assert time.monotonic() < end, "the driver hangs without its cluster"
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

    def _now(self, due: Kill) -> None:
        """Kill from outside, as soon as there is such a process."""
        driver = int((self.home / "driver.pid").read_text())
        everything = lambda: [*self.cluster.services(), *children(self.cluster.raylets())]  # noqa: E731
        found = {
            "driver": lambda: [driver],
            "node": self.cluster.node_pids,
            "cluster": everything,
            "cluster and driver": lambda: [*everything(), driver],
        }.get(due.victim, lambda: self.cluster.actors(ACTORS[due.victim])[:1])()
        if found:
            kill(due.name, "", found)

    def _explained(self, code: int, happened: list[Kill], log: Path) -> None:
        """Only a kill may end the command early: of itself, of its cluster, or of trials' processes too often for Tune."""
        if code == 0 or (
            code == -9 and any("driver" in k.victim or k.victim == "cluster" for k in happened)
        ):
            return
        often = len(happened) > RunSection().max_failures and "have no result" in log.read_text()
        lost = often or any(k.victim == "cluster" for k in happened)
        assert lost, f"the command ended with {code} by itself: {log.read_text()[-3000:]}"

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


def template(home: Path) -> Path:
    """An MLflow database without a search."""
    path = home / "template.db"
    if not path.exists():
        from mlflow import MlflowClient

        MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def prepared(storage: Path, template: Path) -> Path:
    """A storage folder whose MLflow database has its tables already: making them takes longer than a trial."""
    storage.mkdir(parents=True)
    shutil.copy(template, storage / "mlflow.db")
    return storage


def _session(leader: int) -> list[int]:
    """Processes of a session, its leader aside."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and int(pid) != leader and fields[0] != "Z":
            found.append(int(pid))
    return found
