"""The values of a ledger: sums over attempts, and what they come to."""

from __future__ import annotations

import msgspec


class Sums(msgspec.Struct):
    """Sums over attempts."""

    attempts: int = 0
    answered: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Part of the prompt's."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    """Part of the completion's."""
    cost_picousd: int = 0
    """Of the attempts whose cost is known."""
    unknown_cost: int = 0
    """Attempts whose cost nobody knows: no price, or an outcome that was not seen."""
    reserved_picousd: int = 0
    """What those are charged at, where a price is known: their worst case."""
    unreserved: int = 0
    """Of those, the attempts that have no worst case either: their price is not known."""
    generations: int = 0
    """Answers that are stored."""
    accepted: int = 0
    """Of those, the ones that the latest curation keeps."""
    accepted_tokens: int = 0
    """Completion tokens of the accepted ones."""
    unknown_generations: int = 0
    """Answers of attempts whose cost nobody knows."""

    @property
    def cost_known(self) -> bool:
        """Whether the cost of anything in these sums is known; then none is what it says."""
        known = (self.attempts - self.unknown_cost, self.generations - self.unknown_generations)
        return any(known) or not (self.attempts or self.generations)

    def add(self, other: Sums) -> None:
        """Add another's sums to these."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class GpuTime(msgspec.Struct, frozen=True):
    """What the machines of a teacher cost while it had requests in flight."""

    busy_us: int
    """Microseconds in which any request was in flight; gaps of up to a second count as well."""
    count: int
    usd_per_hour: str
    cost_picousd: int


class Ledger(msgspec.Struct, frozen=True):
    """What a corpus cost, in total and by each way of looking at it."""

    total: Sums
    by_outcome: dict[str, Sums]
    by_endpoint: dict[str, Sums]
    by_endpoint_outcome: dict[str, dict[str, Sums]]
    by_teacher: dict[str, Sums]
    by_prompt_set: dict[str, Sums]
    by_day: dict[str, Sums]
    """By the day (UTC) on which the request was sent."""
    by_fate: dict[str, Sums]
    """What became of the money: `accepted`, `dropped: <filter>`, `not curated`, and `wasted:
    <outcome>` where the attempt brought nothing that is stored."""
    gpu: dict[str, GpuTime]
    """By teacher, of those with a price for their machines."""
    generations: int
    kept: int | None
    """Rows that the latest curation keeps; null where there is none."""
    price_known: bool
    """Whether any attempt has a price."""
    active_s: float
    """Seconds in which requests were in flight; pauses between runs are left out."""

    @property
    def charged_picousd(self) -> int:
        """What counts against a budget: known cost, and the worst case of the rest."""
        return self.total.cost_picousd + self.total.reserved_picousd

    @property
    def gpu_picousd(self) -> int:
        """What the machines cost."""
        return sum(gpu.cost_picousd for gpu in self.gpu.values())

    @property
    def cost_known(self) -> bool:
        """Whether there is a cost to speak of: a price of tokens, or of machines."""
        return self.price_known or bool(self.gpu)

    @property
    def spent_picousd(self) -> int:
        """What is known to have been spent, on tokens and machines."""
        return self.total.cost_picousd + self.gpu_picousd

    @property
    def cost_per_accepted_picousd(self) -> int | None:
        """Known cost for each accepted sample, rounded up; null without one or without a price."""
        if not self.total.accepted or not self.cost_known:
            return None
        return -(-self.spent_picousd // self.total.accepted)

    @property
    def cost_per_accepted_mtok_picousd(self) -> int | None:
        """Known cost for a million completion tokens of accepted samples, rounded up."""
        if not self.total.accepted_tokens or not self.cost_known:
            return None
        return -(-self.spent_picousd * 1_000_000 // self.total.accepted_tokens)
