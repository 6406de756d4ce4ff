"""Find generations that say the same: equal after normalisation, as 128-bit hashes.

*Normalised* is NFC, casefolded, every run of white space one space. What is compared is the prompt
(its messages' roles, contents and tool calls, and its tools), the response (text and tool calls;
reasoning is left out), or both. Ids of tool calls are random and are not compared.

Of the generations with one key, the smallest `sample_id` names the survivor, so that neither the
order of the parts nor how rows are cut into them changes the result. Where draws of one prompt are
not compared with each other, the survivor's whole prompt survives (its prompt set and prompt id)
and all other prompts with that key are dropped. Draws of one prompt share their prompt by design,
so `prompt` never compares them.

It keeps 32 bytes a generation that competes (40 where prompts are told apart) and nothing else;
64-bit hashes would collide with 3% probability at a billion rows, 128 bits do not.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from corpusgen.config import Dedup

Mode = Literal["pair", "response", "prompt"]
UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]

# Normalisation turns both into a space, so that neither can occur inside a text.
_BETWEEN = "\x1f"
_AFTER = "\x1e"

_PROMPT = ("messages", "tools")
_RESPONSE = ("text", "tool_calls")
_COMPARED: dict[Mode, tuple[str, ...]] = {
    "pair": _PROMPT + _RESPONSE,
    "prompt": _PROMPT,
    "response": _RESPONSE,
}


def mode_of(settings: Dedup) -> Mode | None:
    """Return what is compared; null where exact de-duplication is off."""
    if isinstance(settings.exact, bool):
        return "pair" if settings.exact else None
    return settings.exact


class Contest:
    """Collect the generations that compete, then say which of them are the same as another.

    `capacity` bounds how many may be added.
    """

    def __init__(self, mode: Mode, *, within_prompt: bool, capacity: int) -> None:
        self._mode = mode
        self._apart = mode == "prompt" or not within_prompt
        self._size = 0
        # Untouched pages of an empty array take no memory.
        self._keys = np.empty((capacity, 2), np.uint64)
        self._ids = np.empty((capacity, 2), np.uint64)
        self._prompts = np.empty(capacity if self._apart else 0, np.uint64)
        self.columns: Sequence[str] = (
            "sample_id",
            *_COMPARED[mode],
            *(("prompt_set", "prompt_id") if self._apart else ()),
        )

    def add(self, table: pa.Table) -> None:
        """Enter the rows of a table; raise `ValueError` on a `sample_id` that is not hex digits."""
        rows = slice(self._size, self._size + table.num_rows)
        self._ids[rows] = _parse_ids(table["sample_id"].to_pylist())
        self._keys[rows] = _halves(b"".join(_keys(table, self._mode)))
        if self._apart:
            self._prompts[rows] = _prompt_hashes(table)
        self._size += table.num_rows

    def losers(self) -> tuple[Int64s, Int64s]:
        """Return the entries that are the same as another, and for each its survivor's entry.

        Entries are numbered in the order in which they were added; losers are ascending.
        """
        entries = _repeated(self._keys[: self._size, 0])
        keys, ids = self._keys[entries], self._ids[entries]
        order = np.lexsort((ids[:, 1], ids[:, 0], keys[:, 1], keys[:, 0]))
        entries, keys = entries[order], keys[order]
        first = np.ones(len(entries), bool)
        first[1:] = (keys[1:] != keys[:-1]).any(axis=1)
        start = np.maximum.accumulate(np.where(first, np.arange(len(entries)), 0))
        survivors = entries[start]
        lost = ~first
        if self._apart:
            lost &= self._prompts[entries] != self._prompts[survivors]
        by_entry = np.argsort(entries[lost])
        return entries[lost][by_entry], survivors[lost][by_entry]

    def sample_id(self, entry: int) -> str:
        """Return an entry's sample id."""
        high, low = self._ids[entry]
        return f"{int(high):016x}{int(low):016x}"


def normalise(text: str) -> str:
    """Return the form in which texts are compared."""
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).split())


def _repeated(values: UInt64s) -> Int64s:
    """Return where the values stand that occur more than once: few, and all that must be sorted."""
    ordered = np.sort(values)
    twice = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    return np.flatnonzero(np.isin(values, twice)) if len(twice) else np.empty(0, np.int64)


def _keys(table: pa.Table, mode: Mode) -> Iterable[bytes]:
    columns = [table[name].to_pylist() for name in _COMPARED[mode]]
    text_of = _TEXTS[mode]
    for row in zip(*columns, strict=True):
        yield xxhash.xxh3_128_digest(text_of(*row).encode("utf-8", "surrogatepass"))


def _prompt_text(messages: list[dict[str, Any]], tools: str | None) -> str:
    turns = (
        _BETWEEN.join((_part(turn.get("role")), _part(turn.get("content")), _calls(turn)))
        for turn in messages
    )
    return _AFTER.join((*turns, _part(tools)))


def _response_text(text: str, tool_calls: str | None) -> str:
    return normalise(text) + _BETWEEN + _calls({"tool_calls": tool_calls})


def _pair_text(messages: list[dict[str, Any]], tools: str | None, text: str, calls: Any) -> str:
    return _prompt_text(messages, tools) + _AFTER + _AFTER + _response_text(text, calls)


_TEXTS: dict[Mode, Callable[..., str]] = {
    "pair": _pair_text,
    "prompt": _prompt_text,
    "response": _response_text,
}


def _part(value: Any) -> str:
    return "" if value is None else normalise(str(value))


def _calls(turn: dict[str, Any]) -> str:
    raw = turn.get("tool_calls")
    if not raw:
        return ""
    try:
        calls = msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return normalise(raw)
    if isinstance(calls, list):
        calls = [
            {key: value for key, value in call.items() if key not in ("id", "index")}
            if isinstance(call, dict)
            else call
            for call in calls
        ]
    return normalise(msgspec.json.encode(calls, order="deterministic").decode())


def _parse_ids(ids: list[str]) -> UInt64s:
    raw = "".join(ids)
    if len(raw) != 32 * len(ids) or not raw.isascii():
        raise ValueError("a sample_id is not 32 hexadecimal digits")
    return _halves(bytes.fromhex(raw))


def _halves(raw: bytes) -> UInt64s:
    return np.frombuffer(raw, ">u8").reshape(-1, 2).astype(np.uint64)


def _prompt_hashes(table: pa.Table) -> UInt64s:
    pairs = zip(table["prompt_set"].to_pylist(), table["prompt_id"].to_pylist(), strict=True)
    return np.fromiter(
        (xxhash.xxh3_64_intdigest(f"{name}\0{prompt}".encode()) for name, prompt in pairs),
        np.uint64,
        table.num_rows,
    )
