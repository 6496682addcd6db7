"""Logs an evaluation to MLflow as one run per pair of weights and data.

Called by ``tinynet train --eval-only``.
"""

import hashlib
import json
import time
from dataclasses import dataclass
from typing import Any, Literal

from search_spaces import Network
from tinynet_search.export.document import Preprocessing
from tinynet_search.mlflow_client.connection import mlflow_access
from tinynet_search.mlflow_client.experiments import experiment_name
from tinynet_search.tracking.projection import KEY, KIND, Point, flat_params, owner_tags
from tinynet_search.tracking.runs import NewRun, TaggedRuns
from tinynet_search.tracking.view import page_of
from trainables.classes import ClassMatch
from trainables.result import NetworkFigures
from trainables.spec import Settings


@dataclass(frozen=True)
class EvaluationReport:
    """Subject and result of an evaluation.

    Attributes:
        label: label of the network.
        space: the argument of ``get_space``.
        weights: the weights as the user gave them.
        weights_sha256: digest of the weights file.
        checkpoint: the checkpoint of the weights, None if they are not from a checkpoint.
        weight_set: which of the two sets of weights of the checkpoint, None likewise.
        data: the ``[data]`` settings.
        fingerprint: fingerprint of the data.
        classes: the outputs that are the data's classes.
        top1: percent.
        top5: percent.
        loss: mean cross-entropy in nats.
        images: number of evaluated images.
        warning: set if the data were packed for fewer pixels than the network expects.
    """

    label: str
    space: str
    network: Network
    weights: str
    weights_sha256: str
    checkpoint: str | None
    weight_set: Literal["EMA", "raw"] | None
    data: Settings
    fingerprint: str
    classes: ClassMatch
    preprocessing: Preprocessing
    top1: float
    top5: float
    loss: float
    images: int
    seconds: float
    images_per_s: float
    device: str
    precision: Literal["bf16", "float32"]
    warning: str | None

    @property
    def digest(self) -> str:
        """Digest of the weights, the data, its classes, the preprocessing and the precision."""
        preprocessing = self.preprocessing.to_json()
        identity = [self.weights_sha256, preprocessing, self.precision, self.fingerprint]
        if self.classes.columns is not None:
            identity.append(self.classes.columns.tolist())
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Return the document that ``--json`` prints."""
        return {
            "network": {
                "name": self.label,
                "space": self.space,
                **self.network.rdw._asdict(),
                **NetworkFigures.of(self.network).to_json(),
            },
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "checkpoint": self.checkpoint,
            "set": self.weight_set,
            "data": {"settings": dict(self.data), "fingerprint": self.fingerprint},
            "classes": self.classes.to_json(),
            "preprocessing": self.preprocessing.to_json(),
            "top1": self.top1,
            "top5": self.top5,
            "loss": self.loss,
            "images": self.images,
            "seconds": self.seconds,
            "images_per_s": self.images_per_s,
            "device": self.device,
            "precision": self.precision,
            "warning": self.warning,
        }


def log_evaluation(
    uri: str, report: EvaluationReport, owner: str, experiment: str | None = None
) -> str:
    """Log an evaluation. Logging the same evaluation again changes nothing.

    Args:
        uri: MLflow's tracking URI.
        report: the evaluation.
        owner: who evaluates.
        experiment: name of the experiment, None for the default.

    Returns:
        The URL of the run.

    Raises:
        TrackingError: MLflow does not respond, or rejects a request.
    """
    now = int(time.time() * 1000)
    key = f"evaluation/{report.digest}"
    figures = _figures(report.network)
    scores = {
        "top1": report.top1,
        "top5": report.top5,
        "val_loss": report.loss,
        "images_per_s": report.images_per_s,
    }
    params = {
        "network": report.label,
        "weights": report.weights,
        "data": report.fingerprint,
        **figures,
        "images": report.images,
        "classes": report.classes.to_json(),
        "preprocessing": report.preprocessing.to_json(),
    }
    with mlflow_access(uri):
        name = experiment or experiment_name(report.space, owner)
        runs = TaggedRuns(uri, name, f"evaluation of {report.label}", KEY, key)
        start = now - int(1000 * report.seconds)
        tags = {KEY: key, KIND: "evaluation", **owner_tags(owner)}
        tags["mlflow.source.name"] = "tinynet train"
        run = runs.get_or_create(NewRun(f"evaluation · {report.label}", start, tags))
        if not run.ended:
            points = [
                Point(name, float(value), now, 0) for name, value in (figures | scores).items()
            ]
            runs.log(run, points, flat_params(params))
            runs.end(run, "FINISHED", now)
        return page_of(uri, runs.experiment_id, run.run_id)


def _figures(network: Network) -> dict[str, float | int]:
    r, d, w = network.rdw
    return {
        "r": r,
        "d": d,
        "w": w,
        "c": network.c,
        "macs": network.macs,
        "params": network.params,
        "resolution": network.resolution,
        "activation_bytes": network.activation_bytes,
    }
