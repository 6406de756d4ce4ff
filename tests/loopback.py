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
every request and a summary, GET /stats the summary, GET /v1/models the model.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import subprocess
import sys
import threading
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.loopback_server import Loopback, Script

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

    def stats(self) -> dict[str, Any]:
        """Return the log's summary."""
        return self._get("/stats")

    def _get(self, path: str) -> dict[str, Any]:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(self.root + path, timeout=30) as response:
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


@asynccontextmanager
async def _listening(script: Script, port: int, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    """Bind, and yield the port; on leaving, close every connection at once."""
    server = web.Server(Loopback(script).handle, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, ssl_context=tls, backlog=1024).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


def _arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.loopback", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--latency-ms", type=float, default=Script().latency_ms)
    parser.add_argument("--slow-ms", type=float, default=Script().slow_ms)
    parser.add_argument("--answer-tokens", type=int, default=Script().answer_tokens)
    parser.add_argument("--share", action="append", default=[], metavar="FAULT=SHARE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry-after")
    parser.add_argument("--capacity", type=int)
    parser.add_argument("--api-key")
    parser.add_argument("--max-top-logprobs", type=int, default=Script().max_top_logprobs)
    parser.add_argument("--keep-bodies", action="store_true")
    parser.add_argument("--until-eof", action="store_true", help="stop when stdin ends")
    return parser.parse_args(arguments)


def _script(given: argparse.Namespace) -> Script:
    shares = dict(share.split("=", 1) for share in given.share)
    options = {k: v for k, v in vars(given).items() if k in Script.__struct_fields__}
    return Script(**options, shares={what: float(share) for what, share in shares.items()})


async def _serve(given: argparse.Namespace) -> None:
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
