"""Whole runs against servers with limits: draws in one request, many endpoints, budgets, caps."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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

UNSEEDED = {"temperature": 0.7, "max_tokens": 64}
ONE_TRY = {"max_attempts": 1}
PRICE = {"input_per_mtok": 1, "output_per_mtok": 2}
"""1,000,000 picodollars a prompt token, 2,000,000 one of an answer."""


def questions(count: int) -> list[str]:
    return [f"question {i}" for i in range(count)]


def several(servers: Sequence[Running], *own: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """Return a teacher behind some endpoints named a, b, …, each with keys of its own."""
    endpoints = [
        {"base_url": server.base_url, "name": name, "max_concurrency": 8, **keys_of_one}
        for server, name, keys_of_one in zip(servers, "abc", own or [{}] * 3, strict=False)
    ]
    return {"kind": "openai", "model": "m", "endpoints": endpoints, **keys}


def attempts_of(directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = corpus_of(directory).attempts().to_table().to_pylist()
    return found


def failures_of(directory: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = corpus_of(directory).failures().to_table().to_pylist()
    return found


def draws_by_prompt(server: Running) -> dict[str, list[int]]:
    """Return how many draws each request for a prompt asked for, in order."""
    found = defaultdict(list)
    for entry in server.log():
        found[entry["prompt"]].append(entry["draws"])
    return found


# Draws in one request


def test_draws_of_a_prompt_go_together_and_are_billed_together(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(10))
    with serving() as server:
        config = write_config(
            tmp_path,
            prompts=[{"path": "prompts.jsonl", "n": 6}],
            sampling=UNSEEDED,
            teacher=remote(server.base_url, draws_per_request=4, price=PRICE),
        )
        assert "60 planned, 60 answered" in succeeded(corpusgen("run", config))
        asked, billed = draws_by_prompt(server), server.stats()
    assert {tuple(sorted(draws)) for draws in asked.values()} == {(2, 4)}
    assert len(texts(corpus_of(tmp_path))) == 60
    rows = attempts_of(tmp_path)
    assert Counter(len(row["sample_ids"]) for row in rows) == {4: 10, 2: 10}
    assert sum(row["completion_tokens"] for row in rows) == billed["completion_tokens"]
    cost = billed["prompt_tokens"] * 1_000_000 + billed["completion_tokens"] * 2_000_000
    assert sum(row["cost_picousd"] for row in rows) == cost
    assert all(row["cost_picousd"] <= row["reserved_picousd"] for row in rows)
    samples = corpus_of(tmp_path).generations().to_table(columns=["prompt_id", "draw", "text"])
    by_prompt: dict[str, set[str]] = defaultdict(set)
    for row in samples.to_pylist():
        by_prompt[row["prompt_id"]].add(row["text"])
    assert sum(len(found) for found in by_prompt.values()) > 30, "draws differ"
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_samples_with_a_seed_of_their_own_are_asked_alone(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(4))
    with serving() as server:
        config = write_config(
            tmp_path,
            prompts=[{"path": "prompts.jsonl", "n": 3}],
            sampling=UNSEEDED | {"seed": 7},
            teacher=remote(server.base_url),
        )
        succeeded(corpusgen("run", config))
        asked = draws_by_prompt(server)
        seeds = [entry["seed"] for entry in server.log()]
    assert set(map(tuple, asked.values())) == {(1, 1, 1)}
    assert len(set(seeds)) == 12


def test_only_the_missing_draws_are_asked_for_again(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(5))
    with serving(Script(most_choices=3)) as server:
        config = write_config(
            tmp_path,
            prompts=[{"path": "prompts.jsonl", "n": 5}],
            sampling=UNSEEDED,
            teacher=remote(server.base_url),
        )
        assert "25 planned, 25 answered" in succeeded(corpusgen("run", config))
        asked = draws_by_prompt(server)
    assert set(map(tuple, asked.values())) == {(5, 1, 1)}
    assert len(texts(corpus_of(tmp_path))) == 25
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


@pytest.mark.parametrize("script", [Script(most_choices=1), Script(refuse_n=True)])
def test_a_server_that_gives_one_answer_a_request_is_soon_asked_for_one(
    tmp_path: Path, script: Script
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(40))
    with serving(script) as server:
        config = write_config(
            tmp_path,
            prompts=[{"path": "prompts.jsonl", "n": 3}],
            sampling=UNSEEDED,
            teacher=remote(server.base_url, endpoint={"max_concurrency": 4}),
        )
        assert "120 planned, 120 answered" in succeeded(corpusgen("run", config))
        draws = Counter(entry["draws"] for entry in server.log())
    assert draws[3] <= 15, "those that were under way when it was found out"
    assert draws[1] == 120 if script.refuse_n else draws[1] == 120 - draws[3]
    assert failures_of(tmp_path) == []
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


def test_a_prompt_that_is_refused_fails_with_all_its_draws(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["[[400]] no", *questions(9)])
    with serving() as server:
        config = write_config(
            tmp_path,
            prompts=[{"path": "prompts.jsonl", "n": 3}],
            sampling=UNSEEDED,
            teacher=remote(server.base_url),
        )
        succeeded(corpusgen("run", config), code=3)
        asked = draws_by_prompt(server)
    assert sorted(asked.pop("[[400]] no")) == [1, 1, 1, 3], "perhaps only n was refused"
    assert set(map(tuple, asked.values())) == {(3,)}, "others still go together"
    assert [row["reason"] for row in failures_of(tmp_path)] == ["rejected"] * 3
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


# Refusals


def test_a_refusal_with_retry_after_costs_no_attempt(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["[[once:429]] later", *questions(5)])
    with serving(Script(retry_after="1")) as server:
        config = write_config(
            tmp_path, teacher=remote(server.base_url), generate={"retry": ONE_TRY}
        )
        began = time.monotonic()
        assert "6 planned, 6 answered" in succeeded(corpusgen("run", config))
        assert time.monotonic() - began > 1
        at = [entry["at"] for entry in server.log() if "later" in entry["prompt"]]
    assert at[1] - at[0] >= 1
    outcomes = Counter(row["outcome"] for row in attempts_of(tmp_path))
    assert outcomes == {"answered": 6, "rate_limit": 1}


def test_without_retry_after_a_refusal_costs_one(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["[[once:429]] later", *questions(5)])
    with serving() as server:
        config = write_config(
            tmp_path, teacher=remote(server.base_url), generate={"retry": ONE_TRY}
        )
        succeeded(corpusgen("run", config), code=3)
    assert [row["reason"] for row in failures_of(tmp_path)] == ["rate_limit"]


def test_a_pause_of_one_endpoint_leaves_the_other_at_work(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(200))
    with serving(Script(fault="429", retry_after="600")) as busy, serving() as other:
        teacher = several([busy, other])
        config = write_config(tmp_path, teacher=teacher, generate={"retry": ONE_TRY})
        assert "200 planned, 200 answered" in succeeded(corpusgen("run", config))
        assert [entry["status"] for entry in busy.log()] == [429], "its first request, and no more"
        assert other.stats()["answered"] == 200


def test_a_pause_that_is_too_long_ends_the_run_to_go_on_later(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(20))
    with serving(Script(fault="429", retry_after="600")) as server:
        config = write_config(
            tmp_path,
            teacher=several([server]),
            generate={"longest_pause_s": 60},
        )
        done = corpusgen("run", config, timeout=30)
        assert done.returncode == 4, done.stderr
        assert "the limits of a are used up for the next 0.2 hours, longer than" in done.stderr
        server.control(fault=None)
        assert "20 planned, 20 answered" in succeeded(corpusgen("run", config))


def test_a_daily_cap_ends_the_run_and_holds_in_the_next_one(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(12))
    with serving() as server:
        config = write_config(tmp_path, teacher=several([server], {"rpd": 5}))
        for _ in range(2):
            done = corpusgen("run", config)
            assert done.returncode == 4, done.stderr
            assert "12 planned, 5 answered, 7 pending" in done.stdout
            assert "the limits of a are used up for the next 24.0 hours" in done.stderr
            assert server.stats()["requests"] == 5
        raised = ("--set", "teacher.endpoints.0.rpd=100")
        assert "12 planned, 12 answered" in succeeded(corpusgen("run", config, *raised))
    succeeded(corpusgen("verify", tmp_path / "out", "--complete"))


# Money


def test_a_teacher_s_budget_closes_that_teacher_only(tmp_path: Path) -> None:
    write_prompts(tmp_path / "a.jsonl", questions(60))
    write_prompts(tmp_path / "b.jsonl", questions(60))
    with serving() as dear, serving(Script(latency_ms=20)) as cheap:
        config = write_config(
            tmp_path,
            teacher=None,
            teachers={
                "big": several([dear], model="big", price=PRICE, budget_usd="0.003"),
                "small": several([cheap], model="small", price=PRICE),
            },
            prompts=[
                {"path": "a.jsonl", "teacher": "big"},
                {"path": "b.jsonl", "teacher": "small"},
            ],
        )
        done = corpusgen("run", config)
        assert done.returncode == 4, done.stderr
        assert "Raise teachers.big.budget_usd and run the command again to go on" in done.stderr
        assert cheap.stats()["answered"] == 60, "the other teacher came to its end"
        spent = dear.stats()
        assert 0 < spent["answered"] < 60
        cost = spent["prompt_tokens"] * 1_000_000 + spent["completion_tokens"] * 2_000_000
        assert 0.5 * 3_000_000_000 < cost <= 3_000_000_000
        again = corpusgen("run", config)
        assert again.returncode == 4
        assert dear.stats()["requests"] == spent["requests"]
        raised = ("--set", "teachers.big.budget_usd=1")
        assert "120 planned, 120 answered" in succeeded(corpusgen("run", config, *raised))


def test_each_endpoint_is_charged_its_own_price(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(80))
    dear = {"input_per_mtok": 10, "output_per_mtok": 20}
    with serving(Script(latency_ms=10)) as one, serving(Script(latency_ms=10)) as other:
        teacher = several([one, other], {"price": dear}, {}, price=PRICE)
        config = write_config(tmp_path, teacher=teacher, generate={"budget_usd": 1})
        succeeded(corpusgen("run", config))
        billed = {"a": one.stats(), "b": other.stats()}
    rows = attempts_of(tmp_path)
    for name, factor in (("a", 10), ("b", 1)):
        own = [row for row in rows if row["endpoint"] == name]
        tokens = billed[name]["prompt_tokens"] + 2 * billed[name]["completion_tokens"]
        assert len(own) > 10
        assert sum(row["cost_picousd"] for row in own) == factor * 1_000_000 * tokens
    reserved = {
        name: {row["reserved_picousd"] for row in rows if row["endpoint"] == name} for name in "ab"
    }
    assert min(reserved["a"]) > 5 * max(reserved["b"]), "what it may cost where it goes"


# Many endpoints


def test_an_endpoint_that_dies_for_good_fails_no_sample(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(300))
    with serving(Script(latency_ms=20)) as dying, serving(Script(latency_ms=20)) as other:
        retry = {"first_wait_s": 0.05}
        config = write_config(tmp_path, teacher=several([dying, other]), generate={"retry": retry})
        process = start("run", config)
        while dying.stats()["requests"] < 30:
            time.sleep(0.01)
        dying.control(die_s=None)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "300 planned, 300 answered" in out
        assert "endpoint a is left alone for a while" in err
        prompts = Counter(e["prompt"] for e in other.log() if e["status"] == 200)
    assert set(prompts.values()) == {1}
    assert len(texts(corpus_of(tmp_path))) == 300


def test_weights_share_the_load(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", questions(300))
    with serving(Script(latency_ms=20)) as one, serving(Script(latency_ms=20)) as other:
        own = {"max_concurrency": 50}
        teacher = several([one, other], own | {"weight": 3}, own)
        config = write_config(tmp_path, teacher=teacher, generate={"max_concurrency": 16})
        succeeded(corpusgen("run", config))
        counts = one.stats()["answered"], other.stats()["answered"]
    assert sum(counts) == 300
    assert 2 < counts[0] / counts[1] < 4.5


def test_sticky_routing_keeps_a_system_prompt_at_one_endpoint(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"question {i}", "system": f"You are the assistant number {i % 20}. " * 60}
        for i in range(400)
    ]
    write_prompts(tmp_path / "prompts.jsonl", rows)
    with serving(Script(latency_ms=10)) as one, serving(Script(latency_ms=10)) as other:
        config = write_config(tmp_path, teacher=several([one, other], routing="sticky"))
        succeeded(corpusgen("run", config))
        homes: dict[str, Counter[int]] = defaultdict(Counter)
        for number, server in enumerate((one, other)):
            for entry in server.log():
                homes[entry["body"]["messages"][0]["content"]][number] += 1
    assert len(homes) == 20
    at_home = sum(max(counts.values()) for counts in homes.values())
    assert at_home >= 0.85 * 400, "by chance it would be 240"
    assert len({max(counts, key=counts.__getitem__) for counts in homes.values()}) == 2
