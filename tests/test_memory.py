"""Memory does not grow with the corpus."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from tests.loopback import spawned
from tests.runs import remote, start, write_config, write_prompts


def resident_mb(tmp_path: Path, prompts: int, early: int) -> tuple[float, float]:
    """Return resident memory when `early` samples have ended, and when generation has ended."""
    write_prompts(
        tmp_path / "prompts.jsonl",
        [{"prompt": f"question {i}: what is {i} squared?", "i": i} for i in range(prompts)],
    )
    at_early = at_end = 0.0
    with spawned("--latency-ms", "10") as server:
        teacher = remote(server.base_url, endpoint={"max_concurrency": 200})
        config = write_config(tmp_path, teacher=teacher, generate={"max_concurrency": 200})
        process = start("run", config, "--json")
        watched = psutil.Process(process.pid)
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "progress" and event["done"] >= early and not at_early:
                at_early = watched.memory_info().rss / 2**20
            if event["event"] == "stage" and event["stage"] == "curate":
                at_end = watched.memory_info().rss / 2**20
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    return at_early, at_end


def test_8000_prompts_take_little_more_than_2000(tmp_path: Path) -> None:
    early, end = resident_mb(tmp_path, 8_000, 2_000)
    assert end <= early * 1.15, f"{early:.0f} MB became {end:.0f} MB"


@pytest.mark.nightly
def test_50000_prompts_end_within_15_percent_of_5000(tmp_path: Path) -> None:
    early, end = resident_mb(tmp_path, 50_000, 5_000)
    print(f"resident: {early:.0f} MB at 5,000 samples, {end:.0f} MB at 50,000")
    assert end <= early * 1.15, f"{early:.0f} MB became {end:.0f} MB"
