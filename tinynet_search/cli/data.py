"""Image sets: the paper's subset of ImageNet."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import AsJson, app
from tinynet_search.cli.image_bar import ImageBar
from tinynet_search.text import exact_data_size

if TYPE_CHECKING:
    from trainables.data.sources.encoded import EncodedData
    from trainables.data.subset.build import Built
    from trainables.data.subset.selection import Selection

NUM_CLASSES, IMAGES_PER_CLASS = 100, 500
# Where stderr is not a terminal, one line for each of this many parts of the images.
LINES = 10

data_app = typer.Typer(help="Image sets: draw ImageNet-100, pack images.", rich_markup_mode=None)
app.add_typer(data_app, name="data")


@data_app.command()
def imagenet100(
    imagenet: Annotated[
        Path,
        typer.Option(
            help="ImageNet: a train/ and val/ tree, its tar files, Kaggle's, or Parquet shards."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the subset; a run that was stopped goes on there.")
    ],
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Decides the classes and images, whatever form ImageNet has (0)."),
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="A published class list, one class a line, in place of random ones."),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option("--list", help="A files.csv: exactly its files, every SHA-256 checked."),
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(min=2, help=f"Random classes ({NUM_CLASSES}).")
    ] = None,
    images_per_class: Annotated[
        int | None,
        typer.Option(min=1, help=f"Random training images of each ({IMAGES_PER_CLASS})."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Images copied at once.")] = 8,
    as_json: AsJson = False,
) -> None:
    """The paper's subset of ImageNet (section 4.1).

    100 random classes, 500 random training images of each, and all their validation images, as a train/ and val/ tree.
    """
    if files and (classes or (seed, num_classes, images_per_class) != (None, None, None)):
        raise RequestError(
            "--list says which images: give no --seed, --classes, --num-classes or --images-per-class with it"
        )
    if classes and num_classes:
        raise RequestError("--classes says how many: give no --num-classes with it")
    from tinynet_search.version import __version__
    from trainables.data.subset.build import build

    name, source = _opened(imagenet)
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
            print(f"tinynet: {error}: the same command goes on from here", file=sys.stderr)
            raise typer.Exit(1) from error
    follow = (
        f"tinynet data pack --data {shlex.quote(str(out))} --out {shlex.quote(f'{out}-packed')}"
    )
    if as_json:
        counts = {"written": done.written, "kept": done.kept, "next": follow}
        print(json.dumps({**done.subset.to_json(), **counts}, indent=1))
    else:
        print(_text(out, done, follow))


def _opened(path: Path) -> tuple[str, "EncodedData"]:
    """The kind of set that lies there, and the set."""
    from trainables.data import open_data
    from trainables.data.detect import detected
    from trainables.data.sources.encoded import EncodedData

    settings = detected(str(path))
    data = None if settings["name"] == "packed" else open_data(settings)
    if not isinstance(data, EncodedData):
        raise RequestError(
            f"{str(path)!r} is a packed set, whose images are not the original files: give ImageNet itself"
        )
    return settings["name"], data


def _selection(
    data: "EncodedData", seed: int, classes: Path | int, images_per_class: int, files: Path | None
) -> "Selection":
    from trainables.data.subset.selection import class_list, draw, listed

    if files:
        return listed(data, files)
    return draw(
        data,
        seed,
        images_per_class,
        classes if isinstance(classes, int) else class_list(classes, data.class_names),
    )


def _text(out: Path, done: "Built", follow: str) -> str:
    subset, request = done.subset, done.subset.request
    seed = f"seed {request.seed}"
    how = {"seed": seed, "classes": f"classes as given, {seed}", "list": "as listed"}
    images = (
        f"{request.train} training and {request.val} validation images of {request.classes} classes"
    )
    did = (
        f"{done.written} images written, {done.kept} were there"
        if done.written
        else "already complete, nothing changed"
    )
    return "\n".join(
        [
            f"{out}: {images}, {exact_data_size(subset.bytes)} ({how[request.drawn_from]})",
            f"{did}; files.csv has SHA-256 {subset.files_sha256}",
            f"next: {follow}",
        ]
    )


class _CopyProgress:
    """What a person sees of the copying, on stderr: the bar where there is one, elsewhere a line for each tenth.

    It is told of the copying by ``trainables.data.subset.build``.
    """

    def __init__(self, out: Path, bar: ImageBar) -> None:
        self._out, self._bar = out, bar
        self._images = self._done = 0

    def begin(self, images: int, size: int, kept: int) -> None:
        there = f"; {kept} are there" if kept else ""
        print(
            f"copying {images} images, about {exact_data_size(size)}, to {self._out}{there}",
            file=sys.stderr,
        )
        self._images = images
        self._bar.begin(images)

    def copied(self, size: int) -> None:
        self._done += 1
        self._bar.advance()
        part = self._done * LINES // self._images
        if not self._bar.drawn and part > (self._done - 1) * LINES // self._images:
            print(f"{self._done} of {self._images} images", file=sys.stderr, flush=True)
