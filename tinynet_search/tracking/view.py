"""A ready-made page of MLflow for one search: figures as columns, accuracy over FLOPs, learning curves.

MLflow's pages keep shared views in tags of the experiment, in a format that no document promises: whatever goes
wrong here costs the view alone.
"""

import base64
import hashlib
import json
import zlib
from typing import Any
from urllib.parse import quote

from tinynet_search.mlflow_client.connection import address
from tinynet_search.tracking.projection import KIND, PARENT
from tinynet_search.tracking.search_runs import SearchRuns

SHARED = "mlflow.sharedViewState."
LONGEST_TAG = 5000
LOCAL = "http://127.0.0.1:5000"
COLUMNS = (
    *(
        f"metrics.`{name}`"
        for name in (
            "final_top1",
            "c",
            "macs",
            "params",
            "activation_bytes",
            "resolution",
            "r",
            "d",
            "w",
        )
    ),
    *(f"tags.`{name}`" for name in ("frontier", "pareto_rank")),
)


def add_view(runs: SearchRuns) -> str | None:
    """The key of the search's view, written if it is not there; None where that failed."""
    from mlflow.exceptions import MlflowException

    text = json.dumps(_state(runs.parent_id), sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    value = "deflate;" + base64.b64encode(zlib.compress(text.encode())).decode()
    if SHARED + key in runs.experiment.tags:
        return key
    if len(value) > LONGEST_TAG:
        return None
    try:
        runs.client.set_experiment_tag(runs.experiment_id, SHARED + key, value)
    except MlflowException:
        return None
    return key


def link_of(uri: str, experiment_id: str, view: str | None) -> str:
    """The search's page on a server; for a database, on a server that is started on it with its usual port."""
    shared = f"&viewStateShareKey={quote(view)}" if view else ""
    return (
        f"{_server(uri)}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{shared}"
    )


def page_of(uri: str, experiment_id: str, run_id: str) -> str:
    """A run's page, on a server as ``link_of``."""
    return f"{_server(uri)}/#/experiments/{experiment_id}/runs/{run_id}"


def _server(uri: str) -> str:
    return address(uri) if uri.startswith(("http:", "https:")) else LOCAL


def _state(parent_id: str) -> dict[str, Any]:
    section = {"uuid": "tinynet", "name": "Search", "display": True, "isReordered": False}
    charts = (
        {
            "type": "SCATTER",
            "xaxis": _axis("macs"),
            "yaxis": _axis("final_top1"),
            "runsCountToCompare": 1000,
        },
        {
            "type": "LINE",
            "metricKey": "top1",
            "selectedMetricKeys": ["top1"],
            "runsCountToCompare": 20,
            "xAxisKey": "step",
        },
        {
            "type": "PARALLEL",
            "selectedParams": [],
            "selectedMetrics": ["r", "d", "w", "c", "final_top1"],
            "showAllRuns": True,
        },
    )
    return {
        "searchFilter": f"tags.`{PARENT}` = '{parent_id}' and tags.`{KIND}` = 'trial'",
        "orderByKey": "metrics.`c`",
        "orderByAsc": True,
        "selectedColumns": list(COLUMNS),
        "runsHiddenMode": "SHOWALL",
        "compareRunSections": [section],
        "compareRunCharts": [
            {"uuid": f"tinynet-{i}", "metricSectionId": "tinynet", "deleted": False, **c}
            for i, c in enumerate(charts)
        ],
    }


def _axis(metric: str) -> dict[str, str]:
    return {"key": metric, "type": "METRIC"}
