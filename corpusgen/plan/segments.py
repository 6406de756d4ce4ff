"""Read the plan: its markers, its partitions and their samples.

A planning writes Parquet files whose row groups are partitions, a file of changes to samples that
were planned before, and last its marker `000001.json`: what has no marker was never planned.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from corpusgen import schema
from corpusgen.errors import CorpusError
from corpusgen.layout import Layout
from corpusgen.types import Message, Sample, Sampling

PARTITIONS_A_FILE = 256


class Run(msgspec.Struct, frozen=True):
    """Consecutive partitions of one prompt set, all full but the last."""

    prompt_set: str
    teacher: str
    """The teacher's name in the configuration."""
    variant: str
    """Digest of the identity keys under which they were planned."""
    first_partition: int
    partitions: int
    rows: int

    def rows_of(self, partition: int, partition_size: int) -> int:
        """Return how many samples a partition of this run holds."""
        before = (partition - self.first_partition) * partition_size
        return min(partition_size, self.rows - before)


class SetCounts(msgspec.Struct, frozen=True):
    """What a planning found in one prompt set."""

    rows: int
    """Prompts read, the bad ones included."""
    samples: int
    aliases: int
    """Rows whose prompt stood earlier, in this set or another; each counts once, whatever `n`."""
    bad_prompts: int


class Planning(msgspec.Struct, frozen=True, omit_defaults=True):
    """One planning's marker."""

    format_version: int
    number: int
    request: str
    """Digest of what was asked and of the files' sizes and times: equal means nothing to plan."""
    first_partition: int
    runs: list[Run]
    variants: dict[str, dict[str, Any]]
    """Identity keys by variant digest, of the sets as they were asked this time."""
    sets: dict[str, SetCounts]
    changes: dict[str, int] = {}
    """Rows of the changes file by action."""
    asked: dict[str, str] = {}
    """The variant under which each set was asked."""
    sources: dict[str, list[str]] = {}
    """Digests by which each set's files are known again under another name of the set."""

    @property
    def partitions(self) -> int:
        """How many partitions this planning added."""
        return sum(run.partitions for run in self.runs)

    @property
    def samples(self) -> int:
        """How many samples this planning added."""
        return sum(run.rows for run in self.runs)

    def file_of(self, layout: Layout, partition: int) -> tuple[Path, int]:
        """Return the file and the row group of a partition."""
        index, group = divmod(partition - self.first_partition, PARTITIONS_A_FILE)
        return plan_file(layout, self.number, index), group


def plan_file(layout: Layout, number: int, index: int) -> Path:
    """Return one Parquet file of a planning."""
    return layout.segment(number, f"-{index:05d}.parquet")


class Plan:
    """All plannings of a corpus, read once; rows are read when they are asked for."""

    def __init__(self, layout: Layout, partition_size: int) -> None:
        """Read the markers; raise `CorpusError` where one is torn or a number is missing."""
        self._layout = layout
        self._partition_size = partition_size
        self.plannings = _read_markers(layout)
        self._runs = [run for planning in self.plannings for run in planning.runs]
        self._starts = [run.first_partition for run in self._runs]

    @property
    def samples(self) -> int:
        """Samples planned, retired ones included."""
        return sum(planning.samples for planning in self.plannings)

    @property
    def partitions(self) -> int:
        """Partitions planned; they are numbered from 0."""
        return sum(planning.partitions for planning in self.plannings)

    @property
    def runs(self) -> list[Run]:
        """Runs of partitions in order."""
        return self._runs

    def run_of(self, partition: int) -> Run:
        """Return the run that a partition belongs to."""
        return self._runs[bisect.bisect_right(self._starts, partition) - 1]

    def keys_of(self, run: Run) -> dict[str, Any]:
        """Return the identity keys under which a run was planned, by their path."""
        for planning in self.plannings:
            if run.variant in planning.variants:
                return planning.variants[run.variant]
        return {}

    def rows_of(self, partition: int) -> int:
        """Return how many samples a partition holds, without reading it."""
        return self.run_of(partition).rows_of(partition, self._partition_size)

    def read(self, partition: int, columns: list[str] | None = None) -> pa.Table:
        """Return a partition's rows, columns of `schema.PLAN`."""
        for planning in self.plannings:
            if partition < planning.first_partition + planning.partitions:
                path, group = planning.file_of(self._layout, partition)
                with _readable(path, schema.PLAN) as file:
                    return file.read_row_group(group, columns=columns)
        raise CorpusError(f"{self._layout.plan}: there is no partition {partition}.")

    def samples_of(self, partition: int) -> list[Sample]:
        """Return a partition's samples in the order in which they are asked."""
        return [_sample(row) for row in self.read(partition).to_pylist()]

    def ids_of(self, partition: int) -> list[str]:
        """Return a partition's sample ids in order."""
        return self.read(partition, ["sample_id"]).column("sample_id").to_pylist()  # type: ignore[no-any-return]

    def retired(self) -> frozenset[str]:
        """Return the ids of samples that the configuration no longer asks for."""
        return self._retired

    @cached_property
    def _retired(self) -> frozenset[str]:
        return frozenset(self.retirements)

    @cached_property
    def retirements(self) -> dict[str, int]:
        """The number of the planning that retired each retired sample, by its id."""
        found: dict[str, int] = {}
        for planning in self.plannings:
            for table in self._changes_of(planning, ["sample_id", "action"]):
                for sample, action in zip(*(column.to_pylist() for column in table), strict=True):
                    if action == "retire":
                        found[sample] = planning.number
                    elif action == "restore":
                        found.pop(sample, None)
        return found

    def updates(self) -> dict[str, tuple[str | None, str | None]]:
        """Return the latest reference and metadata (JSON text) of the samples that have newer ones.

        In memory that grows with these samples only.
        """
        return {
            row["sample_id"]: (row["reference"], row["metadata"])
            for table in self.changes()
            for row in table.to_pylist()
            if row["action"] == "update"
        }

    def changes(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """Yield the changes files' rows, oldest planning first."""
        for planning in self.plannings:
            yield from self._changes_of(planning, columns)

    def _changes_of(self, planning: Planning, columns: list[str] | None) -> Iterator[pa.Table]:
        if planning.changes:
            path = self._layout.segment(planning.number, "-changes.parquet")
            with _readable(path, schema.PLAN_CHANGES) as file:
                for batch in file.iter_batches(columns=columns):
                    yield pa.Table.from_batches([batch])


@contextmanager
def _readable(path: Path, columns: pa.Schema) -> Iterator[pq.ParquetFile]:
    """Open a file of the plan; raise `CorpusError` where it is missing, torn or foreign."""
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(columns):
                raise CorpusError(f"{path}: is no file of a plan; restore it from a copy.")
            yield file
    except (OSError, pa.ArrowException) as error:
        problem = _first_line(error).rstrip(".")
        raise CorpusError(f"{path}: cannot be read: {problem}. Restore it from a copy.") from None


def _read_markers(layout: Layout) -> list[Planning]:
    plannings = []
    for expected, path in enumerate(sorted(layout.plan.glob("??????.json")), start=1):
        try:
            planning = msgspec.json.decode(path.read_bytes(), type=Planning)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise CorpusError(f"{path}: is not a readable plan marker: {error}.") from None
        if planning.format_version > schema.FORMAT_VERSION:
            raise CorpusError(
                f"{path}: was written in format {planning.format_version}; this corpusgen reads "
                f"up to {schema.FORMAT_VERSION}. Install a newer one."
            )
        if planning.number != expected:
            raise CorpusError(
                f"{layout.plan}: the marker {expected:06d}.json is missing; restore the directory "
                "from a copy."
            )
        plannings.append(planning)
    return plannings


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(
        sample_id=row["sample_id"],
        partition=row["partition"],
        prompt_set=row["prompt_set"],
        prompt_id=row["prompt_id"],
        draw=row["draw"],
        teacher=row["teacher"],
        messages=[_message(message) for message in row["messages"] or ()],
        sampling=msgspec.json.decode(row["sampling"], type=Sampling),
        tools=_decoded(row["tools"]),
        response_format=_decoded(row["response_format"]),
        reference=row["reference"],
        metadata=_decoded(row["metadata"]),
        row=row["row"],
        problem=row["problem"],
    )


def _message(stored: dict[str, Any]) -> Message:
    message = {key: value for key, value in stored.items() if value is not None}
    if "tool_calls" in message:
        message["tool_calls"] = msgspec.json.decode(message["tool_calls"])
    return message


def _decoded(text: str | None) -> Any:
    return None if text is None else msgspec.json.decode(text)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
