"""Add up what a report says of the generations, in one pass over their small columns.

Texts are not read here. The distributions at each token are large, so the mass of the top k is
taken from a bounded number of answers, spread over all files.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from corpusgen.errors import CorpusError
from corpusgen.parquet import read_table, readable
from corpusgen.report.histogram import Counts

BATCH_ROWS = 4096
LONGEST_ANSWER = 1 << 17
"""Tokens; longer answers are counted as this long in the histogram."""
LOWEST_LOGPROB = -8.0
LOGPROB_STEP = 0.05
MASS_ANSWERS = 2000
"""Answers whose distributions are read."""
MOST_REASONS = 200

_COLUMNS = (
    *("sample_id", "prompt_set", "teacher", "finish_reason"),
    *("prompt_tokens", "completion_tokens", "sampled_logprob"),
)

Input = tuple[Path, Path | None]
"""A generations file, and its verdicts file where it was curated."""

Group = tuple[str, str]


class Place(msgspec.Struct, frozen=True, order=True):
    """Where a generation lies; ordered by a hash of its sample id."""

    rank: int
    file: int
    row: int


class Tally:
    """What was counted so far. Memory is bounded by numbers of sets, reasons and examples."""

    def __init__(self, examples: int) -> None:
        self._examples = examples
        self.generations = 0
        self.curated = False
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.uncounted = 0
        """Answers whose completion tokens the teacher did not count."""
        self.finish_reasons: Counter[str] = Counter()
        self.dropped: Counter[Group] = Counter()
        self.by_set: Counter[Group] = Counter()
        self.kept_by_set: Counter[Group] = Counter()
        self.tokens_by_set: Counter[Group] = Counter()
        self.lengths = Counts(LONGEST_ANSWER)
        self.logprobs = Counts(round(-LOWEST_LOGPROB / LOGPROB_STEP) - 1)
        self._kept: list[tuple[int, Place]] = []
        self._lost: list[tuple[int, Place]] = []

    def add(self, table: pa.Table, verdicts: pa.Table | None, file: int, start: int) -> None:
        """Count a table's rows, which begin at row `start` of the file of that number."""
        self.generations += table.num_rows
        keep = [True] * table.num_rows
        if verdicts is not None:
            self.curated = True
            keep = verdicts["keep"].to_pylist()
            self._count_dropped(verdicts)
        _update(self.finish_reasons, table["finish_reason"].to_pylist())
        self._count_tokens(table, keep)
        self.logprobs.add(_logprob_bins(table["sampled_logprob"]))
        for row, (sample, kept) in enumerate(
            zip(table["sample_id"].to_pylist(), keep, strict=True)
        ):
            place = Place(xxhash.xxh3_64_intdigest(sample.encode()), file, start + row)
            self._offer(self._kept if kept else self._lost, place)

    def examples(self) -> list[Place]:
        """Return the generations to show: the smallest hashes, a quarter of them dropped ones."""
        kept = sorted(place for _, place in self._kept)
        lost = sorted(place for _, place in self._lost)
        room = max(self._examples // 4, self._examples - len(kept))
        shown_lost = lost[:room]
        return kept[: self._examples - len(shown_lost)] + shown_lost

    def _count_dropped(self, verdicts: pa.Table) -> None:
        lost = verdicts.filter(pc.invert(verdicts["keep"]))
        reasons = zip(lost["filter"].to_pylist(), lost["reason"].to_pylist(), strict=True)
        for name, reason in reasons:
            # A duplicate's reason names its survivor, so that no two are alike.
            shown = "same as another generation" if name == "duplicate" else reason or ""
            _update(self.dropped, [(name or "", shown)], other=(name or "", "other reasons"))

    def _count_tokens(self, table: pa.Table, keep: Sequence[bool]) -> None:
        self.prompt_tokens += pc.sum(table["prompt_tokens"]).as_py() or 0
        completion = table["completion_tokens"]
        self.completion_tokens += pc.sum(completion).as_py() or 0
        self.uncounted += completion.null_count
        self.lengths.add(completion.drop_null().to_numpy())
        rows = zip(
            *(table[name].to_pylist() for name in ("prompt_set", "teacher", "completion_tokens")),
            keep,
            strict=True,
        )
        for name, teacher, tokens, kept in rows:
            self.by_set[name, teacher] += 1
            self.kept_by_set[name, teacher] += kept
            self.tokens_by_set[name, teacher] += tokens or 0

    def _offer(self, heap: list[tuple[int, Place]], place: Place) -> None:
        if len(heap) < self._examples:
            heapq.heappush(heap, (-place.rank, place))
        elif heap and -place.rank > heap[0][0]:
            heapq.heapreplace(heap, (-place.rank, place))


def scan(inputs: Sequence[Input], examples: int) -> Tally:
    """Count everything; raises `CorpusError` where a file cannot be read or verdicts do not fit."""
    tally = Tally(examples)
    for number, (generations, verdicts_file) in enumerate(inputs):
        verdicts = None if verdicts_file is None else read_table(verdicts_file)
        start = 0
        with readable(generations), pq.ParquetFile(generations) as file:
            if verdicts is not None and verdicts.num_rows != file.metadata.num_rows:
                raise CorpusError(
                    f"{verdicts_file}: does not hold the verdicts of {generations}. "
                    "Run `corpusgen curate` again."
                )
            check_columns(file, generations, _COLUMNS)
            for batch in file.iter_batches(BATCH_ROWS, columns=list(_COLUMNS)):
                table = pa.Table.from_batches([batch])
                judged = None if verdicts is None else verdicts.slice(start, table.num_rows)
                tally.add(table, judged, number, start)
                start += table.num_rows
    return tally


class Mass(msgspec.Struct, frozen=True):
    """How much of the teacher's probability the stored top k hold."""

    mean: float
    k: int
    positions: int


def topk_mass(paths: Sequence[Path]) -> Mass | None:
    """Return the top k's mean mass over the first answers of each file; null without any."""
    quota = -(-MASS_ANSWERS // max(len(paths), 1))
    mass, positions, k = 0.0, 0, 0
    for path in paths:
        with readable(path), pq.ParquetFile(path) as file:
            check_columns(file, path, ("topk_logprobs",))
            seen = 0
            for batch in file.iter_batches(min(quota, 64), columns=["topk_logprobs"]):
                counts = batch.column(0).flatten().drop_null()
                lengths = counts.value_lengths().to_numpy()
                values = counts.flatten().drop_null().to_numpy().astype(np.float64)
                mass += float(np.exp(values).sum())
                positions += int((lengths > 0).sum())
                k = max(k, int(lengths.max(initial=0)))
                seen += batch.num_rows
                if seen >= quota:
                    break
    return Mass(mass / positions, k, positions) if positions else None


def check_columns(file: pq.ParquetFile, path: Path, columns: Sequence[str]) -> None:
    """Raise `CorpusError` unless the file has the columns."""
    for name in columns:
        if name not in file.schema_arrow.names:
            raise CorpusError(
                f"{path}: is no generations file: it lacks the column {name}. "
                "Run `corpusgen verify` on the corpus."
            )


def _logprob_bins(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    """Return, for each answer with logprobs, the bin of its mean; bin 0 begins at the lowest."""
    bins = []
    for chunk in column.chunks:
        present = chunk.drop_null()
        values = present.flatten().to_numpy(zero_copy_only=False).astype(np.float64)
        known = ~np.isnan(values)
        ends = np.cumsum(present.value_lengths().to_numpy())
        sums = _by_answer(np.where(known, values, 0.0), ends)
        counts = _by_answer(known.astype(np.float64), ends)
        means = np.clip(sums[counts > 0] / counts[counts > 0], LOWEST_LOGPROB, -LOGPROB_STEP / 2)
        bins.append(np.floor((means - LOWEST_LOGPROB) / LOGPROB_STEP).astype(np.int64))
    return np.concatenate(bins) if bins else np.empty(0, np.int64)


def _by_answer(values: npt.NDArray[np.float64], ends: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    running = np.concatenate([[0.0], np.cumsum(values)])
    return np.diff(running[np.concatenate([[0], ends])])


def _update(counter: Counter[Any], keys: Sequence[Any], other: Any = "other") -> None:
    for key in keys:
        known = key in counter or len(counter) < MOST_REASONS
        counter[key if known else other] += 1
