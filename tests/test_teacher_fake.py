from __future__ import annotations

import asyncio
import time

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen import plugins
from corpusgen.config import FakeTeacher
from corpusgen.teachers.fake import MAX_DRAWS, Fake, create
from corpusgen.teachers.interface import Teacher
from corpusgen.types import Reply, Request, Sampling


def opened(**options: object) -> Fake:
    teacher = create("teacher", FakeTeacher(**options))  # type: ignore[arg-type]
    asyncio.run(teacher.open())
    return teacher


@pytest.fixture(scope="module")
def fake() -> Fake:
    return opened(vocabulary=1000, answer_tokens=24)


def request(text: str = "Name a river.", **fields: object) -> Request:
    sampling = Sampling(**fields.pop("sampling", {}))  # type: ignore[arg-type]
    messages = [{"role": "user", "content": text}]
    return Request(messages=messages, sampling=sampling, **fields)  # type: ignore[arg-type]


def ask(teacher: Teacher, asked: Request) -> Reply:
    return asyncio.run(teacher.generate(asked, teacher.endpoints[0]))


def test_it_is_found_by_its_entry_point_and_keeps_the_protocol() -> None:
    teacher: Teacher = plugins.load(plugins.TEACHERS, "fake")("x", FakeTeacher(model="m"))
    assert teacher.identity.model == "m"
    assert teacher.tokenizer is None
    assert [endpoint.name for endpoint in teacher.endpoints] == ["fake"]


def test_text_is_what_its_tokens_decode_to(fake: Fake) -> None:
    for seed in range(50):
        answer = ask(fake, request(seed=seed)).answers[0]
        assert answer.trace is not None
        assert answer.trace.ids is not None
        assert fake.decode(answer.trace.ids) == answer.text
        assert answer.text[0].isupper()
        assert answer.text.endswith(".")
        assert answer.trace.ids[-1] == 0
        assert answer.finish_reason == "stop"
        assert answer.completion_tokens == len(answer.trace.ids)


def test_equal_requests_get_equal_replies_in_another_instance(fake: Fake) -> None:
    asked = request(seed=5, top_logprobs=7, prompt_token_ids=True)
    twin = opened(vocabulary=1000, answer_tokens=24)
    assert same(ask(fake, asked), ask(twin, asked))
    assert fake.tokenizer == twin.tokenizer


def same(one: object, other: object) -> bool:
    def plain(value: object) -> object:
        return value.tolist() if isinstance(value, np.ndarray) else value

    values = [msgspec.to_builtins(value, enc_hook=plain) for value in (one, other)]
    return bool(values[0] == values[1])


def test_the_answers_never_change_between_versions(fake: Fake) -> None:
    assert ask(fake, request(seed=7)).answers[0].text == GOLDEN_TEXT
    assert fake.tokenizer is not None
    assert fake.tokenizer.fingerprint == GOLDEN_FINGERPRINT


GOLDEN_TEXT = "Dane binu bigi bufu behi bofa ja bete bobo buvo."
GOLDEN_FINGERPRINT = "5c8e62205a87bcdc6b0181401a3069d1"


def test_seed_messages_tools_model_and_draw_change_the_answer(fake: Fake) -> None:
    other_model = opened(vocabulary=1000, answer_tokens=24, model="fake-2")
    texts = [
        ask(fake, request()).answers[0].text,
        ask(fake, request(seed=0)).answers[0].text,
        ask(fake, request(seed=1)).answers[0].text,
        ask(fake, request("Name a lake.", seed=1)).answers[0].text,
        ask(fake, request(seed=1, tools=[{"type": "function"}])).answers[0].text,
        ask(other_model, request(seed=1)).answers[0].text,
    ]
    assert len(set(texts)) == len(texts)


def test_draws_are_separate_answers_and_usage_covers_all(fake: Fake) -> None:
    reply = ask(fake, request(draws=MAX_DRAWS))
    assert (
        len({answer.text for answer in reply.answers}) == MAX_DRAWS == fake.capabilities.max_draws
    )
    assert same(reply.answers[0], ask(fake, request()).answers[0])
    counted = [answer.completion_tokens or 0 for answer in reply.answers]
    assert reply.usage.completion_tokens == sum(counted)
    assert len(set(counted)) > 1


def test_mean_length_is_the_configured_one(fake: Fake) -> None:
    lengths = [ask(fake, request(seed=s)).answers[0].completion_tokens or 0 for s in range(400)]
    assert np.mean(lengths) == pytest.approx(24, abs=1.5)
    assert min(lengths) >= 12
    assert max(lengths) <= 36


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_max_tokens_cuts_the_same_answer_short(fake: Fake, limit: int) -> None:
    whole = ask(fake, request(seed=3)).answers[0]
    cut = ask(fake, request(seed=3, sampling={"max_tokens": limit})).answers[0]
    assert cut.finish_reason == "length"
    assert cut.completion_tokens == limit
    assert whole.text.startswith(cut.text)


def test_max_tokens_that_just_suffices_is_no_cut(fake: Fake) -> None:
    whole = ask(fake, request(seed=3)).answers[0]
    exact = ask(fake, request(seed=3, sampling={"max_tokens": whole.completion_tokens})).answers[0]
    assert (exact.text, exact.finish_reason) == (whole.text, "stop")


def test_stop_ends_the_text_before_it_and_the_tokens_with_it(fake: Fake) -> None:
    whole = ask(fake, request(seed=4)).answers[0]
    word = whole.text.split()[3]
    asked = request(seed=4, top_logprobs=3, sampling={"stop": ["never there", word]})
    cut = ask(fake, asked).answers[0]
    assert cut.text == whole.text[: whole.text.index(word)]
    assert cut.finish_reason == "stop"
    assert cut.trace is not None
    assert cut.trace.ids is not None
    assert cut.trace.sampled_logprob is not None
    assert fake.decode(cut.trace.ids).endswith(word)
    assert len(cut.trace.ids) == cut.completion_tokens == len(cut.trace.sampled_logprob)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**31 - 1), top=st.integers(1, 1200))
def test_every_position_has_a_proper_distribution(seed: int, top: int) -> None:
    trace = ask(SMALL, request(seed=seed, top_logprobs=top)).answers[0].trace
    assert trace is not None
    ids, counts, ranks = trace.ids, trace.topk_counts, trace.sampled_rank
    topk_ids, topk_logprobs = trace.topk_ids, trace.topk_logprobs
    assert ids is not None
    assert counts is not None
    assert ranks is not None
    assert trace.sampled_logprob is not None
    assert topk_ids is not None
    assert topk_logprobs is not None
    k = min(top, 300)
    assert counts.tolist() == [k] * len(ids)
    rows, logprobs = topk_ids.reshape(-1, k), topk_logprobs.reshape(-1, k)
    assert (np.diff(logprobs, axis=1) <= 0).all()
    assert (np.exp(logprobs.astype(np.float64)).sum(axis=1) <= 1).all()
    assert ((rows >= 0) & (rows < 300)).all()
    for row, logprob, token, rank, sampled in zip(
        rows, logprobs, ids, ranks, trace.sampled_logprob, strict=True
    ):
        assert len(set(row.tolist())) == k
        if rank == 0:
            assert token not in row
            assert sampled <= logprob[-1]
        else:
            assert row[rank - 1] == token
            assert logprob[rank - 1] == sampled


SMALL = opened(vocabulary=300, answer_tokens=12)


def test_the_whole_vocabulary_holds_all_the_mass() -> None:
    trace = ask(SMALL, request(seed=1, top_logprobs=300)).answers[0].trace
    assert trace is not None
    assert trace.topk_logprobs is not None
    mass = np.exp(trace.topk_logprobs.astype(np.float64)).reshape(-1, 300).sum(axis=1)
    assert mass == pytest.approx(1.0, abs=1e-5)


def test_some_sampled_tokens_lie_outside_the_top(fake: Fake) -> None:
    ranks: list[int] = []
    for seed in range(100):
        trace = ask(fake, request(seed=seed, top_logprobs=5)).answers[0].trace
        assert trace is not None
        assert trace.sampled_rank is not None
        ranks += trace.sampled_rank.tolist()
    assert 0.02 < ranks.count(0) / len(ranks) < 0.4
    assert ranks.count(1) / len(ranks) > 0.3


def test_no_logprobs_unless_asked_for(fake: Fake) -> None:
    trace = ask(fake, request()).answers[0].trace
    assert trace is not None
    assert trace.topk_counts is None
    assert trace.sampled_logprob is None


def test_prompt_ids_are_as_many_as_the_prompts_tokens(fake: Fake) -> None:
    reply = ask(fake, request(prompt_token_ids=True))
    assert reply.prompt_token_ids is not None
    assert len(reply.prompt_token_ids) == reply.usage.prompt_tokens
    assert ask(fake, request()).prompt_token_ids is None


@pytest.mark.parametrize("vocabulary", [64, 65, 7919])
def test_vocabularies_of_any_size_keep_ids_and_strings_apart(vocabulary: int) -> None:
    teacher = opened(vocabulary=vocabulary, answer_tokens=1)
    pieces = [teacher.decode([token]) for token in range(vocabulary)]
    assert len(set(pieces)) == vocabulary
    trace = ask(teacher, request(top_logprobs=vocabulary)).answers[0].trace
    assert trace is not None
    assert trace.topk_ids is not None
    assert sorted(trace.topk_ids[:vocabulary].tolist()) == list(range(vocabulary))


def test_latency_is_waited_for_and_does_not_add_up() -> None:
    teacher = opened(latency_s=0.1, vocabulary=64)

    async def many() -> None:
        requests = [request(seed=seed) for seed in range(50)]
        await asyncio.gather(*[teacher.generate(r, teacher.endpoints[0]) for r in requests])

    begin = time.perf_counter()
    asyncio.run(many())
    assert 0.1 <= time.perf_counter() - begin < 1.0
