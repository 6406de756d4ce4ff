"""Add to the plan what a configuration asks for and the plan does not hold yet.

Three passes, each in flat memory. The first reads the prompts, gives each draw its `sample_id` and
spills both. The second resolves the ids bucket by bucket against themselves (two rows with the
same content are one prompt; the later ones are aliases) and against the plan: what is new, what
changed its reference or metadata, what is no longer asked for. The third writes the new samples,
partition by partition, in the order of the prompts. The marker comes last.

A planned sample is retired when its id is no longer asked for, and restored when it is again; so
is every sample of a set that left. Only samples under an older variant of a set that is still
asked, which `--add` keeps, go by another rule: `following` says which.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from corpusgen import identity, schema
from corpusgen.errors import CorpusError, PromptError
from corpusgen.files import TEMPORARY_SUFFIX, put_if_absent
from corpusgen.layout import Layout
from corpusgen.plan.following import Followers
from corpusgen.plan.requests import SetRequest as SetRequest
from corpusgen.plan.requests import check_conflicts, request_digest
from corpusgen.plan.rows import digest64, extra_digest, extras, plan_row, sampling_of
from corpusgen.plan.segments import Plan, Planning, Run, SetCounts
from corpusgen.plan.spill import Buckets, Marks, Rows
from corpusgen.plan.writers import ChangesWriter, SampleWriter
from corpusgen.types import BadPrompt, Prompt

_RETIRABLE = 1
_RETIRED = 2
_RESTORABLE = 4


class Planned(msgspec.Struct, frozen=True):
    """What a planning did."""

    new_samples: int
    changes: dict[str, int]
    sets: dict[str, SetCounts]
    reused: bool
    """Whether nothing had changed, so that nothing was read."""


class _Counter:
    """Counts of one prompt set while it is read."""

    def __init__(self) -> None:
        self.rows = self.samples = self.aliases = self.bad = 0


def plan(
    layout: Layout,
    requests: Sequence[SetRequest],
    *,
    partition_size: int,
    add: bool = False,
    skip_bad_prompts: bool = False,
) -> Planned:
    """Bring the plan up to what is asked; do nothing where it is.

    Raises `PlanConflict` where a prompt set's identity keys changed and `add` is not given, and
    `PromptError` at the first bad row unless `skip_bad_prompts`.
    """
    existing = Plan(layout, partition_size)
    digest = request_digest(requests, skip_bad_prompts)
    if existing.plannings and existing.plannings[-1].request == digest:
        return Planned(0, {}, existing.plannings[-1].sets, reused=True)
    if not add:
        check_conflicts(existing, requests)
    layout.plan.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(layout, len(existing.plannings) + 1)
    scratch = layout.plan / f"planning.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}"
    scratch.mkdir()
    try:
        return _Planner(layout, existing, requests, partition_size, digest, scratch).run(
            skip_bad_prompts
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(layout: Layout, number: int) -> None:
    """Remove what a planning that died has left: its scratch, and files that got no marker."""
    for path in layout.plan.iterdir():
        if path.is_dir() and path.suffix == TEMPORARY_SUFFIX:
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == TEMPORARY_SUFFIX or path.name.startswith(f"{number:06d}-"):
            path.unlink()


class _Verdicts(msgspec.Struct, frozen=True):
    """What became of each draw that is asked, by its ordinal."""

    new: Marks
    updated: Marks
    aliases: Marks


class _Planner:
    """The three passes of one planning, and what they hand to each other."""

    def __init__(
        self,
        layout: Layout,
        existing: Plan,
        requests: Sequence[SetRequest],
        partition_size: int,
        digest: str,
        scratch: Path,
    ) -> None:
        self._layout = layout
        self._existing = existing
        self._requests = requests
        self._partition_size = partition_size
        self._digest = digest
        self._number = len(existing.plannings) + 1
        self._rows = Rows(scratch / "rows")
        self._asked = Buckets(scratch / "asked")
        self._planned = Buckets(scratch / "planned")
        self._updates = Buckets(scratch / "updates")
        self._followers = Followers(scratch / "followers", existing, requests)
        self._counters = {request.name: _Counter() for request in requests}

    def run(self, skip_bad_prompts: bool) -> Planned:
        """Do the passes and put the marker."""
        changes_file = self._layout.segment(self._number, "-changes.parquet")
        with self._rows, self._followers:
            samples = self._read_prompts(skip_bad_prompts)
            self._read_plan()
            marks = _Verdicts(Marks(samples), Marks(samples), Marks(samples))
            with ChangesWriter(changes_file) as changes:
                self._resolve(marks, changes)
                runs = self._write_samples(marks, changes)
        if not changes.counts:
            changes_file.unlink(missing_ok=True)
        sets = {
            name: SetCounts(c.rows, c.samples, c.aliases, c.bad)
            for name, c in self._counters.items()
        }
        marker = Planning(
            format_version=schema.FORMAT_VERSION,
            number=self._number,
            request=self._digest,
            first_partition=self._existing.partitions,
            runs=runs,
            variants={request.variant: request.keys for request in self._requests},
            asked={request.name: request.variant for request in self._requests},
            sources={request.name: request.sources for request in self._requests},
            sets=sets,
            changes=changes.counts,
        )
        target = self._layout.segment(self._number, ".json")
        if not put_if_absent(target, msgspec.json.format(msgspec.json.encode(marker)) + b"\n"):
            raise CorpusError(f"{target}: was planned by another process; run the command again.")
        return Planned(marker.samples, changes.counts, sets, reused=False)

    def _read_prompts(self, skip_bad_prompts: bool) -> int:
        """Pass 1: give each draw its id; return how many draws there are."""
        ordinal = 0
        for index, request in enumerate(self._requests):
            counter = self._counters[request.name]
            for prompt in request.read():
                if isinstance(prompt, BadPrompt):
                    if not skip_bad_prompts:
                        raise PromptError(
                            f"{prompt.row}: {prompt.problem}. Fix the row or run with "
                            "--skip-bad-prompts."
                        )
                    ids = [identity.bad_row_id(request.name, prompt.raw, counter.rows)]
                    counter.bad += 1
                else:
                    ids = _sample_ids(request, prompt)
                    self._followers.ask(request.name, prompt)
                extra = extra_digest(prompt)
                for offset, sample in enumerate(ids):
                    self._asked.add(sample, extra, ordinal + offset)
                self._rows.add((index, ids, msgspec.to_builtins(prompt), ordinal))
                ordinal += len(ids)
                counter.rows += 1
                counter.samples += len(ids)
        return ordinal

    def _read_plan(self) -> None:
        """Pass 2a: spill what is planned already, with what it may become."""
        retirements = self._existing.retirements
        for partition in range(self._existing.partitions):
            run = self._existing.run_of(partition)
            if self._followers.follow(run):
                self._followers.add(partition, retirements)
                continue
            self._followers.hold(partition)
            table = self._existing.read(partition, ["sample_id", "reference", "metadata"])
            for sample, *extra in zip(*(column.to_pylist() for column in table), strict=True):
                flags = _RETIRABLE | (_RETIRED if sample in retirements else 0)
                self._planned.add(sample, digest64(*extra), flags)
        for fate in self._followers.fates():
            flags = (
                (_RETIRABLE if fate.leaves else 0)
                | (_RETIRED if fate.retired else 0)
                | (_RESTORABLE if fate.returns else 0)
            )
            self._planned.add(fate.sample, fate.extra, flags)
        for table in self._existing.changes():
            for row in table.to_pylist():
                if row["action"] == "update":
                    extra64 = digest64(row["reference"], row["metadata"])
                    self._updates.add(row["sample_id"], extra64, 0)

    def _resolve(self, marks: _Verdicts, changes: ChangesWriter) -> None:
        """Pass 2b: compare what is asked with what is planned, a bucket at a time."""
        for bucket in range(256):
            asked = self._asked.read(bucket)
            planned = _updated(self._planned.read(bucket), self._updates.read(bucket))
            ids, first = np.unique(asked["id"], return_index=True)
            later = np.ones(len(asked), dtype=bool)
            later[first] = False
            marks.aliases.add(asked["ordinal"][later])
            if not len(planned):
                marks.new.add(asked["ordinal"][first])
                continue
            known = np.isin(ids, planned["id"])
            marks.new.add(asked["ordinal"][first[~known]])
            gone = ~np.isin(planned["id"], ids)
            flags = planned["ordinal"]
            retired, restorable = (flags & _RETIRED) != 0, (flags & _RESTORABLE) != 0
            retire = planned["id"][gone & ((flags & _RETIRABLE) != 0) & ~retired]
            restore = planned["id"][retired & (~gone | restorable)]
            changes.add_ids("retire", retire)
            changes.add_ids("restore", restore)
            place = {key: index for index, key in enumerate(planned["id"].tolist())}
            shared = first[known]
            if len(shared):
                theirs = np.array([place[key] for key in asked["id"][shared].tolist()])
                differ = asked["extra"][shared] != planned["extra"][theirs]
                marks.updated.add(asked["ordinal"][shared[differ]])

    def _write_samples(self, marks: _Verdicts, changes: ChangesWriter) -> list[Run]:
        """Pass 3: write what is new, a row group for each partition."""
        runs: list[Run] = []
        with SampleWriter(self._layout, self._number, self._existing.partitions) as writer:
            index, rows = -1, 0
            start = writer.partition
            for at, ids, builtins, ordinal in self._rows.read():
                if at != index:
                    writer.flush()
                    if rows:
                        runs.append(self._run(index, start, writer.partition, rows))
                    index, rows, start = at, 0, writer.partition
                request = self._requests[at]
                for draw, sample in enumerate(ids):
                    if ordinal + draw in marks.new:
                        writer.add(plan_row(request, builtins, sample, draw))
                        rows += 1
                        if writer.waiting == self._partition_size:
                            writer.flush()
                    elif ordinal + draw in marks.updated:
                        changes.add_update(sample, *extras(builtins))
                if ordinal in marks.aliases:
                    self._counters[request.name].aliases += 1
            writer.flush()
            if rows:
                runs.append(self._run(index, start, writer.partition, rows))
        return runs

    def _run(self, index: int, start: int, end: int, rows: int) -> Run:
        request = self._requests[index]
        return Run(request.name, request.teacher, request.variant, start, end - start, rows)


def _sample_ids(request: SetRequest, prompt: Prompt) -> list[str]:
    content = identity.sample_content(
        teacher=request.teacher_identity,
        messages=prompt.messages,
        sampling=sampling_of(request, prompt.max_tokens),
        tools=prompt.tools,
        response_format=request.response_format,
    )
    return [identity.sample_id(content, draw) for draw in range(request.n)]


def _updated(planned: npt.NDArray[Any], updates: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return planned entries with the digest of each one's last update."""
    if not len(updates):
        return planned
    ids, last = np.unique(updates["id"][::-1], return_index=True)
    touched = np.isin(planned["id"], ids)
    place = np.searchsorted(ids, planned["id"][touched])
    planned["extra"][touched] = updates["extra"][::-1][last[place]]
    return planned
