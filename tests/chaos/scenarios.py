"""What is killed and when: the table that the chaos suite works through."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

SEED = 5


class Point(NamedTuple):
    """A named point of the driver's or a trial's life, as the file operation at which it is."""

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
    "checkpoint: weights there, progress.json not": Point(
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
OF_DRIVER = [name for name, point in POINTS.items() if point.by == "driver"]
OF_TRIAL = [name for name, point in POINTS.items() if point.by == "trial"]
# What a node and everything at once are tried at; the others are other bytes of the same files.
KEY = [
    "trial starting",
    "mid-epoch",
    "checkpoint: weights there, progress.json not",
    "result computed, not written",
    "result written, not published",
]


@dataclass(frozen=True)
class Kill:
    """One kill: at a named point, or (``point`` empty) so many seconds after it is due, as a share of a whole search."""

    victim: str
    point: str = ""
    share: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.victim}, {self.point or f'at {self.share:.2f} of the search'}"


@dataclass(frozen=True)
class Scenario:
    """Kills one after another in one search, which is run again until all have happened and it ends.

    Attributes:
        executor: ``inline`` (six trials and two finals) or ``ray_train`` (two trials of two workers).
        server: MLflow is a server process of its own instead of a SQLite file.
    """

    name: str
    kills: tuple[Kill, ...]
    executor: str = "inline"
    server: bool = False


def _at(victim: str, points: Sequence[str]) -> tuple[Kill, ...]:
    return tuple(Kill(victim, point) for point in points)


def _random(victim: str, count: int, seed: int) -> tuple[Kill, ...]:
    """One moment in each of ``count`` equal parts of nine tenths of the search: the last tenth may be over before it is due."""
    draw = random.Random(SEED * 1000 + seed)
    return tuple(Kill(victim, share=0.9 * (part + draw.random()) / count) for part in range(count))


def _all() -> Iterator[Scenario]:
    yield Scenario("driver-at-its-points", _at("driver", OF_DRIVER))
    yield Scenario("driver-while-trials-write", _at("driver", OF_TRIAL), server=True)
    # A trial is given up after run.max_failures = 5 lost processes.
    for part in range(3):
        yield Scenario(
            f"trial-process-while-it-writes-{part + 1}", _at("trial process", OF_TRIAL[part::3])
        )
    yield Scenario("node-while-trials-write", _at("node", KEY))
    yield Scenario("everything-while-trials-write", _at("cluster and driver", KEY))
    yield Scenario(
        "everything-while-the-driver-writes",
        _at("cluster and driver", ["candidates just written", "frontier not renamed yet"]),
    )
    yield Scenario("cluster-alone", _at("cluster", ["mid-epoch"]))
    yield Scenario("train-worker-while-it-writes", _at("Train worker", KEY), executor="ray_train")
    yield Scenario(
        "train-controller-while-workers-write", _at("Train controller", KEY), executor="ray_train"
    )
    yield Scenario(
        "train-trial-process-while-workers-write", _at("trial process", KEY), executor="ray_train"
    )
    yield Scenario(
        "train-driver-and-node",
        (*_at("driver", KEY[1:]), *_at("node", KEY[1:3])),
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


# Those of Ray Train first: they are the longest.
SCENARIOS = {
    scenario.name: scenario
    for scenario in sorted(_all(), key=lambda scenario: scenario.executor != "ray_train")
}
QUICK = (
    Scenario(
        "quick",
        (
            Kill("trial process", "checkpoint: weights there, progress.json not"),
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
