"""Ask the samples of teachers that answer in batches, and bring each to an end.

Each lane is one task. When the run is to stop, nothing new goes out, what is being taken in gets
`drain_s`, and batches go on at the provider: the next run fetches them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress

from corpusgen.batching.desk import Desk
from corpusgen.batching.lane import BatchLane, Out
from corpusgen.batching.lane_run import LaneRun, Tell
from corpusgen.batching.packing import Packer, Purse
from corpusgen.batching.partitions import Partitions, Witness
from corpusgen.batching.queue import Queue
from corpusgen.batching.results import Intake
from corpusgen.batching.submissions import read
from corpusgen.batching.waiting import Waiting
from corpusgen.config import Generate
from corpusgen.errors import CorpusgenError, ExitCode, RunStopped
from corpusgen.layout import Layout
from corpusgen.limits import Budget
from corpusgen.retry import RetryPolicy
from corpusgen.stopping import FailureRate, LogprobCheck, Stop, Stopping, stop_for
from corpusgen.store import Store


class Batching:
    """Ask all batch lanes' samples and bring each to an end."""

    def __init__(
        self,
        layout: Layout,
        corpus_id: str,
        store: Store,
        lanes: Sequence[BatchLane],
        waiting: Waiting,
        policy: RetryPolicy,
        settings: Generate,
        budget: Budget,
        meter: Witness,
        stop: Stop,
        failure_rate: FailureRate,
        wanted: Callable[[str], bool],
        retry_failed: Callable[[str], bool] | None,
        tell: Tell,
        check_lease: Callable[[], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Set aside, under all budgets, what earlier processes' submissions may still cost.

        To be made before anything else reserves. `tell` takes a level and a sentence. Raises
        `ConfigError` where a submission that is out belongs to none of the lanes.
        """
        waiting.check(lanes)
        self._layout = layout
        self._corpus_id = corpus_id
        self._lanes = lanes
        self._policy = policy
        self._settings = settings
        self._budget = budget
        self._meter = meter
        self._stop = stop
        self._failure_rate = failure_rate
        self._wanted = wanted
        self._retry_failed = retry_failed
        self._tell = tell
        self._check_lease = check_lease
        self._clock = clock
        self._mistake: Exception | None = None
        self.reached: CorpusgenError | None = None
        """The budget that ended a lane while others went on."""
        self._partitions = Partitions(layout, store, meter)
        self.logprobs = LogprobCheck(stop)
        self._runs: list[LaneRun] = []
        self._partitions.adopt(waiting.partitions.union(*(lane.partitions for lane in lanes)))
        for lane in lanes:
            self._runs.append(self._taken_over(lane, waiting))

    @property
    def in_flight(self) -> int:
        """Requests that are out now."""
        return sum(out.requests for out in self._out())

    async def run(self) -> None:
        """Bring every sample to an end, or stop early; afterwards everything is committed.

        Raises nothing for single samples; a fault of the whole run stands in the `Stop`, and a
        budget that is reached, which ends one lane only, in `reached`.
        """
        tasks = [asyncio.create_task(self._reporting(run.run())) for run in self._runs]
        try:
            await self._until_done(tasks)
        finally:
            await self._commit_rest()
        left = self._out()
        if left:
            requests = sum(out.requests for out in left)
            self._tell(
                "info",
                f"{requests} requests in {len(left)} batches go on at the provider; the same "
                "command fetches them, and `corpusgen batches CONFIG --cancel` ends them",
            )
        if self._mistake is not None:
            raise self._mistake

    def _out(self) -> list[Out]:
        return [out for run in self._runs for out in run.out]

    def _taken_over(self, lane: BatchLane, waiting: Waiting) -> LaneRun:
        """Return a lane's run, with what of it is out already and money set aside for that."""
        run = self._lane_run(lane)
        budgets = [each for each in (self._budget, lane.budget) if each is not None]
        capped = any(budget.capped for budget in budgets)
        for submission in waiting.of(lane):
            amount = waiting.may_cost(submission, lane, capped=capped)
            for budget in budgets:
                budget.reserved += amount
            run.take_over(submission)
        return run

    def _lane_run(self, lane: BatchLane) -> LaneRun:
        purse = Purse([each for each in (self._budget, lane.budget) if each is not None])
        desk = Desk(self._layout, lane, self._policy, self._stop, self._clock)
        queue = Queue(
            self._partitions,
            lane,
            self._meter,
            self._wanted,
            self._retry_failed,
            self._samples_out,
        )
        intake = Intake(
            self._partitions,
            lane,
            queue,
            purse,
            self._meter,
            self._stop,
            self._failure_rate,
            self.logprobs,
            self._settings.retry.max_attempts,
        )
        return LaneRun(
            self._layout,
            self._corpus_id,
            self._partitions,
            lane,
            desk,
            queue,
            Packer(lane, queue, purse),
            purse,
            intake,
            self._stop,
            self._tell,
            self._check_lease,
            self._clock,
        )

    def _samples_out(self, partition: int) -> set[str]:
        """Return which samples of a partition are out; reads the submissions that hold some."""
        return {
            sample
            for out in self._out()
            if partition in out.partitions
            for item in read(self._layout, out.submission_id).items
            if item.partition == partition
            for sample in item.sample_ids
        }

    async def _reporting(self, work: Coroutine[None, None, None]) -> None:
        """Do a lane's work; what it raises stops the run, or this lane only."""
        try:
            await work
        except Stopping:
            return
        except RunStopped as reached:  # a budget: other lanes go on
            if reached.exit_code is ExitCode.BUDGET:
                self.reached = reached
            else:
                self._stop(reached)
        except Exception as error:  # noqa: BLE001 - sorted out there
            self._stop_for(error)

    async def _until_done(self, tasks: list[asyncio.Task[None]]) -> None:
        """Wait for all lanes; once a stop is asked, only `drain_s`."""
        pending = set(tasks)
        stopping = asyncio.create_task(self._stop.wait())
        while pending and not stopping.done():
            _, left = await asyncio.wait((*pending, stopping), return_when=asyncio.FIRST_COMPLETED)
            pending = left - {stopping}
        stopping.cancel()
        with suppress(asyncio.CancelledError):
            await stopping
        if pending:
            _, pending = await asyncio.wait(pending, timeout=self._settings.drain_s)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)

    def _stop_for(self, error: Exception) -> None:
        self._mistake = stop_for(self._stop, error) or self._mistake

    async def _commit_rest(self) -> None:
        """Commit what is open; a fault of the disk leaves the journals for the next run."""
        try:
            await self._partitions.close_all()
        except (CorpusgenError, OSError) as error:
            self._stop_for(error)
