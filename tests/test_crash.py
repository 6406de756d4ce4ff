"""Kill the process at any instant: nothing that was answered is lost, and nothing stands twice."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.killing import HOOK
from tests.loopback import Running, spawned
from tests.runs import (
    corpus_of,
    corpusgen,
    remote,
    start,
    succeeded,
    texts,
    write_config,
    write_prompts,
)

CONCURRENCY = 16

KILL_AT_FILE_EVENT = f"""{HOOK}
out, at = os.path.realpath(sys.argv[1]), int(sys.argv[2])
sys.addaudithook(hook)
from corpusgen.cli import main
sys.argv = ["corpusgen", *sys.argv[3:]]
main()
"""
"""Run the command line, and die just before the n-th change to the corpus' files."""


def requests_sent(server: Running) -> Counter[str]:
    return Counter(entry["prompt"] for entry in server.log())


def test_25_kills_lose_nothing_and_repeat_only_what_was_in_flight(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(300)])
    chance = random.Random(5)
    kills = 25
    with spawned("--latency-ms", "60") as server:
        config = write_config(
            tmp_path,
            teacher=remote(server.base_url),
            generate={"partition_size": 32, "max_concurrency": CONCURRENCY},
        )
        for _ in range(kills):
            process = start("run", config)
            time.sleep(0.7 + chance.random() * 0.9)
            process.kill()
            process.communicate()
        succeeded(corpusgen("run", config))
        sent = requests_sent(server)
    corpus = corpus_of(tmp_path)
    assert len(texts(corpus)) == 300
    assert len(sent) == 300
    assert 300 <= sum(sent.values()) <= 300 + kills * CONCURRENCY
    output = succeeded(corpusgen("verify", tmp_path / "out", "--complete"))
    assert "300 samples = 300 generations + 0 failures + 0 pending" in output
    attempts = corpus.attempts().to_table(columns=["outcome"])["outcome"].to_pylist()
    assert len(attempts) >= sum(sent.values())
    assert attempts.count("answered") == 300


def killed_at(event: int, root: Path, *arguments: str | Path) -> bool:
    """Run a command and kill it at a file event; return whether it came that far."""
    done = subprocess.run(
        [sys.executable, "-c", KILL_AT_FILE_EVENT, str(root), str(event), *map(str, arguments)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode != 0


def file_events(step: int) -> list[int]:
    """Return which events of a run are tried: each, unless the suite is to be quick."""
    return list(range(1, 400, step))


@pytest.mark.parametrize("offset", range(4))
def test_a_kill_before_any_change_to_a_file_is_mended(tmp_path: Path, offset: int) -> None:
    """Cover every step of planning, journaling, committing, curating and exporting."""
    step = 1 if os.environ.get("CORPUSGEN_NIGHTLY") else 3
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(6)])
    config = write_config(tmp_path, generate={"partition_size": 3, "max_concurrency": 2})
    reference = tmp_path / "reference"
    succeeded(corpusgen("run", config, "--set", f"out={reference}"))
    expected = texts_at(reference)
    out = tmp_path / "out"
    event = 1 + offset
    tried = 0
    while killed_at(event, out, "run", config):
        succeeded(corpusgen("run", config))
        assert texts_at(out) == expected
        succeeded(corpusgen("verify", out, "--complete"))
        leftovers = list(out.rglob("*.log"))
        assert leftovers == []
        remove(out)
        event += 4 * step
        tried += 1
    assert tried >= 3


def texts_at(path: Path) -> dict[str, str]:
    from corpusgen import load

    return texts(load(path))


def remove(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory)
