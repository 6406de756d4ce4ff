"""Drop answers that end in a loop: the same stretch of text, over and over, up to the end.

The detector is our own (CURATION measured 60 of 60 loops found and 0 of 200 false). The tail of an
answer *loops* with period p when it is p characters repeated without a change, whatever the phase
in which it was cut off. A loop counts when it repeats at least `min_repeats` times (three suffice
for a period of 100 characters or more), and covers at least `min_chars`. Rulers and empty tables
repeat by intent: a period without a letter in it has to cover eight times as much.

Any periodic tail ends in a suffix that also stands one period earlier. So it is enough to look for
the last occurrences of the tail's last characters, each of which proposes a period; `str.rfind`
does that at the speed of C.

The rules of Gopher (Rae et al. 2021, arXiv 2112.11446, table A1) flag 15% of code, and are off
unless `gopher: true`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
import pyarrow as pa
from msgspec import Meta

from corpusgen.curate.gopher import gopher_repetition
from corpusgen.curate.interface import Filter
from corpusgen.curate.options import decode

WINDOW = 12_000
"""Characters at the end that are looked at; the longest period is a third of it."""
LONG_PERIOD = 100
"""Characters from which on three repeats suffice."""
PROBE = 24
"""Characters of the suffix that is searched for."""
BLANK_FACTOR = 8
"""How many times more a period without a letter must cover."""


class RepetitionOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What counts as a loop."""

    min_repeats: Annotated[int, Meta(ge=2)] = 4
    min_chars: Annotated[int, Meta(ge=40)] = 100
    """Characters that the repeats must cover together."""
    gopher: bool = False
    """Whether Gopher's rules apply as well."""


class Repetition:
    """Keep a generation that does not end in a loop."""

    columns: Sequence[str] = ("text",)

    def __init__(self, options: RepetitionOptions) -> None:
        self._options = options

    def judge(self, table: pa.Table) -> list[str | None]:
        """Return `ends in a loop`, or Gopher's rule that is broken, for each such row."""
        return [self._reason(text) for text in table["text"].to_pylist()]

    def _reason(self, text: str) -> str | None:
        if loop_period(text, self._options.min_repeats, self._options.min_chars) is not None:
            return "ends in a loop"
        return gopher_repetition(text) if self._options.gopher else None


def create(options: dict[str, Any]) -> Filter:
    """Make the filter; raises `ConfigError` on options that it does not know."""
    return Repetition(decode("repetition", options, RepetitionOptions))


def loop_period(text: str, min_repeats: int = 4, min_chars: int = 100) -> int | None:
    """Return the shortest period, in characters, with which the text's tail loops; null: none."""
    tail = text.rstrip()[-WINDOW:]
    size = len(tail)
    if size < min_chars:
        return None
    suffix = tail[-PROBE:]
    at = tail.rfind(suffix, 0, size - 1)
    while at != -1:
        period = size - PROBE - at
        if 2 * period > size:
            return None
        if _loops(tail, period, min_repeats, min_chars):
            return period
        at = tail.rfind(suffix, 0, at + PROBE - 1)
    return None


def _loops(tail: str, period: int, min_repeats: int, min_chars: int) -> bool:
    unit = tail[-period:]
    if tail[-2 * period : -period] != unit:
        return False
    repeats = min(min_repeats, 3) if period >= LONG_PERIOD else min_repeats
    needed = min_chars if any(map(str.isalpha, unit)) else min_chars * BLANK_FACTOR
    length = max(repeats * period, needed)
    if length > len(tail):
        return False
    # The last `length` characters have period p iff they equal themselves shifted by p.
    return tail[-length + period :] == tail[-length:-period]
