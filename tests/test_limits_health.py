"""A sick endpoint is left alone, tried once in a while, and taken back when it answers."""

from __future__ import annotations

import pytest

from corpusgen.limits.health import Health
from tests.hand_clock import HandClock


def breaker(first_s: float = 1.0, longest_s: float = 10.0) -> tuple[Health, HandClock]:
    clock = HandClock()
    return Health(clock, first_s, longest_s), clock


def fail(health: Health, *samples: str) -> bool:
    """Let requests fail; return whether the last one ejected the endpoint."""
    ejected = False
    for sample in samples:
        ejected = health.failed(sample, f"{sample} failed", probe=health.sent(), at_once=False)
    return ejected


def test_five_failures_in_a_row_of_three_samples_eject() -> None:
    health, _ = breaker()
    assert not fail(health, "a", "b", "c", "a")
    assert not health.ejected
    assert fail(health, "b")
    assert health.ejected
    assert health.reason == "b failed"


def test_one_prompt_that_always_fails_proves_nothing() -> None:
    health, _ = breaker()
    for _ in range(30):
        assert not fail(health, "a")
        health.alive(probe=False)
    assert not fail(health, *"aaaaabbbbb")


def test_an_answer_between_failures_begins_the_row_anew() -> None:
    health, _ = breaker()
    for _ in range(3):
        fail(health, "a", "b", "c", "d")
        health.alive(probe=False)
    assert not health.ejected


def test_most_of_the_last_twenty_eject_also_where_some_are_answered() -> None:
    health, _ = breaker()
    for index in range(20):
        if health.ejected:
            break
        if index % 3 == 0:
            health.alive(probe=False)
        else:
            fail(health, str(index))
    assert health.ejected


def test_an_endpoint_that_cannot_be_reached_is_ejected_at_once() -> None:
    health, _ = breaker()
    assert health.failed("a", "no route", probe=False, at_once=True)
    assert health.ejected


def test_after_its_cool_off_one_request_tries_it() -> None:
    health, clock = breaker(first_s=2.0)
    health.failed("a", "no route", probe=False, at_once=True)
    assert health.opens_in() == 2.0
    clock.now = 2.0
    assert health.opens_in() == 0.0
    assert health.sent(), "it is the probe"
    assert health.opens_in() is None, "nobody else until it comes back"
    assert health.alive(probe=True), "it returns by that"
    assert not health.ejected
    assert health.opens_in() == 0.0
    assert not health.sent()


def test_the_cool_off_doubles_up_to_the_longest_and_begins_anew() -> None:
    health, clock = breaker(first_s=1.0, longest_s=10.0)
    health.failed("a", "no route", probe=False, at_once=True)
    cool_offs = []
    for _ in range(6):
        wait = health.opens_in()
        assert wait is not None
        cool_offs.append(wait)
        clock.now += wait
        health.failed("a", "still not", probe=health.sent(), at_once=True)
    assert cool_offs == [1, 2, 4, 8, 10, 10]
    clock.now += 10
    health.alive(probe=health.sent())
    health.failed("a", "no route", probe=False, at_once=True)
    assert health.opens_in() == 1.0


def test_answers_of_before_the_ejection_do_not_return_it() -> None:
    health, clock = breaker()
    sent_before = health.sent()
    health.failed("a", "no route", probe=False, at_once=True)
    clock.now = 0.5
    assert not health.alive(probe=sent_before)
    assert health.ejected
    assert health.answered_at == 0.5, "a sign of life all the same"


def test_failures_of_before_the_ejection_do_not_prolong_it() -> None:
    health, clock = breaker()
    health.failed("a", "no route", probe=False, at_once=True)
    clock.now = 0.5
    assert not health.failed("b", "no route", probe=False, at_once=True), "told once only"
    assert health.opens_in() == 0.5


def test_a_probe_that_was_cancelled_is_followed_by_another() -> None:
    health, clock = breaker()
    health.failed("a", "no route", probe=False, at_once=True)
    clock.now = 1.0
    health.given_up(probe=health.sent())
    assert health.ejected
    assert health.opens_in() == 0.0


@pytest.mark.parametrize("closed", [True, False])
def test_refusals_eject_where_nothing_gets_through_any_more(closed: bool) -> None:
    health, _ = breaker()
    health.refused("too many", probe=False, closed=closed)
    assert health.ejected == closed


def test_a_probe_that_is_refused_ends_the_probing() -> None:
    health, clock = breaker()
    health.refused("too many", probe=False, closed=True)
    clock.now = 1.0
    health.refused("too many", probe=health.sent(), closed=False)
    assert health.ejected
    assert health.opens_in() == 2.0
