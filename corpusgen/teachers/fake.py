"""A teacher without a model, so that a pipeline and what follows it can be tried for free.

It keeps every promise of a real teacher: tokens whose decoding is the text, a proper distribution
at each position, the end token, `max_tokens`, `stop` and seeds. The same request is answered with
the same bytes on every machine and numpy version, because all randomness is a counter run through
SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) and no generator of numpy's is used. It refuses to
pretend to understand: the text is words of a made-up language, and no request ever fails.
"""

from __future__ import annotations

import asyncio
import hashlib
import math

import msgspec
import numpy as np
import numpy.typing as npt

from corpusgen.config import FakeTeacher
from corpusgen.teachers.interface import Capabilities, Endpoint, Identity, Tokenizer
from corpusgen.types import Answer, Float32s, Int32s, Reply, Request, TokenTrace, Usage

_CONCURRENCY = 64
MAX_DRAWS = 16

_END, _PERIOD, _COMMA, _NEWLINE, _FIRST_WORD = range(5)
_SYLLABLES = [c + v for c in "bdfghjklmnprstvz" for v in "aeiou"]

# The distribution at a position is Zipf's over the whole vocabulary; the exponents run from a
# hesitant position (the likeliest token has a fifth of the mass) to a sure one (19 in 20).
_EXPONENTS = np.linspace(1.2, 4.5, 16)
_QUANTILES = 4096

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = (
    (np.uint64(0xBF58476D1CE4E5B9), np.uint64(30)),
    (np.uint64(0x94D049BB133111EB), np.uint64(27)),
)
_LAST_SHIFT = np.uint64(31)

# How the 64 random bits of a position are spent: a word, an exponent, a quantile, a comma.
_WORD_BITS = np.uint64(0xFFFFFFFF)
_EXPONENT_SHIFT, _QUANTILE_SHIFT, _COMMA_SHIFT = np.uint64(32), np.uint64(36), np.uint64(48)
_FOUR_BITS = np.uint64(15)
_QUANTILE_BITS = np.uint64(_QUANTILES - 1)

_ENCODER = msgspec.json.Encoder(order="sorted")


class Vocabulary:
    """Map token ids to strings, and hold the distributions over them.

    Id 0 ends an answer and has no text; 1, 2 and 3 are `.`, `,` and a newline; then each word has
    two ids, one with a space before it and one capitalised.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.pieces = [_piece(token) for token in range(size)]
        self.log_probabilities = _zipf(size)
        self.sampled_ranks = _ranks_at_quantiles(self.log_probabilities)
        self.stride = next(step for step in range(7919, 7919 + size) if math.gcd(step, size) == 1)

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of token ids."""
        return "".join(map(self.pieces.__getitem__, np.asarray(ids).tolist()))

    def fingerprint(self) -> str:
        """Return the BLAKE2b-128 of the pieces in id order, each after its length."""
        encoded = (piece.encode() for piece in self.pieces)
        joined = b"".join(len(piece).to_bytes(4, "little") + piece for piece in encoded)
        return hashlib.blake2b(joined, digest_size=16).hexdigest()


class Fake:
    """Answer deterministically, as fast as numpy can."""

    def __init__(self, options: FakeTeacher) -> None:
        self._options = options
        self._vocabulary: Vocabulary | None = None
        self._tokenizer: Tokenizer | None = None

    @property
    def identity(self) -> Identity:
        """Say which model answers."""
        return Identity(model=self._options.model, revision=self._options.revision)

    @property
    def capabilities(self) -> Capabilities:
        """Say what can be asked for."""
        return Capabilities(
            max_top_logprobs=self._options.vocabulary,
            token_ids=True,
            max_draws=MAX_DRAWS,
            seeds=True,
            tools=True,
            response_format=False,
            logprobs_mode="raw",
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Name the only place that requests can be sent to."""
        return (Endpoint("fake", max_concurrency=_CONCURRENCY),)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Name the vocabulary; null before `open`."""
        return self._tokenizer

    def preview(self, request: Request) -> object:
        """Return the request: nothing is sent anywhere."""
        return msgspec.to_builtins(request)

    async def open(self) -> None:
        """Build the vocabulary (some ten milliseconds)."""
        self._vocabulary = Vocabulary(self._options.vocabulary)
        self._tokenizer = Tokenizer(
            fingerprint=self._vocabulary.fingerprint(),
            vocabulary_size=self._options.vocabulary,
            name=f"fake-{self._options.vocabulary}",
        )

    async def generate(self, request: Request, endpoint: Endpoint) -> Reply:
        """Answer after `latency_s`; equal requests get equal replies."""
        del endpoint
        await asyncio.sleep(self._options.latency_s)
        asked = _ENCODER.encode((self._options.model, request.messages, request.tools))
        seed = b"" if request.seed is None else request.seed.to_bytes(8, "little", signed=True)
        answers = [self._answer(request, asked, seed, draw) for draw in range(request.draws)]
        prompt_tokens = len(asked) // 4 + 1
        return Reply(
            answers=answers,
            usage=Usage(
                prompt_tokens=prompt_tokens,
                completion_tokens=sum(answer.completion_tokens or 0 for answer in answers),
                reasoning_tokens=0,
                cached_tokens=0,
            ),
            prompt_token_ids=(
                self._prompt_ids(asked, prompt_tokens) if request.prompt_token_ids else None
            ),
            model_revision=self._options.revision,
        )

    async def close(self) -> None:
        """Forget the vocabulary."""
        self._vocabulary = None

    def decode(self, ids: npt.ArrayLike) -> str:
        """Return the text of token ids; valid between `open` and `close`."""
        return self._opened().decode(ids)

    def _opened(self) -> Vocabulary:
        if self._vocabulary is None:
            raise RuntimeError("the fake teacher is used before open() or after close()")
        return self._vocabulary

    def _prompt_ids(self, asked: bytes, count: int) -> Int32s:
        words = _splitmix64(_key(asked), count) % np.uint64(self._options.vocabulary)
        return words.astype(np.int32)

    def _answer(self, request: Request, asked: bytes, seed: bytes, draw: int) -> Answer:
        vocabulary = self._opened()
        key = _key(asked, seed, draw.to_bytes(4, "little"))
        length = _length(self._options.answer_tokens, key)
        kept = length if request.sampling.max_tokens is None else request.sampling.max_tokens
        random = _splitmix64(key, min(length, kept))
        ids = _sentence(random, length, vocabulary.size)
        text = vocabulary.decode(ids)
        finish_reason = "length" if kept < length else "stop"
        if request.sampling.stop:
            text, count = _cut_at_stop(text, ids, request.sampling.stop, vocabulary)
            if count is not None:
                ids, random, finish_reason = ids[:count], random[:count], "stop"
        return Answer(
            text=text,
            finish_reason=finish_reason,
            completion_tokens=len(ids),
            reasoning_tokens=0,
            trace=_trace(ids, random, request.top_logprobs, vocabulary),
        )


def create(name: str, options: FakeTeacher) -> Fake:
    """Return a teacher that needs no model; `name` is not used."""
    del name
    return Fake(options)


def _piece(token: int) -> str:
    if token < _FIRST_WORD:
        return ("", ".", ",", "\n")[token]
    index, capital = divmod(token - _FIRST_WORD, 2)
    word = ""
    while True:
        index, digit = divmod(index, len(_SYLLABLES))
        word = _SYLLABLES[digit] + word
        if index == 0:
            return word.capitalize() if capital else f" {word}"


def _zipf(size: int) -> Float32s:
    """Return [exponent, rank] natural logarithms; each row's probabilities sum to just below 1."""
    logs = -_EXPONENTS[:, None] * np.log(np.arange(1, size + 1))[None, :]
    totals = np.log(np.exp(logs).sum(axis=1, keepdims=True))
    # One millionth less, so that no rounding to float32 lets a sum exceed 1.
    below_one: Float32s = (logs - totals - 1e-6).astype(np.float32)
    return below_one


def _ranks_at_quantiles(log_probabilities: Float32s) -> Int32s:
    """Return [exponent, quantile] ranks from 1: the inverse of each cumulative distribution."""
    middles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    rows = [
        np.searchsorted(np.cumsum(np.exp(row, dtype=np.float64)), middles) + 1
        for row in log_probabilities
    ]
    return np.minimum(np.stack(rows), log_probabilities.shape[1]).astype(np.int32)


def _key(*parts: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(b"\0".join(parts), digest_size=8).digest(), "little")


def _splitmix64(key: int, count: int) -> npt.NDArray[np.uint64]:
    z = np.arange(1, count + 1, dtype=np.uint64)
    z *= _GOLDEN
    z += np.uint64(key)
    for multiplier, shift in _ROUNDS:
        z ^= z >> shift
        z *= multiplier
    z ^= z >> _LAST_SHIFT
    return z


def _length(mean: int, key: int) -> int:
    """Return a length, end token included, spread evenly over half to one and a half the mean."""
    return max(2, mean - mean // 2 + key % (2 * (mean // 2) + 1))


def _sentence(random: npt.NDArray[np.uint64], length: int, size: int) -> Int32s:
    """Return the first tokens of one sentence of `length` tokens, the end token included."""
    words = (random & _WORD_BITS) % np.uint64((size - _FIRST_WORD) // 2)
    ids = words.astype(np.int32)
    ids *= 2
    ids += _FIRST_WORD
    ids[(random >> _COMMA_SHIFT) & _FOUR_BITS == 0] = _COMMA
    if len(ids):
        ids[0] = int(words[0]) * 2 + _FIRST_WORD + 1
    if len(ids) >= length - 1 > 1:
        ids[length - 2] = _PERIOD
    if len(ids) == length:
        ids[length - 1] = _END
    return ids


def _cut_at_stop(
    text: str, ids: Int32s, stop: list[str], vocabulary: Vocabulary
) -> tuple[str, int | None]:
    """Return the text before the first stop word, and the tokens up to the one that completes it.

    The number of tokens is null where no stop word occurs.
    """
    found = [
        (begin + len(word), begin) for word in stop if word and (begin := text.find(word)) >= 0
    ]
    if not found:
        return text, None
    end, begin = min(found)
    lengths = np.cumsum([len(vocabulary.pieces[token]) for token in ids.tolist()])
    return text[:begin], int(np.searchsorted(lengths, end)) + 1


def _trace(
    ids: Int32s, random: npt.NDArray[np.uint64], top: int, vocabulary: Vocabulary
) -> TokenTrace:
    """Return the tokens, and with `top` the distribution at each of them.

    Ranks are drawn from the distribution itself, so that some sampled tokens lie outside the top.
    The ids of a position's ranks are a stride through the vocabulary that meets the sampled id at
    its rank: all of them differ, because the stride and the size have no common divisor.
    """
    if top == 0:
        return TokenTrace(ids=ids)
    top = min(top, vocabulary.size)
    rows = ((random >> _EXPONENT_SHIFT) & _FOUR_BITS).astype(np.intp)
    quantiles = ((random >> _QUANTILE_SHIFT) & _QUANTILE_BITS).astype(np.intp)
    ranks = vocabulary.sampled_ranks[rows, quantiles].astype(np.int64)
    first = ids - (ranks - 1) * vocabulary.stride
    topk_ids = (first[:, None] + np.arange(top) * vocabulary.stride) % vocabulary.size
    return TokenTrace(
        ids=ids,
        sampled_logprob=vocabulary.log_probabilities[rows, ranks - 1],
        sampled_rank=np.where(ranks <= top, ranks, 0).astype(np.int32),
        topk_counts=np.full(len(ids), top, np.int32),
        topk_ids=topk_ids.astype(np.int32).ravel(),
        topk_logprobs=vocabulary.log_probabilities[:, :top][rows].ravel(),
    )
