"""Decide whether an attempt that failed is made again, and after how long; tenacity does it.

One predicate reads the error's class. Waiting is exponential with full jitter ("Exponential
Backoff And Jitter", AWS Architecture Blog, 2015), never shorter than what the server asked for.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

from tenacity import (
    AsyncRetrying,
    RetryCallState,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
)

from corpusgen.config import Retry
from corpusgen.errors import TeacherError

Sleep = Callable[[float], Awaitable[None]]

_MOST_DOUBLINGS = 60
"""Far beyond any `longest_wait_s`, and still a float."""


def is_worth_retrying(error: BaseException) -> bool:
    """Tell whether another attempt may bring an answer."""
    return isinstance(error, TeacherError) and error.retry == "again"


class RetryPolicy:
    """Make tenacity controllers that all follow one configuration.

    `sleep` is how a wait passes; it may raise to leave the loop when the run drains. `jitter`
    returns a number from 0 to 1.
    """

    def __init__(
        self, settings: Retry, sleep: Sleep, jitter: Callable[[], float] = random.random
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        self._jitter = jitter

    def attempts(self) -> AsyncRetrying:
        """Return a controller for one sample: iterate over it, an attempt a turn."""
        return AsyncRetrying(
            retry=retry_if_exception(is_worth_retrying),
            wait=self._wait_s,
            stop=(
                stop_after_attempt(self._settings.max_attempts)
                | stop_before_delay(self._settings.max_seconds)
            ),
            sleep=self._sleep,
            reraise=True,
        )

    def _wait_s(self, state: RetryCallState) -> float:
        doubled = self._settings.first_wait_s * 2.0 ** min(
            state.attempt_number - 1, _MOST_DOUBLINGS
        )
        wait = min(doubled, self._settings.longest_wait_s) * self._jitter()
        error = state.outcome.exception() if state.outcome is not None else None
        asked = error.retry_after_s if isinstance(error, TeacherError) else None
        return max(wait, asked or 0.0)
