"""Drop answers that refuse, by how they open, in ten languages.

Only the first 200 characters are read: a refusal stands at the beginning, and further on the same
words are most often content (the measurement behind it: docs/design). A reasoning block written
inline (`<think>…</think>`) is skipped first. What stands in quotation marks, in a quoted line
(`> …`) or in code is blanked out: a story whose figure says "I can't help you" is no refusal. The
patterns and their source are in `refusal_patterns`. This is a filter of openings, not a classifier:
a refusal in an eleventh language, or one that begins with a paragraph of sympathy, passes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import pyarrow as pa
from msgspec import Meta

from corpusgen.curate.interface import Filter
from corpusgen.curate.options import decode, where
from corpusgen.curate.refusal_patterns import NEGATIONS, PATTERNS
from corpusgen.errors import ConfigError

_THINKING = re.compile(r"\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)
_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "´": "'"})
_QUOTED = re.compile(
    r"```.*?(?:```|\Z)"
    r"|^>[^\n]*"
    r"|`[^`\n]*`"
    r'|"[^"]*(?:"|\Z)|“[^”]*(?:”|\Z)|„[^“”]*(?:[“”]|\Z)|«[^»]*(?:»|\Z)|»[^«]*(?:«|\Z)'
    r"|「[^」]*(?:」|\Z)|『[^』]*(?:』|\Z)"
    r"|(?<![^\s(—])'(?=\w)[^'\n]*(?:'\w[^'\n]*)*'(?!\w)",
    re.DOTALL | re.MULTILINE,
)


class RefusalOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which languages are looked for, how far, and what else counts."""

    languages: tuple[str, ...] | None = None
    """ISO 639-1 codes; null: all that are known."""
    patterns: tuple[str, ...] = ()
    """Further regular expressions, matched on casefolded text."""
    window: Annotated[int, Meta(ge=1)] = 200
    """Characters of the answer that are read."""


class Refusal:
    """Keep a generation that does not open like a refusal."""

    columns: Sequence[str] = ("text",)

    def __init__(self, patterns: Mapping[str, re.Pattern[str]], window: int) -> None:
        self._patterns = dict(patterns)
        self._window = window

    def judge(self, table: pa.Table) -> list[str | None]:
        """Return `refusal (<language>)` for each row that refuses."""
        return [self._refuses(text) for text in table["text"].to_pylist()]

    def _refuses(self, text: str) -> str | None:
        opening = _opening(text, self._window)
        for language, pattern in self._patterns.items():
            if _may_refuse(language, opening) and pattern.search(opening):
                return f"refusal ({language})"
        return None


def create(options: dict[str, Any]) -> Filter:
    """Make the filter; raises `ConfigError` on an unknown language or a broken pattern."""
    decoded = decode("refusal", options, RefusalOptions)
    wanted = tuple(PATTERNS) if decoded.languages is None else decoded.languages
    for language in wanted:
        if language not in PATTERNS:
            raise ConfigError(
                f"{where('refusal', 'languages')}: there are no patterns for {language}. "
                f"Known: {', '.join(PATTERNS)}."
            )
    compiled = {language: re.compile("|".join(PATTERNS[language])) for language in wanted}
    if decoded.patterns:
        compiled["pattern"] = re.compile("|".join(map(_checked, decoded.patterns)))
    return Refusal(compiled, decoded.window)


def _opening(text: str, window: int) -> str:
    thinking = _THINKING.match(text)
    start = text[thinking.end() :] if thinking else text
    opening = start.lstrip()[:window].translate(_APOSTROPHES)
    return _QUOTED.sub(" ", opening).casefold()


def _may_refuse(language: str, opening: str) -> bool:
    negations = NEGATIONS.get(language)
    return negations is None or any(piece in opening for piece in negations)


def _checked(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{where('refusal', 'patterns')}: {pattern!r} is no regular expression: {error}."
        ) from None
    return f"(?:{pattern})"
