"""Read a corpus' attempts and add them up, a partition at a time."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from corpusgen.commits import Commit, by_partition
from corpusgen.config import Config, Gpu, teachers_of
from corpusgen.corpus import Corpus
from corpusgen.curate.parts import read_verdicts, verdicts_path
from corpusgen.curate.run import read_curation
from corpusgen.ledger.busy import BusyTime
from corpusgen.ledger.shares import (
    ACCEPTED,
    COLUMNS,
    NOT_CURATED,
    Answers,
    Group,
    groups,
    started_us,
)
from corpusgen.ledger.sums import GpuTime, Ledger, Sums
from corpusgen.money import gpu_picousd
from corpusgen.parquet import read_table

_NO_GPUS: Mapping[str, Gpu] = {}


def gpus_of(config: Config) -> dict[str, Gpu]:
    """Return what the machines of each teacher cost, of those for which that is set."""
    gpus = {n: getattr(options, "gpu", None) for n, options in teachers_of(config).items()}
    return {name: gpu for name, gpu in gpus.items() if gpu is not None}


def latest_curation(corpus: Corpus) -> Path | None:
    """Return the directory of the curation that was asked for last; null where there is none."""
    curations = corpus.curations()
    return curations[-1] if curations else None


def read_ledger(
    corpus: Corpus, curation: Path | None, gpus: Mapping[str, Gpu] = _NO_GPUS
) -> Ledger:
    """Sum up a corpus' attempts; raise `CorpusError` on a file that is torn.

    `curation` is the directory whose verdicts say what was accepted; `gpus` are the prices of
    machines by teacher. Memory holds a partition at a time, and a cell for each combination of
    outcome, endpoint, day and fate.
    """
    books = _Books()
    for partition, parts in by_partition(corpus.commits).items():
        attempts = _attempts(corpus, parts)
        if attempts is not None:
            run = corpus.plan.run_of(partition)
            books.enter(run.teacher, run.prompt_set, attempts, _answers(corpus, parts, curation))
    result = None if curation is None else read_curation(curation)
    return books.ledger(corpus.rows("generations"), None if result is None else result.kept, gpus)


class _Books:
    """The sums so far."""

    def __init__(self) -> None:
        self._total = Sums()
        self._priced = False
        self._busy: dict[str, BusyTime] = {}
        self._by: dict[str, dict[str, Sums]] = {
            way: {} for way in ("outcome", "endpoint", "teacher", "prompt_set", "day", "fate")
        }
        self._pairs: dict[str, dict[str, Sums]] = {}

    def enter(self, teacher: str, prompt_set: str, attempts: pa.Table, answers: Answers) -> None:
        """Enter a partition's attempts."""
        for column in ("reserved_picousd", "cost_picousd"):
            self._priced |= attempts[column].null_count < attempts.num_rows
        starts = started_us(attempts)
        lasted = attempts["latency_s"].fill_null(0.0).to_numpy()
        busy = self._busy.setdefault(teacher, BusyTime())
        busy.add(starts, starts + np.rint(np.maximum(lasted, 0.0) * 1e6).astype(np.int64))
        for group in groups(attempts, answers):
            self._enter(teacher, prompt_set, group)

    def _enter(self, teacher: str, prompt_set: str, group: Group) -> None:
        self._total.add(group.sums)
        keys = {
            "outcome": group.outcome,
            "endpoint": group.endpoint,
            "teacher": teacher,
            "prompt_set": prompt_set,
            "day": group.day,
            "fate": group.fate,
        }
        for way, key in keys.items():
            self._by[way].setdefault(key, Sums()).add(group.sums)
        outcomes = self._pairs.setdefault(group.endpoint, {})
        outcomes.setdefault(group.outcome, Sums()).add(group.sums)

    def ledger(self, generations: int, kept: int | None, gpus: Mapping[str, Gpu]) -> Ledger:
        """Return what was entered."""
        return Ledger(
            total=self._total,
            by_outcome=self._by["outcome"],
            by_endpoint=self._by["endpoint"],
            by_endpoint_outcome=self._pairs,
            by_teacher=self._by["teacher"],
            by_prompt_set=self._by["prompt_set"],
            by_day=self._by["day"],
            by_fate=self._by["fate"],
            gpu={
                name: _gpu_time(self._busy[name], gpu)
                for name, gpu in gpus.items()
                if name in self._busy
            },
            generations=generations,
            kept=kept,
            price_known=self._priced,
            active_s=self._active_s(),
        )

    def _active_s(self) -> float:
        every = BusyTime()
        for busy in self._busy.values():
            every.join(busy)
        return every.microseconds / 1e6


def _gpu_time(busy: BusyTime, gpu: Gpu) -> GpuTime:
    rate = Decimal(str(gpu.usd_per_hour))
    lasted = busy.microseconds
    return GpuTime(lasted, gpu.count, f"{rate:f}", gpu_picousd(lasted, gpu.count, rate))


def _attempts(corpus: Corpus, parts: list[Commit]) -> pa.Table | None:
    tables = [
        read_table(corpus.path / commit.files["attempts"].path, COLUMNS).unify_dictionaries()
        for commit in parts
        if "attempts" in commit.files
    ]
    return pa.concat_tables(tables) if tables else None


def _answers(corpus: Corpus, parts: list[Commit], curation: Path | None) -> Answers:
    """Return a partition's generations with what became of each."""
    tables, fates = [], []
    for commit in parts:
        if "generations" in commit.files:
            path = corpus.path / commit.files["generations"].path
            table = read_table(path, ["sample_id", "started_at"])
            tables.append(table)
            fates.append(_fates(table, curation, path.stem))
    if not tables:
        return Answers(pa.array([], pa.string()), np.zeros(0, np.int64), np.zeros(0, object))
    joined = pa.concat_tables(tables)
    ids = joined["sample_id"].combine_chunks()
    return Answers(ids, started_us(joined), np.concatenate(fates))


def _fates(table: pa.Table, curation: Path | None, part: str) -> npt.NDArray[np.object_]:
    """Return what a curation says of a part's generations, row by row."""
    fates = np.full(table.num_rows, NOT_CURATED, dtype=object)
    verdicts = None if curation is None else verdicts_path(curation, part)
    if verdicts is None or not verdicts.exists():
        return fates
    told = read_verdicts(verdicts)
    filters = told["filter"].cast(pa.string()).fill_null("").to_numpy()
    said = np.where(told["keep"].to_numpy(), ACCEPTED, "dropped: " + filters)
    judged = pc.index_in(table["sample_id"], value_set=told["sample_id"].combine_chunks())
    places = judged.fill_null(-1).to_numpy()
    fates[places >= 0] = said[places[places >= 0]]
    return fates
