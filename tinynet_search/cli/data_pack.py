"""Pack an image set: decoded once, read by every trial."""

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import SPACES, AsJson
from tinynet_search.cli.data import data_app
from tinynet_search.cli.image_bar import ImageBar
from tinynet_search.text import data_size, in_seconds

if TYPE_CHECKING:
    from trainables.data.packed.packing import Cost, Packing
    from trainables.data.packed.record import PackedRecord
    from trainables.data.packed.workers import Done

LARGEST_R = 1.7
LEAST_SIDE, LARGEST_SIDE = 8, 8192  # pixels that may be kept
EVERY_SECONDS = 10


@data_app.command()
def pack(
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="Where the images are: a tree of folders, tar files, or Parquet shards.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="The packed set's folder: new, empty, or of a packing to go on with.",
        ),
    ],
    space: Annotated[str, typer.Option(help=SPACES)] = "efficientnet_b0",
    largest_r: Annotated[
        float | None,
        typer.Option(
            help=f"Largest r of the search ({LARGEST_R}): evaluation at so many pixels enlarges nothing that packing shrank."
        ),
    ] = None,
    pixels: Annotated[
        int | None,
        typer.Option(
            help="The same as a resolution in pixels, in place of --space and --largest-r."
        ),
    ] = None,
    short_side: Annotated[
        int | None, typer.Option(help="The same as the short side that is kept: pixels / .875.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; one a core where none is given.")
    ] = None,
    on_error: Annotated[
        str,
        typer.Option(
            help="What an image that cannot be read does: fail (in the end, with a list of them), or skip."
        ),
    ] = "fail",
    yes: Annotated[
        bool, typer.Option("--yes", help="Do not ask before starting; only a terminal is asked.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it will cost; write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Decode an image set once, and keep it as raw pixels for fast reading.

    Larger images are shrunk to a common short side, smaller ones kept as they are. The same command goes on with an interrupted
    packing. Train on the packed set with data.name = "packed" and data.path = its folder.
    """
    from trainables.data import open_data
    from trainables.data.detect import detected
    from trainables.data.packed.packing import Packing, check_room, cost
    from trainables.data.packed.workers import PackingError, UnreadableImagesError
    from trainables.data.sources.encoded import EncodedData

    short = _short_side(space, largest_r, pixels, short_side)
    count = len(os.sched_getaffinity(0)) if workers is None else workers
    if count < 1:
        raise RequestError("--workers must be 1 or more")
    if on_error not in ("fail", "skip"):
        raise RequestError(f"--on-error {on_error!r} is neither fail nor skip")
    source = open_data(detected(data))
    if not isinstance(source, EncodedData):
        raise RequestError(
            f"the images in {data!r} are not encoded: a packed set is not packed again"
        )
    packing = Packing(source, out.expanduser(), short)
    missing = packing.todo(on_error)
    costs = cost(packing, missing)
    plan = _plan_text(packing, costs, len(missing))
    if dry_run:
        check_room(costs, str(out))
        document = {
            "short_side": short,
            "train": source.train_size,
            "val": source.val_size,
            **costs._asdict(),
        }
        print(json.dumps(document, indent=1) if as_json else plan)
        return
    _say(plan)
    check_room(costs, str(out))
    if missing and not yes and sys.stdin.isatty():
        typer.confirm("Start?", abort=True, err=True)
    started, before = time.monotonic(), packing.packed()
    images = sum(task.stop - task.first for task in missing)
    try:
        with ImageBar() as bar:
            record = packing.pack(count, on_error, _PackProgress(images, bar).add)
    except PackingError as error:
        said = " ".join(str(error).split())
        _say(f"tinynet: {said}")
        if as_json and isinstance(error, UnreadableImagesError):
            print(
                json.dumps(
                    {"error": said, "unreadable": error.images, "file": str(error.file)}, indent=1
                )
            )
        raise typer.Exit(1) from None
    seconds = None if not missing and record == before else time.monotonic() - started
    print(json.dumps(record.to_json(), indent=1) if as_json else _text(record, out, seconds))


def _short_side(space: str, largest_r: float | None, pixels: int | None, short: int | None) -> int:
    from search_spaces import get_space
    from trainables.data.packed.shards import short_side

    given = [
        name
        for name, value in (
            ("--largest-r", largest_r),
            ("--pixels", pixels),
            ("--short-side", short),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise RequestError(f"{' and '.join(given)} say the same thing: give one of them")
    r = LARGEST_R if largest_r is None else largest_r
    if not 0 < r < math.inf:
        raise RequestError(
            f"--largest-r {r:g} is no ratio: give a number above 0, such as {LARGEST_R}"
        )
    if short is not None:
        wanted, said = short, f"--short-side {short}"
    elif pixels is not None:
        wanted, said = pixels, f"--pixels {pixels}"
    else:
        wanted, said = get_space(space).base_resolution * r + 1e-6, f"--largest-r {r:g}"
    # Infinite numbers and those that no float holds end here, too.
    if 1 <= wanted <= LARGEST_SIDE:
        found = short or short_side(int(wanted))
        if LEAST_SIDE <= found <= LARGEST_SIDE:
            return found
        said += f" (a short side of {found} pixels)" if short is None else ""
    raise RequestError(
        f"{said} is out of range: a short side must have {LEAST_SIDE} to {LARGEST_SIDE} pixels"
    )


def _plan_text(packing: "Packing", costs: "Cost", missing: int) -> str:
    about = "" if costs.exact else "about "
    shards = len(list(packing.settings.tasks()))
    left = (
        f"; {shards - missing} of {shards} shards are there, {data_size(costs.missing)} to go"
        if missing < shards
        else ""
    )
    largest = int(packing.short_side * 0.875)
    return (
        f"{packing.data.train_size} training and {packing.data.val_size} validation images, short side {packing.short_side} "
        f"(evaluation up to {largest} pixels): {about}{data_size(costs.whole)}{left}; {data_size(costs.free)} free"
    )


def _text(record: "PackedRecord", out: Path, seconds: float | None) -> str:
    """What was done; ``seconds`` is None where nothing had to be."""
    counts, skipped = record.counts, record.skipped
    images = f"{counts['train']} training and {counts['val']} validation images, {data_size(record.bytes)}"
    lines = [
        f"already packed, nothing changed: {images}: {out}"
        if seconds is None
        else f"packed {images}, in {in_seconds(seconds, 1)}: {out}"
    ]
    if skipped:
        lines.append(
            f"skipped {len(skipped)} that cannot be read: {', '.join(skipped[:3])}{', ...' if len(skipped) > 3 else ''}"
        )
    return "\n".join([*lines, f"fingerprint {record.fingerprint}"])


class _PackProgress:
    """What a person sees of the packing, on stderr: the bar where there is one, elsewhere a line every few seconds."""

    def __init__(self, total: int, bar: ImageBar) -> None:
        self._bar, self._total, self._done = bar, total, 0
        self._started = self._last_line = time.monotonic()
        bar.begin(total)

    def add(self, done: "Done") -> None:
        self._done += done.images
        self._bar.advance(done.images)
        now = time.monotonic()
        if not self._bar.drawn and now - self._last_line >= EVERY_SECONDS:
            self._last_line = now
            _say(
                f"{self._done} of {self._total} images, {self._done / (now - self._started):.0f} images/s"
            )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
