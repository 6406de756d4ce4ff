"""Read what a GGUF file says about itself: metadata, vocabulary, and a digest of the whole file.

This is needed before a model is loaded (identity, capabilities) and beside it (token ids to bytes).
The `gguf` package reads the same, but makes a numpy array of every string: seconds for a common
vocabulary, against milliseconds here, and it follows any count that a broken file claims. Here
every count is checked against the file's size. Tensors are never looked at: llama.cpp does that.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3).
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LONGEST_STRING = 1 << 26
_LONGEST_STRING_ARRAY = 1 << 24
"""Strings; every one costs a step, so that a hostile count could keep the reader busy for hours."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")

_BLOCKS, _BLOCK_BYTES = 64, 1 << 16

# Token types of llama.cpp's llama_token_type; those not named here contribute no bytes to a text.
_NORMAL, _USER_DEFINED, _BYTE = 1, 4, 6

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})")


class NotGguf(Exception):
    """Say in half a sentence why a file is not a usable GGUF file."""


class StringArray(msgspec.Struct, frozen=True):
    """Where an array of strings lies: decoded only on demand, since merges are long and unused."""

    offset: int
    count: int


class Header(msgspec.Struct, frozen=True):
    """A GGUF file's metadata. Values are Python scalars, `str`, numpy arrays or `StringArray`."""

    path: Path
    fields: dict[str, Any]

    def text(self, key: str) -> str | None:
        """Return a string's value; null where the key is missing or is no string."""
        value = self.fields.get(key)
        return value if isinstance(value, str) else None

    @property
    def vocabulary_size(self) -> int:
        """Count the tokens; 0 where the file has none."""
        tokens = self.fields.get("tokenizer.ggml.tokens")
        return tokens.count if isinstance(tokens, StringArray) else 0

    @property
    def chat_template(self) -> str | None:
        """Return the Jinja template that renders messages."""
        return self.text("tokenizer.chat_template")


class Vocabulary(msgspec.Struct, frozen=True):
    """The bytes that each token contributes to a text, in id order."""

    pieces: list[bytes]
    fingerprint: str
    """BLAKE2b-128 over each token's length and bytes; special tokens count with their name."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, broken UTF-8 replaced; special tokens leave no trace."""
        return b"".join(map(self.pieces.__getitem__, ids)).decode("utf-8", "replace")


def read_header(path: Path) -> Header:
    """Read a GGUF file's metadata in milliseconds; raise `NotGguf` for any other content."""
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise NotGguf("does not begin with the GGUF magic")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return Header(path=path, fields=_fields(data))
    except OSError as error:
        raise NotGguf(f"cannot be read ({error.strerror or error})") from error
    except (struct.error, ValueError, OverflowError) as error:
        raise NotGguf("breaks off or is damaged within its metadata") from error


def read_vocabulary(header: Header) -> Vocabulary:
    """Return the vocabulary of a file; raise `NotGguf` where it has none."""
    tokens = header.fields.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, StringArray):
        raise NotGguf("carries no vocabulary")
    with (
        header.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        names = _strings(data, tokens)
    types = header.fields.get("tokenizer.ggml.token_type")
    kinds = types.tolist() if isinstance(types, np.ndarray) else []
    if len(kinds) != len(names):
        kinds = [_NORMAL] * len(names)
    byte_level = header.text("tokenizer.ggml.model") == "gpt2"
    pieces = [
        _piece(name, kind, byte_level=byte_level) for name, kind in zip(names, kinds, strict=True)
    ]
    return Vocabulary(pieces=pieces, fingerprint=_fingerprint(names, pieces))


def digest(path: Path) -> str:
    """Return 16 hexadecimal digits that tell one model file from another in milliseconds.

    BLAKE2b over the size and 64 evenly spaced blocks of 64 KiB, the first and the last included,
    of the file and of all its parts where it is split. A change between those blocks is not seen.
    """
    state = hashlib.blake2b(digest_size=8)
    for part in _parts(path):
        with part.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            state.update(_U64.pack(size))
            last = max(0, size - _BLOCK_BYTES)
            for offset in sorted({last * i // (_BLOCKS - 1) for i in range(_BLOCKS)}):
                state.update(os.pread(file.fileno(), _BLOCK_BYTES, offset))
    return state.hexdigest()


def _parts(path: Path) -> list[Path]:
    """Return the files that one model is split into (`…-00001-of-00003.gguf`), in order."""
    match = _PART.fullmatch(path.stem)
    if match is None:
        return [path]
    stem, parts = match["stem"], match["parts"]
    names = (f"{stem}-{i:05d}-of-{parts}{path.suffix}" for i in range(1, int(parts) + 1))
    return [part for name in names if (part := path.with_name(name)).exists()]


def _fields(data: mmap.mmap) -> dict[str, Any]:
    (version,) = _U32.unpack_from(data, 4)
    if version not in _VERSIONS:
        raise NotGguf(f"has GGUF version {version}; this package reads versions 2 and 3")
    (count,) = _U64.unpack_from(data, 16)
    fields: dict[str, Any] = {}
    offset = 24
    for _ in range(min(count, len(data))):
        key, offset = _string(data, offset)
        (kind,) = _U32.unpack_from(data, offset)
        fields[key], offset = _value(data, offset + 4, kind)
    return fields


def _value(data: mmap.mmap, offset: int, kind: int) -> tuple[Any, int]:
    """Return the value at an offset, and the offset behind it."""
    if kind == _STRING:
        return _string(data, offset)
    if kind == _ARRAY:
        return _array(data, offset)
    if kind not in _SCALARS:
        raise ValueError(f"unknown type {kind}")
    scalar = struct.Struct("<" + _SCALARS[kind])
    return scalar.unpack_from(data, offset)[0], offset + scalar.size


def _string(data: mmap.mmap, offset: int) -> tuple[str, int]:
    (length,) = _U64.unpack_from(data, offset)
    end = offset + 8 + length
    if length > _LONGEST_STRING or end > len(data):
        raise ValueError("a string is longer than the file")
    return data[offset + 8 : end].decode("utf-8", "surrogateescape"), end


def _array(data: mmap.mmap, offset: int) -> tuple[Any, int]:
    (kind,) = _U32.unpack_from(data, offset)
    (count,) = _U64.unpack_from(data, offset + 4)
    offset += 12
    if kind == _STRING:
        return StringArray(offset, count), _behind_strings(data, offset, count)
    if kind not in _SCALARS:
        raise ValueError(f"an array of type {kind}")
    dtype = np.dtype("<" + _SCALARS[kind])
    end = offset + count * dtype.itemsize
    if end > len(data):
        raise ValueError("an array is longer than the file")
    return np.frombuffer(data[offset:end], dtype), end


def _behind_strings(data: mmap.mmap, offset: int, count: int) -> int:
    if count > min(_LONGEST_STRING_ARRAY, len(data) // 8):
        raise ValueError("an array is longer than the file")
    unpack = _U64.unpack_from
    for _ in range(count):
        offset += 8 + unpack(data, offset)[0]
    if offset > len(data):
        raise ValueError("an array is longer than the file")
    return offset


def _strings(data: mmap.mmap, array: StringArray) -> list[str]:
    names = []
    offset = array.offset
    for _ in range(array.count):
        name, offset = _string(data, offset)
        names.append(name)
    return names


def _piece(name: str, kind: int, *, byte_level: bool) -> bytes:
    """Return a token's bytes by the rules of llama.cpp's `token_to_piece` with `special` off."""
    if kind == _USER_DEFINED:
        return name.encode("utf-8", "surrogateescape")
    if kind == _BYTE and (match := _BYTE_TOKEN.fullmatch(name)):
        return bytes.fromhex(match[1])
    if kind != _NORMAL:
        return b""
    if byte_level:
        try:
            return name.translate(_BYTE_OF_CHARACTER).encode("latin-1")
        except UnicodeEncodeError:  # not written in the table: llama.cpp keeps such a name as it is
            return name.encode("utf-8", "surrogateescape")
    return name.replace("▁", " ").encode("utf-8", "surrogateescape")


def _byte_of_character() -> dict[int, int]:
    """Return GPT-2's table from the characters of its vocabulary to the bytes they stand for.

    Printable Latin-1 characters stand for themselves; the other bytes, in order, are U+0100
    onwards (`bytes_to_unicode` in https://github.com/openai/gpt-2/blob/master/src/encoder.py).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {0x100 + i: byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_of_character()


def _fingerprint(names: list[str], pieces: list[bytes]) -> str:
    tokens = (
        piece or name.encode("utf-8", "surrogateescape")
        for name, piece in zip(names, pieces, strict=True)
    )
    joined = b"".join(len(token).to_bytes(4, "little") + token for token in tokens)
    return hashlib.blake2b(joined, digest_size=16).hexdigest()
