"""The benchmarks themselves: a bar that is missed fails, and each script runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench_adaptive import near_after, throughput
from benchmarks.bench_concurrency import rate_while_full
from benchmarks.measuring import Report

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("value", "limits", "code"),
    [
        (0.95, {"at_least": 0.95}, 0),
        (0.949, {"at_least": 0.95}, 1),
        (2.0, {"at_most": 2.0}, 0),
        (2.01, {"at_most": 2.0}, 1),
        (17, {"at_least": 16, "at_most": 16}, 1),
    ],
)
def test_a_missed_bar_is_the_exit_code(
    value: float, limits: dict[str, float], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report("title")
    report.row(client="ours", rate=1234.5, share=0.5)
    report.bar("a bar that holds", 1, at_least=1)
    report.bar("share", value, **limits)
    assert report.finish(as_json=True) == code
    said = json.loads(capsys.readouterr().out)
    assert said["passed"] == (code == 0)
    assert [bar["passed"] for bar in said["bars"]] == [True, code == 0]
    assert report.finish(as_json=False) == code
    text = capsys.readouterr().out
    assert "1,234" in text
    assert ("MISSED" in text) == bool(code)


def entry(at: float, in_flight: int = 1, tokens: int = 10) -> dict[str, Any]:
    return {"at": at, "latency_s": 0.1, "in_flight": in_flight, "completion_tokens": tokens}


def test_the_rate_while_full_leaves_start_and_end_out() -> None:
    starting = [entry(0.0, 1), entry(5.0, 2)]
    full = [entry(10 + step / 10, 3) for step in range(11)]
    assert rate_while_full([*starting, *full], 3) == pytest.approx(10, rel=0.15)
    assert rate_while_full([*starting, *full], 4) == pytest.approx(10, rel=0.15)


def test_nearness_is_a_mean_over_seconds() -> None:
    slow = [entry(float(second)) for second in range(20)]
    fast = [entry(20 + step / 10) for step in range(200)]
    assert throughput([*slow, *fast], 25, 35) == pytest.approx(100, rel=0.05)
    assert near_after([*slow, *fast], 0.0, 40, 100) == pytest.approx(25, abs=1)
    assert near_after(slow, 0.0, 20, 100) is None


@pytest.mark.nightly
@pytest.mark.parametrize(
    "command",
    [
        "bench_fanout --without-peers --answers 100 --in-flight 20 --rounds 1",
        "bench_logprobs --without-peers --answers 20 --in-flight 8 --rounds 1",
        "bench_concurrency --limits 8 --rounds 10",
        "bench_limits --seconds 6 --window 3",
        "bench_failover --seconds 3 --calm 3 --recovery 3",
        "bench_adaptive --seconds 8 --fixed 8 --models refusing",
    ],
)
def test_every_script_runs(command: str) -> None:
    """So short a run proves nothing: whether a bar is missed is not asked here."""
    name, *options = command.split()
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / f"{name}.py", "--json", *options],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    said = json.loads(done.stdout)
    assert said["rows"]
    assert said["passed"] == (done.returncode == 0)
