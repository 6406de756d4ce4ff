"""Hold the partitions that batching has open, apart from those of the fan-out.

The fan-out commits whatever it finds open in the store when it ends. A partition is therefore taken
out of there in the same step in which it is taken up, without leaving the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Protocol

from corpusgen.layout import Layout
from corpusgen.parquet import read_table
from corpusgen.store import OpenPartition, Store
from corpusgen.types import Failure, Generation, Sample


class Witness(Protocol):
    """Is told what becomes of samples."""

    def answered(self, generation: Generation) -> None:
        """Count a generation."""

    def failed(self, failure: Failure) -> None:
        """Count a failure."""

    def committed(self, opened: OpenPartition, complete: bool) -> None:
        """Tell that a part was committed."""


class Partitions:
    """Open partitions for a moment each: hours may pass until more comes for one."""

    def __init__(self, layout: Layout, store: Store, witness: Witness) -> None:
        self._layout = layout
        self._store = store
        self._witness = witness
        self._open: dict[int, OpenPartition] = {}
        self._closing: dict[int, asyncio.Task[None]] = {}

    def adopt(self, partitions: Collection[int]) -> None:
        """Commit what earlier processes left in some partitions' journals; blocks."""
        for opened in [each for each in self._store.open.values() if each.number in partitions]:
            complete = not opened.pending
            commit = self._store.commit(opened)
            self._store.committed(opened, commit)
            if commit is not None:
                self._witness.committed(opened, complete)

    def take_up(
        self,
        partition: int,
        wanted: Callable[[str], bool] = lambda _: True,
        retry: Callable[[str], bool] | None = lambda _: True,
    ) -> tuple[OpenPartition, list[Sample]]:
        """Open a partition; return its samples that have no generation, as `Store.take_up`."""
        opened, samples = self._store.take_up(partition, wanted, retry)
        self._open[partition] = self._store.open.pop(partition)
        return opened, samples

    async def close(self, opened: OpenPartition) -> None:
        """Commit what an open partition holds, and close it.

        A caller that is cancelled leaves the commit at work, for `close_all` to wait for.
        """
        closing = self._closing.get(opened.number)
        if closing is None:
            closing = asyncio.create_task(self._commit(opened))
            self._closing[opened.number] = closing
        await asyncio.shield(closing)  # its thread cannot be stopped, nor must it be joined by one

    async def _commit(self, opened: OpenPartition) -> None:
        try:
            complete = not opened.pending
            commit = await asyncio.to_thread(self._store.commit, opened)
            self._open.pop(opened.number, None)
            self._store.committed(opened, commit)
            if commit is not None:
                self._witness.committed(opened, complete)
        finally:
            del self._closing[opened.number]

    async def close_all(self) -> None:
        """Commit and close what a lane that was cut short has left open or at work."""
        for opened in list(self._open.values()):
            await self.close(opened)

    def recorded(self, opened: OpenPartition) -> set[str]:
        """Return the ids of the attempts that an open partition holds already."""
        found = recorded_in_commits(self._layout, self._store, opened.number)
        return found | {attempt.attempt_id for attempt in opened.contents.attempts}

    def attempts_at_failure(self, opened: OpenPartition) -> dict[str, int]:
        """Return how many attempts its failed samples had when they last failed."""
        found: dict[str, int] = {}
        for commit in self._store.commits.get(opened.number, ()):
            file = commit.files.get("failures")
            if file is not None:
                table = read_table(self._layout.root / file.path, ["sample_id", "attempts"])
                ids, counts = (table.column(i).to_pylist() for i in range(2))
                found |= dict(zip(ids, counts, strict=True))
        for failure in opened.contents.failures.values():
            found[failure.sample_id] = failure.attempts
        return found


def recorded_in_commits(layout: Layout, store: Store, partition: int) -> set[str]:
    """Return the ids of the attempts that a partition's commits hold."""
    found: set[str] = set()
    for commit in store.commits.get(partition, ()):
        file = commit.files.get("attempts")
        if file is not None:
            column = read_table(layout.root / file.path, ["attempt_id"]).column(0)
            found.update(column.to_pylist())
    return found
