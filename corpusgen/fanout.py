"""Keep the teachers full: a bounded number of requests in flight and no barrier anywhere.

Each sample is a task that lives through its attempts; only as many are begun as the gate can use
soon. A partition is committed by a thread when its last sample has ended, while others go on; a
slow answer keeps its own partition open and nothing else, and one that waits for its next attempt
keeps no place. When the run is to stop, nothing new is begun, requests in flight get `drain_s`,
and what is left of the open partitions is committed as it stands.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Protocol

from corpusgen.errors import (
    CorpusgenError,
    ExitCode,
    QuotaExhausted,
    Rejected,
    RunStopped,
    TeacherError,
)
from corpusgen.exchange import Exchange, Witness
from corpusgen.lane import Ask, Lane
from corpusgen.retry import RetryPolicy
from corpusgen.stopping import FailureRate, Stop, Stopping, stop_for
from corpusgen.store import OpenPartition, Store
from corpusgen.types import Failure, Sample
from corpusgen.unicode import storable

SYNC_S = 1.0
DRAIN_LOOK_S = 0.1
_DETAIL_LENGTH = 500
_ALIVE_A_PLACE = 4
"""Samples that have begun and not ended, for each place: most of them wait for another attempt."""
_ALIVE_AT_LEAST = 64


TakenUp = tuple[OpenPartition, list[Sample]]


class Meter(Witness, Protocol):
    """Counts what happens, for progress and failure rates."""

    def failed(self, failure: Failure) -> None:
        """Count a failure."""

    def committed(self, opened: OpenPartition, complete: bool) -> None:
        """Tell that a part was committed."""


class FanOut:
    """Ask all lanes' samples and bring each to an end."""

    def __init__(
        self,
        store: Store,
        policy: RetryPolicy,
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
        self._meter = meter
        self._stop = stop
        self._failure_rate = failure_rate
        self._wanted = wanted
        self._retry_failed = retry_failed
        self._drain_s = drain_s
        self._exchange = Exchange(meter, stop, clock)
        self._committer = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="plan")
        self._commits: set[asyncio.Task[None]] = set()
        self._asking: dict[Lane, set[asyncio.Task[None]]] = {}
        self._mistake: Exception | None = None
        self.logprobs = self._exchange.logprobs

    @property
    def reached(self) -> CorpusgenError | None:
        """Which budget or limit closed a lane for the rest of this run, if one did."""
        return next((lane.closed for lane in self._asking if lane.closed), None)

    @property
    def in_flight(self) -> int:
        """Requests under way now."""
        return self._exchange.in_flight

    async def run(self, lanes: Iterable[Lane]) -> None:
        """Bring every sample to an end, or stop early; afterwards everything is committed.

        Raises nothing for single samples; a fault of the whole run stands in the `Stop`.
        """
        self._asking = {lane: set() for lane in lanes}
        syncing = asyncio.create_task(self._sync_often())
        feeders = [asyncio.create_task(self._bring_all_to_end(lane)) for lane in self._asking]
        try:
            await self._until_done(feeders)
        finally:
            syncing.cancel()
            with suppress(asyncio.CancelledError):
                await syncing
            self._reader.shutdown()
            await self._commit_rest()
            self._committer.shutdown()
            for lane in self._asking:
                lane.admission.close()
        if self._mistake is not None:
            raise self._mistake

    async def _reporting(self, work: Coroutine[None, None, None]) -> None:
        """Do a piece of work; what it raises stops the run, and drains the others."""
        try:
            await work
        except Exception as error:  # noqa: BLE001 - sorted out there
            self._stop_for(error)

    async def _until_done(self, feeders: list[asyncio.Task[None]]) -> None:
        """Wait for all samples; once a stop is asked, only for requests in flight and `drain_s`."""
        pending = set(feeders)
        stopping = asyncio.create_task(self._stop.wait())
        while pending and not stopping.done():
            _, left = await asyncio.wait((*pending, stopping), return_when=asyncio.FIRST_COMPLETED)
            pending = left - {stopping}
        stopping.cancel()
        deadline = time.monotonic() + self._drain_s
        while pending and self.in_flight and time.monotonic() < deadline:
            _, pending = await asyncio.wait(pending, timeout=DRAIN_LOOK_S)
        left_over = [*pending, *(task for tasks in self._asking.values() for task in tasks)]
        for task in left_over:
            task.cancel()
        if left_over:
            await asyncio.wait(left_over)

    def _stop_for(self, error: Exception) -> None:
        self._mistake = stop_for(self._stop, error) or self._mistake

    async def _bring_all_to_end(self, lane: Lane) -> None:
        """Begin a lane's samples as the gate asks for them, and wait until all have ended."""
        await self._reporting(self._begin_all(lane))
        while self._asking[lane]:
            await asyncio.wait(self._asking[lane])

    async def _begin_all(self, lane: Lane) -> None:
        coming = self._take_up(lane, 0)
        wanted = 0
        for index in range(len(lane.partitions)):
            opened, samples = await coming
            coming = self._take_up(lane, index + 1)  # read while this one is being asked
            for ask in lane.asks(opened, list(self._askable(opened, samples))):
                if wanted <= 0:
                    wanted = await self._until_wanted(lane)
                wanted -= 1
                if self._stop.is_asked() or lane.closed is not None:
                    return
                self._begin(ask)
            self._commit_if_finished(opened)

    def _take_up(self, lane: Lane, index: int) -> asyncio.Future[TakenUp]:
        loop = asyncio.get_running_loop()
        if index >= len(lane.partitions) or self._stop.is_asked() or lane.closed is not None:
            return loop.create_future()  # nobody waits for it
        partition = lane.partitions[index]
        return loop.run_in_executor(
            self._reader, self._store.take_up, partition, self._wanted, self._retry_failed
        )

    def _askable(self, opened: OpenPartition, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            if sample.problem is None:
                yield sample
            else:
                self._fail(opened, Failure(sample.sample_id, "bad_prompt", sample.problem, 0))

    async def _until_wanted(self, lane: Lane) -> int:
        """Wait until more samples are needed to keep the lane's endpoints full; return how many."""
        tasks = self._asking[lane]
        wanted = await lane.admission.wait_for_demand()
        while len(tasks) >= _ALIVE_A_PLACE * lane.admission.concurrency + _ALIVE_AT_LEAST:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return wanted

    def _begin(self, ask: Ask) -> None:
        tasks = self._asking[ask.lane]
        task = asyncio.create_task(self._bring_to_end(ask))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def _bring_to_end(self, ask: Ask) -> None:
        try:
            try:
                answered = await self._policy.call(partial(self._exchange.attempt, ask), ask.waited)
            except TeacherError as error:
                self._give_up(ask, error)
            else:
                self._take_answers(ask, answered)
            self._commit_if_finished(ask.opened)
        except Stopping:
            return
        except RunStopped as reached:
            self._close(ask.lane, reached)
        except Exception as error:  # noqa: BLE001 - sorted out there
            self._stop_for(error)

    def _take_answers(self, ask: Ask, answered: int) -> None:
        for _ in range(answered):
            self._failure_rate.add(False)
        if ask.split or answered == 1 < len(ask.samples):
            ask.lane.draws = 1  # this server gives one answer a request
        if answered < len(ask.samples):
            self._ask_again(ask, ask.samples[answered:])

    def _give_up(self, ask: Ask, error: TeacherError) -> None:
        if isinstance(error, QuotaExhausted) and len(ask.lane.endpoints) > 1:
            self._begin(Ask(ask.lane, ask.opened, ask.samples))  # others may have some left
            return
        if error.retry == "fatal":
            self._stop(error)
            raise Stopping
        if isinstance(error, Rejected) and len(ask.samples) > 1:
            self._ask_again(ask, ask.samples, split=True)  # perhaps only `n` was refused
            return
        detail = storable(str(error))[:_DETAIL_LENGTH]
        for sample in ask.samples:
            sent = ask.opened.sent[sample.sample_id]
            self._fail(ask.opened, Failure(sample.sample_id, error.outcome, detail, sent))

    def _ask_again(self, ask: Ask, samples: list[Sample], *, split: bool = False) -> None:
        """Ask for draws that a request did not bring, each on its own."""
        for sample in samples:
            self._begin(Ask(ask.lane, ask.opened, [sample], split=split))

    def _close(self, lane: Lane, reached: RunStopped) -> None:
        """Ask a teacher no more; others go on."""
        lane.closed = lane.closed or reached
        if reached.exit_code is ExitCode.ERROR:
            self._stop(reached)

    def _fail(self, opened: OpenPartition, failure: Failure) -> None:
        opened.fail(failure)
        self._meter.failed(failure)
        if failure.reason != "bad_prompt":
            self._failure_rate.add(True, failure.detail)

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
