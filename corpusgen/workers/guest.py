"""A worker's side: limits that stand in the parent, and a meter that tells it what was done."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping

from corpusgen.errors import CorpusgenError, ExitCode, RunStopped, TeacherError
from corpusgen.limits import Admitted, Claim, Fate, Need
from corpusgen.store import OpenPartition
from corpusgen.types import Failure, Generation
from corpusgen.workers.messages import (
    Counts,
    Enter,
    GiveBack,
    Given,
    Halt,
    Leave,
    Mouth,
    PartCommitted,
    Refused,
    Said,
    Withdraw,
    heard_from_parent,
)

_TOLD_FAILURES = 5


class RemoteAdmission:
    """Implements `limits.Admission` by asking the parent."""

    def __init__(
        self, lane: str, mouth: Mouth, calls: Calls, *, counts_tokens: bool, workers: int
    ) -> None:
        self._lane = lane
        self._mouth = mouth
        self._calls = calls
        self._workers = workers
        self._shared = 2 * workers
        self._line = 0
        self._served: asyncio.Future[None] | None = None
        self.counts_tokens = counts_tokens
        """Whether `Need.tokens` matters."""

    @property
    def concurrency(self) -> int:
        """This worker's share of the requests in flight, as the parent last told."""
        return max(self._shared // self._workers, 1)

    async def enter(self, need: Need, claim: Claim) -> Admitted:
        """Ask the parent and wait for its answer."""
        call, answer = self._calls.new()
        self._mouth.say(Enter(call, self._lane, need, claim))
        self._line += 1
        try:
            given = await answer
        except asyncio.CancelledError:
            self._calls.forget(call)
            self._mouth.say(Withdraw(call))
            raise
        finally:
            self._line -= 1
            if self._served is not None and not self._served.done():
                self._served.set_result(None)
        self._shared = given.concurrency
        return Admitted(given.endpoint, given.reserved, call)

    def leave(
        self, admitted: Admitted, fate: Fate, cost: int | None, *, may_be_billed: bool
    ) -> None:
        """Tell the parent what became of a request."""
        assert isinstance(admitted.ticket, int)
        self._mouth.say(Leave(admitted.ticket, fate, cost, may_be_billed))

    def give_back(self, admitted: Admitted) -> None:
        """Tell the parent that nothing was sent."""
        assert isinstance(admitted.ticket, int)
        self._mouth.say(GiveBack(admitted.ticket))

    async def wait_for_demand(self) -> int:
        """Return how many more requests should come in line; wait until it is at least one."""
        await asyncio.sleep(0)  # those that were begun just now come in line first
        while self._line >= self._wishes:
            if self._served is None or self._served.done():
                self._served = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._served)
        return self._wishes - self._line

    @property
    def _wishes(self) -> int:
        return max(self.concurrency // 4, 4)

    def close(self) -> None:
        """Do nothing: the parent's limits go on."""


class Calls:
    """Questions to the parent that wait for its answer."""

    def __init__(self) -> None:
        self._last = 0
        self._waiting: dict[int, asyncio.Future[Given]] = {}

    def new(self) -> tuple[int, asyncio.Future[Given]]:
        """Return a number for a question, and the future of its answer."""
        self._last += 1
        answer: asyncio.Future[Given] = asyncio.get_running_loop().create_future()
        self._waiting[self._last] = answer
        return self._last, answer

    def forget(self, call: int) -> None:
        """Wait for an answer no more."""
        self._waiting.pop(call, None)

    def given(self, message: Given) -> None:
        """Take a yes."""
        answer = self._waiting.pop(message.call, None)
        if answer is not None and not answer.done():
            answer.set_result(message)

    def refused(self, message: Refused) -> None:
        """Take a no."""
        answer = self._waiting.pop(message.call, None)
        if answer is not None and not answer.done():
            answer.set_exception(RunStopped(message.reason, ExitCode(message.exit_code)))


async def listen(
    reader: asyncio.StreamReader,
    calls: Calls,
    stop: Callable[[CorpusgenError], None],
    orphaned: Callable[[], None],
) -> None:
    """Take in what the parent says; call `orphaned` when it is gone."""
    async for message in heard_from_parent(reader):
        match message:
            case Given():
                calls.given(message)
            case Refused():
                calls.refused(message)
            case Halt(reason, exit_code):
                stop(RunStopped(reason, ExitCode(exit_code)))
    orphaned()


class RemoteMeter:
    """Implements `fanout.Meter`: adds up, and tells the parent once in a while."""

    def __init__(self, mouth: Mouth) -> None:
        self._mouth = mouth
        self._generations = 0
        self._tokens = 0
        self._retries = 0
        self._failures: Counter[str] = Counter()
        self._told = 0

    def answered(self, generation: Generation) -> None:
        """Count a generation."""
        self._generations += 1
        self._tokens += generation.answer.completion_tokens or 0

    def failed(self, failure: Failure) -> None:
        """Count a failure, and tell the first few."""
        self._failures[failure.reason] += 1
        self._told += 1
        if self._told <= _TOLD_FAILURES:
            where = f"sample {failure.sample_id[:8]}"
            self.say("warning", f"{where}: {failure.reason}: {failure.detail}")

    def retried(self, error: TeacherError) -> None:
        """Count an attempt that failed."""
        self._retries += 1
        self.say("debug", f"{error.outcome}: {error}")

    def committed(self, opened: OpenPartition, complete: bool) -> None:
        """Tell that a part was committed."""
        contents = opened.contents
        self.tell()
        self._mouth.say(
            PartCommitted(
                opened.number,
                opened.part,
                len(contents.generations),
                len(contents.failures.keys() - contents.generations.keys()),
                complete,
            )
        )

    def say(self, level: str, message: str) -> None:
        """Pass a sentence to the user."""
        self._mouth.say(Said(level, message))

    def tell(self) -> None:
        """Tell what was counted since the last time."""
        counts: Mapping[str, int] = self._failures
        if self._generations or self._retries or counts:
            self._mouth.say(Counts(self._generations, self._tokens, self._retries, dict(counts)))
        self._generations = self._tokens = self._retries = 0
        self._failures = Counter()
