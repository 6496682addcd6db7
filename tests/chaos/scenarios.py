"""The scenarios of the chaos suite: which process is killed, and when."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SEED = 5


class Point(NamedTuple):
    """A named point in the run of the driver or a trial: a file operation."""

    by: str
    file: str
    moment: str


POINTS = {
    "plan half written": Point("driver", "*/plan.json", "half"),
    "plan just written": Point("driver", "*/plan.json", "after"),
    "lease not linked yet": Point("driver", "*/lease/*.json", "staged"),
    "lease just taken": Point("driver", "*/lease/*.json", "after"),
    "candidates half written": Point("driver", "*/candidates/*.json", "half"),
    "candidates just written": Point("driver", "*/candidates/*.json", "after"),
    "trial starting": Point("trial", "*/results/*.json", "read"),
    "mid-epoch": Point("trial", "*/epoch-????-step-*/progress.json", "after"),
    "epoch just committed": Point("trial", "*/epoch-????/progress.json", "after"),
    "checkpoint: weights half written": Point("trial", "*/epoch-*/weights.safetensors", "half"),
    "checkpoint: weights written, progress.json not": Point(
        "trial", "*/epoch-*/progress.json", "before"
    ),
    "checkpoint: progress.json half written": Point("trial", "*/epoch-*/progress.json", "half"),
    "checkpoint: progress.json not renamed yet": Point(
        "trial", "*/epoch-*/progress.json", "staged"
    ),
    "final weights half written": Point("trial", "*/trials/*-e?/weights.safetensors", "half"),
    "result computed, not written": Point("trial", "*/results/*.json", "before"),
    "result half written": Point("trial", "*/results/*.json", "half"),
    "result not linked yet": Point("trial", "*/results/*.json", "staged"),
    "result written, not published": Point("trial", "*/results/*.json", "after"),
    "frontier half written": Point("driver", "*/frontier.json", "half"),
    "frontier not renamed yet": Point("driver", "*/frontier.json", "staged"),
    "frontier just written": Point("driver", "*/frontier.json", "after"),
    "formula half written": Point("driver", "*/formula.json", "half"),
    "formula not renamed yet": Point("driver", "*/formula.json", "staged"),
    "formula just written": Point("driver", "*/formula.json", "after"),
    "finals half written": Point("driver", "*/finals.json", "half"),
    "finals not renamed yet": Point("driver", "*/finals.json", "staged"),
    "finals just written": Point("driver", "*/finals.json", "after"),
}
DRIVER_POINTS = [name for name, point in POINTS.items() if point.by == "driver"]
TRIAL_POINTS = [name for name, point in POINTS.items() if point.by == "trial"]
# Points at which nodes are killed, or the cluster together with the driver. The other points differ
# only in the bytes of the files.
KEY_POINTS = [
    "trial starting",
    "mid-epoch",
    "checkpoint: weights written, progress.json not",
    "result computed, not written",
    "result written, not published",
]


@dataclass(frozen=True)
class Kill:
    """One kill: at a named point, or, with an empty ``point``, at a share of the search."""

    victim: str
    point: str = ""
    share: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.victim}, {self.point or f'at {self.share:.2f} of the search'}"


@dataclass(frozen=True)
class Scenario:
    """Successive kills in one search.

    The command is repeated until all kills have happened and the search ends.

    Attributes:
        executor: ``inline`` (six trials, two finals) or ``ray_train`` (two trials of two workers).
        server: use an MLflow server process instead of a SQLite file.
    """

    name: str
    kills: tuple[Kill, ...]
    executor: str = "inline"
    server: bool = False


def _at(victim: str, points: Sequence[str]) -> tuple[Kill, ...]:
    return tuple(Kill(victim, point) for point in points)


def _random(victim: str, count: int, seed: int) -> tuple[Kill, ...]:
    """One moment in each of ``count`` equal parts of the first nine tenths of the search.

    The search may have ended before a moment in the last tenth.
    """
    draw = random.Random(SEED * 1000 + seed)
    return tuple(Kill(victim, share=0.9 * (part + draw.random()) / count) for part in range(count))


def _all() -> Iterator[Scenario]:
    yield Scenario("driver-at-its-points", _at("driver", DRIVER_POINTS))
    yield Scenario("driver-while-trials-write", _at("driver", TRIAL_POINTS), server=True)
    # A trial fails after run.max_failures = 5 lost processes.
    for part in range(3):
        yield Scenario(
            f"trial-process-while-it-writes-{part + 1}", _at("trial process", TRIAL_POINTS[part::3])
        )
    yield Scenario("node-while-trials-write", _at("node", KEY_POINTS))
    yield Scenario("everything-while-trials-write", _at("cluster and driver", KEY_POINTS))
    yield Scenario(
        "everything-while-the-driver-writes",
        _at("cluster and driver", ["candidates just written", "frontier not renamed yet"]),
    )
    yield Scenario("cluster-alone", _at("cluster", ["mid-epoch"]))
    yield Scenario(
        "train-worker-while-it-writes", _at("Train worker", KEY_POINTS), executor="ray_train"
    )
    yield Scenario(
        "train-controller-while-workers-write",
        _at("Train controller", KEY_POINTS),
        executor="ray_train",
    )
    yield Scenario(
        "train-trial-process-while-workers-write",
        _at("trial process", KEY_POINTS),
        executor="ray_train",
    )
    yield Scenario(
        "train-driver-and-node",
        (*_at("driver", KEY_POINTS[1:]), *_at("node", KEY_POINTS[1:3])),
        executor="ray_train",
    )
    for seed, (victim, count) in enumerate(
        {"driver": 5, "trial process": 4, "node": 3, "cluster and driver": 2}.items()
    ):
        yield Scenario(f"{victim.replace(' ', '-')}-at-random", _random(victim, count, seed))
    for seed, (victim, count) in enumerate(
        {"Train worker": 3, "Train controller": 2, "trial process": 2}.items(), 10
    ):
        yield Scenario(
            f"{victim.replace(' ', '-')}-of-ray_train-at-random",
            _random(victim, count, seed),
            executor="ray_train",
        )


# Scenarios with Ray Train first: they take the longest.
SCENARIOS = {
    scenario.name: scenario
    for scenario in sorted(_all(), key=lambda scenario: scenario.executor != "ray_train")
}
QUICK = (
    Scenario(
        "quick",
        (
            Kill("trial process", "checkpoint: weights written, progress.json not"),
            Kill("node", "mid-epoch"),
            Kill("driver", "result written, not published"),
            Kill("cluster and driver", "trial starting"),
        ),
        executor="quick inline",
    ),
    Scenario(
        "quick-train",
        (
            Kill("Train worker", "mid-epoch"),
            Kill("Train controller", "result computed, not written"),
        ),
        "quick ray_train",
    ),
)
