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
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

import msgspec

from corpusgen.errors import (
    CorpusgenError,
    ExitCode,
    RunStopped,
    TeacherError,
)
from corpusgen.identity import seed_for
from corpusgen.limits import Budget, Gate, worst_case
from corpusgen.money import Tariff
from corpusgen.retry import RetryPolicy
from corpusgen.store import OpenPartition, Store
from corpusgen.teachers.interface import Teacher
from corpusgen.types import (
    Answer,
    Attempt,
    Failure,
    Generation,
    Intent,
    Reply,
    Request,
    Sample,
    Usage,
)

SYNC_S = 1.0
_DETAIL_LENGTH = 500


class Stop:
    """The one wish to stop, with its reason; the first reason wins."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.reason: CorpusgenError | None = None

    def __call__(self, reason: CorpusgenError) -> None:
        """Ask the run to stop."""
        if self.reason is None:
            self.reason = reason
        self._event.set()

    def is_asked(self) -> bool:
        """Whether the run is to stop."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait until the run is to stop."""
        await self._event.wait()

    async def sleep(self, seconds: float) -> None:
        """Sleep; raise `_Stopping` as soon as the run is to stop."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return
        raise _Stopping


class _Stopping(Exception):
    """Leaves a sample as it is: pending."""


class Meter(Protocol):
    """Counts what happens, for progress and failure rates."""

    def answered(self, generation: Generation, cost_picousd: int | None) -> None:
        """Count a generation."""

    def failed(self, failure: Failure) -> None:
        """Count a failure."""

    def retried(self, error: TeacherError) -> None:
        """Count an attempt that failed and may be made again."""

    def committed(self, opened: OpenPartition, complete: bool) -> None:
        """Tell that a part was committed."""


class FailureRate:
    """Stop a run in which too many of the last samples fail."""

    def __init__(self, stop: Stop, highest: float, window: int, minimum: int) -> None:
        self._stop = stop
        self._highest = highest
        self._minimum = minimum
        self._last: deque[bool] = deque(maxlen=window)

    def add(self, failed: bool, detail: str = "") -> None:
        """Count one sample that ended."""
        self._last.append(failed)
        failures = sum(self._last) if failed else 0
        if len(self._last) >= self._minimum and failures > self._highest * len(self._last):
            self._stop(
                RunStopped(
                    f"{failures} of the last {len(self._last)} samples failed, more than "
                    f"generate.max_failure_rate ({self._highest}) allows; the last one: {detail} "
                    "Mend the cause and run the command again with --retry-failed",
                    ExitCode.ERROR,
                )
            )


class LogprobCheck:
    """Stop a run whose teacher leaves out the logprobs that were asked for.

    A single answer without them is kept and counted; none with them among the first few means
    that the endpoint does not give any, and that going on would pay for half of what is wanted.
    """

    FIRST = 5

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._given = 0
        self.missing = 0

    def add(self, request: Request, answer: Answer, endpoint: str) -> None:
        """Count one answer."""
        if request.top_logprobs == 0 or not answer.text:
            return
        if answer.trace is not None and answer.trace.topk_counts is not None:
            self._given += 1
            return
        self.missing += 1
        if self._given == 0 and self.missing == self.FIRST:
            self._stop(
                RunStopped(
                    f"the endpoint {endpoint} answers without logprobs, although "
                    f"sampling.top_logprobs is {request.top_logprobs}; set it to 0 in a corpus of "
                    "its own (another `out`), or use an endpoint that gives them",
                    ExitCode.ERROR,
                )
            )


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
        workers = [asyncio.create_task(self._guard(lane)) for lane in lanes]
        try:
            await self._until_done(workers)
        finally:
            syncing.cancel()
            with suppress(asyncio.CancelledError):
                await syncing
            await self._commit_rest()
            self._committer.shutdown()
        if self._mistake is not None:
            raise self._mistake

    async def _until_done(self, workers: list[asyncio.Task[None]]) -> None:
        all_done = asyncio.gather(*workers)
        stopping = asyncio.create_task(self._stop.wait())
        await asyncio.wait((all_done, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not all_done.done():
            await asyncio.wait(workers, timeout=self._drain_s)
            all_done.cancel()
        with suppress(asyncio.CancelledError):
            await all_done

    async def _guard(self, lane: Lane) -> None:
        try:
            await self._run_lane(lane)
        except ExceptionGroup as group:
            self._stop_for(_first(group))

    def _stop_for(self, error: Exception) -> None:
        if isinstance(error, CorpusgenError):
            self._stop(error)
        elif isinstance(error, OSError):
            self._stop(
                CorpusgenError(
                    f"{error.filename or 'the corpus'}: cannot be written: {error.strerror}. "
                    "What was answered before is safe; make room and run the command again"
                )
            )
        else:  # a mistake of ours: it leaves with its traceback once everything is committed
            self._mistake = self._mistake or error
            self._stop(CorpusgenError(f"{type(error).__name__}: {error}"))

    async def _run_lane(self, lane: Lane) -> None:
        queue: asyncio.Queue[tuple[OpenPartition, Sample] | None] = asyncio.Queue(
            2 * lane.gate.concurrency
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(self._feed(lane, queue))
            for _ in range(lane.gate.concurrency):
                group.create_task(self._work(lane, queue))

    async def _feed(
        self, lane: Lane, queue: asyncio.Queue[tuple[OpenPartition, Sample] | None]
    ) -> None:
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

    async def _work(
        self, lane: Lane, queue: asyncio.Queue[tuple[OpenPartition, Sample] | None]
    ) -> None:
        while (item := await queue.get()) is not None:
            if self._stop.is_asked():
                continue  # leaves the sample pending, and lets the feeder end
            opened, sample = item
            try:
                await self._bring_to_end(lane, opened, sample)
            except _Stopping:
                continue
            self._commit_if_finished(opened)

    async def _bring_to_end(self, lane: Lane, opened: OpenPartition, sample: Sample) -> None:
        if sample.problem is not None:
            self._fail(opened, Failure(sample.sample_id, "bad_prompt", sample.problem, 0))
            return
        request = request_for(sample, lane.top_logprobs, lane.prompt_token_ids)
        try:
            async for attempt in self._policy.attempts():
                with attempt:
                    await self._attempt(lane, opened, sample, request)
        except TeacherError as error:
            if error.retry == "fatal":
                self._stop(error)
                raise _Stopping from None
            detail = str(error)[:_DETAIL_LENGTH]
            sent = opened.sent[sample.sample_id]
            self._fail(opened, Failure(sample.sample_id, error.outcome, detail, sent))
        except RunStopped as reached:
            self._stop(reached)
            raise _Stopping from None

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
            raise _Stopping
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
            raise _Stopping
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
        cost: int | None = None
        billed = True
        try:
            reply = await lane.teacher.generate(request, endpoint)
            latency = time.perf_counter() - began
            cost = _cost(reply.usage, lane.tariff)
            generation = _generation(intent, sample, reply, latency, opened)
            opened.end(_answered(intent, reply, latency, cost), [generation])
            self._meter.answered(generation, cost)
            self._failure_rate.add(False)
            self.logprobs.add(request, generation.answer, endpoint.name)
        except TeacherError as error:
            latency = time.perf_counter() - began
            pause, billed = error.retry_after_s, error.may_be_billed
            cost = _failure_cost(error, lane.tariff)
            opened.end(_failed(intent, error, latency, cost), [])
            self._meter.retried(error)
            raise
        except asyncio.CancelledError:
            opened.end(_cancelled(intent, time.perf_counter() - began), [])
            raise
        finally:
            self.in_flight -= 1
            await lane.gate.leave(endpoint, pause)
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


def request_for(sample: Sample, top_logprobs: int, prompt_token_ids: bool) -> Request:
    """Return what is asked for a sample, with the seed that is its own."""
    return Request(
        messages=sample.messages,
        sampling=sample.sampling,
        seed=seed_for(sample.sampling.seed, sample.sample_id),
        top_logprobs=top_logprobs,
        tools=sample.tools,
        response_format=sample.response_format,
        prompt_token_ids=prompt_token_ids,
    )


def _cost(usage: Usage, tariff: Tariff | None) -> int | None:
    if tariff is None:
        return None
    if tariff.free:
        return 0
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    return tariff.cost(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)


def _failure_cost(error: TeacherError, tariff: Tariff | None) -> int | None:
    """Return what a failed attempt cost: nothing, unless the provider may bill it all the same."""
    if tariff is None:
        return None
    if error.prompt_tokens is not None and error.completion_tokens is not None:
        return tariff.cost(error.prompt_tokens, error.completion_tokens)
    return None if error.may_be_billed and not tariff.free else 0


def _generation(
    intent: Intent, sample: Sample, reply: Reply, latency_s: float, opened: OpenPartition
) -> Generation:
    answer: Answer = reply.answers[0]
    if answer.completion_tokens is None:
        answer = msgspec.structs.replace(answer, completion_tokens=reply.usage.completion_tokens)
    return Generation(
        sample_id=sample.sample_id,
        answer=answer,
        usage=reply.usage,
        endpoint=intent.endpoint,
        started_at=intent.started_at,
        latency_s=latency_s,
        attempts=opened.sent[sample.sample_id],
        prompt_token_ids=reply.prompt_token_ids,
        model_revision=reply.model_revision,
    )


def _answered(intent: Intent, reply: Reply, latency_s: float, cost: int | None) -> Attempt:
    return Attempt(
        attempt_id=intent.attempt_id,
        sample_ids=intent.sample_ids,
        endpoint=intent.endpoint,
        started_at=intent.started_at,
        outcome="answered",
        latency_s=latency_s,
        http_status=reply.http_status,
        prompt_tokens=reply.usage.prompt_tokens,
        cached_tokens=reply.usage.cached_tokens,
        completion_tokens=reply.usage.completion_tokens,
        reasoning_tokens=reply.usage.reasoning_tokens,
        cost_picousd=cost,
        reserved_picousd=intent.reserved_picousd,
        request_id=reply.request_id,
    )


def _failed(intent: Intent, error: TeacherError, latency_s: float, cost: int | None) -> Attempt:
    return Attempt(
        attempt_id=intent.attempt_id,
        sample_ids=intent.sample_ids,
        endpoint=intent.endpoint,
        started_at=intent.started_at,
        outcome=error.outcome,
        latency_s=latency_s,
        http_status=error.http_status,
        prompt_tokens=error.prompt_tokens,
        completion_tokens=error.completion_tokens,
        cost_picousd=cost,
        reserved_picousd=intent.reserved_picousd,
        request_id=error.request_id,
    )


def _cancelled(intent: Intent, latency_s: float) -> Attempt:
    return Attempt(
        attempt_id=intent.attempt_id,
        sample_ids=intent.sample_ids,
        endpoint=intent.endpoint,
        started_at=intent.started_at,
        outcome="cancelled",
        latency_s=latency_s,
        reserved_picousd=intent.reserved_picousd,
    )


def _first(group: BaseExceptionGroup[Exception]) -> Exception:
    """Return the first single error of a task group's errors."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
