"""Find how many requests an endpoint takes best, by what it answers.

Where a limit is configured, requests that are refused for load lower it (multiplicative decrease)
and quiet windows raise it again, up to what is configured. Where none is, the limit starts low,
doubles while throughput follows, and then climbs the hill: it tries a little more and a little
less in turn and keeps what gives the same tokens a second with the fewest requests in flight, so
that a server which only queues is not flooded and one that collapses is left room. The windows are
counted in answers; only what was sent under the present limit counts.
"""

from __future__ import annotations

START = 8
CEILING = 1024
"""Requests in flight at an endpoint that states no limit."""
_UP, _DOWN = 1.25, 0.8
_LESS, _LEAST = 0.7, 0.35
_RECOVERY = 1.1
_LONGEST_HOLD = 16
_DOUBLING_GAIN = 1.3
_UP_GAIN = 1.08
_DOWN_LOSS = 0.95
_COLLAPSE = 0.5
_SETTLED_ANSWERS = 100
_FIRST_ANSWERS = 16
_STRIKES = 3
_FEW = 0.05
_IMMUNE = 20
_STRIKING_ANSWERS = 60


class _Window:
    """What came back since the limit was last changed."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.sent = 0
        self.answers = 0
        self.tokens = 0
        self.latency_s = 0.0
        self.refused = 0
        self.in_flight = 0
        """Others in flight at the last refusal: what the endpoint did take."""
        self.full = False
        """Whether the limit was reached."""

    @property
    def is_refused(self) -> bool:
        """Whether more was refused than now and then one."""
        return self.refused > max(_FEW * (self.answers + self.refused), 1)

    def goodput(self, limit: int) -> float:
        """Return the tokens a second that so many in flight bring (Little's law).

        Lengths vary far more than the time a token takes, so that this says after few answers
        what counting the tokens of a span of time would say after many.
        """
        return limit * max(self.tokens, self.answers) / max(self.latency_s, 1e-6)


class Concurrency:
    """The limit of one endpoint."""

    def __init__(self, configured: int | None, ceiling: int | None = None) -> None:
        """`ceiling` bounds an endpoint that states no limit."""
        self._climbs = configured is None
        self._ceiling = configured or ceiling or CEILING
        self._limit = float(configured or min(START, self._ceiling))
        self._doubling = self._climbs
        self._window = _Window(0)
        self._base: float | None = None
        self._before_trial: float | None = None
        self._next_up = True
        self._hold = 0
        self._holding = 1
        self._doubts = 0
        self._strikes = 0
        self._limit_then = 0.0
        self._share_then = 0.0
        self._doubling_then = False
        self._immune = 0

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return max(int(self._limit), 1)

    @property
    def epoch(self) -> int:
        """Under which limit a request is sent; given back to `answered` and `refused`."""
        return self._window.epoch

    def sent(self, in_flight: int) -> None:
        """Count a request that makes so many in flight."""
        self._window.sent += 1
        if in_flight >= self.limit:
            self._window.full = True

    def answered(self, epoch: int, tokens: int, latency_s: float) -> None:
        """Count an answer."""
        window = self._window
        if epoch != window.epoch:
            return
        window.answers += 1
        window.tokens += tokens
        window.latency_s += latency_s
        if window.answers + window.refused >= self._length():
            self._close()

    def refused(self, epoch: int, in_flight: int) -> None:
        """Count a request that was refused for load (429, 503), with so many others in flight."""
        window = self._window
        if epoch != window.epoch:
            return
        window.refused += 1
        window.in_flight = in_flight
        if window.refused >= max(self.limit // 2, 8) or (
            window.answers + window.refused >= self._length()
        ):
            self._close()

    def restart(self) -> None:
        """Forget what was measured: the endpoint was away."""
        self._base = self._before_trial = None
        self._renew()

    def acquit(self) -> None:
        """Take back what refusals lowered: they were for the rate, not for the load."""
        self._strikes = self._hold = 0
        self._holding = 1
        self._base = self._before_trial = None
        self._doubling = self._climbs
        self._set(self._limit if self._climbs else self._ceiling)

    def _length(self) -> int:
        if self._strikes:
            return max(self.limit, _STRIKING_ANSWERS)
        if self._doubling:
            return max(self.limit, _FIRST_ANSWERS)
        return max(2 * self.limit, _SETTLED_ANSWERS)

    def _close(self) -> None:
        window = self._window
        if window.is_refused and not self._immune:
            self._lower(window)
            return
        self._immune = max(self._immune - 1, 0)
        self._strikes = 0
        if self._climbs:
            self._climb(window)
        elif self._limit >= self._ceiling:
            self._renew()
        elif self._hold:
            self._hold -= 1
            self._renew()
        else:
            self._set(self._limit * _RECOVERY + 1)

    def _lower(self, window: _Window) -> None:
        """Answer refusals with a lower limit, unless lower limits were seen not to help."""
        share = window.refused / max(window.sent, window.refused)
        if self._strikes == 0:
            self._share_then, self._limit_then = share, self._limit
            self._doubling_then = self._doubling
        self._strikes += 1
        self._base = self._before_trial = None
        in_vain = share > self._share_then / 2 or self._strikes > 2 * _STRIKES
        # Where it starts, little is in flight, and lower limits would take minutes to judge.
        strikes = _STRIKES if self._limit_then > START else 1
        if self._strikes > strikes and in_vain:
            self._strikes, self._immune = 0, _IMMUNE  # refused at any load alike: not for it
            self._doubling, self._hold = self._doubling_then, 0
            self._set(self._limit_then)
        else:
            self._doubling, self._hold = False, self._holding
            self._holding = min(2 * self._holding, _LONGEST_HOLD)
            took = max(float(window.in_flight), self._limit * _LEAST)
            self._set(min(self._limit * _LESS, took))

    def _climb(self, window: _Window) -> None:
        if not window.full:
            self._renew()  # the limit was not what held requests back: nothing is learned
        elif self._before_trial is not None:
            self._judge(window, self._before_trial)
        else:
            self._measure(window)

    def _judge(self, window: _Window, before: float) -> None:
        assert self._base is not None
        goodput = window.goodput(self.limit)
        gain = goodput / max(self._base, 1e-9)
        if self._limit > before:
            good = gain >= (_DOUBLING_GAIN if self._doubling else _UP_GAIN)
        else:
            good = gain >= _DOWN_LOSS
        if good:
            self._base, self._before_trial, self._doubts = goodput, None, 0
            self._holding = 1
            self._try()
        elif self._doubling and self._doubts == 0 and gain > 1:  # one look may err
            self._doubts = 1
            self._renew()
        else:
            self._doubling, self._doubts = False, 0
            self._before_trial = None
            self._next_up = not self._next_up
            self._hold = self._holding
            self._holding = min(2 * self._holding, _LONGEST_HOLD)
            self._set(before)

    def _measure(self, window: _Window) -> None:
        goodput = window.goodput(self.limit)
        if self._base is not None and goodput < _COLLAPSE * self._base:
            self._base, self._doubling, self._hold = None, False, 2
            self._set(self._limit * _LESS)
            return
        self._base = goodput if self._base is None else (self._base + goodput) / 2
        if self._hold:
            self._hold -= 1
            self._renew()
        else:
            self._try()

    def _try(self) -> None:
        """Change the limit for one window, and judge what it brings."""
        factor = 2.0 if self._doubling else (_UP if self._next_up else _DOWN)
        wanted = self._limit * factor
        wanted = max(wanted, self._limit + 1) if factor > 1 else min(wanted, self._limit - 1)
        wanted = min(max(wanted, 1.0), float(self._ceiling))
        if int(wanted) == self.limit:
            self._doubling = False
            self._next_up = not self._next_up
            self._hold = self._holding
            self._renew()
            return
        self._before_trial = self._limit
        self._set(wanted)

    def _set(self, limit: float) -> None:
        self._limit = min(max(limit, 1.0), float(self._ceiling))
        self._renew()

    def _renew(self) -> None:
        self._window = _Window(self._window.epoch + 1)
