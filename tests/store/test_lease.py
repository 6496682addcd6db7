"""Tests that one driver at a time holds a directory, and when a lease is taken over."""

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
from tinynet_search.store.lease import STALE_SECONDS, Holder, Lease, live_holder, read_lease
from trainables.storage.folder import Folder, open_folder

pytestmark = pytest.mark.quick

HOLDER_SCRIPT = """
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
    monkeypatch.setattr(leases, "HEARTBEAT_SECONDS", 0.05)


def write_remote_lease(folder: Folder, **changes: Any) -> Holder:
    """Write the lease of a driver on another machine."""
    now = time.time()
    holder = Holder(
        3, "other", "search", "ann", "gpu-7", "another boot", 4711, "99", now - 500, now
    )
    holder = replace(holder, **changes)
    folder.write(f"{holder.name}.json", holder.to_json())
    return holder


def test_held_and_released(folder: Folder) -> None:
    with Lease(folder, "search x", "search") as lease:
        holder = live_holder(folder)
        assert holder is not None and not holder.released
        assert lease.stop_file == "lease/000001.stop"
        with (
            pytest.raises(
                RequestError,
                match=r"^search x is held by \S+@\S+ \(tinynet search, process \d+\) since 20.*\): "
                "wait for it",
            ),
            Lease(folder, "search x", "search"),
        ):
            pass
        lease.request_stop()
    assert live_holder(folder) is None
    assert folder.names("lease") == ["000001.json"]
    with Lease(folder, "search x", "search") as lease:
        assert lease.stop_file == "lease/000002.stop"
    assert folder.names("lease") == ["000002.json"]


def test_killed_holder_on_this_machine_is_detected_at_once(folder: Folder, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER_SCRIPT, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        assert live_holder(folder) is not None
        process.send_signal(signal.SIGKILL)
    assert live_holder(folder) is None
    with Lease(folder, "search x", "search") as lease:
        assert lease.stop_file == "lease/000002.stop"


def test_suspended_holder_on_this_machine_keeps_the_lease(folder: Folder, tmp_path: Path) -> None:
    """Its process exists, so the age of its last heartbeat does not matter."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER_SCRIPT, str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        holder = read_lease(folder)
        assert holder is not None
        old = replace(holder, seen=time.time() - 10 * STALE_SECONDS)
        folder.write(f"{old.name}.json", old.to_json())
        assert live_holder(folder) is not None
        process.kill()


def test_reused_process_id_is_a_different_process(folder: Folder) -> None:
    with Lease(folder, "search x", "search"):
        holder = read_lease(folder)
        assert holder is not None
    folder.write(f"{holder.name}.json", replace(holder, process="1", released=False).to_json())
    assert live_holder(folder) is None


def test_recent_heartbeat_from_another_machine_keeps_the_lease(folder: Folder) -> None:
    write_remote_lease(folder)
    with (
        pytest.raises(
            RequestError, match=r"held by ann@gpu-7 .*; it expires 60 s after its last heartbeat"
        ),
        Lease(folder, "x", "search"),
    ):
        pass
    write_remote_lease(folder, seen=time.time() - 2 * STALE_SECONDS)
    assert live_holder(folder) is None
    with Lease(folder, "search x", "search") as lease:
        assert lease.stop_file == "lease/000004.stop"


def test_slow_clock_of_another_machine_does_not_expire_the_lease(folder: Folder) -> None:
    """Its heartbeats are old, but they change."""
    old = time.time() - 5 * STALE_SECONDS
    write_remote_lease(folder, seen=old)

    def heartbeat(seconds: float) -> None:
        write_remote_lease(folder, seen=old + seconds)

    assert live_holder(folder, heartbeat) is not None


def test_fast_clock_of_another_machine_does_not_extend_the_lease(folder: Folder) -> None:
    """Heartbeats in the future count as old ones."""
    holder = write_remote_lease(folder, seen=time.time() + 3600)
    assert live_holder(folder) is None
    folder.write(f"{holder.name}.json", replace(holder, seen=1e300).to_json())
    with pytest.raises(RequestError, match="is damaged"):
        live_holder(folder)


def test_rival_that_takes_the_next_number_first_keeps_the_lease(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rival writes after the old holder was checked and before this process writes."""
    write_remote_lease(folder, released=True)
    is_live, rivals = leases._is_live, []

    def slow(*args: Any) -> bool:
        live = is_live(*args)
        if not rivals:
            rivals.append(Lease(folder, "search x", "search"))
            rivals[0].__enter__()
        return live

    monkeypatch.setattr(leases, "_is_live", slow)
    with pytest.raises(RequestError, match="is held by"), Lease(folder, "search x", "search"):
        pass
    assert rivals[0].held()
    rivals[0].__exit__(None, None, None)


def test_one_of_many_contenders_gets_the_lease(folder: Folder) -> None:
    write_remote_lease(folder, released=True)
    acquired, refused, barrier = [], [], threading.Barrier(8)

    def contend() -> None:
        barrier.wait()
        try:
            with Lease(folder, "search x", "search") as lease:
                acquired.append(lease.stop_file)
                time.sleep(0.5)
        except RequestError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(acquired), len(refused)) == (1, 7)


def test_holder_is_notified_when_the_lease_is_lost(folder: Folder) -> None:
    """A machine that was suspended for hours does not overwrite the lease of the new driver."""
    notified = threading.Event()
    with Lease(folder, "search x", "search") as lease:
        lease.when_lost(notified.set)
        other = write_remote_lease(folder)
        assert notified.wait(20)
        assert lease.lost
        again = threading.Event()
        lease.when_lost(again.set)
        assert again.is_set()
    assert read_lease(folder) == other


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"null", b"[]", b'{"number": 3}', b"[" * 100_000, b" " * 5000, b"\xff\xfe"],
)
def test_damaged_lease_is_reported(folder: Folder, tmp_path: Path, content: bytes) -> None:
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


def test_lease_number_above_the_limit_is_damaged(folder: Folder, tmp_path: Path) -> None:
    """Such a number would leave no higher number for a takeover."""
    holder = write_remote_lease(folder, number=10**12)
    with pytest.raises(RequestError, match=rf"{holder.number}.json is damaged .*: remove it"):
        live_holder(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"pid": "x"}, "pid: "),
        ({"seen": float("nan")}, ".*NaN"),
        ({"user": "a\nb"}, "user: "),
        ({"number": 4}, "number: expected 3, got 4"),
        ({"seen": 1e12}, "seen: "),
        ({"since": -1}, "since: "),
        ({"released": 0}, "released: "),
        ({"host": "x" * 300}, "host: "),
        ({"and": 1}, "and: "),
    ],
)
def test_invalid_values_are_reported(folder: Folder, change: dict[str, Any], words: str) -> None:
    values = {**json.loads(write_remote_lease(folder).to_json()), **change}
    folder.write("lease/000003.json", json.dumps(values).encode())
    with pytest.raises(RequestError, match=rf"is damaged \({words}"):
        read_lease(folder)


def test_other_files_are_ignored_and_kept(folder: Folder) -> None:
    for name in ("notes.txt", "12.json", "000009.stop", "９９９９９９.json"):
        Path(folder.url, "lease").mkdir(exist_ok=True)
        Path(folder.url, "lease", name).write_text("x")
    assert read_lease(folder) is None
    stray = [
        Path(folder.url, "lease", name) for name in ("000001.json~", "0.txt", "000000.json.bak")
    ]
    for file in stray:
        file.write_text("x")
    for _ in range(2):  # the second lease removes the file of the first one
        with Lease(folder, "search x", "search"):
            assert all(file.exists() for file in stray)


def test_heartbeat_counts_for_a_process_that_cannot_be_inspected(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example is a process of another user on a system where /proc hides it."""

    def forbidden(pid: int, number: int) -> None:
        raise PermissionError

    with Lease(folder, "search x", "search"):
        holder = read_lease(folder)
        assert holder is not None
        monkeypatch.setattr(leases, "_process_start", lambda pid: "")
        assert live_holder(folder) is None  # there is no such process
        monkeypatch.setattr(os, "kill", forbidden)
        assert live_holder(folder) == holder
        monkeypatch.undo()


def test_second_search_is_refused_and_sync_does_nothing(
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
