"""The batch teacher against a real server: what it sends, how it reads results, how it fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from corpusgen import errors
from corpusgen.config import OpenAIBatchTeacher, OpenAIEndpoint, OpenAITeacher
from corpusgen.plugins import TEACHERS, load
from corpusgen.teachers.interface import Batch, BatchTeacher, Label
from corpusgen.teachers.openai_batch import RemoteBatchTeacher, create
from corpusgen.types import Reply, Request, Sampling
from tests.loopback_batch import BatchScript, Running, serving

LABEL = Label("c" * 32, "s" * 32)


@pytest.fixture
def server() -> Iterator[Running]:
    with serving() as running:
        yield running


def teacher_at(base_url: str, *, endpoint: dict[str, Any] | None = None, **keys: Any) -> Any:
    place = OpenAIEndpoint(base_url=base_url, **(endpoint or {}))
    return create("teacher", OpenAIBatchTeacher(model="m", endpoints=[place], **keys))


def request(prompt: str = "q", **keys: Any) -> Request:
    return Request([{"role": "user", "content": prompt}], keys.pop("sampling", Sampling()), **keys)


def using(teacher: RemoteBatchTeacher, work: Callable[[RemoteBatchTeacher], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        await teacher.open()
        try:
            return await work(teacher)
        finally:
            await teacher.close()

    return asyncio.run(run())


def line(**keys: Any) -> bytes:
    return msgspec.json.encode(
        {"id": "b", "custom_id": "i", "response": None, "error": None} | keys
    )


def answered(status: int, body: Any, **keys: Any) -> bytes:
    return line(response={"status_code": status, "request_id": "req-1", "body": body}, **keys)


COMPLETION = {
    "model": "m-1",
    "choices": [{"index": 0, "message": {"content": "hello"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 1},
}


def read(content: bytes, **keys: Any) -> Reply:
    teacher = teacher_at("http://localhost/v1", **keys)
    reply: Reply = teacher.decode_item(content, request(), teacher.endpoints[0])
    return reply


def refusal(content: bytes) -> errors.TeacherError:
    with pytest.raises(errors.TeacherError) as caught:
        read(content)
    return caught.value


# Offline


def test_it_is_found_by_its_kind_and_is_a_batch_teacher() -> None:
    options = OpenAIBatchTeacher(model="m", endpoints=[OpenAIEndpoint(base_url="http://h/v1")])
    teacher = load(TEACHERS, "openai_batch")("teacher", options)
    assert isinstance(teacher, BatchTeacher)
    online = OpenAITeacher(model="m", endpoints=[OpenAIEndpoint(base_url="http://h/v1")])
    assert not isinstance(load(TEACHERS, "openai")("teacher", online), BatchTeacher)


def test_the_same_model_has_the_same_identity_as_online() -> None:
    teacher = teacher_at("http://h/v1", revision="r", template_args={"a": 1})
    assert msgspec.to_builtins(teacher.identity) == {
        "model": "m",
        "revision": "r",
        "template_args": {"a": 1},
    }


def test_a_key_that_is_not_set_is_said_before_anything_is_sent() -> None:
    with pytest.raises(errors.ConfigError, match="the environment variable NO_SUCH_KEY is not set"):
        teacher_at("http://h/v1", endpoint={"api_key_env": "NO_SUCH_KEY"})


def test_it_refuses_single_requests(server: Running) -> None:
    async def ask(teacher: RemoteBatchTeacher) -> None:
        await teacher.generate(request(), teacher.endpoints[0])

    with pytest.raises(errors.TeacherBroken, match="answers batches only"):
        using(teacher_at(server.base_url), ask)


def test_a_line_holds_what_a_request_asks() -> None:
    teacher = teacher_at("http://h/v1", endpoint={"extra_body": {"user": "me"}})
    asked = request(
        "q",
        sampling=Sampling(temperature=0.5, max_tokens=9, extra_body={"x": 1}),
        seed=3,
        draws=2,
        top_logprobs=4,
        tools=[{"type": "function"}],
        response_format={"type": "json_object"},
    )
    content = teacher.encode_item("item", asked, teacher.endpoints[0])
    assert content.endswith(b"\n")
    assert json.loads(content) == {
        "custom_id": "item",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "messages": [{"role": "user", "content": "q"}],
            "temperature": 0.5,
            "max_tokens": 9,
            "n": 2,
            "seed": 3,
            "logprobs": True,
            "top_logprobs": 4,
            "tools": [{"type": "function"}],
            "response_format": {"type": "json_object"},
            "user": "me",
            "x": 1,
        },
    }


def test_azure_has_its_own_paths_key_and_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_KEY", "secret-key")
    seen: list[tuple[str, str | None, str | None]] = []

    async def handle(asked: web.BaseRequest) -> web.Response:
        seen.append(
            (asked.path_qs, asked.headers.get("api-key"), asked.headers.get("Authorization"))
        )
        return web.json_response({"id": "batch_1", "status": "validating"})

    azure = {
        "style": "azure",
        "api_key_env": "AZURE_KEY",
        "api_version": "2024-10-21",
        "deployment": "mine",
    }

    async def work() -> dict[str, Any]:
        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        teacher = teacher_at(f"http://127.0.0.1:{runner.addresses[0][1]}", endpoint=azure)
        await teacher.open()
        await teacher.poll("batch_1", teacher.endpoints[0])
        await teacher.close()
        await runner.cleanup()
        encoded: dict[str, Any] = json.loads(
            teacher.encode_item("i", request(), teacher.endpoints[0])
        )
        return encoded

    encoded = asyncio.run(work())
    assert seen == [("/openai/batches/batch_1?api-version=2024-10-21", "secret-key", None)]
    assert (encoded["url"], encoded["body"]["model"]) == ("/chat/completions", "mine")


# Reading results


def test_an_answer_is_read_as_one_that_came_alone() -> None:
    reply = read(answered(200, COMPLETION))
    assert reply.answers[0].text == "hello"
    assert (reply.usage.prompt_tokens, reply.request_id, reply.http_status) == (5, "req-1", 200)
    assert reply.model_revision == "m-1"


def test_reasoning_is_split_off_on_request() -> None:
    told = {"index": 0, "message": {"content": "<think>hm</think>yes"}, "finish_reason": "stop"}
    content = answered(200, COMPLETION | {"choices": [told]})
    (answer,) = read(content, reasoning_tag="think").answers
    assert (answer.reasoning, answer.text) == ("hm", "yes")


@pytest.mark.parametrize(
    ("content", "kind", "retry"),
    [
        (answered(429, {"error": {"message": "slow down"}}), errors.RateLimited, "again"),
        (answered(500, {"error": {"message": "oops"}}), errors.ServerFault, "again"),
        (answered(400, {"error": {"message": "no"}}), errors.Rejected, "never"),
        (
            answered(429, {"error": {"message": "no", "code": "insufficient_quota"}}),
            errors.QuotaExhausted,
            "fatal",
        ),
        (answered(200, {"nothing": "here"}), errors.TornAnswer, "again"),
        (line(error={"code": "batch_expired", "message": "late"}), errors.NotRun, "again"),
        (line(error={"code": "batch_cancelled", "message": "c"}), errors.Withdrawn, "again"),
        (line(error={"code": "weird", "message": "what"}), errors.ServerFault, "again"),
        (line(error="a text"), errors.ServerFault, "again"),
        (line(), errors.TornAnswer, "again"),
        (line(response={"status_code": None, "body": {}}), errors.TornAnswer, "again"),
        (b'{"custom_id": "i", "resp', errors.TornAnswer, "again"),
        (b"[" * 100_000, errors.TornAnswer, "again"),
        (b'{"custom_id": "i", "response": 7}', errors.TornAnswer, "again"),
    ],
)
def test_what_is_no_answer_becomes_an_error(content: bytes, kind: type, retry: str) -> None:
    found = refusal(content)
    assert type(found) is kind
    assert found.retry == retry


@pytest.mark.parametrize("content", [b"", b"null", b"{", b"[]", b'{"custom_id": 3}', b"\xff\xfe"])
def test_a_line_of_nobody_is_told_apart(content: bytes) -> None:
    assert teacher_at("http://h/v1").identify(content) is None


# At the provider


def test_a_batch_goes_out_comes_back_and_leaves_nothing(server: Running, tmp_path: Path) -> None:
    async def work(teacher: RemoteBatchTeacher) -> tuple[Batch, bytes]:
        (endpoint,) = teacher.endpoints
        path = tmp_path / "requests"
        path.write_bytes(
            teacher.encode_item("a", request("x"), endpoint)
            + teacher.encode_item("b", request("[[400]]"), endpoint)
        )
        file_id = await teacher.upload(LABEL, path, endpoint)
        made = await teacher.submit(LABEL, file_id, endpoint)
        batch = await teacher.poll(made.batch_id, endpoint)
        await teacher.fetch(batch, tmp_path / "results", endpoint)
        (listed,) = await teacher.listed(LABEL.corpus_id, 0.0, endpoint)
        assert listed == batch
        assert await teacher.listed("d" * 32, 0.0, endpoint) == []
        await teacher.discard(batch, endpoint)
        await teacher.discard(batch, endpoint)
        return batch, (tmp_path / "results").read_bytes()

    batch, content = using(teacher_at(server.base_url), work)
    assert (batch.status, batch.label, batch.requests) == ("completed", LABEL, 2)
    assert (batch.completed, batch.failed) == (1, 1)
    found = [json.loads(each)["custom_id"] for each in content.splitlines() if each.strip()]
    assert found == ["a", "b"]  # answers first
    assert server.log()["files"] == []


def test_files_are_kept_on_request(server: Running, tmp_path: Path) -> None:
    async def work(teacher: RemoteBatchTeacher) -> None:
        (endpoint,) = teacher.endpoints
        path = tmp_path / "requests"
        path.write_bytes(teacher.encode_item("a", request("x"), endpoint))
        file_id = await teacher.upload(LABEL, path, endpoint)
        batch = await teacher.submit(LABEL, file_id, endpoint)
        await teacher.discard(await teacher.poll(batch.batch_id, endpoint), endpoint)

    using(teacher_at(server.base_url, delete_files=False), work)
    assert len(server.log()["files"]) == 2


def test_only_a_submissions_own_uploads_are_withdrawn(tmp_path: Path) -> None:
    with serving(BatchScript(page=2)) as server:

        async def work(teacher: RemoteBatchTeacher) -> None:
            (endpoint,) = teacher.endpoints
            path = tmp_path / "requests"
            path.write_bytes(teacher.encode_item("a", request("x"), endpoint))
            await teacher.upload(LABEL, path, endpoint)
            for i in range(5):
                await teacher.upload(Label(LABEL.corpus_id, str(i)), path, endpoint)
            await teacher.upload(LABEL, path, endpoint)
            await teacher.withdraw(LABEL, endpoint)

        using(teacher_at(server.base_url), work)
        assert len(server.log()["files"]) == 5


def test_a_batch_that_has_ended_can_be_cancelled_without_harm(
    server: Running, tmp_path: Path
) -> None:
    async def work(teacher: RemoteBatchTeacher) -> str:
        (endpoint,) = teacher.endpoints
        path = tmp_path / "requests"
        path.write_bytes(teacher.encode_item("a", request("x"), endpoint))
        file_id = await teacher.upload(LABEL, path, endpoint)
        batch = await teacher.submit(LABEL, file_id, endpoint)
        await teacher.poll(batch.batch_id, endpoint)
        return (await teacher.cancel(batch.batch_id, endpoint)).status

    assert using(teacher_at(server.base_url), work) == "completed"


def test_the_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody")
    seen: list[dict[str, str]] = []

    async def handle(asked: web.BaseRequest) -> web.Response:
        seen.append({name.lower(): value for name, value in asked.headers.items()})
        error = {"error": {"message": "Incorrect API key provided: sk-very-secret."}}
        return web.json_response(error, status=401)

    async def work() -> errors.TeacherError:
        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base_url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        keyed = teacher_at(base_url, endpoint={"api_key_env": "MY_KEY", "headers": {"X-Y": "z"}})
        keyless = teacher_at(base_url)
        caught: list[errors.TeacherError] = []
        for teacher in (keyed, keyless):
            await teacher.open()
            try:
                await teacher.poll("b", teacher.endpoints[0])
            except errors.TeacherError as error:
                caught.append(error)
            await teacher.close()
        await runner.cleanup()
        return caught[0]

    error = asyncio.run(work())
    assert isinstance(error, errors.AuthenticationFailed)
    assert "sk-very-secret" not in str(error)
    assert seen[0]["authorization"] == "Bearer sk-very-secret"
    assert seen[0]["x-y"] == "z"
    assert "authorization" not in seen[1]
    assert "openai-organization" not in seen[0]


@pytest.mark.parametrize(
    ("faults", "kind"),
    [
        (["500"], errors.ServerFault),
        (["429"], errors.RateLimited),
        (["drop"], errors.ConnectionFailed),
        (["torn"], errors.ConnectionFailed),
    ],
)
def test_a_failed_call_becomes_an_error_of_its_class(faults: list[str], kind: type) -> None:
    with serving(BatchScript(faults={"retrieve": faults})) as server:

        async def work(teacher: RemoteBatchTeacher) -> None:
            await teacher.poll("batch_0", teacher.endpoints[0])

        with pytest.raises(errors.TeacherError) as caught:
            using(teacher_at(server.base_url), work)
    assert type(caught.value) is kind
    if kind is errors.RateLimited:
        assert caught.value.retry_after_s == 0.05


def test_nobody_there_is_not_connected() -> None:
    async def work(teacher: RemoteBatchTeacher) -> None:
        await teacher.poll("batch_0", teacher.endpoints[0])

    with pytest.raises(errors.NotConnected, match="no connection"):
        using(teacher_at("http://127.0.0.1:1/v1"), work)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"id": null}', b"7"])
def test_an_answer_that_is_no_batch_is_torn(body: bytes) -> None:
    async def handle(asked: web.BaseRequest) -> web.Response:
        return web.Response(body=body, content_type="application/json")

    async def work() -> None:
        runner = web.ServerRunner(web.Server(handle))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        teacher = teacher_at(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        await teacher.open()
        try:
            await teacher.poll("b", teacher.endpoints[0])
        finally:
            await teacher.close()
            await runner.cleanup()

    with pytest.raises(errors.TornAnswer):
        asyncio.run(work())
