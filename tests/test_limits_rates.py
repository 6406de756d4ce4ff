"""No minute sees more than its limit, no day more than its cap, and what is unknown is learned."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen.limits.bucket import DAY_S, Bucket, DailyCap, Pace
from corpusgen.limits.expected import Expectation
from corpusgen.types import Request, Sampling, Usage
from tests.hand_clock import HandClock


def take_when_open(limit: Bucket | DailyCap, clock: HandClock, units: float) -> float:
    """Wait as long as the limit says, take, and return when that was."""
    for _ in range(5):  # a wait that was rounded down is followed by a tiny one
        wait = limit.opens_in(units)
        if wait == 0.0:
            break
        clock.now += wait + 1e-9
    assert limit.opens_in(units) == 0.0
    limit.take(units)
    return clock.now


# Bucket


@settings(max_examples=60, deadline=None)
@given(
    per_minute=st.integers(1, 5000),
    asked=st.lists(
        st.tuples(st.just(0.0) | st.floats(0, 90), st.floats(0, 1)), min_size=1, max_size=80
    ),
)
def test_no_minute_sees_more_than_the_limit_whatever_is_asked(
    per_minute: int, asked: list[tuple[float, float]]
) -> None:
    clock = HandClock()
    bucket = Bucket(per_minute, clock)
    taken: list[tuple[float, int]] = []
    for pause, share in asked:
        clock.now += pause
        units = max(int(share**3 * per_minute), 1)  # many small ones, some as large as the limit
        taken.append((take_when_open(bucket, clock, units), units))
    for until, _ in taken:
        assert sum(units for when, units in taken if until - 60 < when <= until) <= per_minute


@pytest.mark.parametrize("per_minute", [1, 3, 10, 600, 6000])
def test_nearly_all_of_the_limit_is_let_through(per_minute: int) -> None:
    clock = HandClock()
    bucket = Bucket(per_minute, clock)
    taken = 0
    while take_when_open(bucket, clock, 1) <= 600:
        taken += 1
    assert 0.98 * 10 * per_minute - 1 <= taken <= 10 * per_minute + 1


def test_large_requests_get_their_share_of_the_limit() -> None:
    clock = HandClock()
    bucket = Bucket(60_000, clock)
    taken = 0
    while take_when_open(bucket, clock, 5_000) <= 600:
        taken += 5_000
    assert taken >= 0.9 * 600_000


def test_a_burst_is_a_second_s_worth() -> None:
    clock = HandClock()
    bucket = Bucket(600, clock)
    for _ in range(10):
        assert bucket.opens_in(1) == 0.0
        bucket.take(1)
    assert 0.09 < bucket.opens_in(1) < 0.12
    clock.now += 3600
    assert bucket.opens_in(1) == 0.0
    bucket.take(10)
    assert bucket.opens_in(1) > 0, "an hour of quiet saves up no more"


def test_a_request_larger_than_the_bucket_leaves_a_debt() -> None:
    bucket = Bucket(600, HandClock())
    assert bucket.opens_in(100) == 0.0
    bucket.take(100)
    assert bucket.opens_in(1) == pytest.approx((100 - 10 + 1) / bucket.rate)


def test_a_request_larger_than_the_limit_goes_once_the_minute_is_empty() -> None:
    clock = HandClock()
    bucket = Bucket(600, clock)
    bucket.take(1)
    assert 60 <= bucket.opens_in(5000) < 61
    assert take_when_open(bucket, clock, 5000) < 61


def test_an_estimate_is_settled_both_ways() -> None:
    clock = HandClock()
    bucket = Bucket(6000, clock)
    bucket.take(100)
    bucket.take(-40)
    assert bucket.opens_in(40) == 0.0, "less was used"
    assert bucket.opens_in(50) == pytest.approx(10 / bucket.rate)
    bucket.take(60)
    assert bucket.opens_in(1) == pytest.approx(21 / bucket.rate), "more was used"
    bucket.take(-10_000)
    assert bucket.opens_in(100) == 0.0
    bucket.take(100)
    assert bucket.opens_in(1) > 0, "what is given back fills the bucket and no more"


def test_a_server_that_says_that_less_remains_is_believed() -> None:
    bucket = Bucket(600, HandClock())
    bucket.lower(5000)
    assert bucket.opens_in(10) == 0.0, "a higher figure opens nothing"
    bucket.lower(0)
    assert bucket.opens_in(1) == pytest.approx(1 / bucket.rate)


def test_a_drained_bucket_stays_closed_for_so_long() -> None:
    clock = HandClock()
    bucket = Bucket(600, clock)
    bucket.drain(2)
    clock.now = 2.0
    assert 0 < bucket.opens_in(1) < 0.11
    clock.now = 2.11
    assert bucket.opens_in(1) == 0.0


# DailyCap


@settings(max_examples=40, deadline=None)
@given(
    per_day=st.integers(1, 300),
    asked=st.lists(st.tuples(st.floats(0, DAY_S), st.integers(1, 300)), min_size=1, max_size=30),
)
def test_no_24_hours_see_more_than_the_cap(per_day: int, asked: list[tuple[float, int]]) -> None:
    clock = HandClock(1_000_000.0)
    cap = DailyCap(per_day, clock)
    taken: list[tuple[float, int]] = []
    for pause, wanted in asked:
        clock.now += pause
        units = min(wanted, per_day)
        taken.append((take_when_open(cap, clock, units), units))
    for until, _ in taken:
        assert sum(units for when, units in taken if until - DAY_S < when <= until) <= per_day


def test_a_cap_opens_when_the_first_of_it_is_a_day_old() -> None:
    clock = HandClock(30.0)
    cap = DailyCap(3, clock)
    for _ in range(3):
        assert cap.opens_in(1) == 0.0
        cap.take(1)
        clock.now += 3600
    assert cap.opens_in(1) == pytest.approx(DAY_S - 3 * 3600, abs=60)
    assert cap.opens_in(2) == pytest.approx(DAY_S - 2 * 3600, abs=60)
    clock.now = 30 + DAY_S + 60
    assert cap.opens_in(1) == 0.0


def test_what_earlier_processes_took_counts() -> None:
    clock = HandClock(5.0)
    cap = DailyCap(100, clock, [(100.0, 30.0), (DAY_S - 600, 60.0), (DAY_S + 600, 1000.0)])
    assert cap.opens_in(10) == 0.0
    assert cap.opens_in(11) == pytest.approx(600, abs=61)
    assert cap.opens_in(71) == pytest.approx(DAY_S - 100, abs=61)


def test_a_daily_cap_is_settled() -> None:
    cap = DailyCap(100, HandClock())
    cap.take(80)
    assert cap.opens_in(30) > 0
    cap.take(-50)
    assert cap.opens_in(30) == 0.0


def test_more_than_a_day_allows_goes_after_a_day_without_any() -> None:
    clock = HandClock()
    cap = DailyCap(100, clock)
    assert cap.opens_in(500) == 0.0
    cap.take(1)
    assert cap.opens_in(500) == pytest.approx(DAY_S, abs=61)


# Pace


def spend(pace: Pace, clock: HandClock, a_second: float, seconds: float) -> None:
    """Send at an even rate; all are let through."""
    for _ in range(int(a_second * seconds)):
        pace.sent()
        pace.admitted()
        clock.now += 1 / a_second


def test_without_a_refusal_there_is_no_pace() -> None:
    clock = HandClock()
    pace = Pace(clock)
    spend(pace, clock, 100, 10)
    assert pace.per_minute is None
    assert pace.opens_in() == 0.0


def test_a_refusal_while_others_are_in_flight_may_be_for_the_load() -> None:
    clock = HandClock()
    pace = Pace(clock)
    spend(pace, clock, 10, 60)
    assert not pace.refused(alone=False)
    assert pace.per_minute is None


def test_what_the_last_minute_let_through_is_taken_for_the_limit() -> None:
    clock = HandClock()
    pace = Pace(clock)
    spend(pace, clock, 5, 100)
    assert pace.refused(alone=True), "it is found"
    assert not pace.refused(alone=True), "once"
    assert pace.per_minute == pytest.approx(300, rel=0.05)


def test_what_was_refused_was_not_let_through() -> None:
    clock = HandClock()
    pace = Pace(clock)
    for _ in range(100):
        pace.sent()
    for _ in range(40):
        pace.forget(clock.now)
    pace.refused(alone=True)
    assert pace.per_minute == pytest.approx(60, rel=0.05)


def test_a_pace_falls_with_refusals_and_rises_without() -> None:
    clock = HandClock()
    pace = Pace(clock)
    spend(pace, clock, 10, 60)
    pace.refused(alone=True)
    learned = pace.per_minute
    assert learned is not None
    pace.refused(alone=False)
    assert pace.per_minute == learned, "the same wall, met twice"
    pace.admitted()
    pace.refused(alone=False)
    assert pace.per_minute == pytest.approx(0.97 * learned)
    for _ in range(6):
        clock.now += 10
        pace.opens_in()
    assert pace.per_minute == pytest.approx(0.97 * learned * 1.003**60)
    clock.now += 30 * 86_400
    assert pace.opens_in() == 0
    assert pace.per_minute < 1.25 * learned, "a month of waiting teaches nothing"


def test_a_pace_holds_requests_back() -> None:
    clock = HandClock()
    pace = Pace(clock)
    spend(pace, clock, 1, 60)
    pace.refused(alone=True)
    sent = 0
    while clock.now < 120:
        wait = pace.opens_in()
        if wait:
            clock.now += wait
        else:
            pace.sent()
            sent += 1
    assert 50 <= sent <= 75


# Expectation


def request(text: str, max_tokens: int | None = 1000, draws: int = 1) -> Request:
    return Request(
        [{"role": "user", "content": text}], Sampling(max_tokens=max_tokens), draws=draws
    )


def test_a_first_guess_is_made_of_bytes_and_never_above_the_most() -> None:
    likely, most = Expectation().tokens(request("x" * 400))
    assert 100 <= likely - 256 <= 150
    assert most - likely == 1000 - 256
    short = Expectation().tokens(request("x", max_tokens=10))
    assert short[0] == short[1], "an answer is not expected to be longer than it may be"
    unbounded = Expectation().tokens(request("x", max_tokens=None))
    assert unbounded[0] == unbounded[1]


def test_the_guess_follows_the_answers() -> None:
    expectation = Expectation()
    asked = request("x" * 1000)
    for _ in range(200):
        expectation.learn(asked, Usage(700, 90))
    likely, most = expectation.tokens(asked)
    assert likely == pytest.approx(790, abs=2)
    assert most == pytest.approx(1700, abs=2)


def test_draws_are_counted_each() -> None:
    expectation = Expectation()
    for _ in range(200):
        expectation.learn(request("x" * 100, draws=4), Usage(40, 400))
    likely, most = expectation.tokens(request("x" * 100, draws=2))
    assert likely == pytest.approx(40 + 200, abs=2)
    assert most == pytest.approx(40 + 2000, abs=2)


def test_an_answer_without_usage_teaches_nothing() -> None:
    expectation = Expectation()
    before = expectation.tokens(request("x"))
    expectation.learn(request("x"), Usage(None, 5000))
    expectation.learn(request("x"), Usage(5000, None))
    assert expectation.tokens(request("x")) == before
