"""Tests of a search on a full disk: existing files stay intact, and the search can be resumed."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import results, results_without_times, tiny_config
from tinynet_search.search.driver import run_search
from tinynet_search.store.directory import SearchStore

# Files and folders that are written once.
WRITE_ONCE = ("plan.json", "candidates", "results")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 48 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    if mount.returncode:
        pytest.skip(f"mounting a small file system is not permitted: {mount.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(folder: Path, leave: int) -> Path:
    """Fill the file system except for ``leave`` bytes with a ballast file."""
    usage, file = os.statvfs(folder), folder / "ballast"
    with file.open("wb") as opened:
        opened.write(b"b" * max(0, usage.f_bavail * usage.f_frsize - leave))
    return file


def _written(storage: Path) -> dict[Path, bytes]:
    """The contents of the files that are written once."""
    paths = [storage / "demo" / name for name in WRITE_ONCE]
    return {
        file: file.read_bytes()
        for path in paths
        for file in (path.rglob("*.json") if path.is_dir() else [path])
    }


def test_full_disk_keeps_the_files_of_a_search(small: Path) -> None:
    """The frontier is unchanged, and the error names the file."""
    store = SearchStore(str(small / "demo"))
    store.write_json("frontier.json", ["old"])
    ballast = _fill(small, 0)
    for name, once in (("frontier.json", False), ("plan.json", True)):
        with pytest.raises(RequestError) as full:
            store.write_json(name, ["new"] * 10_000, once=once)
        assert str(full.value).startswith(
            f"storage {small}/demo cannot be used "
            f"({small}/demo/{name} cannot be written (No space left"
        )
    assert store.read_json("frontier.json") == ["old"]
    assert store.folder.names() == ["frontier.json"]
    ballast.unlink()
    store.write_json("frontier.json", ["new"])
    assert store.read_json("frontier.json") == ["new"]


def _search_statuses(tracking: str) -> list[str]:
    """The status of each search in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return sorted(
        run.info.status for run in client.search_runs(experiments, "tags.`tinynet.kind` = 'search'")
    )


@pytest.mark.ray
def test_search_on_a_full_disk_can_be_resumed(
    ray_cluster: Any, small: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without space for checkpoints, trials are lost with a one-line reason; results are kept."""
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    undisturbed = run_search(tiny_config(tmp_path / "undisturbed", trials=4), tracking=tracking)
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
    assert _search_statuses(tracking) == ["FINISHED", "KILLED"]
    assert all(
        "cannot be written (No space left on device)" in full.lost_reasons[c.run] for c in full.lost
    )
    assert all(f"{small}/demo/trials/{c.run}/" in full.lost_reasons[c.run] for c in full.lost)
    assert {file: data for file, data in _written(small).items() if file in before} == before
    assert set(results(small)) == {c.run for c in first.candidates}
    ballast.unlink()
    resumed = run_search(tiny_config(small, trials=4), tracking=tracking)
    assert (resumed.new, resumed.lost) == (2, [])
    assert _search_statuses(tracking) == ["FINISHED", "FINISHED"]
    assert results_without_times(small) == results_without_times(tmp_path / "undisturbed")
    assert resumed.frontier == undisturbed.frontier
    assert resumed.formula.points == undisturbed.formula.points
    assert {file: data for file, data in _written(small).items() if file in before} == before
