"""Exports a network to files in a folder and compares them with torch before publishing them.

Called by ``tinynet export``.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from search_spaces import RequestError
from search_spaces.errors import unknown
from search_spaces.weights import Source, load_weights, locate
from tinynet_search.export.document import (
    SCHEMA,
    ExportConfig,
    ExportedFile,
    Int8Cost,
    Preprocessing,
    TensorSpec,
    TrainedBy,
    WeightsOrigin,
    figures_of,
)
from tinynet_search.export.folder import ExportFolder, export_folder
from tinynet_search.export.formats import FORMATS, INPUT, OUTPUT, weights_bytes, write_checked
from tinynet_search.export.images import Images, evaluation_recipe, open_images, preprocessing_of
from tinynet_search.export.int8 import write_int8
from tinynet_search.export.subject import Subject, class_names_of, find_subject
from trainables.classes import class_metadata
from trainables.spec import Settings


@dataclass(frozen=True)
class ExportRequest:
    """The arguments of an export.

    Attributes:
        network, space, classes: Arguments of ``find_subject``.
        format: A name in ``FORMATS``.
        out: The output folder.
        weights: A file or the name of published weights; None uses the weights in the network's
            folder.
        int8: Also quantise the ONNX file and evaluate both files.
        data: ``[data]`` settings; None uses those of the trial.
        calibration: Number of training images for calibration.
        images: Number of validation images for the evaluation.
    """

    network: str
    format: str
    out: Path
    weights: str | None = None
    space: str | None = None
    classes: int | None = None
    int8: bool = False
    data: Settings | None = None
    calibration: int = 128
    images: int = 1000


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        config: Configuration of the folder, including the files of earlier exports.
        folder: The output folder.
        written: Names of the files written by this export.
        int8: Cost of quantisation, None if nothing was quantised.
        note: How the classes of the data were matched, None if they are equal or were not used.
    """

    config: ExportConfig
    folder: str
    written: list[str]
    int8: Int8Cost | None
    note: str | None

    def to_json(self) -> dict[str, Any]:
        cost = None if self.int8 is None else self.int8.model_dump()
        return {
            **self.config.to_json(),
            "folder": self.folder,
            "written": self.written,
            "int8": cost,
            "note": self.note,
        }


def export_network(request: ExportRequest) -> Exported:
    """Write the files and their config.json.

    Raises:
        RequestError: The request is invalid.
        ExportError: The network cannot be exported, or the file differs from torch and is not kept.
    """
    if request.format not in FORMATS:
        raise unknown("format", request.format, FORMATS)
    if request.int8 and request.format != "onnx":
        raise RequestError(f"--int8 requires --format onnx, not {request.format}")
    if request.data is not None and not request.int8:
        raise RequestError(
            "--data and --data-path require --int8: they select the calibration images"
        )
    subject = find_subject(request.network, request.space, request.classes)
    source = _weights(subject, request.weights)
    recipe = evaluation_recipe(subject, request.data)
    preprocessing = preprocessing_of(subject, source, recipe, request.data)
    module = subject.network.build().eval().requires_grad_(False)
    load_weights(module, source)
    images = (
        open_images(subject, source, request.data, recipe, preprocessing, request.calibration)
        if request.int8
        else None
    )
    config = _config(subject, source, module, preprocessing)
    with export_folder(request.out, config) as folder:
        files, cost = _write(folder, subject, module, request, images)
        config = folder.publish(files)
    note = images.classes.note if images else None
    return Exported(config, str(request.out), list(files), cost, note)


def _write(
    folder: ExportFolder,
    subject: Subject,
    module: nn.Module,
    request: ExportRequest,
    images: Images | None,
) -> tuple[dict[str, ExportedFile], Int8Cost | None]:
    """Write the files to the scratch folder; return them by name, and the cost of quantisation."""
    name = FORMATS[request.format].file.format(name=subject.name)
    folder.check_free(name)
    path, metadata = folder.scratch / name, class_metadata(folder.config.class_names)
    files: dict[str, ExportedFile] = {
        name: write_checked(request.format, module, subject.network, path, metadata)
    }
    if images is None:
        return files, None
    int8_name = f"{subject.name}.int8.onnx"
    folder.check_free(int8_name)
    int8_file = write_int8(path, folder.scratch / int8_name, images, request.images, metadata)
    return {**files, int8_name: int8_file}, int8_file.compared_with_float32


def _weights(subject: Subject, requested: str | None) -> Source:
    if requested is not None:
        return locate(requested)
    if subject.weights is not None:
        return Source(subject.weights, str(subject.weights))
    import timm

    published = subject.name in {name.partition(".")[0] for name in timm.list_pretrained()}
    hint = f" or --weights {subject.name} (timm's weights from the hub)" if published else ""
    raise RequestError(f"{subject.name} has no weights: pass --weights FILE{hint}")


def _config(
    subject: Subject, source: Source, module: nn.Module, preprocessing: Preprocessing
) -> ExportConfig:
    """The contents of config.json, without its files."""
    network = subject.network
    own = source.path == subject.weights
    # The file may be copied to other machines, so it contains no local path.
    origin = subject.origin if own else source.origin
    pixels = network.resolution
    return ExportConfig(
        version=SCHEMA,
        name=subject.name,
        space=subject.space,
        space_version=network.space.version,
        num_classes=network.num_classes,
        class_names=class_names_of(subject, source),
        network=figures_of(network),
        weights_sha256=hashlib.sha256(weights_bytes(module)).hexdigest(),
        rdw=network.rdw,
        weights=WeightsOrigin(origin=origin),
        input=TensorSpec(name=INPUT, dtype="float32", shape=["batch", 3, pixels, pixels]),
        output=TensorSpec(name=OUTPUT, dtype="float32", shape=["batch", network.num_classes]),
        preprocessing=preprocessing,
        trained=_without_paths(subject.trained) if subject.trained and own else None,
        files={},
    )


def _without_paths(trained: TrainedBy) -> TrainedBy:
    """A copy without the local folders of the training images."""
    data = {key: value for key, value in trained.data.items() if key not in ("path", "cache")}
    return trained.model_copy(update={"data": data})
