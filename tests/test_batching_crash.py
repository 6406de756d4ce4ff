"""SIGKILL at any step of a batch: nothing is billed twice, and every sample ends once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.batch_corpus import Batched
from tests.killing import HOOK
from tests.loopback_batch import Running, spawned

NIGHTLY = pytest.mark.nightly
RUN = f"""{HOOK}
root, at, base_url, count = os.path.realpath(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
out = os.path.join(root, "out")
from pathlib import Path
from tests.batch_corpus import Batched
batched = Batched(Path(root), [f"question {{i}}" for i in range(int(count))])
if at:
    sys.addaudithook(hook)
reason = batched.run(base_url, requests_per_batch=5, poll_s=0.05, lookup_s=0.3)
assert reason is None, reason
"""
"""Bring a corpus of so many prompts to its end, and die before the n-th change to its files."""


def started(root: Path, server: Running, count: int, at: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(root), str(at), server.base_url, str(count)],
        cwd=Path(__file__).resolve().parent.parent,
        stderr=subprocess.PIPE,
    )


def ended(process: subprocess.Popen[bytes]) -> bool:
    """Wait; return whether it came to its end without being killed."""
    _, said = process.communicate(timeout=60)
    assert process.returncode in (0, -signal.SIGKILL), said.decode()
    return process.returncode == 0


def assert_paid_once(root: Path, server: Running, count: int) -> None:
    batched = Batched(root, [f"question {i}" for i in range(count)])
    assert len(batched.texts()) == count
    log = server.log()
    assert max(Counter(entry["prompt"] for entry in log["billed"]).values()) == 1
    answered = [row for row in batched.attempts() if row["outcome"] == "answered"]
    assert {r["attempt_id"] for r in answered} == {e["custom_id"] for e in log["billed"]}
    assert "lost" not in batched.outcomes()
    assert log["files"] == []
    assert list(batched.layout.batches.iterdir()) == []


def test_a_kill_at_each_call_of_the_provider_is_mended(tmp_path: Path) -> None:
    steps = [
        {"upload": ["kill"]},
        {"upload": ["done-kill"]},
        {"create": ["kill"]},
        {"create": ["done-kill"]},
        {"create": ["ok", "done-kill"]},
        {"retrieve": ["kill"]},
        {"content": ["kill"]},
        {"content": ["done-kill"]},
        {"delete": ["kill"]},
        {"delete": ["done-kill"]},
        {"delete": ["ok", "done-kill"]},
    ]
    with spawned("--seconds", "0.1") as server:
        for faults in steps:
            process = started(tmp_path, server, 40)
            server.control(faults=faults, kill_pid=process.pid)
            assert not ended(process), faults
        assert ended(started(tmp_path, server, 40))
        assert_paid_once(tmp_path, server, 40)


@pytest.mark.parametrize("first", [3, *(pytest.param(n, marks=NIGHTLY) for n in (8, 14))])
def test_a_kill_before_any_change_to_a_file_is_mended(tmp_path: Path, first: int) -> None:
    """Kill one corpus again and again, at ever later changes, until it is complete."""
    more = 2 if os.environ.get("CORPUSGEN_NIGHTLY") else 11
    at = first
    with spawned("--seconds", "0.1") as server:
        kills = 0
        while not ended(started(tmp_path, server, 12, at)):
            at += more
            kills += 1
        assert kills >= 2
        assert_paid_once(tmp_path, server, 12)
