"""``tinynet data pack``: decodes an image set once, so that trials read raw pixels.

Registered with the application by ``main``.
"""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import SPACES, AsJson, example
from tinynet_search.cli.completion import complete_from, complete_space
from tinynet_search.cli.data import data_app
from tinynet_search.cli.image_bar import ImageBar
from tinynet_search.text import data_size, in_seconds

if TYPE_CHECKING:
    from trainables.data.packed.packing import DiskCost, Packing
    from trainables.data.packed.record import PackedRecord
    from trainables.data.packed.workers import ShardResult

LARGEST_R = 1.7
MIN_SIDE, MAX_SIDE = 8, 8192  # valid short sides of packed images, in pixels
PROGRESS_INTERVAL = 10  # seconds between two lines if stderr is not a terminal


@data_app.command(epilog=example("data pack --data imagenet100 --out imagenet100-packed"))
def pack(
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Read the images from this folder: a folder tree, tar files or Parquet shards.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Write the packed set to this folder, or continue an interrupted packing in it.",
        ),
    ],
    space: Annotated[
        str,
        typer.Option(help=f"Pack for this search space ({SPACES}).", autocompletion=complete_space),
    ] = "efficientnet_b0",
    largest_r: Annotated[
        float | None,
        typer.Option(
            help="Keep enough pixels to evaluate networks up to this r without enlarging images.",
            show_default=str(LARGEST_R),
        ),
    ] = None,
    pixels: Annotated[
        int | None,
        typer.Option(
            help="Keep enough pixels for this resolution; replaces --space and --largest-r."
        ),
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(help="Shrink images to this short side (pixels / 0.875); replaces --pixels."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(help="Decode with this number of processes.", show_default="one per core"),
    ] = None,
    on_error: Annotated[
        str,
        typer.Option(
            help="Handle unreadable images: fail (at the end, with a list of them) or skip.",
            autocompletion=complete_from("fail", "skip"),
        ),
    ] = "fail",
    yes: Annotated[bool, typer.Option("--yes", help="Skip the confirmation.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the expected size and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Decode an image set once into raw pixels.

    Larger images are shrunk to a common short side; smaller ones are not resized. The same command
    continues an interrupted packing. To train on the packed set, set data.name = "packed" and
    data.path to its folder.
    """
    from trainables.data import open_data
    from trainables.data.detect import detect_data
    from trainables.data.packed.packing import Packing, check_disk_space, disk_cost
    from trainables.data.packed.workers import PackingError, UnreadableImagesError
    from trainables.data.sources.encoded import EncodedData

    short = _short_side(space, largest_r, pixels, short_side)
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    if count < 1:
        raise RequestError(f"--workers {count} is not valid: pass 1 or more")
    if on_error not in ("fail", "skip"):
        raise RequestError(f"--on-error {on_error!r} is not valid: pass fail or skip")
    source = open_data(detect_data(data))
    if not isinstance(source, EncodedData):
        raise RequestError(
            f"the images in {data!r} are not encoded: a packed set cannot be packed again"
        )
    packing = Packing(source, out.expanduser(), short)
    missing = packing.missing_shards(on_error)
    costs = disk_cost(packing, missing)
    plan = _plan_text(packing, costs, len(missing))
    if dry_run:
        check_disk_space(costs, str(out))
        document = {
            "short_side": short,
            "train": source.train_size,
            "val": source.val_size,
            **costs._asdict(),
        }
        print(json.dumps(document, indent=1) if as_json else plan)
        return
    _say(plan)
    check_disk_space(costs, str(out))
    if missing and not yes and sys.stdin.isatty():
        typer.confirm("Start?", abort=True, err=True)
    started, before = time.monotonic(), packing.packed()
    images = sum(task.stop - task.first for task in missing)
    try:
        with ImageBar() as bar:
            record = packing.pack(count, on_error, _PackProgress(images, bar).add)
    except PackingError as error:
        message = " ".join(str(error).split())
        _say(f"tinynet: {message}")
        if as_json and isinstance(error, UnreadableImagesError):
            document = {
                "error": message,
                "unreadable": error.images,
                "file": str(error.file),
            }
            print(json.dumps(document, indent=1))
        raise typer.Exit(1) from None
    seconds = None if not missing and record == before else time.monotonic() - started
    print(json.dumps(record.to_json(), indent=1) if as_json else _text(record, out, seconds))


def _short_side(space: str, largest_r: float | None, pixels: int | None, short: int | None) -> int:
    """The short side in pixels that the options select.

    Raises:
        RequestError: two options contradict each other, or the value is out of range.
    """
    from search_spaces import get_space
    from trainables.data.packed.shards import short_side

    options = {"--largest-r": largest_r, "--pixels": pixels, "--short-side": short}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} set the same value: pass only one of them")
    r = LARGEST_R if largest_r is None else largest_r
    if not 0 < r < math.inf:
        raise RequestError(
            f"--largest-r {r:g} is not a valid ratio: pass a number above 0, such as {LARGEST_R}"
        )
    if short is not None:
        requested, source = short, f"--short-side {short}"
    elif pixels is not None:
        requested, source = pixels, f"--pixels {pixels}"
    else:
        requested, source = get_space(space).base_resolution * r + 1e-6, f"--largest-r {r:g}"
    # This comparison also excludes infinite numbers and those that a float cannot represent.
    if 1 <= requested <= MAX_SIDE:
        side = short or short_side(int(requested))
        if MIN_SIDE <= side <= MAX_SIDE:
            return side
        source += f" (a short side of {side} pixels)" if short is None else ""
    raise RequestError(
        f"{source} is out of range: a short side must have {MIN_SIDE} to {MAX_SIDE} pixels"
    )


def _plan_text(packing: "Packing", costs: "DiskCost", missing: int) -> str:
    about = "" if costs.exact else "about "
    shards = len(list(packing.settings.tasks()))
    left = (
        f"; {shards - missing} of {shards} shards exist, {data_size(costs.missing)} left"
        if missing < shards
        else ""
    )
    largest = int(packing.short_side * 0.875)
    return (
        f"{packing.data.train_size} training and {packing.data.val_size} validation images, "
        f"short side {packing.short_side} (evaluation up to {largest} pixels): "
        f"{about}{data_size(costs.whole)}{left}; {data_size(costs.free)} free"
    )


def _text(record: "PackedRecord", out: Path, seconds: float | None) -> str:
    """The result for the user; ``seconds`` is None if nothing was left to pack."""
    counts, skipped = record.counts, record.skipped
    images = (
        f"{counts['train']} training and {counts['val']} validation images, "
        f"{data_size(record.bytes)}"
    )
    lines = [
        f"already packed, nothing changed: {images}: {out}"
        if seconds is None
        else f"packed {images}, in {in_seconds(seconds, 1)}: {out}"
    ]
    if skipped:
        names = ", ".join(skipped[:3]) + (", ..." if len(skipped) > 3 else "")
        lines.append(f"skipped {len(skipped)} unreadable: {names}")
    return "\n".join([*lines, f"fingerprint {record.fingerprint}"])


class _PackProgress:
    """Progress of packing on stderr: a bar on a terminal, otherwise a line every few seconds."""

    def __init__(self, total: int, bar: ImageBar) -> None:
        self._bar, self._total, self._done = bar, total, 0
        self._started = self._last_line = time.monotonic()
        bar.begin(total)

    def add(self, done: "ShardResult") -> None:
        self._done += done.images
        self._bar.advance(done.images)
        now = time.monotonic()
        if not self._bar.drawn and now - self._last_line >= PROGRESS_INTERVAL:
            self._last_line = now
            rate = self._done / (now - self._started)
            _say(f"{self._done} of {self._total} images, {rate:.0f} images/s")


def _say(text: str) -> None:
    print(text, file=sys.stderr)
