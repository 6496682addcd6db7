"""Static int8 quantisation of an ONNX file, and an evaluation of both files on the same images.

Called by the exporter. Weights are int8 with one scale per output channel, activations uint8, in
QDQ form. On a CPU with VNNI, ONNX Runtime runs this two to five times faster than int8 activations.
Only convolutions and the classifier are quantised: quantising the layers between them reduces
accuracy and saves a tenth of the time. ResNet-50 becomes three times faster. Depthwise networks
with squeeze-excite shrink to a quarter of the size but are not faster, as the printed speeds show.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinynet_search.export.document import BothFiles, Int8Cost, Quantised, QuantisedFile
from tinynet_search.export.formats import INPUT, export_errors, session, strip_traces, versions
from tinynet_search.export.images import Images
from tinynet_search.export.subject import file_digest

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

QUANTISED = ("Conv", "Gemm", "MatMul")
# Calibration keeps all activations of a batch in memory (ResNet-50: 6.7 GB with 32 images, 2.8 GB
# with 4). The ranges do not depend on the batch size.
CALIBRATION_BATCH = 4
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def write_int8(
    float_file: Path, path: Path, images: Images, count: int, metadata: Mapping[str, str]
) -> QuantisedFile:
    """Quantise an ONNX file with the activation ranges of the calibration images.

    Args:
        count: Maximum number of validation images on which both files are compared.
        metadata: Recorded in the file, such as the class names.

    Raises:
        ExportError: The network cannot be quantised.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    prepared = path.with_suffix(".prepared")
    with export_errors("int8 ONNX"):
        quant_pre_process(float_file, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            path,
            _reader(images.calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        model = strip_traces(onnx.load(path))
        onnx.helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)
    prepared.unlink()
    quantised = Quantised(
        weights="int8, per channel",
        activations="uint8",
        calibration_images=len(images.calibration),
    )
    return QuantisedFile(
        format="onnx",
        bytes=path.stat().st_size,
        sha256=file_digest(path),
        versions=versions(PACKAGES),
        quantised=quantised,
        compared_with_float32=compare(float_file, path, images, count),
    )


def _reader(calibration: np.ndarray) -> "CalibrationDataReader":
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):
        """Returns the images in batches, then None."""

        def __init__(self) -> None:
            starts = range(0, len(calibration), CALIBRATION_BATCH)
            self._batches = iter([calibration[i : i + CALIBRATION_BATCH] for i in starts])

        def get_next(  # pyright: ignore[reportIncompatibleMethodOverride]
            self,
        ) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def compare(float_file: Path, int8_file: Path, images: Images, count: int) -> Int8Cost:
    """Compare both files: top-1 and agreement in percent, differences of the logits, and speed.

    Only the outputs of the data's classes are compared.
    """
    runs = {"float32": session(float_file), "int8": session(int8_file)}
    labels: list[np.ndarray] = []
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    seconds = dict.fromkeys(runs, 0.0)
    for batch, batch_labels in images.validation(count):
        labels.append(batch_labels)
        for name, run in runs.items():
            result, taken = _timed(run, batch)
            outputs[name].append(images.classes.select(result))
            seconds[name] += taken
    expected = np.concatenate(labels)
    float32, int8 = (np.concatenate(outputs[name]) for name in ("float32", "int8"))
    top1 = BothFiles(float32=_top1(float32, expected), int8=_top1(int8, expected))
    return Int8Cost(
        data=images.data.fingerprint,
        images=len(expected),
        top1=top1,
        top1_change=top1.int8 - top1.float32,
        agreement=100 * float((float32.argmax(1) == int8.argmax(1)).mean()),
        largest_difference=float(np.abs(float32 - int8).max()),
        mean_difference=float(np.abs(float32 - int8).mean()),
        largest_output=float(np.abs(float32).max()),
        images_per_s=BothFiles(
            float32=round(len(expected) / seconds["float32"], 1),
            int8=round(len(expected) / seconds["int8"], 1),
        ),
    )


def _top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 accuracy in percent."""
    return 100 * float((outputs.argmax(1) == labels).mean())


def _timed(run: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    result = run(batch)
    return result, time.perf_counter() - started
