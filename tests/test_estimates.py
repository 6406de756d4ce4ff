"""What a run will take is said beforehand, and how well that is known."""

from __future__ import annotations

import statistics
import time
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpusgen import commits
from corpusgen.commits import Commit
from corpusgen.config import Gpu
from corpusgen.corpus import Corpus, create_or_check, load, new_facts
from corpusgen.estimates import (
    Answering,
    Asked,
    estimate,
    read_pilots,
    remaining_picousd,
    still_asked,
)
from corpusgen.estimates.counting import approximate_tokens
from corpusgen.estimates.walltime import Load, Wall, wall_time
from corpusgen.events import Estimated
from corpusgen.layout import Layout
from corpusgen.limits import worst_case_tokens
from corpusgen.money import PICO, Tariff, tariff
from corpusgen.plan.planning import SetRequest, plan
from corpusgen.plan.segments import Run
from corpusgen.shards import write_attempts, write_failures
from corpusgen.teachers.interface import Endpoint
from corpusgen.types import Attempt, Failure, Prompt, Sampling
from tests.corpus_factory import generation, message, write_generations

# Counting without the teacher's tokenizer

COUNTED = [
    (
        "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
        "May. How many clips did Natalia sell altogether in April and May?",
        39,
    ),
    ("He bought 20 joggers at $15.50 each: 20*15.50=$<<20*15.50=310>>310.\n#### 310", 51),
    ("def add(a: int, b: int) -> int:\n    return a + b\n", 20),
]
"""Texts, and how many tokens SmolLM2's tokenizer makes of them."""


@pytest.mark.parametrize(("text", "tokens"), COUNTED)
def test_a_text_counts_about_as_many_tokens_as_a_tokenizer_makes(text: str, tokens: int) -> None:
    assert approximate_tokens(text) == pytest.approx(tokens, rel=0.15)


@given(st.text(max_size=60), st.text(max_size=60))
def test_counting_takes_any_text_and_never_more_tokens_than_bytes(a: str, b: str) -> None:
    one, both = approximate_tokens(a), approximate_tokens(a + b)
    assert one <= 2 * len(a.encode("utf-8", "surrogatepass"))
    assert one == 0 or a
    assert both <= one + approximate_tokens(b) + 2


def test_a_hostile_text_takes_no_time() -> None:
    for text in ("\n" * 300_000, "a" * 300_000, " \t" * 150_000, "!" * 300_000, "\x00é" * 99_999):
        began = time.perf_counter()
        assert approximate_tokens(text) > 0
        assert time.perf_counter() - began < 5


# What is still to be asked

LIMITED = Sampling(max_tokens=100)


def alone(run: Run) -> int:
    return 1


def in_pairs(run: Run) -> int:
    return 2


def corpus_of(
    root: Path,
    prompts: list[str],
    n: int = 1,
    sampling: Sampling = LIMITED,
    size: int = 16,
    longest: int | None = None,
) -> Corpus:
    """Plan prompts, partitions of `size`."""
    layout = Layout(root / "out")
    create_or_check(layout, new_facts("1.0", size, 0, "float16"))
    rows = [
        Prompt(f"p{i}", [{"role": "user", "content": p}], f"f:{i}", max_tokens=longest)
        for i, p in enumerate(prompts)
    ]
    request = SetRequest("set", "t", {"model": "m"}, sampling, n, {}, [], lambda: iter(rows))
    plan(layout, [request], partition_size=size)
    return load(layout.root)


def answered(
    corpus: Corpus, partition: int, count: int, failed: int = 0, cost: int | None = 100, **row: Any
) -> Corpus:
    """Commit answers to a partition's first samples, and failures of the ones after."""
    ids, layout = corpus.plan.ids_of(partition), corpus.layout
    part = sum(commit.partition == partition for commit in corpus.commits)
    rows = [generation(sample_id=sample, **row) for sample in ids[:count]]
    sent = [
        Attempt(f"{partition:016x}{i:016x}", [s], "e", 1.0, "answered", cost_picousd=cost)
        for i, s in enumerate(ids[: count + failed])
    ]
    files = {}
    for kind, rows_of_kind in (
        ("generations", count),
        ("attempts", len(sent)),
        ("failures", failed),
    ):
        path = layout.part(kind, partition, part)
        if kind == "generations" and count:
            write_generations(path, rows)
        elif kind == "attempts":
            write_attempts(path, sent, "c" * 32)
        elif kind == "failures" and failed:
            gone = [Failure(s, "timeout", "slow", 1) for s in ids[count : count + failed]]
            write_failures(path, gone, corpus.plan.read(partition), "c" * 32)
        if rows_of_kind:
            files[kind] = commits.describe(path, layout, rows_of_kind)
    settled = len(sent) * (cost or 0)
    commits.put(layout, Commit(1, partition, part, files, settled_picousd=settled))
    return load(layout.root)


def one(asked: list[Asked]) -> Asked:
    assert len(asked) == 1
    return asked[0]


def test_counts_bytes_and_limits_are_those_of_the_plan(tmp_path: Path) -> None:
    prompts = [f"Grüße {i}" for i in range(40)]
    asked = one(still_asked(corpus_of(tmp_path, prompts, n=3), in_pairs))
    sizes = [len(prompt.encode()) for prompt in prompts]
    assert asked.samples == 120
    assert asked.bytes == 3 * sum(sizes)
    assert asked.longest_bytes == max(sizes)
    assert asked.most_tokens == 120 * 100
    assert asked.unlimited == 0
    # 3 draws are a request for two and one for the third; partitions of 16 cut some prompts in two.
    assert 80 <= asked.requests <= 88
    assert sum(sizes) * 2 <= asked.request_bytes <= sum(sizes) * 2 + 8 * max(sizes)


def test_a_small_plan_is_counted_whole(tmp_path: Path) -> None:
    prompts = [f"What is {i} plus {i}?" for i in range(20)]
    asked = one(still_asked(corpus_of(tmp_path, prompts), alone))
    assert asked.sampled == asked.requests == 20
    assert asked.sampled_bytes == asked.bytes
    messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
    assert asked.sampled_worst_tokens == sum(worst_case_tokens(each) for each in messages)
    assert asked.sampled_tokens == sum(approximate_tokens(p) + 7 for p in prompts)


def test_a_prompts_own_limit_counts_and_one_without_is_named(tmp_path: Path) -> None:
    own = one(still_asked(corpus_of(tmp_path / "a", ["x", "y"], longest=7), alone))
    assert own.most_tokens == 14
    none = corpus_of(tmp_path / "b", ["x", "y"], sampling=Sampling())
    asked = one(still_asked(none, alone))
    assert asked.most_tokens is None
    assert asked.unlimited == 2


def test_what_has_ended_is_not_asked(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [f"q{i}" for i in range(40)])
    corpus = answered(corpus, 0, 16)
    corpus = answered(corpus, 1, 3, failed=2)
    assert one(still_asked(corpus, alone)).samples == 40 - 16 - 3 - 2
    again = still_asked(corpus, alone, retry=lambda reason: reason == "timeout")
    assert one(again).samples == 40 - 16 - 3
    other = still_asked(corpus, alone, retry=lambda reason: reason == "rejected")
    assert one(other).samples == 40 - 16 - 3 - 2
    pilot = set(corpus.plan.ids_of(1)[:6])
    assert one(still_asked(corpus, alone, pilot.__contains__)).samples == 1
    for partition, count in ((1, 11), (2, 8)):
        layout, ids = corpus.layout, corpus.plan.ids_of(partition)[-count:]
        path = layout.part("generations", partition, 9)
        write_generations(path, [generation(sample_id=sample) for sample in ids])
        files = {"generations": commits.describe(path, layout, count)}
        commits.put(layout, Commit(1, partition, 9, files))
        corpus = load(layout.root)
    assert still_asked(corpus, alone) == []


def test_what_is_out_is_not_asked_again(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [f"q{i}" for i in range(40)])
    corpus = answered(corpus, 0, 4)
    out = {0: corpus.plan.ids_of(0)[:6], 2: corpus.plan.ids_of(2)[:3]}
    asked = one(still_asked(corpus, alone, out=lambda partition: out.get(partition, [])))
    assert asked.samples == 40 - 6 - 3


def test_a_plan_without_samples_asks_nothing(tmp_path: Path) -> None:
    found = figures(still_asked(corpus_of(tmp_path, []), alone))
    assert (found.samples, found.cost_usd.expected, found.wall_s) == (0, "0", 0.0)


# What it takes


def answering(*tariffs: Tariff | None, **changes: Any) -> Answering:
    endpoints = changes.pop("endpoints", [Endpoint(f"e{i}") for i in range(len(tariffs))])
    named = {endpoint.name: each for endpoint, each in zip(endpoints, tariffs, strict=True)}
    return Answering("t", endpoints, named, token_ids=True, **changes)


PRICE = tariff("1", "2", "0.5", "configuration")


def figures(
    asked: list[Asked], corpus: Corpus | None = None, teacher: Answering | None = None
) -> Estimated:
    keys = [(each.run.prompt_set, each.run.variant) for each in asked]
    pilots = {} if corpus is None else read_pilots(corpus, keys)
    return estimate(asked, pilots, dict.fromkeys(keys, teacher or answering(PRICE)), 0, "float16")


def test_without_answers_a_rule_says_what_to_expect(tmp_path: Path) -> None:
    prompts = [f"What is {i} plus {i}?" for i in range(20)]
    asked = still_asked(corpus_of(tmp_path, prompts), alone)
    found = figures(asked)
    (each,) = found.sets
    assert each.counted == "approximately, from 20 of 20 prompts"
    assert each.reckoned == "a guess: half of max_tokens, at most 1000 an answer"
    assert each.price == "configuration"
    out = found.completion_tokens
    assert (out.low, out.expected, out.high) == (250, 1000, 2000)
    tokens = sum(approximate_tokens(prompt) + 7 for prompt in prompts)
    assert found.prompt_tokens == tokens
    assert Decimal(found.cost_usd.expected or 0) * PICO == tokens * 10**6 + 1000 * 2 * 10**6
    worst = sum(worst_case_tokens([{"role": "user", "content": p}]) for p in prompts)
    assert Decimal(found.cost_usd.high or 0) * PICO == worst * 10**6 + 2000 * 2 * 10**6
    assert Decimal(found.cost_usd.low or 0) * PICO == tokens * 10**6 + 250 * 2 * 10**6


def test_without_a_limit_the_worst_case_is_not_known(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, ["a", "b"], sampling=Sampling())
    found = figures(still_asked(corpus, alone))
    assert found.completion_tokens.expected == 1000
    assert found.completion_tokens.high is found.cost_usd.high is None
    assert found.cost_usd.expected is not None
    assert "max_tokens is not set" in found.sets[0].reckoned


def test_an_unknown_price_is_no_cost_of_zero(tmp_path: Path) -> None:
    asked = still_asked(corpus_of(tmp_path, ["a"]), alone)
    for unknown in (answering(None), answering(PRICE, None)):
        found = figures(asked, teacher=unknown)
        assert found.cost_usd.low is found.cost_usd.expected is found.cost_usd.high is None
    assert found.sets[0].price == "unknown at e1"


def test_answers_of_the_corpus_are_the_measure(tmp_path: Path) -> None:
    prompts = [f"What is {i:02d} plus {i:02d}?" for i in range(48)]
    corpus = answered(
        corpus_of(tmp_path, prompts),
        0,
        16,
        prompt="What is 00 plus 00?",
        prompt_tokens=38,
        cached_tokens=19,
        completion_tokens=30,
        reasoning_tokens=10,
        latency_s=0.5,
    )
    dear = tariff("1", "2", "0.5", "configuration", "4")
    teacher = answering(dear, endpoints=[Endpoint("e", max_concurrency=4)])
    found = figures(still_asked(corpus, alone), corpus, teacher)
    (each,) = found.sets
    assert each.counted == "by the teacher, over 16 answers of this corpus"
    assert each.reckoned == "mean of 16 answers of this corpus"
    assert found.prompt_tokens == 32 * 38, "twice as many tokens as bytes"
    out = found.completion_tokens
    assert (out.low, out.expected, out.high) == (960, 960, 3200), "they were all equally long"
    cost = 32 * (19 * 10**6 + 19 * 5 * 10**5 + 20 * 2 * 10**6 + 10 * 4 * 10**6)
    assert Decimal(found.cost_usd.expected or 0) * PICO == cost
    assert found.wall_s == 32 * 0.5 / 4
    assert found.wall_limit == "4 in flight at 0.5 s each"
    assert found.disk_bytes == 32 * 150 + 32 * 19 * 0.5 + round(960 * 2.8), "too few to measure"


def test_many_answers_measure_the_disk(tmp_path: Path) -> None:
    corpus = answered(corpus_of(tmp_path, [f"q{i}" for i in range(700)], size=512), 0, 500)
    found = figures(still_asked(corpus, alone), corpus)
    stored = sum(f.bytes for c in corpus.commits for f in c.files.values())
    assert found.disk_bytes == 200 * stored // 500


def test_the_low_end_allows_for_the_pilots_chance(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [f"q{i}" for i in range(48)])
    for partition, tokens in ((0, 10), (1, 90)):
        corpus = answered(corpus, partition, 8, completion_tokens=tokens)
    found = figures(still_asked(corpus, alone), corpus)
    error = 80 / 2 * (16 / 15) ** 0.5 / 4
    assert found.completion_tokens.expected == 32 * 50
    assert found.completion_tokens.low == pytest.approx(32 * (50 - 2 * error), abs=1)


def test_too_few_answers_measure_nothing(tmp_path: Path) -> None:
    corpus = answered(corpus_of(tmp_path, [f"q{i}" for i in range(32)]), 0, 7)
    found = figures(still_asked(corpus, alone), corpus)
    assert found.sets[0].reckoned.startswith("a guess")


def test_answers_that_do_not_state_their_tokens_measure_none(tmp_path: Path) -> None:
    corpus = answered(
        corpus_of(tmp_path, [f"q{i}" for i in range(32)]),
        0,
        16,
        prompt_tokens=None,
        completion_tokens=None,
    )
    (each,) = figures(still_asked(corpus, alone), corpus).sets
    assert each.counted.startswith("approximately")
    assert each.reckoned.startswith("a guess")


def test_draws_of_a_request_share_what_it_states(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [f"q{i}" for i in range(16)])
    ids, layout = corpus.plan.ids_of(0), corpus.layout
    unstated = [
        generation(sample_id=s, completion_tokens=None, reasoning_tokens=None) for s in ids[:12]
    ]
    stated = generation(sample_id=ids[12], completion_tokens=90, reasoning_tokens=9)
    requests = [(ids[:4], 40), (ids[4:8], 80), ([*ids[8:12], ids[12]], 120), ([ids[12]], 90)]
    sent = [
        Attempt(f"{i:032x}", list(samples), "e", 1.0 + i, "answered", completion_tokens=tokens)
        for i, (samples, tokens) in enumerate(requests)
    ]
    sent = [
        msgspec.structs.replace(a, reasoning_tokens=(a.completion_tokens or 0) // 10) for a in sent
    ]
    places = {kind: layout.part(kind, 0, 0) for kind in ("generations", "attempts")}
    write_generations(places["generations"], [*unstated, stated])
    write_attempts(places["attempts"], sent, "c" * 32)
    files = {k: commits.describe(p, layout, {"attempts": 4}.get(k, 13)) for k, p in places.items()}
    commits.put(layout, Commit(1, 0, 0, files))
    (run,) = corpus.plan.runs
    pilot = read_pilots(load(layout.root), [("set", run.variant)])["set", run.variant]
    assert pilot.completion_tokens == Fraction(40 + 80 + 120 + 90, 13)
    assert pilot.reasoning_share == Fraction(1, 10)
    values = [10.0] * 4 + [20.0] * 4 + [30.0] * 4 + [90.0]
    error = statistics.stdev(values) / 4**0.5
    low = float(pilot.least_completion_tokens or 0)
    assert low == pytest.approx(330 / 13 - 2 * error, abs=0.01), "4 requests were measured"


def test_endpoints_with_different_prices_are_weighed(tmp_path: Path) -> None:
    asked = still_asked(corpus_of(tmp_path, ["q"]), alone)
    cheap, dear = Tariff(0, 0, 10, "a"), Tariff(0, 0, 50, "b")
    places = [Endpoint("e0", weight=3.0), Endpoint("e1", weight=1.0)]
    found = figures(asked, teacher=answering(cheap, dear, endpoints=places))
    cost = found.cost_usd
    assert Decimal(cost.low or 0) * PICO == 12 * 10
    assert Decimal(cost.expected or 0) * PICO == 50 * (3 * 10 + 50) / 4
    assert Decimal(cost.high or 0) * PICO == 100 * 50
    assert found.sets[0].price == "a; b"


def test_short_prompts_are_not_charged_as_long_ones(tmp_path: Path) -> None:
    long = Tariff(20, 20, 20, "x", shorter=((1000, Tariff(10, 10, 10, "x")),))
    asked = still_asked(corpus_of(tmp_path, ["q" * 50, "r" * 60]), alone)
    flat = figures(asked, teacher=answering(Tariff(10, 10, 10, "x")))
    assert figures(asked, teacher=answering(long)).cost_usd == flat.cost_usd


def test_machines_cost_the_time_where_it_is_known(tmp_path: Path) -> None:
    corpus = answered(corpus_of(tmp_path, [f"q{i}" for i in range(32)]), 0, 16, latency_s=9.0)
    gpu, places = Gpu(usd_per_hour="3.6", count=2), [Endpoint("e", max_concurrency=4)]
    teacher = answering(PRICE, endpoints=places, gpu=gpu)
    asked = still_asked(corpus, alone)
    assert figures(asked, corpus, teacher).gpu_usd == "0.072", "36 s at $7.20 an hour"
    assert figures(asked, None, teacher).gpu_usd is None, "nobody knows how long it takes"


def test_a_set_whose_teacher_is_gone_is_not_asked(tmp_path: Path) -> None:
    (asked,) = still_asked(corpus_of(tmp_path, ["q"]), alone)
    found = estimate([asked], {}, {("set", asked.run.variant): None}, 0, "float16")
    assert found.samples == 0
    assert found.sets == ()


def test_disk_grows_with_the_logprobs(tmp_path: Path) -> None:
    asked = still_asked(corpus_of(tmp_path, ["q", "r"]), alone)
    key = ("set", asked[0].run.variant)

    def disk(k: int, precision: str = "float16") -> int:
        return estimate(asked, {}, {key: answering(PRICE)}, k, precision).disk_bytes

    tokens = 100
    assert disk(20) - disk(5) == pytest.approx(tokens * 15 * 3.3, abs=1)
    assert disk(0) < disk(1) < disk(1, "float32")


def test_a_tool_and_a_format_are_part_of_the_prompt(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    create_or_check(layout, new_facts("1.0", 4, 0, "float16"))
    rows = [Prompt("p", [{"role": "user", "content": "q"}], "f:1", tools=[{"name": "x" * 500}])]
    ways = {"response_format": {"type": "json_object"}}
    request = SetRequest(
        "set", "t", {"model": "m"}, Sampling(), 1, {}, [], lambda: iter(rows), **ways
    )
    plan(layout, [request], partition_size=4)
    asked = one(still_asked(load(layout.root), alone))
    assert asked.bytes > 500 + len("json_object")
    assert asked.sampled_worst_tokens > 500 + 64


# Time at the limits


@pytest.mark.parametrize(
    ("endpoints", "limit", "latency", "wall"),
    [
        ([Endpoint("a")], None, None, None),
        ([Endpoint("a", rpm=60)], None, None, (600.0, "at least: 60 requests a minute; ")),
        ([Endpoint("a", rpm=60), Endpoint("b", rpm=240)], None, None, (120.0, "at least: 300 ")),
        ([Endpoint("a", rpm=60), Endpoint("b")], None, None, None),
        ([Endpoint("a", rpm=60, tpm=100)], None, None, (3600.0, "at least: 100 tokens a minute")),
        ([Endpoint("a", rpd=200)], None, None, (2 * 86_400.0, "at least: 200 requests a day")),
        ([Endpoint("a", tpd=5_999)], None, None, (86_400.0, "at least: 5,999 tokens a day")),
        ([Endpoint("a", max_concurrency=3)], None, 2.0, (400.0, "3 in flight at 2 s each")),
        ([Endpoint("a", max_concurrency=3)], 2, 2.0, (600.0, "2 in flight at 2 s each")),
        ([Endpoint("a")], 6, 2.0, (200.0, "6 in flight at 2 s each")),
        ([Endpoint("a", max_concurrency=3, rpm=60)], None, 2.0, (600.0, "60 requests a minute")),
        ([Endpoint("a", max_concurrency=9_999)], None, 2.0, (2.0, "9,999 in flight")),
        ([Endpoint("a")], None, 2.0, None),
    ],
)
def test_the_tightest_known_limit_sets_the_time(
    endpoints: list[Endpoint],
    limit: int | None,
    latency: float | None,
    wall: tuple[float, str] | None,
) -> None:
    found = wall_time(endpoints, limit, [Load(600, 6000, latency)])
    if wall is None:
        assert found.seconds is None
        assert found.limit.startswith("not known")
    else:
        assert found.seconds == wall[0]
        assert found.limit.startswith(wall[1])


def test_nothing_left_takes_no_time() -> None:
    assert wall_time([Endpoint("a", rpm=1)], None, []) == Wall(0.0, "nothing is left to ask")


# What is left when a budget stops a run


def test_what_is_left_costs_the_mean_of_what_has_ended(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, [f"q{i}" for i in range(32)])
    assert remaining_picousd(corpus, 32) is None, "there is no mean yet"
    corpus = answered(corpus, 0, 8, failed=2, cost=300)
    assert remaining_picousd(corpus, 22) == 22 * 300
    assert remaining_picousd(corpus, 11) == 11 * 300, "half of them were retired"
    assert remaining_picousd(corpus, 0) == 0


def test_a_set_of_which_nothing_has_ended_takes_the_mean_of_all(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    create_or_check(layout, new_facts("1.0", 4, 0, "float16"))
    requests = [
        SetRequest(name, "t", {"model": "m"}, Sampling(), 1, {}, [], lambda rows=rows: iter(rows))
        for name, rows in (
            (name, [Prompt(f"p{i}", [message("user", f"{name}{i}")], "f:1") for i in range(4)])
            for name in ("a", "b", "c")
        )
    ]
    plan(layout, requests, partition_size=4)
    corpus = answered(load(layout.root), 0, 2, cost=10)
    corpus = answered(corpus, 1, 2, cost=30)
    assert remaining_picousd(corpus, 8) == 2 * 10 + 2 * 30 + 4 * 20
