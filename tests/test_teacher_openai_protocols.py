"""What the remote teacher sends and reads in each style: Azure, base models, vLLM's token ids."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from corpusgen import errors
from corpusgen.config import LlamaCppTeacher, OpenAIEndpoint, OpenAITeacher
from corpusgen.teachers import llama_cpp, llama_cpp_server
from corpusgen.teachers.openai import create
from corpusgen.types import Reply, Request, Sampling, TokenTrace
from tests.asking_openai import ask, request, teacher_at
from tests.loopback import Running, Script, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def body(server: Running) -> dict[str, Any]:
    found: dict[str, Any] = server.log()[-1]["body"]
    return found


def trace_of(reply: Reply) -> TokenTrace:
    trace = reply.answers[0].trace
    assert trace is not None
    return trace


# Plain completions


def test_a_base_model_is_asked_with_plain_text(server: Running) -> None:
    teacher = teacher_at(server.base_url, protocol="completions")
    sampling = Sampling(max_tokens=9, temperature=0.5, stop=["\n"])
    parts = [{"type": "text", "text": "Once "}, {"type": "text", "text": "upon"}]
    asked = [
        request("Once upon a time", sampling=sampling, seed=3, draws=2, top_logprobs=4),
        Request(messages=[{"role": "user", "content": parts}], sampling=Sampling()),
    ]
    (reply, _) = [ask(teacher, one)[0] for one in asked]
    first, second = (row["body"] for row in server.log()[-2:])
    assert first == {
        "model": "m",
        "prompt": "Once upon a time",
        "temperature": 0.5,
        "stop": ["\n"],
        "max_tokens": 9,
        "n": 2,
        "seed": 3,
        "logprobs": 4,
    }
    assert second == {"model": "m", "prompt": "Once upon"}
    assert server.log()[-1]["path"] == "/v1/completions"
    assert len(reply.answers) == 2
    trace = trace_of(reply)
    assert trace.token_bytes is not None
    assert b"".join(trace.token_bytes).decode() == reply.answers[0].text
    # One fewer where texts leave open whether the sampled token is the k-th: see test_openai_wire.
    assert trace.topk_counts is not None
    assert set(trace.topk_counts.tolist()) <= {3, 4}


def test_both_protocols_give_the_same_distributions(server: Running) -> None:
    asked = request("both protocols", top_logprobs=3)
    chat, plain = (
        trace_of(ask(teacher_at(server.base_url, protocol=p, return_token_ids=True), asked)[0])
        for p in ("chat", "completions")
    )
    for name in ("ids", "sampled_logprob", "topk_counts", "topk_ids", "topk_logprobs"):
        assert getattr(chat, name).tolist() == getattr(plain, name).tolist()
    assert chat.sampled_rank is not None
    assert 3 in chat.sampled_rank.tolist()  # the last of the k, which vLLM sends first
    assert plain.sampled_rank is not None
    assert chat.sampled_rank.tolist() == plain.sampled_rank.tolist()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ([{"role": "system", "content": "s"}, {"role": "user", "content": "u"}], "system message"),
        ([{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}], "2 messages"),
        ([{"role": "assistant", "content": "a"}], "role assistant"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "only text"),
        ([{"role": "user", "content": None}], "only text"),
        ([], "0 messages"),
    ],
)
def test_a_conversation_is_no_plain_text(asked: list[dict[str, Any]], says: str) -> None:
    teacher = teacher_at("http://127.0.0.1:9/v1", protocol="completions")
    with pytest.raises(errors.Rejected, match=says):
        ask(teacher, Request(messages=asked, sampling=Sampling()))
    with pytest.raises(errors.Rejected, match="tools"):
        ask(teacher, request("u", tools=[{"type": "function"}]))


def test_a_base_model_is_known_as_one() -> None:
    place = [OpenAIEndpoint()]
    plain = create("t", OpenAITeacher(model="m", endpoints=place, protocol="completions"))
    chat = create("t", OpenAITeacher(model="m", endpoints=place))
    assert plain.identity != chat.identity
    assert msgspec.to_builtins(chat.identity) == {"model": "m"}
    assert (plain.capabilities.tools, plain.capabilities.max_top_logprobs) == (False, 5)
    templated = OpenAITeacher(
        model="m", endpoints=place, protocol="completions", template_args={"a": 1}
    )
    with pytest.raises(errors.ConfigError, match=r"t\.template_args: a chat template"):
        create("t", templated)


# Token ids


@pytest.mark.parametrize("protocol", ["chat", "completions"])
def test_token_ids_come_for_everything_that_is_asked(server: Running, protocol: str) -> None:
    teacher = teacher_at(server.base_url, protocol=protocol, return_token_ids=True)
    (reply,) = ask(teacher, request("ids", top_logprobs=3, prompt_token_ids=True))
    assert body(server)["return_token_ids"] is True
    assert body(server)["return_tokens_as_token_ids"] is True
    trace = trace_of(reply)
    assert trace.ids is not None
    assert trace.topk_ids is not None
    assert (trace.token_bytes, trace.topk_bytes) == (None, None)
    assert len(trace.topk_ids) == 3 * len(trace.ids)
    assert reply.prompt_token_ids is not None
    assert len(reply.prompt_token_ids) == reply.usage.prompt_tokens
    ask(teacher, request("no logprobs"))
    assert "return_tokens_as_token_ids" not in body(server)


# Reasoning, draws, bodies


def test_reasoning_is_split_off_on_request(server: Running) -> None:
    answer = {"message": {"content": "<think>hm</think>yes"}, "finish_reason": "stop"}
    asked = request("[[raw]]" + msgspec.json.encode({"choices": [answer]}).decode())
    (reply,) = ask(teacher_at(server.base_url, reasoning_tag="think"), asked)
    assert (reply.answers[0].reasoning, reply.answers[0].text) == ("hm", "yes")
    (reply,) = ask(teacher_at(server.base_url), asked)
    assert reply.answers[0].reasoning is None


def test_a_schema_and_tools_go_through(server: Running) -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    ask(teacher_at(server.base_url), request("x", response_format=schema, tools=tools))
    assert body(server)["response_format"] == schema
    assert body(server)["tools"] == tools


def test_an_endpoints_own_keys_are_merged_before_the_samplings(server: Running) -> None:
    own = {"model": "org/m", "provider": {"only": ["x"]}, "priority": 1}
    teacher = teacher_at(server.base_url, endpoint={"extra_body": own})
    ask(teacher, request("x", sampling=Sampling(extra_body={"priority": 2})))
    sent = body(server)
    assert (sent["model"], sent["provider"], sent["priority"]) == ("org/m", {"only": ["x"]}, 2)


@pytest.mark.parametrize("key", ["max_tokens", "temperature", "n", "messages", "stream", "tools"])
def test_an_endpoint_does_not_change_what_is_asked(key: str) -> None:
    with pytest.raises(errors.ConfigError, match=rf"endpoints\[0\]\.extra_body\.{key}: is part"):
        teacher_at("http://localhost/v1", endpoint={"extra_body": {key: 1}})


@pytest.mark.parametrize("key", ["n", "best_of"])
def test_unseen_answers_are_not_paid_for(key: str) -> None:
    asked = request("x", sampling=Sampling(extra_body={key: 4}))
    with pytest.raises(errors.Rejected, match=key):
        ask(teacher_at("http://127.0.0.1:9/v1"), asked)


def test_limits_and_draws_are_those_of_the_configuration() -> None:
    limits = {"rpm": 60, "tpm": 1000, "rpd": 5, "tpd": 9, "weight": 2.5, "max_concurrency": 3}
    teacher = teacher_at("http://localhost/v1", endpoint=limits, draws_per_request=4)
    (endpoint,) = teacher.endpoints
    assert {name: getattr(endpoint, name) for name in limits} == limits
    assert endpoint.probed
    assert teacher.capabilities.max_draws == 4


@pytest.mark.parametrize(
    ("endpoint", "counts"),
    [
        ({}, "max_tokens"),
        ({"base_url": "https://n.openai.azure.com/openai/v1"}, "max_tokens"),
        ({"base_url": "http://localhost/v1"}, "used"),
        ({"base_url": "http://localhost/v1", "tpm_counts": "max_tokens"}, "max_tokens"),
        ({"tpm_counts": "used"}, "used"),
    ],
)
def test_what_a_tokens_limit_counts_is_known_of_some_hosts(
    endpoint: dict[str, Any], counts: str
) -> None:
    teacher = create("t", OpenAITeacher(model="m", endpoints=[OpenAIEndpoint(**endpoint)]))
    assert teacher.endpoints[0].tpm_counts == counts


# Rate headers


def test_rate_headers_come_with_answers_and_with_errors() -> None:
    with serving(Script(rpm=2, tpm=100_000, rate_headers=True)) as limited:
        teacher = teacher_at(limited.base_url)
        (first,) = ask(teacher, request("one"))
        assert first.rate is not None
        assert (first.rate.requests_limit, first.rate.requests_remaining) == (2, 1)
        assert first.rate.tokens_limit == 100_000
        ask(teacher, request("two"))
        with pytest.raises(errors.RateLimited) as caught:
            ask(teacher, request("three"))
        assert caught.value.rate is not None
        assert caught.value.rate.requests_remaining == 0
        assert caught.value.retry_after_s is not None
        assert 0 < caught.value.retry_after_s <= 60


def test_a_torn_answers_headers_count_as_well() -> None:
    with serving(Script(rpm=9, rate_headers=True)) as limited:
        with pytest.raises(errors.TornAnswer) as caught:
            ask(teacher_at(limited.base_url), request("[[html]]"))
        assert caught.value.rate is not None
        assert caught.value.rate.requests_remaining == 8


# Azure


def azure(base_url: str, **keys: Any) -> dict[str, Any]:
    return {
        "base_url": base_url,
        "style": "azure",
        "deployment": "my dep/1",
        "api_version": "2024-10-21",
        **keys,
    }


def azure_teacher(endpoint: dict[str, Any], **keys: Any) -> Any:
    place = OpenAIEndpoint(**endpoint)
    return create("teacher", OpenAITeacher(model="gpt-4o", endpoints=[place], **keys))


@pytest.mark.parametrize("tail", ["", "/", "/openai", "/openai/"])
def test_azure_has_its_own_paths_and_key(
    server: Running, tail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_KEY", "secret-azure")
    teacher = azure_teacher(azure(server.root + tail, api_key_env="AZURE_KEY"))
    ask(teacher, request("hi", sampling=Sampling(max_tokens=5)))
    seen = server.log()[-1]
    assert seen["path"] == "/openai/deployments/my dep/1/chat/completions"
    assert seen["authorization"] == "secret-azure"  # as it stands: the header api-key
    assert seen["body"]["max_completion_tokens"] == 5
    url = teacher.preview(request("hi"))["url"]
    assert url.endswith("/openai/deployments/my%20dep%2F1/chat/completions?api-version=2024-10-21")


def test_azures_older_versions_know_the_older_key() -> None:
    old = azure_teacher(azure("https://n.openai.azure.com", api_version="2024-06-01"))
    sent = bytes(old.preview(request("x", sampling=Sampling(max_tokens=5)))["body"])
    assert b'"max_tokens"' in sent
    new = teacher_at("https://n.openai.azure.com/openai/v1")
    sent = bytes(new.preview(request("x", sampling=Sampling(max_tokens=5)))["body"])
    assert b'"max_completion_tokens"' in sent


def test_azures_deployment_is_the_model_by_default() -> None:
    endpoint = azure("https://n.openai.azure.com?a=b", deployment=None)
    url = azure_teacher(endpoint, protocol="completions").preview(request("x"))["url"]
    assert url == (
        "https://n.openai.azure.com/openai/deployments/gpt-4o/completions"
        "?a=b&api-version=2024-10-21"
    )


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        (azure("https://n.openai.azure.com", api_version=None), r"api_version: is missing"),
        (azure("https://api.openai.com/v1"), r"base_url: is not Azure's"),
        (azure("https://n.openai.azure.com/openai/v1"), r"base_url: below /openai/v1 Azure speaks"),
        (azure("https://n.azure.com/openai/deployments/x"), r"base_url: holds a deployment"),
        (azure("n.openai.azure.com"), r"Write it like https://NAME"),
        ({"deployment": "x"}, r"deployment: is only for Azure"),
        ({"api_version": "x"}, r"api_version: is only for Azure"),
    ],
)
def test_a_wrong_azure_endpoint_is_refused_offline(endpoint: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.ConfigError, match=says) as caught:
        azure_teacher(endpoint)
    assert str(caught.value).startswith("teacher.endpoints[0].")


# A real server of another kind


@pytest.mark.llama
def test_llama_cpps_server_answers_plain_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(max_tokens=6, temperature=0.0)
    asked = request("The capital of France is", sampling=sampling, top_logprobs=3)

    async def run() -> Reply:
        settings = llama_cpp.create("teacher", LlamaCppTeacher(threads=1))._settings()
        running = await llama_cpp_server.launch(settings)
        try:
            monkeypatch.setenv("LLAMA_KEY", running.key)
            address = await running.ready()
            place = {"api_key_env": "LLAMA_KEY"}
            teacher = teacher_at(f"{address}/v1", endpoint=place, protocol="completions")
            await teacher.open()
            reply: Reply = await teacher.generate(asked, teacher.endpoints[0])
            await teacher.close()
            return reply
        finally:
            await running.stop()

    reply = asyncio.run(run())
    trace = trace_of(reply)
    assert "Paris" in reply.answers[0].text
    assert trace.ids is not None
    assert trace.topk_counts is not None
    assert len(trace.ids) == reply.usage.completion_tokens == 6
    assert trace.topk_counts.tolist() == [3] * 6
