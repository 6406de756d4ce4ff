"""Split the attempts of a partition over what became of them, exactly.

An attempt that brought several answers has each of its figures divided among them in whole numbers,
the remainder to the first, so that sums over outcomes and answers are the total to the picodollar.
Figures of an attempt that brought nothing are not divided: its fate is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from corpusgen.ledger.sums import Sums

Int64s = npt.NDArray[np.int64]

COLUMNS = [
    "sample_ids",
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
"""Of `attempts`, those that are read here."""
ACCEPTED = "accepted"
NOT_CURATED = "not curated"
_TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
_COMPLETION, _UNKNOWN = 4, 7
"""Columns of `_figures`, which are the first fields of `Sums`."""
_DAY_US = 86_400_000_000


class Answers(msgspec.Struct, frozen=True):
    """A partition's generations."""

    sample_ids: pa.Array
    started_us: Int64s
    """When the request was sent that brought them: with the id it names the attempt."""
    fates: npt.NDArray[np.object_]


class Group(msgspec.Struct, frozen=True):
    """What some attempts come to that have all of this in common."""

    endpoint: str
    outcome: str
    day: str
    fate: str
    sums: Sums


def groups(attempts: pa.Table, answers: Answers) -> Iterator[Group]:
    """Yield the sums of a partition's attempts, each attempt in exactly one group or divided."""
    outcomes = _words(attempts["outcome"])
    owner, answer = _brought(attempts, outcomes, answers)
    alone = np.setdiff1d(np.arange(attempts.num_rows), owner)
    figures = _figures(attempts, outcomes)
    shares = np.concatenate([figures[alone], _divided(figures, owner)])
    rows = np.concatenate([alone, owner])
    fates = np.concatenate(
        [np.char.add("wasted: ", outcomes[alone].astype(str)).astype(object), answers.fates[answer]]
    )
    brought = np.repeat([0, 1], [len(alone), len(owner)])
    kept = np.where(fates == ACCEPTED, brought, 0)
    unknown = brought * (figures[rows, _UNKNOWN] > 0)
    shares = np.column_stack([shares, brought, kept, kept * shares[:, _COMPLETION], unknown])
    keys = [
        _words(attempts["endpoint"])[rows],
        outcomes[rows],
        started_us(attempts)[rows] // _DAY_US,
        fates,
    ]
    for first, sums in _sums(keys, shares):
        endpoint, outcome, day, fate = (key[first] for key in keys)
        yield Group(endpoint, outcome, _date(int(day)), fate, sums)


def started_us(attempts: pa.Table) -> Int64s:
    """Return when each attempt was sent, in microseconds since 1970."""
    found: Int64s = attempts["started_at"].cast(pa.int64()).to_numpy()
    return found


def _words(column: pa.ChunkedArray) -> npt.NDArray[np.object_]:
    words: npt.NDArray[np.object_] = column.cast(pa.string()).to_numpy()
    return words


def _brought(
    attempts: pa.Table, outcomes: npt.NDArray[np.object_], answers: Answers
) -> tuple[Int64s, Int64s]:
    """Return the attempts that brought answers and those answers, pair by pair, by attempt."""
    lengths = pc.list_value_length(attempts["sample_ids"]).to_numpy()
    rows = np.repeat(np.arange(attempts.num_rows), lengths)
    asked = pc.list_flatten(attempts["sample_ids"]).combine_chunks()
    found = pc.index_in(asked, value_set=answers.sample_ids).fill_null(-1).to_numpy()
    same = (found >= 0) & (outcomes[rows] == "answered")
    same[same] = answers.started_us[found[same]] == started_us(attempts)[rows[same]]
    rows, found = rows[same], found[same].astype(np.int64)
    # Of two attempts that cannot be told apart, the later one counts: no answer counts twice.
    _, last = np.unique(found[::-1], return_index=True)
    chosen = np.sort(len(found) - 1 - last)
    return rows[chosen], found[chosen]


def _figures(attempts: pa.Table, outcomes: npt.NDArray[np.object_]) -> Int64s:
    """Return the figures of each attempt, a column each; what is unknown counts as none."""
    unknown = pc.is_null(attempts["cost_picousd"]).to_numpy()
    return np.column_stack(
        [
            np.ones(attempts.num_rows, np.int64),
            (outcomes == "answered").astype(np.int64),
            *(_numbers(attempts[name]) for name in _TOKENS),
            _numbers(attempts["cost_picousd"]),
            unknown.astype(np.int64),
            np.where(unknown, _numbers(attempts["reserved_picousd"]), 0),
            (unknown & pc.is_null(attempts["reserved_picousd"]).to_numpy()).astype(np.int64),
        ]
    )


def _numbers(column: pa.ChunkedArray) -> Int64s:
    found: Int64s = column.fill_null(0).cast(pa.int64()).to_numpy()
    return found


def _divided(figures: Int64s, owner: Int64s) -> Int64s:
    """Return the share of each answer in its attempt's figures; `owner` is in order."""
    _, first, count = np.unique(owner, return_index=True, return_counts=True)
    among = np.repeat(count, count)[:, None]
    shares: Int64s = figures[owner] // among
    shares[first] += (figures[owner] % among)[first]
    return shares


def _sums(
    keys: list[npt.NDArray[np.object_] | Int64s], shares: Int64s
) -> Iterator[tuple[int, Sums]]:
    """Yield, for each combination of keys, the number of one of its rows and its sums."""
    code = np.zeros(len(shares), np.int64)
    for key in keys:
        values, inverse = np.unique(key, return_inverse=True)
        code = code * len(values) + inverse
    order = np.argsort(code, kind="stable")
    starts = np.flatnonzero(np.diff(code[order], prepend=-1))
    if not len(starts):
        return
    # In two halves, since a sum of what fits into 64 bits need not.
    high = np.add.reduceat(shares[order] >> 32, starts, axis=0)
    low = np.add.reduceat(shares[order] & 0xFFFFFFFF, starts, axis=0)
    for first, upper, lower in zip(order[starts], high.tolist(), low.tolist(), strict=True):
        yield int(first), Sums(*((h << 32) + part for h, part in zip(upper, lower, strict=True)))


def _date(days: int) -> str:
    return datetime.fromtimestamp(days * 86_400, UTC).date().isoformat()
