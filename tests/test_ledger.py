"""The ledger's sums are the server's own books, whatever went wrong on the way."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpusgen import commits
from corpusgen.commits import Commit
from corpusgen.corpus import create_or_check, load, new_facts
from corpusgen.errors import CorpusError
from corpusgen.layout import Layout
from corpusgen.ledger import Ledger, Sums, dollars_text, read_ledger
from corpusgen.money import PICO, Tariff
from corpusgen.plan.planning import SetRequest, plan
from corpusgen.shards import write_attempts
from corpusgen.types import Attempt, Prompt, Sampling
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
    return read_ledger(corpus, kept=20), log


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
    assert ledger.cost_per_kept_picousd == total.cost_picousd // 20


@pytest.mark.parametrize("way", ["by_outcome", "by_endpoint", "by_teacher", "by_prompt_set"])
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
    ledger = read_ledger(load(layout.root), kept=None)
    assert ledger.total == Sums(
        attempts=4,
        answered=1,
        prompt_tokens=5,
        completion_tokens=3,
        cost_picousd=11,
        unknown_cost=2,
        reserved_picousd=100,
    )
    assert ledger.charged_picousd == 111
    assert ledger.cost_per_kept_picousd is None
    assert ledger.by_outcome["rejected"].reserved_picousd == 0, "its cost is known"


def test_sums_do_not_overflow_or_round(tmp_path: Path) -> None:
    many = [attempt(n, "answered", cost_picousd=2**60 + n) for n in range(7)]
    ledger = read_ledger(load(corpus_of(tmp_path, *many).root), kept=1)
    assert ledger.total.cost_picousd == 7 * 2**60 + 21


def test_an_empty_corpus_has_an_empty_ledger(tmp_path: Path) -> None:
    layout = Layout(tmp_path / "out")
    create_or_check(layout, new_facts("1.0", 4, 0, "float16"))
    ledger = read_ledger(load(layout.root), kept=None)
    assert ledger.total == Sums()
    assert not ledger.price_known


@pytest.mark.parametrize("content", [b"", b"PAR1PAR1", b"text"])
def test_a_torn_file_is_one_sentence(tmp_path: Path, content: bytes) -> None:
    layout = corpus_of(tmp_path, attempt(1, "answered"))
    layout.part("attempts", 0, 0).write_bytes(content)
    with pytest.raises(
        CorpusError, match=r"cannot be read: .* Run `corpusgen verify` on the corpus\.$"
    ):
        read_ledger(load(layout.root), kept=None)


def test_a_foreign_file_is_one_sentence(tmp_path: Path) -> None:
    layout = corpus_of(tmp_path, attempt(1, "answered"))
    pq.write_table(pa.table({"a": [1]}), layout.part("attempts", 0, 0))
    with pytest.raises(CorpusError, match=r"Run `corpusgen verify` on the corpus\.$"):
        read_ledger(load(layout.root), kept=None)


@pytest.mark.parametrize(
    ("picousd", "text"),
    [
        (0, "$0"),
        (PICO, "$1.00"),
        (1_234_567 * PICO + PICO // 2, "$1,234,567.50"),
        (PICO // 100, "$0.01"),
        (123_456_789, "$0.0001235"),
        (23_456_789, "$0.00002346"),
        (1, "$0.000000000001"),
        (PICO - 1, "$1"),
    ],
)
def test_dollars_for_people(picousd: int, text: str) -> None:
    assert dollars_text(picousd) == text
