"""A search whose disk fills up: the line names the file, nothing written is harmed, and with room again the same search ends."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import results, timeless_results, tiny_config
from tinynet_search.search.driver import run_search
from tinynet_search.store.directory import SearchStore

FIXED = ("plan.json", "candidates", "results")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "small"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _fill(place: Path, leave: int) -> Path:
    """A file that takes all but so many bytes."""
    found, file = os.statvfs(place), place / "ballast"
    with file.open("wb") as opened:
        opened.write(b"b" * max(0, found.f_bavail * found.f_frsize - leave))
    return file


def _written(storage: Path) -> dict[Path, bytes]:
    """What is written once."""
    places = [storage / "demo" / name for name in FIXED]
    return {
        file: file.read_bytes()
        for place in places
        for file in (place.rglob("*.json") if place.is_dir() else [place])
    }


def test_files_of_a_search_on_a_full_disk(small: Path) -> None:
    """Frontier and plan: the old bytes stay, and the line is the user's to act on."""
    store = SearchStore(str(small / "demo"))
    store.write_json("frontier.json", ["old"])
    ballast = _fill(small, 0)
    for name, once in (("frontier.json", False), ("plan.json", True)):
        with pytest.raises(RequestError) as full:
            store.write_json(name, ["new"] * 10_000, once=once)
        assert str(full.value).startswith(
            f"storage {small}/demo cannot be used ({small}/demo/{name} cannot be written (No space left"
        )
    assert store.read_json("frontier.json") == ["old"]
    assert store.folder.names() == ["frontier.json"]
    ballast.unlink()
    store.write_json("frontier.json", ["new"])
    assert store.read_json("frontier.json") == ["new"]


def _parents(tracking: str) -> list[str]:
    """What MLflow says of the searches."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(
        found.info.status
        for found in client.search_runs(experiments, "tags.`tinynet.kind` = 'search'")
    )


@pytest.mark.ray
def test_a_search_on_a_disk_that_fills_up(
    ray_cluster: Any, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """No room for any checkpoint: trials are lost with the reason in one line; what had a result keeps it to the byte."""
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    whole = run_search(tiny_config(tmp_path / "whole", trials=4), tracking=tracking)
    first = run_search(tiny_config(small, trials=2), tracking=tracking)
    assert first.new == 2
    before = _written(small)
    ballast = _fill(small, 60_000)
    full = run_search(
        tiny_config(small, "run.max_failures=1", trials=4),
        tracking=tracking,
        warn=lambda line: None,
    )
    assert len(full.lost) == 2
    assert _parents(tracking) == ["FINISHED", "KILLED"]
    assert all(
        "cannot be written (No space left on device)" in full.lost_why[c.run] for c in full.lost
    )
    assert all(f"{small}/demo/trials/{c.run}/" in full.lost_why[c.run] for c in full.lost)
    assert {file: data for file, data in _written(small).items() if file in before} == before
    assert set(results(small)) == {c.run for c in first.candidates}
    ballast.unlink()
    again = run_search(tiny_config(small, trials=4), tracking=tracking)
    assert (again.new, again.lost) == (2, [])
    assert _parents(tracking) == ["FINISHED", "FINISHED"]
    assert timeless_results(small) == timeless_results(tmp_path / "whole")
    assert (again.frontier, again.formula.points) == (whole.frontier, whole.formula.points)
    assert {file: data for file, data in _written(small).items() if file in before} == before
