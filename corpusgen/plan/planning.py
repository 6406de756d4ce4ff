"""Add to the plan what a configuration asks for and the plan does not hold yet.

Three passes, each in flat memory. The first reads the prompts, gives each draw its `sample_id` and
spills both. The second resolves the ids bucket by bucket against themselves (two rows with the
same content are one prompt; the later ones are aliases) and against the plan: what is new, what
changed its reference or metadata, what is no longer asked for. The third writes the new samples,
partition by partition, in the order of the prompts. The marker comes last.
"""

from __future__ import annotations

import hashlib
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from corpusgen import identity, schema
from corpusgen.errors import CorpusError, PlanConflict, PromptError
from corpusgen.files import TEMPORARY_SUFFIX, put_if_absent
from corpusgen.layout import Layout
from corpusgen.plan.segments import Plan, Planning, Run, SetCounts
from corpusgen.plan.spill import Buckets, Marks, Rows
from corpusgen.plan.writers import ChangesWriter, SampleWriter
from corpusgen.types import BadPrompt, Message, Prompt, Sampling

_RETIRABLE = 1
_RETIRED = 2


class SetRequest(msgspec.Struct, frozen=True):
    """What the configuration asks of one prompt set."""

    name: str
    teacher: str
    """The teacher's name in the configuration."""
    teacher_identity: dict[str, Any]
    """`model` and, where set, `revision`, `adapter`, `template_args`."""
    sampling: Sampling
    n: int
    keys: dict[str, Any]
    """The identity keys by their path in the configuration, for messages."""
    inputs: list[Any]
    """Names, sizes and times of the files, to tell whether anything changed."""
    read: Callable[[], Iterable[Prompt | BadPrompt]]
    response_format: dict[str, Any] | None = None

    @property
    def variant(self) -> str:
        """Digest of the identity keys."""
        return identity.digest(self.keys)


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
    digest = _request_digest(requests, skip_bad_prompts)
    if existing.plannings and existing.plannings[-1].request == digest:
        return Planned(0, {}, existing.plannings[-1].sets, reused=True)
    _check_conflicts(existing, requests, add=add)
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


def _request_digest(requests: Sequence[SetRequest], skip_bad_prompts: bool) -> str:
    asked = [
        {"set": request.name, "keys": request.keys, "n": request.n, "inputs": request.inputs}
        for request in requests
    ]
    return identity.digest({"asked": asked, "skip_bad_prompts": skip_bad_prompts})


def _check_conflicts(existing: Plan, requests: Sequence[SetRequest], *, add: bool) -> None:
    if add:
        return
    for request in requests:
        planned = {
            run.variant: planning.variants[run.variant]
            for planning in existing.plannings
            for run in planning.runs
            if run.prompt_set == request.name
        }
        if planned and request.variant not in planned:
            old = list(planned.values())[-1]
            raise PlanConflict(
                f"prompt set {request.name}: {_changed_keys(old, request.keys)}. The samples that "
                "are planned under the old value would be orphaned: put it back, use another "
                "`out`, or give --add to keep both side by side."
            )


def _changed_keys(old: dict[str, Any], new: dict[str, Any]) -> str:
    changes = [
        f"{key} changed from {_short(old.get(key))} to {_short(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    return ", ".join(changes)


def _short(value: Any) -> str:
    text = "unset" if value is None else msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."


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
        self._counters = {request.name: _Counter() for request in requests}

    def run(self, skip_bad_prompts: bool) -> Planned:
        """Do the passes and put the marker."""
        changes_file = self._layout.segment(self._number, "-changes.parquet")
        with self._rows:
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
                extra = _extra_digest(prompt)
                for offset, sample in enumerate(ids):
                    self._asked.add(sample, extra, ordinal + offset)
                self._rows.add((index, ids, msgspec.to_builtins(prompt), ordinal))
                ordinal += len(ids)
                counter.rows += 1
                counter.samples += len(ids)
        return ordinal

    def _read_plan(self) -> None:
        """Pass 2a: spill what is planned already, with what it may become."""
        asked_sets = {request.name for request in self._requests}
        asked_variants = {request.variant for request in self._requests}
        latest = dict(self._latest_extras())
        retired = self._existing.retired()
        for partition in range(self._existing.partitions):
            run = self._existing.run_of(partition)
            retirable = run.variant in asked_variants or run.prompt_set not in asked_sets
            table = self._existing.read(partition, ["sample_id", "reference", "metadata"])
            for sample, reference, metadata in zip(
                *(column.to_pylist() for column in table), strict=True
            ):
                extra = latest.get(sample) or _digest64(reference, metadata)
                flags = (_RETIRABLE if retirable else 0) | (_RETIRED if sample in retired else 0)
                self._planned.add(sample, extra, flags)

    def _latest_extras(self) -> Iterator[tuple[str, int]]:
        for table in self._existing.changes():
            for row in table.to_pylist():
                if row["action"] == "update":
                    yield row["sample_id"], _digest64(row["reference"], row["metadata"])

    def _resolve(self, marks: _Verdicts, changes: ChangesWriter) -> None:
        """Pass 2b: compare what is asked with what is planned, a bucket at a time."""
        for bucket in range(256):
            asked, planned = self._asked.read(bucket), self._planned.read(bucket)
            ids, first = np.unique(asked["id"], return_index=True)
            later = np.ones(len(asked), dtype=bool)
            later[first] = False
            marks.aliases.add(asked["ordinal"][later])
            known = np.isin(ids, planned["id"])
            marks.new.add(asked["ordinal"][first[~known]])
            gone = ~np.isin(planned["id"], ids)
            flags = planned["ordinal"]
            retire = planned["id"][gone & (flags == _RETIRABLE)]
            restore = planned["id"][~gone & ((flags & _RETIRED) != 0)]
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
                        writer.add(_plan_row(request, builtins, sample, draw))
                        rows += 1
                        if writer.waiting == self._partition_size:
                            writer.flush()
                    elif ordinal + draw in marks.updated:
                        changes.add_update(sample, *_extras(builtins))
                    elif ordinal + draw in marks.aliases:
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
        sampling=request.sampling,
        tools=prompt.tools,
        response_format=request.response_format,
    )
    return [identity.sample_id(content, draw) for draw in range(request.n)]


def _extra_digest(prompt: Prompt | BadPrompt) -> int:
    if isinstance(prompt, BadPrompt):
        return _digest64(None, None)
    return _digest64(prompt.reference, _text(prompt.metadata))


def _digest64(reference: str | None, metadata: str | None) -> int:
    hashed = hashlib.blake2b(identity.canonical([reference, metadata]), digest_size=8).digest()
    return int.from_bytes(hashed, "little")


def _text(value: Any) -> str | None:
    return None if value is None else identity.canonical(value).decode()


def _extras(prompt: dict[str, Any]) -> tuple[str | None, str | None]:
    return prompt.get("reference"), _text(prompt.get("metadata"))


def _plan_row(
    request: SetRequest, prompt: dict[str, Any], sample: str, draw: int
) -> dict[str, Any]:
    problem = prompt.get("problem")
    reference, metadata = _extras(prompt)
    return {
        "sample_id": sample,
        "prompt_set": request.name,
        "prompt_id": prompt["prompt_id"],
        "draw": None if problem else draw,
        "teacher": request.teacher,
        "messages": None if problem else [_stored(message) for message in prompt["messages"]],
        "tools": _text(prompt.get("tools")),
        "response_format": _text(request.response_format),
        "sampling": identity.canonical(request.sampling).decode(),
        "reference": reference,
        "metadata": metadata,
        "row": prompt["row"],
        "problem": problem,
    }


def _stored(message: Message) -> Message:
    if message.get("tool_calls") is None:
        return message
    return {**message, "tool_calls": _text(message["tool_calls"])}
