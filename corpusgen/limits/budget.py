"""Keep a budget: money is set aside before a request is sent, and settled afterwards."""

from __future__ import annotations

import asyncio
from collections import deque

from corpusgen.errors import ExitCode, RunStopped
from corpusgen.money import dollars


class Budget:
    """Keep what is charged and what is set aside together under a cap, in picodollars."""

    def __init__(
        self, cap_picousd: int | None, charged_picousd: int, key: str = "generate.budget_usd"
    ) -> None:
        """`charged_picousd` is what earlier runs of this corpus are charged.

        `key` names the cap in the configuration, for messages.
        """
        self._cap = cap_picousd
        self._key = key
        self.charged = charged_picousd
        self.reserved = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def capped(self) -> bool:
        """Whether there is a cap."""
        return self._cap is not None

    async def reserve(self, amount: int | None) -> None:
        """Set an amount aside before sending; wait in line while settlements may free some.

        Raises `RunStopped` (exit code 4) when nothing is set aside and the amount does not fit.
        """
        if self._cap is None:
            self.reserved += amount or 0
            return
        if amount is None:
            raise RunStopped(
                "a sample that was planned under an older configuration has no max_tokens or no "
                f"known price, so no budget can be kept; set teacher.price, or leave {self._key} "
                "out for this run",
                ExitCode.ERROR,
            )
        if not self._waiting and self._fits(amount):
            self.reserved += amount
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((amount, waiter))
        self._serve()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.reserved -= amount
            self._serve()
            raise

    def settle(self, amount: int | None, cost: int | None, *, may_be_billed: bool) -> None:
        """Replace a reservation by what the request cost.

        An unknown cost (null) is charged as reserved where the provider may bill it. Raises
        `RunStopped` when a cost exceeds its reservation under a cap: the price is wrong.
        """
        reserved = amount or 0
        self.reserved -= reserved
        self.charged += cost if cost is not None else (reserved if may_be_billed else 0)
        if self._cap is None:
            return
        self._serve()
        if cost is not None and cost > reserved:
            raise RunStopped(
                f"a request cost ${dollars(cost)}, more than the ${dollars(reserved)} that its "
                "worst case allows: max_tokens does not hold at this endpoint. The run stops "
                "before the budget is overshot",
                ExitCode.ERROR,
            )

    def lower(self, by: int) -> None:
        """Give back a part of a reservation that turned out to be too large."""
        self.reserved -= by
        if self._cap is not None:
            self._serve()

    def _fits(self, amount: int) -> bool:
        return self._cap is None or self.charged + self.reserved + amount <= self._cap

    def _serve(self) -> None:
        while self._waiting:
            amount, waiter = self._waiting[0]
            if waiter.done():  # was cancelled
                self._waiting.popleft()
            elif self._fits(amount):
                self._waiting.popleft()
                self.reserved += amount
                waiter.set_result(None)
            elif self.reserved == 0:
                self._waiting.popleft()
                waiter.set_exception(self._reached(amount))
            else:
                return

    def _reached(self, amount: int) -> RunStopped:
        cap = dollars(self._cap or 0)
        return RunStopped(
            f"the budget of ${cap} is reached: ${dollars(self.charged)} is charged and the next "
            f"request may cost ${dollars(amount)}. Raise {self._key} and run the command again to "
            "go on",
            ExitCode.BUDGET,
        )
