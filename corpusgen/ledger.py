"""Sum up what a corpus cost, from the attempt rows: one for every request, whatever came of it.

Sums are integers (picodollars, tokens). What is unknown is counted apart and never taken as zero.
Only committed attempts are counted; while a run goes on, the newest ones are still in its journal.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Context, Decimal

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from corpusgen.corpus import Corpus
from corpusgen.money import PICO, dollars
from corpusgen.parquet import read_table

_FOUR_DIGITS = Context(prec=4)
_COLUMNS = [
    "endpoint",
    "outcome",
    "started_at",
    "latency_s",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "cost_picousd",
    "reserved_picousd",
]


class Sums(msgspec.Struct):
    """Sums over attempts."""

    attempts: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    cost_picousd: int = 0
    """Of the attempts whose cost is known."""
    unknown_cost: int = 0
    """Attempts whose cost nobody knows: no price, or an outcome that was not seen."""
    reserved_picousd: int = 0
    """What those are charged at, where a price is known: their worst case."""

    def add(self, other: Sums) -> None:
        """Add another's sums to these."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Ledger(msgspec.Struct, frozen=True):
    """What a corpus cost, in total and by each way of looking at it."""

    total: Sums
    by_outcome: dict[str, Sums]
    by_endpoint: dict[str, Sums]
    by_endpoint_outcome: dict[str, dict[str, Sums]]
    by_teacher: dict[str, Sums]
    by_prompt_set: dict[str, Sums]
    generations: int
    kept: int | None
    """Rows that the latest curation keeps; null where there is none."""
    price_known: bool
    """Whether any attempt has a price."""
    active_s: float
    """Seconds in which requests were in flight; pauses between runs are left out."""

    @property
    def cost_per_kept_picousd(self) -> int | None:
        """Known cost for each kept generation; null where nothing is kept or no price is known."""
        if not self.kept or not self.price_known:
            return None
        return self.total.cost_picousd // self.kept

    @property
    def charged_picousd(self) -> int:
        """What counts against a budget: known cost, and the worst case of the rest."""
        return self.total.cost_picousd + self.total.reserved_picousd


def read_ledger(corpus: Corpus, kept: int | None) -> Ledger:
    """Sum up a corpus' attempts, a file at a time; raise `CorpusError` on one that is torn."""
    by_outcome: dict[str, Sums] = {}
    by_endpoint: dict[str, Sums] = {}
    by_pair: dict[str, dict[str, Sums]] = {}
    by_teacher: dict[str, Sums] = {}
    by_prompt_set: dict[str, Sums] = {}
    total = Sums()
    priced = 0
    spans: list[tuple[float, float]] = []
    for commit in corpus.commits:
        run = corpus.plan.run_of(commit.partition)
        if "attempts" not in commit.files:
            continue
        table = read_table(corpus.path / commit.files["attempts"].path, _COLUMNS)
        spans.append(_span(table))
        for outcome, endpoint, sums, with_price in _groups(table):
            priced += with_price
            total.add(sums)
            for mapping, key in (
                (by_outcome, outcome),
                (by_endpoint, endpoint),
                (by_pair.setdefault(endpoint, {}), outcome),
                (by_teacher, run.teacher),
                (by_prompt_set, run.prompt_set),
            ):
                mapping.setdefault(key, Sums()).add(sums)
    return Ledger(
        total=total,
        by_outcome=by_outcome,
        by_endpoint=by_endpoint,
        by_endpoint_outcome=by_pair,
        by_teacher=by_teacher,
        by_prompt_set=by_prompt_set,
        generations=corpus.rows("generations"),
        kept=kept,
        price_known=priced > 0,
        active_s=_union_s(spans),
    )


def _span(table: pa.Table) -> tuple[float, float]:
    """Return when a part's first request was sent and its last one ended, in epoch seconds."""
    started = table["started_at"].cast(pa.int64()).to_numpy() / 1e6
    ended = started + table["latency_s"].fill_null(0.0).to_numpy()
    return float(started.min()), float(ended.max())


def _union_s(spans: list[tuple[float, float]]) -> float:
    """Return how many seconds are covered by any of some spans."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered


def _groups(table: pa.Table) -> Iterator[tuple[str, str, Sums, int]]:
    """Yield (outcome, endpoint, sums, attempts with a price) for each pair of the first two."""
    pairs = table.select(["outcome", "endpoint"]).group_by(["outcome", "endpoint"]).aggregate([])
    for pair in pairs.to_pylist():
        mask = pc.and_(
            pc.equal(table["outcome"], pair["outcome"]),
            pc.equal(table["endpoint"], pair["endpoint"]),
        )
        rows = table.filter(mask)
        priced = rows.num_rows - rows["reserved_picousd"].null_count
        yield pair["outcome"], pair["endpoint"], _sums(rows, pair["outcome"]), priced


def _sums(rows: pa.Table, outcome: str) -> Sums:
    unknown = rows.filter(pc.is_null(rows["cost_picousd"]))
    return Sums(
        attempts=rows.num_rows,
        answered=rows.num_rows if outcome == "answered" else 0,
        prompt_tokens=_sum(rows, "prompt_tokens"),
        cached_tokens=_sum(rows, "cached_tokens"),
        completion_tokens=_sum(rows, "completion_tokens"),
        reasoning_tokens=_sum(rows, "reasoning_tokens"),
        cost_picousd=_sum(rows, "cost_picousd"),
        unknown_cost=unknown.num_rows,
        reserved_picousd=_sum(unknown, "reserved_picousd"),
    )


def _sum(rows: pa.Table, column: str) -> int:
    return pc.sum(rows[column]).as_py() or 0


def dollars_text(picousd: int) -> str:
    """Return picodollars for people: `$1.27`, or four significant digits below a dollar."""
    if picousd >= PICO:
        return f"${Decimal(picousd) / PICO:,.2f}"
    return f"${dollars(int(_FOUR_DIGITS.create_decimal(picousd)))}"
