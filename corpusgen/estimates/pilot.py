"""Measure what this corpus' own answers took, prompt set by prompt set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from corpusgen.commits import Commit
from corpusgen.corpus import Corpus
from corpusgen.estimates.pending import text_bytes
from corpusgen.parquet import read_table

FEWEST = 8
"""Answers below which nothing is measured."""
FEWEST_STORED = 500
"""Answers below which the bytes that they take on disk say little."""
MOST = 2000
"""Answers that are looked at, of a prompt set."""
_SHARED = ["completion_tokens", "reasoning_tokens"]
"""What a reply states for all of its answers together."""
_COLUMNS = [
    "sample_id",
    "messages",
    "tools",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "latency_s",
]

Key = tuple[str, str]
"""A prompt set and the variant under which it was planned."""


class Pilot(msgspec.Struct, frozen=True):
    """What answers to a prompt set took; null where too few of them state it."""

    answers: int
    """Looked at."""
    tokens_a_byte: Fraction | None
    """Prompt tokens for each byte of the prompt's text."""
    cached_share: Fraction
    """Of the prompt's tokens."""
    completion_tokens: Fraction | None
    """Mean of an answer."""
    least_completion_tokens: Fraction | None
    """The mean less twice its standard error."""
    reasoning_share: Fraction
    """Of the completion's tokens."""
    latency_s: float
    bytes_an_answer: Fraction | None
    """On disk, with the attempts; null where a file's frame would weigh too much in it."""


class _Share(msgspec.Struct, frozen=True):
    """An answer's part of what its request took; null where that is not stated."""

    draws: int
    """Answers that it brought."""
    completion_tokens: float | None
    reasoning_tokens: float | None


_UNKNOWN = _Share(1, None, None)


def read_pilots(corpus: Corpus, keys: Collection[Key]) -> dict[Key, Pilot]:
    """Return what is measured of each of some prompt sets that has answers enough."""
    parts: dict[Key, list[Commit]] = {key: [] for key in keys}
    for commit in corpus.commits:
        run = corpus.plan.run_of(commit.partition)
        if (run.prompt_set, run.variant) in parts and "generations" in commit.files:
            parts[run.prompt_set, run.variant].append(commit)
    return {
        key: _measure(corpus, commits)
        for key, commits in parts.items()
        if sum(commit.rows("generations") for commit in commits) >= FEWEST
    }


def _measure(corpus: Corpus, commits: list[Commit]) -> Pilot:
    table = pa.concat_tables(_looked_at(corpus.path, commits))
    completions, prompts = _numbers(table, "completion_tokens"), _numbers(table, "prompt_tokens")
    measured = ~np.isnan(completions)
    mean, least = _mean(completions[measured], _numbers(table, "draws")[measured])
    stored = sum(f.bytes for c in commits for k, f in c.files.items() if k != "failures")
    count = sum(commit.rows("generations") for commit in commits)
    return Pilot(
        answers=table.num_rows,
        tokens_a_byte=_ratio(prompts, text_bytes(table).astype(np.float64)),
        cached_share=_ratio(_numbers(table, "cached_tokens"), prompts) or Fraction(0),
        completion_tokens=mean,
        least_completion_tokens=least,
        reasoning_share=_ratio(_numbers(table, "reasoning_tokens"), completions) or Fraction(0),
        latency_s=float(table["latency_s"].to_numpy().mean()),
        bytes_an_answer=Fraction(stored, count) if count >= FEWEST_STORED else None,
    )


def _looked_at(path: Path, commits: list[Commit]) -> Iterator[pa.Table]:
    """Yield the first answers of parts that are evenly spread."""
    chosen = commits[:: -(-len(commits) // 20)]
    quota = -(-MOST // len(chosen))
    for commit in chosen:
        table = read_table(path / commit.files["generations"].path, _COLUMNS)
        ids = table["sample_id"].to_pylist()
        table = table.slice(0, quota)
        shares = _shares(path, commit, ids) if table["completion_tokens"].null_count else {}
        yield _filled(table, shares)


def _shares(path: Path, commit: Commit, ids: list[str]) -> dict[str, _Share]:
    """Return what a part's attempts took, by the sample that they answered."""
    if "attempts" not in commit.files:
        return {}
    columns = ["started_at", "outcome", "sample_ids", *_SHARED]
    rows = read_table(path / commit.files["attempts"].path, columns).to_pylist()
    rows = sorted(rows, key=lambda row: row["started_at"])
    came = set(ids)
    brought: dict[str, int] = {}
    for number, row in enumerate(rows):
        if row["outcome"] == "answered":  # the last one: an earlier one may have lacked the answer
            brought |= {sample: number for sample in row["sample_ids"] if sample in came}
    shares = {
        number: _Share(draws, *(_part(rows[number][name], draws) for name in _SHARED))
        for number, draws in Counter(brought.values()).items()
    }
    return {sample: shares[number] for sample, number in brought.items()}


def _part(tokens: int | None, draws: int) -> float | None:
    return None if tokens is None else tokens / draws


def _filled(table: pa.Table, shares: dict[str, _Share]) -> pa.Table:
    """Return answers with a share where their own count is not stated; `draws` says of how many."""
    found = [shares.get(sample, _UNKNOWN) for sample in table["sample_id"].to_pylist()]
    stated = ~np.isnan(_numbers(table, "completion_tokens"))
    draws = np.where(stated, 1.0, [share.draws for share in found])
    for name in _SHARED:
        shared = pa.array([getattr(share, name) for share in found], pa.float64())
        filled = pc.coalesce(table[name].cast(pa.float64()), shared)
        table = table.set_column(table.column_names.index(name), name, filled)
    return table.append_column("draws", pa.array(draws, pa.float64()))


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.float64]:
    """Return a column of counts; what is not stated is not a number."""
    found: npt.NDArray[np.float64] = table[name].cast(pa.float64()).to_numpy()
    return found


def _ratio(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> Fraction | None:
    """Return a ratio over the rows that state both; null where too few do."""
    both = ~np.isnan(part) & ~np.isnan(whole)
    if both.sum() < FEWEST or not whole[both].sum():
        return None
    return Fraction(int(part[both].sum()), int(whole[both].sum()))


def _mean(
    values: npt.NDArray[np.float64], draws: npt.NDArray[np.float64]
) -> tuple[Fraction | None, Fraction | None]:
    """Return a mean, and a value below which it hardly is.

    Each value is the mean of so many draws.
    """
    if len(values) < FEWEST:
        return None, None
    mean = Fraction(round(values.sum()), len(values))
    requests = float((1 / draws).sum())
    error = Fraction(round(1000 * float(values.std(ddof=1)) / requests**0.5), 1000)
    return mean, max(mean - 2 * error, Fraction(0))
