"""Draws the progress bar of commands that process images.

Used by ``tinynet data imagenet100`` and ``tinynet data pack``; if stderr is not a terminal, they
print lines instead.
"""

import sys
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


class ImageBar:
    """A progress bar on stderr with images done, elapsed time and remaining time.

    It is drawn from ``begin`` until the context manager exits.
    """

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
        """Whether the bar is drawn: stderr is a terminal and there are images to process."""
        return self._bar is not None

    def begin(self, images: int) -> None:
        """Draw a bar for ``images`` images if stderr is a terminal."""
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
        """Add processed images."""
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[0], images)
