"""Only what may bring an answer is asked again, and never before the server wants it."""

from __future__ import annotations

import asyncio
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
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Rejected,
    ServerFault,
    TeacherBroken,
    TeacherError,
    TeacherRaised,
    TornAnswer,
)
from corpusgen.retry import RetryPolicy, is_worth_retrying

AGAIN = [RateLimited, Overloaded, ServerFault, ConnectionFailed, AnswerTimeout, TornAnswer]
NEVER = [Rejected, ContextOverflow, ContentRefused, TeacherRaised]
FATAL = [AuthenticationFailed, ModelNotFound, QuotaExhausted, TeacherBroken]


class Tried:
    """What a policy did with a request that keeps failing."""

    def __init__(
        self,
        settings: Retry,
        error: Callable[[], BaseException],
        jitter: Callable[[], float] = lambda: 1.0,
        answers_at: int | None = None,
    ) -> None:
        self.waits: list[float] = []
        self.attempts = 0
        self.raised: BaseException | None = None
        self._error = error
        self._answers_at = answers_at
        policy = RetryPolicy(settings, self._sleep, jitter)
        asyncio.run(self._run(policy))

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)

    async def _run(self, policy: RetryPolicy) -> None:
        try:
            async for attempt in policy.attempts():
                with attempt:
                    self.attempts += 1
                    if self.attempts != self._answers_at:
                        raise self._error()
        except Exception as error:  # noqa: BLE001 - the test looks at whatever comes out
            self.raised = error


@pytest.mark.parametrize("kind", AGAIN)
def test_what_may_pass_is_tried_until_max_attempts(kind: type[TeacherError]) -> None:
    error = kind("no")
    tried = Tried(Retry(max_attempts=4), lambda: error)
    assert tried.attempts == 4
    assert len(tried.waits) == 3
    assert tried.raised is error, "the last error comes out as it is, not wrapped"


@pytest.mark.parametrize("kind", [*NEVER, *FATAL])
def test_what_cannot_pass_is_tried_once(kind: type[TeacherError]) -> None:
    error = kind("no")
    tried = Tried(Retry(max_attempts=4), lambda: error)
    assert (tried.attempts, tried.waits) == (1, [])
    assert tried.raised is error


@pytest.mark.parametrize("error", [CorpusError("x"), OSError("x"), ValueError("x")])
def test_other_errors_are_not_retried(error: Exception) -> None:
    assert not is_worth_retrying(error)
    tried = Tried(Retry(), lambda: error)
    assert tried.attempts == 1
    assert tried.raised is error


def test_every_class_of_error_says_whether_it_is_worth_retrying() -> None:
    assert {kind.retry for kind in AGAIN} == {"again"}
    assert {kind.retry for kind in NEVER} == {"never"}
    assert {kind.retry for kind in FATAL} == {"fatal"}
    assert set(TeacherError.__subclasses__()) == {*AGAIN, *NEVER, *FATAL}


def test_an_answer_ends_it() -> None:
    tried = Tried(Retry(max_attempts=6), lambda: ServerFault("no"), answers_at=3)
    assert tried.attempts == 3
    assert tried.raised is None


def test_waits_double_up_to_the_longest() -> None:
    settings = Retry(max_attempts=7, first_wait_s=1, longest_wait_s=10)
    tried = Tried(settings, lambda: ServerFault("no"))
    assert tried.waits == [1, 2, 4, 8, 10, 10]


def test_one_attempt_means_no_retry() -> None:
    assert Tried(Retry(max_attempts=1), lambda: ServerFault("no")).attempts == 1


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
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    async def main() -> None:
        async for attempt in RetryPolicy(settings, sleep).attempts():
            with attempt:
                raise ServerFault("no")

    with pytest.raises(ServerFault):
        asyncio.run(main())
    assert all(0 <= wait <= 1 for wait in waits)
    assert min(waits) < 0.1
    assert max(waits) > 0.9
    assert len(set(waits)) > 250


def test_retry_after_is_never_undercut() -> None:
    settings = Retry(max_attempts=3, first_wait_s=1, longest_wait_s=2)
    patient = Tried(settings, lambda: RateLimited("no", retry_after_s=30))
    assert patient.waits == [30, 30], "longest_wait_s bounds our own waits, not the server's wish"
    eager = Tried(settings, lambda: RateLimited("no", retry_after_s=0.1), jitter=lambda: 0.0)
    assert eager.waits == [0.1, 0.1]
    absent = Tried(settings, lambda: RateLimited("no"), jitter=lambda: 0.0)
    assert absent.waits == [0, 0]


def test_a_wait_that_would_pass_max_seconds_is_not_begun() -> None:
    tried = Tried(Retry(max_seconds=60), lambda: RateLimited("no", retry_after_s=3600))
    assert (tried.attempts, tried.waits) == (1, [])
    assert isinstance(tried.raised, RateLimited)


def test_max_seconds_counts_the_time_that_attempts_take() -> None:
    async def main() -> int:
        attempts = 0
        settings = Retry(
            max_attempts=1000, max_seconds=0.15, first_wait_s=0.01, longest_wait_s=0.01
        )
        async for attempt in RetryPolicy(settings, asyncio.sleep, lambda: 1.0).attempts():
            with attempt:
                attempts += 1
                await asyncio.sleep(0.04)
                if attempts < 500:
                    raise ServerFault("no")
        return attempts

    with pytest.raises(ServerFault):
        asyncio.run(main())


def test_a_sleep_that_raises_leaves_at_once() -> None:
    """How a run that drains leaves a wait of minutes."""

    class Draining(Exception):
        pass

    attempts = 0

    async def sleep(seconds: float) -> None:
        raise Draining

    async def main() -> None:
        nonlocal attempts
        async for attempt in RetryPolicy(Retry(), sleep).attempts():
            with attempt:
                attempts += 1
                raise ServerFault("no")

    with pytest.raises(Draining):
        asyncio.run(main())
    assert attempts == 1


def test_samples_are_counted_apart() -> None:
    """One policy serves all samples; the attempts of one do not use up another's."""

    async def main() -> list[int]:
        async def sleep(seconds: float) -> None:
            await asyncio.sleep(0)

        policy = RetryPolicy(Retry(max_attempts=3), sleep)

        async def sample() -> int:
            attempts = 0
            try:
                async for attempt in policy.attempts():
                    with attempt:
                        attempts += 1
                        raise ServerFault("no")
            except ServerFault:
                pass
            return attempts

        return await asyncio.gather(*(sample() for _ in range(5)))

    assert asyncio.run(main()) == [3] * 5
