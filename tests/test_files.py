"""A crash at any instant leaves the old file or the new one, and one writer wins."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from corpusgen.files import (
    TEMPORARY_SUFFIX,
    put_if_absent,
    temporary_name,
    write_file,
    written_aside,
)


def test_a_file_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "file"
    write_file(target, b"old")
    with written_aside(target) as temporary:
        temporary.write_bytes(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_inside_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: type[BaseException]
) -> None:
    target = tmp_path / "file"
    write_file(target, b"old")

    def broken_off() -> None:
        with written_aside(target) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        broken_off()
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_block_that_writes_nothing_is_a_fault_and_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_file(target, b"old")
    with pytest.raises(FileNotFoundError), written_aside(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"


def test_temporary_names_are_beside_the_target_and_never_the_same(tmp_path: Path) -> None:
    names = {temporary_name(tmp_path / "file") for _ in range(100)}
    assert len(names) == 100
    assert all(name.parent == tmp_path and name.suffix == TEMPORARY_SUFFIX for name in names)


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "file"
    write_file(target, b"old" * 100_000)
    process = multiprocessing.get_context("spawn").Process(target=rewrite_forever, args=(target,))
    process.start()
    try:
        deadline = time.monotonic() + 20
        while target.read_bytes().startswith(b"old") and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.05)
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    content = target.read_bytes()
    assert content in (b"a" * 300_000, b"b" * 300_000)
    assert all(p == target or p.suffix == TEMPORARY_SUFFIX for p in tmp_path.iterdir())


def rewrite_forever(target: Path) -> None:
    while True:
        write_file(target, b"a" * 300_000)
        write_file(target, b"b" * 300_000)


def test_put_if_absent_creates_once(tmp_path: Path) -> None:
    target = tmp_path / "made" / "marker"
    assert put_if_absent(target, b"first")
    assert not put_if_absent(target, b"second")
    assert target.read_bytes() == b"first"
    assert list(target.parent.iterdir()) == [target]


def test_put_if_absent_has_exactly_one_winner_whose_content_is_whole(tmp_path: Path) -> None:
    for attempt in range(20):
        target = tmp_path / str(attempt) / "marker"
        start = threading.Barrier(8)
        won: list[int] = []

        def compete(
            name: int, target: Path = target, start: threading.Barrier = start, won: list[int] = won
        ) -> None:
            start.wait()
            if put_if_absent(target, str(name).encode() * 5000):
                won.append(name)

        threads = [threading.Thread(target=compete, args=(name,)) for name in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert target.read_bytes() == str(won[0]).encode() * 5000
        assert list(target.parent.iterdir()) == [target]


def test_a_directory_that_cannot_be_written_is_an_os_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        write_file(blocked / "below", b"x")
    with pytest.raises(OSError, match="file"):
        put_if_absent(blocked / "below", b"x")
