"""What the loopback server says: text, token counts and distributions, all from a hash."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import msgspec

WORDS = [
    "teacher",
    "answers",
    "a",
    "question",
    "and",
    "the",
    "student",
    "learns",
    "from",
    "its",
    "words",
    "while",
    "rain",
    "falls",
    "on",
    "old",
    "stones",
    "near",
    "rivers",
    "that",
    "carry",
    "naïve",
    "letters",
    "across",
    "東京",
    "or",
    "Zürich",
    "with",
    "🙂",
    "light",
    "42",
    "times",
    "because",
    "every",
    "small",
    "model",
    "needs",
    "clear",
    "examples",
    "before",
    "larger",
    "steps",
    "make",
    "sense",
    "to",
    "anyone",
    "who",
    "reads",
    "slowly",
    "under",
    "green",
    "trees",
]
"""All different, so that a token's place in a distribution is certain."""


class Drawn(msgspec.Struct, frozen=True):
    """One choice of an answer."""

    message: dict[str, Any]
    words: list[int]
    """The visible tokens, as indices of `WORDS`."""
    tokens: int
    """Billed tokens, hidden ones included."""
    reasoning_tokens: int
    finish_reason: str


def prompt_tokens(messages: list[dict[str, Any]]) -> int:
    """Count a prompt's tokens: four a message, and its words."""
    return sum(4 + len(str(message.get("content") or "").split()) for message in messages)


def draw_answer(key: bytes, draw: int, kind: str | None, mean: int, limit: int | None) -> Drawn:
    """Draw an answer: equal keys and draws give equal answers."""
    digest = hashlib.shake_128(key + draw.to_bytes(2)).digest(2 + 2 * mean)
    count = 1 + int.from_bytes(digest[:2]) % (2 * mean - 1)
    if kind in _FIXED:
        message, reason = _FIXED[kind]
        tokens = max(1, len((message.get("content") or "").split()))
        return Drawn(message, [], tokens, 0, reason)
    reason = {"length": "length", "filtered": "content_filter"}.get(kind or "", "stop")
    if limit is not None and count > limit:
        count, reason = limit, "length"
    words = [byte % len(WORDS) for byte in digest[2 : 2 + count]]
    message = {"content": " ".join(WORDS[i] for i in words)}
    hidden = 0
    if kind == "think":
        message["reasoning_content"], hidden = "I think about it first.", 6
    return Drawn(message, words, count + hidden, hidden, reason)


_CALL = {"name": "look_up", "arguments": '{"word": "rain"}'}
_FIXED: dict[str | None, tuple[dict[str, Any], str]] = {
    "empty": ({"content": ""}, "stop"),
    "refuse": ({"content": "I'm sorry, but I can't help with that."}, "stop"),
    "refusal": ({"content": None, "refusal": "I cannot help with that."}, "stop"),
    "tool": (
        {
            "content": None,
            "tool_calls": [{"id": "call-1", "type": "function", "function": _CALL}],
        },
        "tool_calls",
    ),
}


class Ids(msgspec.Struct, frozen=True):
    """Whether token ids are sent, as vLLM does: a word's id is its index."""

    listed: bool = False
    """`return_token_ids`"""
    written: bool = False
    """`return_tokens_as_token_ids`: in place of the tokens' texts."""


def answer_body(
    model: str,
    number: int,
    answers: list[Drawn],
    prompted: int,
    top: int | None,
    ids: Ids,
) -> bytes:
    """Encode a chat completion; `top` is null where no logprobs were asked for."""
    choices = [_choice(i, answer, top, ids) for i, answer in enumerate(answers)]
    prompt_ids = {"prompt_token_ids": list(range(prompted))} if ids.listed else {}
    body = envelope(model, number, "chat.completion", answers, prompted, choices)
    return msgspec.json.encode(body | prompt_ids)


def envelope(
    model: str,
    number: int,
    kind: str,
    answers: list[Drawn],
    prompted: int,
    choices: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return what both protocols put around their choices."""
    completion_tokens = sum(answer.tokens for answer in answers)
    reasoning = {"reasoning_tokens": sum(answer.reasoning_tokens for answer in answers)}
    usage = {
        "prompt_tokens": prompted,
        "completion_tokens": completion_tokens,
        "total_tokens": prompted + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": reasoning,
    }
    return {
        "id": f"cmpl-{number}",
        "object": kind,
        "created": 1_700_000_000,
        "model": model,
        "system_fingerprint": "fp_loopback",
        "choices": choices,
        "usage": usage,
    }


def _choice(index: int, answer: Drawn, top: int | None, ids: Ids) -> dict[str, Any]:
    logprobs = None
    if top is not None:
        written = ids.written
        content = [_entry(word, i == 0, top, written) for i, word in enumerate(answer.words)]
        logprobs = {"content": content, "refusal": None}
    choice = {
        "index": index,
        "message": {"role": "assistant", "refusal": None} | answer.message,
        "logprobs": logprobs,
        "finish_reason": answer.finish_reason,
    }
    return choice | ({"token_ids": answer.words} if ids.listed else {})


@lru_cache(maxsize=100_000)
def _entry(word: int, first: bool, top: int, written: bool) -> msgspec.Raw:
    """Encode a position: its sampled token, and `top` candidates around it."""
    candidates = [_candidate(w, first, value, written) for w, value in candidates_of(word, top)]
    sampled = _candidate(word, first, logprob_of(word), written)
    return msgspec.Raw(msgspec.json.encode(sampled | {"top_logprobs": candidates}))


def candidates_of(word: int, top: int) -> list[tuple[int, float]]:
    """Return `top` candidates in order; of seven words two lie outside the first two.

    The probabilities halve from rank to rank, so that those of any k sum to less than one.
    """
    rank = word % 7
    others = [(word + 1 + i) % len(WORDS) for i in range(top)]
    ranked = [*others[:rank], word, *others[rank:]][:top]
    return [(w, round(-0.6931 * (i + 1), 6)) for i, w in enumerate(ranked)]


def logprob_of(word: int) -> float:
    """Return a sampled word's own value."""
    return round(-0.6931 * (word % 7 + 1), 6)


def token_of(word: int, first: bool, written: bool) -> str:
    """Return a word as a token's text, or as vLLM writes its id."""
    if written:
        return f"token_id:{word}"
    return WORDS[word] if first else f" {WORDS[word]}"


def _candidate(word: int, first: bool, logprob: float, written: bool) -> dict[str, Any]:
    token = token_of(word, first, written)
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}
