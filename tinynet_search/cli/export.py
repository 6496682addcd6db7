"""A network as a file for other runtimes."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import SPACES, AsJson, app
from tinynet_search.text import megabytes, millions, percent, table

if TYPE_CHECKING:
    from tinynet_search.export.document import Int8Cost
    from tinynet_search.export.export import Exported
    from trainables.spec import Settings


@app.command()
def export(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A name of tinynet networks, r,d,w, or the folder of a trial or an export.",
        ),
    ],
    form: Annotated[str, typer.Option("--format", help="onnx, pt2 (torch.export) or safetensors.")],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder of the files and their config.json; more formats of the same weights may join them."
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="A .safetensors or .pth file, or timm's name such as tinynet_e.in1k; a folder brings its own."
        ),
    ] = None,
    space: Annotated[str | None, typer.Option(help=f"Of r,d,w. {SPACES}")] = None,
    classes: Annotated[
        int | None, typer.Option(help="Classes, where not the space's own number.")
    ] = None,
    int8: Annotated[
        bool,
        typer.Option("--int8", help="With onnx: an int8 file too, and what it costs in accuracy."),
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="Images for --int8: petals; a trial brings its own.")
    ] = None,
    data_path: Annotated[
        str | None,
        typer.Option(
            help="Images for --int8: a folder of images of any known kind, packed ones too."
        ),
    ] = None,
    calibration: Annotated[
        int, typer.Option(min=1, help="Training images that --int8 measures ranges on.")
    ] = 128,
    images: Annotated[
        int, typer.Option(min=1, help="Validation images that --int8 is evaluated on, at most.")
    ] = 1000,
    as_json: AsJson = False,
) -> None:
    """ONNX, pt2 (torch.export) or safetensors of a network.

    Every file is read again and compared with torch before it is kept.

    A folder that holds another network, other weights or files of other origin is refused, never overwritten.
    """
    from tinynet_search.export import ExportRequest, export_network
    from tinynet_search.export.formats import ExportError

    settings = None if data is None and data_path is None else _settings(data, data_path)
    try:
        done = export_network(
            ExportRequest(
                network, form, out, weights, space, classes, int8, settings, calibration, images
            )
        )
    except ExportError as error:
        print(f"tinynet: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    print(json.dumps(done.to_json(), indent=1) if as_json else _text(done))


def _settings(data: str | None, data_path: str | None) -> "Settings":
    if data_path is None:
        return {"name": data}
    from trainables.data.detect import detected

    settings = detected(data_path)
    if data not in (None, settings["name"]):
        raise RequestError(f"--data {data} and --data-path are two sets: give one")
    return settings


def _text(done: "Exported") -> str:
    from tinynet_search.export.document import QuantisedFile

    config, figures = done.config, done.config.network
    size = f"{figures.resolution} px, {millions(figures.macs)} FLOPs, {millions(figures.params, 2)} params"
    lines = [
        f"{config.name}: {size}, {config.num_classes} classes; weights from {config.weights.origin}"
    ]
    rows = []
    for name in done.written:
        file = config.files[name]
        off = file.compared_with_float32 if isinstance(file, QuantisedFile) else file
        rows.append(
            (
                name,
                megabytes(file.bytes, 2),
                f"{off.largest_difference:.3g}",
                f"{off.largest_output:.3g}",
            )
        )
    lines.append(table((done.folder, "size", "largest difference", "largest output"), rows))
    if done.int8 is not None:
        lines.append(_int8_text(done.int8))
    return "\n".join(lines)


def _int8_text(cost: "Int8Cost") -> str:
    top1, speed = cost.top1, cost.images_per_s
    rows = [
        ("float32", percent(top1.float32, 2), f"{speed.float32:.0f}"),
        ("int8", percent(top1.int8, 2), f"{speed.int8:.0f}"),
    ]
    same = f"int8 {cost.top1_change:+.2f} points; same class on {percent(cost.agreement, 2)} of {cost.images} images"
    return "\n".join(
        [
            table(("in ONNX Runtime", "top-1", "images/s"), rows),
            f"{same}; logits differ by {cost.mean_difference:.3g} on average",
        ]
    )
