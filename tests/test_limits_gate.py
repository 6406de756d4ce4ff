"""The gate never lets too many through, forgets nobody, and closes only the endpoint that asked."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen.errors import ExitCode, RunStopped
from corpusgen.limits import Fate, Gate, GateSettings, Need, Permit
from corpusgen.limits.concurrency import START
from corpusgen.teachers.interface import Endpoint
from corpusgen.types import RateHint
from tests.virtual_time import run_virtually

A, B = Endpoint("a", 2), Endpoint("b", 6)
ANY = Need("sample")
ANSWERED = Fate("answered", tokens=100, output_tokens=90)
UNREACHABLE = Fate("unreachable", reason="nobody listens there.")


def now() -> float:
    return asyncio.get_running_loop().time()


def gate_of(*endpoints: Endpoint, news: list[str] | None = None, **changes: Any) -> Gate:
    tell = None if news is None else news.append
    return Gate(endpoints, asyncio.get_running_loop().time, GateSettings(**changes), tell=tell)


def begin(work: Coroutine[Any, Any, Permit]) -> asyncio.Task[Permit]:
    return asyncio.create_task(work)


async def waits(*tasks: asyncio.Task[Any]) -> bool:
    """Let everything run that can; return whether all of the tasks still wait."""
    for _ in range(10):
        await asyncio.sleep(0)
    return not any(task.done() for task in tasks)


# Places


@settings(max_examples=40, deadline=None)
@given(
    limits=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    most=st.none() | st.integers(1, 12),
    sticky=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_no_limit_is_ever_exceeded_and_everyone_gets_through(
    limits: list[int], most: int | None, sticky: bool, seed: int
) -> None:
    chance = random.Random(seed)
    endpoints = [Endpoint(str(index), limit) for index, limit in enumerate(limits)]
    inside: Counter[str] = Counter()
    ended = 0

    async def hold(gate: Gate, permit: Permit) -> None:
        name = permit.endpoint.name
        inside[name] += 1
        try:
            assert inside[name] <= limits[int(name)]
            assert inside.total() <= gate.in_flight <= gate.concurrency
            await asyncio.sleep(chance.choice([0, 0, 0.01, 1]))
        finally:
            inside[name] -= 1

    async def request(gate: Gate, number: int) -> None:
        nonlocal ended
        prefix = bytes([chance.randrange(8)]) if sticky else None
        permit = await gate.enter(Need(str(number), prefix=prefix))
        fate = Fate("cancelled")
        try:
            await hold(gate, permit)
            fate = chance.choice([ANSWERED, ANSWERED, Fate("refused", pause_s=0.5)])
        finally:
            if chance.random() < 0.1:
                gate.give_back(permit)
            else:
                gate.leave(permit, fate)
        ended += 1

    async def main() -> int:
        gate = gate_of(*endpoints, max_concurrency=most, sticky=sticky)
        assert gate.concurrency == min(sum(limits), most or sum(limits))
        tasks = [asyncio.create_task(request(gate, number)) for number in range(60)]
        cancelled = [task for task in tasks if chance.random() < 0.2]
        for task in cancelled:
            await asyncio.sleep(chance.choice([0, 0.005, 0.3]))
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(o) for o in outcomes} <= {type(None), asyncio.CancelledError}
        assert gate.in_flight == gate.waiting == 0
        for limit in range(sum(limits) if most is None else min(most, sum(limits))):
            await gate.enter(Need(f"after {limit}"))  # no place was lost on the way
        return sum(o is None for o in outcomes)

    assert run_virtually(main()) == ended


def test_the_least_loaded_endpoint_is_chosen() -> None:
    async def main() -> list[str]:
        gate = gate_of(A, B)
        return [(await gate.enter(ANY)).endpoint.name for _ in range(8)]

    names = run_virtually(main())
    assert Counter(names) == {"a": 2, "b": 6}
    assert Counter(names[:4]) == {"a": 1, "b": 3}, "in proportion to what each takes"


def test_a_weight_is_a_share_of_the_load() -> None:
    async def main() -> Counter[str]:
        gate = gate_of(Endpoint("a", 100, weight=3), Endpoint("b", 100), max_concurrency=40)
        return Counter([(await gate.enter(ANY)).endpoint.name for _ in range(40)])

    assert run_virtually(main()) == {"a": 30, "b": 10}


def test_an_endpoint_without_a_limit_starts_low() -> None:
    async def main() -> None:
        assert gate_of(Endpoint("x")).concurrency == START
        assert gate_of(Endpoint("x"), A).concurrency == START + 2
        assert gate_of(Endpoint("x"), max_concurrency=3).concurrency == 3

    run_virtually(main())


def test_those_who_waited_longest_go_first() -> None:
    order: list[int] = []

    async def request(gate: Gate, number: int) -> None:
        permit = await gate.enter(Need(str(number)))
        order.append(number)
        await asyncio.sleep(1)
        gate.leave(permit, ANSWERED)

    async def main() -> None:
        gate = gate_of(A)
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(request(gate, number))

    run_virtually(main())
    assert order == list(range(20))


def test_nobody_overtakes_those_in_line() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("x", 1))
        taken = await gate.enter(ANY)
        first, second = begin(gate.enter(ANY)), begin(gate.enter(ANY))
        assert await waits(first, second)
        gate.leave(taken, ANSWERED)
        third = begin(gate.enter(ANY))
        assert await waits(second, third)
        gate.leave(first.result(), ANSWERED)
        assert await waits(third)
        assert second.done()
        third.cancel()

    run_virtually(main())


def test_a_cancelled_wait_takes_no_place() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("x", 1))
        taken = await gate.enter(ANY)
        waiting = begin(gate.enter(ANY))
        assert await waits(waiting)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert gate.waiting == 0
        gate.leave(taken, ANSWERED)
        assert gate.in_flight == 0
        await gate.enter(ANY)

    run_virtually(main())


def test_one_that_is_cancelled_as_its_turn_comes_passes_the_place_on() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("x", 1))
        taken = await gate.enter(ANY)
        first, second = begin(gate.enter(ANY)), begin(gate.enter(ANY))
        assert await waits(first, second)
        gate.leave(taken, ANSWERED)
        first.cancel()  # its place has been given to it already, and it has not run since
        await asyncio.gather(first, return_exceptions=True)
        await second
        assert gate.in_flight == 1

    run_virtually(main())


def test_the_endpoint_that_just_failed_is_avoided_where_there_is_another() -> None:
    async def main() -> None:
        gate = gate_of(A, B)
        for _ in range(5):
            permit = await gate.enter(Need("s", avoid="b"))
            assert permit.endpoint.name == "a"
            gate.leave(permit, ANSWERED)
        alone = gate_of(A)
        assert (await alone.enter(Need("s", avoid="a"))).endpoint.name == "a"

    run_virtually(main())


def test_demand_ends_while_enough_are_in_line() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("x", 1))
        tasks = [begin(gate.enter(ANY)) for _ in range(1 + gate.wishes)]
        demand = asyncio.create_task(gate.wait_for_demand())
        assert await waits(demand)
        gate.leave(tasks[0].result(), ANSWERED)
        await demand
        for task in tasks:
            task.cancel()

    run_virtually(main())


# Limits by time


def test_requests_keep_to_the_endpoint_s_rate() -> None:
    async def main() -> tuple[float, int]:
        gate = gate_of(Endpoint("x", 50, rpm=60))
        for _ in range(31):
            gate.leave(await gate.enter(ANY), ANSWERED)
        return now(), gate.in_flight

    assert run_virtually(main()) == (pytest.approx(30, abs=1), 0)


def test_tokens_are_settled_on_what_was_used() -> None:
    async def time_of(fate: Fate, tpm: int = 6000, **limits: Any) -> float:
        gate = gate_of(Endpoint("x", 50, tpm=tpm, **limits))
        assert gate.counts_tokens
        for _ in range(60):
            gate.leave(await gate.enter(Need("s", tokens=100, most_tokens=390)), fate)
        return now()

    used = Fate("answered", tokens=100)
    assert run_virtually(time_of(used)) == pytest.approx(60, rel=0.04)
    less = Fate("answered", tokens=50)
    assert run_virtually(time_of(less)) == pytest.approx(30, rel=0.04)
    more = Fate("answered", tokens=300)
    assert run_virtually(time_of(more)) == pytest.approx(180, rel=0.04)
    unknown = Fate("answered")
    assert run_virtually(time_of(unknown)) == pytest.approx(60, rel=0.04)
    never_arrived = Fate("limited", pause_s=0.0001)
    assert run_virtually(time_of(never_arrived, tpm=600)) <= 60, "600 s, were they counted"
    reserved = run_virtually(time_of(less, tpm_counts="max_tokens"))
    assert reserved == pytest.approx(234, rel=0.04), "whatever was used"


def test_a_place_that_was_not_used_costs_nothing() -> None:
    async def main() -> float:
        gate = gate_of(Endpoint("x", 50, rpm=60, rpd=5))
        for _ in range(100):
            gate.give_back(await gate.enter(ANY))
        return now()

    assert run_virtually(main()) == 0.0


def test_a_pause_closes_one_endpoint_until_it_is_over() -> None:
    async def main() -> None:
        gate = gate_of(A, B)
        first = await gate.enter(ANY)
        gate.leave(first, Fate("limited", pause_s=60))
        paused, other = ("a", B) if first.endpoint.name == "a" else ("b", A)
        taken = [await gate.enter(ANY) for _ in range(other.max_concurrency or 0)]
        assert {permit.endpoint.name for permit in taken} == {other.name}
        assert now() == 0.0, "the other went on at once"
        late = await gate.enter(ANY)
        assert (late.endpoint.name, now()) == (paused, pytest.approx(60, abs=0.01))

    run_virtually(main())


def test_a_shorter_pause_does_not_cut_a_longer_one_short() -> None:
    async def main() -> float:
        gate = gate_of(A)
        first, second = await gate.enter(ANY), await gate.enter(ANY)
        gate.leave(first, Fate("limited", pause_s=60))
        gate.leave(second, Fate("limited", pause_s=1))
        await gate.enter(ANY)
        return now()

    assert run_virtually(main()) == pytest.approx(60, abs=0.01)


@pytest.mark.parametrize(
    "hint",
    [
        RateHint(requests_remaining=0, requests_reset_s=7.0),
        RateHint(tokens_remaining=0, tokens_reset_s=7.0),
    ],
)
def test_headers_that_say_that_nothing_remains_are_believed(hint: RateHint) -> None:
    async def main() -> float:
        gate = gate_of(A)
        gate.leave(await gate.enter(ANY), Fate("answered", rate=hint))
        await gate.enter(ANY)
        return now()

    assert run_virtually(main()) == pytest.approx(7, abs=0.01)


def test_a_single_refusal_of_the_first_request_makes_nothing_crawl() -> None:
    async def main() -> float:
        gate = gate_of(Endpoint("x", 8))
        gate.leave(await gate.enter(ANY), Fate("limited", reason="busy"))
        for _ in range(50):
            gate.leave(await gate.enter(ANY), ANSWERED)
        return now()

    assert run_virtually(main()) < 2


def test_those_that_were_begun_come_in_line_before_more_are_wanted() -> None:
    async def main() -> int:
        gate = gate_of(Endpoint("x", 2))
        tasks = []

        async def feed() -> None:
            while True:
                await gate.wait_for_demand()
                tasks.append(begin(gate.enter(ANY)))

        feeding = asyncio.create_task(feed())
        await asyncio.sleep(1)
        for task in (feeding, *tasks):
            task.cancel()
        return len(tasks)

    assert run_virtually(main()) <= 6


def test_headers_with_something_left_hold_nobody_back() -> None:
    async def main() -> float:
        gate = gate_of(Endpoint("x", 9, rpm=600))
        hint = RateHint(requests_remaining=500, tokens_remaining=5)
        for _ in range(5):
            gate.leave(await gate.enter(ANY), Fate("answered", rate=hint))
        return now()

    assert run_virtually(main()) == 0.0


def test_a_pause_longer_than_the_longest_stops_the_run_to_go_on_later() -> None:
    async def main() -> RunStopped:
        gate = gate_of(Endpoint("one", 2), longest_pause_s=3600)
        gate.leave(await gate.enter(ANY), Fate("limited", pause_s=9000))
        with pytest.raises(RunStopped) as stopped:
            await gate.enter(ANY)
        assert now() == 0.0, "nobody waits for that"
        return stopped.value

    stopped = run_virtually(main())
    assert stopped.exit_code is ExitCode.BUDGET
    assert str(stopped) == (
        "the limits of one are used up for the next 2.5 hours, longer than "
        "generate.longest_pause_s. What was answered is committed; run the same command again then"
    )


def test_a_long_pause_of_one_endpoint_does_not_stop_the_run() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("a", 1), Endpoint("b", 1))
        first = await gate.enter(ANY)
        gate.leave(first, Fate("limited", pause_s=90_000))
        for _ in range(5):
            permit = await gate.enter(ANY)
            assert permit.endpoint.name != first.endpoint.name
            gate.leave(permit, ANSWERED)

    run_virtually(main())


def test_a_daily_cap_stops_the_run_and_counts_earlier_processes() -> None:
    async def main() -> None:
        gate = Gate([Endpoint("x", 4, rpd=10)], now_of_loop(), earlier={"x": [(60.0, 5)] * 7})
        for _ in range(3):
            gate.leave(await gate.enter(ANY), ANSWERED)
        with pytest.raises(RunStopped, match=r"used up for the next 24\.0 hours") as stopped:
            await gate.enter(ANY)
        assert stopped.value.exit_code is ExitCode.BUDGET

    run_virtually(main())


def now_of_loop() -> Any:
    return asyncio.get_running_loop().time


# Health


def test_a_sick_endpoint_is_left_alone_and_taken_back_and_both_are_told_once() -> None:
    news: list[str] = []

    asked: list[tuple[str, float]] = []

    async def ask(gate: Gate) -> None:
        while now() < 60:
            permit = await gate.enter(Need(f"at {now()}"))
            await asyncio.sleep(0.1)
            sick = permit.endpoint.name == "b" and 10 <= now() < 40
            gate.leave(permit, Fate("broken", reason="HTTP 500.") if sick else ANSWERED)
            asked.append((permit.endpoint.name, now()))

    async def main() -> None:
        gate = gate_of(Endpoint("a", 2), Endpoint("b", 2), news=news)
        await asyncio.gather(*(ask(gate) for _ in range(4)))

    run_virtually(main())
    assert news == ["endpoint b is left alone for a while: HTTP 500.", "endpoint b answers again"]
    to_b = [when for name, when in asked if name == "b"]
    assert sum(11 <= when < 40 for when in to_b) <= 8, "only probes"
    assert sum(when >= 51 for when in to_b) > 150, "its share again"
    to_a = [when for name, when in asked if name == "a"]
    assert sum(11 <= when < 40 for when in to_a) > 0.95 * 2 * 290, "the other loses nothing"


async def reach_nobody(gate: Gate) -> None:
    while True:
        gate.leave(await gate.enter(Need(str(now()))), UNREACHABLE)


def test_an_outage_stops_the_run() -> None:
    async def main() -> RunStopped:
        gate = gate_of(Endpoint("a", 4), Endpoint("b", 4), outage_s=120)
        gate.leave(await gate.enter(ANY), ANSWERED)
        with pytest.raises(RunStopped) as stopped:
            await reach_nobody(gate)
        assert 120 < now() < 140
        return stopped.value

    stopped = run_virtually(main())
    assert stopped.exit_code is ExitCode.ERROR
    assert str(stopped).startswith("no endpoint of the teacher answers; a said last: nobody ")
    assert "What was answered is committed" in str(stopped)


def test_endpoints_that_were_never_there_stop_the_run_soon() -> None:
    async def main() -> float:
        gate = gate_of(Endpoint("a", 4), Endpoint("b", 4), outage_s=900)
        with pytest.raises(RunStopped) as stopped:
            await reach_nobody(gate)
        assert stopped.value.exit_code is ExitCode.ERROR
        return now()

    assert run_virtually(main()) < 60


def test_an_endpoint_that_lives_puts_the_outage_off() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("a", 4), outage_s=120)
        while now() < 1000:
            permit = await gate.enter(Need(str(now())))
            gate.leave(permit, ANSWERED if now() % 100 < 20 else UNREACHABLE)
            await asyncio.sleep(1)

    run_virtually(main())


def test_a_refused_prompt_proves_that_the_endpoint_lives() -> None:
    async def main() -> None:
        gate = gate_of(A)
        for number in range(100):
            gate.leave(await gate.enter(Need(str(number))), Fate("refused"))
        assert now() == 0.0

    run_virtually(main())


# The first request


def test_a_probed_endpoint_gets_one_request_first() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("x", 8, probed=True))
        first = await gate.enter(ANY)
        others = [begin(gate.enter(ANY)) for _ in range(3)]
        assert await waits(*others)
        await asyncio.sleep(1)
        gate.leave(first, ANSWERED)
        await asyncio.gather(*others)
        assert now() == 1.0

    run_virtually(main())


def test_a_slow_first_answer_holds_the_others_back_for_three_seconds_only() -> None:
    async def main() -> float:
        gate = gate_of(Endpoint("x", 8, probed=True))
        await asyncio.gather(*(gate.enter(ANY) for _ in range(5)))
        return now()

    assert run_virtually(main()) == pytest.approx(3, abs=0.01)


# Sticky routing


def test_prompts_that_begin_alike_go_to_the_same_endpoint() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("a", 50), Endpoint("b", 50), Endpoint("c", 50), sticky=True)
        homes: dict[bytes, set[str]] = {}
        for number in range(120):
            prefix = b"prompt %d" % (number % 6)
            permit = await gate.enter(Need(str(number), prefix=prefix))
            homes.setdefault(prefix, set()).add(permit.endpoint.name)
            if number % 3 == 0:
                gate.leave(permit, ANSWERED)
        assert all(len(names) == 1 for names in homes.values())
        assert len(set.union(*homes.values())) > 1

    run_virtually(main())


def test_where_the_favourite_has_no_room_another_serves() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("a", 2), Endpoint("b", 2), sticky=True)
        need = Need("s", prefix=b"alike")
        names = [(await gate.enter(need)).endpoint.name for _ in range(4)]
        assert names[0] == names[1] != names[2] == names[3]

    run_virtually(main())


def test_a_place_that_comes_free_goes_to_one_who_prefers_it() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("a", 1), Endpoint("b", 1), sticky=True)
        prefixes = {name: await prefix_for(name) for name in "ab"}
        held = {name: await gate.enter(Need("s", prefix=prefixes[name])) for name in "ab"}
        to_a = begin(gate.enter(Need("1", prefix=prefixes["a"])))
        to_b = begin(gate.enter(Need("2", prefix=prefixes["b"])))
        assert await waits(to_a, to_b)
        gate.leave(held["b"], ANSWERED)
        assert await waits(to_a)
        assert to_b.result().endpoint.name == "b"
        to_a.cancel()

    run_virtually(main())


async def prefix_for(name: str) -> bytes:
    """Return how a prompt begins that prefers an endpoint."""
    for number in range(100):
        gate = gate_of(Endpoint("a", 1), Endpoint("b", 1), sticky=True)
        prefix = b"%d" % number
        if (await gate.enter(Need("s", prefix=prefix))).endpoint.name == name:
            return prefix
    raise AssertionError(name)


def test_a_sick_favourite_is_left_and_found_again() -> None:
    async def main() -> None:
        gate = gate_of(Endpoint("a", 4), Endpoint("b", 4), sticky=True)
        need = Need("s", prefix=b"alike")
        first = await gate.enter(need)
        home = first.endpoint.name
        gate.leave(first, UNREACHABLE)
        for _ in range(5):
            permit = await gate.enter(need)
            assert permit.endpoint.name != home
            gate.leave(permit, ANSWERED)
        await asyncio.sleep(2)
        probe = await gate.enter(Need("t", avoid="b" if home == "a" else "a"))
        assert probe.endpoint.name == home
        gate.leave(probe, ANSWERED)
        assert (await gate.enter(need)).endpoint.name == home

    run_virtually(main())


def test_prefixes_are_spread_by_weight() -> None:
    async def main() -> Counter[str]:
        gate = gate_of(Endpoint("a", 9, weight=3), Endpoint("b", 9), sticky=True)
        found: Counter[str] = Counter()
        for number in range(2000):
            permit = await gate.enter(Need("s", prefix=b"%d" % number))
            found[permit.endpoint.name] += 1
            gate.leave(permit, ANSWERED)
        return found

    found = run_virtually(main())
    assert 0.70 < found["a"] / found.total() < 0.80


def test_an_endpoint_that_is_added_takes_only_its_share_of_the_prefixes() -> None:
    async def homes(*names: str) -> list[str]:
        gate = gate_of(*(Endpoint(name, 9) for name in names), sticky=True)
        found = []
        for number in range(400):
            permit = await gate.enter(Need("s", prefix=b"%d" % number))
            found.append(permit.endpoint.name)
            gate.leave(permit, ANSWERED)
        return found

    before, after = run_virtually(homes("a", "b")), run_virtually(homes("a", "b", "c"))
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"c"}
    assert 90 < len(moved) < 180


# The end of endpoints


def test_a_feeder_that_waits_hears_that_all_endpoints_are_used_up() -> None:
    async def main() -> int:
        gate = gate_of(Endpoint("x", 2), max_concurrency=2)
        permits = [await gate.enter(ANY) for _ in range(2)]
        line = [begin(gate.enter(ANY)) for _ in range(gate.wishes)]
        assert await waits(*line)
        feeder = asyncio.create_task(gate.wait_for_demand())
        assert await waits(feeder)
        for permit in permits:
            gate.leave(permit, Fate("used_up", reason="no money."))
        ends = await asyncio.gather(*line, return_exceptions=True)
        assert all(isinstance(end, RunStopped) for end in ends)
        async with asyncio.timeout(5):
            return await feeder

    assert run_virtually(main()) > 0


@pytest.mark.parametrize(
    ("first", "code"),
    [
        (Fate("used_up", reason="no money."), ExitCode.ERROR),
        (Fate("limited", pause_s=36_000), ExitCode.BUDGET),
    ],
)
def test_a_used_up_or_paused_endpoint_beside_a_dead_one_ends_the_run(
    first: Fate, code: ExitCode
) -> None:
    async def main() -> tuple[float, ExitCode]:
        gate = gate_of(Endpoint("a", 1), Endpoint("b", 1), outage_s=900)
        one, other = await gate.enter(ANY), await gate.enter(ANY)
        gate.leave(other, ANSWERED)
        gate.leave(one, first)
        while True:
            try:
                permit = await gate.enter(ANY)
            except RunStopped as stopped:
                return now(), stopped.exit_code
            assert permit.endpoint.name == other.endpoint.name
            gate.leave(permit, UNREACHABLE)

    took, found = run_virtually(main())
    assert 900 < took < 1000
    assert found is code


def test_a_pause_of_nothing_is_not_met_with_a_flood() -> None:
    async def main() -> int:
        gate = gate_of(Endpoint("x", 8))
        sent = 0
        while now() < 10:
            gate.leave(await gate.enter(ANY), Fate("limited", pause_s=0.0))
            sent += 1
        return sent

    assert run_virtually(main()) < 20
