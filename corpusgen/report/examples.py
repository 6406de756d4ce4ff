"""Load the generations that a report shows, and cut an answer into its tokens.

Only the row groups that hold an example are read.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq

from corpusgen.parquet import read_table, readable
from corpusgen.report.scan import Input, Place, check_columns

TokenBytes = Callable[[Sequence[int]], Sequence[bytes]]
"""Return the bytes of token ids."""

MOST_TOKENS = 600
"""Tokens of an answer that are shown one by one."""

_COLUMNS = (
    *("sample_id", "prompt_set", "teacher", "draw", "messages", "text", "reasoning"),
    *("tool_calls", "finish_reason", "completion_tokens"),
    *("completion_token_ids", "completion_token_bytes", "sampled_logprob"),
)


class Turn(msgspec.Struct, frozen=True):
    """One message of a prompt."""

    role: str
    content: str


class Token(msgspec.Struct, frozen=True):
    """A stretch of an answer, and how likely it was."""

    text: str
    probability: float | None
    """Of the sampled token; null where unknown. Of the least likely one where several tokens make
    up one character."""


class Example(msgspec.Struct, frozen=True):
    """One generation to look at."""

    sample_id: str
    prompt_set: str
    teacher: str
    draw: int
    prompt: tuple[Turn, ...]
    text: str
    finish_reason: str
    reasoning: str | None = None
    tool_calls: str | None = None
    completion_tokens: int | None = None
    verdict: str | None = None
    """`kept`, or why it was dropped; null: not curated."""
    tokens: tuple[Token, ...] = ()
    """Empty where no token's text is known."""
    more_tokens: int = 0
    """How many tokens follow that are not shown."""


def load_examples(
    inputs: Sequence[Input], places: Sequence[Place], token_bytes: TokenBytes | None = None
) -> tuple[Example, ...]:
    """Return the generations at these places, in the places' order."""
    found: dict[Place, Example] = {}
    by_file = sorted(places, key=lambda place: (place.file, place.row))
    for number, here in groupby(by_file, key=lambda place: place.file):
        generations, verdicts = inputs[number]
        found |= _load(generations, verdicts, list(here), token_bytes)
    return tuple(found[place] for place in places)


def _load(
    generations: Path, verdicts: Path | None, places: list[Place], token_bytes: TokenBytes | None
) -> dict[Place, Example]:
    judged = None if verdicts is None else read_table(verdicts)
    found = {}
    with readable(generations), pq.ParquetFile(generations) as file:
        check_columns(file, generations, _COLUMNS)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        starts = np.concatenate([[0], np.cumsum(sizes)])
        groups = {place: int(np.searchsorted(starts, place.row, "right")) - 1 for place in places}
        for group, here in groupby(places, key=groups.__getitem__):
            table = file.read_row_group(group, columns=list(_COLUMNS))
            for place in here:
                [row] = table.slice(place.row - int(starts[group]), 1).to_pylist()
                verdict = None if judged is None else judged.slice(place.row, 1).to_pylist()[0]
                found[place] = _example(row, verdict, token_bytes)
    return found


def _example(
    row: dict[str, Any], verdict: dict[str, Any] | None, token_bytes: TokenBytes | None
) -> Example:
    prompt = tuple(Turn(turn["role"] or "", _content(turn)) for turn in row["messages"])
    return Example(
        sample_id=row["sample_id"],
        prompt_set=row["prompt_set"],
        teacher=row["teacher"],
        draw=row["draw"],
        prompt=prompt,
        text=row["text"],
        finish_reason=row["finish_reason"],
        reasoning=row["reasoning"],
        tool_calls=row["tool_calls"],
        completion_tokens=row["completion_tokens"],
        verdict=_verdict(verdict),
        tokens=_tokens(row, token_bytes),
        more_tokens=max(len(row["sampled_logprob"] or ()) - MOST_TOKENS, 0),
    )


def _content(turn: dict[str, Any]) -> str:
    return "\n".join(part for part in (turn["content"], turn["tool_calls"]) if part)


def _verdict(verdict: dict[str, Any] | None) -> str | None:
    if verdict is None:
        return None
    return "kept" if verdict["keep"] else f"dropped by {verdict['filter']}: {verdict['reason']}"


def _tokens(row: dict[str, Any], token_bytes: TokenBytes | None) -> tuple[Token, ...]:
    pieces = row["completion_token_bytes"]
    if pieces is None and token_bytes is not None and row["completion_token_ids"] is not None:
        pieces = token_bytes(row["completion_token_ids"][:MOST_TOKENS])
    if pieces is None or row["sampled_logprob"] is None:
        return ()
    return cut(pieces[:MOST_TOKENS], row["sampled_logprob"][:MOST_TOKENS])


def cut(pieces: Sequence[bytes | None], logprobs: Sequence[float | None]) -> tuple[Token, ...]:
    """Return tokens as text; one that ends within a character is joined with what completes it."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    tokens: list[Token] = []
    pending: list[float] = []
    for piece, logprob in zip(pieces, logprobs, strict=False):
        text = decoder.decode(piece or b"")
        if logprob is not None and not math.isnan(logprob):
            pending.append(math.exp(min(logprob, 0.0)))
        if text:
            tokens.append(Token(text, min(pending, default=None)))
            pending = []
    rest = decoder.decode(b"", final=True)
    if rest:
        tokens.append(Token(rest, min(pending, default=None)))
    return tuple(tokens)
