"""Malicious files: weights that declare excessive sizes, and files that name a space to import.

They are rejected in one line, without allocating the memory and without running code.
"""

import json
import resource
import struct
import sys
import zipfile
from pathlib import Path

import pytest

from search_spaces import RequestError, get_space
from search_spaces.weights import load_weights
from tests.search.helpers import tiny_config
from tinynet_search.cli.main import run
from tinynet_search.plan.candidates import final_candidates, grow
from tinynet_search.plan.plan import load_or_create_plan
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.train_job import TrainJob, read_job


def _header(shape: list[int], end: int) -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    return struct.pack("<Q", len(header)) + header


BOMBS = {
    "exabyte_header": struct.pack("<Q", 2**60) + b"{}",
    "terabyte_tensor": _header([2**40], 2**42),
    "overflowing_sizes": _header([2**40, 2**40], 2**42),
    "deep_header": struct.pack("<Q", 200_000) + b'{"a":' * 40_000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_safetensors_with_false_sizes(tmp_path: Path, name: str) -> None:
    (tmp_path / "w.safetensors").write_bytes(BOMBS[name])
    _assert_rejected(tmp_path / "w.safetensors", "damaged")


def test_zip_bomb(tmp_path: Path) -> None:
    """A gigabyte of zeros, compressed to a megabyte; torch never compresses its archives."""
    with (
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("archive/data.pkl", "w") as file,
    ):
        for _ in range(64):
            file.write(bytes(2**24))
    _assert_rejected(tmp_path / "w.pth", "damaged")


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_file_of_terabytes(tmp_path: Path, suffix: str) -> None:
    with (tmp_path / f"w.{suffix}").open("wb") as file:
        file.truncate(2**42)
    _assert_rejected(tmp_path / f"w.{suffix}", "more than 16 GiB")


def _assert_rejected(file: Path, message: str) -> None:
    module = get_space("efficientnet_mini").network((0.4, 0.4, 0.4), 24).build()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(RequestError, match=message) as caught:
        load_weights(module, file)
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_space_named_in_a_file_is_not_imported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anyone with write access to shared storage can name a module in a file.

    It is imported only if the user passes the same name.
    """
    (tmp_path / "tinynet_named_space.py").write_text(
        "from search_spaces import get_space\nSpace = get_space('efficientnet_mini')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    custom = "tinynet_named_space:Space"
    store, job = SearchStore(str(tmp_path / "demo")), SearchStore(str(tmp_path / "job"))
    config = tiny_config(tmp_path)
    plan = load_or_create_plan(store, config.resolve())
    spec = grow(plan, store, 6, 2)[0].spec
    content = TrainJob("job", "me", "tinynet_e", spec, 96, 48, ["a", "b"], 1_700_000_000).to_json()
    job.write_json("job.json", {**content, "trial": {**content["trial"], "space": custom}})
    final = {
        "run": spec.run,
        "label": "tiny formula",
        "c": 0.3,
        "spec": {**spec.to_json(), "space": custom},
    }
    store.write_json("finals.json", [final])
    with pytest.raises(RequestError, match="not loaded from a file: pass --space"):
        final_candidates(store)
    with pytest.raises(RequestError, match="not loaded from a file: pass --space"):
        read_job(job)
    (tmp_path / "demo" / "finals.json").unlink()
    document = plan.to_json()
    store.write_json("plan.json", {**document, "space": {**document["space"], "name": custom}})
    for arguments in (
        [
            "sync",
            "--search",
            "demo",
            "--storage",
            str(tmp_path),
            "--tracking",
            f"sqlite:///{tmp_path}/m.db",
        ],
        [
            "sync",
            "--search",
            "job",
            "--storage",
            str(tmp_path),
            "--tracking",
            f"sqlite:///{tmp_path}/m.db",
        ],
        ["train", "--eval-only", "--weights", str(tmp_path / "job"), "--data", "petals"],
    ):
        assert run(arguments) == 2
        assert f"not loaded from a file: pass --space {custom}" in capsys.readouterr().err
    with pytest.raises(RequestError, match=r"space\.name was"):
        load_or_create_plan(store, config.resolve())
    assert "tinynet_named_space" not in sys.modules
    assert store.plan(custom) is not None
    assert read_job(job, custom) is not None
    sys.modules.pop("tinynet_named_space", None)
