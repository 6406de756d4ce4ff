"""Servers in virtual time, each as strict as a real one can be, and clients that keep them busy.

Minutes of thousands of requests pass in a fraction of a second, so that what limits bring can be
measured with several seeds. What is measured is what a user gets: answered requests and tokens.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec

from corpusgen.config import Retry
from corpusgen.errors import RateLimited, ServerFault, TeacherError
from corpusgen.limits import Expectation, Fate, Gate, GateSettings, Need
from corpusgen.retry import RetryPolicy
from corpusgen.teachers.interface import Endpoint
from corpusgen.teachers.openai_rate import rate_hint
from corpusgen.types import Request, Sampling, Usage
from tests.loopback_limits import Limits, SlidingLimits
from tests.virtual_time import run_virtually

MAX_TOKENS = 2000
MEDIAN_TOKENS, SPREAD = 200, 0.8
ALIVE_A_PLACE, ALIVE_AT_LEAST = 4, 64
"""As in the fan-out: samples that have begun and not ended."""


class Job(msgspec.Struct, frozen=True):
    """A request and what its answer will be."""

    name: str
    prompt_tokens: int
    answer_tokens: int
    request: Request


class Server(Protocol):
    """Answers or refuses, in virtual time."""

    async def ask(self, job: Job) -> Fate:
        """Return what becomes of one request."""


class Books:
    """What a server answered, when, and what it refused."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, int, int]] = []
        """(when, prompt's tokens, answer's tokens)"""
        self.rejected: list[float] = []

    def tokens_a_second(self, since: float, until: float) -> float:
        """Return the throughput, in tokens of answers."""
        found = sum(answer for when, _, answer in self.answers if since <= when < until)
        return found / (until - since)

    @property
    def tokens(self) -> int:
        """All tokens, those of prompts and answers together."""
        return sum(prompt + answer for _, prompt, answer in self.answers)

    @property
    def rejected_share(self) -> float:
        """The share of all requests."""
        return len(self.rejected) / max(len(self.rejected) + len(self.answers), 1)

    def refuse(self, kind: str = "limited", **facts: object) -> Fate:
        self.rejected.append(_now())
        return msgspec.convert({"kind": kind, "reason": "no", **facts}, Fate)

    def answer(self, job: Job) -> Fate:
        self.answers.append((_now(), job.prompt_tokens, job.answer_tokens))
        used = job.prompt_tokens + job.answer_tokens
        return Fate("answered", tokens=used, output_tokens=job.answer_tokens)


class RateServer(Books):
    """Enforces requests or tokens a minute over a sliding window."""

    def __init__(self, limits: Limits, chance: random.Random, *, headers: bool = False) -> None:
        super().__init__()
        self._limits = limits
        self._chance = chance
        self._headers = headers
        self._window = SlidingLimits(_now)

    @property
    def charged(self) -> int:
        """Tokens that counted against the limit."""
        return self._window.charged_tokens

    async def ask(self, job: Job) -> Fate:
        """Admit or refuse on arrival; take 0.2 s and 5 ms a token."""
        await asyncio.sleep(self._chance.uniform(0.001, 0.02))
        if self._window.admit(self._limits, job.prompt_tokens, MAX_TOKENS) is not None:
            return self._with_headers(self.refuse())
        await asyncio.sleep(0.2 + 0.005 * job.answer_tokens)
        self._window.completed(self._limits, job.answer_tokens)
        return self._with_headers(self.answer(job))

    def _with_headers(self, fate: Fate) -> Fate:
        if not self._headers:
            return fate
        hint = rate_hint(self._window.headers(self._limits), 0.0)
        return msgspec.structs.replace(fate, rate=hint)


class SlotServer(Books):
    """Decodes so many answers at once at 100 tokens a second each; more wait in line."""

    def __init__(
        self,
        slots: int,
        *,
        collapse_above: float = math.inf,
        capacity: float = math.inf,
        refused_share: float = 0.0,
        chance: random.Random | None = None,
    ) -> None:
        """`collapse_above`: with more than so many present, each slows down by the square of it.

        `capacity`: more are refused. `refused_share` of all requests are refused in any case.
        """
        super().__init__()
        self._slots = asyncio.Semaphore(slots)
        self._present = 0
        self._collapse_above = collapse_above
        self._capacity = capacity
        self._refused_share = refused_share
        self._chance = chance or random.Random(0)
        self.sick: tuple[float, float] | None = None
        """From when to when it answers 500."""

    async def ask(self, job: Job) -> Fate:
        """Refuse at once, or decode."""
        await asyncio.sleep(0.005)
        if self.sick is not None and self.sick[0] <= _now() < self.sick[1]:
            return self.refuse("broken")
        if self._present >= self._capacity or self._chance.random() < self._refused_share:
            return self.refuse()
        self._present += 1
        try:
            async with self._slots:
                crowding = max(1.0, self._present / self._collapse_above)
                await asyncio.sleep(0.05 + crowding**2 * job.answer_tokens / 100)
            return self.answer(job)
        finally:
            self._present -= 1


class Client:
    """A fan-out without files: endless samples, each with the real policy of retries."""

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        servers: Mapping[str, Server],
        chance: random.Random,
        settings: GateSettings | None = None,
    ) -> None:
        self.news: list[str] = []
        self.failed = 0
        """Samples that came to no answer."""
        self._servers = servers
        self._chance = chance
        now = asyncio.get_running_loop().time
        self.gate = Gate(endpoints, now, settings or GateSettings(), tell=self.news.append)
        self._expectation = Expectation()
        self._policy = RetryPolicy(Retry(), asyncio.sleep, chance.random, now)

    async def keep_busy(self, seconds: float) -> None:
        """Ask as many samples as the gate wants, for so long."""
        tasks: set[asyncio.Task[None]] = set()
        feeding = asyncio.create_task(self._feed(tasks))
        await asyncio.wait([feeding], timeout=seconds)
        for task in (feeding, *tasks):
            task.cancel()
        await asyncio.gather(feeding, *tasks, return_exceptions=True)
        self.gate.close()

    async def _feed(self, tasks: set[asyncio.Task[None]]) -> None:
        for number in itertools.count():
            await self.gate.wait_for_demand()
            while len(tasks) >= ALIVE_A_PLACE * self.gate.concurrency + ALIVE_AT_LEAST:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._bring_to_end(job(number, self._chance)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            await asyncio.sleep(0)

    async def _bring_to_end(self, job: Job) -> None:
        waited = 0.0
        failed_at: str | None = None

        async def attempt() -> None:
            nonlocal waited, failed_at
            began = _now()
            permit = await self.gate.enter(self._need(job, failed_at))
            waited += _now() - began
            fate = Fate("cancelled")
            try:
                fate = await self._servers[permit.endpoint.name].ask(job)
            finally:
                self.gate.leave(permit, fate)
            if fate.kind != "answered":
                failed_at = permit.endpoint.name
                raise error_of(fate)
            if self.gate.counts_tokens:
                self._expectation.learn(job.request, Usage(job.prompt_tokens, job.answer_tokens))

        try:
            await self._policy.call(attempt, lambda: waited)
        except TeacherError:
            self.failed += 1

    def _need(self, job: Job, failed_at: str | None) -> Need:
        tokens = self._expectation.tokens(job.request) if self.gate.counts_tokens else (0, 0)
        return Need(job.name, *tokens, avoid=failed_at)


async def naive_client(
    server: Server, concurrency: int, chance: random.Random, seconds: float
) -> None:
    """Keep a fixed number in flight; wait after a refusal as the policy of retries says."""
    policy = RetryPolicy(Retry(), asyncio.sleep, chance.random, _now)

    async def attempt() -> None:
        fate = await server.ask(job(0, chance))
        if fate.kind != "answered":
            raise error_of(fate)

    async def ask_for_ever() -> None:
        while True:
            with suppress(TeacherError):
                await policy.call(attempt)

    workers = [asyncio.create_task(ask_for_ever()) for _ in range(concurrency)]
    await asyncio.sleep(seconds)
    for task in workers:
        task.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


def error_of(fate: Fate) -> TeacherError:
    """Return what a teacher would raise."""
    kind = RateLimited if fate.kind == "limited" else ServerFault
    return kind("no", retry_after_s=fate.pause_s, rate=fate.rate)


def job(number: int, chance: random.Random) -> Job:
    """Make a request up: prompts of 25 to 100 tokens, answers of log-normal lengths."""
    characters = chance.randrange(100, 400)
    length = int(chance.lognormvariate(math.log(MEDIAN_TOKENS), SPREAD))
    request = Request([{"role": "user", "content": "x" * characters}], _SAMPLING)
    return Job(str(number), characters // 4, max(min(length, MAX_TOKENS), 1), request)


_SAMPLING = Sampling(max_tokens=MAX_TOKENS)


def simulate(
    endpoints: Sequence[Endpoint],
    servers: Mapping[str, Server],
    chance: random.Random,
    seconds: float,
) -> Client:
    """Run one client over its servers for so long, in virtual time."""

    async def main() -> Client:
        client = Client(endpoints, servers, chance)
        await client.keep_busy(seconds)
        return client

    return run_virtually(main())


def _now() -> float:
    return asyncio.get_running_loop().time()
