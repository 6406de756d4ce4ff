"""Read the bytes of an answer's tokens, all lists of numbers at once.

A server writes each token's bytes as a JSON list. Thousands of them a second are what decoding an
answer would mostly cost, as one Python list each; here they stay undecoded, and the joined texts of
all lists are read in a few array operations. What is not written plainly takes the slow, exact way:
this module refuses to guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from corpusgen.types import ByteStrings

_LISTS = msgspec.json.Decoder(list[list[int] | None])
_NULL = b"null"
_COMMA, _OPENING, _CLOSING, _ZERO = b",[]0"
_WEIGHTS = (1, 10, 100)


def spell(tokens: Iterable[str], given: Sequence[msgspec.Raw]) -> ByteStrings:
    """Return tokens' bytes: as the server spells them, else the text's UTF-8.

    `given` holds each token's `bytes` as they came; empty where the key is absent. The texts are
    taken only where they are needed. Raises ValueError on what are no lists of bytes, and on a
    text that UTF-8 cannot hold.
    """
    joined = b"".join(given)
    found = _numbers(joined, len(given))
    if found is not None:
        return found
    if not joined.strip(_NULL):
        return ByteStrings.of([token.encode() for token in tokens])
    lists = _LISTS.decode(b"[" + b",".join([raw or _NULL for raw in given]) + b"]")
    pairs = zip(tokens, lists, strict=True)
    return ByteStrings.of([t.encode() if spelt is None else bytes(spelt) for t, spelt in pairs])


def _numbers(joined: bytes, lists: int) -> ByteStrings | None:
    """Read so many lists of numbers below 256, and nothing else; null where there is anything else.

    Raises ValueError where a number is larger.
    """
    text = np.frombuffer(joined.translate(None, b" ") if b" " in joined else joined, np.uint8)
    if len(text) < 2 or text[0] != _OPENING:
        return None
    ends = np.flatnonzero((text == _COMMA) | (text == _CLOSING))
    values, written, digits = _values(text, ends)
    last = np.flatnonzero(text.take(ends, mode="wrap") == _CLOSING)
    if len(last) != lists or digits + len(ends) + lists != len(text):
        return None
    if (text.take(ends[last[:-1]] + 1, mode="wrap") != _OPENING).any():
        return None
    if (values > 255).any():
        raise ValueError("a byte is out of range")
    lengths = np.diff(last, prepend=-1) - ~written[last]
    return ByteStrings(values[written].astype(np.uint8).tobytes(), lengths.astype(np.int32))


def _values(
    text: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_], int]:
    """Return the numbers of up to three digits that end before `ends`.

    Also returned is where there is one at all, and how many digits they have together.
    """
    values = np.zeros(len(ends), np.uint16)
    there = np.ones(len(ends), np.bool_)
    found = []
    for back, weight in enumerate(_WEIGHTS, 1):
        # What is less than "0" wraps to no digit; and the text's front is none, so that nothing is
        # read from before it.
        digit = text.take(ends - back, mode="wrap") - _ZERO
        there = there & (digit < 10)
        values += there * digit * np.uint16(weight)
        found.append(there)
    return values, found[0], sum(int(np.count_nonzero(each)) for each in found)
