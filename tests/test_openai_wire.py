"""Bodies of chat completions, as servers really write them, into replies."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpusgen import errors
from corpusgen.teachers.openai_errors import Origin, retry_after_s
from corpusgen.teachers.openai_wire import decode_reply
from corpusgen.types import Answer, ByteStrings, Reply, Request, Sampling, TokenTrace


def reply_to(body: Any, *, draws: int = 1, k: int = 3, prompt_ids: bool = False) -> Reply:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    asked = Request(
        messages=[],
        sampling=Sampling(),
        draws=draws,
        top_logprobs=k,
        prompt_token_ids=prompt_ids,
    )
    return decode_reply(raw, asked, Origin("here"), 200, {"x-request-id": "r1"})


def choice(text: str | None = "hi", entries: Any = None, **keys: Any) -> dict[str, Any]:
    return {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "logprobs": None if entries is None else {"content": entries},
        "finish_reason": "stop",
        **keys,
    }


def body_of(*choices: dict[str, Any], completion_tokens: int | None = None) -> dict[str, Any]:
    usage = {"prompt_tokens": 3, "completion_tokens": completion_tokens}
    return {"choices": list(choices), "usage": usage if completion_tokens is not None else None}


def entry(token: str, logprob: float | None, *top: tuple[str, float], **keys: Any) -> Any:
    candidates = [{"token": t, "logprob": v, "bytes": None} for t, v in top]
    return {"token": token, "logprob": logprob, "top_logprobs": candidates, **keys}


def only(reply: Reply) -> Answer:
    (answer,) = reply.answers
    return answer


def trace_of(*entries: Any, k: int = 3, **keys: Any) -> TokenTrace:
    text = "".join(e["token"] for e in entries)
    body = body_of(choice(text, list(entries), **keys), completion_tokens=len(entries))
    trace = only(reply_to(body, k=k)).trace
    assert trace is not None
    return trace


def strings(found: ByteStrings | None) -> list[bytes]:
    assert found is not None
    return list(found)


def numbers(array: Any) -> list[Any]:
    return [None if math.isnan(v) else round(v, 3) for v in array.tolist()]


def test_candidates_are_sorted_cut_and_ranked() -> None:
    trace = trace_of(
        entry("a", -2.0, ("b", -1.0), ("a", -2.0), ("c", -0.5), ("d", -3.0)),
        entry("b", -9.0, ("a", -0.1), ("c", -2.0)),
        entry("c", -1.0),
        k=2,
    )
    assert trace.topk_counts is not None
    assert trace.topk_counts.tolist() == [2, 2, -1]
    assert strings(trace.topk_bytes) == [b"c", b"b", b"a", b"c"]
    assert numbers(trace.topk_logprobs) == [-0.5, -1.0, -0.1, -2.0]
    assert numbers(trace.sampled_rank) == [0, 0, 0]
    assert numbers(trace.sampled_logprob) == [-2.0, -9.0, -1.0]
    assert strings(trace.token_bytes) == [b"a", b"b", b"c"]
    assert (trace.ids, trace.topk_ids) == (None, None)


def test_ranks_count_from_the_most_likely() -> None:
    top = (("x", -0.5), ("y", -1.0), ("z", -2.0))
    trace = trace_of(*(entry(token, value, *top) for token, value in top))
    assert numbers(trace.sampled_rank) == [1, 2, 3]


def test_a_sentinel_is_not_a_probability() -> None:
    trace = trace_of(
        entry("a", 0.0, ("a", 0.0), ("b", -9999.0), ("c", -9999.0)),
        entry("b", -9999.0, ("a", -0.1), ("b", -9999.0)),
        entry("c", None, ("c", -9999.0)),
    )
    assert numbers(trace.sampled_logprob) == [0.0, None, None]
    assert trace.topk_counts is not None
    assert trace.topk_counts.tolist() == [1, 1, -1]
    assert strings(trace.topk_bytes) == [b"a", b"a"]
    assert numbers(trace.sampled_rank) == [1, 0, 0]


def test_a_prepended_token_is_not_taken_for_the_last_of_the_top_k() -> None:
    trace = trace_of(
        entry("z", -7.0, ("z", -7.0), ("a", -0.1), ("b", -2.0)),
        entry("b", -2.0, ("b", -2.0), ("a", -0.1), ("c", -3.0)),
    )
    assert trace.topk_counts is not None
    assert trace.topk_counts.tolist() == [2, 3]
    assert strings(trace.topk_bytes) == [b"a", b"b", b"a", b"b", b"c"]
    assert numbers(trace.sampled_rank) == [0, 2]


def test_tokens_that_look_alike_are_told_apart_by_logprob_or_not_at_all() -> None:
    trace = trace_of(
        entry("�", -2.0, ("�", -1.0), ("�", -2.0)),
        entry("�", -1.5, ("�", -1.0), ("�", -2.0)),
    )
    assert numbers(trace.sampled_rank) == [2, 0]


def test_bytes_win_over_text() -> None:
    halves = [
        {"token": "\\xf0\\x9f", "logprob": -1.0, "bytes": [0xF0, 0x9F], "top_logprobs": []},
        {"token": "\\x99\\x82", "logprob": -1.0, "bytes": [0x99, 0x82], "top_logprobs": None},
    ]
    trace = only(reply_to(body_of(choice("🙂", halves)))).trace
    assert trace is not None
    assert strings(trace.token_bytes) == ["🙂".encode()[:2], "🙂".encode()[2:]]
    assert trace.topk_counts is None


def test_vllm_sends_ids_beside_the_text() -> None:
    body = body_of(choice("ab", [entry("a", -1.0), entry("b", -2.0)], token_ids=[7, 8]))
    body["prompt_token_ids"] = [1, 2, 3]
    reply = reply_to(body, prompt_ids=True)
    trace = only(reply).trace
    assert trace is not None
    assert trace.ids is not None
    assert (trace.ids.tolist(), trace.ids.dtype) == ([7, 8], np.int32)
    assert trace.token_bytes is None
    assert reply.prompt_token_ids is not None
    assert reply.prompt_token_ids.tolist() == [1, 2, 3]
    assert reply_to(body).prompt_token_ids is None


def test_ids_of_another_length_stay_and_distributions_go() -> None:
    body = body_of(choice("ab", [entry("a", -1.0, ("a", -1.0))], token_ids=[7, 8]))
    trace = only(reply_to(body)).trace
    assert trace is not None
    assert trace.ids is not None
    assert trace.ids.tolist() == [7, 8]
    assert (trace.sampled_logprob, trace.topk_counts) == (None, None)
    assert only(reply_to(body)).completion_tokens == 2


def test_vllm_writes_ids_into_tokens() -> None:
    trace = trace_of(entry("token_id:5", -1.0, ("token_id:9", -0.5), ("token_id:5", -1.0)))
    assert trace.ids is not None
    assert trace.ids.tolist() == [5]
    assert trace.topk_ids is not None
    assert trace.topk_ids.tolist() == [9, 5]
    assert (trace.token_bytes, trace.topk_bytes) == (None, None)
    assert numbers(trace.sampled_rank) == [2]
    said = trace_of(entry("token_id:5", -1.0), entry(" is said", -1.0))
    assert said.ids is None


def test_llama_cpp_sends_ids_in_entries_and_leaves_some_out() -> None:
    entries = [entry(t, -1.0, id=i) for i, t in enumerate(["an", " ", "!"])]
    whole = only(reply_to(body_of(choice("an !", entries), completion_tokens=4))).trace
    assert whole is not None
    assert whole.ids is not None
    assert whole.ids.tolist() == [0, 1, 2]
    gaps = body_of(choice("an 🙂!", entries), completion_tokens=7)
    assert only(reply_to(gaps)).trace is None
    assert only(reply_to(gaps)).completion_tokens == 7
    several = body_of(choice("an 🙂!", entries), choice("an !", entries), completion_tokens=3)
    assert [a.trace is None for a in reply_to(several, draws=2).answers] == [True, False]


def test_without_a_count_the_entries_must_spell_the_text() -> None:
    assert only(reply_to(body_of(choice("ab", [entry("a", -1.0)])))).trace is None
    cut = [entry("a", -1.0), entry("b", -1.0), entry("STOP", -1.0)]
    assert only(reply_to(body_of(choice("ab", cut)))).trace is not None


def spelt(token: str, value: float, *top: tuple[str, float]) -> dict[str, Any]:
    """Return an entry in which each token's bytes stand beside its text, as OpenAI writes it."""
    made = entry(token, value, *top)
    for each in (made, *made["top_logprobs"]):
        each["bytes"] = list(each["token"].encode())
    return made  # type: ignore[no-any-return]


def test_the_order_of_candidates_does_not_matter() -> None:
    """The sorted ones take a short cut."""
    rng = random.Random(1)
    words = [f" w{i}é" for i in range(50)]
    ordered, shuffled = [], []
    for _ in range(40):
        top = [(word, -0.5 - place) for place, word in enumerate(rng.sample(words, 6))]
        token, value = rng.choice([*top[:5], ("outside", -20.0)])
        ordered.append(spelt(token, value, *top))
        shuffled.append(spelt(token, value, *rng.sample(top, 6)))
    one, other = trace_of(*ordered, k=6), trace_of(*shuffled, k=6)
    for name in TokenTrace.__struct_fields__:
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        if first is not None:
            assert list(first) == list(second), name
    assert set(numbers(one.sampled_rank)) == {0, 1, 2, 3, 4, 5}
    cut = trace_of(*ordered, k=2)
    assert numbers(cut.topk_logprobs) == [-0.5, -1.5] * 40
    assert set(numbers(cut.sampled_rank)) == {0, 1, 2}


def test_equal_logprobs_do_not_make_a_token_the_sampled_one() -> None:
    trace = trace_of(
        entry("b", -1.0, ("a", -1.0), ("b", -1.0)),
        entry("z", -1.0, ("a", -1.0), ("b", -2.0)),
        entry("b", -1.5, ("a", -1.5), ("b", -1.5004)),
    )
    assert numbers(trace.sampled_rank) == [2, 0, 2]


def test_without_a_wish_for_candidates_only_the_sampled_are_kept() -> None:
    trace = trace_of(entry("a", -1.0, ("a", -1.0)), k=0)
    assert trace.topk_counts is None
    assert numbers(trace.sampled_logprob) == [-1.0]


def test_reasoning_stands_under_several_names() -> None:
    for message in (
        {"content": "x", "reasoning_content": "hm"},
        {"content": "x", "reasoning": "hm"},
        {"content": "x", "reasoning_content": None, "reasoning": "hm"},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
                {"type": "text", "text": "x"},
            ]
        },
    ):
        answer = only(reply_to(body_of({"message": message})))
        assert (answer.text, answer.reasoning, answer.finish_reason) == ("x", "hm", "unknown")


def test_usage_is_taken_as_it_is_told() -> None:
    body = body_of(choice())
    body["usage"] = {
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 15},
    }
    reply = reply_to(body)
    usage = reply.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (10, 20)
    assert (usage.cached_tokens, usage.reasoning_tokens) == (4, 15)
    assert (only(reply).completion_tokens, only(reply).reasoning_tokens) == (20, 15)
    body["usage"] = {
        "prompt_tokens": 10,
        "prompt_cache_hit_tokens": 3,
        "prompt_tokens_details": None,
    }
    assert reply_to(body).usage.cached_tokens == 3
    del body["usage"]
    assert reply_to(body).usage.prompt_tokens is None


def test_draws_are_ordered_by_index_cut_and_may_be_fewer() -> None:
    three = [choice(t, index=i) for i, t in ((2, "c"), (0, "a"), (1, "b"))]
    assert [a.text for a in reply_to(body_of(*three), draws=3).answers] == ["a", "b", "c"]
    assert [a.text for a in reply_to(body_of(*three), draws=2).answers] == ["a", "b"]
    assert len(reply_to(body_of(*three), draws=9).answers) == 3


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"choices": []}',
        b'{"choices": null}',
        b'{"choices": [{}]}',
        b'{"choices": [{"text": "legacy"}]}',
        b'{"choices": [{"message": {"content": 5}}]}',
        b'{"choices": [{"message": {"content": "\xff"}}]}',
        b'{"choices": [{"message": {"content": "cut',
        b'data: {"choices": []}\n\n',
        b'{"choices": ' + b"[" * 100_000,
        b'{"a": ' + b"[" * 100_000,
    ],
)
def test_a_body_against_the_protocol_is_torn(body: bytes) -> None:
    with pytest.raises(errors.TornAnswer) as caught:
        reply_to(body)
    assert str(caught.value).startswith("endpoint here: ")
    assert (caught.value.http_status, caught.value.request_id) == (200, "r1")


@pytest.mark.parametrize(
    "hostile",
    [
        choice("a", [entry("a", -1.0, bytes=[256])]),
        choice("a", [entry("a", -1.0, id=2**40)]),
        choice("a", [entry("a", -1.0)], token_ids=[2**40]),
        choice("a", [entry("a", -1.0)], token_ids=[10**30]),
        choice("a", [entry("token_id:99999999999", -1.0)]),
    ],
)
def test_tokens_out_of_range_are_torn_and_keep_their_bill(hostile: dict[str, Any]) -> None:
    with pytest.raises(errors.TornAnswer) as caught:
        reply_to(body_of(hostile, completion_tokens=1))
    assert (caught.value.prompt_tokens, caught.value.completion_tokens) == (3, 1)


def test_numbers_that_are_no_logprobs_are_unknown() -> None:
    trace = trace_of(entry("a", 1e300, ("a", 1e300), ("b", -1e300), ("c", -1.0)))
    assert numbers(trace.topk_logprobs) == [-1.0]
    assert trace.sampled_logprob is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"message": "upstream", "code": 502}, errors.GatewayFault),
        ({"message": "slow down", "code": "429"}, errors.RateLimited),
        ({"message": "broke", "code": "insufficient_quota"}, errors.QuotaExhausted),
        ({"message": "too long", "code": "context_length_exceeded"}, errors.ContextOverflow),
        ({"message": "whatever"}, errors.ServerFault),
        ("just text", errors.ServerFault),
    ],
)
def test_an_error_inside_a_success_is_an_error(error: Any, kind: type) -> None:
    failed = choice("", finish_reason="error", error=error)
    for body in ({"error": error}, {"choices": [], "error": error}, body_of(failed)):
        with pytest.raises(errors.TeacherError) as caught:
            reply_to(body)
        assert type(caught.value) is kind
    assert only(reply_to(body_of(failed, choice("whole")), draws=2)).text == "whole"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "3"}, 3.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"Retry-After": "9", "retry-after-ms": "250"}, 0.25),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:50 GMT"}, 30.0),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:10 GMT"}, 0.0),
        (
            {
                "Retry-After": "Tue, 14 Nov 2023 22:13:50 GMT",
                "Date": "Tue, 14 Nov 2023 22:13:40 GMT",
            },
            10.0,
        ),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Tue, 99 Nov 99999 22:13:40 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now=1_700_000_000.0) == seconds


candidate = st.tuples(
    st.sampled_from("abcdef"), st.floats(-30, 0) | st.just(-9999.0) | st.just(-1.0)
)


@given(
    st.lists(
        st.tuples(candidate, st.lists(candidate, max_size=7, unique_by=lambda c: c[0])),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 6),
)
def test_any_order_of_candidates_gives_a_whole_trace(rows: Any, k: int) -> None:
    trace = trace_of(*(entry(*sampled, *top) for sampled, top in rows), k=k)
    if trace.topk_counts is None:
        assert all(value == -9999.0 for _, top in rows for _, value in top)
        return
    assert trace.topk_logprobs is not None
    assert trace.topk_bytes is not None
    assert trace.sampled_rank is not None
    start = 0
    for i, ((token, _), top) in enumerate(rows):
        known = [(t, v) for t, v in top if v != -9999.0]
        count = max(0, int(trace.topk_counts[i]))
        values = trace.topk_logprobs[start : start + count]
        names = strings(trace.topk_bytes)[start : start + count]
        best = sorted((v for _, v in known), reverse=True)
        np.testing.assert_allclose(values, np.array(best[:count], np.float32))
        assert {n.decode() for n in names} <= {t for t, _ in known}
        # One candidate fewer only where the server may have put the sampled token first.
        assert min(len(known), k) - count in ((0, 1) if top and top[0][0] == token else (0,))
        rank = int(trace.sampled_rank[i])
        assert rank == 0 or names[rank - 1].decode() == token
        start += count
    assert start == len(trace.topk_bytes) == len(trace.topk_logprobs)


def test_an_error_in_a_success_is_charged_what_its_body_admits_to() -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 5}
    body = json.dumps({"error": {"message": "upstream broke"}, "usage": usage}).encode()
    request = Request([{"role": "user", "content": "x"}], Sampling())
    with pytest.raises(errors.TeacherError) as caught:
        decode_reply(body, request, Origin("x"), 200, {})
    assert (caught.value.prompt_tokens, caught.value.completion_tokens) == (10, 5)
