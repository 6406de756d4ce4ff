"""One process writes to a corpus; a dead one holds nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from corpusgen.errors import CorpusLocked
from corpusgen.lease import EXPIRES_S, Lease, Owner, holder, this_process

HOLD = """
import sys
from pathlib import Path
from corpusgen.lease import Lease
with Lease(Path(sys.argv[1]), "run"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_elsewhere(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Hold a lease in a process of its own until the block ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lease.json"


def forge(path: Path, **changes: object) -> Owner:
    """Write a lease that another process left, and return its owner."""
    owner = msgspec.structs.replace(this_process("run"), token="another", **changes)
    path.write_bytes(msgspec.json.encode(owner))
    return owner


def acquire(path: Path) -> None:
    with Lease(path, "generate") as lease:
        lease.check()
        assert holder(path) is not None
    assert not path.exists()
    assert list(path.parent.iterdir()) == []


def test_a_second_process_is_refused_and_told_who_holds_it(path: Path) -> None:
    with held_elsewhere(path) as process:
        with pytest.raises(CorpusLocked) as refused, Lease(path, "generate"):
            pass
        assert f"process {process.pid} on {socket.gethostname()}" in str(refused.value)
        assert "`corpusgen run`" in str(refused.value)
        found = holder(path)
        assert found is not None
        assert found.pid == process.pid
    assert process.returncode == 0
    assert not path.exists()
    acquire(path)


def test_the_same_process_cannot_hold_it_twice(path: Path) -> None:
    with Lease(path, "run"), pytest.raises(CorpusLocked), Lease(path, "run"):
        pass


def test_a_killed_owners_lease_is_taken_over_at_once(path: Path) -> None:
    with held_elsewhere(path) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert path.exists()
        assert holder(path) is None
        began = time.monotonic()
        acquire(path)
        assert time.monotonic() - began < 5


def test_a_stopped_owner_is_alive(path: Path) -> None:
    with held_elsewhere(path) as process:
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(CorpusLocked), Lease(path, "run"):
                pass
        finally:
            os.kill(process.pid, signal.SIGCONT)


def test_a_zombie_is_dead(path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE)
    try:
        while holder(path) is None:
            time.sleep(0.02)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and not yet reaped
        acquire(path)
    finally:
        process.communicate()


@pytest.mark.parametrize(
    "changes",
    [{"started": "1"}, {"pid": 2**22 + 1}],
    ids=["the pid was used again", "no such process"],
)
def test_a_dead_owner_on_this_host_holds_nothing(path: Path, changes: dict[str, object]) -> None:
    forge(path, **changes)
    assert holder(path) is None
    acquire(path)


@pytest.mark.parametrize(
    "changes",
    [{"boot": "another boot"}, {"namespace": "pid:[1]"}],
    ids=["another machine of the same name", "another container of the same name"],
)
def test_a_namesake_that_renews_is_alive(path: Path, changes: dict[str, str]) -> None:
    owner = forge(path, pid=2**22 + 1, **changes)
    assert holder(path) == owner
    with pytest.raises(CorpusLocked), Lease(path, "run"):
        pass


def test_a_lease_from_before_a_reboot_holds_nothing(path: Path) -> None:
    forge(path, boot="an earlier boot")
    os.utime(path, (1, 1))
    acquire(path)


def test_another_hosts_lease_expires_only_by_its_age(path: Path) -> None:
    owner = forge(path, host="another-host", boot="x", pid=1, started="1")
    assert holder(path) == owner
    with pytest.raises(CorpusLocked, match="on another-host is writing"), Lease(path, "run"):
        pass
    for age_s, alive in ((EXPIRES_S - 10, True), (EXPIRES_S + 10, False)):
        moment = time.time() - age_s
        os.utime(path, (moment, moment))
        assert (holder(path) is not None) is alive
    assert [p.name for p in path.parent.iterdir()] == ["lease.json"], "the clock's probe is removed"
    acquire(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"token": "x"}', b"\xff\xfe", b"\0" * 300],
    ids=["empty", "torn", "foreign", "incomplete", "binary", "zeros"],
)
def test_a_torn_lease_holds_nothing(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert holder(path) is None
    acquire(path)


def test_a_lease_that_was_stolen_is_noticed_before_a_commit(path: Path) -> None:
    with Lease(path, "run") as lease:
        lease.check()
        thief = forge(path)
        with pytest.raises(CorpusLocked, match="the lease was lost to another process"):
            lease.check()
    assert msgspec.json.decode(path.read_bytes(), type=Owner) == thief, "it is not ours to remove"


def test_a_lease_that_was_deleted_is_lost(path: Path) -> None:
    with Lease(path, "run") as lease:
        path.unlink()
        with pytest.raises(CorpusLocked):
            lease.check()


def test_a_loss_that_the_renewal_saw_is_never_forgotten(path: Path) -> None:
    with Lease(path, "run", renew_s=0.02) as lease:
        ours = path.read_bytes()
        forge(path)
        time.sleep(0.3)
        path.write_bytes(ours)
        with pytest.raises(CorpusLocked):
            lease.check()


def test_a_lease_is_renewed_while_it_is_held(path: Path) -> None:
    with Lease(path, "run", renew_s=0.02) as lease:
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert abs(path.stat().st_mtime - time.time()) < 5
        lease.check()


def test_it_is_released_when_the_block_raises(path: Path) -> None:
    with pytest.raises(ValueError, match="inside"), Lease(path, "run"):
        raise ValueError("inside")
    assert list(path.parent.iterdir()) == []


def test_one_of_many_takers_wins_a_dead_lease(path: Path) -> None:
    """As when the nodes of a job array start again after their machine went down."""
    for _ in range(40):
        forge(path, started="1")
        takers = 6
        start, end = threading.Barrier(takers), threading.Barrier(takers)
        said: list[str] = []

        def take(
            start: threading.Barrier = start, end: threading.Barrier = end, said: list[str] = said
        ) -> None:
            start.wait()
            try:
                with Lease(path, "run") as lease:
                    said.append("won")
                    end.wait()
                    lease.check()
            except CorpusLocked:
                said.append("locked")
                end.wait()

        threads = [threading.Thread(target=take) for _ in range(takers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(said) == ["locked"] * (takers - 1) + ["won"]
        assert list(path.parent.iterdir()) == []


def test_a_taker_that_died_while_it_took_over_is_no_obstacle(path: Path) -> None:
    forge(path, started="1")
    forge(path.with_name("lease.json.taking.tmp"), started="2")
    acquire(path)


def test_a_taker_that_is_alive_is_not_disturbed(path: Path) -> None:
    dead = forge(path, started="1")
    guard = path.with_name("lease.json.taking.tmp")
    forge(guard)
    with pytest.raises(CorpusLocked), Lease(path, "run"):
        pass
    assert guard.exists()
    assert msgspec.json.decode(path.read_bytes(), type=Owner) == dead
