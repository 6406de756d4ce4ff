"""Keep what a planning must remember on disk, so that its memory does not grow with the prompts.

Sample ids go to 256 bucket files by their first byte; each bucket is then resolved alone with
numpy. Rendered rows wait in one file until it is known which of them are new.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

_BUCKETS = 256
_FLUSH_BYTES = 1 << 16
_LENGTH = struct.Struct("<I")

ENTRY = np.dtype([("id", "S16"), ("extra", "<u8"), ("ordinal", "<u8")])
"""`extra`: digest of reference and metadata; `ordinal`: place in the order of the prompts."""
_ENTRY = struct.Struct("<16sQQ")


class Buckets:
    """Sort entries into files by the first byte of their sample id."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        self._buffers = [bytearray() for _ in range(_BUCKETS)]
        self._on_disk: set[int] = set()

    def add(self, sample_id: str, extra: int, ordinal: int) -> None:
        """Remember one sample."""
        key = bytes.fromhex(sample_id)
        buffer = self._buffers[key[0]]
        buffer += _ENTRY.pack(key, extra, ordinal)
        if len(buffer) >= _FLUSH_BYTES:
            self._flush(key[0])

    def read(self, bucket: int) -> npt.NDArray[Any]:
        """Return a bucket's entries in the order in which they were added."""
        if bucket not in self._on_disk:
            return np.frombuffer(bytearray(self._buffers[bucket]), dtype=ENTRY)
        self._flush(bucket)
        return np.fromfile(self._path(bucket), dtype=ENTRY)

    def _flush(self, bucket: int) -> None:
        if self._buffers[bucket]:
            with self._path(bucket).open("ab") as file:
                file.write(self._buffers[bucket])
            self._buffers[bucket].clear()
            self._on_disk.add(bucket)

    def _path(self, bucket: int) -> Path:
        return self._directory / f"{bucket:02x}"


class Marks:
    """A set of ordinals, one bit each."""

    def __init__(self, size: int) -> None:
        self._bits = np.zeros(size // 8 + 1, dtype=np.uint8)

    def add(self, ordinals: npt.NDArray[np.uint64]) -> None:
        """Mark ordinals."""
        places = ordinals.astype(np.int64)
        np.bitwise_or.at(self._bits, places >> 3, (1 << (places & 7)).astype(np.uint8))

    def __contains__(self, ordinal: int) -> bool:
        return bool(self._bits[ordinal >> 3] >> (ordinal & 7) & 1)


class Rows:
    """A file of msgpack records, written once and read once in the same order."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("wb", buffering=1 << 20)
        self._encoder = msgspec.msgpack.Encoder()

    def __enter__(self) -> Rows:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, row: Any) -> None:
        """Append one row."""
        data = self._encoder.encode(row)
        self._file.write(_LENGTH.pack(len(data)))
        self._file.write(data)

    def read(self) -> Iterator[Any]:
        """Yield the rows."""
        self._file.close()
        decoder = msgspec.msgpack.Decoder()
        with self._path.open("rb", buffering=1 << 20) as file:
            while header := file.read(_LENGTH.size):
                yield decoder.decode(file.read(_LENGTH.unpack(header)[0]))
