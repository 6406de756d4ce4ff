"""Let requests in: money set aside at every budget that counts, then a place at an endpoint.

This is all that a fan-out sees of limits, so that they may stand in another process: with
`generate.workers` the parent owns them, and workers ask it (`corpusgen.workers`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from corpusgen.errors import RunStopped
from corpusgen.limits.budget import Budget
from corpusgen.limits.gate import Gate
from corpusgen.limits.place import Fate, Need, Permit


class Claim(msgspec.Struct, frozen=True):
    """The most that a request may cost, in picodollars; null: unknown."""

    most: int | None
    """At the dearest endpoint."""
    at: dict[str, int | None] = {}
    """By endpoint, where they differ."""


class Admitted:
    """A place and a reservation, held by one request."""

    __slots__ = ("endpoint", "reserved", "ticket")

    def __init__(self, endpoint: str, reserved: int | None, ticket: Permit | int) -> None:
        self.endpoint = endpoint
        """The endpoint's name."""
        self.reserved = reserved
        self.ticket = ticket
        """What the one who admitted knows it by."""


class Admission(Protocol):
    """The limits of one teacher and the budgets over it."""

    @property
    def counts_tokens(self) -> bool:
        """Whether `Need.tokens` matters."""

    @property
    def concurrency(self) -> int:
        """Requests that may be in flight as things stand."""

    async def enter(self, need: Need, claim: Claim) -> Admitted:
        """Wait in line; `leave` or `give_back` must follow.

        Raises `RunStopped` where a budget is reached or the endpoints are at their end.
        """

    def leave(
        self, admitted: Admitted, fate: Fate, cost: int | None, *, may_be_billed: bool
    ) -> None:
        """Say what became of a request and what it cost.

        May raise `RunStopped` where it cost more than it was allowed to.
        """

    def give_back(self, admitted: Admitted) -> None:
        """Give back what was not used: nothing was sent."""

    async def wait_for_demand(self) -> int:
        """Return how many more requests should come in line; wait until it is at least one."""

    def close(self) -> None:
        """End; nobody may be in line."""


class LocalAdmission:
    """Admit by a gate and budgets of this process."""

    def __init__(self, gate: Gate, budgets: Sequence[Budget]) -> None:
        """`budgets` are the run's, and the teacher's own where it has one."""
        self._gate = gate
        self._budgets = tuple(budgets)

    @property
    def counts_tokens(self) -> bool:
        """Whether `Need.tokens` matters."""
        return self._gate.counts_tokens

    @property
    def concurrency(self) -> int:
        """Requests that may be in flight as things stand."""
        return self._gate.concurrency

    async def enter(self, need: Need, claim: Claim) -> Admitted:
        """Reserve at every budget, then wait in line."""
        await self._reserve(claim.most)
        try:
            permit = await self._gate.enter(need)
        except BaseException:
            self._settle(claim.most, 0, may_be_billed=False)
            raise
        endpoint = permit.endpoint.name
        return Admitted(endpoint, self._lowered(claim, endpoint), permit)

    def leave(
        self, admitted: Admitted, fate: Fate, cost: int | None, *, may_be_billed: bool
    ) -> None:
        """Free the place, then settle."""
        assert isinstance(admitted.ticket, Permit)
        self._gate.leave(admitted.ticket, fate)
        self._settle(admitted.reserved, cost, may_be_billed=may_be_billed)

    def give_back(self, admitted: Admitted) -> None:
        """Free the place and the reservation."""
        assert isinstance(admitted.ticket, Permit)
        self._gate.give_back(admitted.ticket)
        self._settle(admitted.reserved, 0, may_be_billed=False)

    async def wait_for_demand(self) -> int:
        """Return how many more requests should come in line; wait until it is at least one."""
        return await self._gate.wait_for_demand()

    def close(self) -> None:
        """Forget the gate's timer."""
        self._gate.close()

    async def _reserve(self, amount: int | None) -> None:
        for index, budget in enumerate(self._budgets):
            try:
                await budget.reserve(amount)
            except BaseException:
                for reserved in self._budgets[:index]:
                    reserved.settle(amount, 0, may_be_billed=False)
                raise

    def _settle(self, reserved: int | None, cost: int | None, *, may_be_billed: bool) -> None:
        exceeded: RunStopped | None = None
        for budget in self._budgets:
            try:
                budget.settle(reserved, cost, may_be_billed=may_be_billed)
            except RunStopped as error:  # every budget must hear of it
                exceeded = error
        if exceeded is not None:
            raise exceeded

    def _lowered(self, claim: Claim, endpoint: str) -> int | None:
        """Lower a reservation to the worst case of the endpoint that was found."""
        own = claim.at.get(endpoint)
        if claim.most is None or own is None or own >= claim.most:
            return claim.most
        for budget in self._budgets:
            budget.lower(claim.most - own)
        return own
