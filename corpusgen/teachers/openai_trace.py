"""Turn the log-probability lists of a chat answer into the arrays of a `TokenTrace`.

Servers differ in all that the protocol leaves open: order, length, ids, sentinels. This module
settles it once, and refuses to guess: what cannot be aligned with the tokens is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from corpusgen.types import Float32s, Int32s, TokenTrace

SENTINEL = -9999.0
"""What OpenAI and vLLM send for a probability too small to say; it and less count as unknown."""

_TOKEN_ID = re.compile(r"token_id:(\d+)")

Int64s = npt.NDArray[np.int64]


class Alternative(msgspec.Struct, gc=False):
    """One candidate token at a position.

    Not tracked by the garbage collector: an answer holds thousands, and they hold no cycles.
    """

    token: str
    logprob: float | None = None
    bytes: list[int] | None = None
    id: int | None = None
    """Sent by llama.cpp; vLLM writes `token_id:<id>` into `token` when it is asked to."""


class Entry(Alternative, gc=False):
    """The sampled token at a position, with the candidates around it."""

    top_logprobs: list[Alternative] | None = None


class _Candidates(msgspec.Struct, frozen=True):
    """All candidates that are kept, position by position, in descending order."""

    kept: list[Alternative]
    logprobs: Float32s
    counts: Int32s
    ranks: Int32s


def token_trace(
    entries: Sequence[Entry], token_ids: list[int] | None, top_logprobs: int
) -> TokenTrace | None:
    """Build the trace of one answer; null where the server gave neither ids nor logprobs.

    `entries` must hold one entry for each token of the answer. Where the server also gave the
    answer's `token_ids` and their number differs, the ids are kept and the distributions are not.
    At most `top_logprobs` candidates are kept at a position. Raises ValueError or OverflowError
    on ids or bytes that are out of range.
    """
    if token_ids is not None and len(token_ids) != len(entries):
        return TokenTrace(ids=np.array(token_ids, np.int32)) if token_ids else None
    if not entries:
        return None
    ids = np.array(token_ids, np.int32) if token_ids is not None else _ids(entries)
    top = _candidates(entries, top_logprobs)
    topk_ids = None if top is None else _ids(top.kept)
    return TokenTrace(
        ids=ids,
        token_bytes=_bytes(entries) if ids is None else None,
        sampled_logprob=_known(_logprobs(entries)),
        sampled_rank=None if top is None else top.ranks,
        topk_counts=None if top is None else top.counts,
        topk_ids=topk_ids,
        topk_bytes=_bytes(top.kept) if top is not None and topk_ids is None else None,
        topk_logprobs=None if top is None else top.logprobs,
    )


def spelled(entries: Sequence[Entry]) -> bytes:
    """Return what the entries' tokens spell together."""
    return b"".join(_bytes(entries))


def _candidates(entries: Sequence[Entry], k: int) -> _Candidates | None:
    """Sort and cut the candidates of all positions; null where no position has any."""
    lists = [entry.top_logprobs or [] for entry in entries]
    flat = [candidate for candidates in lists for candidate in candidates]
    if not flat or k < 1:
        return None
    lengths = np.array([len(candidates) for candidates in lists], np.int64)
    position = np.repeat(np.arange(len(lists)), lengths)
    values = _logprobs(flat)
    order = _descending(values, position)
    order = order[np.isfinite(values[order])]
    sampled = _sampled(entries, lists, lengths)
    order = _without_prepended(order, position, sampled, lengths)
    if not len(order):
        return None
    place = _places(position[order])
    order, place = order[place < k], place[place < k]
    counts = np.bincount(position[order], minlength=len(lists))
    ranks = np.zeros(len(flat), np.int32)
    ranks[order] = place + 1
    return _Candidates(
        kept=[flat[i] for i in order.tolist()],
        logprobs=values[order].astype(np.float32),
        counts=np.where(counts > 0, counts, -1).astype(np.int32),
        ranks=np.where(sampled >= 0, ranks[sampled], 0).astype(np.int32),
    )


def _descending(values: npt.NDArray[np.float64], position: Int64s) -> Int64s:
    """Return the stable order by position, then by descending value."""
    falling = (np.diff(values) <= 0) | (np.diff(position) > 0)
    if falling.all():
        return np.arange(len(values))
    return np.lexsort((-values, position))


def _places(position: Int64s) -> Int64s:
    """Number the elements of each run of equal positions from 0."""
    indices = np.arange(len(position))
    first = np.searchsorted(position, position, side="left")
    return indices - first


def _sampled(entries: Sequence[Entry], lists: list[list[Alternative]], lengths: Int64s) -> Int64s:
    """Return for each position the flat index of the sampled token's own candidate, or -1.

    Several candidates can look alike, because undecodable tokens all read U+FFFD; then the
    log-probability decides, and where it cannot, nothing does.
    """
    found = np.full(len(entries), -1, np.int64)
    starts = np.cumsum(lengths) - lengths
    for i, (entry, candidates) in enumerate(zip(entries, lists, strict=True)):
        token, spelling, number = entry.token, entry.bytes, entry.id
        same = [
            j
            for j, c in enumerate(candidates)
            if c.token == token and c.bytes == spelling and c.id == number
        ]
        if len(same) > 1:
            same = [j for j in same if candidates[j].logprob == entry.logprob]
        if len(same) == 1:
            found[i] = starts[i] + same[0]
    return found


def _without_prepended(order: Int64s, position: Int64s, sampled: Int64s, lengths: Int64s) -> Int64s:
    """Leave out sampled tokens that the server put before the candidates and that sort last.

    vLLM puts the sampled token first and cuts the list to k, so that such a token may have any
    rank from k on: it does not belong to the top k for certain, and its own log-probability is
    kept beside it. The other candidates are the true first k - 1.
    """
    starts = np.cumsum(lengths) - lengths
    known = np.bincount(position[order], minlength=len(lengths))
    prepended = (sampled >= 0) & (sampled == starts) & (known > 1)
    lasts = order[np.cumsum(known)[prepended] - 1]
    foreign = lasts[lasts == sampled[prepended]]
    return order[~np.isin(order, foreign)] if len(foreign) else order


def _logprobs(entries: Sequence[Alternative]) -> npt.NDArray[np.float64]:
    """Return the log-probabilities, NaN where the server gave none or a sentinel."""
    values = np.array([entry.logprob for entry in entries], np.float64)
    # Above float32's range there is no log-probability either; NaN compares false.
    values[~((values > SENTINEL) & (values < 1e30))] = np.nan
    return values


def _known(values: npt.NDArray[np.float64]) -> Float32s | None:
    return None if np.isnan(values).all() else values.astype(np.float32)


def _ids(entries: Sequence[Alternative]) -> Int32s | None:
    """Return the tokens' ids, null unless every entry carries one."""
    ids: list[int] = []
    for entry in entries:
        number = entry.id if entry.id is not None else _written_id(entry.token)
        if number is None or number < 0:
            return None
        ids.append(number)
    return np.array(ids, np.int32)


def _written_id(token: str) -> int | None:
    written = _TOKEN_ID.fullmatch(token) if token.startswith("token_id:") else None
    return None if written is None else int(written[1])


def _bytes(entries: Sequence[Alternative]) -> list[bytes]:
    """Return the tokens' bytes: as the server spells them, else the text's UTF-8."""
    return [
        bytes(entry.bytes) if entry.bytes is not None else entry.token.encode() for entry in entries
    ]
