"""The progress bar of commands that work through images.

Used by ``tinynet data imagenet100`` and ``tinynet data pack``, which print lines where stderr is not a terminal.
"""

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class ImageBar:
    """A bar on stderr with images done, time elapsed and time remaining; it is drawn from ``begin`` to the exit."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def __enter__(self) -> "ImageBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    @property
    def drawn(self) -> bool:
        """Whether there is a bar: stderr is a terminal, and there is something to do."""
        return self._bar is not None

    def begin(self, images: int) -> None:
        """Draw the bar of this many images, on a terminal only."""
        if not images or not sys.stderr.isatty():
            return
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TextColumn("images"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("elapsed"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("left"),
            console=Console(stderr=True),
            transient=True,
        )
        self._bar.add_task("", total=images)
        self._bar.start()

    def advance(self, images: int = 1) -> None:
        """Count images that are done."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], images)
