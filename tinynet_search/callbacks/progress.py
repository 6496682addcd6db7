"""Displays the progress of a search on stderr.

A terminal shows a bar and a table; other outputs get one line per completed trial. Called by the
driver of a search. The Prometheus metrics count the same rows.
"""

import contextlib
import heapq
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from ray.tune import Callback

from tinynet_search.store.directory import Candidate
from tinynet_search.text import duration, in_seconds, number, percent
from trainables.executors import TrialTask
from trainables.result import ResultSummary
from trainables.run_name import RunName

if TYPE_CHECKING:
    from rich import progress
    from rich.console import Group
    from rich.table import Table


State = Literal["waiting", "training", "finished", "failed", "lost", "stopped"]
STATES: tuple[State, ...] = get_args(State)


@dataclass(slots=True)
class Row:
    """The state of one trial.

    Attributes:
        candidate: the candidate of the trial.
        state: the state of the trial.
        epochs: completed epochs.
        seconds: the sum over the epochs whose time is known.
        timed: the number of epochs whose time is known.
        top1: of the last epoch, in percent.
        reason: the reason of a trial that failed or was lost.
    """

    candidate: Candidate
    state: State = "waiting"
    epochs: int = 0
    seconds: float = 0.0
    timed: int = 0
    top1: float | None = None
    reason: str = ""

    @property
    def epochs_left(self) -> int:
        return (
            0
            if self.state in ("finished", "failed", "lost")
            else self.candidate.spec.recipe.epochs - self.epochs
        )


class Sums:
    """Sums over the rows that determine the remaining time.

    Each change of a row updates them, so that an estimate does not iterate over thousands of rows.

    Attributes:
        open: the number of rows with epochs left.
    """

    def __init__(self) -> None:
        # Over rows with epochs left, weighted by those epochs: 1, size, root of size.
        self._left = np.zeros(3)
        # Over rows with times, for a fit of y, seconds per epoch, as a line in x, multiply-adds in
        # units of 1e9: 1, x, y, x x, x y, root of x.
        self._timed = np.zeros(6)
        self._sizes: set[float] = set()
        self.open = 0

    def add(self, row: Row, sign: int) -> None:
        """Add a row (``sign`` 1), or remove it (``sign`` -1)."""
        size, left = row.candidate.network.macs / 1e9, row.epochs_left
        if left:
            self.open += sign
            self._left += sign * left * np.array([1.0, size, size**0.5])
        if row.timed:
            cost = row.seconds / row.timed
            self._timed += sign * np.array([1.0, size, cost, size * size, size * cost, size**0.5])
            if len(self._sizes) <= 3:
                self._sizes.add(size)

    def left(self, at_once: int) -> float | None:
        """Seconds until the end with ``at_once`` concurrent trials; None if no time is known."""
        n, x, y, xx, xy, roots = self._timed
        if n < 0.5:
            return None
        epochs, sizes, left_roots = self._left
        # The time of an epoch is not proportional to the multiply-adds: small networks cost more.
        # With more than three sizes a least-squares line describes it, with fewer the square root.
        if len(self._sizes) > 3:
            slope = (n * xy - x * y) / (n * xx - x * x)
            constant = (y - slope * x) / n
            if slope > 0 and constant > 0:
                return (constant * epochs + slope * sizes) / at_once
        return y / roots * left_roots / at_once


class ExpectedEnd(NamedTuple):
    """The state of a trial after Tune has abandoned it, and the reason."""

    state: State
    reason: str


@dataclass
class Progress(Callback):
    """Tune callback that keeps the rows, prints the lines, and draws the bar and the table.

    Attributes:
        at_once: the number of concurrent trials.
        rows: the rows by run.
        started: the start of the search, in seconds since 1970.
        sums: the sums over the rows.
        expected: the end of trials that Tune is about to abandon, by run.
    """

    at_once: int = 1
    rows: dict[str, Row] = field(default_factory=dict)
    started: float = field(default_factory=time.time)
    sums: Sums = field(default_factory=Sums)
    expected: dict[str, ExpectedEnd] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; this one saves its initial state only."""
        return {
            "at_once": self.at_once,
            "rows": {},
            "started": self.started,
            "sums": Sums(),
            "expected": {},
        }

    def watch(
        self, candidates: Sequence[Candidate], results: Mapping[RunName, ResultSummary]
    ) -> None:
        """Add trials; those with the summary of a result are done."""
        for candidate in candidates:
            result = results.get(candidate.run)
            with self._changed(self._added(candidate)) as row:
                if result is not None:
                    row.state, row.epochs, row.top1 = result.status, result.epochs_done, result.top1
                    row.seconds, row.timed = result.seconds, result.epochs_done

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self._changed(self._row(trial)) as row:
            row.state = "training"

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        with self._changed(self._row(trial)) as row:
            row.epochs = int(result.get("epochs_done", row.epochs))
            if "seconds" in result:
                row.seconds, row.timed = row.seconds + float(result["seconds"]), row.timed + 1
            if "status" in result:
                row.state, row.reason = result["status"], result.get("reason", "")
            row.top1 = None if row.state == "failed" else result.get("top1", row.top1)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        with self._changed(self._row(trial)) as row:
            row.state = "stopped" if row.state == "training" else row.state
        self._line(row)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        expected = self.expected.pop(trial.config["run"], None)
        end = expected or ExpectedEnd("lost", _last_error(trial))
        with self._changed(self._row(trial)) as row:
            row.state, row.reason = end
            row.top1 = None if end.state == "failed" else row.top1
        if end.state != "waiting":
            self._line(row)

    def expect(self, run: str, state: State, reason: str = "") -> None:
        """Set the state of a trial that Tune is about to abandon; the default is ``lost``."""
        self.expected[run] = ExpectedEnd(state, reason)

    def time_left(self) -> float | None:
        """Seconds until the end of the search, None before the first epoch has ended.

        The estimate is a linear fit of the time per epoch over the multiply-adds.
        """
        return self.sums.left(self.at_once)

    @property
    def done(self) -> int:
        """The number of rows without epochs left."""
        return len(self.rows) - self.sums.open

    @contextlib.contextmanager
    def _changed(self, row: Row) -> Iterator[Row]:
        self.sums.add(row, -1)
        try:
            yield row
        finally:
            self.sums.add(row, 1)

    def _added(self, candidate: Candidate) -> Row:
        if candidate.run not in self.rows:
            row = self.rows[candidate.run] = Row(candidate)
            self.sums.add(row, 1)
        return self.rows[candidate.run]

    def _row(self, trial: Any) -> Row:
        row = self.rows.get(trial.config["run"])
        return row or self._added(Candidate.of(TrialTask.from_config(trial.config).spec))

    def _line(self, row: Row) -> None:
        if sys.stderr.isatty():
            return
        left = self.time_left()
        suffix = f"  {duration(left)} left" if left and self.done < len(self.rows) else ""
        print(
            f"[{self.done}/{len(self.rows)}] {_title(row)}  {_end(row)}  "
            f"{in_seconds(row.seconds)}{suffix}",
            file=sys.stderr,
            flush=True,
        )

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the bar and the table within this context, if stderr is a terminal."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        bar = _trial_bar()
        with Live(
            get_renderable=lambda: self._view(bar),
            console=Console(stderr=True),
            refresh_per_second=2,
            transient=True,
        ):
            yield

    def _view(self, bar: "progress.Progress") -> "Group":
        """The current bar, and the table below it."""
        from rich.console import Group

        left = self.time_left()
        times = f"{duration(time.time() - self.started)} elapsed"
        times += "" if left is None else f", about {duration(left)} left"
        bar.update(bar.task_ids[0], completed=self.done, total=len(self.rows), times=times)
        return Group(bar.get_renderable(), self._table())

    def _table(self) -> "Table":
        from rich.table import Table

        table = Table()
        for name in ("trial", "r", "d", "w", "pixels", "c", "epochs", "top-1", "state"):
            table.add_column(name, justify="left" if name in ("trial", "state") else "right")
        order = {"training": 0, "waiting": 2}
        for row in heapq.nsmallest(
            24, self.rows.values(), key=lambda r: (order.get(r.state, 1), -(r.top1 or 0))
        ):
            r, d, w = row.candidate.spec.rdw
            epochs = f"{row.epochs}/{row.candidate.spec.recipe.epochs}"
            figures = (
                number(r, 2),
                number(d, 2),
                number(w, 2),
                str(row.candidate.network.resolution),
                number(row.candidate.c, 3),
                epochs,
            )
            table.add_row(row.candidate.id, *figures, number(row.top1, 1), row.state)
        return table


def _trial_bar() -> "progress.Progress":
    """A bar over all trials, across the full width.

    The ``Live`` of ``Progress.shown`` renders it, so it is never started itself.
    """
    from rich import progress

    bar = progress.Progress(
        progress.BarColumn(bar_width=None),
        progress.MofNCompleteColumn(),
        progress.TextColumn("trials"),
        progress.TextColumn("{task.fields[times]}"),
        expand=True,
    )
    bar.add_task("", total=None, times="")
    return bar


def _title(row: Row) -> str:
    r, d, w = row.candidate.spec.rdw
    return (
        f"{row.candidate.id}  r {r:.2f}  d {d:.2f}  w {w:.2f}  "
        f"{row.candidate.network.resolution} px  c {row.candidate.c:.3f}"
    )


def _last_error(trial: Any) -> str:
    """The last line of the error that ended a trial.

    It comes from Tune's storage, or from the local error file if Tune has not copied it yet.
    """
    text = str(trial.get_error() or "").strip()
    with contextlib.suppress(OSError, TypeError):
        text = text or Path(trial.error_file).read_text(errors="replace").strip()
    return text.rsplit("\n", 1)[-1]


def _end(row: Row) -> str:
    return (
        row.state
        + (f" ({row.reason})" if row.reason else "")
        + ("" if row.top1 is None else f"  top-1 {percent(row.top1)}")
    )
