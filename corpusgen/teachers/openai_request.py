"""Build the body of a request from a `Request`, for either protocol: chat, or plain completions."""

from __future__ import annotations

from typing import Any

import msgspec

from corpusgen.errors import Rejected
from corpusgen.types import Message, Request

SAMPLING_KEYS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
"""Keys of `Sampling` that the protocol, or its common extensions, call by the same name."""

_REFUSED = {
    "stream": "answers are not read as streams. Remove it.",
    "n": "draws are counted by the prompt set's n. Set it there.",
    "best_of": "its unseen answers would be paid for and not kept. Remove it.",
}
"""Keys that `sampling.extra_body` may not set, and why."""

_LIMITS = ("max_tokens", "max_completion_tokens")


def encode_request(
    request: Request,
    model: str,
    template_args: dict[str, object] | None,
    limit_key: str,
    *,
    endpoint_body: dict[str, Any] | None = None,
    token_ids: bool = False,
) -> bytes:
    """Return the JSON body of a chat completion; keys that are not set are left out.

    `limit_key` names the key that carries `max_tokens`; an `extra_body` that limits the answer's
    length under either name takes its place. `endpoint_body` is merged over what stands there, and
    the sampling's `extra_body` over all. `token_ids` asks vLLM for ids. Raises `Rejected` where
    `extra_body` asks for what this teacher does not do.
    """
    body: dict[str, Any] = {"model": model, "messages": _messages(request)}
    _sample(body, request, limit_key)
    if request.top_logprobs > 0:
        body["logprobs"] = True
        body["top_logprobs"] = request.top_logprobs
    if request.tools:
        body["tools"] = request.tools
    if template_args is not None:
        body["chat_template_kwargs"] = template_args
    return _encoded(body, request, endpoint_body, token_ids)


def encode_completion(
    request: Request,
    model: str,
    *,
    endpoint_body: dict[str, Any] | None = None,
    token_ids: bool = False,
) -> bytes:
    """Return the JSON body of a plain completion; otherwise as `encode_request`.

    Raises `Rejected` on what is more than one text: a conversation, or tools.
    """
    body: dict[str, Any] = {"model": model, "prompt": plain_prompt(request)}
    _sample(body, request, "max_tokens")
    if request.top_logprobs > 0:
        body["logprobs"] = request.top_logprobs
    return _encoded(body, request, endpoint_body, token_ids)


def plain_prompt(request: Request) -> str:
    """Return the text of a conversation of one user message; raise `Rejected` on any other."""
    if request.tools:
        raise _no_text("it offers tools")
    if len(request.messages) != 1:
        roles = [str(message.get("role")) for message in request.messages]
        more = "a system message" if "system" in roles else f"{len(roles)} messages"
        raise _no_text(f"it has {more}")
    (message,) = request.messages
    if message.get("role") != "user":
        raise _no_text(f"its message is of the role {message.get('role')}")
    return _plain(message)


def _plain(message: Message) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [None]
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise _no_text("its content is not only text")
    return "".join(str(text) for text in texts)


def _no_text(why: str) -> Rejected:
    return Rejected(
        f"a base model is asked with one text, and this prompt is none: {why}. Make it one user "
        "message, or set the teacher's protocol to chat."
    )


def _sample(body: dict[str, Any], request: Request, limit_key: str) -> None:
    """Add what both protocols call by the same name."""
    sampling = request.sampling
    for key in SAMPLING_KEYS:
        value = getattr(sampling, key)
        if value is not None:
            body[key] = value
    if sampling.max_tokens is not None:
        body[limit_key] = sampling.max_tokens
    if request.draws > 1:
        body["n"] = request.draws
    if request.seed is not None:
        body["seed"] = request.seed
    if request.response_format is not None:
        body["response_format"] = request.response_format


def _encoded(
    body: dict[str, Any],
    request: Request,
    endpoint_body: dict[str, Any] | None,
    token_ids: bool,
) -> bytes:
    if token_ids:
        body["return_token_ids"] = True
        if request.top_logprobs > 0:
            body["return_tokens_as_token_ids"] = True
    if endpoint_body:
        body |= endpoint_body
    extra = request.sampling.extra_body
    if extra:
        body = _merged(body, extra)
    return _ENCODER.encode(body)


_ENCODER = msgspec.json.Encoder()


def _merged(body: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    for key, why in _REFUSED.items():
        if extra.get(key):
            raise Rejected(f"sampling.extra_body: `{key}` is not supported: {why}")
    if any(key in extra for key in _LIMITS):
        body = {key: value for key, value in body.items() if key not in _LIMITS}
    return body | extra


def _messages(request: Request) -> list[dict[str, Any]]:
    """Return the messages without null keys: Arrow fills a missing key with null on reading."""
    return [_without_nulls(message) for message in request.messages]


def _without_nulls(message: Message) -> dict[str, Any]:
    return {key: _parts(value) for key, value in message.items() if value is not None}


def _parts(value: Any) -> Any:
    if isinstance(value, list):
        return [
            {key: item for key, item in part.items() if item is not None}
            if isinstance(part, dict)
            else part
            for part in value
        ]
    return value
