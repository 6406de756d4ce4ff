"""How long the loopback server takes, and for how long an answer: models of a real server's load.

`slots` requests decode at once, each at `tokens_per_s`; what is beyond waits in line, so that
latency grows and throughput does not. With `collapse_above`, more requests than that (waiting ones
included) slow every slot down by the square of the excess, so that twice as many requests bring
half the throughput: a server that thrashes.

Lengths and latencies are drawn from a hash of the request, so that a run repeats in any order.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from statistics import NormalDist

from tests.loopback_text import WORDS, Drawn

_NORMAL = NormalDist()


class Slots:
    """The places at which answers are decoded."""

    def __init__(self) -> None:
        self._free: asyncio.Semaphore | None = None
        self._present = 0

    async def decode(
        self, tokens: int, slots: int, tokens_per_s: float, collapse_above: int | None
    ) -> None:
        """Wait for a slot, then for as long as an answer takes there.

        The number of slots is that of the first call.
        """
        self._free = self._free or asyncio.Semaphore(slots)
        self._present += 1
        try:
            async with self._free:
                crowding = max(1.0, self._present / (collapse_above or math.inf))
                await asyncio.sleep(crowding**2 * tokens / tokens_per_s)
        finally:
            self._present -= 1


def lognormal(key: bytes, mean: float, sigma: float) -> float:
    """Return a log-normal number of a mean: the same for the same key.

    With sigma 1, one in twenty is above 3.1 times the mean and the median is 0.6 of it.
    """
    if sigma == 0 or mean == 0:
        return mean
    digest = hashlib.blake2b(key, digest_size=8).digest()
    uniform = (int.from_bytes(digest) + 0.5) / 2**64
    return mean * math.exp(sigma * _NORMAL.inv_cdf(uniform) - sigma**2 / 2)


def answer_of_length(key: bytes, draw: int, count: int, limit: int | None) -> Drawn:
    """Draw an answer of so many tokens, cut at a limit."""
    reason = "stop" if limit is None or count <= limit else "length"
    count = count if limit is None else min(count, limit)
    digest = hashlib.shake_128(key + draw.to_bytes(2)).digest(count)
    words = [byte % len(WORDS) for byte in digest]
    message = {"content": " ".join(WORDS[i] for i in words)}
    return Drawn(message, words, count, 0, reason)
