"""Turn the log-probability lists of a chat answer into the arrays of a `TokenTrace`.

Servers differ in all that the protocol leaves open: order, length, ids, sentinels. This module
settles it once, and refuses to guess: what cannot be aligned with the tokens is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import msgspec
import numpy as np
import numpy.typing as npt

from corpusgen.teachers.openai_spelling import spell
from corpusgen.types import ByteStrings, Float32s, Int32s, TokenTrace

SENTINEL = -9999.0
"""What OpenAI and vLLM send for a probability too small to say; it and less count as unknown."""

_TOKEN_ID = "token_id:"  # noqa: S105
_NUMBERS = msgspec.json.Decoder(list[int])

Int64s = npt.NDArray[np.int64]
Float64s = npt.NDArray[np.float64]


class Alternative(msgspec.Struct, gc=False):
    """One candidate token at a position.

    Not tracked by the garbage collector: an answer holds thousands, and they hold no cycles.
    """

    token: str
    logprob: float | None = None
    bytes: msgspec.Raw = msgspec.Raw()
    """Undecoded; empty where the key is absent."""
    id: int | None = None
    """Sent by llama.cpp; vLLM writes `token_id:<id>` into `token` when it is asked to."""


class Entry(Alternative, gc=False):
    """The sampled token at a position, with the candidates around it."""

    top_logprobs: list[Alternative] | None = None


class _Given(msgspec.Struct, frozen=True):
    """All candidates as they came, one position after the other."""

    each: list[Alternative]
    values: Float64s
    position: Int64s
    """Of each candidate."""
    starts: Int64s
    """The index of each position's first candidate."""
    lengths: Int64s


class _Kept(msgspec.Struct, frozen=True):
    """All candidates that are kept, position by position, in descending order."""

    each: list[Alternative]
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
    values = _logprobs(entries)
    top = _candidates(entries, values, top_logprobs)
    topk_ids = None if top is None else _ids(top.each)
    return TokenTrace(
        ids=ids,
        token_bytes=_spelling(entries) if ids is None else None,
        sampled_logprob=None if np.isnan(values).all() else values.astype(np.float32),
        sampled_rank=None if top is None else top.ranks,
        topk_counts=None if top is None else top.counts,
        topk_ids=topk_ids,
        topk_bytes=_spelling(top.each) if top is not None and topk_ids is None else None,
        topk_logprobs=None if top is None else top.logprobs,
    )


def spelled(entries: Sequence[Entry]) -> bytes:
    """Return what the entries' tokens spell together."""
    return _spelling(entries).data


def _candidates(entries: Sequence[Entry], own: Float64s, k: int) -> _Kept | None:
    """Sort and cut the candidates of all positions; null where no position has any.

    `own` holds the sampled tokens' log-probabilities.
    """
    given = _given(entries) if k > 0 else None
    if given is None:
        return None
    sampled = _sampled(entries, own, given)
    order = _descending(given)
    if order is None and given.lengths.max() <= k and np.isfinite(given.values).all():
        return _Kept(
            each=given.each,
            logprobs=given.values.astype(np.float32),
            counts=np.where(given.lengths > 0, given.lengths, -1).astype(np.int32),
            ranks=np.where(sampled >= 0, sampled - given.starts + 1, 0).astype(np.int32),
        )
    order = np.arange(len(given.each)) if order is None else order
    order = _without_prepended(order[np.isfinite(given.values[order])], sampled, given)
    return _cut(order, sampled, given, k)


def _given(entries: Sequence[Entry]) -> _Given | None:
    lists = [entry.top_logprobs or [] for entry in entries]
    each = list(chain.from_iterable(lists))
    if not each:
        return None
    lengths = np.fromiter(map(len, lists), np.int64, len(lists))
    return _Given(
        each=each,
        values=_logprobs(each),
        position=np.repeat(np.arange(len(lists)), lengths),
        starts=np.cumsum(lengths) - lengths,
        lengths=lengths,
    )


def _descending(given: _Given) -> Int64s | None:
    """Return the stable order by position, then by falling value; null where all are in order.

    Only positions that are out of order are sorted: mostly they are few.
    """
    values, position = given.values, given.position
    rising = ~((values[1:] <= values[:-1]) | (position[1:] > position[:-1]))
    if not rising.any():
        return None
    wrong = np.zeros(len(given.lengths), np.bool_)
    wrong[position[1:][rising]] = True
    moved = np.flatnonzero(wrong[position])
    order = np.arange(len(values))
    order[moved] = moved[np.lexsort((-values[moved], position[moved]))]
    return order


def _cut(order: Int64s, sampled: Int64s, given: _Given, k: int) -> _Kept | None:
    """Keep the first k of each position's candidates in their order."""
    if not len(order):
        return None
    place = _places(given.position[order])
    order, place = order[place < k], place[place < k]
    counts = np.bincount(given.position[order], minlength=len(given.lengths))
    ranks = np.zeros(len(given.each), np.int32)
    ranks[order] = place + 1
    return _Kept(
        each=[given.each[i] for i in order.tolist()],
        logprobs=given.values[order].astype(np.float32),
        counts=np.where(counts > 0, counts, -1).astype(np.int32),
        ranks=np.where(sampled >= 0, ranks[sampled], 0).astype(np.int32),
    )


def _places(position: Int64s) -> Int64s:
    """Number the elements of each run of equal positions from 0."""
    indices = np.arange(len(position))
    first = np.searchsorted(position, position, side="left")
    return indices - first


def _sampled(entries: Sequence[Entry], own: Float64s, given: _Given) -> Int64s:
    """Return for each position the index of the sampled token's own candidate, or -1.

    The one candidate with the sampled token's log-probability is nearly always the token itself;
    only where it is not, all are looked at.
    """
    hits = np.flatnonzero(given.values == own[given.position])
    holders = given.position[hits]
    found = np.full(len(entries), -1, np.int64)
    found[holders] = hits
    found[np.bincount(holders, minlength=len(entries)) != 1] = -1
    each, indices = given.each, found.tolist()
    for i, (entry, index) in enumerate(zip(entries, indices, strict=True)):
        if index < 0 or not _same(each[index], entry):
            place = _looked_up(entry, entry.top_logprobs or [])
            found[i] = given.starts[i] + place if place >= 0 else -1
    return found


def _looked_up(entry: Entry, candidates: list[Alternative]) -> int:
    """Return the index of the sampled token among the candidates, or -1.

    Several candidates can look alike, because undecodable tokens all read U+FFFD; then the
    log-probability decides, and where it cannot, nothing does.
    """
    token = entry.token
    alike = [i for i, candidate in enumerate(candidates) if candidate.token == token]
    same = [i for i in alike if _same(candidates[i], entry)]
    if len(same) > 1:
        same = [i for i in same if candidates[i].logprob == entry.logprob]
    return same[0] if len(same) == 1 else -1


def _same(candidate: Alternative, entry: Entry) -> bool:
    if candidate.token != entry.token or candidate.id != entry.id:
        return False
    return candidate.bytes == entry.bytes or _spelling([candidate]).data == _spelling([entry]).data


def _without_prepended(order: Int64s, sampled: Int64s, given: _Given) -> Int64s:
    """Leave out sampled tokens that the server put before the candidates and that sort last.

    vLLM puts the sampled token first and cuts the list to k, so that such a token may have any
    rank from k on: it does not belong to the top k for certain, and its own log-probability is
    kept beside it. The other candidates are the true first k - 1.
    """
    known = np.bincount(given.position[order], minlength=len(given.lengths))
    prepended = (sampled >= 0) & (sampled == given.starts) & (known > 1)
    lasts = order[np.cumsum(known)[prepended] - 1]
    foreign = lasts[lasts == sampled[prepended]]
    return order[~np.isin(order, foreign)] if len(foreign) else order


def _logprobs(entries: Sequence[Alternative]) -> Float64s:
    """Return the log-probabilities, NaN where the server gave none or a sentinel."""
    values = np.array([entry.logprob for entry in entries], np.float64)
    # Above float32's range there is no log-probability either; NaN compares false.
    values[~((values > SENTINEL) & (values < 1e30))] = np.nan
    return values


def _ids(entries: Sequence[Alternative]) -> Int32s | None:
    """Return the tokens' ids, null unless every entry carries one."""
    numbers: Sequence[int | None] = []
    if entries[0].id is not None:
        numbers = [entry.id for entry in entries]
    elif entries[0].token.startswith(_TOKEN_ID):
        numbers = _written_ids([entry.token for entry in entries])
    if not numbers or None in numbers:
        return None
    ids = np.array(numbers, np.int32)
    return ids if (ids >= 0).all() else None


def _written_ids(tokens: Sequence[str]) -> list[int]:
    """Return the ids that are written into tokens; nothing unless each token is one.

    The texts become one JSON list; one that is more than its id breaks the list or lengthens it.
    """
    written = ("\n" + "\n".join(tokens)).replace("\n" + _TOKEN_ID, ",")
    if not written.startswith(",") or "\n" in written:
        return []
    try:
        ids = _NUMBERS.decode(f"[{written[1:]}]")
    except ValueError:
        return []
    return ids if len(ids) == len(tokens) else []


def _spelling(entries: Sequence[Alternative]) -> ByteStrings:
    return spell((e.token for e in entries), [e.bytes for e in entries])
