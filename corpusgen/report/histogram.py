"""Count values into bins in a memory that does not grow, and cut the counts into readable bars."""

from __future__ import annotations

import msgspec
import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

MOST_BARS = 24
_STEPS = (1, 2, 5)


class Bar(msgspec.Struct, frozen=True):
    """How many values lie in one interval."""

    label: str
    """The interval in words."""
    count: int


class Histogram(msgspec.Struct, frozen=True):
    """A distribution as bars, with what stands beside it."""

    bars: tuple[Bar, ...] = ()
    values: int = 0
    mean: float | None = None
    median: float | None = None
    p95: float | None = None


class Counts:
    """Count integers from 0 to `largest` exactly; larger ones count as the largest."""

    def __init__(self, largest: int) -> None:
        self._counts = np.zeros(largest + 1, np.int64)
        self._sum = 0.0

    def add(self, values: npt.NDArray[np.integer]) -> None:
        """Count values; those below 0 count as 0."""
        clipped = np.clip(values, 0, len(self._counts) - 1)
        self._counts += np.bincount(clipped, minlength=len(self._counts))
        self._sum += float(values.sum())

    def histogram(self, scale: float = 1.0, offset: float = 0.0, unit: str = "") -> Histogram:
        """Return bars over the counted integers, each standing for `offset + integer × scale`."""
        total = int(self._counts.sum())
        if not total:
            return Histogram()
        low, high = (int(index) for index in np.flatnonzero(self._counts)[[0, -1]])
        width = _bar_width(high - low + 1)
        middle = offset if scale == 1.0 else offset + scale / 2  # of a bin that is an interval
        start = low - low % width
        bars = []
        for first in range(start, high + 1, width):
            count = int(self._counts[first : first + width].sum())
            bars.append(Bar(_label(first, width, scale, offset, unit), count))
        return Histogram(
            bars=tuple(bars),
            values=total,
            mean=middle + self._sum / total * scale,
            median=middle + self._quantile(0.5) * scale,
            p95=middle + self._quantile(0.95) * scale,
        )

    def _quantile(self, share: float) -> int:
        return int(np.searchsorted(np.cumsum(self._counts), share * self._counts.sum()))


def _bar_width(span: int) -> int:
    """Return the smallest of 1, 2, 5, 10, 20, … that cuts a span into at most `MOST_BARS` bars."""
    power = 1
    while True:
        for step in _STEPS:
            if span <= step * power * (MOST_BARS - 1):
                return step * power
        power *= 10


def _label(first: int, width: int, scale: float, offset: float, unit: str) -> str:
    if scale == 1.0 and offset == 0.0:
        interval = f"{first:,}" if width == 1 else f"{first:,} to {first + width - 1:,}"
    else:
        interval = f"{offset + first * scale:.2f} to {offset + (first + width) * scale:.2f}"
    return f"{interval} {unit}".strip()
