"""A corpus that is gone on with: under a changed configuration, after a signal, in a notebook."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tests.loopback import Running, Script, serving
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


def models_asked(server: Running) -> Counter[str]:
    return Counter(entry["body"]["model"] for entry in server.log())


def wait_for(server: Running, requests: int) -> None:
    while len(server.log()) < requests:
        time.sleep(0.02)


def test_another_model_never_answers_for_the_one_that_was_planned(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(6)])
    with serving(Script()) as server:
        a, b = remote(server.base_url, model="A"), remote(server.base_url, model="B")
        config = write_config(tmp_path, teacher=None, teachers={"main": a})
        succeeded(corpusgen("run", config, "--limit", "2"))
        config = write_config(tmp_path, teacher=None, teachers={"main": b})
        assert "teacher.model changed" in corpusgen("run", config).stderr
        done = corpusgen("run", config, "--add")
        assert "4 samples were planned for a teacher" in succeeded(done, code=1)
        assert models_asked(server) == {"A": 2, "B": 6}
        config = write_config(tmp_path, teacher=None, teachers={"main": a})
        succeeded(corpusgen("run", config))
        assert models_asked(server) == {"A": 6, "B": 6}
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_a_teacher_may_be_renamed(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(6)])
    fake = {"kind": "fake"}
    succeeded(corpusgen("run", write_config(tmp_path, teacher=fake), "--limit", "2"))
    config = write_config(tmp_path, teacher=None, teachers={"another-name": fake})
    assert "6 planned, 6 answered" in succeeded(corpusgen("run", config))
    assert corpus_of(tmp_path).plan.samples == 6


def test_journals_elsewhere_are_found_again_or_asked_for(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(200)])
    elsewhere = {"journal_dir": str(tmp_path / "journals")}
    with serving(Script(latency_ms=150)) as server:
        teacher = remote(server.base_url, endpoint={"max_concurrency": 8})
        config = write_config(tmp_path, teacher=teacher, generate=elsewhere)
        process = start("run", config)
        wait_for(server, 40)
        process.kill()
        process.communicate()
        held = len(server.log())
        for override in ("sampling.temperature=0.1", "generate.journal_dir=null"):
            done = corpusgen("run", config, "--set", override)
            assert done.returncode == 1, override
            assert "Traceback" not in done.stderr
        assert "journals" in done.stderr
        assert len(server.log()) == held
        succeeded(corpusgen("run", config))
        assert len(server.log()) <= 200 + 8
    assert len(texts(corpus_of(tmp_path))) == 200
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_layout_keys_may_change_until_something_is_asked(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one", "two"])
    config = write_config(tmp_path)
    succeeded(corpusgen("plan", config))
    succeeded(corpusgen("plan", config, "--set", "sampling.top_logprobs=3"))
    succeeded(corpusgen("run", config))
    assert corpus_of(tmp_path).facts.top_logprobs == 0


def test_a_dead_endpoint_takes_no_samples_with_it(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(60)])
    with serving(Script(latency_ms=20)) as server:
        teacher = remote(server.base_url, endpoint={"max_concurrency": 4})
        dead = {"base_url": "http://127.0.0.1:9/v1", "max_concurrency": 4}
        teacher["endpoints"].append(dead)
        retry = {"first_wait_s": 0.05}
        config = write_config(tmp_path, teacher=teacher, generate={"retry": retry})
        assert "60 planned, 60 answered" in succeeded(corpusgen("run", config))
    outcomes = corpus_of(tmp_path).attempts().to_table()["outcome"].to_pylist()
    assert 1 <= outcomes.count("connection") < 30


def test_a_stop_does_not_wait_for_an_endpoint_that_is_paused(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["[[429]] never", *map(str, range(20))])
    with serving(Script(retry_after="3600")) as server:
        teacher = remote(server.base_url, endpoint={"max_concurrency": 1})
        config = write_config(tmp_path, teacher=teacher)
        process = start("run", config)
        wait_for(server, 1)
        time.sleep(0.5)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=20)
        assert time.monotonic() - began < 5
        assert process.returncode == 5


def test_a_pilot_with_failures_exits_3(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["[[400]] bad", "two", "three"])
    with serving(Script()) as server:
        config = write_config(tmp_path, teacher=remote(server.base_url))
        output = succeeded(corpusgen("run", config, "--limit", "2"), code=3)
    assert "the pilot is complete" in output
    assert "1 of 3 samples failed" in output


def test_an_interrupted_notebook_cell_drains_and_commits(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(300)])
    program = (
        "import asyncio, os, pathlib, signal, sys, threading, time\n"
        "import corpusgen\n"
        "def interrupt():\n"
        "    while not list(pathlib.Path(sys.argv[2]).glob('journal/*.log')):\n"
        "        time.sleep(0.02)\n"
        "    time.sleep(0.5)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "def cell():\n"
        "    threading.Thread(target=interrupt).start()\n"
        "    return corpusgen.run(sys.argv[1])\n"
        "loop = asyncio.new_event_loop()\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "async def main():\n"
        "    return cell()\n"
        "result = loop.run_until_complete(main())\n"
        "print(int(result.exit_code), result.generations)\n"
    )
    with serving(Script(latency_ms=100)) as server:
        teacher = remote(server.base_url, endpoint={"max_concurrency": 8})
        config = write_config(tmp_path, teacher=teacher)
        done = subprocess.run(
            [sys.executable, "-c", program, str(config), str(tmp_path / "out")],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        code, generations = map(int, done.stdout.split())
        assert code == 5
        assert generations == len(server.log()) < 300
        time.sleep(0.5)
        assert generations == len(server.log()), "the run goes on without its lease"
    assert not (tmp_path / "out/lease.json").exists()
    proof = json.loads(succeeded(corpusgen("verify", tmp_path / "out", "--json")))
    assert proof["generations"] == generations


def test_a_signal_while_planning_gives_the_lease_back(tmp_path: Path) -> None:
    rows = (f'{{"prompt": "question {i}"}}\n' for i in range(300_000))
    (tmp_path / "prompts.jsonl").write_text("".join(rows))
    process = start("plan", write_config(tmp_path))
    lease = tmp_path / "out/lease.json"
    while not lease.exists():
        time.sleep(0.02)
    time.sleep(0.3)
    process.terminate()
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 5
    assert "Traceback" not in errors
    assert not lease.exists()


def test_a_changed_reference_reaches_the_dataset_without_asking_again(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    path = write_prompts(tmp_path / "prompts.jsonl", [{"prompt": "2 + 2?", "reference": "5"}])
    with serving(Script()) as server:
        config = write_config(tmp_path, teacher=remote(server.base_url))
        succeeded(corpusgen("run", config))
        write_prompts(path, [{"prompt": "2 + 2?", "reference": "4", "source": "mended"}])
        succeeded(corpusgen("run", config))
        assert len(server.log()) == 1
    (shard,) = (tmp_path / "out/dataset/messages").glob("*.parquet")
    row = pq.ParquetFile(shard).read().to_pylist()[0]
    assert row["reference"] == "4"
    assert json.loads(row["metadata"]) == {"source": "mended"}
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))
