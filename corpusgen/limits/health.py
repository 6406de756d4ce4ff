"""Take an endpoint out that fails again and again, try it once in a while, and take it back.

A circuit breaker ("Release It!", Nygard, 2007): closed, open for a cool-off that doubles, then
half-open for one request. A prompt that an endpoint refuses (400) proves that it lives.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

LONGEST_COOL_OFF_S = 10.0
"""Before an endpoint that fails is tried again."""
_IN_A_ROW = 5
_OF_SAMPLES = 3
"""Failures must come from so many samples: one prompt that always fails proves nothing."""
_LAST = 20
_SHARE = 0.6


class Health:
    """One endpoint's circuit breaker."""

    def __init__(
        self,
        clock: Callable[[], float],
        first_cool_off_s: float,
        longest_cool_off_s: float = LONGEST_COOL_OFF_S,
    ) -> None:
        self._clock = clock
        self._first = first_cool_off_s
        self._longest = longest_cool_off_s
        self._last: deque[bool] = deque(maxlen=_LAST)
        self._row: list[str] = []
        self._trips = 0
        self._until: float | None = None
        self._probing = False
        self.answered_at = clock()
        """When it last gave any sign of life."""
        self.reason = ""
        """The last failure's sentence."""
        self.tries_before_first_sign = 0
        """How often it was taken out before it first answered or refused anything."""
        self._met = False

    @property
    def was_never_there(self) -> bool:
        """Whether it never answered or refused anything."""
        return not self._met

    @property
    def ejected(self) -> bool:
        """Whether it is out; one request at a time may try it after its cool-off."""
        return self._until is not None

    def opens_in(self) -> float | None:
        """Return after how many seconds a request may go; 0: now; null: while another tries it."""
        if self._until is None:
            return 0.0
        if self._probing:
            return None
        return max(self._until - self._clock(), 0.0)

    def sent(self) -> bool:
        """Count a request; return whether it is the probe of an endpoint that is out."""
        self._probing = self.ejected
        return self._probing

    def alive(self, *, probe: bool) -> bool:
        """Count a sign of life; return whether the endpoint returns by it.

        What was sent before it was taken out says nothing about now.
        """
        self.answered_at = self._clock()
        self._met = True
        if self.ejected and not probe:
            return False
        returned = self.ejected
        self._last.append(False)
        self._row.clear()
        self._trips, self._until, self._probing = 0, None, False
        return returned

    def failed(self, sample: str, reason: str, *, probe: bool, at_once: bool) -> bool:
        """Count a failure; return whether the endpoint is ejected by it.

        `at_once` ejects it for this one: it could not be reached at all.
        """
        self.reason = reason
        if self.ejected:
            if probe:
                self._eject()
            return False
        self._last.append(True)
        self._row = [*self._row[-_LAST:], sample]
        if at_once or self._is_sick():
            self._eject()
            return True
        return False

    def refused(self, reason: str, *, probe: bool, closed: bool) -> bool:
        """Count a request that was refused for load; return whether it is ejected by it.

        `closed` tells that nothing gets through any more.
        """
        self.reason = reason
        self._met = True
        if self.ejected:
            if probe:
                self._eject()
            return False
        if closed:
            self._eject()
        return closed

    def given_up(self, *, probe: bool) -> None:
        """Forget a request that was cancelled: it proves nothing."""
        if probe:
            self._probing = False

    def _is_sick(self) -> bool:
        if len(set(self._row)) >= _OF_SAMPLES and len(self._row) >= _IN_A_ROW:
            return True
        return len(self._last) == _LAST and sum(self._last) >= _SHARE * _LAST

    def _eject(self) -> None:
        cool_off = min(self._first * 2.0 ** min(self._trips, 30), self._longest)
        self._trips += 1
        self.tries_before_first_sign += not self._met
        self._until = self._clock() + cool_off
        self._probing = False
        self._last.clear()
        self._row.clear()
