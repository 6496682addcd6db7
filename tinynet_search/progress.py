"""What a person sees while a search runs: a live table on a terminal, a line an ended trial elsewhere; all on stderr."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from ray.tune import Callback

from tinynet_search.store import Candidate
from tinynet_search.tables import duration


@dataclass
class Row:
    """One trial as it is known to the driver."""

    candidate: Candidate
    state: str = "waiting"
    epochs: int = 0
    seconds: float = 0.0
    timed: int = 0
    top1: float | None = None
    why: str = ""

    @property
    def epochs_left(self) -> int:
        return 0 if self.state in ("finished", "failed", "lost") else self.candidate.spec.recipe["epochs"] - self.epochs


@dataclass
class Progress(Callback):
    """Tune's callback; keeps the rows, prints the lines, draws the table."""

    at_once: int = 1
    rows: dict[str, Row] = field(default_factory=dict)
    started: float = field(default_factory=time.time)

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; there is nothing here to save."""
        return {"at_once": self.at_once, "rows": {}, "started": self.started}

    def watch(self, candidates: Sequence[Candidate], results: Mapping[str, Mapping[str, Any]]) -> None:
        """Add trials; those with a result are done."""
        for candidate in candidates:
            row = self.rows.setdefault(candidate.run, Row(candidate))
            result = results.get(candidate.run)
            if result is not None:
                row.state, row.epochs, row.top1 = result["status"], len(result["epochs"]), result["metrics"].get("top1")
                row.seconds, row.timed = sum(e["seconds"] for e in result["epochs"]), len(result["epochs"])

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._row(trial).state = "training"

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        row = self._row(trial)
        row.epochs = int(result.get("epochs_done", row.epochs))
        if "seconds" in result:
            row.seconds, row.timed = row.seconds + float(result["seconds"]), row.timed + 1
        if "status" in result:
            row.state = result["status"]
        row.top1 = None if row.state == "failed" else result.get("top1", row.top1)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._row(trial)
        row.state = "finished" if row.state == "training" else row.state
        self._line(row)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        row = self._row(trial)
        row.state = "lost"
        row.why = str(trial.get_error() or "").strip().rsplit("\n", 1)[-1]
        self._line(row)

    def time_left(self) -> float | None:
        """Seconds to the end, from what an epoch has cost so far as a line in the multiply-adds; None before any has ended."""
        known = [(row.candidate.network["macs"], row.seconds / row.timed) for row in self.rows.values() if row.timed]
        if not known:
            return None
        macs, cost = (np.array(column, float) for column in zip(*known, strict=True))
        # Small networks cost more than their share; a line through what was seen says how much, the root until then.
        slope, constant = np.polyfit(macs, cost, 1) if len(set(macs)) > 3 else (-1.0, 0.0)
        scale = cost.sum() / np.sqrt(macs).sum()
        left = 0.0
        for row in self.rows.values():
            size = row.candidate.network["macs"]
            left += row.epochs_left * (constant + slope * size if slope > 0 and constant > 0 else scale * size**0.5)
        return left / self.at_once

    def _row(self, trial: Any) -> Row:
        from trainables.trial import TrialSpec, describe

        spec = TrialSpec.from_json(trial.config["trial"])
        return self.rows.setdefault(spec.run, Row(Candidate(spec, describe(spec.network()))))

    def _line(self, row: Row) -> None:
        if sys.stderr.isatty():
            return
        done = sum(r.epochs_left == 0 for r in self.rows.values())
        left = self.time_left()
        more = f"  {duration(left)} left" if left and done < len(self.rows) else ""
        print(
            f"[{done}/{len(self.rows)}] {_title(row)}  {_end(row)}  {row.seconds:.0f} s{more}",
            file=sys.stderr,
            flush=True,
        )

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Draw the table while inside, if stderr is a terminal."""
        if not sys.stderr.isatty():
            yield
            return
        from rich.console import Console
        from rich.live import Live

        with Live(get_renderable=self._table, console=Console(stderr=True), refresh_per_second=2, transient=True):
            yield

    def _table(self) -> Any:
        from rich.table import Table

        done = sum(r.epochs_left == 0 for r in self.rows.values())
        left = self.time_left()
        title = f"{done} of {len(self.rows)} trials, {duration(time.time() - self.started)} gone"
        table = Table(title=title + (f", about {duration(left)} left" if left is not None else ""))
        for name in ("trial", "r", "d", "w", "pixels", "c", "epochs", "top-1", "state"):
            table.add_column(name, justify="left" if name in ("trial", "state") else "right")
        order = {"training": 0, "waiting": 2}
        for row in sorted(self.rows.values(), key=lambda r: (order.get(r.state, 1), -(r.top1 or 0)))[:24]:
            r, d, w = row.candidate.spec.rdw
            epochs = f"{row.epochs}/{row.candidate.spec.recipe['epochs']}"
            figures = (f"{r:.2f}", f"{d:.2f}", f"{w:.2f}", str(row.candidate.network["resolution"]), f"{row.candidate.c:.3f}", epochs)
            table.add_row(row.candidate.id, *figures, "" if row.top1 is None else f"{row.top1:.1f}", row.state)
        return table


def _title(row: Row) -> str:
    r, d, w = row.candidate.spec.rdw
    return f"{row.candidate.id}  r {r:.2f}  d {d:.2f}  w {w:.2f}  {row.candidate.network['resolution']} px  c {row.candidate.c:.3f}"


def _end(row: Row) -> str:
    return row.state + (f" ({row.why})" if row.why else "") + ("" if row.top1 is None else f"  top-1 {row.top1:.1f} %")
