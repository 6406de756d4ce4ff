"""Count what a run does and tell it to an observer: rates, failures, money, time left."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping

from corpusgen.errors import TeacherError
from corpusgen.events import Committed, Log, Observer, Progress
from corpusgen.money import dollars
from corpusgen.store import OpenPartition
from corpusgen.types import Failure, Generation

_WINDOW_S = 30.0


class RunMeter:
    """Implements `fanout.Meter`; `progress` is a snapshot for the observer."""

    def __init__(
        self,
        observer: Observer,
        *,
        done: int,
        total: int,
        charged_picousd: Callable[[], int | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`done` of `total` samples ended in earlier runs; `charged_picousd` may be unknown."""
        self.observer = observer
        """Who is told."""
        self._clock = clock
        self._began = clock()
        self._done_before = done
        self._total = total
        self._charged = charged_picousd
        self.generations = 0
        self.failures: Counter[str] = Counter()
        self.retries = 0
        self.completion_tokens = 0
        self._recent: deque[tuple[float, int, int]] = deque([(self._began, 0, 0)])

    def answered(self, generation: Generation) -> None:
        """Count a generation."""
        self.generations += 1
        self.completion_tokens += generation.answer.completion_tokens or 0

    def failed(self, failure: Failure) -> None:
        """Count a failure, and tell the first few."""
        self.failures[failure.reason] += 1
        seen = self.failures.total()
        if seen <= 5:
            where = f"sample {failure.sample_id[:8]}"
            self.observer(Log("warning", f"{where}: {failure.reason}: {failure.detail}"))
        elif seen == 6:
            self.observer(
                Log("warning", "further failures are counted; `corpusgen show` lists them")
            )

    def retried(self, error: TeacherError) -> None:
        """Count an attempt that failed."""
        self.retries += 1
        self.observer(Log("debug", f"{error.outcome}: {error}"))

    def committed(self, opened: OpenPartition, complete: bool) -> None:
        """Tell that a part was committed."""
        contents = opened.contents
        self.observer(
            Committed(
                opened.number,
                opened.part,
                len(contents.generations),
                len(contents.failures.keys() - contents.generations.keys()),
                complete,
            )
        )

    def add(
        self, generations: int, completion_tokens: int, retries: int, failures: Mapping[str, int]
    ) -> None:
        """Add what another process counted."""
        self.generations += generations
        self.completion_tokens += completion_tokens
        self.retries += retries
        self.failures.update(failures)

    @property
    def ended(self) -> int:
        """Samples that ended in this run."""
        return self.generations + self.failures.total()

    def progress(self, in_flight: int) -> Progress:
        """Return where the run stands now."""
        now = self._clock()
        ended = self.ended
        self._recent.append((now, ended, self.completion_tokens))
        while len(self._recent) > 2 and self._recent[1][0] < now - _WINDOW_S:
            self._recent.popleft()
        since, ended_then, tokens_then = self._recent[0]
        span = max(now - since, 1e-9)
        rate = (ended - ended_then) / span
        left = max(self._total - self._done_before - ended, 0)
        charged = self._charged()
        return Progress(
            done=min(self._done_before + ended, self._total),  # failures asked again count once
            total=self._total,
            failures=dict(self.failures),
            in_flight=in_flight,
            completion_tokens=self.completion_tokens,
            tokens_per_s=(self.completion_tokens - tokens_then) / span,
            elapsed_s=now - self._began,
            remaining_s=left / rate if rate > 0 else None,
            cost_usd=None if charged is None else dollars(charged),
            retries=self.retries,
        )
