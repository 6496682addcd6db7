"""Tests of the Grafana dashboard and the PodMonitor, against the metrics that the code exports.

Neither Grafana nor Prometheus is needed: expressions are compared by their metrics and labels.
"""

import json
import re
from dataclasses import fields
from functools import cache
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import DEPLOY, ROOT, SETS, of_kind, walk
from tinynet_search.callbacks.metrics import SearchLabels

pytestmark = pytest.mark.quick

FOLDER = DEPLOY / "monitoring"
# The labels of every metric, and the one that only the trials have.
LABELS = {field.name for field in fields(SearchLabels)}
STATE = "state"
PANEL_FIELDS = {"id", "type", "title", "gridPos", "datasource", "targets", "fieldConfig", "options"}
WORDS = {"sum", "max", "count", "rate", "by", "and", "or", "vector"}


@cache
def dashboard() -> dict[str, Any]:
    return json.loads((FOLDER / "grafana-dashboard.json").read_text(encoding="utf-8"))


def exported_metrics() -> set[str]:
    """Return the names in Prometheus of the metrics that ``callbacks.metrics`` describes."""
    text = (ROOT / "tinynet_search/callbacks/metrics.py").read_text(encoding="utf-8")
    names = set(re.findall(r"^ray_(tinynet_\w+)", text, re.MULTILINE))
    created = set(re.findall(r'"(tinynet_\w+)"', text))
    created |= {f"tinynet_{name}" for name in re.findall(r'gauge\(\s*"(\w+)"', text)}
    assert names == created
    return {f"ray_{name}" for name in names}


def expressions() -> list[str]:
    targets = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    variables = [
        variable["query"]["query"]
        for variable in dashboard()["templating"]["list"]
        if variable["type"] == "query"
    ]
    return targets + variables


def test_every_metric_is_exported_and_every_exported_metric_is_shown() -> None:
    used = {name for text in expressions() for name in re.findall(r"\bray_\w+", text)}
    assert len(exported_metrics()) == 4
    assert used == exported_metrics()


def test_every_label_exists() -> None:
    from tinynet_search.callbacks.progress import STATES

    for text in expressions():
        labels = set(re.findall(r"(\w+)=~?\"", text))
        for group in re.findall(r"\bby \(([^)]*)\)", text):
            labels |= set(group.split(", "))
        labels |= set(re.findall(r"label_values\(.*, (\w+)\)$", text))
        allowed = LABELS | ({STATE} if "ray_tinynet_trials" in text else set())
        assert labels <= allowed, text
        assert set(re.findall(r'state="(\w+)"', text)) <= set(STATES), text
    for target in walk(dashboard()["panels"]):
        assert set(re.findall(r"\{\{(\w+)\}\}", str(target.get("legendFormat", "")))) <= LABELS | {
            STATE
        }


def test_expressions_are_balanced_and_select_by_the_variables() -> None:
    variables = {variable["name"] for variable in dashboard()["templating"]["list"]}
    assert variables == LABELS | {"datasource"}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            text = target["expr"]
            for opening, closing in ("()", "{}", "[]"):
                assert text.count(opening) == text.count(closing), text
            for selector in re.findall(r"\{([^}]*)\}", text):
                assert all(f'{label}=~"${label}"' in selector for label in LABELS), text
            bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\"[^\"]*\"", "", text)
            words = set(re.findall(r"[a-z_]+", bare)) - exported_metrics() - LABELS - {STATE}
            assert words <= WORDS, text
    for text in expressions():
        assert set(re.findall(r"\$(\w+)", text)) <= variables, text


def test_dashboard_has_the_fields_that_an_import_requires() -> None:
    loaded = dashboard()
    assert loaded["id"] is None and loaded["uid"] == loaded["title"] == "tinynet-search"
    assert loaded["schemaVersion"] >= 36 and loaded["panels"]
    assert {"time", "templating", "annotations", "tags", "version"} <= set(loaded)
    panels = loaded["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    required = {item["id"] for item in loaded["__requires"] if item["type"] == "panel"}
    assert {panel["type"] for panel in panels} == required
    occupied: set[tuple[int, int]] = set()
    for panel in panels:
        assert set(panel) >= PANEL_FIELDS, panel["title"]
        # A data source of the importing Grafana, not of the one that wrote the file.
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        box = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(box["x"], box["x"] + box["w"])
            for y in range(box["y"], box["y"] + box["h"])
        }
        assert box["x"] + box["w"] <= 24 and not cells & occupied, panel["title"]
        occupied |= cells


def test_pod_monitor_selects_the_ray_pods() -> None:
    monitor = yaml.safe_load((FOLDER / "podmonitor.yaml").read_text(encoding="utf-8"))
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    assert set(monitor["spec"]) == {"namespaceSelector", "selector", "podMetricsEndpoints"}
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["tinynet"]}
    (expression,) = monitor["spec"]["selector"]["matchExpressions"]
    # KubeRay sets this label on its pods.
    assert expression == {"key": "ray.io/node-type", "operator": "In", "values": ["head", "worker"]}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
    for relabeling in endpoint["relabelings"]:
        assert set(relabeling) == {"sourceLabels", "targetLabel"}
    for which in SETS:
        namespaces = {
            item["metadata"]["namespace"] for item in of_kind(which, "RayCluster", "RayJob")
        }
        assert namespaces == {monitor["metadata"]["namespace"]}
        # Otherwise KubeRay would not add its port 8080 of that name.
        for mapping in walk(of_kind(which, "RayCluster", "RayJob")):
            assert mapping.get("name") != "metrics", which
            assert "metrics-export-port" not in mapping, which


def test_readme_describes_the_files() -> None:
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    for path in FOLDER.iterdir():
        assert path.name == "README.md" or f"`{path.name}`" in text
    rule = yaml.safe_load(re.findall(r"```yaml\n(- from:.*?)```", text, re.DOTALL)[0])
    (policy,) = [
        item for item in of_kind("production", "NetworkPolicy") if item["metadata"]["name"] == "ray"
    ]
    assert set(rule[0]) <= {key for rule in policy["spec"]["ingress"] for key in rule} | {"ports"}
    assert rule[0]["ports"] == [{"protocol": "TCP", "port": 8080}]
