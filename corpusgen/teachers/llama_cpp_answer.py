"""Turn what llama.cpp's `/completion` returns into an answer with its tokens and distributions.

llama.cpp returns the ids of all tokens, but leaves out the distribution of a token after which the
text ends within a UTF-8 character, and after a stop word those of the last tokens. An entry is
therefore placed by following the text's bytes, and checked against the token's id; where one does
not fit, the answer keeps its tokens and loses its distributions. Nothing is ever shifted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from corpusgen.types import Answer, Float32s, Int32s, TokenTrace

_Indices = npt.NDArray[np.intp]

FIELDS = (
    "content",
    "tokens",
    "stop_type",
    "tokens_evaluated",
    "timings/cache_n",
    "completion_probabilities",
)
"""What to ask for in `response_fields`; the rest of llama.cpp's answer repeats the request."""

# llama.cpp writes the logarithm of a probability of 0 as the lowest float32.
_ZERO_PROBABILITY = -1e30


class Alternative(msgspec.Struct, frozen=True, gc=False):
    """A token that might have come at a position."""

    id: int
    logprob: float


class Entry(msgspec.Struct, frozen=True, gc=False):
    """The token that came, and the likeliest ones at its position."""

    id: int
    logprob: float
    top_logprobs: list[Alternative] = []


class Completion(msgspec.Struct, frozen=True):
    """The answer's body, as far as it is needed."""

    content: str
    tokens: list[int]
    stop_type: Literal["none", "eos", "word", "limit"]
    tokens_evaluated: int
    """The prompt's tokens."""
    cached_tokens: int = msgspec.field(name="timings/cache_n", default=0)
    completion_probabilities: list[Entry] = []


DECODER = msgspec.json.Decoder(Completion)


def answer(completion: Completion, pieces: Sequence[bytes], *, distributions: bool) -> Answer:
    """Return the answer of a completion; `pieces` are the bytes of each token id."""
    return Answer(
        text=completion.content,
        finish_reason="length" if completion.stop_type == "limit" else "stop",
        completion_tokens=len(completion.tokens),
        trace=_trace(completion, pieces, distributions=distributions),
    )


def _trace(completion: Completion, pieces: Sequence[bytes], *, distributions: bool) -> TokenTrace:
    ids = np.array(completion.tokens, np.int32)
    if not distributions:
        return TokenTrace(ids=ids)
    entries = completion.completion_probabilities
    may_end_early = completion.stop_type == "word"
    places = place(completion.tokens, entries, pieces, may_end_early=may_end_early)
    if places is None:
        return TokenTrace(ids=ids)
    return _spread(ids, entries, places)


def place(
    tokens: Sequence[int],
    entries: Sequence[Entry],
    pieces: Sequence[bytes],
    *,
    may_end_early: bool,
) -> list[int] | None:
    """Return the position of each entry among the tokens, or null where they contradict.

    With `may_end_early` the last positions may be without an entry.
    """
    if len(entries) == len(tokens):
        same = all(entry.id == token for entry, token in zip(entries, tokens, strict=True))
        return list(range(len(tokens))) if same else None
    places: list[int] = []
    tail = b""
    for position, token in enumerate(tokens):
        tail = (tail + pieces[token])[-4:] if token < len(pieces) else tail
        if ends_within_character(tail):
            continue
        if len(places) == len(entries):
            return places if may_end_early else None
        if entries[len(places)].id != token:
            return None
        places.append(position)
    return places if len(places) == len(entries) else None


def ends_within_character(tail: bytes) -> bool:
    """Return whether bytes end within a UTF-8 character, as llama.cpp's `validate_utf8` sees it."""
    for length, byte in enumerate(reversed(tail[-4:]), start=1):
        if byte & 0xE0 == 0xC0:
            return length < 2
        if byte & 0xF0 == 0xE0:
            return length < 3
        if byte & 0xF8 == 0xF0:
            return length < 4
    return False


def _spread(ids: Int32s, entries: Sequence[Entry], places: Sequence[int]) -> TokenTrace:
    """Return the trace with each entry at its place, and nothing at the others."""
    at = np.array(places, np.intp)
    owners, topk_ids, topk_logprobs = _alternatives(entries)
    counts = np.bincount(owners, minlength=len(entries)).astype(np.int32)
    logprobs = np.array([entry.logprob for entry in entries], np.float32)
    logprobs[logprobs < _ZERO_PROBABILITY] = np.nan

    sampled_logprob = np.full(len(ids), np.nan, np.float32)
    sampled_rank = np.zeros(len(ids), np.int32)
    topk_counts = np.full(len(ids), -1, np.int32)
    sampled_logprob[at] = logprobs
    sampled_rank[at] = _ranks(owners, topk_ids, ids[at], counts)
    topk_counts[at] = counts
    return TokenTrace(
        ids=ids,
        sampled_logprob=sampled_logprob,
        sampled_rank=sampled_rank,
        topk_counts=topk_counts,
        topk_ids=topk_ids,
        topk_logprobs=topk_logprobs,
    )


def _alternatives(entries: Sequence[Entry]) -> tuple[_Indices, Int32s, Float32s]:
    """Return all alternatives flat, with their entry's index, likeliest first in each entry."""
    lengths = np.array([len(entry.top_logprobs) for entry in entries], np.intp)
    total = int(lengths.sum())
    each = [alternative for entry in entries for alternative in entry.top_logprobs]
    ids = np.fromiter((alternative.id for alternative in each), np.int32, total)
    logprobs = np.fromiter((alternative.logprob for alternative in each), np.float32, total)
    owners = np.repeat(np.arange(len(entries)), lengths)
    known = logprobs > _ZERO_PROBABILITY
    if not known.all():
        ids, logprobs, owners = ids[known], logprobs[known], owners[known]
    if np.any((np.diff(logprobs) > 0) & (np.diff(owners) == 0)):
        order = np.lexsort((-logprobs, owners))
        ids, logprobs, owners = ids[order], logprobs[order], owners[order]
    return owners, ids, logprobs


def _ranks(owners: _Indices, topk_ids: Int32s, sampled_ids: Int32s, counts: Int32s) -> Int32s:
    """Return each entry's rank of the sampled token, from 1; 0 where it is outside the top k."""
    starts = np.cumsum(counts) - counts
    hits = np.flatnonzero(topk_ids == sampled_ids[owners])
    ranks = np.zeros(len(sampled_ids), np.int32)
    ranks[owners[hits]] = hits - starts[owners[hits]] + 1
    return ranks
