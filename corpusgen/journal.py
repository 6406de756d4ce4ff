"""Keep every answer and every attempt on disk from the moment that it is there.

A journal is one append-only file for one part of a partition. A record is
`length (4 bytes LE) | CRC-32 of the payload (4 bytes LE) | payload (msgpack)` and goes out in one
`write`, so that SIGKILL at any instant leaves whole records and at most one torn tail, which the
next reader cuts off. Every second what was written is synced (`fdatasync`), which is what a power
cut may cost. The first record names the corpus, so that a foreign file is never replayed.

Intents are written before a request is sent; an intent without an outcome becomes an attempt
`lost`. The journal is deleted only when its part's commit marker stands.
"""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from corpusgen.errors import CorpusError
from corpusgen.types import Attempt, Failure, Generation, Intent

_HEADER = struct.Struct("<II")
_MAX_RECORD = 1 << 30
_MAX_TORN_HEAD = 512
"""A first record that a crash cut off is shorter; anything longer was written by others."""
_DTYPES = {b"i": np.dtype("<i4"), b"f": np.dtype("<f4")}


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The first record of a journal."""

    corpus_id: str
    partition: int
    part: int


class Begun(msgspec.Struct, frozen=True, tag=True):
    """An attempt is about to be sent."""

    intent: Intent


class Ended(msgspec.Struct, frozen=True, tag=True):
    """An attempt ended; what it brought, or the failure that it was the last straw for."""

    attempt: Attempt
    generations: list[Generation] = []
    failures: list[Failure] = []


class Failed(msgspec.Struct, frozen=True, tag=True):
    """A sample ended as a failure without an attempt of its own."""

    failure: Failure


Record = Opened | Begun | Ended | Failed


def _encode_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        kind = b"i" if value.dtype.kind == "i" else b"f"
        return np.ascontiguousarray(value, dtype=_DTYPES[kind]).tobytes() + kind
    raise NotImplementedError(f"cannot journal {type(value).__name__}")


def _decode_array(kind: type, value: Any) -> Any:
    del kind
    if not isinstance(value, bytes) or value[-1:] not in _DTYPES or len(value) % 4 != 1:
        raise ValueError("is no array")
    return np.frombuffer(value, dtype=_DTYPES[value[-1:]], count=len(value) // 4)


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_array)
_decoder = msgspec.msgpack.Decoder(Record, dec_hook=_decode_array)


class Located(msgspec.Struct, frozen=True):
    """Where a generation's record lies in its journal."""

    offset: int
    length: int
    index: int
    """Which of the record's generations."""


class Contents(msgspec.Struct):
    """What a journal holds, without the answers themselves: they are read again by place."""

    generations: dict[str, Located]
    failures: dict[str, Failure]
    attempts: list[Attempt]
    unfinished: dict[str, Intent]
    """Intents without an outcome, by attempt id."""
    size: int
    """Bytes up to the end of the last whole record."""
    torn_bytes: int
    """What follows it: a record that was cut off by a crash."""


class JournalWriter:
    """Append records to one part's journal.

    `append` returns when the kernel has the record: SIGKILL cannot take it any more. `sync` makes
    it survive a power cut as well; it may be called from another thread.
    """

    def __init__(self, path: Path, opened: Opened, *, resume_at: int = 0) -> None:
        """Create the journal, or go on at `resume_at` bytes of an existing one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        self._descriptor = os.open(path, flags, 0o644)
        self.dirty = False
        self._closing = threading.Lock()  # a sync in a thread must not meet a closed descriptor
        self._size = resume_at
        os.ftruncate(self._descriptor, resume_at)
        if not resume_at:
            self.append(opened)

    def append(self, record: Record) -> tuple[int, int]:
        """Write one record and return its place (offset, length).

        Raises `OSError` (a full disk) with the journal still whole.
        """
        payload = _encoder.encode(record)
        data = _HEADER.pack(len(payload), zlib.crc32(payload)) + payload
        place = (self._size, len(data))
        try:
            written = os.write(self._descriptor, data)
            while written < len(data):  # a nearly full disk takes a part
                written += os.write(self._descriptor, data[written:])
        except OSError:
            os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(data)
        self.dirty = True
        return place

    def sync(self) -> None:
        """Make everything that was appended survive a power cut; do nothing once closed."""
        with self._closing:
            if self._descriptor >= 0:
                self.dirty = False
                os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Sync and close; the file stays."""
        with self._closing:
            if self._descriptor >= 0:
                os.fdatasync(self._descriptor)
                os.close(self._descriptor)
                self._descriptor = -1


def read_contents(path: Path, opened: Opened) -> Contents:
    """Scan a journal up to its last whole record.

    Raises `CorpusError` where the file is no journal, or of another corpus or part.
    """
    contents = Contents({}, {}, [], {}, 0, 0)
    whole = 0
    for offset, length, record in _records(path):
        if whole == 0:
            _check_opened(record, path, opened)
        whole = offset + length
        take(contents, record, offset, length)
    contents.size = whole
    contents.torn_bytes = path.stat().st_size - whole
    if whole == 0 and contents.torn_bytes > _MAX_TORN_HEAD:
        raise _foreign(path)
    return contents


def take(contents: Contents, record: Record, offset: int, length: int) -> None:
    """Enter one record into a journal's contents."""
    match record:
        case Begun(intent):
            contents.unfinished[intent.attempt_id] = intent
        case Ended(attempt, generations, failures):
            contents.unfinished.pop(attempt.attempt_id, None)
            contents.attempts.append(attempt)
            for index, generation in enumerate(generations):
                contents.generations[generation.sample_id] = Located(offset, length, index)
            for failure in failures:
                contents.failures[failure.sample_id] = failure
        case Failed(failure):
            contents.failures[failure.sample_id] = failure
        case Opened():
            pass


def read_generation(descriptor: int, place: Located) -> Generation:
    """Read one answer back by its place in an open journal file."""
    data = os.pread(descriptor, place.length, place.offset)
    record = _decoder.decode(data[_HEADER.size :])
    assert isinstance(record, Ended)
    return record.generations[place.index]


def _check_opened(record: Record, path: Path, opened: Opened) -> None:
    if record != opened:
        raise _foreign(path)


def _foreign(path: Path) -> CorpusError:
    return CorpusError(
        f"{path}: is not this part's journal in this corpus; move it away and run the command "
        "again."
    )


def _records(path: Path) -> Iterator[tuple[int, int, Record]]:
    """Yield (offset, length, record) of the whole records, header included in the length."""
    with path.open("rb") as file:
        offset = 0
        while True:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return
            size, checksum = _HEADER.unpack(header)
            if size > _MAX_RECORD:
                return
            payload = file.read(size)
            if len(payload) < size or zlib.crc32(payload) != checksum:
                return
            try:
                record = _decoder.decode(payload)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return
            yield offset, _HEADER.size + size, record
            offset += _HEADER.size + size
