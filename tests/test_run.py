"""Whole runs through the command line, against the scripted server and the fake teacher."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pyarrow.compute as pc
import pytest

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


def questions(count: int) -> list[str]:
    return [f"question {i}" for i in range(count)]


def config_for(tmp_path: Path, server: Running, **keys: object) -> Path:
    teacher = remote(server.base_url, endpoint={"max_concurrency": 16})
    return write_config(tmp_path, **{"teacher": teacher, **keys})


def requests(server: Running) -> int:
    return len(server.log())


def test_the_same_command_again_finds_everything_done(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(40))
    with serving(Script()) as server:
        config = config_for(tmp_path, server, generate={"partition_size": 16})
        first = succeeded(corpusgen("run", config))
        assert "40 planned, 40 answered" in first
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.parquet")}
        second = corpusgen("run", config)
        assert succeeded(second) == first
        assert "found done" in second.stderr
        assert requests(server) == 40
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*.parquet")}


def test_three_bad_samples_of_1000_are_three_failures(tmp_path: Path) -> None:
    prompts = questions(1000)
    prompts[100] = "[[400]] this one is always refused"
    prompts[200] = "[[torn]] this answer always breaks off"
    prompts[300] = "[[hang]] this one never answers"
    prompts[400] = "[[filtered]] this answer is filtered"
    prompts[500] = "[[length]] this answer is cut off"
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    with serving(Script(latency_ms=1)) as server:
        teacher = remote(server.base_url, timeout_s=1.0, endpoint={"max_concurrency": 64})
        retry = {"max_attempts": 2, "first_wait_s": 0.01}
        config = write_config(
            tmp_path, teacher=teacher, generate={"partition_size": 256, "retry": retry}
        )
        output = succeeded(corpusgen("run", config), code=3)
    assert "997 answered, 3 failed" in output
    corpus = corpus_of(tmp_path)
    failures = corpus.failures().to_table().to_pylist()
    assert sorted((row["reason"], row["attempts"]) for row in failures) == [
        ("rejected", 1),
        ("timeout", 2),
        ("torn_answer", 2),
    ]
    assert all(row["detail"] for row in failures)
    generations = corpus.generations().to_table(columns=["messages", "finish_reason", "sample_id"])
    assert generations.num_rows == 997
    reasons = pc.value_counts(generations["finish_reason"]).to_pylist()
    assert {str(r["values"]): r["counts"] for r in reasons} == {
        "stop": 995,
        "content_filter": 1,
        "length": 1,
    }
    verdicts = corpus.verdicts().to_table().to_pylist()
    dropped = {row["reason"] for row in verdicts if row["filter"] == "finish_reason"}
    assert len(verdicts) == 997
    assert len(dropped) == 2
    rows = json.loads((tmp_path / "out/dataset/messages/export.json").read_bytes())["rows"]
    assert rows == {"train": 995}
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_failed_samples_are_asked_again_only_on_request(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [*questions(9), "[[once:400]] mends itself"])
    with serving(Script()) as server:
        config = config_for(tmp_path, server)
        succeeded(corpusgen("run", config), code=3)
        succeeded(corpusgen("run", config), code=3)
        assert requests(server) == 10
        succeeded(corpusgen("run", config, "--retry-failed=timeout"), code=3)
        assert requests(server) == 10
        output = succeeded(corpusgen("run", config, "--retry-failed=rejected"))
        assert requests(server) == 11
    assert "10 answered" in output
    assert " failed" not in output
    assert len(texts(corpus_of(tmp_path))) == 10
    proof = json.loads(succeeded(corpusgen("verify", tmp_path / "out", "--json")))
    assert (proof["generations"], proof["failures"], proof["pending"]) == (10, 0, 0)


def test_a_pilot_is_continued_without_loss(tmp_path: Path) -> None:
    write_prompts(tmp_path / "a.jsonl", questions(60))
    write_prompts(tmp_path / "b.jsonl", [f"other {i}" for i in range(5)])
    with serving(Script()) as server:
        prompts = [{"path": "a.jsonl"}, {"path": "b.jsonl"}]
        config = config_for(tmp_path, server, prompts=prompts, generate={"partition_size": 32})
        output = succeeded(corpusgen("run", config, "--limit", "20"))
        assert "65 planned, 20 answered, 45 pending" in output
        pilot = texts(corpus_of(tmp_path))
        sets = corpus_of(tmp_path).generations().to_table(columns=["prompt_set"])
        assert sets["prompt_set"].to_pylist().count("b") == 5
        succeeded(corpusgen("run", config, "--limit", "20"))
        assert requests(server) == 20
        succeeded(corpusgen("run", config))
        assert requests(server) == 65
    everything = texts(corpus_of(tmp_path))
    assert len(everything) == 65
    assert pilot.items() <= everything.items()
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_growth_asks_only_for_what_is_new(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl", questions(10))
    with serving(Script()) as server:
        config = config_for(tmp_path, server)
        succeeded(corpusgen("run", config))
        files = {p: p.read_bytes() for p in (tmp_path / "out/generations").iterdir()}
        write_prompts(path, questions(14))
        succeeded(corpusgen("run", config))
        assert requests(server) == 14
        succeeded(corpusgen("run", config, "--set", "prompts.0.n=2"))
        assert requests(server) == 28
    assert len(texts(corpus_of(tmp_path))) == 28
    assert all(path.read_bytes() == content for path, content in files.items())
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_a_removed_row_is_kept_and_not_exported(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl", questions(10))
    config = write_config(tmp_path)
    succeeded(corpusgen("run", config))
    write_prompts(path, questions(7))
    done = corpusgen("run", config)
    assert "7 planned, 7 answered" in succeeded(done)
    assert "3 retired" in done.stderr
    assert len(texts(corpus_of(tmp_path))) == 10
    rows = json.loads((tmp_path / "out/dataset/messages/export.json").read_bytes())["rows"]
    assert rows == {"train": 7}
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_a_change_that_would_orphan_samples_is_refused_by_name(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(5))
    config = write_config(tmp_path)
    succeeded(corpusgen("run", config))
    done = corpusgen("run", config, "--set", "sampling.temperature=0.2")
    assert done.returncode == 1
    assert "sampling.temperature changed from 0.7 to 0.2" in done.stderr
    assert "--add" in done.stderr
    done = corpusgen("run", config, "--set", "generate.partition_size=7")
    assert done.returncode == 1
    assert "generate.partition_size changed from 1024 to 7" in done.stderr
    output = succeeded(corpusgen("run", config, "--set", "sampling.temperature=0.2", "--add"))
    assert "10 planned, 10 answered" in output
    assert "10 planned, 10 answered" in succeeded(corpusgen("run", config))


def test_a_plan_that_nothing_was_asked_of_may_change(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(5))
    config = write_config(tmp_path)
    assert "5 of 5 samples are still to be asked" in succeeded(corpusgen("plan", config))
    done = corpusgen("run", config, "--set", "sampling.temperature=0.2")
    assert "5 planned, 5 answered" in succeeded(done)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_commits_and_leaves_with_5(tmp_path: Path, number: signal.Signals) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(400))
    with serving(Script(latency_ms=100)) as server:
        config = config_for(tmp_path, server, generate={"partition_size": 64})
        process = start("run", config)
        while requests(server) < 60:
            time.sleep(0.02)
        process.send_signal(number)
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 5, errors
        sent = requests(server)
        assert "Traceback" not in errors
        assert "Run the same command again" in output
        answered = len(texts(corpus_of(tmp_path)))
        assert answered == sent < 400
        assert not list((tmp_path / "out/journal").iterdir())
        status = succeeded(corpusgen("status", tmp_path / "out"))
        assert "stopped" in status
        succeeded(corpusgen("run", config))
        assert requests(server) == 400
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_a_drain_that_takes_too_long_cancels_and_says_so_in_the_ledger(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [*questions(20), "[[hang]] never"])
    with serving(Script()) as server:
        config = config_for(tmp_path, server, generate={"drain_s": 0.5})
        process = start("run", config)
        while requests(server) < 21:
            time.sleep(0.02)
        time.sleep(0.3)
        process.terminate()
        process.communicate(timeout=30)
        assert process.returncode == 5
    outcomes = corpus_of(tmp_path).attempts().to_table()["outcome"].to_pylist()
    assert outcomes.count("cancelled") == 1
    assert outcomes.count("answered") == 20
    succeeded(corpusgen("verify", tmp_path / "out"))


def test_a_second_process_is_refused_and_status_shows_the_first(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(200))
    with serving(Script(latency_ms=200)) as server:
        config = config_for(tmp_path, server)
        process = start("run", config)
        while requests(server) < 10:
            time.sleep(0.02)
        refused = corpusgen("run", config)
        assert refused.returncode == 1
        assert f"process {process.pid}" in refused.stderr
        status = json.loads(succeeded(corpusgen("status", tmp_path / "out", "--json")))
        assert status["running"]
        assert status["owner"]["pid"] == process.pid
        process.kill()
        process.communicate()
        succeeded(corpusgen("run", config))
    assert len(texts(corpus_of(tmp_path))) == 200


@pytest.mark.parametrize(
    ("marker", "code", "words"),
    [("[[401]]", 1, "key"), ("[[404]]", 1, "model"), ("[[quota]]", 4, "quota")],
)
def test_a_fatal_answer_stops_the_run_after_the_first_answers(
    tmp_path: Path, marker: str, code: int, words: str
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"{marker} question {i}" for i in range(500)])
    with serving(Script()) as server:
        config = config_for(tmp_path, server)
        done = corpusgen("run", config)
        assert done.returncode == code, done.stderr
        assert requests(server) <= 32
    assert words in (done.stderr + done.stdout).lower()
    assert "Traceback" not in done.stderr
    proof = json.loads(succeeded(corpusgen("verify", tmp_path / "out", "--json")))
    assert proof["failures"] == 0


def test_too_many_failures_stop_the_run(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"[[400]] question {i}" for i in range(500)])
    with serving(Script()) as server:
        config = config_for(tmp_path, server)
        done = corpusgen("run", config)
        assert done.returncode == 1
        assert "generate.max_failure_rate" in done.stderr
        assert 50 <= requests(server) < 120
    succeeded(corpusgen("verify", tmp_path / "out"))


def test_a_budget_is_never_overshot_and_exits_4_with_a_dataset(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(300))
    price = {"input_per_mtok": "1.00", "output_per_mtok": "2.00"}
    with serving(Script()) as server:
        teacher = remote(server.base_url, price=price, endpoint={"max_concurrency": 16})
        config = write_config(tmp_path, teacher=teacher, generate={"budget_usd": 0.004})
        output = succeeded(corpusgen("run", config), code=4)
        assert "budget of $0.004 is reached" in output
        log = server.log()
        billed = sum(
            entry["prompt_tokens"] * 1e-6 + entry["completion_tokens"] * 2e-6 for entry in log
        )
        assert 0 < billed <= 0.004
        succeeded(corpusgen("run", config), code=4)
        ledger = json.loads(succeeded(corpusgen("ledger", tmp_path / "out", "--json")))
        assert ledger["charged_picousd"] <= 4_000_000_000
        assert (tmp_path / "out/dataset/messages/README.md").exists()
        succeeded(corpusgen("run", config, "--set", "generate.budget_usd=1"))
        assert requests(server) == 300
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_the_ledger_equals_the_servers_own_log(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(200))
    shares = {"429": 0.1, "500": 0.05, "drop": 0.02, "torn": 0.02}
    with serving(Script(shares=shares, retry_after="0")) as server:
        config = config_for(
            tmp_path,
            server,
            generate={"retry": {"max_attempts": 10, "first_wait_s": 0.01}},
        )
        succeeded(corpusgen("run", config))
        log = server.log()
    ledger = json.loads(succeeded(corpusgen("ledger", tmp_path / "out", "--json")))
    assert ledger["total"]["attempts"] == len(log)
    assert ledger["total"]["answered"] == 200
    assert set(ledger["by_outcome"]) == {
        "answered",
        "connection",
        "rate_limit",
        "server_error",
        "torn_answer",
    }
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_json_events_are_lines_and_end_with_the_exit_code(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(5))
    config = write_config(tmp_path)
    lines = succeeded(corpusgen("run", config, "--json")).splitlines()
    events = [json.loads(line) for line in lines]
    assert {"planned", "progress", "committed", "curated", "exported"} <= {
        event["event"] for event in events
    }
    assert events[-1]["event"] == "finished"
    assert events[-1]["exit_code"] == 0
    assert events[-1]["kept"] == 5


def test_two_teachers_answer_in_one_corpus(tmp_path: Path) -> None:
    write_prompts(tmp_path / "a.jsonl", questions(20))
    write_prompts(tmp_path / "b.jsonl", questions(20))
    config = write_config(
        tmp_path,
        teacher=None,
        teachers={"small": {"kind": "fake"}, "large": {"kind": "fake", "model": "fake-large"}},
        prompts=[
            {"path": "a.jsonl", "teacher": "small"},
            {"path": "b.jsonl", "teacher": "large", "n": 2, "sampling": {"temperature": 1.0}},
        ],
    )
    assert "60 planned, 60 answered" in succeeded(corpusgen("run", config))
    teachers = corpus_of(tmp_path).generations().to_table(columns=["teacher"])["teacher"]
    counts = {str(c["values"]): c["counts"] for c in pc.value_counts(teachers).to_pylist()}
    assert counts == {"small": 20, "large": 40}


def test_bad_prompts_become_failures_on_request(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "one"}\n{"prompt": ""}\n{"prompt": "three"}\n')
    config = write_config(tmp_path)
    done = corpusgen("run", config)
    assert done.returncode == 1
    assert "prompts.jsonl:2: " in done.stderr
    assert "--skip-bad-prompts" in done.stderr
    output = succeeded(corpusgen("run", config, "--skip-bad-prompts"), code=3)
    assert "3 planned, 2 answered, 1 failed" in output
    failure = corpus_of(tmp_path).failures().to_table().to_pylist()[0]
    assert (failure["reason"], failure["attempts"], failure["draw"]) == ("bad_prompt", 0, None)
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_plan_shows_requests_as_they_would_be_sent(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(5))
    with serving(Script()) as server:
        config = config_for(tmp_path, server)
        output = succeeded(corpusgen("plan", config, "--show", "1"))
        assert requests(server) == 0
        shown = json.loads(output)
        succeeded(corpusgen("run", config))
        sent = [entry["body"] for entry in server.log()]
    assert shown["request"]["body"] in sent


@pytest.mark.parametrize("count", [10**12, -5, 2**31])
def test_a_usage_that_cannot_be_is_charged_at_the_reservation(tmp_path: Path, count: int) -> None:
    answer = {
        "model": "m",
        "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": count, "completion_tokens": 1},
    }
    write_prompts(tmp_path / "prompts.jsonl", [f"{i} [[raw]]{json.dumps(answer)}" for i in "abc"])
    price = {"input_per_mtok": "1.00", "output_per_mtok": "2.00"}
    with serving(Script()) as server:
        teacher = remote(server.base_url, price=price)
        config = write_config(tmp_path, teacher=teacher, generate={"budget_usd": 1})
        succeeded(corpusgen("run", config))
    ledger = json.loads(succeeded(corpusgen("ledger", tmp_path / "out", "--json")))
    assert ledger["total"]["unknown_cost"] == 3
    assert ledger["total"]["cost_picousd"] == 0
    assert ledger["charged_picousd"] > 3 * 64 * 2 * 10**6
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))
