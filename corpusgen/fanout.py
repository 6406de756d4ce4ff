"""Keep the teacher full: a bounded number of requests in flight and no barrier anywhere.

Workers take samples from one stream and hold each through its attempts. A partition is committed
by a thread when its last sample has ended, while others go on; a slow answer keeps its own
partition open and nothing else. When the run is to stop, workers take nothing new, requests in
flight get `drain_s`, and what is left of the open partitions is committed as it stands.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

import msgspec

from corpusgen import attempts
from corpusgen.errors import (
    ConnectionFailed,
    CorpusgenError,
    RunStopped,
    TeacherError,
    TeacherRaised,
)
from corpusgen.limits import Budget, Gate, worst_case
from corpusgen.money import Tariff
from corpusgen.retry import RetryPolicy
from corpusgen.stopping import FailureRate, LogprobCheck, Stop, Stopping
from corpusgen.store import OpenPartition, Store
from corpusgen.teachers.interface import Endpoint, Teacher
from corpusgen.types import Failure, Generation, Intent, Reply, Request, Sample
from corpusgen.unicode import storable

SYNC_S = 1.0
DRAIN_LOOK_S = 0.1
_DETAIL_LENGTH = 500


Queue = asyncio.Queue[tuple[OpenPartition, Sample] | None]


class Meter(Protocol):
    """Counts what happens, for progress and failure rates."""

    def answered(self, generation: Generation) -> None:
        """Count a generation."""

    def failed(self, failure: Failure) -> None:
        """Count a failure."""

    def retried(self, error: TeacherError) -> None:
        """Count an attempt that failed and may be made again."""

    def committed(self, opened: OpenPartition, complete: bool) -> None:
        """Tell that a part was committed."""


class Lane(msgspec.Struct, frozen=True):
    """One teacher with what stands around it."""

    teacher: Teacher
    gate: Gate
    tariff: Tariff | None
    """Null: the price is not known."""
    partitions: list[int]
    """Partitions with samples for this teacher, in the order in which they are asked."""
    top_logprobs: int
    prompt_token_ids: bool


class FanOut:
    """Ask all lanes' samples and bring each to an end."""

    def __init__(
        self,
        store: Store,
        policy: RetryPolicy,
        budget: Budget,
        meter: Meter,
        stop: Stop,
        failure_rate: FailureRate,
        wanted: Callable[[str], bool],
        retry_failed: Callable[[str], bool] | None,
        drain_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._policy = policy
        self._budget = budget
        self._meter = meter
        self._stop = stop
        self._failure_rate = failure_rate
        self._wanted = wanted
        self._retry_failed = retry_failed
        self._drain_s = drain_s
        self._clock = clock
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._commits: set[asyncio.Task[None]] = set()
        self._mistake: Exception | None = None
        self.logprobs = LogprobCheck(stop)
        self.in_flight = 0

    async def run(self, lanes: Iterable[Lane]) -> None:
        """Bring every sample to an end, or stop early; afterwards everything is committed.

        Raises nothing for single samples; a fault of the whole run stands in the `Stop`.
        """
        syncing = asyncio.create_task(self._sync_often())
        tasks = [task for lane in lanes for task in self._start(lane)]
        try:
            await self._until_done(tasks)
        finally:
            syncing.cancel()
            with suppress(asyncio.CancelledError):
                await syncing
            await self._commit_rest()
            self._committer.shutdown()
        if self._mistake is not None:
            raise self._mistake

    def _start(self, lane: Lane) -> list[asyncio.Task[None]]:
        queue: Queue = asyncio.Queue(2 * lane.gate.concurrency)
        workers = [self._work(lane, queue) for _ in range(lane.gate.concurrency)]
        work = [self._feed(lane, queue), *workers]
        return [asyncio.create_task(self._reporting(part)) for part in work]

    async def _reporting(self, work: Coroutine[None, None, None]) -> None:
        """Do a feeder's or a worker's work; what it raises stops the run, and drains the others."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - sorted out there
            self._stop_for(error)

    async def _until_done(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wait for all tasks; once a stop is asked, only for requests in flight and `drain_s`."""
        pending = set(tasks)
        stopping = asyncio.create_task(self._stop.wait())
        while pending and not stopping.done():
            _, left = await asyncio.wait((*pending, stopping), return_when=asyncio.FIRST_COMPLETED)
            pending = left - {stopping}
        stopping.cancel()
        deadline = time.monotonic() + self._drain_s
        while pending and self.in_flight and time.monotonic() < deadline:
            _, pending = await asyncio.wait(pending, timeout=DRAIN_LOOK_S)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def _stop_for(self, error: Exception) -> None:
        if isinstance(error, CorpusgenError):
            self._stop(error)
        elif isinstance(error, OSError):
            self._stop(
                CorpusgenError(
                    f"{error.filename or 'the corpus'}: cannot be written: {error.strerror}. "
                    "What was answered is safe; make room and run the command again"
                )
            )
        else:  # a mistake of ours: it leaves with its traceback once everything is committed
            self._mistake = self._mistake or error
            self._stop(CorpusgenError(f"{type(error).__name__}: {error}"))

    async def _feed(self, lane: Lane, queue: Queue) -> None:
        for partition in lane.partitions:
            if self._stop.is_asked():
                break
            opened, samples = await asyncio.to_thread(
                self._store.take_up, partition, self._wanted, self._retry_failed
            )
            if not samples:
                self._commit_if_finished(opened)
            for sample in samples:
                await queue.put((opened, sample))
        for _ in range(lane.gate.concurrency):
            await queue.put(None)

    async def _work(self, lane: Lane, queue: Queue) -> None:
        while (item := await queue.get()) is not None:
            if self._stop.is_asked():
                continue  # leaves the sample pending, and lets the feeder end
            opened, sample = item
            try:
                await self._bring_to_end(lane, opened, sample)
            except Stopping:
                continue
            self._commit_if_finished(opened)

    async def _bring_to_end(self, lane: Lane, opened: OpenPartition, sample: Sample) -> None:
        if sample.problem is not None:
            self._fail(opened, Failure(sample.sample_id, "bad_prompt", sample.problem, 0))
            return
        request = attempts.request_for(sample, lane.top_logprobs, lane.prompt_token_ids)
        try:
            async for attempt in self._policy.attempts():
                with attempt:
                    await self._attempt(lane, opened, sample, request)
        except TeacherError as error:
            if error.retry == "fatal":
                self._stop(error)
                raise Stopping from None
            detail = storable(str(error))[:_DETAIL_LENGTH]
            sent = opened.sent[sample.sample_id]
            self._fail(opened, Failure(sample.sample_id, error.outcome, detail, sent))
        except RunStopped as reached:
            self._stop(reached)
            raise Stopping from None

    def _fail(self, opened: OpenPartition, failure: Failure) -> None:
        opened.fail(failure)
        self._meter.failed(failure)
        if failure.reason != "bad_prompt":
            self._failure_rate.add(True, failure.detail)

    async def _attempt(
        self, lane: Lane, opened: OpenPartition, sample: Sample, request: Request
    ) -> None:
        """Make one attempt, with its intent and its outcome in the journal."""
        if self._stop.is_asked():
            raise Stopping
        reserved = worst_case(request, lane.tariff)
        await self._budget.reserve(reserved)
        try:
            endpoint = await lane.gate.enter()
        except BaseException:
            await self._budget.settle(reserved, 0, may_be_billed=False)
            raise
        if self._stop.is_asked():
            await lane.gate.leave(endpoint)
            await self._budget.settle(reserved, 0, may_be_billed=False)
            raise Stopping
        intent = Intent(
            attempt_id=uuid.uuid4().hex,
            sample_ids=[sample.sample_id],
            endpoint=endpoint.name,
            started_at=self._clock(),
            reserved_picousd=reserved,
        )
        opened.begin(intent)
        opened.sent[sample.sample_id] += 1
        self.in_flight += 1
        began = time.perf_counter()
        pause: float | None = None
        connected = True
        cost: int | None = None
        billed = True
        try:
            reply = await _generate(lane.teacher, request, endpoint)
            latency = time.perf_counter() - began
            cost = attempts.cost(reply.usage, lane.tariff)
            generation = attempts.generation(
                intent, sample, reply, latency, opened.sent[sample.sample_id]
            )
            opened.end(attempts.answered(intent, reply, latency, cost), [generation])
            self._meter.answered(generation)
            self._failure_rate.add(False)
            self.logprobs.add(request, generation.answer, endpoint.name)
        except TeacherError as error:
            latency = time.perf_counter() - began
            pause, billed = error.retry_after_s, error.may_be_billed
            connected = not isinstance(error, ConnectionFailed)
            cost = attempts.failure_cost(error, lane.tariff)
            opened.end(attempts.failed(intent, error, latency, cost), [])
            self._meter.retried(error)
            raise
        except asyncio.CancelledError:
            opened.end(attempts.cancelled(intent, time.perf_counter() - began), [])
            raise
        finally:
            self.in_flight -= 1
            await lane.gate.leave(endpoint, pause, connected=connected)
            await self._budget.settle(reserved, cost, may_be_billed=billed)

    def _commit_if_finished(self, opened: OpenPartition) -> None:
        if opened.finished and not self._stop.is_asked():
            opened.fed = False  # so that only one commit is begun
            task = asyncio.create_task(self._commit(opened, complete=True))
            self._commits.add(task)
            task.add_done_callback(self._commits.discard)
            task.add_done_callback(self._note_failed_commit)

    def _note_failed_commit(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._stop_for(error)

    async def _commit(self, opened: OpenPartition, *, complete: bool) -> None:
        loop = asyncio.get_running_loop()
        commit = await loop.run_in_executor(self._committer, self._store.commit, opened)
        self._store.committed(opened, commit)
        if commit is not None:
            self._meter.committed(opened, complete)

    async def _commit_rest(self) -> None:
        """Commit what is open; a fault of the disk leaves the journals for the next run."""
        await asyncio.gather(*self._commits, return_exceptions=True)
        for opened in list(self._store.open.values()):
            try:
                await self._commit(opened, complete=not opened.pending)
            except (CorpusgenError, OSError) as error:
                self._stop_for(error)
                self._store.close()
                return

    async def _sync_often(self) -> None:
        while True:
            await asyncio.sleep(SYNC_S)
            for opened in list(self._store.open.values()):
                if opened.dirty:
                    try:
                        await asyncio.to_thread(opened.sync)
                    except OSError as error:
                        self._stop_for(error)


async def _generate(teacher: Teacher, request: Request, endpoint: Endpoint) -> Reply:
    """Make the attempt; whatever a teacher raises leaves as a `TeacherError`."""
    try:
        return attempts.checked(await teacher.generate(request, endpoint))
    except TeacherError:
        raise
    except Exception as error:  # a plug-in's own code may raise anything
        raise TeacherRaised(f"the teacher raised {type(error).__name__}: {error}") from error
