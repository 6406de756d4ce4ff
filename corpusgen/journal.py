"""Keep every answer and every attempt on disk from the moment that it is there.

A journal is one append-only file for one part of a partition. A record is
`length (4 bytes LE) | CRC-32 of the payload (4 bytes LE) | payload (msgpack)` and goes out in one
`write`, so that SIGKILL at any instant leaves whole records and at most one torn tail, which the
next reader cuts off. Every second what was written is synced (`fdatasync`), which is what a power
cut may cost. A bad record that whole ones follow is damage, not a tail: it alone is left out, and
the file is kept aside. The first record names the corpus, so that a foreign file is never replayed.

Intents are written before a request is sent; an intent without an outcome becomes an attempt
`lost`. The journal is deleted only when its part's commit marker stands.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from corpusgen.errors import CorpusError
from corpusgen.files import written_aside
from corpusgen.types import Attempt, Failure, Generation, Intent

_HEADER = struct.Struct("<II")
_MAX_RECORD = 1 << 30
_MAX_TORN_HEAD = 512
"""A first record that a crash cut off is shorter; anything longer was written by others."""
_MOST_HEAD_DAMAGE = 8
"""Bytes that may differ in a damaged first record; another corpus' id differs in more."""
_BEGINNING = re.compile(rb"[\x80-\x8f]\xa4type(?:\xa6Opened|\xa5Begun|\xa5Ended|\xa6Failed)")
"""How every payload begins: only there is a record looked for behind a damaged one."""
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
    damaged: list[tuple[int, int]] = []
    """Stretches (offset, length) between whole records that hold none; what was there is gone."""

    @property
    def damaged_records(self) -> int:
        """How many damaged stretches there are; records side by side count as one."""
        return len(self.damaged)

    @property
    def damaged_bytes(self) -> int:
        """How many bytes they take."""
        return sum(length for _, length in self.damaged)


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
        data = _framed(record)
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
    for offset, length, record in _records(path):
        if record is None:
            contents.damaged.append((offset, length))
        if offset == 0 and record != opened and not (record is None and _is_head(path, opened)):
            raise _foreign(path)
        if record is not None:
            take(contents, record, offset, length)
        contents.size = offset + length
    contents.torn_bytes = path.stat().st_size - contents.size
    if contents.size == 0 and contents.torn_bytes > _MAX_TORN_HEAD:
        raise _foreign(path)
    return contents


def renew(path: Path, opened: Opened, contents: Contents) -> Path | None:
    """Put a journal's whole records into a new file under its name.

    A process that still has the old file open (it lost its lease and does not know) writes into
    nothing from now on. Where records are damaged, the file as it was is kept beside it first, and
    its path is returned; the places in `contents` then no longer hold.
    """
    kept = _keep_aside(path) if contents.damaged else None
    with (
        written_aside(path) as temporary,
        path.open("rb") as source,
        temporary.open("xb") as target,
    ):
        at = 0
        for offset, length in [*contents.damaged, (contents.size, 0)]:
            _copy(source, target, at, offset)
            if offset == 0 and length:
                target.write(_framed(opened))
            at = offset + length
    return kept


def _keep_aside(path: Path) -> Path:
    number = 1
    kept = path.with_name(f"{path.name}.damaged")
    while kept.exists():
        number += 1
        kept = path.with_name(f"{path.name}.damaged-{number}")
    with written_aside(kept) as temporary:
        shutil.copyfile(path, temporary)
    return kept


def _copy(source: BinaryIO, target: BinaryIO, start: int, end: int) -> None:
    source.seek(start)
    while start < end:
        block = source.read(min(end - start, 1 << 20))
        target.write(block)
        start += len(block)


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


def _framed(record: Record) -> bytes:
    payload = _encoder.encode(record)
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def _is_head(path: Path, opened: Opened) -> bool:
    """Whether a file begins with this part's first record, but for a few damaged bytes."""
    expected = _framed(opened)
    with path.open("rb") as file:
        found = file.read(len(expected))
    differ = sum(a != b for a, b in zip(found, expected, strict=True))
    return differ <= _MOST_HEAD_DAMAGE


def _foreign(path: Path) -> CorpusError:
    return CorpusError(
        f"{path}: is not this part's journal in this corpus; move it away and run the command "
        "again."
    )


def _records(path: Path) -> Iterator[tuple[int, int, Record | None]]:
    """Yield (offset, length, record) of the whole records, header included in the length.

    A stretch without a whole record that is followed by one is yielded with null; a last one ends.
    """
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        offset = 0
        while offset < end:
            header = file.read(_HEADER.size)
            size = _HEADER.unpack(header)[0] if len(header) == _HEADER.size else end
            following = offset + _HEADER.size + size
            fits = following <= end and size <= _MAX_RECORD
            record = _whole(header, file.read(size)) if fits else None
            if record is None:
                found = _next_whole(file, offset, following)
                if found is None:
                    return
                following = found
                file.seek(following)
            yield offset, following - offset, record
            offset = following


def _whole(header: bytes, payload: bytes) -> Record | None:
    """Return a record; null where its checksum is wrong or it is none of ours."""
    if zlib.crc32(payload) != _HEADER.unpack(header)[1]:
        return None
    try:
        record: Record = _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return record


def _next_whole(file: BinaryIO, offset: int, following: int) -> int | None:
    """Return where the next whole record after a bad one stands, null where there is none.

    `following` is where the bad one ends by its length. Where no whole record stands there, the
    length may be what is damaged, so one is looked for everywhere.
    """
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if _stands(data, following):
            return following
        beginning = _BEGINNING.search(data, offset + _HEADER.size + 1)
        while beginning is not None:
            if _stands(data, beginning.start() - _HEADER.size):
                return beginning.start() - _HEADER.size
            beginning = _BEGINNING.search(data, beginning.start() + 1)
    return None


def _stands(data: mmap.mmap, offset: int) -> bool:
    start = offset + _HEADER.size
    if start > len(data):
        return False
    header = data[offset:start]
    size = _HEADER.unpack(header)[0]
    return (
        size <= len(data) - start
        and size <= _MAX_RECORD
        and _whole(header, data[start : start + size]) is not None
    )
