"""``tinynet export``: writes a network to a file for other runtimes.

Registered with the application by ``main``.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from search_spaces.errors import RequestError
from tinynet_search.cli.app import SPACES, AsJson, app, example
from tinynet_search.cli.completion import complete_from, complete_network, complete_space
from tinynet_search.text import megabytes, millions, percent, table

if TYPE_CHECKING:
    from tinynet_search.export.document import Int8Cost
    from tinynet_search.export.export import Exported
    from trainables.spec import Settings


@app.command(
    epilog=example("export tinynet_e --format onnx --weights tinynet_e.pth --out exported")
)
def export(
    network: Annotated[
        str,
        typer.Argument(
            metavar="NETWORK",
            help="A name from tinynet networks, r,d,w, or the folder of a trial or an export.",
            autocompletion=complete_network,
        ),
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="Write this format: onnx, pt2 (torch.export) or safetensors.",
            autocompletion=complete_from("onnx", "pt2", "safetensors"),
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Write the files and their config.json to this folder; it may already contain "
            "other formats of the same weights."
        ),
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Load weights from a .safetensors or .pth file, or by timm's name such as "
            "tinynet_e.in1k.",
            show_default="those of the folder",
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            help=f"Use this search space for r,d,w ({SPACES}).", autocompletion=complete_space
        ),
    ] = None,
    classes: Annotated[
        int | None, typer.Option(help="Set the number of classes.", show_default="the space's")
    ] = None,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Also write an int8 ONNX file and measure its accuracy (needs onnx)."
        ),
    ] = False,
    data: Annotated[
        str | None,
        typer.Option(
            help="Use this built-in image set for --int8: petals.", show_default="the trial's"
        ),
    ] = None,
    data_path: Annotated[
        str | None,
        typer.Option(
            help="Use the images of this folder for --int8, of any known kind, packed or not."
        ),
    ] = None,
    calibration: Annotated[
        int, typer.Option(min=1, help="Calibrate --int8 on this number of training images.")
    ] = 128,
    images: Annotated[
        int,
        typer.Option(min=1, help="Evaluate --int8 on at most this number of validation images."),
    ] = 1000,
    as_json: AsJson = False,
) -> None:
    """Export a network as ONNX, pt2 (torch.export) or safetensors.

    Every file is loaded again and compared with torch before it is kept.

    A folder that contains another network, other weights or unknown files is rejected and never
    overwritten.
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
    if done.note:
        print(f"tinynet: {done.note}", file=sys.stderr)
    print(json.dumps(done.to_json(), indent=1) if as_json else _text(done))


def _settings(data: str | None, data_path: str | None) -> "Settings":
    if data_path is None:
        return {"name": data}
    from trainables.data.detect import detect_data

    settings = detect_data(data_path)
    if data not in (None, settings["name"]):
        raise RequestError(f"--data {data} and --data-path select different sets: pass only one")
    return settings


def _text(done: "Exported") -> str:
    from tinynet_search.export.document import QuantisedFile

    config, figures = done.config, done.config.network
    size = (
        f"{figures.resolution} px, {millions(figures.macs)} FLOPs, "
        f"{millions(figures.params, 2)} params"
    )
    lines = [
        f"{config.name}: {size}, {config.num_classes} classes; weights from {config.weights.origin}"
    ]
    rows = []
    for name in done.written:
        file = config.files[name]
        comparison = file.compared_with_float32 if isinstance(file, QuantisedFile) else file
        rows.append(
            (
                name,
                megabytes(file.bytes, 2),
                f"{comparison.largest_difference:.3g}",
                f"{comparison.largest_output:.3g}",
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
    agreement = f"same class on {percent(cost.agreement, 2)} of {cost.images} images"
    return "\n".join(
        [
            table(("in ONNX Runtime", "top-1", "images/s"), rows),
            f"int8 {cost.top1_change:+.2f} points; {agreement}; "
            f"logits differ by {cost.mean_difference:.3g} on average",
        ]
    )
