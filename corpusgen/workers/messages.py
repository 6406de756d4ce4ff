"""What parent and workers say to each other: length-prefixed msgpack over a socket pair."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec

from corpusgen.limits import Claim, Fate, Need

_LENGTH = struct.Struct("<I")


class Message(msgspec.Struct, frozen=True, tag=True):
    """Anything that is said."""


class Enter(Message, frozen=True):
    """A worker has a request for a place."""

    call: int
    lane: str
    """The teacher's name."""
    need: Need
    claim: Claim


class Withdraw(Message, frozen=True):
    """A worker no longer waits for the answer to a call."""

    call: int


class Leave(Message, frozen=True):
    """A worker's request has ended."""

    call: int
    fate: Fate
    cost: int | None
    may_be_billed: bool


class GiveBack(Message, frozen=True):
    """A worker does not use what it was given."""

    call: int


class Counts(Message, frozen=True):
    """What a worker did since it last said so."""

    generations: int
    completion_tokens: int
    retries: int
    failures: dict[str, int]


class Said(Message, frozen=True):
    """A sentence for the user."""

    level: str
    message: str


class PartCommitted(Message, frozen=True):
    """A part of a partition is on disk for good."""

    partition: int
    part: int
    generations: int
    failures: int
    complete: bool


class Ended(Message, frozen=True):
    """A worker has nothing left to do, or was stopped; everything is committed."""

    reason: str | None = None
    """Why it ended early."""
    exit_code: int = 0
    without_logprobs: int = 0


class Given(Message, frozen=True):
    """The parent gives a place and a reservation."""

    call: int
    endpoint: str
    reserved: int | None
    concurrency: int
    """Requests that all workers may have in flight for this teacher as things stand."""


class Refused(Message, frozen=True):
    """The parent has nothing to give any more."""

    call: int
    reason: str
    exit_code: int


class Halt(Message, frozen=True):
    """The run is to stop."""

    reason: str
    exit_code: int


FromWorker = Enter | Withdraw | Leave | GiveBack | Counts | Said | PartCommitted | Ended
FromParent = Given | Refused | Halt

_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_from_parent: msgspec.msgpack.Decoder[FromParent] = msgspec.msgpack.Decoder(FromParent)


class Mouth:
    """Say messages; those of one turn of the event loop leave in one write."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._held: list[bytes] = []

    def say(self, message: msgspec.Struct) -> None:
        """Say a message; it is lost where the other side is gone."""
        payload = _encoder.encode(message)
        if not self._held:
            asyncio.get_running_loop().call_soon(self._flush)
        self._held.append(_LENGTH.pack(len(payload)))
        self._held.append(payload)

    async def close(self) -> None:
        """Say what is left, wait until it has left, and close."""
        self._flush()
        with suppress(ConnectionError):
            await self._writer.drain()
        self._writer.close()
        with suppress(ConnectionError):
            await self._writer.wait_closed()

    def _flush(self) -> None:
        if self._held and not self._writer.is_closing():
            self._writer.write(b"".join(self._held))
        self._held.clear()


async def heard_from_worker(reader: asyncio.StreamReader) -> AsyncIterator[FromWorker]:
    """Yield a worker's messages until it is gone."""
    async for payload in _payloads(reader):
        yield _from_worker.decode(payload)


async def heard_from_parent(reader: asyncio.StreamReader) -> AsyncIterator[FromParent]:
    """Yield the parent's messages until it is gone."""
    async for payload in _payloads(reader):
        yield _from_parent.decode(payload)


async def heard_first(reader: asyncio.StreamReader) -> bytes:
    """Return the first message that comes, undecoded; empty where none does."""
    async for payload in _payloads(reader):
        return payload
    return b""


async def _payloads(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        try:
            length = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))[0]
            payload = await reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        yield payload
