"""Static int8 quantisation of an ONNX file, and what it costs: both files on the same validation images.

Weights are int8 with a scale for each output channel, activations uint8, in QDQ form: on a CPU with VNNI, ONNX Runtime
runs this two to five times faster than int8 activations. Convolutions and the classifier alone are quantised: what lies
between them loses accuracy and gains a tenth of the time. ResNet-50 becomes three times faster; depthwise networks with
squeeze-excite become a quarter of the size and no faster, which the printed speeds show.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinynet_search.export.document import BothFiles, Int8Cost, Quantised, QuantisedFile
from tinynet_search.export.formats import INPUT, attempted, session, versions, without_traces
from tinynet_search.export.images import Images
from tinynet_search.export.subject import file_digest

if TYPE_CHECKING:
    from onnxruntime.quantization import CalibrationDataReader

QUANTISED = ("Conv", "Gemm", "MatMul")
# Calibration keeps every activation of a batch (ResNet-50: 6.7 GB at 32 images, 2.8 GB at 4); the ranges are the same.
AT_ONCE = 4
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def write_int8(float_file: Path, path: Path, images: Images, count: int) -> QuantisedFile:
    """Quantise an ONNX file with the ranges that activations take on the calibration images.

    Args:
        count: validation images that both files are compared on, at most.
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
    with attempted("int8 ONNX"):
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
        model = without_traces(onnx.load(path))
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
        """Batches of the images, then None."""

        def __init__(self) -> None:
            self._batches = iter(
                [
                    calibration[start : start + AT_ONCE]
                    for start in range(0, len(calibration), AT_ONCE)
                ]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:  # pyright: ignore[reportIncompatibleMethodOverride]
            batch = next(self._batches, None)
            return None if batch is None else {INPUT: batch}

    return Reader()


def compare(float_file: Path, int8_file: Path, images: Images, count: int) -> Int8Cost:
    """Top-1 of both files in percent, how often they agree, how far their logits differ, and their speed."""
    runs = {"float32": session(float_file), "int8": session(int8_file)}
    labels: list[np.ndarray] = []
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in runs}
    seconds = dict.fromkeys(runs, 0.0)
    for batch, wanted in images.validation(count):
        labels.append(wanted)
        for name, run in runs.items():
            result, taken = _timed(run, batch)
            outputs[name].append(result)
            seconds[name] += taken
    right = np.concatenate(labels)
    exact, rounded = (np.concatenate(outputs[name]) for name in ("float32", "int8"))
    top1 = BothFiles(float32=_top1(exact, right), int8=_top1(rounded, right))
    return Int8Cost(
        data=images.data.fingerprint,
        images=len(right),
        top1=top1,
        top1_change=top1.int8 - top1.float32,
        agreement=100 * float((exact.argmax(1) == rounded.argmax(1)).mean()),
        largest_difference=float(np.abs(exact - rounded).max()),
        mean_difference=float(np.abs(exact - rounded).mean()),
        largest_output=float(np.abs(exact).max()),
        images_per_s=BothFiles(
            float32=round(len(right) / seconds["float32"], 1),
            int8=round(len(right) / seconds["int8"], 1),
        ),
    )


def _top1(outputs: np.ndarray, labels: np.ndarray) -> float:
    """Percent."""
    return 100 * float((outputs.argmax(1) == labels).mean())


def _timed(run: Callable[[np.ndarray], np.ndarray], batch: np.ndarray) -> tuple[np.ndarray, float]:
    started = time.perf_counter()
    result = run(batch)
    return result, time.perf_counter() - started
