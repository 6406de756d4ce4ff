"""Pack requests into one file within the provider's limits and the budget."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from pathlib import Path

import msgspec

from corpusgen.batching.lane import BatchLane
from corpusgen.batching.queue import Ask, Queue
from corpusgen.batching.submissions import Item
from corpusgen.errors import Rejected, TeacherError
from corpusgen.identity import canonical
from corpusgen.limits import Budget
from corpusgen.teachers.interface import Endpoint
from corpusgen.types import Request

_BYTES_A_TOKEN = 3
"""Fewer than any real text has, so that the provider counts fewer tokens than we do."""
_TOKENS_A_MESSAGE = 8


class Purse:
    """Set money aside under the run's budget and the teacher's own."""

    def __init__(self, budgets: Sequence[Budget]) -> None:
        self._budgets = budgets

    async def reserve(self, amount: int | None) -> None:
        """Set an amount aside under each budget; raise `RunStopped` where one is reached."""
        taken: list[Budget] = []
        try:
            for budget in self._budgets:
                await budget.reserve(amount)
                taken.append(budget)
        except BaseException:
            for budget in taken:
                budget.settle(amount, 0, may_be_billed=False)
            raise

    def settle(self, amount: int | None, cost: int | None, *, may_be_billed: bool) -> None:
        """Replace a reservation by a cost under each budget; raise `RunStopped` as they do."""
        raised: Exception | None = None
        for budget in self._budgets:
            try:
                budget.settle(amount, cost, may_be_billed=may_be_billed)
            except Exception as error:  # noqa: BLE001 - the other budgets are settled first
                raised = error
        if raised is not None:
            raise raised

    def give_back(self, amount: int | None) -> None:
        """Undo a reservation: nothing was sent."""
        self.settle(amount, 0, may_be_billed=False)


class Packed(msgspec.Struct, frozen=True):
    """A file of requests that is ready to go out."""

    path: Path
    items: list[Item]
    tokens: int


class Refused(msgspec.Struct, frozen=True):
    """A request that can never be sent."""

    ask: Ask
    error: TeacherError


class _Held(msgspec.Struct, frozen=True):
    """A request whose money is set aside when `reserving` is done."""

    ask: Ask
    worst: int | None
    reserving: asyncio.Future[None]


class Packer:
    """Take from a lane's queue what one file holds, over and over."""

    def __init__(self, lane: BatchLane, queue: Queue, purse: Purse) -> None:
        self._lane = lane
        self._queue = queue
        self._purse = purse
        self._held: _Held | None = None
        """What did not fit the last file, or waits in line for the budget."""
        self.refused: list[Refused] = []
        """What was met on the way; the caller ends them."""

    @property
    def empty(self) -> bool:
        """Whether nothing is left to be packed."""
        return self._held is None and self._queue.empty

    @property
    def reserving(self) -> asyncio.Future[None] | None:
        """What ends when the budget has room for the next request; null: nothing waits for it."""
        if self._held is None or self._held.reserving.done():
            return None
        return self._held.reserving

    async def pack(self, path: Path, endpoint: Endpoint, most_tokens: int | None) -> Packed | None:
        """Write the next file; null where there is nothing to send, or no money for it now.

        A single request may exceed `most_tokens`: the provider then says what it thinks of it.
        Raises `RunStopped` where a budget is reached and nothing is set aside any more.
        """
        settings = self._lane.teacher.batch_settings
        items: list[Item] = []
        tokens = size = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            while len(items) < settings.requests_per_batch:
                held = await self._affordable_ask()
                if held is None:
                    break
                ask, worst = held.ask, held.worst
                item = self._item(ask, worst)
                line = self._line(item, ask, endpoint)
                if line is None:
                    continue
                weight = estimated_tokens(ask.request)
                full = most_tokens is not None and tokens + weight > most_tokens
                if items and (full or size + len(line) > settings.bytes_per_batch):
                    self._held = held
                    break
                file.write(line)
                items.append(item)
                tokens, size = tokens + weight, size + len(line)
        if not items:
            await asyncio.to_thread(path.unlink)
            return None
        return Packed(path, items, tokens)

    def release(self) -> None:
        """Give back what is set aside, or asked to be, for a request that did not go out."""
        if self._held is not None:
            held, self._held = self._held, None
            self._queue.put_back([held.ask])
            future = held.reserving
            if future.cancel() or future.cancelled() or future.exception() is not None:
                return
            self._purse.give_back(held.worst)

    async def _affordable_ask(self) -> _Held | None:
        """Return the next request with its money set aside; null where either is missing."""
        if self._held is None:
            ask = await self._queue.next()
            if ask is None:
                return None
            worst = self._lane.worst_case(ask.request)
            reserving = asyncio.ensure_future(self._purse.reserve(worst))
            self._held = _Held(ask, worst, reserving)
        await asyncio.sleep(0)  # a reservation that fits is made in its first step
        if not self._held.reserving.done():
            return None
        held, self._held = self._held, None
        held.reserving.result()
        return held

    def _item(self, ask: Ask, worst: int | None) -> Item:
        most = self._lane.most_tokens(ask.request) if worst is None else None
        samples = [sample.sample_id for sample in ask.samples]
        return Item(uuid.uuid4().hex, ask.partition, samples, worst, most)

    def _line(self, item: Item, ask: Ask, endpoint: Endpoint) -> bytes | None:
        """Return a request's line; null where it was refused and its money given back."""
        largest = self._lane.teacher.batch_settings.bytes_per_batch
        try:
            line = self._lane.teacher.encode_item(item.item_id, ask.request, endpoint)
            if len(line) > largest:
                raise Rejected(
                    f"the request has {len(line)} bytes, more than a file may have "
                    f"(teacher.bytes_per_batch: {largest})"
                )
        except TeacherError as error:
            self._purse.give_back(item.reserved_picousd)
            self.refused.append(Refused(ask, error))
            return None
        return line


def estimated_tokens(request: Request) -> int:
    """Return about how many prompt tokens a provider counts, rather too many than too few."""
    parts = [*request.messages, request.tools, request.response_format]
    size = sum(len(canonical(part)) for part in parts if part)
    return size // _BYTES_A_TOKEN + _TOKENS_A_MESSAGE * len(request.messages)
