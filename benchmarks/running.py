"""Run `corpusgen generate` for a while beside scripted servers, and read what came of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from corpusgen import load
from tests.loopback import Running

LONGEST_S, STOPPING_S = 600.0, 60.0
"""That a command may take to its end, and to leave when it is told to."""


class Outcome(msgspec.Struct, frozen=True):
    """What a corpus holds when its run has ended."""

    exit_code: int
    generations: int
    failures: int


class Run:
    """A command under way, with more prompts than it will get through."""

    def __init__(
        self,
        directory: Path,
        endpoints: Sequence[dict[str, Any]],
        prompts: int,
        max_tokens: int = 4096,
    ) -> None:
        directory.mkdir(parents=True)
        self._directory = directory
        rows = (json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(prompts))
        (directory / "prompts.jsonl").write_text("".join(rows))
        config = {
            "out": str(directory / "out"),
            "prompts": [{"path": str(directory / "prompts.jsonl")}],
            "teacher": {"kind": "openai", "model": "m", "endpoints": list(endpoints)},
            "sampling": {"max_tokens": max_tokens},
            "generate": {"drain_s": 5},
        }
        (directory / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
        command = [sys.executable, "-m", "corpusgen", "generate", str(directory / "config.yaml")]
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def is_running(self) -> bool:
        """Whether the command goes on."""
        return self._process.poll() is None

    def wait(self, longest_s: float = LONGEST_S) -> Outcome:
        """Wait for the end; raise where the command failed, or does not end."""
        code = self._process.wait(longest_s)
        if code not in (0, 3, 5):
            said = (self._directory / "log").read_text()[-2000:]
            raise RuntimeError(f"corpusgen generate ended with {code}:\n{said}")
        corpus = load(self._directory / "out")
        return Outcome(code, corpus.rows("generations"), corpus.rows("failures"))

    def stop(self) -> Outcome:
        """End it as SIGTERM does: what is in flight gets a moment, all is committed."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait(STOPPING_S)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()


@contextmanager
def running(*arguments: Any, **keywords: Any) -> Iterator[Run]:
    """Start a run, and leave none behind."""
    run = Run(*arguments, **keywords)
    try:
        yield run
    finally:
        run.kill()


def first_request_at(server: Running, run: Run) -> float:
    """Wait for the first request and return when it came, in seconds since the epoch."""
    while run.is_running:
        log = server.log()
        if log:
            at: float = log[0]["at"]
            return at
        time.sleep(0.05)
    run.wait()
    raise RuntimeError("the run ended without a request")


def sleep_until(at: float) -> None:
    """Sleep until a time in seconds since the epoch."""
    time.sleep(max(0.0, at - time.time()))
