"""The remote teacher against a real server on real sockets; its decoding in test_openai_wire.py."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corpusgen import errors
from corpusgen.config import OpenAIEndpoint, OpenAITeacher
from corpusgen.plugins import TEACHERS, load
from corpusgen.teachers.openai import create
from corpusgen.types import Request, Sampling
from tests.asking_openai import ask, fail, request, teacher_at
from tests.loopback import Running, Script, serving


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "curl_ca_bundle"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(Script(retry_after="7")) as running:
        yield running


def test_an_answer_comes_with_its_circumstances(server: Running) -> None:
    (reply,) = ask(teacher_at(server.base_url), request("What is rain?"))
    (answer,) = reply.answers
    assert answer.finish_reason == "stop"
    assert reply.usage.completion_tokens == len(answer.text.split()) == answer.completion_tokens
    assert reply.usage.prompt_tokens == 7
    assert reply.usage.cached_tokens == 0
    assert reply.model_revision == "m@fp_loopback"
    assert reply.request_id is not None
    assert reply.request_id.startswith("req-")
    assert (reply.http_status, answer.trace, reply.prompt_token_ids) == (200, None, None)


def test_logprobs_become_arrays_that_spell_the_text(server: Running) -> None:
    asked = [request(f"prompt {i}", top_logprobs=5, seed=i) for i in range(8)]
    for reply in ask(teacher_at(server.base_url), *asked):
        (answer,) = reply.answers
        trace = answer.trace
        assert trace is not None
        assert trace.ids is None
        assert trace.token_bytes is not None
        tokens = list(trace.token_bytes)
        assert b"".join(tokens) == answer.text.encode()
        length = len(tokens)
        assert answer.completion_tokens == length
        assert trace.topk_counts is not None
        assert trace.topk_counts.tolist() == [5] * length
        assert trace.topk_logprobs is not None
        rows = trace.topk_logprobs.reshape(length, 5)
        assert (np.diff(rows) < 0).all()
        assert trace.topk_bytes is not None
        candidates = list(trace.topk_bytes)
        assert trace.sampled_rank is not None
        assert trace.sampled_logprob is not None
        for i, rank in enumerate(trace.sampled_rank.tolist()):
            if rank:
                assert candidates[5 * i + rank - 1] == tokens[i]
                assert rows[i, rank - 1] == trace.sampled_logprob[i]
            else:
                assert trace.sampled_logprob[i] < rows[i, -1]


def test_draws_come_in_one_request(server: Running) -> None:
    before = server.stats()["requests"]
    (reply,) = ask(teacher_at(server.base_url), request("several", draws=4))
    assert len({answer.text for answer in reply.answers}) == 4
    assert server.stats()["requests"] == before + 1
    assert all(answer.completion_tokens is None for answer in reply.answers)


def test_the_body_holds_what_is_set_and_nothing_else(server: Running) -> None:
    sampling = Sampling(
        temperature=0.0, top_k=40, min_p=0.1, repetition_penalty=1.1, max_tokens=9, stop=["\n"],
        seed=4, extra_body={"top_p": 0.5, "return_token_ids": True},
    )  # fmt: skip
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    messages = [
        {"role": "system", "content": "Sei hilfreich 🙂", "name": None},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": None}]},
        {"role": "user", "content": "body", "tool_calls": None},
    ]
    full = Request(
        messages=messages, sampling=sampling, seed=11, draws=2, top_logprobs=3, tools=tools,
        response_format={"type": "json_object"},
    )  # fmt: skip
    ask(teacher_at(server.base_url, template_args={"enable_thinking": False}), full)
    assert server.log()[-1]["body"] == {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Sei hilfreich 🙂"},
            {"role": "assistant", "tool_calls": [{"id": "1"}]},
            {"role": "user", "content": "body"},
        ],
        "temperature": 0.0,
        "top_k": 40,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "max_tokens": 9,
        "stop": ["\n"],
        "top_p": 0.5,
        "return_token_ids": True,
        "seed": 11,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 3,
        "tools": tools,
        "response_format": {"type": "json_object"},
        "chat_template_kwargs": {"enable_thinking": False},
    }
    ask(teacher_at(server.base_url), request("bare"))
    assert set(server.log()[-1]["body"]) == {"model", "messages"}


def test_extra_body_may_name_the_limit_and_not_a_stream(server: Running) -> None:
    limited = Sampling(max_tokens=9, extra_body={"max_completion_tokens": 5})
    ask(teacher_at(server.base_url), request("limits", sampling=limited))
    assert "max_tokens" not in server.log()[-1]["body"]
    stream = Sampling(extra_body={"stream": True})
    with pytest.raises(errors.Rejected, match="stream"):
        ask(teacher_at(server.base_url), request("stream", sampling=stream))


@pytest.mark.parametrize(
    ("marker", "kind"),
    [
        ("400", errors.Rejected),
        ("401", errors.AuthenticationFailed),
        ("402", errors.QuotaExhausted),
        ("403", errors.AuthenticationFailed),
        ("404", errors.ModelNotFound),
        ("405", errors.Rejected),
        ("408", errors.AnswerTimeout),
        ("409", errors.ServerFault),
        ("413", errors.Rejected),
        ("418", errors.Rejected),
        ("422", errors.Rejected),
        ("425", errors.ServerFault),
        ("429", errors.RateLimited),
        ("500", errors.ServerFault),
        ("502", errors.GatewayFault),
        ("503", errors.Overloaded),
        ("504", errors.GatewayFault),
        ("529", errors.Overloaded),
        ("307", errors.ModelNotFound),
        ("quota", errors.QuotaExhausted),
        ("contextlen", errors.ContextOverflow),
        ("policy", errors.ContentRefused),
        ("torn", errors.TornAnswer),
        ("html", errors.TornAnswer),
        ("drop", errors.ConnectionFailed),
    ],
)
def test_each_fault_has_its_class(server: Running, marker: str, kind: type) -> None:
    error = fail(teacher_at(server.base_url), f"[[{marker}]]")
    assert type(error) is kind
    assert str(error).startswith(f"endpoint 127.0.0.1:{server.port}: ")
    assert "\n" not in str(error)
    assert error.http_status == server.log()[-1]["status"]
    wait_s = 7.0 if marker in ("429", "503", "quota") else None
    assert error.retry_after_s == wait_s


def test_the_servers_sentence_is_kept_and_shortened(server: Running) -> None:
    assert "scripted fault 422" in str(fail(teacher_at(server.base_url), "[[422]]"))
    long = fail(teacher_at(server.base_url), "[[raw:500]]" + "word\x1b[31m\n" * 9000)
    assert len(str(long)) < 400
    assert "\x1b" not in str(long)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"object":"error","message":"maximum context length is 4096","code":400}', "overflow"),
        ('{"error":{"code":400,"type":"exceed_context_size_error","message":"no"}}', "overflow"),
        ('{"message":"The decoder prompt is longer than the maximum model length"}', "overflow"),
        ('{"error":{"innererror":{"code":"ResponsibleAIPolicyViolation"}}}', "refused"),
        ('{"error":{"code":"content_filter","message":"no"}}', "refused"),
        ('{"error":{"code":"billing_hard_limit_reached"}}', "quota"),
        ('{"error":{"code":"model_not_found"}}', "unknown"),
        ('{"detail":[{"msg":"field required"}]}', "rejected"),
        ('{"error":"just text"}', "rejected"),
        ("[" * 50_000, "rejected"),
        ("\x00", "rejected"),
        ("", "rejected"),
    ],
)
def test_bodies_of_a_400_are_told_apart(server: Running, body: str, kind: str) -> None:
    kinds = {
        "overflow": errors.ContextOverflow,
        "refused": errors.ContentRefused,
        "quota": errors.QuotaExhausted,
        "unknown": errors.ModelNotFound,
        "rejected": errors.Rejected,
    }
    assert type(fail(teacher_at(server.base_url), f"[[raw:400]]{body}")) is kinds[kind]


def test_a_flagged_prompt_does_not_end_the_run(server: Running) -> None:
    flagged = '[[raw:403]]{"error":{"code":403,"message":"Your input was flagged"}}'
    assert type(fail(teacher_at(server.base_url), flagged)) is errors.ContentRefused


@pytest.mark.parametrize(
    ("marker", "text", "reason"),
    [
        ("empty", "", "stop"),
        ("refuse", "I'm sorry, but I can't help with that.", "stop"),
        ("refusal", "I cannot help with that.", "stop"),
        ("tool", "", "tool_calls"),
        ("length", None, "length"),
        ("filtered", None, "content_filter"),
        ("think", None, "stop"),
    ],
)
def test_kinds_of_answers(server: Running, marker: str, text: str | None, reason: str) -> None:
    (reply,) = ask(teacher_at(server.base_url), request(f"[[{marker}]]", top_logprobs=2))
    (answer,) = reply.answers
    assert answer.finish_reason == reason
    assert answer.text == text if text is not None else answer.text
    assert (answer.tool_calls is not None) == (marker == "tool")
    if marker == "think":
        assert (answer.reasoning, answer.reasoning_tokens) == ("I think about it first.", 6)
        assert answer.trace is not None


def test_silence_ends_with_the_timeout(server: Running) -> None:
    started = time.monotonic()
    error = fail(teacher_at(server.base_url, timeout_s=0.3), "[[hang]] timeout")
    assert type(error) is errors.AnswerTimeout
    assert time.monotonic() - started < 5
    assert wait_for(lambda: server.log()[-1]["cancelled"])


def test_cancelling_closes_the_connection(server: Running) -> None:
    async def run() -> None:
        teacher = teacher_at(server.base_url)
        await teacher.open()
        asked = teacher.generate(request("[[hang]] cancel me"), teacher.endpoints[0])
        task = asyncio.create_task(asked)
        await asyncio.to_thread(
            wait_for, lambda: [r["prompt"] for r in server.log()[-1:]] == ["[[hang]] cancel me"]
        )
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(wait_for, lambda: server.log()[-1]["cancelled"])
        (reply,) = await asyncio.gather(teacher.generate(request("after"), teacher.endpoints[0]))
        assert reply.answers
        await teacher.close()

    asyncio.run(run())


def wait_for(true: Any, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if true():
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:9", "http://nowhere.invalid/v1"])
def test_no_server_is_a_failed_connection(base_url: str) -> None:
    assert type(fail(teacher_at(base_url), "hi")) is errors.NotConnected


def test_many_requests_are_in_flight_at_once() -> None:
    with serving(Script(latency_ms=2000)) as slow:
        started = time.monotonic()
        replies = ask(teacher_at(slow.base_url), *(request(f"p{i}") for i in range(150)))
        assert time.monotonic() - started < 20
        assert slow.stats()["peak_in_flight"] == 150
    assert len({reply.answers[0].text for reply in replies}) > 100


def test_a_large_prompt_arrives_whole(server: Running) -> None:
    prompt = "é" * 1_500_000
    ask(teacher_at(server.base_url), request(prompt))
    assert server.log()[-1]["prompt"] == prompt


def test_the_key_is_sent_and_never_shown(
    server: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("THE_KEY", "sk-very-secret\n")
    teacher = teacher_at(server.base_url, endpoint={"api_key_env": "THE_KEY"})
    ask(teacher, request("hello"))
    assert server.log()[-1]["authorization"] == "Bearer sk-very-secret"
    echoed = fail(teacher, '[[raw:401]]{"error":{"message":"bad key sk-very-secret"}}')
    assert "bad key [secret]" in str(echoed)
    for site in teacher._sites.values():
        assert "sk-very" not in repr(site) + repr(site.origin)


def test_configured_headers_win(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    endpoint = {"api_key_env": "NO_KEY", "headers": {"authorization": "Basic abc"}}
    ask(teacher_at(server.base_url, endpoint=endpoint), request("headers"))
    assert server.log()[-1]["authorization"] == "Basic abc"


@pytest.mark.parametrize("tail", ["", "/", "?api-version=1", "/?a=b"])
def test_a_base_url_may_end_in_a_slash_and_a_query(server: Running, tail: str) -> None:
    ask(teacher_at(server.base_url + tail), request("path"))
    assert server.log()[-1]["path"] == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ({"base_url": "localhost:8000/v1"}, "must begin with http"),
        ({"base_url": "api.openai.com/v1"}, "must begin with http"),
        ({"base_url": "http://"}, "must begin with http"),
        ({"base_url": ""}, "must begin with http"),
        ({"base_url": "http://host:port/v1"}, "is not a URL"),
        ({"base_url": "http://[::1/v1"}, "is not a URL"),
        ({"base_url": "https://user:hunter2@host/v1"}, "user name or password"),
        ({"base_url": "ftp://user:hunter2@host/v1"}, "must begin with http"),
        ({"api_key_env": "UNSET_KEY"}, "environment variable UNSET_KEY is not set"),
        ({"api_key_env": "EMPTY_KEY"}, "environment variable EMPTY_KEY is not set"),
        ({"api_key_env": "ODD_KEY"}, "ODD_KEY does not hold a key"),
        ({"headers": {"a b": "x"}}, "is not the name of a header"),
        ({"headers": {"x-key": "hunter2\r\nx: y"}}, "no header may hold"),
    ],
)
def test_a_wrong_endpoint_is_refused_offline(
    endpoint: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMPTY_KEY", " ")
    monkeypatch.setenv("ODD_KEY", "hunter2\nhunter2")
    options = OpenAITeacher(model="m", endpoints=[OpenAIEndpoint(), OpenAIEndpoint(**endpoint)])
    with pytest.raises(errors.ConfigError, match=says) as caught:
        create("teachers.big", options)
    assert str(caught.value).startswith("teachers.big.endpoints[1].")
    assert "hunter2" not in str(caught.value)


def test_endpoints_have_unique_names() -> None:
    urls = ["http://a:1/v1", "http://a:1/v2", "https://b/v1", "http://a:1/v3"]
    places = [OpenAIEndpoint(base_url=url, max_concurrency=3) for url in urls]
    places.append(OpenAIEndpoint(name="b"))
    teacher = load(TEACHERS, "openai")("x", OpenAITeacher(model="m", endpoints=places))
    names = [endpoint.name for endpoint in teacher.endpoints]
    assert names == ["a:1", "a:1-2", "b", "a:1-3", "b-2"]
    assert teacher.endpoints[0].max_concurrency == 3


def test_capabilities_and_identity() -> None:
    place = [OpenAIEndpoint()]
    teacher = create("t", OpenAITeacher(model="m", revision="r", endpoints=place))
    assert (teacher.identity.model, teacher.identity.revision) == ("m", "r")
    assert teacher.capabilities.max_top_logprobs == 20
    assert teacher_at("http://localhost").capabilities.max_top_logprobs is None
    told = teacher_at("http://localhost", max_top_logprobs=5)
    assert told.capabilities.max_top_logprobs == 5
    assert teacher.tokenizer is None


def test_the_environments_proxy_is_used(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"127.0.0.1:{server.port}")
    ask(teacher_at("http://far.invalid/v1"), request("through the proxy"))
    assert server.log()[-1]["prompt"] == "through the proxy"
    monkeypatch.setenv("no_proxy", "far.invalid")
    assert type(fail(teacher_at("http://far.invalid/v1"), "x")) is errors.NotConnected
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", "socks5://user:hunter2@127.0.0.1:1")
    refused = fail(teacher_at("http://far.invalid/v1"), "x")
    assert type(refused) is errors.TeacherBroken
    assert "hunter2" not in str(refused)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
def test_a_private_authority_is_trusted_by_name(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "2", "-subj", "/CN=loopback", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    with serving(tls=tls) as secure:
        base_url = secure.base_url
        refused = fail(teacher_at(base_url), "hi")
        assert type(refused) is errors.TeacherBroken
        assert "ca_file" in str(refused)
        (reply,) = ask(teacher_at(base_url, ca_file=str(certificate)), request("hi"))
        assert reply.answers[0].text


@pytest.mark.parametrize("content", [None, b"", b"not a certificate"])
def test_a_wrong_ca_file_is_refused_offline(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.ConfigError, match=r"teacher\.ca_file: .*ca\.pem cannot be read"):
        teacher_at("https://localhost/v1", ca_file=str(path))


def test_making_a_teacher_imports_no_client() -> None:
    program = (
        "import sys, corpusgen.teachers.openai\n"
        "assert not {'aiohttp', 'openai', 'httpx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_closing_what_was_not_opened_is_harmless() -> None:
    asyncio.run(teacher_at("http://localhost").close())
