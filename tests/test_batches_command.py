"""A batch teacher through the command line: run, status, batches, plan --show, and kills."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.loopback_batch import BatchScript, Running, serving, spawned
from tests.runs import corpus_of, corpusgen, start, succeeded, texts, write_config, write_prompts


def batched(base_url: str, **keys: Any) -> dict[str, Any]:
    """Return a batch teacher behind one endpoint."""
    price = {"input_per_mtok": "1", "output_per_mtok": "2"}
    teacher = {"kind": "openai_batch", "model": "m", "endpoints": [{"base_url": base_url}]}
    return teacher | {"price": price, "poll_s": 0.1, "lookup_s": 0.2} | keys


def made(directory: Path, server: Running, count: int, **keys: Any) -> Path:
    write_prompts(directory / "prompts.jsonl", [f"question {i}" for i in range(count)])
    keys.setdefault("teacher", batched(server.base_url))
    keys.setdefault("generate", {"partition_size": 8})
    return write_config(directory, **keys)


def until(server: Running, what: str) -> None:
    """Wait until the server was called so."""
    deadline = time.monotonic() + 30
    while what not in server.log()["calls"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def interrupt(process: subprocess.Popen[str]) -> str:
    """Send SIGTERM; return what was said, after the exit code 5."""
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 5, said
    return said


def test_a_run_ends_with_a_proven_corpus_at_half_the_price(tmp_path: Path) -> None:
    with serving(BatchScript(seconds=0.2)) as server:
        config = made(tmp_path, server, 20)
        succeeded(corpusgen("run", config))
        billed = server.billed()
    assert len(texts(corpus_of(tmp_path))) == 20
    output = succeeded(corpusgen("verify", tmp_path / "out", "--complete"))
    assert "20 samples = 20 generations + 0 failures + 0 pending; 20 attempts (0 lost)" in output
    ledger = json.loads(succeeded(corpusgen("ledger", tmp_path / "out", "--json")))
    cost = sum(500_000 * e["prompt_tokens"] + 1_000_000 * e["completion_tokens"] for e in billed)
    assert ledger["total"]["cost_picousd"] == cost


def test_sigterm_leaves_batches_that_status_and_the_next_run_know(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True)) as server:
        config = made(tmp_path, server, 20)
        process = start("run", config)
        until(server, "retrieve ok")
        said = interrupt(process)
        assert "20 requests in 1 batches go on at the provider" in said
        status = succeeded(corpusgen("status", tmp_path / "out"))
        assert (
            "20 requests in 1 batches are out at the provider, the oldest for 0.0 hours" in status
        )
        server.control(release=True)
        succeeded(corpusgen("run", config, "--confirm-above", "0"))
        assert len(server.log()["batches"]) == 1
    assert len(texts(corpus_of(tmp_path))) == 20
    assert "out at the provider" not in succeeded(corpusgen("status", tmp_path / "out"))


def test_batches_are_listed_and_cancelled_on_request(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True)) as server:
        config = made(tmp_path, server, 10)
        process = start("run", config)
        until(server, "retrieve ok")
        interrupt(process)
        (row,) = json.loads(succeeded(corpusgen("batches", config, "--json")))
        assert (row["status"], row["requests"], row["fetched"]) == ("in_progress", 10, False)
        listed = succeeded(corpusgen("batches", config))
        assert re.search(r"batch_0 .* in_progress .* no +10 +0 +0", listed), listed
        cancelled = succeeded(corpusgen("batches", config, "--cancel"))
        assert "cancelling" in cancelled
        server.control(hold=False)
        succeeded(corpusgen("run", config))
        statuses = [
            r["status"] for r in json.loads(succeeded(corpusgen("batches", config, "--json")))
        ]
        assert statuses == ["cancelled", "completed"]
        assert max(Counter(e["prompt"] for e in server.billed()).values()) == 1
    assert len(texts(corpus_of(tmp_path))) == 10
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_batches_needs_a_batch_teacher(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one"])
    config = write_config(tmp_path)
    succeeded(corpusgen("run", config))
    done = corpusgen("batches", config)
    assert done.returncode == 2
    assert "the configuration has no teacher of kind: openai_batch" in done.stderr


def test_plan_shows_the_lines_that_will_be_sent(tmp_path: Path) -> None:
    with serving() as server:
        config = made(tmp_path, server, 2)
        shown = json.loads(succeeded(corpusgen("plan", config, "--show", "1")))
        assert server.log()["calls"] == []
    assert shown["request"]["line"]["url"] == "/v1/chat/completions"
    assert shown["request"]["line"]["body"]["messages"][0]["content"] == "question 0"


def test_what_is_out_is_not_asked_again_online(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True)) as server:
        config = made(tmp_path, server, 4)
        process = start("run", config)
        until(server, "retrieve ok")
        interrupt(process)
        done = corpusgen("run", config, "--set", "teacher.kind=fake")
        assert done.returncode != 0
        online = {"kind": "openai", "model": "m", "endpoints": [{"base_url": server.base_url}]}
        done = corpusgen("run", made(tmp_path, server, 4, teacher=online))
        assert done.returncode == 2
        assert "Put it back for one run, which fetches what they bring" in done.stderr


def test_a_budget_holds_over_kills(tmp_path: Path) -> None:
    """At the cap the run ends with exit code 4, and the provider's bill is below the cap."""
    chance = random.Random(3)
    cap = "0.002"
    with spawned("--seconds", "0.3") as server:
        teacher = batched(server.base_url, requests_per_batch=4)
        config = made(
            tmp_path,
            server,
            80,
            teacher=teacher,
            generate={"partition_size": 8, "budget_usd": cap},
            sampling={"max_tokens": 60},
        )
        for _ in range(3):
            process = start("run", config)
            time.sleep(1.5 + chance.random() * 1.5)
            process.kill()
            process.communicate()
        done = corpusgen("run", config)
        bill = sum(
            500_000 * e["prompt_tokens"] + 1_000_000 * e["completion_tokens"]
            for e in server.billed()
        )
    assert done.returncode == 4, done.stderr
    assert 0.5 * 2_000_000_000 < bill <= 2_000_000_000
    succeeded(corpusgen("verify", tmp_path / "out"))


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.nightly)])
def test_kills_at_any_instant_lose_and_repeat_nothing(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    with spawned("--seconds", "0.4") as server:
        config = made(tmp_path, server, 60, teacher=batched(server.base_url, requests_per_batch=7))
        for _ in range(6):
            process = start("run", config)
            time.sleep(1.2 + chance.random() * 1.8)
            process.kill()
            process.communicate()
        succeeded(corpusgen("run", config))
        log = server.log()
    assert len(texts(corpus_of(tmp_path))) == 60
    assert max(Counter(e["prompt"] for e in log["billed"]).values()) == 1
    assert log["files"] == []
    attempts = corpus_of(tmp_path).attempts().to_table(columns=["attempt_id", "outcome"])
    answered = {r["attempt_id"] for r in attempts.to_pylist() if r["outcome"] == "answered"}
    assert answered == {e["custom_id"] for e in log["billed"]}
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))
