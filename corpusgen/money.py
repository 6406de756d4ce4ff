"""Money without floats: prices as picodollars a token, so that every sum is exact.

One US dollar is 10^12 picodollars; a price of $0.15 a million tokens is 150,000 picodollars a
token, a whole number for every price with up to six decimals; further decimals are rounded up, by
less than a dollar in a million million tokens. int64 holds nine million dollars.

Where the provider may charge one of two prices and does not say which, the dearer one is taken: a
budget must hold. What has no known price is null, never zero.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, Context, Decimal
from typing import Any

import msgspec

PICO = 1_000_000_000_000
LARGEST = 2**63 - 1
"""The most picodollars that a column holds."""
_MILLION = 1_000_000
_HOUR_US = 3_600_000_000
_FOUR_DIGITS = Context(prec=4)


class Tariff(msgspec.Struct, frozen=True):
    """What tokens cost, in picodollars each, and where the figure is from.

    Where the price depends on the prompt's length, the fields are those of the longest prompts.
    """

    input_picousd: int
    cached_input_picousd: int
    output_picousd: int
    source: str
    """`configuration`, `genai-prices <version> (<provider>/<model>)`, or why it is zero."""
    reasoning_picousd: int | None = None
    """Of a reasoning token, which is one of the output's; null: as any other."""
    shorter: tuple[tuple[int, Tariff], ...] = ()
    """What prompts of at most so many tokens cost instead, in ascending order."""

    @property
    def free(self) -> bool:
        """Whether nothing is charged."""
        return not any(
            price
            for each in (self, *(tariff for _, tariff in self.shorter))
            for price in (each._dearest_input, each._dearest_output)
        )

    def cost(
        self,
        prompt_tokens: int,
        completion_tokens: int,
        cached_tokens: int | None = None,
        reasoning_tokens: int | None = None,
    ) -> int:
        """Return what a request costs, in picodollars.

        Cached tokens are part of the prompt's, reasoning tokens of the completion's. Null: not
        stated, and so charged at the dearer of the two prices.
        """
        at = self.at(prompt_tokens)
        return _split(prompt_tokens, cached_tokens, at.input_picousd, at.cached_input_picousd) + (
            _split(completion_tokens, reasoning_tokens, at.output_picousd, at._reasoning)
        )

    def most(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Return the most that a request of at most so many tokens can cost."""
        flat = self.up_to(prompt_tokens)
        return prompt_tokens * flat._dearest_input + completion_tokens * flat._dearest_output

    def at(self, prompt_tokens: int) -> Tariff:
        """Return the tariff of prompts of so many tokens."""
        return next((t for up_to, t in self.shorter if prompt_tokens <= up_to), self)

    def up_to(self, prompt_tokens: int) -> Tariff:
        """Return a tariff nowhere below what prompts of at most so many tokens are charged."""
        if not self.shorter:
            return self
        met = [tariff for above, tariff in self._steps() if above < prompt_tokens]
        return Tariff.highest(met or [self.at(0)])

    def discounted(self, share: Decimal) -> Tariff:
        """Return the tariff less a share of every price, such as 0.5 for a Batch API."""
        reasoning = self.reasoning_picousd
        return msgspec.structs.replace(
            self,
            input_picousd=_less(self.input_picousd, share),
            cached_input_picousd=_less(self.cached_input_picousd, share),
            output_picousd=_less(self.output_picousd, share),
            reasoning_picousd=None if reasoning is None else _less(reasoning, share),
            source=f"{self.source}, less {(share * 100).normalize():f}%",
            shorter=tuple((up_to, t.discounted(share)) for up_to, t in self.shorter),
        )

    @classmethod
    def highest(cls, tariffs: Sequence[Tariff]) -> Tariff:
        """Return a tariff that is nowhere below any of some; at least one is given."""
        every = [each for t in tariffs for each in (t, *(shorter for _, shorter in t.shorter))]
        return cls(
            max(t.input_picousd for t in every),
            max(t.cached_input_picousd for t in every),
            max(t.output_picousd for t in every),
            "; ".join(dict.fromkeys(t.source for t in tariffs)),
            max(t._reasoning for t in every),
        )

    @property
    def _reasoning(self) -> int:
        reasoning = self.reasoning_picousd
        return self.output_picousd if reasoning is None else reasoning

    @property
    def _dearest_input(self) -> int:
        return max(self.input_picousd, self.cached_input_picousd)

    @property
    def _dearest_output(self) -> int:
        return max(self.output_picousd, self._reasoning)

    def _steps(self) -> Iterable[tuple[int, Tariff]]:
        """Yield each tariff with the number of prompt tokens above which it begins."""
        above = 0
        for up_to, shorter in self.shorter:
            yield above, shorter
            above = up_to
        yield above, self


def _split(tokens: int, part: int | None, price: int, part_price: int) -> int:
    if part is None:
        return tokens * max(price, part_price)
    part = min(part, tokens)
    return (tokens - part) * price + part * part_price


def _less(price: int, share: Decimal) -> int:
    return int((price * (1 - share)).to_integral_value(rounding=ROUND_CEILING))


LOCAL = Tariff(0, 0, 0, "local: no price a token")
OWN = Tariff(0, 0, 0, "machines with a price an hour: no price a token")


def tariff(
    input_per_mtok: str,
    output_per_mtok: str,
    cached: str | None,
    source: str,
    reasoning: str | None = None,
) -> Tariff:
    """Return the tariff of prices in dollars for a million tokens; fractions are rounded up."""
    base = _picousd_a_token(input_per_mtok)
    return Tariff(
        input_picousd=base,
        cached_input_picousd=base if cached is None else _picousd_a_token(cached),
        output_picousd=_picousd_a_token(output_per_mtok),
        source=source,
        reasoning_picousd=None if reasoning is None else _picousd_a_token(reasoning),
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


def dollars_text(amount: int) -> str:
    """Return picodollars for people: `$1.27`, or four significant digits below a dollar."""
    if amount >= PICO:
        return f"${Decimal(amount) / PICO:,.2f}"
    return f"${dollars(int(_FOUR_DIGITS.create_decimal(amount)))}"


def gpu_picousd(microseconds: int, count: int, usd_per_hour: Decimal) -> int:
    """Return what GPUs cost for a time, in picodollars, rounded up."""
    an_hour = int((usd_per_hour * PICO).to_integral_value(rounding=ROUND_CEILING))
    return -(-an_hour * count * microseconds // _HOUR_US)


_INPUT, _CACHED, _WRITTEN, _OUTPUT, _REASONING, _REQUESTS = (
    "input_mtok",
    "cache_read_mtok",
    "cache_write_mtok",
    "output_mtok",
    "output_reasoning_mtok",
    "requests_kcount",
)
_CACHES_UNASKED = ("openai", "azure")
"""Providers that may write any long prompt to their cache, at a price of its own."""


def listed_tariff(model: str, provider_url: str) -> Tariff | None:
    """Return the tariff of the offline price table for a model, null where it has none.

    A price that changes within the next day is taken at its highest. Null as well where the
    provider charges for each request beside its tokens.
    """
    from importlib.metadata import version

    from genai_prices import data_snapshot

    try:
        provider, found = data_snapshot.get_snapshot().find_provider_model(
            model, None, None, provider_url
        )
    except LookupError:
        return None
    prices = [found.get_prices(moment) for moment in _next_day()]
    if any(getattr(price, _REQUESTS) for price in prices):
        return None
    source = f"genai-prices {version('genai-prices')} ({provider.id}/{found.id})"
    return _tariff_of(prices, source, caches=provider.id in _CACHES_UNASKED)


def _next_day() -> list[datetime]:
    """Return the moments at which the prices of a run that begins now are looked up."""
    now = datetime.now(UTC)
    return [now + timedelta(minutes=30 * half_hour) for half_hour in range(48)]


def _tariff_of(prices: list[Any], source: str, *, caches: bool) -> Tariff | None:
    starts = sorted({s for price in prices for s in _starts(price)})
    tariffs = [_at_length(prices, source, above, caches=caches) for above in (0, *starts)]
    whole = [each for each in tariffs if each is not None]
    if len(whole) < len(tariffs):
        return None
    # A tier begins above its start, so that its start is the last prompt of the one before.
    return msgspec.structs.replace(whole[-1], shorter=tuple(zip(starts, whole[:-1], strict=True)))


def _at_length(prices: list[Any], source: str, above: int, *, caches: bool) -> Tariff | None:
    """Return the highest of some prices for a prompt of a token more than `above`."""
    base, output = _most(prices, _INPUT, above), _most(prices, _OUTPUT, above)
    if base is None or output is None:
        return None
    written = _most(prices, _WRITTEN, above) if caches else None
    cached, reasoning = _most(prices, _CACHED, above), _most(prices, _REASONING, above)
    return tariff(
        str(max(base, written or base)),
        str(output),
        str(base if cached is None else cached),
        source,
        None if reasoning is None else str(reasoning),
    )


def _most(prices: list[Any], name: str, above: int) -> Decimal | None:
    figures = [_figure(getattr(price, name), above) for price in prices]
    return max((figure for figure in figures if figure is not None), default=None)


def _figure(price: Any, above: int) -> Decimal | None:
    """Return a price for a prompt of a token more than `above`, of tiers where it has some."""
    if price is None or isinstance(price, Decimal):
        return price
    begun = [tier.price for tier in price.tiers if tier.start <= above]
    figure: Decimal = begun[-1] if begun else price.base
    return figure


def _starts(price: Any) -> list[int]:
    tiered = [getattr(price, n) for n in (_INPUT, _CACHED, _WRITTEN, _OUTPUT, _REASONING)]
    return [tier.start for each in tiered for tier in getattr(each, "tiers", ())]
