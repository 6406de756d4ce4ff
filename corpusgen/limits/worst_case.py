"""The most that a request can take: in tokens by its bytes, in money by its price."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from corpusgen.identity import canonical
from corpusgen.money import Tariff
from corpusgen.types import Message, Request, Sampling


def worst_case_tokens(messages: Sequence[Message], *extras: object) -> int:
    """Return more prompt tokens than any tokenizer makes: the UTF-8 bytes and 64 a message.

    `extras` are what else providers put into the prompt: the tools, the response format.
    """
    extra = sum(len(canonical(value)) for value in extras if value)
    return extra + sum(len(canonical(message)) + 64 for message in messages)


def worst_case(request: Request, tariff: Tariff | None) -> int | None:
    """Return the most that a request can cost, null where price or `max_tokens` is unknown."""
    if tariff is None:
        return None
    if tariff.free:
        return 0
    longest = most_tokens(request.sampling)
    if longest is None:
        return None
    prompt = worst_case_tokens(request.messages, request.tools, request.response_format)
    return tariff.most(prompt, request.draws * longest)


def most_tokens(sampling: Sampling) -> int | None:
    """Return the largest answer that any of the request's limits allows."""
    extra = sampling.extra_body or {}
    stated = (sampling.max_tokens, extra.get("max_tokens"), extra.get("max_completion_tokens"))
    return max((limit for limit in stated if isinstance(limit, int)), default=None)


def dearest(tariffs: Iterable[Tariff | None]) -> Tariff | None:
    """Return a tariff that is nowhere below any of some; null where one of them is unknown."""
    known = list(tariffs)
    if not known or any(tariff is None for tariff in known):
        return None
    prices = [tariff for tariff in known if tariff is not None]
    if all(tariff == prices[0] for tariff in prices):
        return prices[0]
    return Tariff.highest(prices)
