"""Measure what this corpus' own answers took, prompt set by prompt set."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from fractions import Fraction
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
_COLUMNS = [
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
    mean, least = _mean(completions[~np.isnan(completions)])
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
        yield table.slice(0, quota)


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


def _mean(values: npt.NDArray[np.float64]) -> tuple[Fraction | None, Fraction | None]:
    """Return a mean, and a value below which it hardly is."""
    if len(values) < FEWEST:
        return None, None
    mean = Fraction(int(values.sum()), len(values))
    error = Fraction(round(1000 * float(values.std(ddof=1)) / len(values) ** 0.5), 1000)
    return mean, max(mean - 2 * error, Fraction(0))
