"""How many may be in flight: never more than configured, fewer where it does not get through."""

from __future__ import annotations

import random

import pytest

from corpusgen.limits.concurrency import CEILING, START, Concurrency
from corpusgen.teachers.interface import Endpoint
from tests.simulated_servers import SlotServer, simulate


def answer(limit: Concurrency, count: int, latency_s: float = 1.0, tokens: int = 100) -> None:
    """Let requests be sent at the limit and answered."""
    for _ in range(count):
        epoch = limit.epoch
        limit.sent(limit.limit)
        limit.answered(epoch, tokens, latency_s)


def refuse(limit: Concurrency, count: int, in_flight: int) -> None:
    """Let requests be refused with so many others in flight."""
    for _ in range(count):
        epoch = limit.epoch
        limit.sent(limit.limit)
        limit.refused(epoch, in_flight)


@pytest.mark.parametrize("configured", [1, 7, 500])
def test_a_configured_limit_holds_from_the_start_and_answers_do_not_move_it(
    configured: int,
) -> None:
    limit = Concurrency(configured)
    assert limit.limit == configured
    answer(limit, 3000, latency_s=1.0)
    answer(limit, 3000, latency_s=50.0)
    assert limit.limit == configured


def test_the_peak_in_flight_equals_the_limit() -> None:
    class Counting(SlotServer):
        peak = inside = 0

        async def ask(self, job):  # type: ignore[no-untyped-def]
            self.inside += 1
            self.peak = max(self.peak, self.inside)
            try:
                return await super().ask(job)
            finally:
                self.inside -= 1

    server = Counting(1000)
    client = simulate([Endpoint("a", 50)], {"a": server}, random.Random(1), 30)
    assert server.peak == client.gate.concurrency == 50


def test_refusals_lower_a_configured_limit_to_what_got_through() -> None:
    limit = Concurrency(200)
    refuse(limit, 100, in_flight=90)
    assert limit.limit == 90
    refuse(limit, 45, in_flight=1)
    assert limit.limit == 31, "never to less than a third at once"


def test_quiet_windows_raise_it_again_up_to_what_is_configured() -> None:
    limit = Concurrency(100)
    refuse(limit, 50, in_flight=60)
    low = limit.limit
    assert low == 60
    seen = []
    for _ in range(60):
        answer(limit, 200)
        seen.append(limit.limit)
    assert seen == sorted(seen)
    assert seen[-1] == 100


def test_refusals_at_any_load_restore_the_limit() -> None:
    limit = Concurrency(100)
    chance = random.Random(1)
    for _ in range(3000):
        if chance.random() < 0.1:
            refuse(limit, 1, in_flight=limit.limit - 1)
        else:
            answer(limit, 1)
    assert limit.limit == 100


def test_a_refusal_now_and_then_lowers_nothing() -> None:
    for configured in (None, 100):
        limit = Concurrency(configured)
        for _ in range(200):
            before = limit.limit
            answer(limit, 24)
            refuse(limit, 1, in_flight=1)
            assert limit.limit >= 0.7 * before


def test_an_acquitted_limit_is_as_if_nothing_had_been_refused() -> None:
    limit = Concurrency(100)
    refuse(limit, 50, in_flight=5)
    assert limit.limit == 35
    limit.acquit()
    assert limit.limit == 100
    adaptive = Concurrency(None)
    refuse(adaptive, START, in_flight=1)
    low = adaptive.limit
    assert low < START
    adaptive.acquit()
    assert adaptive.limit == low
    answer(adaptive, 200)
    assert adaptive.limit >= 2 * low, "it doubles again"


def test_what_was_sent_under_another_limit_proves_nothing() -> None:
    limit = Concurrency(100)
    epoch = limit.epoch
    refuse(limit, 50, in_flight=60)
    for _ in range(500):
        limit.refused(epoch, 1)
        limit.answered(epoch, 100, 1000.0)
    assert limit.limit == 60


def test_a_limit_that_nobody_configured_starts_low_and_doubles_while_it_pays() -> None:
    limit = Concurrency(None)
    assert limit.limit == START
    answer(limit, START)
    answer(limit, 3 * START)
    assert limit.limit > START
    answer(limit, 200_000)  # as fast at any load
    assert limit.limit == CEILING


def test_it_does_not_pass_its_ceiling() -> None:
    limit = Concurrency(None, ceiling=20)
    for _ in range(100):
        answer(limit, 200)
        assert limit.limit <= 20
    assert limit.limit == 20
    assert Concurrency(None, ceiling=3).limit == 3


def test_more_that_only_waits_is_not_kept() -> None:
    limit = Concurrency(None)
    highest = 0
    for _ in range(400):
        latency = max(1.0, limit.limit / 32)  # 32 at once; the others wait
        answer(limit, max(limit.limit, 16), latency)
        highest = max(highest, limit.limit)
    assert 28 <= limit.limit <= 50
    assert highest <= 70


def test_where_the_limit_is_not_reached_nothing_is_learned() -> None:
    limit = Concurrency(None)
    for _ in range(2000):
        epoch = limit.epoch
        limit.sent(2)
        limit.answered(epoch, 100, 1.0)
    assert limit.limit == START


def test_a_sudden_collapse_lowers_it() -> None:
    limit = Concurrency(None)
    for _ in range(200):
        answer(limit, 200, max(1.0, limit.limit / 64))
    before = limit.limit
    for _ in range(12):
        answer(limit, 300, latency_s=10 * (limit.limit / 16) ** 2)
    assert limit.limit < 0.75 * before


def test_it_never_falls_below_one() -> None:
    for configured in (None, 3):
        limit = Concurrency(configured)
        for _ in range(50):
            refuse(limit, 40, in_flight=0)
            assert limit.limit >= 1


def test_an_endpoint_that_was_away_is_measured_anew() -> None:
    limit = Concurrency(None)
    answer(limit, 1000)
    epoch, before = limit.epoch, limit.limit
    limit.restart()
    assert limit.epoch != epoch
    assert limit.limit == before
