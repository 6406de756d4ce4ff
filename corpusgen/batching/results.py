"""Bring what a batch has answered into the store, partition by partition.

The files of results stay on disk and are read by place, so that memory holds one answer at a time
whatever the size of a batch. What the store has already is passed over, so that taking the same
results in again, after a death at any instant, changes nothing.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection
from pathlib import Path

import msgspec

from corpusgen import attempts
from corpusgen.batching.lane import BatchLane
from corpusgen.batching.packing import Purse
from corpusgen.batching.partitions import Partitions, Witness
from corpusgen.batching.queue import Queue
from corpusgen.batching.submissions import Item, Submission
from corpusgen.batching.waiting import by_partition
from corpusgen.errors import (
    CorpusgenError,
    NotRun,
    Rejected,
    RunStopped,
    TeacherError,
    TeacherRaised,
    TornAnswer,
    Withdrawn,
)
from corpusgen.stopping import FailureRate, LogprobCheck, Stop
from corpusgen.store import OpenPartition
from corpusgen.teachers.interface import Batch, Endpoint
from corpusgen.types import Failure, Intent, Reply, Sample
from corpusgen.unicode import storable

_DETAIL_LENGTH = 500
_AT_ONCE = 64
"""Answers that are decoded before other tasks get their turn."""


class Results(msgspec.Struct, frozen=True):
    """Where each request's line stands in a file of results."""

    path: Path | None
    """Null: the batch has none."""
    places: dict[str, tuple[int, int]]
    """Offset and length by item id."""
    torn: int = 0
    foreign: int = 0
    repeated: int = 0
    refusals: dict[str, TeacherError] = {}
    """What the provider said of requests, by item id, in place of running them."""
    gone: bool = False
    """Whether the provider has deleted them."""


def index(path: Path | None, lane: BatchLane, ours: Collection[str]) -> Results:
    """Find the lines of a file of results; blocks, meant for a thread."""
    places: dict[str, tuple[int, int]] = {}
    torn = foreign = repeated = offset = 0
    if path is None:
        return Results(None, places)
    with path.open("rb") as file:
        for line in file:
            item_id = lane.teacher.identify(line) if line.strip() else ""
            if item_id is None:
                torn += 1
            elif item_id in places:
                repeated += 1
            elif item_id in ours:
                places[item_id] = (offset, len(line))
            elif item_id:
                foreign += 1
            offset += len(line)
    return Results(path, places, torn, foreign, repeated)


class Intake:
    """Take results in, for all submissions of one lane."""

    def __init__(
        self,
        partitions: Partitions,
        lane: BatchLane,
        queue: Queue,
        purse: Purse,
        witness: Witness,
        stop: Stop,
        failure_rate: FailureRate,
        logprobs: LogprobCheck,
        max_attempts: int,
    ) -> None:
        self._partitions = partitions
        self._lane = lane
        self._queue = queue
        self._purse = purse
        self._witness = witness
        self._stop = stop
        self._failure_rate = failure_rate
        self._logprobs = logprobs
        self._max_attempts = max_attempts
        self._fatal: list[CorpusgenError] = []

    async def take(self, submission: Submission, batch: Batch, results: Results) -> None:
        """Journal and commit what a batch brought.

        What ends the run (a wrong key or price, an empty account) is told to its `Stop` when all
        is taken in, for it is paid.
        """
        fatal = self._fatal
        endpoint = self._lane.endpoints[submission.endpoint]
        descriptor = None if results.path is None else os.open(results.path, os.O_RDONLY)
        try:
            for partition, items in by_partition(submission.items).items():
                taking = await self._open(partition, submission.made_at, batch, endpoint)
                for number, item in enumerate(items):
                    if item.item_id not in taking.done:
                        self._take_item(taking, item, results, descriptor)
                    if number % _AT_ONCE == 0:
                        await asyncio.sleep(0)
                await self._partitions.close(taking.opened)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        if fatal:
            self._stop(fatal.pop(0))
            fatal.clear()

    async def _open(
        self, partition: int, sent_at: float, batch: Batch, endpoint: Endpoint
    ) -> _Taking:
        opened, samples = self._partitions.take_up(partition)
        done = await asyncio.to_thread(self._partitions.recorded, opened)
        before = await asyncio.to_thread(self._partitions.attempts_at_failure, opened)
        asked = {sample.sample_id: sample for sample in samples}
        ended_at = batch.ended_at or time.time()
        latency = max(ended_at - sent_at, 0.0)
        return _Taking(opened, asked, done, before, batch, endpoint, sent_at, latency)

    def _take_item(
        self, taking: _Taking, item: Item, results: Results, descriptor: int | None
    ) -> None:
        opened = taking.opened
        intent = Intent(
            attempt_id=item.item_id,
            sample_ids=item.sample_ids,
            endpoint=taking.endpoint.name,
            started_at=taking.sent_at,
            reserved_picousd=self._lane.reserved(item),
        )
        for sample in item.sample_ids:
            opened.sent[sample] += 1
        try:
            reply = self._reply(taking, item, results, descriptor)
        except TeacherError as error:
            self._failed(taking, intent, error)
        else:
            self._answered(taking, intent, reply)

    def _reply(
        self, taking: _Taking, item: Item, results: Results, descriptor: int | None
    ) -> Reply:
        if item.item_id in results.refusals:
            raise results.refusals[item.item_id]
        place = results.places.get(item.item_id)
        if place is None or descriptor is None:
            raise missing(taking.batch, results)
        offset, length = place
        line = os.pread(descriptor, length, offset)
        request = self._lane.request_like(len(item.sample_ids))
        try:
            found = self._lane.teacher.decode_item(line, request, taking.endpoint)
            return attempts.checked(found)
        except TeacherError:
            raise
        except Exception as error:  # a plug-in's own code may raise anything
            raise TeacherRaised(f"the teacher raised {type(error).__name__}: {error}") from error

    def _answered(self, taking: _Taking, intent: Intent, reply: Reply) -> None:
        tariff = self._lane.tariffs[taking.endpoint.name]
        cost = attempts.cost(reply.usage, tariff)
        opened, latency = taking.opened, taking.latency_s
        generations = [
            attempts.generation(
                intent, taking.asked[sample], reply, latency, opened.sent[sample], index
            )
            for index, sample in enumerate(intent.sample_ids[: len(reply.answers)])
            if sample in taking.asked  # else it was answered otherwise meanwhile
        ]
        opened.end(attempts.answered(intent, reply, latency, cost), generations)
        request = self._lane.request_like(len(intent.sample_ids))
        for generation in generations:
            taking.asked.pop(generation.sample_id)
            self._witness.answered(generation)
            self._failure_rate.add(False)
            self._logprobs.add(request, generation.answer, intent.endpoint)
        self._settle(intent, cost, may_be_billed=True)
        lacking = intent.sample_ids[len(reply.answers) :]
        if lacking:
            self._lane.draws = 1  # this server gives fewer answers than a request asks for
            few = TornAnswer(f"endpoint {intent.endpoint}: answered fewer draws than were asked.")
            self._end(taking, lacking, few)

    def _failed(self, taking: _Taking, intent: Intent, error: TeacherError) -> None:
        cost = attempts.failure_cost(error, self._lane.tariffs[taking.endpoint.name])
        attempt = attempts.failed(intent, error, taking.latency_s, cost)
        taking.opened.end(attempt, [])
        self._settle(intent, cost, may_be_billed=error.may_be_billed)
        if error.retry == "fatal":
            self._fatal.append(error)
        else:
            self._end(taking, intent.sample_ids, error)

    def _end(self, taking: _Taking, samples: Collection[str], error: TeacherError) -> None:
        """Give samples up, or leave them to be sent again when their submission is forgotten."""
        if isinstance(error, Rejected) and len(samples) > 1:
            self._lane.draws = 1  # perhaps only `n` was refused
            return
        for sample in samples:
            if sample not in taking.asked:
                continue
            tries = taking.opened.sent[sample] - taking.before.get(sample, 0)
            worth = error.retry == "again" and tries < self._max_attempts
            if worth or isinstance(error, Withdrawn):
                continue
            taking.asked.pop(sample)
            detail = storable(str(error))[:_DETAIL_LENGTH]
            failure = Failure(sample, error.outcome, detail, taking.opened.sent[sample])
            self._queue.give_up(failure, taking.opened)
            self._failure_rate.add(True, detail)

    def _settle(self, intent: Intent, cost: int | None, *, may_be_billed: bool) -> None:
        try:
            self._purse.settle(intent.reserved_picousd, cost, may_be_billed=may_be_billed)
        except RunStopped as reached:
            self._fatal.append(reached)


class _Taking(msgspec.Struct):
    """A partition while results are taken into it."""

    opened: OpenPartition
    asked: dict[str, Sample]
    """Its samples that have no generation."""
    done: set[str]
    """Attempts that are recorded."""
    before: dict[str, int]
    """Attempts of a sample up to its last failure: `--retry-failed` begins anew."""
    batch: Batch
    endpoint: Endpoint
    sent_at: float
    latency_s: float


def missing(batch: Batch, results: Results) -> TeacherError:
    """Return the error for a request that no line speaks of."""
    if results.torn == 0 and batch.status == "cancelled":
        return Withdrawn(f"the batch {batch.batch_id} was cancelled before this request was run.")
    if results.torn == 0 and batch.status == "expired":
        return NotRun(f"the batch {batch.batch_id} expired before this request was run.")
    return TornAnswer(f"the results of the batch {batch.batch_id} lack this request.")
