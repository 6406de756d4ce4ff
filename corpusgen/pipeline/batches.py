"""List and cancel a corpus' batches at their providers; writes nothing to the corpus.

Whether a run works on it at the same time does not matter: it sees a cancelled batch at its next
look, takes in what was answered, and stops.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack

import msgspec

from corpusgen.batching import Submission, is_of, outstanding, place_of
from corpusgen.config_file import LoadedConfig
from corpusgen.corpus import Corpus
from corpusgen.errors import ConfigError
from corpusgen.layout import Layout
from corpusgen.pipeline.asking import make_teachers
from corpusgen.pipeline.session import layout_of
from corpusgen.teachers.interface import Batch, BatchTeacher, Endpoint

_SHOWN_S = 30 * 86_400.0
"""How long ago a batch may have been made to be shown, if it is not out."""
NEVER_SENT = "not sent"
NOT_FOUND = "not found"


class BatchRow(msgspec.Struct, frozen=True):
    """One batch of a corpus, or one submission that has none."""

    teacher: str
    endpoint: str
    submission_id: str
    batch_id: str | None
    status: str
    """The provider's word; `not sent`: no batch was asked for; `not found`: the provider's list
    lacks it."""
    requests: int
    completed: int
    failed: int
    made_at: float | None
    """Seconds since the epoch."""
    expires_at: float | None
    fetched: bool
    """Whether its results are in the corpus already (or it is another copy's of the corpus)."""


def list_batches(loaded: LoadedConfig, *, cancel: bool = False) -> list[BatchRow]:
    """Return a corpus' batches, the oldest first; with `cancel`, end those that go on.

    Raises `ConfigError` where the configuration has no batch teacher, `CorpusError` where there is
    no corpus, and the `TeacherError` of a provider that cannot be asked.
    """
    corpus = Corpus(layout_of(loaded.config).root)
    teachers = {
        name: teacher
        for name, teacher in make_teachers(loaded.config).items()
        if isinstance(teacher, BatchTeacher)
    }
    if not teachers:
        raise ConfigError("the configuration has no teacher of kind: openai_batch.")
    return asyncio.run(_list(corpus, teachers, cancel=cancel))


async def _list(
    corpus: Corpus, teachers: Mapping[str, BatchTeacher], *, cancel: bool
) -> list[BatchRow]:
    rows: list[BatchRow] = []
    async with AsyncExitStack() as opened:
        for name, teacher in teachers.items():
            opened.push_async_callback(teacher.close)
            await teacher.open()
            for endpoint in teacher.endpoints:
                out = list(_of(corpus.layout, teacher, endpoint))
                since = min([time.time() - _SHOWN_S, *(each.made_at for each in out)])
                batches = await teacher.listed(corpus.facts.corpus_id, since, endpoint)
                if cancel:
                    batches = [await _ended(teacher, each, endpoint) for each in batches]
                rows += _rows(corpus.layout, name, endpoint, out, batches)
    return sorted(rows, key=lambda row: (row.made_at or 0.0, row.submission_id))


def _of(layout: Layout, teacher: BatchTeacher, endpoint: Endpoint) -> Iterator[Submission]:
    for submission in outstanding(layout):
        if is_of(submission, teacher) and submission.endpoint == endpoint.name:
            yield submission


async def _ended(teacher: BatchTeacher, batch: Batch, endpoint: Endpoint) -> Batch:
    if batch.ended or batch.status == "cancelling":
        return batch
    return await teacher.cancel(batch.batch_id, endpoint)


def _rows(
    layout: Layout, teacher: str, endpoint: Endpoint, out: list[Submission], batches: list[Batch]
) -> Iterator[BatchRow]:
    by_id = {each.submission_id: each for each in out}
    listed = set()
    for batch in batches:
        assert batch.label is not None
        submission = by_id.get(batch.label.submission_id)
        listed.add(batch.label.submission_id)
        yield BatchRow(
            teacher=teacher,
            endpoint=endpoint.name,
            submission_id=batch.label.submission_id,
            batch_id=batch.batch_id,
            status=batch.status,
            requests=batch.requests if submission is None else len(submission.items),
            completed=batch.completed,
            failed=batch.failed,
            made_at=batch.created_at,
            expires_at=batch.expires_at,
            fetched=submission is None,
        )
    for submission in out:
        if submission.submission_id in listed:
            continue
        place = place_of(layout, submission.submission_id)
        yield BatchRow(
            teacher=teacher,
            endpoint=endpoint.name,
            submission_id=submission.submission_id,
            batch_id=None if place is None else place.batch_id,
            status=NEVER_SENT if place is None else NOT_FOUND,
            requests=len(submission.items),
            completed=0,
            failed=0,
            made_at=submission.made_at,
            expires_at=None,
            fetched=False,
        )
