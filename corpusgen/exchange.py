"""One attempt: money set aside, a place taken, the intent journaled, asked, journaled, settled.

It makes no second attempt and decides nothing about the sample; `fanout` and `retry` do.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from typing import Protocol

import msgspec

from corpusgen import attempts
from corpusgen.errors import (
    NotConnected,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    RunStopped,
    TeacherError,
    TeacherRaised,
    TornAnswer,
)
from corpusgen.lane import Ask
from corpusgen.limits import Admitted, Fate
from corpusgen.stopping import LogprobCheck, Stop, Stopping
from corpusgen.teachers.interface import Endpoint, Teacher
from corpusgen.types import Generation, Intent, Reply, Request

_BROKEN = ("server_error", "connection", "timeout", "torn_answer")
_CANCELLED = Fate("cancelled")


class Witness(Protocol):
    """Is told what attempts bring."""

    def answered(self, generation: Generation) -> None:
        """Count a generation."""

    def retried(self, error: TeacherError) -> None:
        """Count an attempt that failed and may be made again."""


class Exchange:
    """Make attempts, for all teachers of a run."""

    def __init__(
        self,
        witness: Witness,
        stop: Stop,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._witness = witness
        self._stop = stop
        self._clock = clock
        self._ids = uuid.uuid4().hex[:20]
        self._made = 0
        self.logprobs = LogprobCheck(stop)
        self.in_flight = 0

    async def attempt(self, ask: Ask) -> int:
        """Make one attempt; return how many of the ask's samples it answered, the first ones.

        Raises `TeacherError` where it brought nothing, `Stopping` where the run stops meanwhile,
        and `RunStopped` where a budget or the endpoints are at their end.
        """
        lane = ask.lane
        if self._stop.is_asked() or lane.closed is not None:
            raise Stopping
        began = time.perf_counter()
        admitted = await lane.admission.enter(ask.need(), ask.claim)
        ask.waited_s += time.perf_counter() - began
        if self._stop.is_asked():
            lane.admission.give_back(admitted)
            raise Stopping
        return await self._send(ask, admitted)

    async def _send(self, ask: Ask, admitted: Admitted) -> int:
        lane, opened, endpoint = ask.lane, ask.opened, ask.lane.endpoints[admitted.endpoint]
        intent = Intent(
            attempt_id=self._new_id(),
            sample_ids=[sample.sample_id for sample in ask.samples],
            endpoint=endpoint.name,
            started_at=self._clock(),
            reserved_picousd=admitted.reserved,
        )
        tariff = lane.tariffs[endpoint.name]
        fate, cost, billed = _CANCELLED, None, True
        began = time.perf_counter()
        self.in_flight += 1
        try:
            opened.begin(intent)
            for sample in ask.samples:
                opened.sent[sample.sample_id] += 1
            request = msgspec.structs.replace(ask.request, attempt_id=intent.attempt_id)
            reply = await _generate(lane.teacher, request, endpoint)
            latency = time.perf_counter() - began
            cost = attempts.cost(reply.usage, tariff)
            fate = _answered(reply)
            self._keep(ask, intent, reply, latency, cost)
            if lane.admission.counts_tokens:
                lane.expectation.learn(ask.request, reply.usage)
            return len(reply.answers)
        except TeacherError as error:
            latency = time.perf_counter() - began
            billed, fate = error.may_be_billed, _fate_of(error)
            ask.failed_at = endpoint.name
            cost = attempts.failure_cost(error, tariff)
            opened.end(attempts.failed(intent, error, latency, cost), [])
            self._witness.retried(error)
            raise
        except asyncio.CancelledError:
            opened.end(attempts.cancelled(intent, time.perf_counter() - began), [])
            raise
        finally:
            self.in_flight -= 1
            lane.admission.leave(admitted, fate, cost, may_be_billed=billed)

    def _new_id(self) -> str:
        """Return an attempt's id: 80 random bits of this process and a running number.

        One question to the kernel's random source for each attempt would cost as much as a write.
        """
        self._made += 1
        return f"{self._ids}{self._made:012x}"

    def _keep(
        self, ask: Ask, intent: Intent, reply: Reply, latency_s: float, cost: int | None
    ) -> None:
        sent = ask.opened.sent
        generations = [
            attempts.generation(intent, sample, reply, latency_s, sent[sample.sample_id], index)
            for index, sample in enumerate(ask.samples[: len(reply.answers)])
        ]
        ask.opened.end(attempts.answered(intent, reply, latency_s, cost), generations)
        for generation in generations:
            self._witness.answered(generation)
            self.logprobs.add(ask.request, generation.answer, intent.endpoint)


async def _generate(teacher: Teacher, request: Request, endpoint: Endpoint) -> Reply:
    """Make the attempt; whatever a teacher raises leaves as a `TeacherError`."""
    try:
        reply = attempts.checked(await teacher.generate(request, endpoint))
    except TeacherError:
        raise
    except RunStopped:
        raise
    except Exception as error:  # a plug-in's own code may raise anything
        raise TeacherRaised(f"the teacher raised {type(error).__name__}: {error}") from error
    if not reply.answers:
        raise TornAnswer(
            f"endpoint {endpoint.name}: the reply holds no answer.",
            http_status=reply.http_status,
            prompt_tokens=reply.usage.prompt_tokens,
            completion_tokens=reply.usage.completion_tokens,
        )
    return reply


def _answered(reply: Reply) -> Fate:
    usage = reply.usage
    output = usage.completion_tokens or 0
    known = usage.prompt_tokens is not None and usage.completion_tokens is not None
    return Fate(
        "answered",
        tokens=(usage.prompt_tokens or 0) + output if known else None,
        output_tokens=output,
        rate=reply.rate,
    )


def _fate_of(error: TeacherError) -> Fate:
    if isinstance(error, RateLimited | Overloaded):
        return Fate("limited", pause_s=error.retry_after_s, rate=error.rate, reason=str(error))
    if isinstance(error, NotConnected):
        return Fate("unreachable", reason=str(error))
    if error.outcome in _BROKEN:
        return Fate("broken", pause_s=error.retry_after_s, rate=error.rate, reason=str(error))
    if isinstance(error, QuotaExhausted):
        return Fate("used_up", reason=str(error))
    if error.retry == "fatal":
        return _CANCELLED  # it opens no endpoint for more of the kind while the run stops
    return Fate("refused", rate=error.rate)
