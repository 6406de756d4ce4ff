"""Bring one lane to its end: send what fits, sleep, look at what is out, take in what has ended."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Callable

import msgspec

from corpusgen.batching.desk import Desk
from corpusgen.batching.lane import BatchLane, Out
from corpusgen.batching.packing import Packed, Packer, Purse, Refused
from corpusgen.batching.partitions import Partitions
from corpusgen.batching.queue import Queue
from corpusgen.batching.refusals import Verdict, verdict
from corpusgen.batching.results import Intake, Results
from corpusgen.batching.room import Room
from corpusgen.batching.submissions import (
    Item,
    Submission,
    identity_of,
    read,
    remove,
    write,
)
from corpusgen.errors import ExitCode, RateLimited, RunStopped, TeacherError
from corpusgen.layout import Layout
from corpusgen.stopping import Stop
from corpusgen.teachers.interface import Batch
from corpusgen.types import Failure

Tell = Callable[[str, str], None]

_MOST_DOUBLINGS = 4
"""Of `poll_s`, while looks fail or the provider is full."""
_SPREAD = 0.25
_SOON_S = 0.05


class LaneRun:
    """One lane, while it is asked."""

    def __init__(
        self,
        layout: Layout,
        corpus_id: str,
        partitions: Partitions,
        lane: BatchLane,
        desk: Desk,
        queue: Queue,
        packer: Packer,
        purse: Purse,
        intake: Intake,
        stop: Stop,
        tell: Tell,
        check_lease: Callable[[], None],
        clock: Callable[[], float],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """`jitter` returns a number from 0 to 1."""
        self._layout = layout
        self._corpus_id = corpus_id
        self._partitions = partitions
        self._lane = lane
        self._desk = desk
        self._queue = queue
        self._packer = packer
        self._purse = purse
        self._intake = intake
        self._stop = stop
        self._tell = tell
        self._check_lease = check_lease
        self._clock = clock
        self._jitter = jitter
        self._settings = lane.teacher.batch_settings
        self._room = Room(self._settings, lane.endpoints, clock)
        self._out: list[Out] = []
        self._failed_looks = 0
        self._asked_pause_s = 0.0

    @property
    def out(self) -> list[Out]:
        """What is out now."""
        return list(self._out)

    def take_over(self, submission: Submission) -> None:
        """Go on with what another process sent; to be called before `run`."""
        self._out.append(Out.of(submission, self._corpus_id, self._layout))

    async def run(self) -> None:
        """Bring every sample to an end."""
        for out in self._out:
            self._tell_since(out)
        try:
            if self._out:
                await self._look_at_all()
            while not self._stop.is_asked():
                await self._send_what_fits()
                if not self._out and self._packer.empty:
                    return
                if await self._rest():
                    await self._look_at_all()
        finally:
            self._packer.release()

    def _tell_since(self, out: Out) -> None:
        hours = max(self._clock() - out.made_at, 0.0) / 3600
        self._tell(
            "info",
            f"{out.requests} requests are out at {out.endpoint} since {hours:.1f} hours "
            f"(submission {out.submission_id})",
        )

    async def _send_what_fits(self) -> None:
        while not self._stop.is_asked() and not self._packer.empty:
            endpoint = self._room.roomiest(self._out)
            if endpoint is None:
                return
            submission_id = uuid.uuid4().hex
            path = self._layout.submission_work(submission_id, "requests")
            most = self._room.tokens(endpoint.name, self._out)
            packed = await self._packer.pack(path, endpoint, most)
            await self._end_refused()
            if packed is None:
                return
            try:
                await self._send(submission_id, endpoint.name, packed)
            finally:
                path.unlink(missing_ok=True)

    async def _send(self, submission_id: str, endpoint: str, packed: Packed) -> None:
        self._check_lease()
        submission = Submission(
            submission_id=submission_id,
            teacher=identity_of(self._lane.teacher),
            endpoint=endpoint,
            made_at=self._clock(),
            tokens=packed.tokens,
            items=packed.items,
        )
        await asyncio.to_thread(write, self._layout, submission)
        out = Out.of(submission, self._corpus_id, self._layout)
        self._out.append(out)
        self._queue.went_out(packed.items)
        try:
            await self._desk.send(out, packed.path)
        except RateLimited as error:
            await self._desk.withdraw(out)
            self._forget(out, packed.items)
            self._room.close(endpoint, self._settings.poll_s)
            self._tell("warning", f"{error} Trying again in {self._settings.poll_s:.0f} s")
            return
        except TeacherError as error:
            if error.retry != "never":
                raise
            raise RunStopped(str(error), ExitCode.ERROR) from None
        known = out.batch.batch_id if out.batch is not None else "not known yet"
        self._tell(
            "info",
            f"{out.requests} requests went out to {endpoint} (submission {submission_id}, batch "
            f"{known})",
        )

    async def _end_refused(self) -> None:
        """End requests that can never be sent."""
        refused: list[Refused] = self._packer.refused
        while refused:
            found = refused.pop()
            opened, samples = self._partitions.take_up(found.ask.partition)
            left = {sample.sample_id for sample in samples}
            for sample in found.ask.samples:
                if sample.sample_id in left:
                    sent, detail = opened.sent[sample.sample_id], str(found.error)
                    failure = Failure(sample.sample_id, found.error.outcome, detail, sent)
                    self._queue.give_up(failure, opened)
            await self._partitions.close(opened)

    async def _rest(self) -> bool:
        """Sleep until the next look is due, or the budget has room; tell whether a look is due."""
        resting = asyncio.ensure_future(self._stop.sleep(self._rest_s()))
        reserving = self._packer.reserving
        awaited = {resting} if reserving is None else {resting, reserving}
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            due = resting.done()
            resting.cancel()
        if due:
            resting.result()
        return due

    def _rest_s(self) -> float:
        spread = 1 - _SPREAD + 2 * _SPREAD * self._jitter()
        seconds = self._settings.poll_s * spread * 2.0 ** min(self._failed_looks, _MOST_DOUBLINGS)
        now = self._clock()
        for out in self._out:
            if out.place is not None and out.in_doubt and not self._failed_looks:
                left = out.place.sent_at + self._settings.lookup_s - now
                seconds = min(seconds, max(left, _SOON_S))
        return max(seconds, self._asked_pause_s)

    async def _look_at_all(self) -> None:
        self._asked_pause_s = 0.0
        failed: TeacherError | None = None
        for out in list(self._out):
            try:
                await self._look(out)
            except TeacherError as error:
                if error.retry != "again":
                    raise
                failed = error
                self._asked_pause_s = max(self._asked_pause_s, error.retry_after_s or 0.0)
        self._failed_looks = self._failed_looks + 1 if failed is not None else 0
        if failed is not None and self._failed_looks.bit_count() == 1:
            self._tell(
                "warning",
                f"{failed} The batches go on at the provider; looking again in "
                f"{self._rest_s():.0f} s",
            )

    async def _look(self, out: Out) -> None:
        batch = await self._desk.look(out)
        if batch is None and self._is_overdue(out):
            batch = await self._desk.fence(out)
            if batch is None:
                submission = await asyncio.to_thread(read, self._layout, out.submission_id)
                self._forget(out, submission.items)
                return
        if batch is None:
            return
        out.see(batch)
        if batch.ended:
            await self._take_in(out, batch)
            if batch.status == "cancelled" and out.seen_going:
                self._stop(_cancelled(batch))

    def _is_overdue(self, out: Out) -> bool:
        """Whether a submission that has no batch will not get one any more."""
        if out.place is None:
            return True
        return self._clock() - out.place.sent_at >= self._settings.lookup_s

    async def _take_in(self, out: Out, batch: Batch) -> None:
        submission = await asyncio.to_thread(read, self._layout, out.submission_id)
        if batch.status == "failed":
            await self._refused(out, submission, batch)
            return
        ours = {item.item_id for item in submission.items}
        results = await self._desk.collect(out, batch, ours)
        self._tell_of(batch, results, len(ours))
        await self._intake.take(submission, batch, results)
        await self._desk.discard(out, batch)
        if results.path is not None:
            results.path.unlink(missing_ok=True)
        self._forget(out, [])

    async def _refused(self, out: Out, submission: Submission, batch: Batch) -> None:
        """Do with a batch that the provider refused, and of which nothing was run, what it says."""
        found: Verdict = verdict(submission, batch)
        hopeless = [item for item in submission.items if item.item_id in found.refusals]
        if hopeless:
            kept = msgspec.structs.replace(submission, items=hopeless)
            await self._intake.take(kept, batch, Results(None, {}, refusals=found.refusals))
        await self._desk.discard(out, batch)
        kept_back = [i for i in submission.items if i.item_id not in found.refusals]
        self._forget(out, kept_back)
        if found.full:
            wait_s = self._room.overfull(out, self._out, self._settings.poll_s)
            self._tell(
                "warning",
                f"endpoint {out.endpoint} holds too much already: {found.said} Sending less, and "
                f"not before {wait_s:.0f} s",
            )
        if found.error is not None:
            raise found.error

    def _forget(self, out: Out, unsent: list[Item]) -> None:
        """Strike a submission off; `unsent` of it was never run.

        What of its samples has not ended is sent again, whoever recorded why.
        """
        for item in unsent:
            self._purse.give_back(self._lane.reserved(item))
        remove(self._layout, out.submission_id)
        self._out.remove(out)
        self._queue.again(out.partitions)

    def _tell_of(self, batch: Batch, results: Results, expected: int) -> None:
        if results.gone:
            self._tell(
                "warning",
                f"the provider has deleted the results of the batch {batch.batch_id} before they "
                "were fetched; its requests are charged at their worst case and sent again",
            )
            return
        odd = {
            "torn": results.torn,
            "of others": results.foreign,
            "repeated": results.repeated,
            "missing": expected - len(results.places) if batch.status == "completed" else 0,
        }
        told = ", ".join(f"{count} lines {what}" for what, count in odd.items() if count)
        if told:
            self._tell("warning", f"the results of the batch {batch.batch_id} have {told}")


def _cancelled(batch: Batch) -> RunStopped:
    return RunStopped(
        f"the batch {batch.batch_id} was cancelled; what it had answered is committed. Run the "
        "same command again to send the rest",
        ExitCode.INTERRUPTED,
    )
