"""Decide whether an attempt that failed is made again, and after how long; tenacity does it.

One predicate reads the error's class. Waiting is exponential with full jitter ("Exponential
Backoff And Jitter", AWS Architecture Blog, 2015). Where the endpoint says when to come back, its
place is closed for so long (`limits`), and the sample goes on in line or at another endpoint
without having lost an attempt.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from corpusgen.config import Retry
from corpusgen.errors import Overloaded, RateLimited, TeacherError

T = TypeVar("T")
Sleep = Callable[[float], Awaitable[None]]

_MOST_DOUBLINGS = 60
"""Far beyond any `longest_wait_s`, and still a float."""
MOST_FREE_ATTEMPTS = 100
"""After so many requests to come back later, each counts as an attempt like any other."""


def is_worth_retrying(error: BaseException) -> bool:
    """Tell whether another attempt may bring an answer."""
    return isinstance(error, TeacherError) and error.retry == "again"


def costs_no_attempt(error: BaseException | None) -> bool:
    """Tell whether the endpoint itself said when to come back: that is no failure of the sample."""
    return isinstance(error, RateLimited | Overloaded) and error.retry_after_s is not None


class RetryPolicy:
    """Make attempts by one configuration.

    `sleep` is how a wait passes; it may raise to leave the loop when the run drains. `jitter`
    returns a number from 0 to 1.
    """

    def __init__(
        self,
        settings: Retry,
        sleep: Sleep,
        jitter: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._sleep = sleep
        self._jitter = jitter
        self._clock = clock

    async def call(
        self,
        attempt: Callable[[], Awaitable[T]],
        excused_s: Callable[[], float] = lambda: 0.0,
        *,
        waits: bool = False,
    ) -> T:
        """Make attempts until one answers, may not be made again, or the bounds are reached.

        `excused_s` returns the seconds so far that count against no bound: those that were spent
        in line for an endpoint. `waits` lets a pause that an endpoint asked for pass here, where no
        gate keeps its place closed. Raises the last attempt's error, as it is.
        """
        began = self._clock()
        try:
            return await attempt()
        except TeacherError as error:
            if not is_worth_retrying(error):
                raise
            first = error
        controller = self._controller(began, excused_s, waits)
        async for turn in controller:
            with turn:
                if turn.retry_state.attempt_number == 1:
                    raise first  # so that answers at once, the most, cost no controller
                return await attempt()
        raise AssertionError("tenacity ends with an answer or an error")

    def _controller(
        self, began: float, excused_s: Callable[[], float], waits: bool
    ) -> AsyncRetrying:
        free = 0
        asked = 0.0

        def is_over(state: RetryCallState) -> bool:
            nonlocal free, asked
            if _is_free(state, free):
                free += 1
                asked += state.upcoming_sleep
                return False
            spent = self._clock() - began - excused_s() - asked + state.upcoming_sleep
            counted = state.attempt_number - free
            return counted >= self._settings.max_attempts or spent > self._settings.max_seconds

        def wait_s(state: RetryCallState) -> float:
            if _is_free(state, free):
                return _asked_s(state) if waits else 0.0  # or its place is closed for so long
            doublings = min(state.attempt_number - free - 1, _MOST_DOUBLINGS)
            doubled = self._settings.first_wait_s * 2.0**doublings
            wait = min(doubled, self._settings.longest_wait_s) * self._jitter()
            return max(wait, _asked_s(state)) if waits else wait

        return AsyncRetrying(
            retry=retry_if_exception(is_worth_retrying),
            wait=wait_s,
            stop=is_over,
            sleep=self._sleep,
            reraise=True,
        )


def _is_free(state: RetryCallState, free: int) -> bool:
    return costs_no_attempt(_error_of(state)) and free < MOST_FREE_ATTEMPTS


def _asked_s(state: RetryCallState) -> float:
    error = _error_of(state)
    return (error.retry_after_s or 0.0) if isinstance(error, TeacherError) else 0.0


def _error_of(state: RetryCallState) -> BaseException | None:
    return None if state.outcome is None else state.outcome.exception()
