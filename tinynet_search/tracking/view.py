"""Adds a preconfigured MLflow page for a search, and builds the links to MLflow's pages.

The page has the figures as columns, accuracy over FLOPs, and learning curves. MLflow stores shared
views in tags of the experiment, in an undocumented format; a failure here affects only the view.
Used by the publishers.
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

SHARED_VIEW_TAG = "mlflow.sharedViewState."
MAX_TAG_LENGTH = 5000
LOCAL_SERVER = "http://127.0.0.1:5000"
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
    """Write the view of a search unless it exists.

    Returns:
        The key of the view, None if it could not be written.
    """
    from mlflow.exceptions import MlflowException

    text = json.dumps(_state(runs.parent_id), sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:32]
    value = "deflate;" + base64.b64encode(zlib.compress(text.encode())).decode()
    if SHARED_VIEW_TAG + key in runs.experiment.tags:
        return key
    if len(value) > MAX_TAG_LENGTH:
        return None
    try:
        runs.client.set_experiment_tag(runs.experiment_id, SHARED_VIEW_TAG + key, value)
    except MlflowException:
        return None
    return key


def link_of(uri: str, experiment_id: str, view: str | None) -> str:
    """Return the URL of a search's page.

    For a database it is the URL on a local server started on it with the default port.
    """
    shared = f"&viewStateShareKey={quote(view)}" if view else ""
    return (
        f"{_server(uri)}/#/experiments/{experiment_id}/runs?workflowType=machine_learning{shared}"
    )


def page_of(uri: str, experiment_id: str, run_id: str) -> str:
    """Return the URL of a run's page, on the same server as ``link_of``."""
    return f"{_server(uri)}/#/experiments/{experiment_id}/runs/{run_id}"


def _server(uri: str) -> str:
    return address(uri) if uri.startswith(("http:", "https:")) else LOCAL_SERVER


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
