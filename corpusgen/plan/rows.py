"""Turn prompts into rows of the plan: the one place that knows in which form each value is kept."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from corpusgen import identity
from corpusgen.plan.requests import SetRequest
from corpusgen.types import BadPrompt, Message, Prompt, Sampling


def text(value: Any) -> str | None:
    """Return a value as canonical JSON text; null stays null."""
    return None if value is None else identity.canonical(value).decode()


def stored_message(message: Message) -> Message:
    """Return a message as the plan keeps it: its tool calls as JSON text."""
    if message.get("tool_calls") is None:
        return message
    return {**message, "tool_calls": text(message["tool_calls"])}


def extras(prompt: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return a prompt's reference and metadata as the plan keeps them."""
    return prompt.get("reference"), text(prompt.get("metadata"))


def extra_digest(prompt: Prompt | BadPrompt) -> int:
    """Return 64 bits that tell whether a prompt's reference or metadata changed."""
    if isinstance(prompt, BadPrompt):
        return digest64(None, None)
    return digest64(prompt.reference, text(prompt.metadata))


def digest64(reference: str | None, metadata: str | None) -> int:
    """Do what `extra_digest` does, on what the plan keeps."""
    hashed = hashlib.blake2b(identity.canonical([reference, metadata]), digest_size=8).digest()
    return int.from_bytes(hashed, "little")


def sampling_of(request: SetRequest, max_tokens: int | None) -> Sampling:
    """Return how a prompt's answers are drawn: as its set says, but for its own `max_tokens`."""
    if max_tokens is None:
        return request.sampling
    return msgspec.structs.replace(request.sampling, max_tokens=max_tokens)


def plan_row(request: SetRequest, prompt: dict[str, Any], sample: str, draw: int) -> dict[str, Any]:
    """Return the row of one draw, without its partition."""
    problem = prompt.get("problem")
    reference, metadata = extras(prompt)
    return {
        "sample_id": sample,
        "prompt_set": request.name,
        "prompt_id": prompt["prompt_id"],
        "draw": None if problem else draw,
        "teacher": request.teacher,
        "messages": None if problem else [stored_message(each) for each in prompt["messages"]],
        "tools": text(prompt.get("tools")),
        "response_format": text(request.response_format),
        "sampling": identity.canonical(sampling_of(request, prompt.get("max_tokens"))).decode(),
        "reference": reference,
        "metadata": metadata,
        "row": prompt["row"],
        "problem": problem,
    }
