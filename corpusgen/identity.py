"""What makes two samples the same: the content that is asked, never where or at what price.

`sample_id` is BLAKE2b-128 over canonical JSON (sorted keys, unset keys left out) of the format
version, the teacher's model, revision, adapter and template arguments, the rendered messages,
tools, response format, sampling and the draw. Endpoint, price, limits, prompt set, prompt id,
metadata, reference and `top_logprobs` are not in it. The golden ids in tests/test_identity.py
pin it: a change there would make every user pay again.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from corpusgen.types import Message, Sampling

IDENTITY_VERSION = 1

_encoder = msgspec.json.Encoder(order="deterministic")


def canonical(value: Any) -> bytes:
    """Return canonical JSON: sorted keys, no white space, struct defaults left out."""
    return _encoder.encode(value)


def digest(value: Any) -> str:
    """Return BLAKE2b-128 of canonical JSON, as 32 hexadecimal digits."""
    return hashlib.blake2b(canonical(value), digest_size=16).hexdigest()


def sample_content(
    *,
    teacher: dict[str, Any],
    messages: list[Message],
    sampling: Sampling,
    tools: list[dict[str, Any]] | None,
    response_format: dict[str, Any] | None,
) -> dict[str, Any]:
    """Return what a prompt's samples have in common; `sample_id` adds the draw.

    `teacher` holds `model` and, where set, `revision`, `adapter`, `template_args`.
    """
    content: dict[str, Any] = {
        "v": IDENTITY_VERSION,
        "teacher": teacher,
        "messages": messages,
        "sampling": msgspec.to_builtins(sampling),
    }
    if tools:
        content["tools"] = tools
    if response_format:
        content["response_format"] = response_format
    return content


def sample_id(content: dict[str, Any], draw: int) -> str:
    """Return the id of one draw."""
    return digest({**content, "draw": draw})


def bad_row_id(prompt_set: str, raw: bytes, ordinal: int) -> str:
    """Return the id of a row that cannot be rendered: its set, its raw bytes and its place."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in (b"bad-row", prompt_set.encode(), str(ordinal).encode(), raw):
        hasher.update(len(part).to_bytes(8, "little"))
        hasher.update(part)
    return hasher.hexdigest()


def seed_for(seed: int | None, sample: str) -> int | None:
    """Return the 31-bit seed to send for a sample; null where the configuration sets none.

    The configured seed itself would make two draws of one prompt equal.
    """
    if seed is None:
        return None
    hashed = hashlib.blake2b(f"{seed}:{sample}".encode(), digest_size=4).digest()
    return int.from_bytes(hashed, "little") & 0x7FFF_FFFF
