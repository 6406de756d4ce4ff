"""Money is whole picodollars: sums are exact, and nothing is charged below its price."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpusgen.money import LOCAL, PICO, Tariff, dollars, listed_tariff, picousd, tariff

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
    assert found.source == "genai-prices (openai/gpt-4o-mini)"


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


def test_a_price_with_tiers_is_taken_at_its_highest() -> None:
    """Gemini's price grows with the context; an estimate must hold for the longest."""
    found = listed_tariff("gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta")
    assert found is not None
    assert found.input_picousd == 2_500_000
    assert found.output_picousd == 15_000_000
