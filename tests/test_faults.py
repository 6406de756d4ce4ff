"""The ledger against the server's own books, while answers fail, endpoints die and money runs out.

Here the server's log is the truth: each of its requests must be one attempt of ours, and what it
bills must lie within what the ledger says.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from corpusgen.corpus import Corpus
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

NIGHTLY = bool(os.environ.get("CORPUSGEN_NIGHTLY"))

FAULTS = {"429": 0.10, "500": 0.03, "drop": 0.02, "torn": 0.01, "hang": 0.01}
OUTCOMES = {
    "429": "rate_limit",
    "500": "server_error",
    "drop": "connection",
    "torn": "torn_answer",
    "hang": "timeout",
    None: "answered",
}
"""What the ledger calls each fault."""

Row = dict[str, Any]
CLOCKS_S = 0.05
"""By how much the two sides' clocks may differ: they are read in two processes."""


def questions(count: int) -> list[str]:
    return [f"question {i}" for i in range(count)]


def attempts_of(corpus: Corpus) -> list[Row]:
    rows: list[Row] = corpus.attempts().to_table().to_pylist()
    for row in rows:
        row["at"] = row["started_at"].timestamp()
    assert len({row["attempt_id"] for row in rows}) == len(rows)
    return sorted(rows, key=lambda row: row["at"])


def matched(log: Sequence[Row], rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Pair each request of the server's log with its attempt; fail where one has none, or shares.

    A response that was seen left the server's id in the attempt's row as well.
    """
    by_id = {row["attempt_id"]: row for row in rows}
    pairs = [(entry, by_id.pop(entry["attempt_id"])) for entry in log]
    for entry, row in pairs:
        assert row["request_id"] in (None, f"req-{entry['number']}")
        assert -CLOCKS_S <= entry["at"] - row["at"] < 10
    return pairs


def tokens(row: Row) -> tuple[int, int]:
    return row["prompt_tokens"], row["completion_tokens"]


def cut(server: Running) -> list[Row]:
    """Wait until the server is idle, and return its log."""
    while server.stats()["in_flight"]:
        time.sleep(0.05)
    return server.log()


@pytest.mark.parametrize(("samples", "draws"), [(400, 1), (250, 3)])
def test_the_ledger_equals_the_server_s_own_log(tmp_path: Path, samples: int, draws: int) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(samples))
    shares = [f"--share={fault}={share}" for fault, share in FAULTS.items()]
    with spawned("--latency-ms", "20", "--seed", "4", *shares) as server:
        teacher = remote(server.base_url, timeout_s=1.0, endpoint={"max_concurrency": 32})
        retry = {"max_attempts": 10, "first_wait_s": 0.02, "longest_wait_s": 0.2}
        config = write_config(
            tmp_path,
            teacher=teacher,
            prompts=[{"path": "prompts.jsonl", "n": draws}],
            sampling={"temperature": 0.7, "max_tokens": 64},
            generate={"partition_size": 64, "retry": retry},
        )
        output = succeeded(corpusgen("run", config))
        log = cut(server)
    assert f"{samples * draws} planned, {samples * draws} answered" in output
    corpus = corpus_of(tmp_path)
    assert len(texts(corpus)) == samples * draws
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))
    rows = attempts_of(corpus)
    pairs = matched(log, rows)
    assert len(pairs) == len(rows) == len(log), "and no attempt that the server did not see"
    for entry, row in pairs:
        assert row["outcome"] == OUTCOMES[entry["fault"]], entry
        assert len(row["sample_ids"]) == entry["draws"]
        if row["outcome"] == "answered":
            assert tokens(row) == tokens(entry)
            assert row["http_status"] == 200
    faults = Counter(entry["fault"] for entry in log)
    assert faults.keys() == OUTCOMES.keys(), "each fault struck"
    whole = [entry for entry in log if entry["fault"] is None]
    answered: Counter[str] = Counter()
    for entry in whole:
        answered[entry["prompt"]] += entry["draws"]
    assert set(answered.values()) == {draws}, "nothing is paid twice"
    ledger = json.loads(succeeded(corpusgen("ledger", tmp_path / "out", "--json")))
    assert ledger["total"]["attempts"] == len(log)
    assert ledger["total"]["prompt_tokens"] == sum(tokens(entry)[0] for entry in whole)
    assert ledger["total"]["completion_tokens"] == sum(tokens(entry)[1] for entry in whole)


INPUT_PICOUSD, OUTPUT_PICOUSD = 1_000_000, 2_000_000
"""A token's price: 1 and 2 dollars a million."""
MAX_TOKENS = 400
WORST_PICOUSD = 110 * INPUT_PICOUSD + MAX_TOKENS * OUTPUT_PICOUSD
"""About what one request may cost."""
KILLS = 5


def bill(entry: Row) -> int:
    prompted, completed = tokens(entry)
    return int(prompted * INPUT_PICOUSD + completed * OUTPUT_PICOUSD)


def killed_runs(config: Path, server: Running, chance: random.Random) -> Iterator[int]:
    """Run and kill; yield after each kill how many requests the server has seen."""
    for _ in range(KILLS):
        seen = server.stats()["requests"]
        process = start("generate", config)
        while process.poll() is None and server.stats()["requests"] < seen + 5:
            time.sleep(0.02)
        time.sleep(chance.random() * 0.4)
        process.kill()
        process.communicate()
        yield server.stats()["requests"]


def test_no_bill_exceeds_the_budget_over_five_kills(tmp_path: Path) -> None:
    in_flight = 500 if NIGHTLY else 24
    samples = 50 * in_flight
    cap = int(5.5 * in_flight * WORST_PICOUSD)
    write_prompts(tmp_path / "prompts.jsonl", questions(samples))
    shape = ("--lengths", "lognormal", "--length-sigma", "1.2", "--answer-tokens", "60")
    speed = ("--latency-ms", "250", "--latency-sigma", "0.8")
    faults = ("--share=torn=0.02", "--share=500=0.02", "--share=429=0.02", "--bill-cancelled")
    with spawned(*shape, *speed, *faults) as server:
        teacher = remote(
            server.base_url,
            endpoint={"max_concurrency": in_flight},
            price={"input_per_mtok": "1", "output_per_mtok": "2"},
        )
        config = write_config(
            tmp_path,
            teacher=teacher,
            sampling={"temperature": 0.7, "max_tokens": MAX_TOKENS},
            generate={
                "partition_size": 256,
                "budget_usd": f"{cap / 10**12:.9f}",
                "retry": {"first_wait_s": 0.02, "longest_wait_s": 0.2},
            },
        )
        seen = list(killed_runs(config, server, random.Random(7)))
        done = corpusgen("generate", config)
        log = cut(server)
    assert seen[0] < seen[1] < seen[2], "the kills met runs that were asking"
    said = succeeded(done, code=4) + done.stderr
    assert "budget" in said
    corpus = corpus_of(tmp_path)
    rows = attempts_of(corpus)
    answered = texts(corpus)
    assert 0 < len(answered) < samples
    pairs = matched(log, rows)
    had = {row["attempt_id"] for _, row in pairs}
    never_arrived = {row["outcome"] for row in rows if row["attempt_id"] not in had}
    assert never_arrived <= {"lost"}, "killed between the intent and the wire"
    for entry, row in pairs:
        if row["cost_picousd"] is not None:
            assert row["cost_picousd"] == bill(entry), (entry, row)
        else:
            assert bill(entry) <= row["reserved_picousd"]
    known = total(row["cost_picousd"] for row in rows)
    lost = total(row["reserved_picousd"] for row in rows if row["cost_picousd"] is None)
    assert known <= total(map(bill, log)) <= known + lost <= cap
    assert Counter(row["outcome"] for row in rows)["lost"] > 0
    assert known + lost > cap - 2 * WORST_PICOUSD, "it is spent before the run gives up"
    succeeded(corpusgen("verify", tmp_path / "out"))
    twice = [row for row in rows if row["outcome"] == "answered"]
    assert len(twice) == len(answered), "what was answered is not asked again"


def total(amounts: Iterable[int | None]) -> int:
    return sum(amount or 0 for amount in amounts)


def test_a_replica_that_dies_costs_throughput_and_nothing_else(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(600))
    with serving_two("--latency-ms", "50") as (dying, other):
        endpoints = [{"base_url": s.base_url, "max_concurrency": 8} for s in (dying, other)]
        teacher = {"kind": "openai", "model": "m", "endpoints": endpoints}
        retry = {"first_wait_s": 0.02, "longest_wait_s": 0.5}
        config = write_config(tmp_path, teacher=teacher, generate={"retry": retry})
        process = start("run", config)
        while dying.stats()["requests"] < 40:
            time.sleep(0.02)
        dying.control(die_s=1.0)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        logs = dying.log(), other.log()
    assert "600 planned, 600 answered" in out
    corpus = corpus_of(tmp_path)
    assert len(texts(corpus)) == 600
    whole = [entry for log in logs for entry in log if entry["status"] == 200]
    assert Counter(entry["prompt"] for entry in whole).most_common(1)[0][1] == 1
    outcomes = Counter(row["outcome"] for row in attempts_of(corpus))
    assert outcomes["answered"] == 600
    assert 1 <= outcomes["connection"] <= 40, "the dead one is left alone, and looked at again"
    assert len(logs[0]) > 40, "and it works again when it is back"


def test_an_endpoint_that_answers_500_for_a_while_fails_no_sample(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(1200))
    with serving_two("--latency-ms", "50") as (sick, well):
        endpoints = [{"base_url": s.base_url, "max_concurrency": 8} for s in (sick, well)]
        teacher = {"kind": "openai", "model": "m", "endpoints": endpoints}
        config = write_config(tmp_path, teacher=teacher)
        process = start("run", config)
        while sick.stats()["requests"] < 40:
            time.sleep(0.02)
        fell = sick.control(fault="500")
        time.sleep(2)
        rose = sick.control(fault=None)
        _, err = process.communicate(timeout=90)
        assert process.returncode == 0, err
        meanwhile = well.stats(since=fell, until=rose)["answered"]
        errors = sick.stats(since=fell, until=rose)["requests"]
        back = sick.stats(since=rose)["answered"]
    assert len(texts(corpus_of(tmp_path))) == 1200
    assert meanwhile >= 0.7 * 8 / 0.05 * (rose - fell)
    assert errors < 60, "few are spent on finding out"
    assert back > 20


@contextmanager
def serving_two(*options: str) -> Iterator[tuple[Running, Running]]:
    with spawned(*options) as first, spawned(*options) as second:
        yield first, second
