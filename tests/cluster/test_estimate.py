"""Estimates from a GPU's name rest on figures that nobody measured here, and are marked so wherever they are printed."""

import json
from pathlib import Path

import pytest

from tests.search.helpers import tiny_config
from tinynet_search.cli.jobs import _findings_text
from tinynet_search.cluster import placement, preflight
from tinynet_search.cluster.estimate import GPUS, by_name
from tinynet_search.plan.preview import preview

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("space", ["efficientnet_b0", "resnet50", "ghostnet_a"])
def test_the_source_of_a_rate_by_name_is_an_assumption(gpu: str, space: str) -> None:
    rate, source = by_name(gpu, space, 0.5)
    assert 0 < rate < GPUS[gpu]
    assert source.startswith("assumed: ")
    assert source.endswith(f" of the peak of one {gpu.upper()}")


@pytest.mark.parametrize("gpu", GPUS)
def test_what_check_and_submit_print(
    gpu: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As text and as JSON: ``tinynet check`` prints both, ``tinynet submit`` the text before it asks."""
    monkeypatch.setattr(preflight, "grown", lambda: [placement.Nodes({"CPU": 8.0, "GPU": 1.0})])
    config = tiny_config(tmp_path, "scaling.gpus=1", at_once=None)
    inputs = config.resolve()
    findings = preflight.Findings(preflight.versions(), plan=preview(inputs))
    preflight._check_room(placement.ClusterRequest.of(config, inputs), inputs, findings, gpu)
    document = json.loads(json.dumps(findings.to_json()))
    assert document["estimate"]["source"].startswith("assumed: ")
    found = preflight.Findings.from_json(document)
    assert found == findings
    lines = [line for line in _findings_text(found).splitlines() if "GPU-hours" in line]
    assert len(lines) == 1
    assert f"(assumed: 2% of the peak of one {gpu.upper()})" in lines[0]


def test_a_choice_of_workers_is_marked_too() -> None:
    """``scaling.auto`` compares divisions by a rate that is assumed for every GPU."""
    config = tiny_config(Path("nowhere"), "scaling.auto=true", at_once=None)
    request = placement.ClusterRequest.of(config, config.resolve())
    place = placement.placed(request, [1e15], [placement.Nodes({"CPU": 8.0, "GPU": 1.0})])
    assert place.why is not None
    assert " in an assumed " in place.why
