"""What the loopback server allows in a minute: a true sliding window, as hard as a limit can be.

A token bucket forgives a burst after a quiet spell; a sliding window does not: in no stretch of
`window_s` seconds, wherever it begins, are more requests or tokens admitted than the rate allows.
What is rejected is not charged. What is admitted is, even where the script then answers 500.

Tokens are charged by one of two rules, `tpm_rule`:

    usage         the prompt's tokens at arrival, the answer's when it is complete; a request is
                  rejected when the window's sum has reached the limit
    max_tokens    the prompt's tokens and `max_tokens` for each draw at arrival, whatever the
                  answer turns out to be, as OpenAI does; a request is rejected when it does not fit
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

TpmRule = Literal["usage", "max_tokens"]


class Limits(msgspec.Struct, frozen=True):
    """What is allowed; null: anything."""

    rpm: int | None = None
    tpm: int | None = None
    window_s: float = 60.0
    tpm_rule: TpmRule = "usage"

    def allowed(self, a_minute: int) -> int:
        """Return how much a window takes at a rate."""
        return max(1, int(a_minute * self.window_s / 60))


class SlidingLimits:
    """Admit or reject requests, and keep what was charged as long as it counts."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests = _Window()
        self._tokens = _Window()
        self.charged_tokens = 0
        """Since the start."""

    def admit(self, limits: Limits, prompt_tokens: int, most_tokens: int) -> float | None:
        """Charge a request and return null, or return after how many seconds it would fit.

        `most_tokens` is the longest answer that the request allows, over all its draws.
        """
        now = self._clock()
        at_arrival = prompt_tokens + (most_tokens if limits.tpm_rule == "max_tokens" else 0)
        needed = at_arrival if limits.tpm_rule == "max_tokens" else 1
        wait = 0.0
        if limits.rpm is not None:
            wait = self._requests.wait_s(now, limits.window_s, limits.allowed(limits.rpm), 1)
        if limits.tpm is not None:
            room = self._tokens.wait_s(now, limits.window_s, limits.allowed(limits.tpm), needed)
            wait = max(wait, room)
        if wait > 0:
            return wait
        if limits.rpm is not None:
            self._requests.add(now, 1)
        self._charge(limits, now, at_arrival)
        return None

    def completed(self, limits: Limits, completion_tokens: int) -> None:
        """Charge an answer's tokens where they are charged by usage."""
        if limits.tpm_rule == "usage":
            self._charge(limits, self._clock(), completion_tokens)

    def _charge(self, limits: Limits, now: float, tokens: int) -> None:
        self.charged_tokens += tokens
        if limits.tpm is not None:
            self._tokens.add(now, tokens)

    def headers(self, limits: Limits) -> dict[str, str]:
        """Return OpenAI's `x-ratelimit-*` headers: the rate, what is left, until all is again."""
        now = self._clock()
        found = {}
        for name, rate, window in (
            ("requests", limits.rpm, self._requests),
            ("tokens", limits.tpm, self._tokens),
        ):
            if rate is not None:
                left = max(0, limits.allowed(rate) - window.sum(now, limits.window_s))
                found[f"x-ratelimit-limit-{name}"] = str(rate)
                found[f"x-ratelimit-remaining-{name}"] = str(left)
                full_in = window.empty_in_s(now, limits.window_s)
                found[f"x-ratelimit-reset-{name}"] = duration(full_in)
        return found


class _Window:
    """Amounts of the last seconds, the oldest first."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, now: float, amount: int) -> None:
        if amount:
            self._entries.append((now, amount))
            self._sum += amount

    def sum(self, now: float, length_s: float) -> int:
        """Return what still counts; forget the rest."""
        while self._entries and self._entries[0][0] <= now - length_s:
            self._sum -= self._entries.popleft()[1]
        return self._sum

    def wait_s(self, now: float, length_s: float, allowed: int, needed: int) -> float:
        """Return the seconds until an amount fits; those of a whole window where it never does."""
        excess = self.sum(now, length_s) + needed - allowed
        if excess <= 0:
            return 0.0
        for at, amount in self._entries:
            excess -= amount
            if excess <= 0:
                return max(at + length_s - now, 1e-9)
        return length_s

    def empty_in_s(self, now: float, length_s: float) -> float:
        return self._entries[-1][0] + length_s - now if self._entries else 0.0


def duration(seconds: float) -> str:
    """Return a span as OpenAI writes it: `20ms`, `1.5s`, `6m0s`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"
    return f"{int(seconds // 60)}m{seconds % 60:.0f}s"
