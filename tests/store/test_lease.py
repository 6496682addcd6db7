"""One driver at a time: who holds a directory, and when a lease is taken over."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from search_spaces import RequestError
from tests.search.helpers import tiny_config
from tinynet_search.cli.main import run
from tinynet_search.search.driver import run_search
from tinynet_search.store import lease as leases
from tinynet_search.store.directory import SearchStore
from tinynet_search.store.lease import STALE, Holder, Lease, live_holder, read_lease
from trainables.storage.folder import Folder, open_folder

pytestmark = pytest.mark.quick

HOLDING = """
import sys, time
from tinynet_search.store.lease import Lease
from trainables.storage.folder import open_folder
with Lease(open_folder(sys.argv[1]), "search x", "search"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return open_folder(tmp_path)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.05)


def elsewhere(folder: Folder, **changes: Any) -> Holder:
    """Leave the lease of a driver on another machine."""
    now = time.time()
    holder = Holder(
        3, "theirs", "search", "ann", "gpu-7", "another boot", 4711, "99", now - 500, now
    )
    holder = replace(holder, **changes)
    folder.write(f"{holder.name}.json", holder.to_json())
    return holder


def test_held_and_released(folder: Folder) -> None:
    with Lease(folder, "search x", "search") as lease:
        there = live_holder(folder)
        assert there is not None and not there.released
        assert lease.stop_file == "lease/000001.stop"
        with (
            pytest.raises(
                RequestError,
                match=r"^search x is held by \S+@\S+ \(tinynet search, process \d+\) since 20.*\): wait for it",
            ),
            Lease(folder, "search x", "search"),
        ):
            pass
        lease.ask_to_stop()
    assert live_holder(folder) is None
    assert folder.names("lease") == ["000001.json"]
    with Lease(folder, "search x", "search") as lease:
        assert lease.stop_file == "lease/000002.stop"
    assert folder.names("lease") == ["000002.json"]


def test_a_killed_holder_on_this_machine_is_told_at_once(folder: Folder, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert live_holder(folder) is not None
        process.send_signal(signal.SIGKILL)
    assert live_holder(folder) is None
    with Lease(folder, "search x", "search") as lease:
        assert lease.stop_file == "lease/000002.stop"


def test_a_sleeping_holder_on_this_machine_still_holds(folder: Folder, tmp_path: Path) -> None:
    """Its process lives: however long its last sign is ago."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        there = read_lease(folder)
        assert there is not None
        folder.write(f"{there.name}.json", replace(there, seen=time.time() - 10 * STALE).to_json())
        assert live_holder(folder) is not None
        process.kill()


def test_a_number_that_was_given_again_is_another_process(folder: Folder) -> None:
    with Lease(folder, "search x", "search"):
        there = read_lease(folder)
        assert there is not None
    folder.write(f"{there.name}.json", replace(there, process="1", released=False).to_json())
    assert live_holder(folder) is None


def test_elsewhere_a_sign_of_life_counts(folder: Folder) -> None:
    elsewhere(folder)
    with (
        pytest.raises(
            RequestError, match=r"held by ann@gpu-7 .* 60 s after a last sign it counts as gone"
        ),
        Lease(folder, "x", "search"),
    ):
        pass
    elsewhere(folder, seen=time.time() - 2 * STALE)
    assert live_holder(folder) is None
    with Lease(folder, "search x", "search") as lease:
        assert lease.stop_file == "lease/000004.stop"


def test_elsewhere_a_slow_clock_is_no_death(folder: Folder) -> None:
    """Its times are old, but they move."""
    old = time.time() - 5 * STALE
    elsewhere(folder, seen=old)

    def beats(seconds: float) -> None:
        elsewhere(folder, seen=old + seconds)

    assert live_holder(folder, beats) is not None


def test_elsewhere_a_fast_clock_is_no_life(folder: Folder) -> None:
    """Signs out of the future count for as much as old ones."""
    holder = elsewhere(folder, seen=time.time() + 3600)
    assert live_holder(folder) is None
    folder.write(f"{holder.name}.json", replace(holder, seen=1e300).to_json())
    with pytest.raises(RequestError, match="is damaged"):
        live_holder(folder)


def test_whoever_comes_between_keeps_it(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rival takes the next number after the old holder was judged and before ours is written."""
    elsewhere(folder, released=True)
    judge, rivals = leases._holds, []

    def slow(*args: Any) -> bool:
        held = judge(*args)
        if not rivals:
            rivals.append(Lease(folder, "search x", "search"))
            rivals[0].__enter__()
        return held

    monkeypatch.setattr(leases, "_holds", slow)
    with pytest.raises(RequestError, match="is held by"), Lease(folder, "search x", "search"):
        pass
    assert rivals[0].held()
    rivals[0].__exit__(None, None, None)


def test_one_of_many_gets_it(folder: Folder) -> None:
    elsewhere(folder, released=True)
    got, refused, gate = [], [], threading.Barrier(8)

    def contend() -> None:
        gate.wait()
        try:
            with Lease(folder, "search x", "search") as lease:
                got.append(lease.stop_file)
                time.sleep(0.5)
        except RequestError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(got), len(refused)) == (1, 7)


def test_who_lost_it_is_told(folder: Folder) -> None:
    """A machine that slept for hours finds another driver at work, and does not speak for it."""
    told = threading.Event()
    with Lease(folder, "search x", "search") as lease:
        lease.when_lost(told.set)
        theirs = elsewhere(folder)
        assert told.wait(20)
        assert lease.lost
        again = threading.Event()
        lease.when_lost(again.set)
        assert again.is_set()
    assert read_lease(folder) == theirs


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'{"number": 3}', b"[" * 100_000, b" " * 5000, b"\xff\xfe"],
)
def test_a_damaged_lease_is_named(folder: Folder, tmp_path: Path, content: bytes) -> None:
    folder.write("lease/000003.json", content)
    with (
        pytest.raises(
            RequestError, match=rf"^lease {tmp_path}/lease/000003.json is damaged"
        ) as refused,
        Lease(folder, "x", "search"),
    ):
        pass
    assert "\n" not in str(refused.value)
    assert (tmp_path / "lease" / "000003.json").read_bytes() == content


def test_a_number_that_no_driver_wrote(folder: Folder, tmp_path: Path) -> None:
    """It would leave no number to take over with."""
    holder = elsewhere(folder, number=10**12)
    with pytest.raises(RequestError, match=rf"{holder.number}.json is damaged .*: remove it"):
        live_holder(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pid": "x"}, "pid: "),
        ({"seen": float("nan")}, "NaN is no number"),
        ({"user": "a\nb"}, "user: "),
        ({"number": 4}, "number: it is 4"),
        ({"seen": 1e12}, "seen: "),
        ({"since": -1}, "since: "),
        ({"released": 0}, "released: "),
        ({"host": "x" * 300}, "host: "),
        ({"and": 1}, "and: "),
    ],
)
def test_hostile_values(folder: Folder, change: dict[str, Any], words: str) -> None:
    values = {**json.loads(elsewhere(folder).to_json()), **change}
    folder.write("lease/000003.json", json.dumps(values).encode())
    with pytest.raises(RequestError, match=rf"is damaged \({words}"):
        read_lease(folder)


def test_files_that_are_no_leases(folder: Folder) -> None:
    for name in ("notes.txt", "12.json", "000009.stop", "９９９９９９.json"):
        Path(folder.url, "lease").mkdir(exist_ok=True)
        Path(folder.url, "lease", name).write_text("x")
    assert read_lease(folder) is None
    stray = [
        Path(folder.url, "lease", name) for name in ("000001.json~", "0.txt", "000000.json.bak")
    ]
    for file in stray:
        file.write_text("x")
    for _ in range(2):  # the second sweeps what the first one left
        with Lease(folder, "search x", "search"):
            assert all(file.exists() for file in stray)


def test_a_holder_that_one_may_not_look_at_lives(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's process, where /proc hides it: its sign of life counts."""

    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    with Lease(folder, "search x", "search"):
        there = read_lease(folder)
        assert there is not None
        monkeypatch.setattr(leases, "_process", lambda pid: "")
        assert live_holder(folder) is None  # there is no such process
        monkeypatch.setattr(os, "kill", forbidden)
        assert live_holder(folder) == there
        monkeypatch.undo()


def test_a_second_search_is_refused_and_sync_leaves_it_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_config(tmp_path, trials=2)
    with Lease(SearchStore(config.url).folder, "search", "search"):
        with pytest.raises(
            RequestError,
            match=rf"^search {tmp_path}/demo is held by .* \(tinynet search, process \d+\) since",
        ):
            run_search(config)
        assert not (tmp_path / "demo" / "candidates").exists()
        assert run(["sync", "--search", "demo", "--storage", str(tmp_path)]) == 0
        assert "demo: held by " in capsys.readouterr().out
    assert not (tmp_path / "mlflow.db").exists()
