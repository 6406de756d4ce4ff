"""Bodies of plain completions into replies, beyond what test_openai_servers.py shows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from corpusgen import errors
from corpusgen.teachers.openai_completions import decode_completion
from corpusgen.teachers.openai_errors import Origin
from corpusgen.types import Reply, Request, Sampling


def reply_to(body: Any, *, draws: int = 1, k: int = 2) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = Request(messages=[], sampling=Sampling(), draws=draws, top_logprobs=k)
    return decode_completion(raw, asked, Origin("here"), 200, {"x-request-id": "r1"})


def choice(text: str | None, **keys: Any) -> dict[str, Any]:
    return {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None, **keys}


def lists(tokens: list[str], tops: list[Any] | None = None, **keys: Any) -> dict[str, Any]:
    return {"tokens": tokens, "token_logprobs": [-1.0] * len(tokens), "top_logprobs": tops, **keys}


def test_an_answer_without_logprobs_is_text() -> None:
    body = {
        "choices": [choice("b", index=1, finish_reason="eos_token"), choice("a")],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2},
        "model": "base",
    }
    reply = reply_to(body, draws=2)
    assert [(a.text, a.finish_reason, a.trace) for a in reply.answers] == [
        ("a", "stop", None),
        ("b", "stop", None),
    ]
    assert (reply.usage.prompt_tokens, reply.request_id) == (3, "r1")


def test_the_sampled_token_alone_is_kept_where_no_candidates_come() -> None:
    for tops in (None, [], [None, None], [{"a": -1.0}]):
        trace = (
            reply_to({"choices": [choice("ab", logprobs=lists(["a", "b"], tops))]}).answers[0].trace
        )
        assert trace is not None
        assert trace.topk_counts is None
        assert trace.sampled_logprob is not None
        assert trace.sampled_logprob.tolist() == [-1.0, -1.0]


def test_text_that_the_tokens_do_not_spell_has_no_trace() -> None:
    (answer,) = reply_to({"choices": [choice("abc", logprobs=lists(["a", "b"]))]}).answers
    assert (answer.text, answer.trace) == ("abc", None)


def test_values_of_another_number_than_the_tokens_are_unknown() -> None:
    logprobs = lists(["a", "b"], [{"a": -1.0, "b": -2.0}, {"b": -1.0}]) | {"token_logprobs": [-1.0]}
    trace = reply_to({"choices": [choice("ab", logprobs=logprobs)]}).answers[0].trace
    assert trace is not None
    assert trace.sampled_logprob is None
    assert trace.topk_counts is not None
    assert trace.topk_counts.tolist() == [2, 1]


def test_of_texts_that_may_hide_another_the_last_is_not_taken_for_the_kth() -> None:
    tops = [{"z": -7.0, "a": -0.1}]  # the k + 1 that vLLM sends, two of which read alike
    trace = reply_to({"choices": [choice("z", logprobs=lists(["z"], tops))]}).answers[0].trace
    assert trace is not None
    assert trace.topk_bytes is not None
    assert list(trace.topk_bytes) == [b"a"]
    assert trace.sampled_rank is not None
    assert trace.sampled_rank.tolist() == [0]


def test_a_token_that_only_looks_like_an_escape_is_text() -> None:
    for token in ("bytes:", "bytes: 12", "bytes:\\xzz"):
        trace = reply_to({"choices": [choice(token, logprobs=lists([token]))]}).answers[0].trace
        assert trace is not None
        assert trace.token_bytes is not None
        assert list(trace.token_bytes) == [token.encode()]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{}]}',
        b'{"choices": [{"message": {"content": "a chat"}}]}',
        b'{"choices": [{"text": "cut',
        b'{"choices": [{"text": 5}]}',
        b'{"choices": [{"text": "a", "logprobs": {"tokens": [1]}}]}',
        b'{"choices": [{"text": "a", "token_ids": [99999999999]}]}',
        b'{"choices": ' + b"[" * 100_000,
    ],
)
def test_a_body_against_the_protocol_is_torn(body: bytes) -> None:
    with pytest.raises(errors.TornAnswer) as caught:
        reply_to(body)
    assert str(caught.value).startswith("endpoint here: ")
    assert caught.value.http_status == 200


def test_an_error_inside_a_success_is_an_error() -> None:
    with pytest.raises(errors.RateLimited):
        reply_to({"error": {"message": "slow down", "code": 429}})
