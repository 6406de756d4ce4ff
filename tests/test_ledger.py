"""The ledger's sums are the server's own books, whatever went wrong on the way."""

from __future__ import annotations

import csv
import json
from collections import Counter
from datetime import UTC, datetime
from io import StringIO
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen import commits
from corpusgen.commits import Commit
from corpusgen.config import Gpu
from corpusgen.corpus import create_or_check, load, new_facts
from corpusgen.errors import CorpusError
from corpusgen.layout import Layout
from corpusgen.ledger import Ledger, Sums, latest_curation, ledger_csv, read_ledger
from corpusgen.ledger.busy import BusyTime
from corpusgen.money import Tariff
from corpusgen.plan.planning import SetRequest, plan
from corpusgen.shards import write_attempts
from corpusgen.types import Attempt, Prompt, Sampling
from tests.corpus_factory import Row, generation, write_generations, write_verdicts
from tests.loopback import Script, serving
from tests.runs import corpusgen, remote, succeeded, write_config, write_prompts

FAULTS = {
    "[[once:500]]": "server_error",
    "[[once:429]]": "rate_limit",
    "[[once:503]]": "overloaded",
    "[[once:torn]]": "torn_answer",
    "[[once:html]]": "torn_answer",
    "[[once:drop]]": "connection",
    "[[400]]": "rejected",
    "[[contextlen]]": "context_overflow",
    "[[policy]]": "content_filter",
}
TARIFF = Tariff(1_000_000, 1_000_000, 2_000_000, "configuration")


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ledger, dict[str, Any]]:
    """Run into every fault; return the ledger and the server's log."""
    directory = tmp_path_factory.mktemp("ledger")
    prompts = [*FAULTS, "[[think]] reasons first", *(f"question {i}" for i in range(30))]
    write_prompts(directory / "prompts.jsonl", prompts)
    with serving(Script()) as server:
        config = write_config(
            directory,
            teacher=remote(server.base_url, price={"input_per_mtok": "1", "output_per_mtok": "2"}),
            generate={"partition_size": 16, "retry": {"first_wait_s": 0.01}},
        )
        succeeded(corpusgen("run", config), code=3)
        log = {**server.stats(), "requests": server.log()}
    corpus = load(directory / "out")
    return read_ledger(corpus, latest_curation(corpus)), log


def test_every_request_is_an_attempt(books: tuple[Ledger, dict[str, Any]]) -> None:
    ledger, log = books
    assert ledger.total.attempts == len(log["requests"]) == 31 + 2 * 6 + 3
    outcomes = Counter(FAULTS.values()) | Counter(answered=37)
    assert {name: sums.attempts for name, sums in ledger.by_outcome.items()} == outcomes


def test_tokens_are_those_that_the_server_billed(books: tuple[Ledger, dict[str, Any]]) -> None:
    """But for the torn answer, whose usage never arrived: it is charged at its worst case."""
    ledger, log = books
    seen = [r for r in log["requests"] if r["fault"] != "torn"]
    assert ledger.total.prompt_tokens == sum(r["prompt_tokens"] for r in seen)
    assert ledger.total.completion_tokens == sum(r["completion_tokens"] for r in seen)
    assert ledger.total.reasoning_tokens > 0
    assert ledger.total.answered == sum(r["completion_tokens"] > 0 for r in seen)


def test_costs_are_exact_and_the_unknown_is_charged_apart(
    books: tuple[Ledger, dict[str, Any]],
) -> None:
    ledger, log = books
    total = ledger.total
    assert total.cost_picousd == TARIFF.cost(total.prompt_tokens, total.completion_tokens)
    assert total.unknown_cost == 3, "torn, the web page, and the connection that broke"
    billed = TARIFF.cost(log["prompt_tokens"], log["completion_tokens"])
    assert total.cost_picousd < billed <= ledger.charged_picousd
    assert ledger.charged_picousd == total.cost_picousd + total.reserved_picousd
    assert ledger.price_known
    assert total.generations == 37
    assert 0 < total.accepted == ledger.kept
    assert ledger.cost_per_accepted_picousd == -(-total.cost_picousd // total.accepted)


@pytest.mark.parametrize(
    "way", ["by_outcome", "by_endpoint", "by_teacher", "by_prompt_set", "by_day", "by_fate"]
)
def test_each_way_of_looking_sums_up_to_the_total(
    books: tuple[Ledger, dict[str, Any]], way: str
) -> None:
    ledger, _ = books
    total = Sums()
    for sums in getattr(ledger, way).values():
        total.add(sums)
    assert total == ledger.total


def test_the_command_prints_the_same_numbers(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["[[once:500]] q", "other"])
    with serving(Script()) as server:
        retry = {"retry": {"first_wait_s": 0.01}}
        config = write_config(tmp_path, teacher=remote(server.base_url), generate=retry)
        succeeded(corpusgen("run", config))
    printed = json.loads(succeeded(corpusgen("ledger", tmp_path / "out", "--json")))
    assert printed["total"]["attempts"] == 3
    assert printed["total"]["unknown_cost"] == 3
    assert printed["price_known"] is False
    text = succeeded(corpusgen("ledger", tmp_path / "out"))
    assert "The price is unknown; set teacher.price to have the cost counted." in text


# Sums over rows that are made by hand


def corpus_of(root: Path, *attempts: Attempt) -> Layout:
    layout = Layout(root / "out")
    create_or_check(layout, new_facts("1.0", 4, 0, "float16"))
    prompt = Prompt("p", [{"role": "user", "content": "q"}], "f:1")
    request = SetRequest("set", "t", {"model": "m"}, Sampling(), 1, {}, [], lambda: iter([prompt]))
    plan(layout, [request], partition_size=4)
    path = layout.part("attempts", 0, 0)
    rows = write_attempts(path, attempts, "c" * 32)
    files = {"attempts": commits.describe(path, layout, rows)}
    commits.put(layout, Commit(1, 0, 0, files))
    return layout


def attempt(number: int, outcome: str, **changes: Any) -> Attempt:
    return Attempt(f"{number:032x}", ["s"], "local", 1.0, outcome, **changes)


def test_what_is_unknown_is_never_taken_as_zero(tmp_path: Path) -> None:
    layout = corpus_of(
        tmp_path,
        attempt(1, "answered", prompt_tokens=5, completion_tokens=3, cost_picousd=11),
        attempt(2, "lost", reserved_picousd=70),
        attempt(3, "timeout", reserved_picousd=30),
        attempt(4, "rejected", cost_picousd=0, reserved_picousd=50),
    )
    ledger = read_ledger(load(layout.root), None)
    assert ledger.total == Sums(
        attempts=4,
        answered=1,
        prompt_tokens=5,
        completion_tokens=3,
        cost_picousd=11,
        unknown_cost=2,
        reserved_picousd=100,
    )
    assert ledger.total.unreserved == 0
    assert ledger.charged_picousd == 111
    assert ledger.cost_per_accepted_picousd is None
    assert ledger.by_outcome["rejected"].reserved_picousd == 0, "its cost is known"


def test_sums_do_not_overflow_or_round(tmp_path: Path) -> None:
    many = [attempt(n, "answered", cost_picousd=2**60 + n) for n in range(7)]
    ledger = read_ledger(load(corpus_of(tmp_path, *many).root), None)
    assert ledger.total.cost_picousd == 7 * 2**60 + 21


def test_an_empty_corpus_has_an_empty_ledger(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    create_or_check(layout, new_facts("1.0", 4, 0, "float16"))
    ledger = read_ledger(load(layout.root), None)
    assert ledger.total == Sums()
    assert not ledger.price_known


@pytest.mark.parametrize("content", [b"", b"PAR1PAR1", b"text"])
def test_a_torn_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    layout = corpus_of(tmp_path, attempt(1, "answered"))
    layout.part("attempts", 0, 0).write_bytes(content)
    with pytest.raises(
        CorpusError, match=r"cannot be read: .* Run `corpusgen verify` on the corpus\.$"
    ):
        read_ledger(load(layout.root), None)


def test_a_foreign_file_is_one_sentence(tmp_path: Path) -> None:
    layout = corpus_of(tmp_path, attempt(1, "answered"))
    pq.write_table(pa.table({"a": [1]}), layout.part("attempts", 0, 0))
    with pytest.raises(CorpusError, match=r"Run `corpusgen verify` on the corpus\.$"):
        read_ledger(load(layout.root), None)


# What became of the money


class Part(msgspec.Struct):
    """One part of a partition, before it is written."""

    attempts: list[Attempt] = []
    generations: list[Row] = []


FILTERS = ["length", "=HYPERLINK(1)", None, None]
"""What drops a generation; null: nothing does."""


def planned(root: Path, prompts: int = 8) -> tuple[Layout, list[str]]:
    """Plan prompts in partitions of 8; return the sample ids in the plan's order."""
    layout = Layout(root / "out")
    create_or_check(layout, new_facts("1.0", 8, 0, "float16"))
    rows = [Prompt(f"p{i}", [{"role": "user", "content": f"q{i}"}], "f:1") for i in range(prompts)]
    request = SetRequest("set", "t", {"model": "m"}, Sampling(), 1, {}, [], lambda: iter(rows))
    plan(layout, [request], partition_size=8)
    corpus = load(layout.root)
    return layout, [s for p in range(corpus.plan.partitions) for s in corpus.plan.ids_of(p)]


def write_part(layout: Layout, part: int, content: Part, dropped: dict[str, str]) -> None:
    files = {}
    if content.attempts:
        path = layout.part("attempts", 0, part)
        rows = write_attempts(path, content.attempts, "c" * 32)
        files["attempts"] = commits.describe(path, layout, rows)
    if content.generations:
        path = layout.part("generations", 0, part)
        write_generations(path, content.generations)
        files["generations"] = commits.describe(path, layout, len(content.generations))
        verdicts = layout.curation / "latest" / "verdicts" / path.name
        write_verdicts(verdicts, path, {s: (name, "because") for s, name in dropped.items()})
    commits.put(layout, Commit(1, 0, part, files))


def answer(sample: str, sent: Attempt) -> Row:
    return generation(sample_id=sample, started_at=datetime.fromtimestamp(sent.started_at, UTC))


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[tuple[Attempt, list[int]]], list[int], list[Any]]:
    """Return attempts with the samples that each answered, where to cut them, and verdicts."""
    waiting = list(range(8))
    sent: list[tuple[Attempt, list[int]]] = []
    amounts = st.none() | st.integers(0, 2**62)
    tokens = st.none() | st.integers(0, 2**31 - 1)
    for number in range(draw(st.integers(1, 12))):
        asked = waiting[: draw(st.integers(1, 5))] or [0]
        outcome = draw(st.sampled_from(["answered", "answered", "timeout", "lost"]))
        brought = asked[: draw(st.integers(0, len(asked)))] if outcome == "answered" else []
        brought = [index for index in brought if index in waiting]
        waiting = [index for index in waiting if index not in brought]
        one = Attempt(
            f"{number:032x}",
            [str(index) for index in asked],
            draw(st.sampled_from(["near", "far"])),
            1e9 + number * draw(st.sampled_from([0.25, 7.0, 90_000.0])) + number / 1024,
            outcome,
            latency_s=draw(st.none() | st.sampled_from([0.125, 3.0, 100_000.0])),
            prompt_tokens=draw(tokens),
            cached_tokens=draw(tokens),
            completion_tokens=draw(tokens),
            reasoning_tokens=draw(tokens),
            cost_picousd=draw(amounts),
            reserved_picousd=draw(amounts),
        )
        sent.append((one, brought))
    cuts = sorted(draw(st.sets(st.integers(1, len(sent)), max_size=4)))
    return sent, cuts, [draw(st.sampled_from(FILTERS)) for _ in range(8)]


def written(root: Path, history: Any, cuts: list[int]) -> Ledger:
    """Write a history as the parts that the cuts make; return its ledger."""
    sent, _, verdicts = history
    layout, ids = planned(root)
    dropped = {ids[i]: name for i, name in enumerate(verdicts) if name is not None}
    bounds = [0, *cuts, len(sent)]
    for part, (start, end) in enumerate(pairwise(bounds)):
        content = Part([], [])
        for one, brought in sent[start:end]:
            named = msgspec.structs.replace(one, sample_ids=[ids[int(i)] for i in one.sample_ids])
            content.attempts.append(named)
            content.generations += [answer(ids[i], one) for i in brought]
        write_part(layout, part, content, dropped)
    gpus = {"t": Gpu(usd_per_hour="2.5", count=8)}
    return read_ledger(load(layout.root), layout.curation / "latest", gpus)


@settings(max_examples=40, deadline=None)
@given(histories())
def test_sums_are_the_same_however_a_run_was_cut_into_parts(history: Any) -> None:
    sent, cuts, verdicts = history
    with TemporaryDirectory() as one, TemporaryDirectory() as many:
        whole, parts = written(Path(one), history, []), written(Path(many), history, cuts)
    assert whole == parts
    assert whole.total.cost_picousd == sum(a.cost_picousd or 0 for a, _ in sent)
    assert whole.total.prompt_tokens == sum(a.prompt_tokens or 0 for a, _ in sent)
    fates = Counter[str]()
    for attempt_, brought in sent:
        cost = attempt_.cost_picousd or 0
        if not brought:
            fates[f"wasted: {attempt_.outcome}"] += cost
        for place, index in enumerate(brought):
            name = verdicts[index]
            fate = "accepted" if name is None else f"dropped: {name}"
            share, rest = divmod(cost, len(brought))
            fates[fate] += share + (rest if place == 0 else 0)
    assert {fate: sums.cost_picousd for fate, sums in whole.by_fate.items()} == dict(fates)
    total = Sums()
    for sums in whole.by_fate.values():
        total.add(sums)
    assert total == whole.total


def test_an_answer_without_a_verdict_is_not_curated_and_one_that_is_gone_is_wasted(
    tmp_path: Path,
) -> None:
    layout, ids = planned(tmp_path)
    kept, gone = (
        Attempt(f"{n:032x}", [ids[n]], "e", 1.0 + n, "answered", cost_picousd=5 + n)
        for n in range(2)
    )
    write_part(layout, 0, Part([kept, gone], [answer(ids[0], kept)]), {})
    fates = read_ledger(load(layout.root), None).by_fate
    assert {fate: sums.cost_picousd for fate, sums in fates.items()} == {
        "not curated": 5,
        "wasted: answered": 6,
    }


def test_a_cost_that_is_unknown_in_one_place_is_not_zero_there(tmp_path: Path) -> None:
    layout, ids = planned(tmp_path)
    unknown = Attempt("0" * 32, ids[:3], "dark", 1.0, "answered", completion_tokens=7)
    known = Attempt("1" * 32, ids[3:4], "lit", 2.0, "answered", cost_picousd=5, reserved_picousd=9)
    rows = [answer(sample, unknown) for sample in ids[:3]] + [answer(ids[3], known)]
    write_part(layout, 0, Part([unknown, known], rows), dict.fromkeys(ids[1:3], "length"))
    ledger = read_ledger(load(layout.root), layout.curation / "latest")
    assert ledger.price_known
    assert not ledger.by_endpoint["dark"].cost_known
    assert ledger.by_endpoint["lit"].cost_known
    assert not ledger.by_fate["dropped: length"].cost_known, "though no whole attempt is in it"
    assert ledger.total.unreserved == 1
    rows_ = list(csv.DictReader(StringIO(ledger_csv(ledger))))
    costs = {(row["dimension"], row["key"]): row["cost_usd"] for row in rows_}
    assert costs["endpoint", "dark"] == costs["fate", "dropped: length"] == ""
    assert costs["endpoint", "lit"] == costs["total", ""] == "0.000000000005"


def test_days_are_those_of_utc(tmp_path: Path) -> None:
    layout, ids = planned(tmp_path)
    midnight = datetime(2026, 11, 22, tzinfo=UTC).timestamp()
    sent = [
        Attempt(f"{n:032x}", ids[:1], "e", midnight + shift, "timeout", cost_picousd=1)
        for n, shift in enumerate((-0.001, 0.0, 86_399.999))
    ]
    write_part(layout, 0, Part(sent, []), {})
    days = read_ledger(load(layout.root), None).by_day
    assert {day: sums.attempts for day, sums in days.items()} == {"2026-11-21": 1, "2026-11-22": 2}


def test_machines_cost_the_time_in_which_anything_was_in_flight(tmp_path: Path) -> None:
    layout, ids = planned(tmp_path)
    spans = [(0.0, 10.0), (2.0, 3.0), (10.5, 9.5), (100.0, 20.0), (500.0, None)]
    sent = [
        Attempt(f"{n:032x}", ids[:1], "e", 1000.0 + start, "timeout", latency_s=lasted)
        for n, (start, lasted) in enumerate(spans)
    ]
    write_part(layout, 0, Part(sent, []), {})
    gpus = {"t": Gpu(usd_per_hour="3.6", count=2), "another": Gpu(usd_per_hour="1")}
    ledger = read_ledger(load(layout.root), None, gpus)
    assert ledger.gpu.keys() == {"t"}
    assert ledger.gpu["t"].busy_us == 40_000_000, "half a second between two is no pause"
    assert ledger.gpu["t"].cost_picousd == ledger.gpu_picousd == 2 * 40 * 10**9
    assert ledger.active_s == 40.0


@given(
    st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**7)), min_size=1, max_size=30),
    st.data(),
)
def test_busy_time_does_not_depend_on_the_order(spans: list[Any], data: st.DataObject) -> None:
    def length(spans: list[Any], step: int) -> int:
        busy = BusyTime()
        for start in range(0, len(spans), step):
            batch = np.array(spans[start : start + step], dtype=np.int64)
            busy.add(batch[:, 0], batch[:, 0] + batch[:, 1])
            assert busy.microseconds > -1
        return busy.microseconds

    mixed = data.draw(st.permutations(spans))
    assert length(spans, len(spans)) == length(mixed, 3)
    longest = max(length_ for _, length_ in spans)
    assert longest <= length(spans, 7) <= 10**8 + 10**7


def test_the_table_is_safe_in_a_spreadsheet(tmp_path: Path) -> None:
    layout, ids = planned(tmp_path)
    sent = Attempt("0" * 32, ids[:1], "=cmd|' /C calc'!A0", 1.0, "timeout")
    write_part(layout, 0, Part([sent], []), {})
    rows = list(csv.DictReader(StringIO(ledger_csv(read_ledger(load(layout.root), None)))))
    assert [row["key"] for row in rows if row["dimension"] == "endpoint"] == ["'=cmd|' /C calc'!A0"]
    assert rows[0]["dimension"] == "total"
    assert {row["attempts"] for row in rows} == {"1"}
