"""What one attempt asks, what it brought and what it cost: values made of values, no I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from corpusgen.errors import TeacherError
from corpusgen.identity import seed_for
from corpusgen.money import LARGEST, Tariff
from corpusgen.types import Answer, Attempt, Generation, Intent, Reply, Request, Sample, Usage
from corpusgen.unicode import storable

MOST_TOKENS = 2**31 - 1
"""What a token count's column holds; a server that states more is not to be believed."""


def grouped(samples: Sequence[Sample], draws: Callable[[], int]) -> Iterator[list[Sample]]:
    """Yield samples as requests ask for them: up to `draws()` draws of one prompt together.

    It is called again for each sample, as how many a server takes is learned meanwhile. A sample
    with a seed of its own stays alone: the same seed makes two draws equal.
    """
    group: list[Sample] = []
    for sample in samples:
        if group and not (len(group) < draws() and _alike(group[0], sample)):
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _alike(one: Sample, other: Sample) -> bool:
    """Tell whether two samples are draws of the same prompt, and none has a seed of its own."""
    return (
        one.prompt_id == other.prompt_id
        and one.prompt_set == other.prompt_set
        and one.sampling.seed is None
        and one.sampling == other.sampling
        and one.messages == other.messages
        and one.tools == other.tools
        and one.response_format == other.response_format
    )


def request_for(samples: Sequence[Sample], top_logprobs: int, prompt_token_ids: bool) -> Request:
    """Return what is asked for one sample, with the seed that is its own, or for some draws."""
    first = samples[0]
    return Request(
        messages=first.messages,
        sampling=first.sampling,
        seed=seed_for(first.sampling.seed, first.sample_id),
        draws=len(samples),
        top_logprobs=top_logprobs,
        tools=first.tools,
        response_format=first.response_format,
        prompt_token_ids=prompt_token_ids,
    )


def checked(reply: Reply) -> Reply:
    """Return a reply as it can be stored, whatever the server sent.

    A token count that no answer can have is unknown: its cost is then charged as reserved, and
    never taken for a refund. Text that UTF-8 cannot hold is mended.
    """
    usage = Usage(
        **{name: token_count(getattr(reply.usage, name)) for name in Usage.__struct_fields__}
    )
    return msgspec.structs.replace(
        reply,
        usage=usage,
        answers=[_checked_answer(answer) for answer in reply.answers],
        model_revision=storable(reply.model_revision),
        request_id=storable(reply.request_id),
    )


def _checked_answer(answer: Answer) -> Answer:
    return msgspec.structs.replace(
        answer,
        text=storable(answer.text),
        reasoning=storable(answer.reasoning),
        finish_reason=storable(answer.finish_reason),
        completion_tokens=token_count(answer.completion_tokens),
        reasoning_tokens=token_count(answer.reasoning_tokens),
    )


def token_count(tokens: int | None) -> int | None:
    """Return a token count that its column holds; null for one that cannot be."""
    return tokens if tokens is not None and 0 <= tokens <= MOST_TOKENS else None


def answered(intent: Intent, reply: Reply, latency_s: float, cost: int | None) -> Attempt:
    """Return the attempt that brought an answer."""
    return _ended(
        intent,
        "answered",
        latency_s=latency_s,
        http_status=reply.http_status,
        prompt_tokens=reply.usage.prompt_tokens,
        cached_tokens=reply.usage.cached_tokens,
        completion_tokens=reply.usage.completion_tokens,
        reasoning_tokens=reply.usage.reasoning_tokens,
        cost_picousd=cost,
        request_id=reply.request_id,
    )


def failed(intent: Intent, error: TeacherError, latency_s: float, cost: int | None) -> Attempt:
    """Return the attempt that brought an error."""
    return _ended(
        intent,
        error.outcome,
        latency_s=latency_s,
        http_status=error.http_status,
        prompt_tokens=token_count(error.prompt_tokens),
        completion_tokens=token_count(error.completion_tokens),
        cost_picousd=cost,
        request_id=storable(error.request_id),
    )


def cancelled(intent: Intent, latency_s: float) -> Attempt:
    """Return the attempt that was given up while it ran: charged at its reservation."""
    return _ended(intent, "cancelled", latency_s=latency_s)


def lost(intent: Intent) -> Attempt:
    """Return the attempt whose outcome nobody saw: charged at its reservation."""
    return _ended(intent, "lost")


def _ended(intent: Intent, outcome: str, **known: Any) -> Attempt:
    return Attempt(
        attempt_id=intent.attempt_id,
        sample_ids=intent.sample_ids,
        endpoint=intent.endpoint,
        started_at=intent.started_at,
        outcome=outcome,
        reserved_picousd=intent.reserved_picousd,
        **known,
    )


def generation(
    intent: Intent,
    sample: Sample,
    reply: Reply,
    latency_s: float,
    attempts: int,
    index: int = 0,
) -> Generation:
    """Return a sample's generation: the reply's answer number `index`.

    `attempts` counts the requests sent for it, this one too.
    """
    answer, usage = reply.answers[index], reply.usage
    if len(reply.answers) > 1:  # its own share: the prompt's tokens, and its own completion's
        usage = msgspec.structs.replace(
            usage,
            completion_tokens=answer.completion_tokens,
            reasoning_tokens=answer.reasoning_tokens,
        )
    elif answer.completion_tokens is None:
        answer = msgspec.structs.replace(answer, completion_tokens=usage.completion_tokens)
    return Generation(
        sample_id=sample.sample_id,
        answer=answer,
        usage=usage,
        endpoint=intent.endpoint,
        started_at=intent.started_at,
        latency_s=latency_s,
        attempts=attempts,
        prompt_token_ids=reply.prompt_token_ids,
        model_revision=reply.model_revision,
    )


def cost(usage: Usage, tariff: Tariff | None) -> int | None:
    """Return what an answer cost, in picodollars; null where price or usage is unknown."""
    if tariff is None:
        return None
    if tariff.free:
        return 0
    if usage.prompt_tokens is None or usage.completion_tokens is None:
        return None
    return _storable(
        tariff.cost(
            usage.prompt_tokens,
            usage.completion_tokens,
            usage.cached_tokens,
            usage.reasoning_tokens,
        )
    )


def failure_cost(error: TeacherError, tariff: Tariff | None) -> int | None:
    """Return what a failed attempt cost: nothing, unless the provider may bill it all the same."""
    if tariff is None:
        return None
    prompt, completion = token_count(error.prompt_tokens), token_count(error.completion_tokens)
    if prompt is not None and completion is not None:
        return _storable(tariff.cost(prompt, completion))
    return None if error.may_be_billed and not tariff.free else 0


def _storable(amount: int) -> int | None:
    """Return a cost that its column holds; one that no request can have is unknown."""
    return amount if amount <= LARGEST else None


def charge(attempt: Attempt) -> int:
    """Return what an attempt counts against a budget: its cost, else its reservation."""
    if attempt.cost_picousd is not None:
        return attempt.cost_picousd
    return attempt.reserved_picousd or 0
