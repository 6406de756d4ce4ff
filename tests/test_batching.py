"""Samples go out in batches and end once each, whatever the provider or the network does."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import msgspec
import pytest

from corpusgen.batching import Batching, Submission, outstanding
from corpusgen.batching.partitions import Partitions
from corpusgen.batching.submissions import Item
from corpusgen.errors import ConfigError, CorpusgenError, ExitCode, RunStopped
from corpusgen.meter import RunMeter
from corpusgen.plan.segments import Plan
from corpusgen.shards import TokenFormat
from corpusgen.stopping import Stop
from corpusgen.store import Store
from corpusgen.types import Failure, Sampling
from tests.batch_corpus import SIZE, TARIFF, Batched
from tests.loopback_batch import BatchScript, Running, serving


@pytest.fixture
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def questions(count: int) -> list[str]:
    return [f"question {i}" for i in range(count)]


def billed_prompts(server: Running) -> Counter[str]:
    return Counter(entry["prompt"] for entry in server.billed())


def assert_books_agree(batched: Batched, server: Running) -> None:
    """Each request that was billed has exactly one answered attempt, with its tokens."""
    billed = {
        entry["custom_id"]: (entry["prompt_tokens"], entry["completion_tokens"])
        for entry in server.billed()
    }
    answered = {
        row["attempt_id"]: (row["prompt_tokens"], row["completion_tokens"])
        for row in batched.attempts()
        if row["outcome"] == "answered"
    }
    assert answered == billed


def assert_nothing_left(batched: Batched, server: Running) -> None:
    assert list(batched.layout.batches.iterdir()) == []
    assert server.log()["files"] == []


# The way of a batch


def test_every_sample_is_answered_once_at_the_discounted_price(
    tmp_path: Path, server: Running
) -> None:
    batched = Batched(tmp_path, questions(10))
    assert batched.run(server.base_url) is None
    assert len(batched.texts()) == 10
    assert_books_agree(batched, server)
    assert_nothing_left(batched, server)
    paid = sum(row["cost_picousd"] for row in batched.attempts())
    billed = server.billed()
    assert paid == sum(
        500_000 * e["prompt_tokens"] + 10**6 * e["completion_tokens"] for e in billed
    )
    assert (batched.budget.charged, batched.budget.reserved) == (paid, 0)


def test_a_second_run_sends_nothing(tmp_path: Path, server: Running) -> None:
    batched = Batched(tmp_path, questions(3))
    batched.run(server.base_url)
    calls = len(server.log()["calls"])
    assert batched.run(server.base_url) is None
    assert len(server.log()["calls"]) == calls


def test_draws_go_in_one_request_and_seeds_keep_them_apart(tmp_path: Path, server: Running) -> None:
    batched = Batched(tmp_path / "a", questions(3), n=2)
    batched.run(server.base_url)
    assert [entry["draws"] for entry in server.billed()] == [2, 2, 2]
    assert len(batched.texts()) == 6
    seeded = Batched(tmp_path / "b", questions(3), n=2, sampling=Sampling(max_tokens=9, seed=1))
    seeded.run(server.base_url)
    assert [entry["draws"] for entry in server.billed()[3:]] == [1] * 6


def test_fewer_answers_than_draws_are_asked_again_one_by_one(
    tmp_path: Path, server: Running
) -> None:
    batched = Batched(tmp_path, ["[[once:few]] question"], n=3)
    assert batched.run(server.base_url) is None
    assert [entry["draws"] for entry in server.billed()] == [3, 1]
    assert len(batched.texts()) == 3


def test_logprobs_are_kept(tmp_path: Path, server: Running) -> None:
    batched = Batched(tmp_path, questions(2))
    assert batched.run(server.base_url, top_logprobs=3) is None
    table = batched.corpus.generations().to_table(columns=["sampled_logprob", "completion_tokens"])
    for row in table.to_pylist():
        assert len(row["sampled_logprob"]) == row["completion_tokens"]


# Limits


def test_batches_hold_as_many_requests_as_are_allowed(tmp_path: Path) -> None:
    with serving(BatchScript(max_requests=4)) as server:
        batched = Batched(tmp_path, questions(11))
        assert batched.run(server.base_url, requests_per_batch=4) is None
        totals = [batch["request_counts"]["total"] for batch in server.log()["batches"]]
    assert sorted(totals) == [3, 4, 4]


def test_a_partition_that_is_loaded_while_its_samples_are_packed_is_sent_once(
    tmp_path: Path, server: Running
) -> None:
    batched = Batched(tmp_path, questions(SIZE))
    assert batched.run(server.base_url, requests_per_batch=SIZE - 1, max_batches=1) is None
    assert len(batched.texts()) == SIZE
    assert max(billed_prompts(server).values()) == 1


def test_files_hold_as_many_bytes_as_are_allowed(tmp_path: Path) -> None:
    with serving(BatchScript(max_bytes=1000)) as server:
        batched = Batched(tmp_path, [*questions(8), "x" * 2000])
        assert batched.run(server.base_url, bytes_per_batch=1000) is None
        assert len(server.log()["batches"]) > 1
        assert len(batched.texts()) == 8
        assert list(batched.failures().values()) == ["rejected"]


def test_the_enqueued_tokens_stay_below_the_limit(tmp_path: Path) -> None:
    with serving(BatchScript(seconds=0.1, enqueued_tokens=150)) as server:
        batched = Batched(tmp_path, questions(20))
        assert batched.run(server.base_url, enqueued_tokens=150) is None
        log = server.log()
    assert len(batched.texts()) == 20
    assert {batch["status"] for batch in log["batches"]} == {"completed"}
    assert 0 < log["peak_enqueued"] <= 150


def test_an_unknown_limit_of_enqueued_tokens_is_found(tmp_path: Path) -> None:
    with serving(BatchScript(enqueued_tokens=60)) as server:
        batched = Batched(tmp_path, questions(20))
        assert batched.run(server.base_url) is None
        assert len(batched.texts()) == 20
        assert_books_agree(batched, server)
        assert_nothing_left(batched, server)
    assert any("holds too much already" in told for told in batched.told)


def test_no_more_batches_are_out_than_allowed(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(8))

        def during(batching: Batching, stop: Stop) -> None:
            asyncio.get_running_loop().call_later(0.5, stop, interrupted())

        batched.run(server.base_url, requests_per_batch=2, max_batches=3, during=during)
        assert len(server.log()["batches"]) == 3


# What a line may bring


@pytest.mark.parametrize("kind", ["500", "429", "503", "missing", "torn"])
def test_what_may_be_asked_again_is_asked_again(tmp_path: Path, server: Running, kind: str) -> None:
    batched = Batched(tmp_path, [*questions(3), f"[[once:{kind}]] question"])
    assert batched.run(server.base_url) is None
    assert len(batched.texts()) == 4
    assert len(batched.attempts()) == 5
    assert batched.outcomes().count("answered") == 4


@pytest.mark.parametrize(
    ("kind", "reason", "attempts"),
    [("500", "server_error", 3), ("429", "rate_limit", 3), ("400", "rejected", 1)],
)
def test_what_never_succeeds_fails_within_the_attempts(
    tmp_path: Path, server: Running, kind: str, reason: str, attempts: int
) -> None:
    batched = Batched(tmp_path, [*questions(3), f"[[{kind}]] question"])
    assert batched.run(server.base_url) is None
    assert list(batched.failures().values()) == [reason]
    assert batched.outcomes().count(reason) == attempts
    assert all(row["cost_picousd"] == 0 for row in batched.attempts() if row["outcome"] == reason)


def test_a_missing_or_torn_line_is_charged_as_reserved(tmp_path: Path, server: Running) -> None:
    batched = Batched(tmp_path, ["[[missing]] a", "[[torn]] b"])
    assert batched.run(server.base_url, max_attempts=1) is None
    rows = batched.attempts()
    assert [(row["outcome"], row["cost_picousd"]) for row in rows] == [("torn_answer", None)] * 2
    assert batched.budget.charged == sum(row["reserved_picousd"] for row in rows)
    told = next(told for told in batched.told if "lines" in told)
    assert "1 lines torn" in told
    assert "2 lines missing" in told


def test_repeated_and_foreign_lines_change_nothing(tmp_path: Path, server: Running) -> None:
    batched = Batched(tmp_path, ["[[twice]] a", "[[foreign]] b", "c"])
    assert batched.run(server.base_url) is None
    assert len(batched.texts()) == 3
    assert_books_agree(batched, server)


def test_an_empty_account_ends_the_run_with_what_was_answered(
    tmp_path: Path, server: Running
) -> None:
    batched = Batched(tmp_path, [*questions(6), "[[once:quota]] question"])
    reason = batched.run(server.base_url)
    assert reason is not None
    assert reason.exit_code is ExitCode.BUDGET
    assert len(batched.texts()) == 6
    assert batched.failures() == {}
    assert batched.run(server.base_url) is None
    assert len(batched.texts()) == 7
    assert max(billed_prompts(server).values()) == 1


def test_retrying_failed_samples_begins_their_attempts_anew(
    tmp_path: Path, server: Running
) -> None:
    batched = Batched(tmp_path, ["[[500]] question"])
    batched.run(server.base_url, max_attempts=2)
    assert batched.run(server.base_url, max_attempts=2) is None
    assert len(batched.attempts()) == 2
    assert batched.run(server.base_url, max_attempts=2, retry_failed=lambda _: True) is None
    assert len(batched.attempts()) == 4


# What a batch may bring


def test_an_expired_batch_is_sent_again_for_what_it_lacks(tmp_path: Path) -> None:
    with serving(BatchScript(faults={"batch": ["expire"]})) as server:
        batched = Batched(tmp_path, questions(10))
        assert batched.run(server.base_url) is None
        assert len(batched.texts()) == 10
        assert_books_agree(batched, server)
        assert_nothing_left(batched, server)
    rows = [row for row in batched.attempts() if row["outcome"] == "timeout"]
    assert len(rows) == 5
    assert {row["cost_picousd"] for row in rows} == {0}


def test_a_request_that_a_batch_is_refused_for_fails_and_the_rest_goes_on(
    tmp_path: Path, server: Running
) -> None:
    batched = Batched(tmp_path, [*questions(5), "[[refused]] question"])
    assert batched.run(server.base_url) is None
    assert len(batched.texts()) == 5
    assert list(batched.failures().values()) == ["rejected"]
    assert_nothing_left(batched, server)


@pytest.mark.parametrize(
    ("fate", "code", "sentence"),
    [
        ("quota", ExitCode.BUDGET, "Billing hard limit has been reached. Top up the account"),
        ("model", ExitCode.ERROR, "The model `m` does not exist. Check the teacher's model"),
    ],
)
def test_a_refused_batch_ends_the_run_and_leaves_nothing_behind(
    tmp_path: Path, fate: str, code: ExitCode, sentence: str
) -> None:
    with serving(BatchScript(faults={"batch": [fate]})) as server:
        batched = Batched(tmp_path, questions(3))
        reason = batched.run(server.base_url)
        assert reason is not None
        assert reason.exit_code is code
        assert sentence in str(reason)
        assert_nothing_left(batched, server)
        assert batched.run(server.base_url) is None
    assert len(batched.texts()) == 3
    assert len(batched.attempts()) == 3


def test_a_batch_that_somebody_cancels_ends_the_run_and_is_completed_by_the_next(
    tmp_path: Path,
) -> None:
    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(6))
        reason = asyncio.run(cancelling(batched, server))
        assert reason is not None
        assert reason.exit_code is ExitCode.INTERRUPTED
        assert len(batched.texts()) == 3
        server.control(hold=False)
        assert batched.run(server.base_url) is None
        assert len(batched.texts()) == 6
        assert_books_agree(batched, server)
    rows = [row for row in batched.attempts() if row["outcome"] == "cancelled"]
    assert [row["cost_picousd"] for row in rows] == [0, 0, 0]


def test_a_batch_that_was_cancelled_between_two_runs_is_sent_again_at_once(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True, cancelling=True)) as server:
        batched = Batched(tmp_path, questions(6))
        batched.run(server.base_url, during=stopping_after(0.3))
        cancel = Request(f"{server.base_url}/batches/batch_0/cancel", method="POST")
        urlopen(cancel).close()
        assert server.log()["batches"][0]["status"] == "cancelling"

        def during(batching: Batching, stop: Stop) -> None:
            def end() -> None:
                server.control(cancelling=False, hold=False)

            loop = asyncio.get_running_loop()
            loop.call_later(0.4, loop.run_in_executor, None, end)

        looks = server.log()["calls"].count("retrieve ok")
        assert batched.run(server.base_url, during=during) is None
        assert server.log()["calls"].count("retrieve ok") >= looks + 3, "it saw both"
    assert len(batched.texts()) == 6


async def cancelling(batched: Batched, server: Running) -> CorpusgenError | None:
    from openai import AsyncOpenAI

    running = asyncio.create_task(batched.running(server.base_url))
    client = AsyncOpenAI(api_key="k", base_url=server.base_url)
    while not (found := (await client.batches.list()).data):
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)  # seen by the run
    await client.batches.cancel(found[0].id)
    await client.close()
    return await running


def test_results_that_the_provider_has_deleted_are_charged_and_asked_again(
    tmp_path: Path,
) -> None:
    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(2))
        batched.run(server.base_url, during=stopping_after(0.3))
        server.control(release=True)
        server.log()  # lets it end
        server.control(faults={"content": ["gone"]}, hold=False)
        assert batched.run(server.base_url) is None
        assert len(batched.texts()) == 2
    assert batched.outcomes() == ["answered", "answered", "torn_answer", "torn_answer"]
    assert any("has deleted the results" in told for told in batched.told)


# What the network may do


@pytest.mark.parametrize(
    ("call", "faults"),
    [
        ("upload", ["500", "drop", "429"]),
        ("upload", ["done-500", "done-drop"]),
        ("create", ["429", "429"]),
        ("create", ["500"]),
        ("create", ["drop"]),
        ("create", ["done-500"]),
        ("create", ["done-drop"]),
        ("create", ["torn"]),
        ("retrieve", ["500", "drop", "429", "torn"]),
        ("content", ["torn", "drop", "500"]),
        ("delete", ["500", "done-drop"]),
    ],
)
def test_a_call_that_fails_costs_nothing_twice(
    tmp_path: Path, call: str, faults: list[str]
) -> None:
    with serving(BatchScript(faults={call: list(faults)})) as server:
        batched = Batched(tmp_path, questions(9))
        assert batched.run(server.base_url, requests_per_batch=5) is None
        assert len(batched.texts()) == 9
        assert max(billed_prompts(server).values()) == 1
        assert_books_agree(batched, server)
        assert_nothing_left(batched, server)


def test_a_batch_that_is_listed_late_is_waited_for(tmp_path: Path) -> None:
    script = BatchScript(list_lag_s=0.4, faults={"create": ["done-drop"]})
    with serving(script) as server:
        batched = Batched(tmp_path, questions(4))
        assert batched.run(server.base_url, lookup_s=2.0) is None
        assert len(server.log()["batches"]) == 1
    assert len(batched.texts()) == 4


def test_batches_are_found_on_later_pages_of_the_list(tmp_path: Path) -> None:
    script = BatchScript(page=2, faults={"create": ["done-drop"]}, hold=True)
    with serving(script) as server:
        batched = Batched(tmp_path, questions(9))
        batched.run(
            server.base_url, requests_per_batch=1, lookup_s=60.0, during=stopping_after(0.6)
        )
        server.control(hold=False)
        assert batched.run(server.base_url) is None
        assert len(batched.texts()) == 9
        assert max(billed_prompts(server).values()) == 1


def test_a_wrong_key_ends_the_run_before_anything_is_made(tmp_path: Path) -> None:
    with serving(BatchScript(api_key="right")) as server:
        batched = Batched(tmp_path, questions(2))
        reason = batched.run(server.base_url)
        assert reason is not None
        assert "HTTP 401" in str(reason)
        assert server.log()["batches"] == []
        assert batched.attempts() == []


# Stopping and going on


def interrupted() -> RunStopped:
    return RunStopped("interrupted", ExitCode.INTERRUPTED)


def stopping_after(seconds: float) -> Any:
    def during(batching: Batching, stop: Stop) -> None:
        asyncio.get_running_loop().call_later(seconds, stop, interrupted())

    return during


def test_a_stop_leaves_batches_at_the_provider_for_the_next_run(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(10))
        reason = batched.run(server.base_url, during=stopping_after(0.4))
        assert reason is not None
        assert reason.exit_code is ExitCode.INTERRUPTED
        assert any("10 requests in 1 batches go on at the provider" in t for t in batched.told)
        assert [len(each.items) for each in outstanding(batched.layout)] == [10]
        server.control(release=True)
        assert batched.run(server.base_url) is None
        log = server.log()
    assert len(log["batches"]) == 1
    assert len(batched.texts()) == 10


def test_what_is_out_stays_reserved_over_resumes(tmp_path: Path) -> None:
    seen: list[int] = []

    def during(batching: Batching, stop: Stop) -> None:
        seen.append(batched.budget.reserved)
        asyncio.get_running_loop().call_later(0.3, stop, interrupted())

    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(6))
        batched.run(server.base_url, during=during)
        worst = sum(
            item.reserved_picousd or 0 for s in outstanding(batched.layout) for item in s.items
        )
        batched.run(server.base_url, during=during)
        batched.run(server.base_url, during=during)
    assert seen == [0, worst, worst]
    assert worst > 0


def test_what_went_out_without_a_price_is_reserved_by_todays(tmp_path: Path) -> None:
    seen: list[int] = []

    def during(batching: Batching, stop: Stop) -> None:
        seen.append(batched.budget.reserved)

    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, ["[[missing]] a", *questions(5)])
        batched.run(server.base_url, price=None, during=stopping_after(0.3))
        server.control(release=True, hold=False)
        assert batched.run(server.base_url, cap=10**12, max_attempts=1, during=during) is None
        (sent,) = server.log()["batches"]
    answers = 6 * 20 * TARIFF.output_picousd
    assert seen[0] > answers + sent["tokens"] * TARIFF.input_picousd
    (torn,) = [row for row in batched.attempts() if row["outcome"] == "torn_answer"]
    assert torn["reserved_picousd"] > 20 * TARIFF.output_picousd
    known = sum(row["cost_picousd"] or 0 for row in batched.attempts())
    assert (batched.budget.charged, batched.budget.reserved) == (
        known + torn["reserved_picousd"],
        0,
    )


def test_no_budget_is_kept_over_what_went_out_without_a_limit(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(2), sampling=Sampling())
        batched.run(server.base_url, during=stopping_after(0.3))
        with pytest.raises(ConfigError, match=r"leave budget_usd out for one run"):
            batched.run(server.base_url, cap=10**12, during=stopping_after(0.3))
        server.control(release=True)
        assert batched.run(server.base_url) is None
    assert len(batched.texts()) == 2


def test_what_is_out_is_not_kept_in_memory(tmp_path: Path) -> None:
    seen: list[object] = []

    def during(batching: Batching, stop: Stop) -> None:
        gc.collect()
        seen.extend(each for each in gc.get_objects() if isinstance(each, Submission | Item))
        assert batching.in_flight == 6
        stop(interrupted())

    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(6))
        batched.run(server.base_url, during=stopping_after(0.3))
        batched.run(server.base_url, during=during)
    assert seen == []


def test_what_a_dead_process_recorded_but_did_not_strike_off_is_asked_again(
    tmp_path: Path,
) -> None:
    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, [*questions(2), "[[once:quota]] question"])
        batched.run(server.base_url, delete_files=False, during=stopping_after(0.3))
        server.control(release=True)
        files = {path: path.read_bytes() for path in batched.layout.batches.iterdir()}
        batched.run(server.base_url, delete_files=False)
        assert (len(batched.texts()), len(batched.attempts())) == (2, 3)
        for path, content in files.items():
            path.write_bytes(content)  # as when it had died just before
        server.control(hold=False, faults={"retrieve": ["500"]})
        assert batched.run(server.base_url) is None
    assert len(batched.texts()) == 3
    assert batched.outcomes() == ["answered"] * 3 + ["quota"]


def test_a_commit_that_a_drain_cuts_short_is_made_once(tmp_path: Path) -> None:
    lease = SlowLease()
    batched = Batched(tmp_path, questions(2))
    store = Store(
        batched.layout,
        batched.corpus.facts.corpus_id,
        Plan(batched.layout, SIZE),
        lambda _: TokenFormat(0, "float32", "raw"),
        lease,
    )
    meter = RunMeter(lambda _: None, done=0, total=2, charged_picousd=lambda: 0)
    partitions = Partitions(batched.layout, store, meter)

    async def drained() -> None:
        opened, samples = partitions.take_up(0)
        opened.fail(Failure(samples[0].sample_id, "timeout", "slow", 1))
        lane = asyncio.create_task(partitions.close(opened))
        await asyncio.to_thread(lease.asked.wait)
        lane.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lane
        rest = asyncio.create_task(partitions.close_all())
        await asyncio.sleep(0.2)
        lease.granted.set()
        await rest

    asyncio.run(drained())
    assert lease.checks == 1
    assert [len(commits) for commits in store.commits.values()] == [1]
    assert len(batched.failures()) == 1


class SlowLease:
    """A lease whose check lasts until it is granted."""

    def __init__(self) -> None:
        self.asked, self.granted = threading.Event(), threading.Event()
        self.checks = 0

    def check(self) -> None:
        self.checks += 1
        self.asked.set()
        self.granted.wait(10)


def test_a_cap_is_never_exceeded_and_all_of_it_is_used(tmp_path: Path, server: Running) -> None:
    batched = Batched(tmp_path, questions(60))
    cap = 1_000_000_000
    reason = batched.run(server.base_url, cap=cap)
    assert reason is not None
    assert reason.exit_code is ExitCode.BUDGET
    assert not batched.stop.is_asked(), "other teachers go on"
    bill = sum(
        500_000 * e["prompt_tokens"] + 10**6 * e["completion_tokens"] for e in server.billed()
    )
    assert 0.8 * cap < bill <= cap
    assert batched.budget.charged == bill
    assert batched.run(server.base_url) is None
    assert len(batched.texts()) == 60
    assert max(billed_prompts(server).values()) == 1


def test_a_price_that_does_not_hold_ends_the_run_with_everything_kept(
    tmp_path: Path, server: Running
) -> None:
    cheap = msgspec.structs.replace(TARIFF, input_picousd=1, cached_input_picousd=1)
    hidden = ["[[think]] a", "[[think]] b"]  # more tokens than max_tokens allows
    batched = Batched(tmp_path, [*hidden, "c"], sampling=Sampling(max_tokens=1))
    reason = batched.run(server.base_url, price=cheap, cap=10**12)
    assert "max_tokens does not hold at this endpoint" in str(reason)
    assert len(batched.texts()) == 3
    assert list(batched.layout.batches.iterdir()) == []


def test_requests_that_are_out_for_another_model_are_not_asked_again(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(2))
        batched.run(server.base_url, during=stopping_after(0.3))
        with pytest.raises(ConfigError, match="2 requests are out at the endpoint"):
            batched.run(server.base_url, model="other")


def test_a_submission_belongs_to_the_teacher_that_sent_it(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(2))
        batched.run(server.base_url, revision="a", during=stopping_after(0.3))
        with pytest.raises(ConfigError, match=r'for the model m \(revision "a"\)'):
            batched.run(server.base_url, revision="b", during=stopping_after(0.3))


def test_a_batch_that_the_account_does_not_know_is_not_made_again(tmp_path: Path) -> None:
    with serving(BatchScript(hold=True)) as server:
        batched = Batched(tmp_path, questions(2))
        here = [{"base_url": server.base_url, "name": "here"}]
        batched.run(server.base_url, endpoints=here, during=stopping_after(0.3))
    with serving() as other:
        there = [{"base_url": other.base_url, "name": "here"}]
        reason = batched.run(other.base_url, endpoints=there)
        assert "does not know the batch batch_0" in str(reason)
        assert other.log()["batches"] == []


def test_what_dead_processes_left_aside_is_cleared(tmp_path: Path, server: Running) -> None:
    batched = Batched(tmp_path, questions(2))
    batched.layout.batches.mkdir()
    (batched.layout.batches / "x.requests.jsonl.tmp").write_text("half")
    (batched.layout.batches / "x.place.json").write_text("{}")
    assert batched.run(server.base_url) is None
    assert list(batched.layout.batches.iterdir()) == []
