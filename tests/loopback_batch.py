"""A server on this machine that speaks OpenAI's files and batches, and fails on command.

It stands in for a paid Batch API as OpenAI documents it: upload, create, retrieve, list with
metadata, cancel, the content of output and error files, every status, and limits that are truly
enforced. Its books say what it would have billed; they outlive any client.

    with serving(BatchScript(seconds=0.2)) as server: ...     # a thread of this process
    with spawned("--seconds", "0.2") as server: ...           # a process of its own

A batch takes `seconds`, or lasts until `release` where `hold` is set. A marker in a prompt decides
what its line of the results is: [[400]] [[429]] [[500]] an error response, [[quota]] one of an
empty account, [[missing]] no line, [[torn]] half a line, [[twice]] two lines, [[foreign]] a line of
somebody else beside it, [[few]] one choice less than asked, [[refused]] a batch that is refused for
this line; [[once:X]] does so only when the prompt is run, or validated, for the first time.

`faults` are used up in their order. By call (`upload`, `create`, `retrieve`, `list`, `content`,
`delete`, `files`): `500`, `429`, `drop`, `gone` (404) without doing it, `done-500` and `done-drop`
after doing it, `torn` for half a body; `kill` and `done-kill` end the process `kill_pid` first. For
`batch`, one for each batch that is made: `expire`, `model`, `quota`, or `ok`. GET /log returns the
books, POST /control changes the script.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from tests.loopback_text import Ids, answer_body, draw_answer, prompt_tokens

MARKER = re.compile(r"\[\[(once:)?([a-z0-9]+)\]\]")
ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")


class BatchScript(msgspec.Struct):
    """How the server behaves."""

    seconds: float = 0.0
    """From a batch's creation to its end."""
    hold: bool = False
    """Whether batches stay in progress until they are released."""
    cancelling: bool = False
    """Whether batches that somebody cancels take until this is unset to end."""
    max_requests: int = 50_000
    max_bytes: int = 200_000_000
    enqueued_tokens: int | None = None
    """Prompt tokens of all unfinished batches together."""
    list_lag_s: float = 0.0
    """How long a new batch is missing from the list."""
    page: int = 100
    """Entries of a list's page, at most."""
    api_key: str | None = None
    kill_pid: int | None = None
    answer_tokens: int = 24
    faults: dict[str, list[str]] = {}


class Billed(msgspec.Struct):
    """One request that was run and answered."""

    batch: str
    custom_id: str
    prompt: str
    draws: int
    prompt_tokens: int
    completion_tokens: int


class Provider:
    """The server's state and its handler."""

    def __init__(self, script: BatchScript) -> None:
        self.script = script
        self.files: dict[str, dict[str, Any]] = {}
        self.contents: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.requests: dict[str, list[dict[str, Any]]] = {}
        self.billed: list[Billed] = []
        self.calls: list[str] = []
        self.peak_enqueued = 0
        self._fates: dict[str, str] = {}
        self._seen: Counter[str] = Counter()
        self._released: set[str] = set()

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one HTTP request."""
        if request.path == "/log":
            return _json(200, self.log())
        if request.path == "/control":
            return self._control(json.loads(await request.content.read()))
        key = self.script.api_key
        if key is not None and request.headers.get("Authorization") != f"Bearer {key}":
            return _error(401, "invalid_api_key", "Incorrect API key provided.")
        name, call = self._route(request)
        faults = self.script.faults.get(name, [])
        fault = faults.pop(0) if faults else "ok"
        self.calls.append(f"{name} {fault}")
        if fault == "kill":
            return self._kill(request)
        if fault == "gone":
            return _error(404, "not_found", "No such File object.")
        if fault == "drop":
            return _dropped(request)
        if fault in ("500", "429"):
            return _error(int(fault), "scripted", f"scripted {fault}")
        answer = call(await self._multipart(request) if name == "upload" else await _body(request))
        if fault == "done-kill":
            return self._kill(request)
        if fault == "done-drop":
            return _dropped(request)
        if fault == "done-500":
            return _error(500, "scripted", "scripted 500")
        if fault == "torn":
            return await _torn(request, answer)
        return answer

    def log(self) -> dict[str, Any]:
        """Return the books."""
        for batch_id in self.batches:
            self._advance(batch_id)
        return {
            "billed": self.billed,
            "batches": list(self.batches.values()),
            "files": list(self.files.values()),
            "calls": self.calls,
            "peak_enqueued": self.peak_enqueued,
        }

    def _route(self, request: web.BaseRequest) -> tuple[str, Callable[[Any], web.Response]]:
        parts = request.path.removeprefix("/v1/").split("/")
        match (request.method, *parts):
            case ("POST", "files"):
                return "upload", self._upload
            case ("GET", "files"):
                return "files", lambda _: self._list(list(self.files.values()), request.query)
            case ("GET", "files", found, "content"):
                return "content", lambda _: self._content(found)
            case ("DELETE", "files", found):
                return "delete", lambda _: self._delete(found)
            case ("POST", "batches"):
                return "create", self._create
            case ("GET", "batches"):
                return "list", lambda _: self._list(self._listed(), request.query)
            case ("GET", "batches", found):
                return "retrieve", lambda _: self._retrieve(found)
            case ("POST", "batches", found, "cancel"):
                return "cancel", lambda _: self._cancel(found)
        return "unknown", lambda _: _error(404, "unknown_url", f"Unknown URL {request.path}")

    async def _multipart(self, request: web.BaseRequest) -> dict[str, Any]:
        found: dict[str, Any] = {}
        reader = await request.multipart()
        while (part := await reader.next()) is not None:
            assert not isinstance(part, type(reader))
            found[str(part.name)] = bytes(await part.read())
            if part.name == "file":
                found["filename"] = part.filename
        return found

    def _kill(self, request: web.BaseRequest) -> web.Response:
        assert self.script.kill_pid is not None
        os.kill(self.script.kill_pid, signal.SIGKILL)
        return _dropped(request)

    def _control(self, change: dict[str, Any]) -> web.Response:
        if change.pop("release", False):
            self._released.update(self.batches)
        faults = change.pop("faults", {})
        for name, more in faults.items():
            self.script.faults.setdefault(name, []).extend(more)
        for key, value in change.items():
            setattr(self.script, key, value)
        return _json(200, {})

    def _upload(self, form: dict[str, Any]) -> web.Response:
        content = form["file"]
        if len(content) > self.script.max_bytes:
            return _error(413, "file_too_large", "The file is too large.")
        file = self._file(form["filename"], content, form["purpose"].decode())
        return _json(200, file)

    def _file(self, name: str, content: bytes, purpose: str) -> dict[str, Any]:
        file_id = f"file-{len(self.contents)}"
        self.contents[file_id] = content
        self.files[file_id] = {
            "id": file_id,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "processed",
        }
        return self.files[file_id]

    def _content(self, file_id: str) -> web.Response:
        if file_id not in self.files:
            return _error(404, "not_found", f"No such File object: {file_id}")
        return web.Response(body=self.contents[file_id], content_type="application/octet-stream")

    def _delete(self, file_id: str) -> web.Response:
        if self.files.pop(file_id, None) is None:
            return _error(404, "not_found", f"No such File object: {file_id}")
        return _json(200, {"id": file_id, "object": "file", "deleted": True})

    def _listed(self) -> list[dict[str, Any]]:
        now = time.time()
        ids = list(self.batches)
        for batch_id in ids:
            self._advance(batch_id)
        return [b for b in self.batches.values() if now - b["made"] >= self.script.list_lag_s]

    def _list(self, entries: list[dict[str, Any]], query: Any) -> web.Response:
        entries = entries[::-1]  # the newest first
        if "after" in query:
            ids = [entry["id"] for entry in entries]
            entries = entries[ids.index(query["after"]) + 1 :]
        size = min(int(query.get("limit", 20)), self.script.page)
        page = entries[:size]
        return _json(200, {"object": "list", "data": page, "has_more": len(entries) > len(page)})

    def _create(self, body: dict[str, Any]) -> web.Response:
        if body.get("input_file_id") not in self.files:
            return _error(400, "invalid_file", "The input file does not exist.")
        if body.get("endpoint") != ENDPOINT or body.get("completion_window") != "24h":
            return _error(400, "invalid_request", "Wrong endpoint or completion window.")
        batch_id = f"batch_{len(self.batches)}"
        now = time.time()
        self.batches[batch_id] = {
            "id": batch_id,
            "object": "batch",
            "made": now,
            "endpoint": ENDPOINT,
            "errors": None,
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(now),
            "expires_at": int(now) + 86_400,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": body.get("metadata"),
        }
        fates = self.script.faults.get("batch", [])
        self._fates[batch_id] = fates.pop(0) if fates else "ok"
        self._validate(batch_id)
        return _json(200, self.batches[batch_id] | {"status": "validating", "errors": None})

    def _validate(self, batch_id: str) -> None:
        """Refuse a batch as the provider does, or enqueue it."""
        batch = self.batches[batch_id]
        lines = self.contents[batch["input_file_id"]].splitlines()
        requests = [json.loads(line) for line in lines]
        tokens = sum(prompt_tokens(request["body"]["messages"]) for request in requests)
        problems = list(self._problems(batch_id, requests, tokens))
        if problems:
            batch["status"] = "failed"
            batch["failed_at"] = int(time.time())
            batch["errors"] = {"object": "list", "data": problems}
            return
        self.requests[batch_id] = requests
        batch["request_counts"]["total"] = len(requests)
        self.peak_enqueued = max(self.peak_enqueued, self._enqueued() + tokens)
        batch["tokens"] = tokens
        batch["status"] = "in_progress"

    def _problems(
        self, batch_id: str, requests: list[dict[str, Any]], tokens: int
    ) -> Iterator[dict[str, Any]]:
        fate, limit = self._fates[batch_id], self.script.enqueued_tokens
        if fate == "model":
            yield _problem("model_not_found", "The model `m` does not exist.", 1)
        if fate == "quota":
            yield _problem("billing_hard_limit_reached", "Billing hard limit has been reached.")
        if len(requests) > self.script.max_requests:
            yield _problem("too_many_tasks", "The batch has too many requests.")
        if limit is not None and self._enqueued() + tokens > limit:
            yield _problem("token_limit_exceeded", f"Enqueued token limit reached. Limit: {limit}.")
        seen: set[str] = set()
        for number, request in enumerate(requests, 1):
            if request["custom_id"] in seen or len(request["custom_id"]) > 64:
                yield _problem("duplicate_custom_id", "The custom_id is not unique.", number)
            seen.add(request["custom_id"])
            if request["url"] != ENDPOINT or request["method"] != "POST":
                yield _problem("invalid_url", "The URL does not match the batch's.", number)
            if self._kind(request, seeing="refused") == "refused":
                yield _problem("invalid_request", "This line cannot be taken.", number)

    def _enqueued(self) -> int:
        waiting = [b for b in self.batches.values() if b["status"] in ("in_progress", "cancelling")]
        return sum(b.get("tokens", 0) for b in waiting)

    def _retrieve(self, batch_id: str) -> web.Response:
        if batch_id not in self.batches:
            return _error(404, "not_found", f"No batch found with id '{batch_id}'.")
        self._advance(batch_id)
        return _json(200, self.batches[batch_id])

    def _cancel(self, batch_id: str) -> web.Response:
        if batch_id not in self.batches:
            return _error(404, "not_found", f"No batch found with id '{batch_id}'.")
        self._advance(batch_id)
        batch = self.batches[batch_id]
        if batch["status"] in ENDED:
            return _error(409, "conflict", f"Cannot cancel a batch with status {batch['status']}.")
        batch["status"] = "cancelling"
        answer = _json(200, batch)
        self._advance(batch_id)
        return answer

    def _advance(self, batch_id: str) -> None:
        """Let time pass for a batch."""
        batch = self.batches[batch_id]
        if batch["status"] == "cancelling" and not self.script.cancelling:
            self._finish(batch_id, "cancelled", len(self.requests[batch_id]) // 2)
        if batch["status"] != "in_progress":
            return
        held = self.script.hold and batch_id not in self._released
        if held or time.time() - batch["made"] < self.script.seconds:
            return
        total = len(self.requests[batch_id])
        if self._fates[batch_id] == "expire":
            self._finish(batch_id, "expired", total // 2)
        else:
            self._finish(batch_id, "completed", total)

    def _finish(self, batch_id: str, status: str, count: int) -> None:
        """Run the first `count` requests of a batch, and end it."""
        batch = self.batches[batch_id]
        good: list[bytes] = []
        bad: list[bytes] = []
        for request in self.requests[batch_id][:count]:
            lines, answered = self._run(batch_id, request)
            (good if answered else bad).extend(lines)
        for request in self.requests[batch_id][count:]:
            error = {"code": f"batch_{status}", "message": f"The batch {status}."}
            bad.append(_line(request["custom_id"], None, error))
        for key, lines in (("output_file_id", good), ("error_file_id", bad)):
            shuffled = sorted(lines, key=lambda line: hashlib.blake2b(line).digest())
            if shuffled:
                file = self._file(f"{batch_id}_{key}.jsonl", b"\n".join(shuffled), "batch_output")
                batch[key] = file["id"]
        batch["status"] = status
        batch[f"{status}_at"] = int(time.time())
        counts = batch["request_counts"]
        counts["completed"], counts["failed"] = len(good), len(bad)

    def _run(self, batch_id: str, request: dict[str, Any]) -> tuple[list[bytes], bool]:
        """Return the lines of one request, and whether it was answered."""
        custom_id = request["custom_id"]
        kind = self._kind(request)
        if kind == "quota":
            return [_failure(custom_id, 429, "insufficient_quota")], False
        if kind is not None and kind.isdigit():
            return [_failure(custom_id, int(kind), "scripted")], False
        encoded = self._answer(batch_id, request, kind)
        line = _line(custom_id, {"status_code": 200, "request_id": f"req-{custom_id[:8]}"}, None)
        line = line.replace(b'"body":null', b'"body":' + encoded)
        lines = {
            "missing": [],
            "torn": [line[: len(line) // 2]],
            "twice": [line, line],
            "foreign": [line, line.replace(custom_id.encode(), b"somebody-else")],
        }
        return lines.get(kind or "", [line]), True

    def _answer(self, batch_id: str, request: dict[str, Any], kind: str | None) -> bytes:
        body = request["body"]
        limit = body.get("max_completion_tokens") or body.get("max_tokens")
        key = msgspec.json.encode([body["model"], body["messages"], body.get("seed")])
        draws = body.get("n", 1)
        answers = [
            draw_answer(key, i, kind, self.script.answer_tokens, limit)
            for i in range(draws - (kind == "few"))
        ]
        prompted = prompt_tokens(body["messages"])
        self.billed.append(
            Billed(
                batch=batch_id,
                custom_id=request["custom_id"],
                prompt=_text(request),
                draws=draws,
                prompt_tokens=prompted,
                completion_tokens=sum(answer.tokens for answer in answers),
            )
        )
        top = body.get("top_logprobs", 0) if body.get("logprobs") else None
        return answer_body(body["model"], len(self.billed), answers, prompted, top, Ids())

    def _kind(self, request: dict[str, Any], seeing: str | None = None) -> str | None:
        """Return what a prompt's marker asks for now; a look that is not for it is not counted."""
        text = _text(request)
        marker = MARKER.search(text)
        if marker is None:
            return None
        once, kind = marker.groups()
        if (kind == "refused") != (seeing == "refused"):
            return None
        self._seen[text] += 1
        return None if once and self._seen[text] > 1 else kind


def _text(request: dict[str, Any]) -> str:
    return str(request["body"]["messages"][-1]["content"])


def _line(custom_id: str, response: dict[str, Any] | None, error: Any) -> bytes:
    if response is not None:
        response = {"body": None} | response
    line = {"id": f"batch_req_{custom_id[:8]}", "custom_id": custom_id, "response": response}
    return msgspec.json.encode(line | {"error": error})


def _failure(custom_id: str, status: int, code: str) -> bytes:
    error = {"message": f"scripted {status}", "type": "scripted", "param": None, "code": code}
    return _line(
        custom_id, {"status_code": status, "request_id": "r", "body": {"error": error}}, None
    )


def _problem(code: str, message: str, line: int | None = None) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": line}


async def _body(request: web.BaseRequest) -> Any:
    content = await request.content.read()
    return json.loads(content) if content else None


def _json(status: int, content: Any) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(content), status=status, content_type="application/json"
    )


def _error(status: int, code: str, message: str) -> web.Response:
    error = {"message": message, "type": "scripted", "param": None, "code": code}
    response = _json(status, {"error": error})
    if status == 429:
        response.headers["Retry-After"] = "0.05"
    return response


def _dropped(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response()


async def _torn(request: web.BaseRequest, answer: web.Response) -> web.StreamResponse:
    body = answer.body
    assert isinstance(body, bytes)
    response = web.StreamResponse(headers={"Content-Type": answer.content_type})
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return response


class Running:
    """A server that runs: where it is, and its books."""

    def __init__(self, port: int) -> None:
        self.root = f"http://127.0.0.1:{port}"
        self.base_url = f"{self.root}/v1"

    def log(self) -> dict[str, Any]:
        """Return the books."""
        return self._open("/log", None)

    def billed(self) -> list[dict[str, Any]]:
        """Return every request that was run and answered."""
        found: list[dict[str, Any]] = self.log()["billed"]
        return found

    def control(self, **change: Any) -> None:
        """Change the script; `release=True` lets held batches end, `faults` are added."""
        self._open("/control", json.dumps(change).encode())

    def _open(self, path: str, data: bytes | None) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.root + path, data=data, timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found


@contextmanager
def serving(script: BatchScript | None = None) -> Iterator[Running]:
    """Serve from a thread of this process until the block ends."""
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    bound = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        async with _listening(script or BatchScript(), 0) as port:
            ready.append(port)
            bound.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    if not bound.wait(10):
        raise RuntimeError("the loopback server did not start")
    try:
        yield Running(ready[0])
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextmanager
def spawned(*arguments: str) -> Iterator[Running]:
    """Serve from a process of its own until the block ends, or this process dies."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.loopback_batch", *arguments],
        cwd=Path(__file__).resolve().parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            yield Running(int(process.stdout.readline()))
        finally:
            process.stdin.close()


@asynccontextmanager
async def _listening(script: BatchScript, port: int) -> AsyncIterator[int]:
    server = web.Server(Provider(script).handle, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def _serve(script: BatchScript, port: int) -> None:
    async with _listening(script, port) as bound:
        print(bound, flush=True)
        await asyncio.to_thread(sys.stdin.read)


def main(arguments: list[str] | None = None) -> None:
    """Serve until stdin ends."""
    parser = argparse.ArgumentParser(prog="python -m tests.loopback_batch", description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--list-lag-s", type=float, default=0.0)
    parser.add_argument("--enqueued-tokens", type=int)
    given = vars(parser.parse_args(arguments))
    port = given.pop("port")
    asyncio.run(_serve(BatchScript(**given), port))


if __name__ == "__main__":
    main()
