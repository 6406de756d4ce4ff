"""Hand out the samples that wait to be sent, partition by partition."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

import msgspec

from corpusgen.batching.lane import BatchLane
from corpusgen.batching.partitions import Partitions, Witness
from corpusgen.batching.submissions import Item
from corpusgen.store import OpenPartition
from corpusgen.types import Failure, Request, Sample


class Ask(msgspec.Struct, frozen=True):
    """A request that is to be sent, for one sample or for several draws of a prompt."""

    partition: int
    samples: list[Sample]
    request: Request


class Queue:
    """The samples of a lane that have not ended and are not out."""

    def __init__(
        self,
        partitions: Partitions,
        lane: BatchLane,
        witness: Witness,
        wanted: Callable[[str], bool],
        retry_failed: Callable[[str], bool] | None,
        out: Callable[[int], set[str]],
    ) -> None:
        """`out` returns which samples of a partition are out."""
        self._opening = partitions
        self._lane = lane
        self._witness = witness
        self._wanted = wanted
        self._retry_failed = retry_failed
        self._out = out
        self._partitions = deque(lane.partitions)
        self._asks: deque[Ask] = deque()
        self._given_up: set[str] = set()
        self._handed_out: set[str] = set()
        """Samples that are being packed: neither here any more nor out yet."""

    @property
    def empty(self) -> bool:
        """Whether nothing waits; partitions may turn out to hold nothing."""
        return not self._partitions and not self._asks

    def again(self, partitions: Iterable[int]) -> None:
        """Look at some partitions again: samples of theirs are to be sent once more."""
        self._partitions.extend(sorted(set(partitions) - set(self._partitions)))

    def put_back(self, asks: Iterable[Ask]) -> None:
        """Take back what was handed out last and did not go out, in its order."""
        self._asks.extendleft(reversed(list(asks)))

    def went_out(self, items: Iterable[Item]) -> None:
        """Take note that what was handed out for some items stands in a submission now."""
        self._handed_out.difference_update(s for item in items for s in item.sample_ids)

    async def next(self) -> Ask | None:
        """Return what is to be sent next, null where nothing is left."""
        while not self._asks:
            if not self._partitions:
                return None
            partition = self._partitions.popleft()
            samples = await self._load(partition)
            for group in self._lane.groups(samples):
                self._asks.append(Ask(partition, group, self._lane.request_for(group)))
        ask = self._asks.popleft()
        self._handed_out.update(sample.sample_id for sample in ask.samples)
        return ask

    def give_up(self, failure: Failure, opened: OpenPartition) -> None:
        """End a sample as a failure."""
        opened.fail(failure)
        self._given_up.add(failure.sample_id)
        self._witness.failed(failure)

    async def _load(self, partition: int) -> list[Sample]:
        """Return the samples of a partition that can be sent; those that never can fail here."""
        opened, samples = self._opening.take_up(partition, self._wanted, self._retry_failed)
        out = await asyncio.to_thread(self._out, partition)
        sendable = []
        for sample in samples:
            if sample.sample_id in self._given_up or sample.sample_id in self._handed_out:
                continue
            if sample.problem is not None:
                self.give_up(Failure(sample.sample_id, "bad_prompt", sample.problem, 0), opened)
            elif sample.sample_id not in out:
                sendable.append(sample)
        await self._opening.close(opened)
        return sendable
