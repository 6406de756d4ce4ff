"""A server on this machine that speaks OpenAI's protocol and fails on command.

It stands in for a paid API in tests and benchmarks: what it answers is a function of the request,
every request stands in its log, and what it would have billed is added up, so that a ledger can be
compared with the other side's own books.

    with serving(Script(latency_ms=20)) as server: ...       # a thread of this process
    with spawned("--latency-ms", "20") as server: ...        # a process of its own
    python -m tests.loopback --port 0 --share 429=0.1        # prints its port

A marker anywhere in the prompt chooses what happens to it:

    [[500]] [[429]] …     that HTTP status, with an error body; 429 and 503 carry Retry-After
    [[quota]] [[contextlen]] [[policy]]       429, 400, 400 with the code of that case
    [[torn]] [[drop]] [[hang]] [[html]]       a body cut in half; a connection closed before the
                                              headers; no answer ever; HTTP 200 with a web page
    [[slow]]              the answer, after `slow_ms` instead of `latency_ms`
    [[length]] [[filtered]] [[empty]] [[refuse]] [[refusal]] [[think]] [[tool]]     kinds of answer
    [[once:X]]            X when this prompt is seen for the first time, an answer afterwards
    [[raw]]BODY  [[raw:429]]BODY              BODY as it stands, with HTTP 200 or that status

Shares (`--share 429=0.1`) do the same to a part of the requests, chosen by a hash of seed, prompt
and how often it was seen, so that a run repeats whatever the order of arrival. GET /log returns
every request and a summary, GET /stats the summary (?since=…&until=… that of an interval), GET
/v1/models the model. POST /control changes the script while it runs: a JSON object with any of its
options, and `die_s`, which closes the port and every connection for so long (null: for good).

    spawned("--rpm", "600", "--rate-headers")                         # tests/loopback_limits.py
    spawned("--slots", "8", "--tokens-per-s", "200", "--lengths", "lognormal")    # …_capacity.py
    server.control(fault="500"); server.control(fault=None); server.control(die_s=3)

Every response has an `x-request-id`: `req-` and the request's number in the log.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from tests.loopback_script import Script
from tests.loopback_server import Loopback

__all__ = ["Running", "Script", "serving", "spawned"]


class Running:
    """A server that runs: where it is, and its books."""

    def __init__(self, port: int, scheme: str = "http") -> None:
        self.port = port
        self.root = f"{scheme}://127.0.0.1:{port}"
        self.base_url = f"{self.root}/v1"

    def log(self) -> list[dict[str, Any]]:
        """Return every request so far, in the order of arrival."""
        requests: list[dict[str, Any]] = self._get("/log")["requests"]
        return requests

    def stats(self, **bounds: float) -> dict[str, Any]:
        """Return the log's summary; `since` and `until`, in seconds since the epoch, bound it."""
        return self._get(f"/stats?{urlencode(bounds)}")

    def control(self, **changes: Any) -> float:
        """Change the script from now on; return when that was, in seconds since the epoch."""
        at: float = self._get("/control", json.dumps(changes).encode())["at"]
        return at

    def _get(self, path: str, body: bytes | None = None) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.root + path, body, timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found


@contextmanager
def serving(script: Script | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Running]:
    """Serve from a thread of this process until the block ends."""
    loop = asyncio.new_event_loop()
    ready: list[int] = []
    bound = threading.Event()
    stop = asyncio.Event()

    async def main() -> None:
        async with _listening(script or Script(), 0, tls) as port:
            ready.append(port)
            bound.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()), daemon=True)
    thread.start()
    if not bound.wait(10):
        raise RuntimeError("the loopback server did not start")
    try:
        yield Running(ready[0], "http" if tls is None else "https")
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


@contextmanager
def spawned(*arguments: str) -> Iterator[Running]:
    """Serve from a process of its own until the block ends, or this process dies."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.loopback", "--until-eof", *arguments],
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


class _Listener:
    """The port and its connections, which can be closed and opened again."""

    def __init__(self, script: Script, tls: ssl.SSLContext | None) -> None:
        handle = Loopback(script, self.die).handle
        server = web.Server(handle, handler_cancellation=True, access_log=None)
        self.runner = web.ServerRunner(server, shutdown_timeout=0)
        self._tls = tls
        self._site: web.TCPSite | None = None
        self._dying: asyncio.Task[None] | None = None

    async def listen(self, port: int) -> int:
        """Bind, and return the port."""
        self._site = web.TCPSite(
            self.runner, "127.0.0.1", port, ssl_context=self._tls, backlog=1024, reuse_address=True
        )
        await self._site.start()
        return self._site.port

    def die(self, back_after_s: float | None) -> None:
        """Close everything, a moment after the answer to whoever asked for it."""
        self._dying = asyncio.create_task(self._die(back_after_s))

    async def _die(self, back_after_s: float | None) -> None:
        await asyncio.sleep(0.02)
        assert self._site is not None
        assert self.runner.server is not None
        port = self._site.port
        await self._site.stop()
        for connection in self.runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        if back_after_s is not None:
            await asyncio.sleep(back_after_s)
            await self.listen(port)

    async def close(self) -> None:
        if self._dying is not None:
            self._dying.cancel()
        await self.runner.cleanup()


@asynccontextmanager
async def _listening(script: Script, port: int, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Bind, and yield the port; on leaving, close every connection at once."""
    listener = _Listener(script, tls)
    await listener.runner.setup()
    try:
        yield await listener.listen(port)
    finally:
        await listener.close()


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line: every option of `Script`, and where and how long to serve."""
    parser = argparse.ArgumentParser(prog="python -m tests.loopback", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--cpu", type=int, help="the only core to run on")
    parser.add_argument("--until-eof", action="store_true", help="stop when stdin ends")
    parser.add_argument("--share", action="append", default=[], metavar="FAULT=SHARE")
    for field in msgspec.structs.fields(Script):
        if field.name != "shares":
            default = False if field.type is bool else field.default
            _add_option(parser, f"--{field.name.replace('_', '-')}", field.type, default)
    return parser.parse_args(arguments)


def _add_option(parser: argparse.ArgumentParser, flag: str, kind: Any, default: Any) -> None:
    if kind is bool:
        parser.add_argument(flag, action="store_true")
    elif get_origin(kind) is Literal:
        parser.add_argument(flag, choices=get_args(kind), default=default)
    else:
        convert = next((k for k in get_args(kind) if k is not NoneType), kind)
        parser.add_argument(flag, type=convert, default=default)


def _script(given: argparse.Namespace) -> Script:
    shares = dict(share.split("=", 1) for share in given.share)
    options = {k: v for k, v in vars(given).items() if k in Script.__struct_fields__}
    return Script(**options, shares={what: float(share) for what, share in shares.items()})


async def _serve(given: argparse.Namespace) -> None:
    if given.cpu is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {given.cpu})
    async with _listening(_script(given), given.port, None) as port:
        print(port, flush=True)
        if given.until_eof:
            await asyncio.to_thread(sys.stdin.read)
        else:
            await asyncio.Event().wait()


def main(arguments: list[str] | None = None) -> None:
    """Serve until interrupted, or until stdin ends."""
    try:
        asyncio.run(_serve(_arguments(arguments)))
    except KeyboardInterrupt:
        return


if __name__ == "__main__":
    main()
