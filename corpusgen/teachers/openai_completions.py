"""Read answers of `/completions`, the protocol of base models.

Three shapes of log-probabilities are sent there: OpenAI's legacy lists, in which vLLM may write
token ids; SGLang's, the same without offsets; and llama.cpp's, which are those of chat. Each is
brought into the shape of a chat answer, so that one place (`openai_wire`) decides what aligns.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from corpusgen.teachers.openai_errors import Origin
from corpusgen.teachers.openai_trace import Alternative, Entry
from corpusgen.teachers.openai_wire import (
    ChatMessage,
    Choice,
    Completion,
    Logprobs,
    WireUsage,
    reply_of,
    torn,
)
from corpusgen.types import Reply, Request

_ESCAPED = "bytes:"
"""OpenAI writes a token that is part of a character as `bytes:\\xe2\\x80`."""
_ESCAPE = re.compile(rb"\\x([0-9a-f]{2})")
_WRITTEN_ID = "token_id:"
_REASONS = {"eos_token": "stop", "stop_sequence": "stop"}
"""TGI's words for a stop."""


class _Lists(msgspec.Struct):
    """A choice's log-probabilities: parallel lists, or entries as in chat."""

    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | None = None
    content: list[Entry] | None = None


class _TextChoice(msgspec.Struct):
    index: int = 0
    text: str | None = None
    logprobs: _Lists | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    error: Any = None


class _TextCompletion(msgspec.Struct):
    choices: list[_TextChoice] | None = None
    usage: WireUsage | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    prompt_token_ids: list[int] | None = None
    error: Any = None


_DECODER = msgspec.json.Decoder(_TextCompletion)


def decode_completion(
    body: bytes, request: Request, origin: Origin, status: int, headers: Mapping[str, str]
) -> Reply:
    """Decode the body of an HTTP success; promises and raises what `decode_reply` does."""
    try:
        found = _DECODER.decode(body)
    except (ValueError, RecursionError) as error:
        what = "the answer is not a completion"
        raise torn(origin, what, body, status, headers, str(error)) from None
    return reply_of(_as_chat(found), body, request, origin, status, headers)


def _as_chat(found: _TextCompletion) -> Completion:
    choices = found.choices or []
    prompts = [found.prompt_token_ids, *(choice.prompt_token_ids for choice in choices)]
    return Completion(
        choices=[_choice(choice) for choice in choices],
        usage=found.usage,
        model=found.model,
        system_fingerprint=found.system_fingerprint,
        prompt_token_ids=next((ids for ids in prompts if ids is not None), None),
        error=found.error,
    )


def _choice(choice: _TextChoice) -> Choice:
    reason = choice.finish_reason
    return Choice(
        index=choice.index,
        message=None if choice.text is None else ChatMessage(content=choice.text),
        logprobs=None if choice.logprobs is None else Logprobs(content=_entries(choice.logprobs)),
        finish_reason=_REASONS.get(reason, reason) if reason else None,
        token_ids=choice.token_ids,
        error=choice.error,
    )


def _entries(lists: _Lists) -> list[Entry]:
    """Return one entry a token; lists that are not equally long are left out."""
    if lists.content is not None:
        return lists.content
    tokens = lists.tokens or []
    values = lists.token_logprobs or []
    if len(values) != len(tokens):
        values = [None] * len(tokens)
    tops = lists.top_logprobs or []
    if len(tops) != len(tokens):
        tops = [None] * len(tokens)
    return [
        Entry(token=token, logprob=value, bytes=_bytes(token), top_logprobs=_candidates(top))
        for token, value, top in zip(tokens, values, tops, strict=True)
    ]


def _candidates(top: dict[str, float | None] | None) -> list[Alternative] | None:
    """Return the candidates of a position.

    The sampled token is one of them, in addition to the k where it is not among the first k.
    Texts can hide one of these k + 1, because different tokens read alike, and then their number
    does not tell any more whether the last is the k-th: they stay in the server's order, sampled
    token first, so that the trace can see it. Ids hide nothing, and are sorted.
    """
    if top is None:
        return None
    pairs = list(top.items())
    if pairs and pairs[0][0].startswith(_WRITTEN_ID):
        pairs.sort(key=lambda pair: -math.inf if pair[1] is None else pair[1], reverse=True)
    return [Alternative(token=token, logprob=value, bytes=_bytes(token)) for token, value in pairs]


def _bytes(token: str) -> msgspec.Raw:
    """Return the bytes of a token that OpenAI writes with escapes; nothing for any other."""
    if not token.startswith(_ESCAPED):
        return _NO_BYTES
    written = token.removeprefix(_ESCAPED).encode()
    spelled, escapes = _ESCAPE.subn(lambda found: bytes.fromhex(found[1].decode()), written)
    return msgspec.Raw(msgspec.json.encode(list(spelled))) if escapes else _NO_BYTES


_NO_BYTES = msgspec.Raw()
