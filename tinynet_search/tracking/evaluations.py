"""An evaluation in MLflow: a run of its own, one for the same weights on the same images."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tinynet_search.mlflow_client.connection import reaching
from tinynet_search.tracking.projection import KEY, KIND, Point, flat_params
from tinynet_search.tracking.runs import TaggedRuns, Wanted
from tinynet_search.tracking.view import page_of

FIGURES = ("r", "d", "w", "c", "macs", "params", "resolution", "activation_bytes")


@dataclass(frozen=True)
class Evaluation:
    """What was evaluated, and how it did.

    Attributes:
        figures: the one JSON document of ``--json``.
        digest: of the weights, the data and how an image was prepared.
    """

    space: str
    label: str
    figures: Mapping[str, Any]
    digest: str


def log_evaluation(uri: str, evaluation: Evaluation) -> str:
    """Write an evaluation; the same one again changes nothing.

    Returns:
        Where to look.

    Raises:
        TrackingError: MLflow does not answer, or refuses.
    """
    figures, now = evaluation.figures, int(time.time() * 1000)
    key = f"evaluation/{evaluation.digest}"
    network = {name: figures["network"][name] for name in FIGURES}
    scores = {
        "top1": figures["top1"],
        "top5": figures["top5"],
        "val_loss": figures["loss"],
        "images_per_s": figures["images_per_s"],
    }
    params = {
        "network": evaluation.label,
        "weights": figures["weights"],
        "data": figures["data"]["fingerprint"],
        **network,
    }
    with reaching(uri):
        runs = TaggedRuns(uri, evaluation.space, f"evaluation of {evaluation.label}", KEY, key)
        start = now - int(1000 * figures["seconds"])
        tags = {KEY: key, KIND: "evaluation", "mlflow.source.name": "tinynet train"}
        run = runs.one(Wanted(f"evaluation · {evaluation.label}", start, tags))
        if not run.ended:
            points = [
                Point(name, float(value), now, 0) for name, value in (network | scores).items()
            ]
            runs.log(
                run,
                points,
                flat_params(
                    {
                        **params,
                        "images": figures["images"],
                        "preprocessing": figures["preprocessing"],
                    }
                ),
            )
            runs.end(run, "FINISHED", now)
        return page_of(uri, runs.experiment_id, run.run_id)
