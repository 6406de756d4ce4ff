"""The loopback server's handler: what it does with one request, and the books that it keeps."""

from __future__ import annotations

import asyncio
import hashlib
import math
import re
import time
import zlib
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from tests.loopback_capacity import Slots, answer_of_length, lognormal
from tests.loopback_limits import Limits, SlidingLimits
from tests.loopback_plain import text_body
from tests.loopback_script import Record, Script
from tests.loopback_text import Drawn, Ids, answer_body, draw_answer, prompt_tokens

MARKER = re.compile(r"\[\[(once:)?([a-z0-9]+)(?::(\d+))?\]\]")
ERRORS: dict[str, tuple[int, dict[str, Any]]] = {
    "quota": (429, {"code": "insufficient_quota", "message": "You exceeded your current quota."}),
    "contextlen": (
        400,
        {"code": "context_length_exceeded", "message": "maximum context length is 8192 tokens."},
    ),
    "policy": (400, {"code": "content_policy_violation", "message": "The prompt was flagged."}),
}


class Body(msgspec.Struct):
    """What the server reads of a request; the rest is ignored."""

    model: str
    messages: list[dict[str, Any]] = []
    prompt: str | None = None
    """Of `/completions`, where `logprobs` is the k."""
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | int = False
    top_logprobs: int | None = None
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False


class Loopback:
    """The server's state and its handler.

    `die` is called with the seconds after which it is to listen again, null for never.
    """

    def __init__(self, script: Script, die: Callable[[float | None], None]) -> None:
        self.script = script
        self.records: list[Record] = []
        self._die = die
        self._limits = SlidingLimits()
        self._slots = Slots()
        self._prebuilt: dict[tuple[object, ...], tuple[bytes, int]] = {}
        self._seen: Counter[str] = Counter()
        self._in_flight = 0

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        if request.method == "GET":
            return self._books(request)
        raw = await request.content.read()
        if request.path == "/control":
            return self._control(raw)
        if not request.path.endswith("/completions"):
            return _error(404, {"message": f"unknown path {request.path}"})
        try:
            body = _as_chat(msgspec.json.decode(raw, type=Body))
        except ValueError as error:
            return _error(400, {"message": f"bad request: {error}"})
        record = self._arrive(request, body, raw)
        started = time.perf_counter()
        try:
            return await self._answer(request, body, record)
        except asyncio.CancelledError:
            record.cancelled = True
            if self.script.bill_cancelled and record.is_underway:
                self._bill(record, body, self._built(body, record)[1])
            raise
        finally:
            self._in_flight -= 1
            record.latency_s = time.perf_counter() - started

    def summary(self, since: float = 0.0, until: float = math.inf) -> dict[str, Any]:
        """Add up the log, or an interval of it, in seconds since the epoch.

        Requests and statuses are those of requests that arrived in the interval; answered and
        billed is what ended in it.
        """
        arrived = [r for r in self.records if since <= r.at < until]
        ended = [r for r in self.records if r.latency_s and since <= r.ended_at < until]
        peak = max((r.in_flight for r in arrived), default=0)
        return {
            "requests": len(arrived),
            "in_flight": self._in_flight,
            "peak_in_flight": peak,
            "cancelled": sum(r.cancelled for r in arrived),
            "statuses": Counter(str(r.status) for r in arrived),
            "faults": Counter(r.fault for r in arrived if r.fault),
            "prompts": len(self._seen),
            "most_seen": max(self._seen.values(), default=0),
            "answered": sum(r.status == 200 and r.fault != "torn" for r in ended),
            "rejected": sum(r.status == 429 for r in arrived),
            "billed_requests": sum(r.completion_tokens > 0 for r in ended),
            "charged_tokens": sum(r.charged_tokens for r in arrived),
            "prompt_tokens": sum(r.prompt_tokens for r in ended),
            "completion_tokens": sum(r.completion_tokens for r in ended),
        }

    def _books(self, request: web.BaseRequest) -> web.Response:
        path = request.path
        bounds = {name: float(value) for name, value in request.query.items()}
        if path == "/log":
            return _json(200, {"requests": self.records, "summary": self.summary()})
        if path == "/stats":
            return _json(200, self.summary(**bounds))
        if path.endswith("/models"):
            return _json(200, {"object": "list", "data": [{"id": "loopback", "object": "model"}]})
        return _error(404, {"message": f"unknown path {path}"})

    def _control(self, raw: bytes) -> web.Response:
        """Change the script from now on; `die_s` closes the port and every connection."""
        try:
            changes = msgspec.json.decode(raw, type=dict[str, Any])
            dies = "die_s" in changes
            back_after_s = changes.pop("die_s", None)
            unknown = changes.keys() - set(Script.__struct_fields__)
            if unknown:
                raise ValueError(f"no such option: {', '.join(sorted(unknown))}")
            self.script = msgspec.convert(msgspec.structs.asdict(self.script) | changes, Script)
        except ValueError as error:
            return _error(400, {"message": str(error)})
        if dies:
            self._die(back_after_s)
        return _json(200, {"at": time.time()})

    def _arrive(self, request: web.BaseRequest, body: Body, raw: bytes) -> Record:
        prompt = _last_text(body.messages)
        self._seen[prompt] += 1
        self._in_flight += 1
        record = Record(
            number=len(self.records),
            at=time.time(),
            path=request.path,
            prompt=prompt,
            seen=self._seen[prompt],
            in_flight=self._in_flight,
            draws=body.n,
            seed=body.seed,
            authorization=request.headers.get("Authorization") or request.headers.get("api-key"),
            attempt_id=request.headers.get("X-Client-Request-Id"),
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
        if (body.top_logprobs or 0) > script.max_top_logprobs:
            return self._fail(record, 400, {"message": "top_logprobs is too large"})
        if script.refuse_n and body.n > 1:
            return self._fail(record, 400, {"message": "only n = 1 is supported"})
        limited = self._limited(record, body)
        if limited is not None:
            return limited
        what, argument = self._fault(record)
        record.fault = what
        delay_ms = script.slow_ms if what == "slow" else self._latency_ms(record)
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

    def _limited(self, record: Record, body: Body) -> web.Response | None:
        """Return the 429 of a rate that is used up; charge the request where it is not."""
        longest = _limit(body) or self.script.answer_tokens
        prompted = prompt_tokens(body.messages)
        before = self._limits.charged_tokens
        wait_s = self._limits.admit(self._rates, prompted, body.n * longest)
        record.charged_tokens = self._limits.charged_tokens - before
        if wait_s is None:
            return None
        record.fault = "limit"
        response = _error(429, {"code": "rate_limit_exceeded", "message": "Rate limit reached."})
        if self.script.rate_headers:
            response.headers["Retry-After"] = str(math.ceil(wait_s))
            response.headers["retry-after-ms"] = str(math.ceil(1000 * wait_s))
        return self._status(record, response)

    @property
    def _rates(self) -> Limits:
        script = self.script
        return Limits(script.rpm, script.tpm, script.window_s, script.tpm_rule)

    def _latency_ms(self, record: Record) -> float:
        script = self.script
        key = f"{script.seed}/{record.seen}/{record.prompt}".encode()
        return lognormal(key, script.latency_ms, script.latency_sigma)

    async def _complete(
        self, request: web.BaseRequest, body: Body, record: Record
    ) -> web.StreamResponse:
        """Answer, and bill the answer before it is sent, as a provider does."""
        script = self.script
        encoded, tokens = self._built(body, record)
        if script.slots is not None:
            pace = script.tokens_per_s
            await self._slots.decode(tokens, script.slots, pace, script.collapse_above)
        self._bill(record, body, tokens)
        if record.fault == "torn":
            return await _torn(request, record, encoded)
        response = web.Response(body=encoded, content_type="application/json")
        return self._status(record, response)

    def _bill(self, record: Record, body: Body, tokens: int) -> None:
        record.prompt_tokens = prompt_tokens(body.messages)
        record.completion_tokens = tokens
        before = self._limits.charged_tokens
        self._limits.completed(self._rates, tokens)
        record.charged_tokens += self._limits.charged_tokens - before

    def _built(self, body: Body, record: Record) -> tuple[bytes, int]:
        """Return an answer's body and its billed tokens."""
        variants = self.script.variants
        if variants is None:
            key = msgspec.json.encode([body.model, body.messages, body.seed], order="sorted")
            return self._build(key, body, record)
        variant = zlib.crc32(record.prompt.encode()) % variants
        prompted = prompt_tokens(body.messages)
        asked = (body.n, _limit(body), body.logprobs, body.top_logprobs)
        as_ids = (body.prompt is None, body.return_token_ids, body.return_tokens_as_token_ids)
        shape = (variant, record.fault, prompted, *asked, *as_ids)
        if shape not in self._prebuilt:
            self._prebuilt[shape] = self._build(str(variant).encode(), body, record)
        return self._prebuilt[shape]

    def _build(self, key: bytes, body: Body, record: Record) -> tuple[bytes, int]:
        draws = min(body.n, self.script.most_choices or body.n)
        answers = [self._draw(key, draw, body, record) for draw in range(draws)]
        top = (body.top_logprobs or 0) if body.logprobs else None
        prompted = prompt_tokens(body.messages)
        ids = Ids(body.return_token_ids, body.return_tokens_as_token_ids)
        build = answer_body if body.prompt is None else text_body
        encoded = build(body.model, record.number, answers, prompted, top, ids)
        return encoded, sum(answer.tokens for answer in answers)

    def _draw(self, key: bytes, draw: int, body: Body, record: Record) -> Drawn:
        script = self.script
        if script.lengths == "uniform" or record.fault not in (None, "slow", "torn"):
            return draw_answer(key, draw, record.fault, script.answer_tokens, _limit(body))
        sigma = script.length_sigma if script.lengths == "lognormal" else 0.0
        count = lognormal(b"length" + key + draw.to_bytes(2), script.answer_tokens, sigma)
        return answer_of_length(key, draw, max(1, round(count)), _limit(body))

    def _fault(self, record: Record) -> tuple[str | None, str | None]:
        if self.script.fault is not None:
            return self.script.fault, None
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
        response.headers["x-request-id"] = f"req-{record.number}"
        if self.script.rate_headers:
            response.headers.update(self._limits.headers(self._rates))
        return response


def _as_chat(body: Body) -> Body:
    """Return a plain completion's body as that of a chat with one message."""
    if body.prompt is None:
        return body
    return msgspec.structs.replace(
        body,
        messages=[{"role": "user", "content": body.prompt}],
        logprobs=bool(body.logprobs),
        top_logprobs=int(body.logprobs),
    )


def _limit(body: Body) -> int | None:
    return body.max_completion_tokens or body.max_tokens


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
    headers = {"Content-Type": "application/json", "x-request-id": f"req-{record.number}"}
    response = web.StreamResponse(headers=headers)
    response.content_length = len(body)
    record.status = 200
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response
