"""Build the body of a chat completion request from a `Request`."""

from __future__ import annotations

from typing import Any

import msgspec

from corpusgen.errors import Rejected
from corpusgen.types import Request, Sampling

_SAMPLING_KEYS = (
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


def encode_request(
    request: Request, model: str, template_args: dict[str, object] | None, limit_key: str
) -> bytes:
    """Return the JSON body; keys that are not set are left out, `extra_body` is merged last.

    `limit_key` names the key that carries `max_tokens`; an `extra_body` that limits the answer's
    length under either name takes its place. Raises `Rejected` where `extra_body` asks for a
    stream, which this teacher does not read.
    """
    body: dict[str, Any] = {"model": model, "messages": _messages(request)}
    body |= _sampling(request.sampling, limit_key)
    if request.draws > 1:
        body["n"] = request.draws
    if request.seed is not None:
        body["seed"] = request.seed
    if request.top_logprobs > 0:
        body |= {"logprobs": True, "top_logprobs": request.top_logprobs}
    if request.tools:
        body["tools"] = request.tools
    if request.response_format is not None:
        body["response_format"] = request.response_format
    if template_args is not None:
        body["chat_template_kwargs"] = template_args
    return msgspec.json.encode(_merged(body, request.sampling.extra_body or {}))


def _merged(body: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    if extra.get("stream"):
        raise Rejected("sampling.extra_body: `stream` is not supported. Remove it.")
    if "max_tokens" in extra or "max_completion_tokens" in extra:
        body = {k: v for k, v in body.items() if k not in ("max_tokens", "max_completion_tokens")}
    return body | extra


def _sampling(sampling: Sampling, limit_key: str) -> dict[str, Any]:
    found = {key: getattr(sampling, key) for key in _SAMPLING_KEYS}
    found[limit_key] = sampling.max_tokens
    return _set(found)


def _messages(request: Request) -> list[dict[str, Any]]:
    """Return the messages without null keys: Arrow fills a missing key with null on reading."""
    return [_set({k: _parts(v) for k, v in message.items()}) for message in request.messages]


def _parts(value: Any) -> Any:
    if isinstance(value, list):
        return [_set(part) if isinstance(part, dict) else part for part in value]
    return value


def _set(mapping: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if value is not None}
