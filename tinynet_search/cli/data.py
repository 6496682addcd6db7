"""``tinynet data imagenet100``: draws the paper's subset of ImageNet.

Registered with the application by ``main``; ``data_pack`` adds its command to the same group.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import AsJson, app, example, print_help
from tinynet_search.cli.image_bar import ImageBar
from tinynet_search.commands import absolute, tinynet
from tinynet_search.text import exact_data_size

if TYPE_CHECKING:
    from trainables.data.sources.encoded import EncodedData
    from trainables.data.subset.build import BuildResult
    from trainables.data.subset.selection import Selection

NUM_CLASSES, IMAGES_PER_CLASS = 100, 500
# Number of progress lines if stderr is not a terminal.
PROGRESS_LINES = 10

data_app = typer.Typer(
    callback=print_help,
    invoke_without_command=True,
    help="Prepare image sets: draw ImageNet-100, pack images.",
    epilog=example("data pack --data imagenet100 --out imagenet100-packed"),
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


@data_app.command(epilog=example("data imagenet100 --imagenet imagenet --out imagenet100"))
def imagenet100(
    imagenet: Annotated[
        Path,
        typer.Option(
            help="Read ImageNet from this folder: a train/ and val/ tree, tar files, Kaggle's "
            "files or Parquet shards."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Write the subset to this folder, or continue an interrupted copy in it."
        ),
    ],
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Draw classes and images with this seed; every form of ImageNet gives the same.",
            show_default="0",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Take the classes from this list, one per line, not at random."),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option("--list", help="Copy the files of this files.csv and check their SHA-256."),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(min=2, help="Draw this number of classes.", show_default=str(NUM_CLASSES)),
    ] = None,
    images_per_class: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Draw this number of training images per class.",
            show_default=str(IMAGES_PER_CLASS),
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Copy this number of images concurrently.")
    ] = 8,
    as_json: AsJson = False,
) -> None:
    """Draw the paper's subset of ImageNet (section 4.1).

    The subset has 100 random classes with 500 random training images each and all their validation
    images, as a train/ and val/ tree.
    """
    if files and (classes or (seed, num_classes, images_per_class) != (None, None, None)):
        raise RequestError(
            "--list already selects the images: remove --seed, --classes, --num-classes and "
            "--images-per-class"
        )
    if classes and num_classes:
        raise RequestError("--classes already sets the number of classes: remove --num-classes")
    from tinynet_search.version import __version__
    from trainables.data.subset.build import build

    name, source = _open_source(imagenet)
    selection = _selection(
        source,
        seed or 0,
        classes or num_classes or NUM_CLASSES,
        images_per_class or IMAGES_PER_CLASS,
        files,
    )
    about = {"source": name, "version": __version__}
    with ImageBar() as bar:
        try:
            done = build(source, selection, out, about, workers, _CopyProgress(out, bar))
        except OSError as error:
            print(f"tinynet: {error}: run the same command to continue", file=sys.stderr)
            raise typer.Exit(1) from error
    subset = absolute(out)
    next_command = tinynet(["data", "pack", "--data", subset, "--out", f"{subset}-packed"])
    if as_json:
        counts = {"written": done.written, "kept": done.kept, "next": next_command}
        print(json.dumps({**done.subset.to_json(), **counts}, indent=1))
    else:
        print(_text(out, done, next_command))


def _open_source(path: Path) -> tuple[str, "EncodedData"]:
    """The kind of the image set at a path, and the set.

    Raises:
        RequestError: it is a packed set.
    """
    from trainables.data import open_data
    from trainables.data.detect import detect_data
    from trainables.data.sources.encoded import EncodedData

    settings = detect_data(str(path))
    data = None if settings["name"] == "packed" else open_data(settings)
    if not isinstance(data, EncodedData):
        raise RequestError(
            f"{str(path)!r} is a packed set, which does not contain the original files: "
            "pass the original ImageNet"
        )
    return settings["name"], data


def _selection(
    data: "EncodedData", seed: int, classes: Path | int, images_per_class: int, files: Path | None
) -> "Selection":
    from trainables.data.subset.selection import class_list, draw, select_listed

    if files:
        return select_listed(data, files)
    return draw(
        data,
        seed,
        images_per_class,
        classes if isinstance(classes, int) else class_list(classes, data.class_names),
    )


def _text(out: Path, done: "BuildResult", next_command: str) -> str:
    subset, request = done.subset, done.subset.request
    seed = f"seed {request.seed}"
    origins = {"seed": seed, "classes": f"given classes, {seed}", "list": "from a list"}
    images = (
        f"{request.train} training and {request.val} validation images of {request.classes} classes"
    )
    changes = (
        f"{done.written} images written, {done.kept} existed"
        if done.written
        else "already complete, nothing changed"
    )
    return "\n".join(
        [
            f"{out}: {images}, {exact_data_size(subset.bytes)} ({origins[request.drawn_from]})",
            f"{changes}; files.csv has SHA-256 {subset.files_sha256}",
            f"next: {next_command}",
        ]
    )


class _CopyProgress:
    """Progress of copying on stderr: a bar on a terminal, otherwise one line per tenth.

    Called by ``trainables.data.subset.build``.
    """

    def __init__(self, out: Path, bar: ImageBar) -> None:
        self._out, self._bar = out, bar
        self._images = self._done = 0

    def begin(self, images: int, size: int, kept: int) -> None:
        existing = f"; {kept} exist already" if kept else ""
        print(
            f"copying {images} images, about {exact_data_size(size)}, to {self._out}{existing}",
            file=sys.stderr,
        )
        self._images = images
        self._bar.begin(images)

    def copied(self, size: int) -> None:
        self._done += 1
        self._bar.advance()
        part = self._done * PROGRESS_LINES // self._images
        previous_part = (self._done - 1) * PROGRESS_LINES // self._images
        if not self._bar.drawn and part > previous_part:
            print(f"{self._done} of {self._images} images", file=sys.stderr, flush=True)
