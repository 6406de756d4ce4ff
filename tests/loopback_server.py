"""The loopback server's handler: what it does with one request, and the books that it keeps."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import Counter
from typing import Any

import msgspec
from aiohttp import web

from tests.loopback_text import answer_body, draw_answer, prompt_tokens

MARKER = re.compile(r"\[\[(once:)?([a-z0-9]+)(?::(\d+))?\]\]")
ERRORS: dict[str, tuple[int, dict[str, Any]]] = {
    "quota": (429, {"code": "insufficient_quota", "message": "You exceeded your current quota."}),
    "contextlen": (
        400,
        {"code": "context_length_exceeded", "message": "maximum context length is 8192 tokens."},
    ),
    "policy": (400, {"code": "content_policy_violation", "message": "The prompt was flagged."}),
}


class Script(msgspec.Struct, frozen=True):
    """How the server behaves where a prompt has no marker."""

    latency_ms: float = 0.0
    slow_ms: float = 2000.0
    answer_tokens: int = 24
    """Mean tokens an answer; `max_tokens` cuts it."""
    shares: dict[str, float] = {}
    """Share of the requests by fault."""
    seed: int = 0
    retry_after: str | None = None
    """The value of the Retry-After header of 429 and 503."""
    capacity: int | None = None
    """Requests in flight above which it answers 429."""
    api_key: str | None = None
    """Where set, requests without it are answered with 401."""
    max_top_logprobs: int = 20
    keep_bodies: bool = True
    """Whether the log holds each request's body."""


class Body(msgspec.Struct):
    """What the server reads of a request; the rest is ignored."""

    model: str
    messages: list[dict[str, Any]]
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0


class Record(msgspec.Struct):
    """One request as the server saw it."""

    number: int
    at: float
    path: str
    prompt: str
    seen: int
    """How often this prompt had come, this time included."""
    in_flight: int
    """Requests in flight, this one included."""
    draws: int
    seed: int | None
    authorization: str | None
    body: msgspec.Raw | None
    fault: str | None = None
    status: int | None = None
    """Null: no status was sent, or the client left first."""
    cancelled: bool = False
    prompt_tokens: int = 0
    """Billed; 0 where nothing is. A torn answer is billed, an error is not."""
    completion_tokens: int = 0
    latency_s: float = 0.0


class Loopback:
    """The server's state and its handler."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.records: list[Record] = []
        self._seen: Counter[str] = Counter()
        self._in_flight = 0
        self._peak = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        if request.method == "GET":
            return self._books(request.path)
        raw = await request.content.read()
        if not request.path.endswith("/chat/completions"):
            return _error(404, {"message": f"unknown path {request.path}"})
        try:
            body = msgspec.json.decode(raw, type=Body)
        except ValueError as error:
            return _error(400, {"message": f"bad request: {error}"})
        record = self._arrive(request, body, raw)
        started = time.perf_counter()
        try:
            return await self._answer(request, body, record)
        except asyncio.CancelledError:
            record.cancelled = True
            raise
        finally:
            self._in_flight -= 1
            record.latency_s = time.perf_counter() - started

    def summary(self) -> dict[str, Any]:
        """Add up the log."""
        records = self.records
        return {
            "requests": len(records),
            "in_flight": self._in_flight,
            "peak_in_flight": self._peak,
            "cancelled": sum(r.cancelled for r in records),
            "statuses": Counter(str(r.status) for r in records),
            "faults": Counter(r.fault for r in records if r.fault),
            "prompts": len(self._seen),
            "most_seen": max(self._seen.values(), default=0),
            "billed_requests": sum(r.completion_tokens > 0 for r in records),
            "prompt_tokens": sum(r.prompt_tokens for r in records),
            "completion_tokens": sum(r.completion_tokens for r in records),
        }

    def _books(self, path: str) -> web.Response:
        if path == "/log":
            return _json(200, {"requests": self.records, "summary": self.summary()})
        if path == "/stats":
            return _json(200, self.summary())
        if path.endswith("/models"):
            return _json(200, {"object": "list", "data": [{"id": "loopback", "object": "model"}]})
        return _error(404, {"message": f"unknown path {path}"})

    def _arrive(self, request: web.BaseRequest, body: Body, raw: bytes) -> Record:
        prompt = _last_text(body.messages)
        self._seen[prompt] += 1
        self._in_flight += 1
        self._peak = max(self._peak, self._in_flight)
        record = Record(
            number=len(self.records),
            at=time.time(),
            path=request.path,
            prompt=prompt,
            seen=self._seen[prompt],
            in_flight=self._in_flight,
            draws=body.n,
            seed=body.seed,
            authorization=request.headers.get("Authorization"),
            body=msgspec.Raw(raw) if self.script.keep_bodies else None,
        )
        self.records.append(record)
        return record

    async def _answer(
        self, request: web.BaseRequest, body: Body, record: Record
    ) -> web.StreamResponse:
        script = self.script
        if script.api_key is not None and record.authorization != f"Bearer {script.api_key}":
            return self._fail(record, 401, {"code": "invalid_api_key", "message": "No such key."})
        if script.capacity is not None and self._in_flight > script.capacity:
            return self._fail(record, 429, {"message": "too many requests in flight"})
        if body.top_logprobs > script.max_top_logprobs:
            return self._fail(record, 400, {"message": "top_logprobs is too large"})
        what, argument = self._fault(record)
        record.fault = what
        delay_ms = script.slow_ms if what == "slow" else script.latency_ms
        if delay_ms:
            await asyncio.sleep(delay_ms / 1000)
        if what == "hang":
            await asyncio.Event().wait()
        if what == "drop":
            return _dropped(request)
        if what == "raw":
            verbatim = record.prompt.partition("]]")[2].encode()
            return self._status(record, web.Response(body=verbatim, status=int(argument or 200)))
        if what == "html":
            page = web.Response(text="<html><body>Sign in</body></html>", content_type="text/html")
            return self._status(record, page)
        if what in ERRORS:
            return self._fail(record, *ERRORS[what])
        if what is not None and what.isdigit():
            return self._fail(record, int(what), {"message": f"scripted fault {what}"})
        return await self._complete(request, body, record)

    async def _complete(
        self, request: web.BaseRequest, body: Body, record: Record
    ) -> web.StreamResponse:
        """Answer, and bill the answer before it is sent, as a provider does."""
        limit = body.max_completion_tokens or body.max_tokens
        key = msgspec.json.encode([body.model, body.messages, body.seed], order="sorted")
        answers = [
            draw_answer(key, i, record.fault, self.script.answer_tokens, limit)
            for i in range(body.n)
        ]
        record.prompt_tokens = prompt_tokens(body.messages)
        record.completion_tokens = sum(answer.tokens for answer in answers)
        top = body.top_logprobs if body.logprobs else None
        encoded = answer_body(body.model, record.number, answers, record.prompt_tokens, top)
        if record.fault == "torn":
            return await _torn(request, record, encoded)
        response = web.Response(body=encoded, content_type="application/json")
        response.headers["x-request-id"] = f"req-{record.number}"
        return self._status(record, response)

    def _fault(self, record: Record) -> tuple[str | None, str | None]:
        marker = MARKER.search(record.prompt)
        if marker is not None:
            once, what, argument = marker.groups()
            return (None, None) if once and record.seen > 1 else (what, argument)
        if not self.script.shares:
            return None, None
        digest = hashlib.blake2b(f"{self.script.seed}/{record.seen}/{record.prompt}".encode())
        point = int.from_bytes(digest.digest()[:8]) / 2**64
        for what, share in self.script.shares.items():
            point -= share
            if point < 0:
                return what, None
        return None, None

    def _fail(self, record: Record, status: int, error: dict[str, Any]) -> web.Response:
        response = _error(status, error)
        if status in (429, 503) and self.script.retry_after is not None:
            response.headers["Retry-After"] = self.script.retry_after
        return self._status(record, response)

    def _status(self, record: Record, response: web.Response) -> web.Response:
        record.status = response.status
        return response


def _last_text(messages: list[dict[str, Any]]) -> str:
    content = messages[-1].get("content") if messages else ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return str(content or "")


def _json(status: int, content: Any) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(content), status=status, content_type="application/json"
    )


def _error(status: int, error: dict[str, Any]) -> web.Response:
    shape = {"message": "", "type": "scripted", "param": None, "code": None}
    return _json(status, {"error": shape | error})


def _dropped(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _torn(request: web.BaseRequest, record: Record, body: bytes) -> web.StreamResponse:
    """Announce the whole body, send half of it, and close the connection."""
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    response.content_length = len(body)
    record.status = 200
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
