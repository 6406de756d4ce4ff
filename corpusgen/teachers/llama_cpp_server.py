"""Run llama.cpp's server in a child process that cannot outlive this one.

Why not in this process: xllamacpp holds the interpreter's lock for as long as a model loads,
freeing a server with a request in flight never returns, and leaving Python with one crashes. A
child also turns an abort within llama.cpp into a sentence. It ends when its standard input does,
and so with any death of its parent; it serves on loopback only, and only who knows its key.

This module knows nothing of requests and answers; `llama_cpp` speaks to the address.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Mapping
from typing import IO

import msgspec

_LOAD_ERROR = re.compile(r"error loading model: (.+)")
_LOG_PREFIX = re.compile(r"^[\d.]+ [A-Z] +")
_LOG_TAIL_BYTES = 1 << 14


class Settings(msgspec.Struct, frozen=True):
    """How the server is set up."""

    model: str
    """The GGUF file's path."""
    context_length: int
    """Tokens of one slot."""
    slots: int
    threads: int
    gpu_layers: int


class _Start(msgspec.Struct, frozen=True):
    """The line that the child reads."""

    settings: Settings
    key: str


class _Started(msgspec.Struct, frozen=True):
    """The line that the child writes: either of the two is set."""

    address: str | None = None
    error: str | None = None


class ServerFailed(Exception):
    """Say in half a sentence why the server did not start."""


class LlamaServer:
    """A llama.cpp server in a child process: `launch`, `ready`, and `stop` in the end."""

    def __init__(self, process: asyncio.subprocess.Process, key: str, log: IO[bytes]) -> None:
        self._process = process
        self._log = log
        self.key = key
        """The bearer token that the server asks for; lives in memory only."""

    async def ready(self) -> str:
        """Wait until the model is loaded; return the server's address or raise `ServerFailed`."""
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        if not line:
            await self._process.wait()
            raise ServerFailed(self.last_words())
        started = msgspec.json.decode(line, type=_Started)
        if started.address is None:
            raise ServerFailed(self._load_error() or started.error or "no reason given")
        return started.address

    async def ended(self, within_s: float) -> bool:
        """Wait for at most `within_s` seconds; return whether the process has ended."""
        try:
            await asyncio.wait_for(self._process.wait(), within_s)
        except TimeoutError:
            return False
        return True

    def last_words(self) -> str:
        """Return how the process ended and the last line that it logged."""
        lines = [line for line in self._tail().splitlines() if line.strip()]
        code = self._process.returncode
        how = f"ended by signal {-code}" if code is not None and code < 0 else f"exited with {code}"
        return f"{how}: {_LOG_PREFIX.sub('', lines[-1])}" if lines else how

    async def stop(self) -> None:
        """End the process at once; its memory and its requests go with it."""
        if self._process.returncode is None:
            self._process.kill()
        await self._process.communicate()
        self._log.close()

    def _load_error(self) -> str | None:
        found = _LOAD_ERROR.findall(self._tail())
        return found[-1] if found else None

    def _tail(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        offset = max(0, size - _LOG_TAIL_BYTES)
        return os.pread(self._log.fileno(), _LOG_TAIL_BYTES, offset).decode("utf-8", "replace")


async def launch(settings: Settings) -> LlamaServer:
    """Start the child and return at once, while it loads the model; raise `ServerFailed`."""
    log = tempfile.TemporaryFile()  # noqa: SIM115  # closed by stop()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the working directory must not come before the installed packages
            "-m",
            __name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            env=_environment(os.environ),
            start_new_session=True,  # Ctrl-C is for the parent, which drains first
        )
    except OSError as error:
        log.close()
        raise ServerFailed(f"no process can be started: {error}") from error
    server = LlamaServer(process, secrets.token_hex(32), log)
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(_Start(settings, server.key)) + b"\n")
    return server


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """Return the child's environment: threads that wait give their core away soon.

    GNU OpenMP's threads spin for milliseconds at every barrier. Where another process wants a core
    this cost nine tenths of the speed; on an idle machine it gained nothing that could be measured.
    """
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & own.keys()
    return dict(own) if chosen else {**own, "GOMP_SPINCOUNT": "1000"}


def main() -> None:
    """Be the child: read the settings, load the model, serve until standard input ends."""
    answer = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints must not be taken for the answer
    start = msgspec.json.decode(sys.stdin.buffer.readline(), type=_Start)
    try:
        server, started = _serve(start)
    except Exception as error:  # noqa: BLE001  # whatever it is, the parent has to be told
        server, started = None, _Started(error=f"{type(error).__name__}: {error}")
    answer.write(msgspec.json.encode(started) + b"\n")
    if server is not None:
        sys.stdin.buffer.read()
    sys.stderr.flush()
    os._exit(0)  # freeing a server that still has requests would wait for them for ever


def _serve(start: _Start) -> tuple[object, _Started]:
    import xllamacpp

    settings = start.settings
    parameters = xllamacpp.CommonParams()
    parameters.model.path = settings.model
    parameters.n_ctx = settings.context_length * settings.slots
    parameters.n_parallel = settings.slots
    parameters.n_threads_http = 2 * settings.slots + 2
    parameters.cpuparams.n_threads = settings.threads
    parameters.cpuparams_batch.n_threads = settings.threads
    parameters.n_gpu_layers = settings.gpu_layers
    parameters.api_keys = [start.key]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.ui = False
    parameters.special = False
    parameters.prefill_assistant = False  # an answer is a turn of its own, never a continuation
    parameters.cache_ram_mib = 0  # prompts are not kept, so that memory does not grow
    parameters.n_ctx_checkpoints = 0
    parameters.warmup = False  # the first request does that
    parameters.verbosity = 1  # errors only
    server = xllamacpp.Server(parameters)
    return server, _Started(address=server.listening_address)


if __name__ == "__main__":
    main()
