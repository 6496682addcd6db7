"""Tests that time estimates for a GPU name are marked as assumed in every output."""

import json
from pathlib import Path

import pytest

from tests.search.helpers import tiny_config
from tinynet_search.cli.jobs import _findings_text
from tinynet_search.cluster import placement, preflight
from tinynet_search.cluster.estimate import PEAK_RATES, assumed_rate
from tinynet_search.plan.preview import preview

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("gpu", PEAK_RATES)
@pytest.mark.parametrize("space", ["efficientnet_b0", "resnet50", "ghostnet_a"])
def test_source_of_rate_for_gpu_name_is_assumed(gpu: str, space: str) -> None:
    rate, source = assumed_rate(gpu, space, 0.5)
    assert 0 < rate < PEAK_RATES[gpu]
    assert source.startswith("assumed: ")
    assert source.endswith(f" of the peak of one {gpu.upper()}")


@pytest.mark.parametrize("gpu", PEAK_RATES)
def test_check_and_submit_output_marks_assumed_estimate(
    gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``tinynet check`` prints text or JSON; ``tinynet submit`` prints the text."""
    monkeypatch.setattr(preflight, "max_nodes", lambda: [placement.Nodes({"CPU": 8.0, "GPU": 1.0})])
    config = tiny_config(tmp_path, "scaling.gpus=1", at_once=None)
    inputs = config.resolve()
    findings = preflight.Findings(preflight.versions(), plan=preview(inputs))
    preflight._check_room(placement.ClusterRequest.of(config, inputs), inputs, findings, gpu)
    document = json.loads(json.dumps(findings.to_json()))
    assert document["estimate"]["source"].startswith("assumed: ")
    parsed = preflight.Findings.from_json(document)
    assert parsed == findings
    lines = [line for line in _findings_text(parsed).splitlines() if "GPU-hours" in line]
    assert len(lines) == 1
    assert f"(assumed: 2% of the peak of one {gpu.upper()})" in lines[0]


def test_automatic_scaling_marks_time_as_assumed() -> None:
    """``scaling.auto`` compares divisions with an assumed rate for all GPUs."""
    config = tiny_config(Path("nowhere"), "scaling.auto=true", at_once=None)
    request = placement.ClusterRequest.of(config, config.resolve())
    nodes = [placement.Nodes({"CPU": 8.0, "GPU": 1.0})]
    place = placement.choose_placement(request, [1e15], nodes)
    assert place.why is not None
    assert " take an assumed " in place.why
