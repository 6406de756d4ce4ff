"""Decode the body of a chat completion straight into a `Reply`.

The structs name only what is kept; everything else in a body is skipped without being built. A
body that is not what the protocol says is a `TornAnswer`, never half an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from corpusgen.errors import TornAnswer
from corpusgen.teachers.openai_errors import Origin, from_answer, request_id
from corpusgen.teachers.openai_trace import Entry, spelled, token_trace
from corpusgen.types import Answer, Reply, Request, TokenTrace, Usage


class _Part(msgspec.Struct):
    """One part of a content that is a list, as Mistral's reasoning models send it."""

    type: str = ""
    text: str = ""
    thinking: list[_Part] = []


class ChatMessage(msgspec.Struct):
    """What a choice says."""

    content: str | list[_Part] | None = None
    refusal: str | None = None
    reasoning_content: Any = None
    reasoning: Any = None
    tool_calls: list[dict[str, Any]] | None = None


class Logprobs(msgspec.Struct):
    """The entries of a choice's tokens."""

    content: list[Entry] | None = None
    refusal: list[Entry] | None = None


class Choice(msgspec.Struct):
    """One draw's answer, as it came."""

    index: int = 0
    message: ChatMessage | None = None
    logprobs: Logprobs | None = None
    finish_reason: str | None = None
    token_ids: list[int] | None = None
    error: Any = None
    """Set by gateways whose upstream failed."""


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None


class WireUsage(msgspec.Struct):
    """The bill, in every provider's words."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: int | None = None
    """DeepSeek's word for cached tokens."""
    reasoning_tokens: int | None = None
    """SGLang's place for them."""


class Completion(msgspec.Struct):
    """A body, as far as it is kept."""

    choices: list[Choice] | None = None
    usage: WireUsage | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    prompt_token_ids: list[int] | None = None
    error: Any = None


class _UsageOnly(msgspec.Struct):
    usage: WireUsage | None = None


_COMPLETION = msgspec.json.Decoder(Completion)
_USAGE_ONLY = msgspec.json.Decoder(_UsageOnly)


def decode_reply(
    body: bytes, request: Request, origin: Origin, status: int, headers: Mapping[str, str]
) -> Reply:
    """Decode the body of an HTTP success.

    Returns one answer for each choice that came, in the order of their index: at most
    `request.draws`, and fewer where the server sent fewer. Raises `TornAnswer` where there is none
    or the body breaks the protocol, and the error that a body holds in place of its choices.
    """
    completion = _decoded(body, origin, status, headers)
    return reply_of(completion, body, request, origin, status, headers)


def reply_of(
    completion: Completion,
    body: bytes,
    request: Request,
    origin: Origin,
    status: int,
    headers: Mapping[str, str],
) -> Reply:
    """Make the reply of a decoded body, as `decode_reply` promises it."""
    choices = completion.choices or []
    error = next(filter(None, (completion.error, *(c.error for c in choices))), None)
    choices = [choice for choice in choices if choice.message is not None and not choice.error]
    if not choices and error is not None:
        found, spent = from_answer(origin, status, headers, error), _usage(completion.usage)
        found.prompt_tokens, found.completion_tokens = spent.prompt_tokens, spent.completion_tokens
        raise found
    if not choices:
        raise torn(origin, "the answer holds no choice", body, status, headers)
    choices = sorted(choices, key=lambda choice: choice.index)[: request.draws]
    usage = _usage(completion.usage)
    try:
        answers = _answers(choices, usage, request.top_logprobs)
        prompt_ids = completion.prompt_token_ids if request.prompt_token_ids else None
        prompt = np.array(prompt_ids, np.int32) if prompt_ids is not None else None
    except (ValueError, OverflowError):
        raise torn(
            origin, "the answer holds tokens that are out of range", body, status, headers
        ) from None
    return Reply(
        answers=answers,
        usage=usage,
        prompt_token_ids=prompt,
        model_revision=_revision(completion),
        request_id=request_id(headers),
        http_status=status,
    )


def _decoded(body: bytes, origin: Origin, status: int, headers: Mapping[str, str]) -> Completion:
    try:
        return _COMPLETION.decode(body)
    except (ValueError, RecursionError) as error:
        what = "the answer is not a chat completion"
        raise torn(origin, what, body, status, headers, str(error)) from None


def torn(
    origin: Origin,
    what: str,
    body: bytes,
    status: int,
    headers: Mapping[str, str],
    why: str = "",
) -> TornAnswer:
    """Return the error with the usage that the body admits to, because it is billed."""
    try:
        usage = _usage(_USAGE_ONLY.decode(body).usage)
    except (ValueError, RecursionError):
        usage = Usage()
    return TornAnswer(
        origin.sentence(what, why),
        http_status=status,
        request_id=request_id(headers),
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
    )


def _answers(choices: Sequence[Choice], usage: Usage, top_logprobs: int) -> list[Answer]:
    entries = [_entries(choice) for choice in choices]
    counted = _all_there(entries, usage)
    alone = len(choices) == 1
    reported = usage if alone else Usage()
    answers = []
    for choice, own in zip(choices, entries, strict=True):
        text = _text(choice)
        trace = None
        if choice.token_ids is not None or (own and _aligned(own, text, counted, alone)):
            trace = token_trace(own, choice.token_ids, top_logprobs)
        answers.append(_answer(choice, text, trace, reported))
    return answers


def _answer(choice: Choice, text: str, trace: TokenTrace | None, reported: Usage) -> Answer:
    message = choice.message
    assert message is not None
    tokens = _length(trace)
    return Answer(
        text=text,
        finish_reason=choice.finish_reason or "unknown",
        reasoning=_reasoning(message),
        tool_calls=message.tool_calls or None,
        completion_tokens=reported.completion_tokens if tokens is None else tokens,
        reasoning_tokens=reported.reasoning_tokens,
        trace=trace,
    )


def _entries(choice: Choice) -> list[Entry]:
    if choice.logprobs is None:
        return []
    return choice.logprobs.content or choice.logprobs.refusal or []


def _aligned(entries: Sequence[Entry], text: str, counted: bool | None, alone: bool) -> bool:
    """Tell whether every token of an answer has its entry, so that position i is token i.

    llama.cpp, known by its ids, leaves entries out inside characters that are split over tokens,
    and with several draws counts the tokens of one. Elsewhere the count is trusted; where it says
    too few, as with hidden reasoning, the entries must spell the text.
    """
    has_ids = any(entry.id is not None for entry in entries)
    if counted is not None and not (has_ids and not alone) and (counted or has_ids):
        return counted
    return text.encode() in spelled(entries)


def _all_there(entries: Sequence[Sequence[Entry]], usage: Usage) -> bool | None:
    """Tell from the usage whether every answer token has its entry; null where there is none.

    A stop token may be counted without having an entry.
    """
    if usage.completion_tokens is None:
        return None
    visible = usage.completion_tokens - (usage.reasoning_tokens or 0)
    return sum(map(len, entries)) >= visible - len(entries)


def _text(choice: Choice) -> str:
    message = choice.message
    assert message is not None
    content = message.content
    if isinstance(content, list):
        content = "".join(part.text for part in content)
    return content or message.refusal or ""


def _reasoning(message: ChatMessage) -> str | None:
    for found in (message.reasoning_content, message.reasoning):
        if isinstance(found, str) and found:
            return found
    if isinstance(message.content, list):
        thoughts = [thought.text for part in message.content for thought in part.thinking]
        return "".join(thoughts) or None
    return None


def _length(trace: TokenTrace | None) -> int | None:
    if trace is None:
        return None
    for tokens in (trace.ids, trace.token_bytes):
        if tokens is not None:
            return len(tokens)
    return None


def _usage(usage: WireUsage | None) -> Usage:
    if usage is None:
        return Usage()
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    cached = usage.prompt_cache_hit_tokens if prompt is None else prompt.cached_tokens
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        reasoning_tokens=usage.reasoning_tokens
        if completion is None
        else completion.reasoning_tokens,
        cached_tokens=cached,
    )


def _revision(completion: Completion) -> str | None:
    """Return `model`, or `model@system_fingerprint`, as the server names them."""
    parts = [part for part in (completion.model, completion.system_fingerprint) if part]
    return "@".join(parts) or None
