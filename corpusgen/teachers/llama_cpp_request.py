"""Build the body of llama.cpp's `/completion`, and refuse what it would silently do otherwise."""

from __future__ import annotations

from typing import Any

import msgspec

from corpusgen.errors import Rejected
from corpusgen.teachers.llama_cpp_answer import FIELDS, Completion
from corpusgen.types import Request, Sampling

# llama.cpp's own defaults cut the distribution (temperature 0.8, top_k 40, top_p 0.95, min_p 0.05)
# and a GGUF file may bring others; a key that is not set means that nothing is cut.
_NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repeat_penalty": 1.0,
    "typical_p": 1.0,
    "top_n_sigma": -1.0,
    "xtc_probability": 0.0,
    "dry_multiplier": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
}

# Keys of the body whose change would break the reading of the answer.
_OWN_KEYS = frozenset(
    {
        "logprobs",
        "max_tokens",
        "messages",
        "n",
        "n_cmpl",
        "n_predict",
        "n_probs",
        "post_sampling_probs",
        "prompt",
        "response_fields",
        "response_format",
        "return_tokens",
        "seed",
        "stream",
        "tools",
        "top_logprobs",
    }
)


def completion_body(request: Request, prompt: str | list[int]) -> dict[str, Any]:
    """Return the body that asks for one answer; raise `Rejected` for what cannot be asked."""
    sampling = request.sampling
    extra = sampling.extra_body or {}
    if own := sorted(_OWN_KEYS & extra.keys()):
        raise Rejected(f"extra_body.{own[0]} cannot be set for the embedded teacher; remove it.")
    body: dict[str, Any] = {
        **_NEUTRAL,
        **_set_keys(sampling),
        "prompt": prompt,
        "n_predict": -1 if sampling.max_tokens is None else sampling.max_tokens,
        "n_probs": request.top_logprobs,
        "post_sampling_probs": False,
        "return_tokens": True,
        "response_fields": FIELDS,
        # An answer must not depend on what stood in its slot before.
        "cache_prompt": False,
    }
    if request.seed is not None:
        body["seed"] = request.seed
    if (schema := _json_schema(request.response_format)) is not None:
        body["json_schema"] = schema
    return body | extra


def _set_keys(sampling: Sampling) -> dict[str, Any]:
    keys = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "stop": sampling.stop,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "repeat_penalty": sampling.repetition_penalty,
    }
    return {key: value for key, value in keys.items() if value is not None}


def _json_schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the schema that an OpenAI `response_format` asks for; null for plain text."""
    kind = (response_format or {"type": "text"}).get("type")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    schema = (response_format.get("json_schema") or {}).get("schema")
    if kind != "json_schema" or not isinstance(schema, dict):
        raise Rejected(f"response_format {kind!r} is not one that the embedded teacher knows.")
    return schema


def check(completion: Completion, request: Request) -> None:
    """Raise `Rejected` for a completion that is no answer to what was asked."""
    if completion.stop_type == "none":
        raise Rejected("the chat template rendered an empty prompt.")
    if _json_schema(request.response_format) is not None and not _may_be_json(completion):
        # llama.cpp answers freely where it cannot compile a schema, and only logs that.
        raise Rejected("llama.cpp cannot use this response_format's JSON schema.")


def _may_be_json(completion: Completion) -> bool:
    if completion.stop_type != "eos":
        return completion.content.lstrip()[:1] in {"", *'{["-0123456789tfn'}
    try:
        msgspec.json.decode(completion.content)
    except msgspec.DecodeError:
        return False
    return True
