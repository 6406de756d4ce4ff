"""Money without floats: prices as picodollars a token, so that every sum is exact.

One US dollar is 10^12 picodollars; a price of $0.15 a million tokens is 150,000 picodollars a
token, a whole number for every price with up to six decimals. int64 holds nine million dollars.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from typing import Any

import msgspec

PICO = 1_000_000_000_000
_MILLION = 1_000_000


class Tariff(msgspec.Struct, frozen=True):
    """What tokens cost, in picodollars each, and where the figure is from."""

    input_picousd: int
    cached_input_picousd: int
    output_picousd: int
    source: str
    """`configuration`, `genai-prices <date>`, or why it is zero."""

    @property
    def free(self) -> bool:
        """Whether nothing is charged."""
        return self.input_picousd == self.output_picousd == 0

    def cost(
        self, prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None
    ) -> int:
        """Return what a request costs, in picodollars. Cached tokens are part of the prompt's."""
        cached = min(cached_tokens or 0, prompt_tokens)
        return (
            (prompt_tokens - cached) * self.input_picousd
            + cached * self.cached_input_picousd
            + completion_tokens * self.output_picousd
        )


LOCAL = Tariff(0, 0, 0, "local: no price a token")


def tariff(input_per_mtok: str, output_per_mtok: str, cached: str | None, source: str) -> Tariff:
    """Return the tariff of prices in dollars for a million tokens; fractions are rounded up."""
    base = _picousd_a_token(input_per_mtok)
    return Tariff(
        input_picousd=base,
        cached_input_picousd=base if cached is None else _picousd_a_token(cached),
        output_picousd=_picousd_a_token(output_per_mtok),
        source=source,
    )


def _picousd_a_token(dollars_per_million: str) -> int:
    exact = Decimal(dollars_per_million) * PICO / _MILLION
    return int(exact.to_integral_value(rounding=ROUND_CEILING))


def picousd(dollars: Decimal) -> int:
    """Return whole picodollars, rounded down: a budget is never rounded up."""
    return int(dollars * PICO)


def dollars(amount: int) -> str:
    """Return picodollars as decimal text of dollars, without an exponent: `0.00123`."""
    text = f"{Decimal(amount) / PICO:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def listed_tariff(model: str, provider_url: str) -> Tariff | None:
    """Return the tariff of the offline price table for a model, null where it has none.

    A tariff with tiers (a price that grows with the context) is taken at its highest tier.
    """
    from genai_prices import data_snapshot

    try:
        provider, found = data_snapshot.get_snapshot().find_provider_model(
            model, None, None, provider_url
        )
    except LookupError:
        return None
    price = found.get_prices(_now())
    figures = [_highest(getattr(price, name)) for name in _PRICE_FIELDS]
    if figures[0] is None or figures[2] is None:
        return None
    cached = None if figures[1] is None else str(figures[1])
    source = f"genai-prices ({provider.id}/{found.id})"
    return tariff(str(figures[0]), str(figures[2]), cached, source)


_PRICE_FIELDS = ("input_mtok", "cache_read_mtok", "output_mtok")


def _highest(price: Any) -> Decimal | None:
    if price is None:
        return None
    figures = (
        [price] if isinstance(price, Decimal) else [price.base, *(t.price for t in price.tiers)]
    )
    return Decimal(max(figures))


def _now() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC)
