"""Turn what is still to be asked, and what earlier answers took, into figures.

Tokens of prompts: bytes (exact) times the tokens a byte of this corpus' own answers, or else of a
sample counted approximately. Tokens of answers: the mean of this corpus' own, low being two
standard errors less; without answers half of what `max_tokens` allows, at most 1,000 (500 where
nothing limits it), low being a quarter of that. High is the worst case that a budget reserves.
Failed attempts are in none of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from fractions import Fraction
from math import ceil

import msgspec

from corpusgen.config import Gpu
from corpusgen.estimates.disk import disk_bytes
from corpusgen.estimates.pending import Asked
from corpusgen.estimates.pilot import Key, Pilot
from corpusgen.estimates.walltime import Load, wall_time
from corpusgen.events import CostRange, Estimated, SetEstimate, TokenRange
from corpusgen.money import Tariff, dollars, gpu_picousd, picousd
from corpusgen.teachers.interface import Endpoint

UNLIMITED_ANSWER = 500
LONGEST_GUESS = 1000
"""Tokens."""


class Answering(msgspec.Struct, frozen=True):
    """The teacher that answers a prompt set."""

    name: str
    endpoints: Sequence[Endpoint]
    tariffs: Mapping[str, Tariff | None]
    token_ids: bool
    """Whether answers carry them, or may."""
    max_concurrency: int | None = None
    """`generate.max_concurrency`."""
    gpu: Gpu | None = None


class _Tokens(msgspec.Struct, frozen=True):
    """Of one prompt set."""

    prompt: int
    cached: int
    worst_prompt: int
    longest_prompt: int
    """Worst case of one."""
    low: int
    expected: int
    high: int | None
    reasoning_share: Fraction


def estimate(
    asked: Sequence[Asked],
    pilots: Mapping[Key, Pilot],
    answering: Mapping[Key, Answering | None],
    top_logprobs: int,
    precision: str,
) -> Estimated:
    """Return what all of it will take.

    `answering` names the teacher of each set; null: the configuration has none, and nothing of the
    set is asked.
    """
    sets, loads = [], []
    for each in asked:
        key = (each.run.prompt_set, each.run.variant)
        teacher, pilot = answering.get(key), pilots.get(key)
        if teacher is not None:
            tokens = _tokens(each, pilot)
            latency = None if pilot is None else pilot.latency_s
            load = Load(each.requests, tokens.prompt + tokens.expected, latency)
            loads.append((teacher, load))
            disk = disk_bytes(
                each, pilot, tokens.expected, teacher.token_ids, top_logprobs, precision
            )
            sets.append(_set(each, pilot, teacher, tokens, load, disk))
    return _total(sets, loads)


def _set(
    asked: Asked, pilot: Pilot | None, teacher: Answering, tokens: _Tokens, load: Load, disk: int
) -> SetEstimate:
    wall = wall_time(teacher.endpoints, teacher.max_concurrency, [load])
    return SetEstimate(
        prompt_set=asked.run.prompt_set,
        teacher=teacher.name,
        samples=asked.samples,
        requests=asked.requests,
        prompt_tokens=tokens.prompt,
        counted=_counted(asked, pilot),
        completion_tokens=TokenRange(tokens.low, tokens.expected, tokens.high),
        reckoned=_reckoned(asked, pilot),
        cost_usd=_cost(asked, teacher, tokens),
        price=_price(teacher),
        wall_s=wall.seconds,
        wall_limit=wall.limit,
        disk_bytes=disk,
    )


def _tokens(asked: Asked, pilot: Pilot | None) -> _Tokens:
    measured = None if pilot is None else pilot.tokens_a_byte
    share = measured or Fraction(asked.sampled_tokens, max(asked.sampled_bytes, 1))
    worst = Fraction(asked.sampled_worst_tokens, max(asked.sampled_bytes, 1))
    prompt = ceil(asked.request_bytes * share)
    low, expected = _answers(asked, pilot)
    return _Tokens(
        prompt=prompt,
        cached=0 if pilot is None else int(prompt * pilot.cached_share),
        worst_prompt=ceil(asked.bytes * worst),
        longest_prompt=ceil(asked.longest_bytes * worst),
        low=low,
        expected=expected,
        high=asked.most_tokens,
        reasoning_share=Fraction(0) if pilot is None else pilot.reasoning_share,
    )


def _answers(asked: Asked, pilot: Pilot | None) -> tuple[int, int]:
    """Return the low and the expected tokens of all answers."""
    if pilot is not None and pilot.completion_tokens is not None:
        least = pilot.least_completion_tokens or Fraction(0)
        return int(asked.samples * least), ceil(asked.samples * pilot.completion_tokens)
    if asked.most_tokens is None:
        expected = asked.samples * UNLIMITED_ANSWER
    else:
        expected = min(-(-asked.most_tokens // 2), asked.samples * LONGEST_GUESS)
    return expected // 4, expected


def _counted(asked: Asked, pilot: Pilot | None) -> str:
    if pilot is not None and pilot.tokens_a_byte is not None:
        return f"by the teacher, over {pilot.answers} answers of this corpus"
    return f"approximately, from {asked.sampled} of {asked.samples} prompts"


def _reckoned(asked: Asked, pilot: Pilot | None) -> str:
    if pilot is not None and pilot.completion_tokens is not None:
        return f"mean of {pilot.answers} answers of this corpus"
    if asked.most_tokens is None:
        return f"a guess: {UNLIMITED_ANSWER} tokens an answer, for sampling.max_tokens is not set"
    return f"a guess: half of max_tokens, at most {LONGEST_GUESS} an answer"


def _price(teacher: Answering) -> str:
    unknown = [name for name, tariff in teacher.tariffs.items() if tariff is None]
    if unknown:
        return f"unknown at {unknown[0]}" if len(teacher.tariffs) > 1 else "unknown"
    return "; ".join(dict.fromkeys(t.source for t in teacher.tariffs.values() if t is not None))


def _cost(asked: Asked, teacher: Answering, tokens: _Tokens) -> CostRange:
    tariffs = [tariff for tariff in teacher.tariffs.values() if tariff is not None]
    if len(tariffs) < len(teacher.tariffs) or not asked.requests:
        return CostRange(None, None, None)
    mean = tokens.prompt // asked.requests
    low = min(_spent(tariff.at(mean), tokens, tokens.low) for tariff in tariffs)
    high = None
    if tokens.high is not None or all(tariff.free for tariff in tariffs):
        steps = [tariff.up_to(tokens.longest_prompt) for tariff in tariffs]
        high = Tariff.highest(steps).most(tokens.worst_prompt, tokens.high or 0)
    return CostRange(
        dollars(low),
        dollars(_expected(teacher, tokens, mean)),
        None if high is None else dollars(high),
    )


def _expected(teacher: Answering, tokens: _Tokens, mean: int) -> int:
    """Return the mean of the endpoints' costs, by their weights."""
    cost = weights = Fraction(0)
    for endpoint in teacher.endpoints:
        tariff = teacher.tariffs[endpoint.name]
        weight = Fraction(endpoint.weight)
        if tariff is not None:
            cost += weight * _spent(tariff.at(mean), tokens, tokens.expected)
            weights += weight
    return ceil(cost / weights)


def _spent(tariff: Tariff, tokens: _Tokens, completion: int) -> int:
    reasoning = int(completion * tokens.reasoning_share)
    return tariff.cost(tokens.prompt, completion, tokens.cached, reasoning)


def _total(sets: list[SetEstimate], loads: list[tuple[Answering, Load]]) -> Estimated:
    walls = [
        (teacher, wall_time(teacher.endpoints, teacher.max_concurrency, own))
        for teacher, own in _by_teacher(loads)
    ]
    times = [wall.seconds for _, wall in walls]
    machines = [
        _machines(teacher.gpu, wall.seconds) for teacher, wall in walls if teacher.gpu is not None
    ]
    known = [amount for amount in machines if amount is not None]
    return Estimated(
        samples=sum(each.samples for each in sets),
        requests=sum(each.requests for each in sets),
        prompt_tokens=sum(each.prompt_tokens for each in sets),
        completion_tokens=TokenRange(
            sum(each.completion_tokens.low for each in sets),
            sum(each.completion_tokens.expected for each in sets),
            _sum([each.completion_tokens.high for each in sets]),
        ),
        cost_usd=CostRange(
            _dollars([each.cost_usd.low for each in sets]),
            _dollars([each.cost_usd.expected for each in sets]),
            _dollars([each.cost_usd.high for each in sets]),
        ),
        gpu_usd=dollars(sum(known)) if machines and len(known) == len(machines) else None,
        wall_s=None if None in times else max((t for t in times if t is not None), default=0.0),
        wall_limit="; ".join(dict.fromkeys(wall.limit for _, wall in walls)),
        disk_bytes=sum(each.disk_bytes for each in sets),
        sets=tuple(sets),
    )


def _by_teacher(loads: list[tuple[Answering, Load]]) -> Iterator[tuple[Answering, list[Load]]]:
    for name in dict.fromkeys(teacher.name for teacher, _ in loads):
        own = [(teacher, load) for teacher, load in loads if teacher.name == name]
        yield own[0][0], [load for _, load in own]


def _machines(gpu: Gpu, seconds: float | None) -> int | None:
    if seconds is None:
        return None
    return gpu_picousd(round(seconds * 1e6), gpu.count, Decimal(str(gpu.usd_per_hour)))


def _sum(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _dollars(texts: Sequence[str | None]) -> str | None:
    """Add dollars; null where one is."""
    total = _sum([None if text is None else picousd(Decimal(text)) for text in texts])
    return None if total is None else dollars(total)
