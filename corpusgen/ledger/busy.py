"""Measure the time in which anything was in flight: the length of a union of intervals.

Times are whole microseconds, so that the sum does not depend on the order or on how the attempts
are cut into parts.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

GAP_US = 1_000_000
"""A gap of up to this long belongs to the time around it: a machine is not given back for it. It
bounds the memory as well, to an interval for each pause."""
_MANY = 1 << 16


class BusyTime:
    """A union of intervals that grows."""

    def __init__(self) -> None:
        self._starts: list[Int64s] = []
        self._ends: list[Int64s] = []
        self._waiting = 0

    def add(self, starts: Int64s, ends: Int64s) -> None:
        """Add intervals; none ends before it starts."""
        self._starts.append(starts)
        self._ends.append(ends)
        self._waiting += len(starts)
        if self._waiting > _MANY:
            self._merge()

    def join(self, other: BusyTime) -> None:
        """Add another's intervals."""
        for starts, ends in zip(*other._merge(), strict=True):
            self.add(starts, ends)

    @property
    def microseconds(self) -> int:
        """How long the union is."""
        starts, ends = self._merge()
        return sum(int(np.sum(e - s)) for s, e in zip(starts, ends, strict=True))

    def _merge(self) -> tuple[list[Int64s], list[Int64s]]:
        if self._waiting:
            starts, ends = _union(np.concatenate(self._starts), np.concatenate(self._ends))
            self._starts, self._ends, self._waiting = [starts], [ends], 0
        return self._starts, self._ends


def _union(starts: Int64s, ends: Int64s) -> tuple[Int64s, Int64s]:
    order = np.argsort(starts, kind="stable")
    starts = starts[order]
    until = np.maximum.accumulate(ends[order])
    first = np.flatnonzero(np.concatenate([[True], starts[1:] > until[:-1] + GAP_US]))
    last = np.concatenate([first[1:], [len(starts)]]) - 1
    return starts[first], until[last]
