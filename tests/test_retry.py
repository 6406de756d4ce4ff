"""Only what may bring an answer is asked again, bounded in tries and in time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpusgen.config import Retry
from corpusgen.errors import (
    AnswerTimeout,
    AuthenticationFailed,
    ConnectionFailed,
    ContentRefused,
    ContextOverflow,
    CorpusError,
    ModelNotFound,
    NotConnected,
    NotRun,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Rejected,
    RunStopped,
    ServerFault,
    TeacherBroken,
    TeacherError,
    TeacherRaised,
    TornAnswer,
    Withdrawn,
)
from corpusgen.retry import (
    MOST_FREE_ATTEMPTS,
    RetryPolicy,
    costs_no_attempt,
    is_worth_retrying,
)
from tests.virtual_time import run_virtually

AGAIN = [RateLimited, Overloaded, ServerFault, ConnectionFailed, AnswerTimeout, TornAnswer]
AGAIN_TOO = [NotConnected, NotRun, Withdrawn]
"""Kinds of those."""
NEVER = [Rejected, ContextOverflow, ContentRefused, TeacherRaised]
FATAL = [AuthenticationFailed, ModelNotFound, QuotaExhausted, TeacherBroken]


class Tried:
    """What a policy did with a sample whose attempts fail, in virtual time."""

    def __init__(
        self,
        settings: Retry,
        error: Callable[[], BaseException],
        jitter: Callable[[], float] = lambda: 1.0,
        answers_at: int | None = None,
        attempt_s: float = 0.0,
        in_line_s: float = 0.0,
    ) -> None:
        """Each attempt waits in line for `in_line_s`, which is excused, then takes `attempt_s`."""
        self.waits: list[float] = []
        self.attempts = 0
        self.answer: int | None = None
        self.raised: BaseException | None = None
        self.took_s = 0.0
        self._settings = settings
        self._error = error
        self._jitter = jitter
        self._answers_at = answers_at
        self._attempt_s = attempt_s
        self._in_line_s = in_line_s
        self._waited_s = 0.0
        run_virtually(self._run())

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        await asyncio.sleep(seconds)

    async def _attempt(self) -> int:
        self.attempts += 1
        await asyncio.sleep(self._in_line_s)
        self._waited_s += self._in_line_s
        await asyncio.sleep(self._attempt_s)
        if self.attempts != self._answers_at:
            raise self._error()
        return 42

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        policy = RetryPolicy(self._settings, self._sleep, self._jitter, clock)
        try:
            self.answer = await policy.call(self._attempt, lambda: self._waited_s)
        except Exception as error:  # noqa: BLE001 - the test looks at whatever comes out
            self.raised = error
        self.took_s = clock()


# Which errors


@pytest.mark.parametrize("kind", [*AGAIN, *AGAIN_TOO])
def test_what_may_pass_is_tried_until_max_attempts(kind: type[TeacherError]) -> None:
    errors: list[TeacherError] = []

    def next_error() -> TeacherError:
        errors.append(kind("no"))
        return errors[-1]

    tried = Tried(Retry(max_attempts=4), next_error)
    assert tried.attempts == 4
    assert len(tried.waits) == 3
    assert tried.raised is errors[-1], "the last error comes out as it is, not wrapped"


@pytest.mark.parametrize("kind", [*NEVER, *FATAL])
def test_what_cannot_pass_is_tried_once(kind: type[TeacherError]) -> None:
    error = kind("no")
    tried = Tried(Retry(max_attempts=4), lambda: error)
    assert (tried.attempts, tried.waits) == (1, [])
    assert tried.raised is error


@pytest.mark.parametrize("kind", [*NEVER, *FATAL])
def test_what_cannot_pass_ends_it_later_too(kind: type[TeacherError]) -> None:
    errors: list[TeacherError] = [ServerFault("no"), ServerFault("no"), kind("never")]
    tried = Tried(Retry(max_attempts=6), iter(errors).__next__)
    assert tried.attempts == 3
    assert tried.raised is errors[2]


@pytest.mark.parametrize(
    "error", [CorpusError("x"), OSError("x"), ValueError("x"), RunStopped("x", 4)]
)
def test_other_errors_are_not_retried(error: Exception) -> None:
    assert not is_worth_retrying(error)
    tried = Tried(Retry(), lambda: error)
    assert tried.attempts == 1
    assert tried.raised is error


def test_every_class_of_error_says_whether_it_is_worth_retrying() -> None:
    assert {kind.retry for kind in [*AGAIN, *AGAIN_TOO]} == {"again"}
    assert {kind.retry for kind in NEVER} == {"never"}
    assert {kind.retry for kind in FATAL} == {"fatal"}
    assert set(TeacherError.__subclasses__()) == {*AGAIN, *NEVER, *FATAL}


def test_an_answer_ends_it() -> None:
    for answers_at in (1, 2, 3):
        tried = Tried(Retry(max_attempts=6), lambda: ServerFault("no"), answers_at=answers_at)
        assert (tried.attempts, tried.answer, tried.raised) == (answers_at, 42, None)
        assert len(tried.waits) == answers_at - 1


def test_one_attempt_means_no_retry() -> None:
    assert Tried(Retry(max_attempts=1), lambda: ServerFault("no")).attempts == 1


# How long


def test_waits_double_up_to_the_longest() -> None:
    settings = Retry(max_attempts=7, first_wait_s=1, longest_wait_s=10)
    tried = Tried(settings, lambda: ServerFault("no"))
    assert tried.waits == [1, 2, 4, 8, 10, 10]


def test_thousands_of_attempts_do_not_overflow() -> None:
    settings = Retry(max_attempts=1100, first_wait_s=0, longest_wait_s=0, max_seconds=1e9)
    assert Tried(settings, lambda: ServerFault("no")).attempts == 1100


@given(st.floats(0, 1, allow_nan=False), st.integers(0, 12))
def test_jitter_only_shortens_and_never_below_zero(jitter: float, retries: int) -> None:
    settings = Retry(max_attempts=retries + 1, first_wait_s=0.5, longest_wait_s=30, max_seconds=1e9)
    tried = Tried(settings, lambda: ServerFault("no"), jitter=lambda: jitter)
    full = [min(0.5 * 2**n, 30) for n in range(retries)]
    assert tried.waits == [wait * jitter for wait in full]


def test_jitter_is_drawn_for_each_wait_and_covers_the_whole_span() -> None:
    settings = Retry(max_attempts=300, first_wait_s=1, longest_wait_s=1, max_seconds=1e9)
    waits = Tried(settings, lambda: ServerFault("no"), random.Random(1).random).waits
    assert all(0 <= wait <= 1 for wait in waits)
    assert min(waits) < 0.1
    assert max(waits) > 0.9
    assert len(set(waits)) > 250


def test_max_seconds_counts_the_time_that_attempts_take() -> None:
    settings = Retry(max_attempts=1000, max_seconds=59.5, first_wait_s=1, longest_wait_s=1)
    tried = Tried(settings, lambda: ServerFault("no"), attempt_s=9)
    assert tried.attempts == 6
    assert tried.took_s == pytest.approx(59)


def test_a_wait_that_would_pass_max_seconds_is_not_begun() -> None:
    settings = Retry(max_attempts=10, max_seconds=60, first_wait_s=50, longest_wait_s=50)
    tried = Tried(settings, lambda: ServerFault("no"))
    assert (tried.attempts, tried.took_s) == (2, 50)


def test_time_in_line_counts_against_no_bound() -> None:
    settings = Retry(max_attempts=4, max_seconds=60, first_wait_s=1, longest_wait_s=1)
    tried = Tried(settings, lambda: ServerFault("no"), attempt_s=5, in_line_s=1000)
    assert tried.attempts == 4


# Come back later


@pytest.mark.parametrize("kind", [RateLimited, Overloaded])
def test_a_wait_that_the_endpoint_asked_for_costs_no_attempt(kind: type[TeacherError]) -> None:
    settings = Retry(max_attempts=1, max_seconds=1)
    tried = Tried(settings, lambda: kind("no", retry_after_s=30), answers_at=50)
    assert (tried.attempts, tried.answer) == (50, 42)
    assert set(tried.waits) == {0}, "the endpoint's place is closed meanwhile, not the sample's"


def test_a_refusal_that_says_no_time_costs_one() -> None:
    assert Tried(Retry(max_attempts=3), lambda: RateLimited("no")).attempts == 3


@pytest.mark.parametrize(
    "error",
    [
        RateLimited("no"),
        ServerFault("no", retry_after_s=5),
        AnswerTimeout("no"),
        ValueError(),
        None,
    ],
)
def test_nothing_else_is_free(error: BaseException | None) -> None:
    assert not costs_no_attempt(error)


def test_an_endpoint_that_only_ever_asks_to_come_back_later_is_given_up() -> None:
    settings = Retry(max_attempts=6)
    tried = Tried(settings, lambda: RateLimited("no", retry_after_s=0.1))
    assert tried.attempts == MOST_FREE_ATTEMPTS + 6
    assert isinstance(tried.raised, RateLimited)


def test_free_attempts_do_not_make_later_waits_longer() -> None:
    errors: list[TeacherError] = [
        *(RateLimited("no", retry_after_s=1) for _ in range(10)),
        *(ServerFault("no") for _ in range(4)),
    ]
    settings = Retry(max_attempts=4, first_wait_s=1, longest_wait_s=60)
    tried = Tried(settings, iter(errors).__next__)
    assert tried.attempts == 14
    assert tried.waits == [0] * 10 + [1, 2, 4]


# Leaving


def test_a_sleep_that_raises_leaves_at_once() -> None:
    """How a run that drains leaves a wait of minutes."""

    class Draining(Exception):
        pass

    attempts = 0

    async def sleep(seconds: float) -> None:
        raise Draining

    async def attempt() -> None:
        nonlocal attempts
        attempts += 1
        raise ServerFault("no")

    with pytest.raises(Draining):
        asyncio.run(RetryPolicy(Retry(), sleep).call(attempt))
    assert attempts == 1


def test_samples_are_counted_apart() -> None:
    """One policy serves all samples; the attempts of one do not use up another's."""

    async def sample(policy: RetryPolicy) -> int:
        attempts = 0

        async def attempt() -> None:
            nonlocal attempts
            attempts += 1
            raise ServerFault("no")

        with pytest.raises(ServerFault):
            await policy.call(attempt)
        return attempts

    async def main() -> list[int]:
        policy = RetryPolicy(Retry(max_attempts=3), asyncio.sleep)
        return await asyncio.gather(*(sample(policy) for _ in range(5)))

    assert run_virtually(main()) == [3] * 5
