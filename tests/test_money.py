"""Money is whole picodollars: sums are exact, and nothing is charged below its price."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpusgen.money import (
    LOCAL,
    PICO,
    Tariff,
    dollars,
    dollars_text,
    gpu_picousd,
    listed_tariff,
    picousd,
    tariff,
)

prices = st.decimals(min_value=0, max_value=10_000, places=12, allow_nan=False)
tokens = st.integers(min_value=0, max_value=10_000_000)


def test_a_price_with_six_decimals_is_exact() -> None:
    found = tariff("0.15", "0.60", "0.075", "configuration")
    assert found == Tariff(150_000, 75_000, 600_000, "configuration")
    assert found.cost(1_000_000, 1_000_000) == picousd(Decimal("0.75"))
    assert found.cost(1_000_000, 0, 1_000_000) == picousd(Decimal("0.075"))


def test_fractions_of_a_picodollar_a_token_are_rounded_up() -> None:
    assert tariff("0.0000001", "0.0000015", None, "x").input_picousd == 1
    assert tariff("0.0000001", "0.0000015", None, "x").output_picousd == 2
    assert tariff("0.000001", "0", None, "x").input_picousd == 1
    assert tariff("0", "0", None, "x").input_picousd == 0


@pytest.mark.parametrize("text", ["1e-7", "1E-07", str(1e-7)])
def test_a_number_that_python_spells_with_an_exponent_is_read(text: str) -> None:
    assert tariff(text, "1", None, "x").input_picousd == 1


def test_cached_tokens_are_part_of_the_prompt_and_take_their_own_price() -> None:
    found = Tariff(10, 1, 100, "x")
    assert found.cost(100, 0, None) == found.cost(100, 0, 0) == 1000
    assert found.cost(100, 0, 40) == 60 * 10 + 40
    assert found.cost(100, 0, 500) == 100, "an endpoint that states too many charges no less than 0"


def test_cached_tokens_cost_as_much_as_others_unless_priced() -> None:
    assert tariff("2", "8", None, "x").cached_input_picousd == 2_000_000


@given(prices, prices, prices, tokens, tokens, tokens)
def test_a_cost_is_never_below_the_exact_one_nor_a_picodollar_a_token_above(
    input_price: Decimal, output_price: Decimal, cached_price: Decimal, p: int, c: int, cached: int
) -> None:
    cached = min(cached, p)
    found = tariff(str(input_price), str(output_price), str(cached_price), "x")
    exact = (
        (p - cached) * Fraction(input_price)
        + cached * Fraction(cached_price)
        + c * Fraction(output_price)
    ) * Fraction(PICO, 1_000_000)
    assert exact <= found.cost(p, c, cached) < exact + p + c + 1


@given(st.lists(st.integers(min_value=0, max_value=10**15), max_size=50))
def test_dollars_are_exact_text_without_an_exponent(amounts: list[int]) -> None:
    total = sum(amounts)
    text = dollars(total)
    assert Decimal(text) * PICO == total
    assert "e" not in text.lower()
    assert not (text.endswith("0") and "." in text)
    assert picousd(Decimal(text)) == total


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0"),
        (1, "0.000000000001"),
        (PICO, "1"),
        (10 * PICO, "10"),
        (1_230_000_000, "0.00123"),
        (9 * 10**18, "9000000"),
    ],
)
def test_dollars(amount: int, text: str) -> None:
    assert dollars(amount) == text


def test_a_budget_is_rounded_down() -> None:
    assert picousd(Decimal("0.0000000000019")) == 1
    assert picousd(Decimal("5")) == 5 * PICO


def test_what_is_local_is_free() -> None:
    assert LOCAL.free
    assert LOCAL.cost(10**9, 10**9) == 0
    assert not Tariff(0, 0, 1, "x").free
    assert not Tariff(1, 0, 0, "x").free


OPENAI = "https://api.openai.com/v1"


def test_a_known_model_has_its_listed_price_and_names_its_source() -> None:
    found = listed_tariff("gpt-4o-mini", OPENAI)
    assert found is not None
    assert (found.input_picousd, found.output_picousd) == (150_000, 600_000)
    assert 0 < found.cached_input_picousd < found.input_picousd
    assert found.source == f"genai-prices {version('genai-prices')} (openai/gpt-4o-mini)"


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("no-such-model-at-all", OPENAI),
        ("gpt-4o-mini", "http://127.0.0.1:8000/v1"),
        ("", OPENAI),
        ("gpt-4o-mini", ""),
    ],
)
def test_an_unknown_model_or_place_has_no_price(model: str, url: str) -> None:
    assert listed_tariff(model, url) is None


GOOGLE = "https://generativelanguage.googleapis.com/v1beta"


def test_a_price_that_grows_with_the_prompt_is_the_prompts_own() -> None:
    found = listed_tariff("gemini-2.5-pro", GOOGLE)
    assert found is not None
    assert found.cost(200_000, 1, 0) == 200_000 * 1_250_000 + 10_000_000
    assert found.cost(200_001, 1, 0) == 200_001 * 2_500_000 + 15_000_000
    assert found.input_picousd == 2_500_000, "the fields are those of the longest prompts"


def test_a_worst_case_takes_the_dearest_step_that_its_prompt_may_reach() -> None:
    found = listed_tariff("gemini-2.5-pro", GOOGLE)
    assert found is not None
    assert found.most(200_000, 7) == found.cost(200_000, 7, 0)
    assert found.most(200_001, 7) == found.cost(200_001, 7, 0)


def test_a_price_that_changes_within_a_day_is_taken_at_its_highest() -> None:
    found = listed_tariff("deepseek-chat", "https://api.deepseek.com/v1")
    assert found is not None
    assert (found.input_picousd, found.output_picousd) == (270_000, 1_100_000)


def test_writing_to_a_cache_unasked_is_charged() -> None:
    """OpenAI's newer models charge a quarter more for what they write to the cache."""
    found = listed_tariff("gpt-6-sol", OPENAI)
    assert found is not None
    assert found.cost(1000, 0, 0) == 1000 * 2_500_000


def test_a_price_for_each_request_makes_the_price_unknown() -> None:
    assert listed_tariff("sonar", "https://api.perplexity.ai") is None


def test_reasoning_tokens_are_part_of_the_completions_and_take_their_own_price() -> None:
    found = tariff("1", "2", None, "x", "3")
    assert found.cost(0, 10, 0, 4) == 6 * 2_000_000 + 4 * 3_000_000
    assert found.cost(0, 10, 0, 99) == 10 * 3_000_000
    assert found.cost(0, 10, 0, None) == 10 * 3_000_000, "not stated: the dearer of the two"
    assert tariff("1", "2", None, "x").cost(0, 10, 0, 4) == 10 * 2_000_000
    assert found.most(0, 10) == 10 * 3_000_000
    assert not Tariff(0, 0, 0, "x", 1).free


def test_a_discount_rounds_up_and_says_so() -> None:
    found = tariff("0.000001", "2", None, "x", "3").discounted(Decimal("0.5"))
    assert found == Tariff(1, 1, 1_000_000, "x, less 50%", 1_500_000)


costs = st.integers(min_value=0, max_value=1000)
tariffs = st.builds(
    Tariff,
    costs,
    costs,
    costs,
    st.just("x"),
    st.none() | costs,
    st.just(()) | st.tuples(st.tuples(st.just(50), st.builds(Tariff, costs, costs, costs))),
)
small = st.integers(min_value=0, max_value=100)


@given(st.lists(tariffs, min_size=1, max_size=3), small, small, small, small, st.data())
def test_no_cost_is_above_its_worst_case_nor_above_the_highest_tariffs(
    several: list[Tariff], p: int, c: int, cached: int, reasoning: int, data: st.DataObject
) -> None:
    one = data.draw(st.sampled_from(several))
    parts = data.draw(st.sampled_from([(cached, reasoning), (None, reasoning), (cached, None)]))
    cost = one.cost(p, c, *parts)
    assert cost <= one.most(p, c) <= one.most(p + 7, c + 7)
    assert cost <= Tariff.highest(several).most(p, c)


def test_gpu_time_is_exact_and_rounded_up() -> None:
    assert gpu_picousd(3_600_000_000, 8, Decimal("2.5")) == 20 * PICO
    assert gpu_picousd(1, 1, Decimal("0.0000000001")) == 1
    assert gpu_picousd(0, 8, Decimal("2.5")) == 0
    year = 365 * 24
    assert gpu_picousd(year * 3_600_000_000, 3, Decimal("1.123456789012")) == (
        year * 3 * 1_123_456_789_012
    )


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0"),
        (PICO, "$1.00"),
        (1_234_567 * PICO + PICO // 2, "$1,234,567.50"),
        (PICO // 100, "$0.01"),
        (123_456_789, "$0.0001235"),
        (23_456_789, "$0.00002346"),
        (1, "$0.000000000001"),
        (PICO - 1, "$1"),
    ],
)
def test_dollars_for_people(amount: int, text: str) -> None:
    assert dollars_text(amount) == text
