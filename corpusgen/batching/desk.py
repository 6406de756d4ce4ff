"""Deal with the provider for one lane: send, look, find again, fetch, clear up; with retries.

Where a submission is goes to disk at each step, before the next one. Making a batch is the one
request that must not be made twice: where its outcome is not known, the batch is looked for by its
label, and before it is given up its file is deleted, so that a request that is still under way
somewhere finds nothing to make a batch of.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from corpusgen.batching.lane import BatchLane, Out
from corpusgen.batching.results import Results, index
from corpusgen.batching.submissions import Place, remove_place, write_place
from corpusgen.errors import CorpusgenError, NotConnected, TeacherError
from corpusgen.files import sync_file
from corpusgen.layout import Layout
from corpusgen.retry import RetryPolicy
from corpusgen.stopping import Stop
from corpusgen.teachers.interface import Batch

T = TypeVar("T")

GONE = 404


class Desk:
    """Where one lane's submissions are handed in and fetched."""

    def __init__(
        self,
        layout: Layout,
        lane: BatchLane,
        policy: RetryPolicy,
        stop: Stop,
        clock: Callable[[], float],
    ) -> None:
        self._layout = layout
        self._lane = lane
        self._teacher = lane.teacher
        self._policy = policy
        self._stop = stop
        self._clock = clock

    async def send(self, out: Out, requests: Path) -> None:
        """Upload a submission's file and make a batch of it.

        Afterwards the batch is known, or in doubt. Raises the `TeacherError` of the last try where
        it certainly was not made.
        """
        endpoint = self._lane.endpoints[out.endpoint]
        await asyncio.to_thread(sync_file, requests)
        file_id = await self._again(lambda: self._upload(out, requests))
        place = Place(file_id, self._clock())
        self._put(out, place)
        try:
            batch = await self._again(
                lambda: _unless_unknown(self._teacher.submit(out.label, file_id, endpoint))
            )
        except TeacherError:
            remove_place(self._layout, out.submission_id)
            out.place = None
            raise
        if batch is None:  # looked for from now on, however long the call took
            self._put(out, msgspec.structs.replace(place, sent_at=self._clock()))
            return
        self._put(out, msgspec.structs.replace(place, batch_id=batch.batch_id))
        out.see(batch)

    async def look(self, out: Out) -> Batch | None:
        """Return a submission's batch as it stands, null where none is found. One try."""
        endpoint = self._lane.endpoints[out.endpoint]
        if out.place is None:
            return None
        if out.place.batch_id is None:
            return await self._find(out)
        try:
            return await self._teacher.poll(out.place.batch_id, endpoint)
        except TeacherError as error:
            if error.http_status != GONE:
                raise
            raise CorpusgenError(
                f"endpoint {out.endpoint} does not know the batch {out.place.batch_id}, which has "
                f"{out.requests} requests of this corpus. Use the key of the account that made it, "
                f"or delete {self._layout.submission(out.submission_id)} to send them again and "
                "pay twice."
            ) from None

    async def fence(self, out: Out) -> Batch | None:
        """Make sure that no batch can be made of a submission any more; return one that was."""
        await self.withdraw(out)
        return None if out.place is None else await self._find(out)

    async def withdraw(self, out: Out) -> None:
        """Delete a submission's uploads."""
        endpoint = self._lane.endpoints[out.endpoint]
        await self._again(lambda: self._teacher.withdraw(out.label, endpoint))

    async def collect(self, out: Out, batch: Batch, ours: Collection[str]) -> Results:
        """Fetch the results of a batch that has ended, a second time where requests are missing.

        They are empty where the provider has deleted them.
        """
        if not batch.result_files:
            return Results(None, {})
        path = self._layout.submission_work(out.submission_id, "results")
        endpoint = self._lane.endpoints[out.endpoint]
        results = Results(None, {})
        for _ in range(2):
            try:
                await self._again(lambda: self._teacher.fetch(batch, path, endpoint))
            except TeacherError as error:
                if error.http_status != GONE:
                    raise
                path.unlink(missing_ok=True)
                return Results(None, {}, gone=True)
            results = await asyncio.to_thread(index, path, self._lane, ours)
            if len(results.places) == len(ours) or batch.status != "completed":
                break
        return results

    async def discard(self, out: Out, batch: Batch) -> None:
        """Delete a batch's files at the provider; what cannot be deleted now expires there."""
        with suppress(TeacherError):
            endpoint = self._lane.endpoints[out.endpoint]
            await self._again(lambda: self._teacher.discard(batch, endpoint))

    async def _upload(self, out: Out, requests: Path) -> str:
        endpoint = self._lane.endpoints[out.endpoint]
        try:
            return await self._teacher.upload(out.label, requests, endpoint)
        except TeacherError as error:
            if _may_have_happened(error):
                with suppress(TeacherError):
                    await self._teacher.withdraw(out.label, endpoint)
            raise

    async def _find(self, out: Out) -> Batch | None:
        """Look for a submission in the provider's list."""
        assert out.place is not None
        endpoint = self._lane.endpoints[out.endpoint]
        listed = await self._teacher.listed(out.label.corpus_id, out.made_at, endpoint)
        found = next((batch for batch in listed if batch.label == out.label), None)
        if found is not None:
            self._put(out, msgspec.structs.replace(out.place, batch_id=found.batch_id))
        return found

    def _put(self, out: Out, place: Place) -> None:
        write_place(self._layout, out.submission_id, place)
        out.place = place

    async def _again(self, call: Callable[[], Awaitable[T]]) -> T:
        """Make a call until it succeeds, within the bounds of `generate.retry`."""
        return await self._policy.call(call, waits=True)


async def _unless_unknown(making: Awaitable[Batch]) -> Batch | None:
    """Return what was made, null where nobody knows whether it was."""
    try:
        return await making
    except TeacherError as error:
        if _may_have_happened(error):
            return None
        raise


def _may_have_happened(error: TeacherError) -> bool:
    """Tell whether a request that failed may have been carried out all the same."""
    if isinstance(error, NotConnected):
        return False
    status = error.http_status
    return status is None or not 400 <= status < 500 or status == 408
