"""Several processes ask as one: the limits and the budget hold over all, and no death loses any."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.loopback import Running, Script, serving, spawned
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

PRICE = {"input_per_mtok": "1", "output_per_mtok": "10"}


def prepared(tmp_path: Path, server: Running, samples: int, **keys: Any) -> Path:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(samples)])
    generate = {"workers": 3, "partition_size": 16, **keys.pop("generate", {})}
    teacher = remote(server.base_url, endpoint={"max_concurrency": 12}, price=PRICE)
    return write_config(tmp_path, teacher=teacher, generate=generate, **keys)


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def until_answered(server: Running, answers: int) -> None:
    deadline = time.monotonic() + 60
    while len(server.log()) < answers:
        assert time.monotonic() < deadline, "the run does not get going"
        time.sleep(0.02)


def verified(tmp_path: Path, *options: str) -> str:
    return succeeded(corpusgen("verify", tmp_path / "out", *options))


def test_workers_do_together_what_one_process_does(tmp_path: Path) -> None:
    with serving(Script(latency_ms=30)) as server:
        config = prepared(tmp_path, server, 200)
        done = corpusgen("run", config)
        output = succeeded(done)
        stats = server.stats()
    assert "200 planned, 200 answered" in output
    assert stats["requests"] == 200
    assert stats["peak_in_flight"] == 12, "the endpoint's limit holds over all workers, and is used"
    alone = tmp_path / "alone"
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))
    with serving(Script()) as server:
        again = prepared(tmp_path, server, 200, out=str(alone), generate={"workers": 1})
        succeeded(corpusgen("run", again))
    from corpusgen import load

    assert texts(corpus_of(tmp_path)) == texts(load(alone))


def test_growth_with_another_number_of_workers_asks_only_for_what_is_new(tmp_path: Path) -> None:
    with serving(Script()) as server:
        config = prepared(tmp_path, server, 40)
        succeeded(corpusgen("run", config))
        config = prepared(tmp_path, server, 90, generate={"workers": 2})
        succeeded(corpusgen("run", config))
        assert len(server.log()) == 90
    assert "90 samples = 90 generations" in verified(tmp_path, "--complete")


def test_a_budget_is_kept_to_the_cent_over_workers(tmp_path: Path) -> None:
    with serving(Script(latency_ms=20)) as server:
        config = prepared(tmp_path, server, 300, generate={"budget_usd": "0.02"})
        done = corpusgen("run", config)
        stats = server.stats()
    assert done.returncode == 4, done.stderr
    assert "budget" in done.stdout + done.stderr
    billed = stats["prompt_tokens"] * 1 + stats["completion_tokens"] * 10
    assert 0.01 < billed / 1e6 <= 0.02
    verified(tmp_path)


def test_a_signal_drains_and_commits_all_workers(tmp_path: Path) -> None:
    with spawned("--latency-ms", "100") as server:
        config = prepared(tmp_path, server, 2000)
        process = start("run", config)
        until_answered(server, 50)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 5, errors
        assert "Traceback" not in errors
        asked = len(server.log())
    assert not list((tmp_path / "out" / "journal").glob("*.log"))
    assert f"{asked:,} generations" in verified(tmp_path)


def test_a_terminal_interrupts_the_whole_group_and_still_drains(tmp_path: Path) -> None:
    with spawned("--latency-ms", "100") as server:
        config = prepared(tmp_path, server, 2000)
        process = start("run", config, process_group=0)
        until_answered(server, 50)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 5, errors
        asked = len(server.log())
    assert f"{asked:,} generations" in verified(tmp_path)


def test_a_killed_parent_takes_its_workers_along_and_loses_nothing(tmp_path: Path) -> None:
    kills = 6
    with spawned("--latency-ms", "50") as server:
        config = prepared(tmp_path, server, 400)
        for number in range(kills):
            process = start("run", config)
            until_answered(server, 40 * (number + 1))
            workers = workers_of(process)
            process.kill()
            process.communicate()
            _, alive = psutil.wait_procs(workers, timeout=10)
            assert not alive, "a worker outlived its parent"
        succeeded(corpusgen("run", config))
        sent = Counter(entry["prompt"] for entry in server.log())
    assert len(sent) == 400
    assert sum(sent.values()) <= 400 + kills * 12
    assert "400 samples = 400 generations + 0 failures" in verified(tmp_path, "--complete")


def test_a_killed_worker_stops_the_run_with_a_sentence_and_the_next_goes_on(
    tmp_path: Path,
) -> None:
    with spawned("--latency-ms", "100") as server:
        config = prepared(tmp_path, server, 300)
        process = start("run", config)
        until_answered(server, 30)
        workers_of(process)[0].kill()
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "a worker process ended unexpectedly" in errors
        assert "Traceback" not in errors
        succeeded(corpusgen("run", config))
        sent = Counter(entry["prompt"] for entry in server.log())
    assert sum(sent.values()) <= 300 + 12
    assert "300 samples = 300 generations + 0 failures" in verified(tmp_path, "--complete")


def test_a_wrong_key_stops_all_workers_with_one_sentence(tmp_path: Path) -> None:
    with serving(Script(api_key="right")) as server:
        config = prepared(tmp_path, server, 200)
        done = corpusgen("run", config)
        assert done.returncode == 1
        assert len(server.log()) <= 3, "one probe goes first, for all workers together"
    assert "HTTP 401" in done.stderr
    assert "Traceback" not in done.stderr


def test_workers_are_refused_for_a_teacher_that_each_would_load(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one"])
    config = write_config(tmp_path, teacher={"kind": "llama_cpp"}, generate={"workers": 2})
    done = corpusgen("run", config)
    assert done.returncode == 2
    assert "generate.workers is 2" in done.stderr


@pytest.mark.parametrize("samples", [1, 17])
def test_more_workers_than_partitions_are_not_started(tmp_path: Path, samples: int) -> None:
    with serving(Script()) as server:
        config = prepared(tmp_path, server, samples, generate={"workers": 8})
        succeeded(corpusgen("run", config))
        assert len(server.log()) == samples
    verified(tmp_path, "--complete")


def test_one_teacher_s_budget_ends_nothing_of_another_teacher(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(60)])
    write_prompts(tmp_path / "others.jsonl", [f"other {i}" for i in range(60)])
    with serving(Script(latency_ms=20)) as server:
        endpoint = {"max_concurrency": 4}
        poor = remote(server.base_url, endpoint=endpoint, price=PRICE, budget_usd="0.001")
        rich = remote(server.base_url, endpoint=endpoint, price=PRICE) | {"model": "other"}
        config = write_config(
            tmp_path,
            teacher=None,
            teachers={"poor": poor, "rich": rich},
            prompts=[
                {"path": "prompts.jsonl", "teacher": "poor"},
                {"path": "others.jsonl", "teacher": "rich"},
            ],
            generate={"workers": 2, "partition_size": 16},
        )
        done = corpusgen("run", config)
    assert done.returncode == 4, done.stderr
    answered = corpus_of(tmp_path).generations().to_table(columns=["teacher"])["teacher"]
    assert Counter(answered.to_pylist())["rich"] == 60


def test_what_a_killed_parent_left_is_committed_even_where_nothing_is_asked(tmp_path: Path) -> None:
    with spawned("--latency-ms", "50") as server:
        config = prepared(tmp_path, server, 200, generate={"budget_usd": "1"})
        process = start("run", config)
        until_answered(server, 60)
        workers = workers_of(process)
        process.kill()
        process.communicate()
        psutil.wait_procs(workers, timeout=10)
        sent = len(server.log())
        done = corpusgen("run", config, "--set", "generate.budget_usd=0.000001")
    assert done.returncode == 4, done.stderr
    assert not list((tmp_path / "out" / "journal").glob("*.log"))
    attempts = corpus_of(tmp_path).attempts().to_table(columns=["attempt_id"])
    assert len(attempts) >= sent
