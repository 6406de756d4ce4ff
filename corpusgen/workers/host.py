"""The parent's side of one worker: lend it places and reservations, and take them back.

Where a worker dies, what it holds is taken back as cancelled and charged at its reservations: its
requests may have been answered, and its journal says which were sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

import msgspec

from corpusgen.errors import CorpusgenError, ExitCode, RunStopped
from corpusgen.limits import Admission, Admitted, Fate
from corpusgen.stopping import Stop, stop_for
from corpusgen.workers.messages import (
    Counts,
    Ended,
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
    heard_from_worker,
)

_CANCELLED = Fate("cancelled")


class Listener(Protocol):
    """Takes in what workers tell."""

    def counted(self, counts: Counts) -> None:
        """Add a worker's counts."""

    def said(self, message: Said) -> None:
        """Pass a sentence on."""

    def committed(self, part: PartCommitted) -> None:
        """Tell that a part was committed."""


class Host:
    """Serve one worker until it has ended or is gone."""

    def __init__(
        self,
        admissions: Mapping[str, Admission],
        listener: Listener,
        stop: Stop,
    ) -> None:
        self._admissions = admissions
        self._listener = listener
        self._stop = stop
        self._mouth: Mouth | None = None
        self._held: dict[int, tuple[Admission, Admitted]] = {}
        self._calls: dict[int, asyncio.Task[None]] = {}
        self.ended: Ended | None = None
        """How the worker ended; null: it goes on, or is gone without a word."""

    def open(self, writer: asyncio.StreamWriter, brief: msgspec.Struct) -> None:
        """Say what the worker is to do, before anything else."""
        self._mouth = Mouth(writer)
        self._mouth.say(brief)

    async def serve(self, reader: asyncio.StreamReader) -> None:
        """Answer until the worker closes its side; take back what it holds then."""
        assert self._mouth is not None, "open() comes first"
        try:
            async for message in heard_from_worker(reader):
                self._take(message)
        finally:
            await self._take_back()
            await self._mouth.close()

    @property
    def holding(self) -> int:
        """Requests that the worker has under way."""
        return len(self._held)

    def halt(self, reason: CorpusgenError) -> None:
        """Tell the worker to drain, commit and end."""
        if self._mouth is not None:
            self._mouth.say(Halt(str(reason), int(reason.exit_code)))

    def _take(self, message: object) -> None:
        match message:
            case Enter():
                self._calls[message.call] = asyncio.create_task(self._admit(message))
            case Withdraw(call):
                self._withdraw(call)
            case Leave(call, fate, cost, may_be_billed):
                admission, admitted = self._held.pop(call)
                self._settle(admission, admitted, fate, cost, may_be_billed=may_be_billed)
            case GiveBack(call):
                admission, admitted = self._held.pop(call)
                admission.give_back(admitted)
            case Counts():
                self._listener.counted(message)
            case Said():
                self._listener.said(message)
            case PartCommitted():
                self._listener.committed(message)
            case Ended():
                self.ended = message

    async def _admit(self, asked: Enter) -> None:
        assert self._mouth is not None
        admission = self._admissions[asked.lane]
        try:
            admitted = await admission.enter(asked.need, asked.claim)
        except RunStopped as reached:
            self._mouth.say(Refused(asked.call, str(reached), int(reached.exit_code)))
            return
        except Exception as error:  # noqa: BLE001 - the worker must not wait for ever
            mistake = stop_for(self._stop, error)
            self._mouth.say(Refused(asked.call, str(mistake or error), int(ExitCode.ERROR)))
            return
        finally:
            self._calls.pop(asked.call, None)
        self._held[asked.call] = admission, admitted
        self._mouth.say(
            Given(asked.call, admitted.endpoint, admitted.reserved, admission.concurrency)
        )

    def _withdraw(self, call: int) -> None:
        """Take a call back: it waits still, or was answered while this was on its way."""
        if call in self._calls:
            self._calls[call].cancel()
        elif call in self._held:
            admission, admitted = self._held.pop(call)
            admission.give_back(admitted)

    def _settle(
        self,
        admission: Admission,
        admitted: Admitted,
        fate: Fate,
        cost: int | None,
        *,
        may_be_billed: bool,
    ) -> None:
        try:
            admission.leave(admitted, fate, cost, may_be_billed=may_be_billed)
        except RunStopped as reached:
            self._stop(reached)

    async def _take_back(self) -> None:
        calls = list(self._calls.values())
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        for admission, admitted in self._held.values():
            self._settle(admission, admitted, _CANCELLED, None, may_be_billed=True)
        self._held.clear()


def reason_of(ended: Ended) -> RunStopped | None:
    """Return why a worker ended early, if it did."""
    return None if ended.reason is None else RunStopped(ended.reason, ExitCode(ended.exit_code))
