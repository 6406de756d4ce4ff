"""Whole answers of each kind of server into replies.

tests/wire/llama_cpp_completions.json was recorded; the others are written after the servers' own
source (vLLM, SGLang) and reference (OpenAI), and hold all keys that those send.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from corpusgen.teachers.openai_completions import decode_completion
from corpusgen.teachers.openai_errors import Origin
from corpusgen.teachers.openai_wire import decode_reply
from corpusgen.types import Reply, Request, Sampling, TokenTrace

WIRE = Path(__file__).parent / "wire"


def read(name: str, k: int = 2) -> tuple[Reply, TokenTrace]:
    decode = decode_completion if name.endswith("completions") else decode_reply
    asked = Request(messages=[], sampling=Sampling(), top_logprobs=k, prompt_token_ids=True)
    reply = decode((WIRE / f"{name}.json").read_bytes(), asked, Origin("here"), 200, {})
    trace = reply.answers[0].trace
    assert trace is not None
    return reply, trace


def values(array: Any) -> list[float]:
    return [round(value, 4) for value in array.tolist()]


def shape(trace: TokenTrace) -> tuple[list[int], list[int]]:
    assert trace.topk_counts is not None
    assert trace.sampled_rank is not None
    return trace.topk_counts.tolist(), trace.sampled_rank.tolist()


def ids(array: Any) -> list[int]:
    assert array is not None
    return list(array.tolist())


def test_vllm_chat_gives_ids_of_everything() -> None:
    reply, trace = read("vllm_chat")
    assert ids(reply.prompt_token_ids) == [151644, 872, 198, 3838, 13]
    assert ids(trace.ids) == [2132, 61678, 13, 151645]
    assert (trace.token_bytes, trace.topk_bytes) == (None, None)
    # Its list is cut to k with the sampled token in front, whatever rank that has.
    assert shape(trace) == ([2, 1, 2, 1], [1, 0, 1, 1])
    assert ids(trace.topk_ids) == [2132, 785, 374, 13, 304, 151645]
    assert values(trace.topk_logprobs) == [-0.25, -1.75, -0.125, -0.5, -1.5, -0.0625]
    assert values(trace.sampled_logprob) == [-0.25, -3.5, -0.5, -0.0625]
    assert reply.answers[0].text == "It rains."


def test_vllm_completions_give_one_candidate_more_than_was_asked_for() -> None:
    reply, trace = read("vllm_completions")
    assert ids(reply.prompt_token_ids) == [3838, 374, 11174]
    assert ids(trace.ids) == [1084, 61678, 13]
    assert shape(trace) == ([2, 2, 2], [1, 0, 2])
    assert ids(trace.topk_ids) == [1084, 576, 374, 572, 304, 13]
    assert values(trace.sampled_logprob) == [-0.25, -3.5, -1.5]
    answer = reply.answers[0]
    assert (answer.text, answer.finish_reason, answer.completion_tokens) == (
        " It rains.", "length", 3,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "length"), [("sglang_chat", 4), ("sglang_completions", 3)])
def test_sglang_gives_strings_and_no_ids(name: str, length: int) -> None:
    reply, trace = read(name)
    assert (trace.ids, trace.topk_ids, reply.prompt_token_ids) == (None, None, None)
    assert trace.token_bytes is not None
    assert trace.topk_bytes is not None
    tokens = list(trace.token_bytes)
    assert b"".join(tokens).removesuffix(b"<|eot_id|>") == reply.answers[0].text.encode()
    assert len(tokens) == length
    assert shape(trace) == ([2] * length, [1] * length)
    assert list(trace.topk_bytes)[2:4] == [b" rains", b" is"]
    assert (reply.usage.completion_tokens, reply.usage.reasoning_tokens) == (length, 0)


def test_openais_chat_gives_the_bytes_of_parts_of_characters() -> None:
    reply, trace = read("openai_chat")
    assert trace.token_bytes is not None
    assert list(trace.token_bytes) == [b"Rain", b" \xf0\x9f", b"\x8c", b"\xa7"]
    assert trace.topk_bytes is not None
    # The sentinel -9999 is no probability, and its candidate none.
    assert shape(trace) == ([2, 2, 1, 2], [1, 1, 1, 1])
    assert list(trace.topk_bytes)[-2:] == [b"\xa7", b"\x88"]
    assert reply.model_revision == "gpt-4o-mini-2024-07-18@fp_560af6e559"


def test_openais_completions_write_parts_of_characters_with_escapes() -> None:
    reply, trace = read("openai_completions")
    assert trace.token_bytes is not None
    assert b"".join(trace.token_bytes).decode() == reply.answers[0].text == " Rain 🌧"
    assert shape(trace) == ([2, 2, 2, 2], [1, 1, 1, 1])
    assert trace.topk_bytes is not None
    assert list(trace.topk_bytes)[4:6] == [b"\x8c", b"\x92"]


def test_llama_cpps_completions_come_in_the_shape_of_chat() -> None:
    reply, trace = read("llama_cpp_completions")
    assert len(ids(trace.ids)) == reply.usage.completion_tokens == 3
    assert shape(trace) == ([2, 2, 2], [1, 1, 1])
    assert ids(trace.topk_ids)[::2] == ids(trace.ids)
    assert reply.answers[0].text.startswith(" Paris")
