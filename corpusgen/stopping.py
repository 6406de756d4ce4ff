"""Why and when a run stops early: one wish to stop, and the two watchers that may voice it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from corpusgen.errors import CorpusgenError, ExitCode, RunStopped
from corpusgen.types import Answer, Request


class Stop:
    """The one wish to stop, with its reason; the first reason wins."""

    def __init__(self, tell: Callable[[CorpusgenError], None] | None = None) -> None:
        """`tell` is called with the reason when the first stop is asked."""
        self._event = asyncio.Event()
        self._tell = tell
        self.reason: CorpusgenError | None = None

    def __call__(self, reason: CorpusgenError) -> None:
        """Ask the run to stop."""
        if self.reason is None:
            self.reason = reason
            if self._tell is not None:
                self._tell(reason)
        self._event.set()

    def is_asked(self) -> bool:
        """Whether the run is to stop."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait until the run is to stop."""
        await self._event.wait()

    async def sleep(self, seconds: float) -> None:
        """Sleep; raise `Stopping` as soon as the run is to stop."""
        try:
            await asyncio.wait_for(self._event.wait(), seconds)
        except TimeoutError:
            return
        raise Stopping


def stop_for(stop: Stop, error: Exception) -> Exception | None:
    """Stop a run for what a part of it raised, so that the others drain and commit.

    Returns the error where it is a mistake of ours: it is to be raised once that is done.
    """
    if isinstance(error, CorpusgenError):
        stop(error)
        return None
    if isinstance(error, OSError):
        stop(
            CorpusgenError(
                f"{error.filename or 'the corpus'}: cannot be written: {error.strerror}. "
                "What was answered is safe; make room and run the command again"
            )
        )
        return None
    stop(CorpusgenError(f"{type(error).__name__}: {error}"))
    return error


class Stopping(Exception):
    """Leaves a sample as it is: pending."""


class FailureRate:
    """Stop a run in which too many of the last samples fail."""

    def __init__(self, stop: Stop, highest: float, window: int, minimum: int) -> None:
        self._stop = stop
        self._highest = highest
        self._minimum = minimum
        self._last: deque[bool] = deque(maxlen=window)

    def add(self, failed: bool, detail: str = "") -> None:
        """Count one sample that ended."""
        self._last.append(failed)
        failures = sum(self._last) if failed else 0
        if len(self._last) >= self._minimum and failures > self._highest * len(self._last):
            self._stop(
                RunStopped(
                    f"{failures} of the last {len(self._last)} samples failed, more than "
                    f"generate.max_failure_rate ({self._highest}) allows; the last one: {detail} "
                    "Mend the cause and run the command again with --retry-failed",
                    ExitCode.ERROR,
                )
            )


class LogprobCheck:
    """Stop a run whose teacher leaves out the logprobs that were asked for.

    A single answer without them is kept and counted; none with them among the first few means
    that the endpoint does not give any, and that going on would pay for half of what is wanted.
    """

    FIRST = 5

    def __init__(self, stop: Stop) -> None:
        self._stop = stop
        self._given = 0
        self.missing = 0

    def add(self, request: Request, answer: Answer, endpoint: str) -> None:
        """Count one answer."""
        if request.top_logprobs == 0 or not answer.text:
            return
        if answer.trace is not None and answer.trace.topk_counts is not None:
            self._given += 1
            return
        self.missing += 1
        if self._given == 0 and self.missing == self.FIRST:
            self._stop(
                RunStopped(
                    f"the endpoint {endpoint} answers without logprobs, although "
                    f"sampling.top_logprobs is {request.top_logprobs}; set it to 0 in a corpus of "
                    "its own (another `out`), or use an endpoint that gives them",
                    ExitCode.ERROR,
                )
            )
