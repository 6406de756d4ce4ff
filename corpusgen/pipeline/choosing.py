"""Choose which samples a run asks for: all that have not ended, a pilot, or failures again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from corpusgen.plan.segments import Plan
from corpusgen.store import Store


class Choice(msgspec.Struct, frozen=True):
    """Which samples a run asks for."""

    limit: int | None = None
    """A pilot: only the first so many samples of the plan, taken from all prompt sets in turn."""
    retry_failed: str | None = None
    """Ask failed samples again: `all`, or one reason."""


class Wanted:
    """Which samples a run asks for, whatever has ended already."""

    def __init__(self, plan: Plan, choice: Choice) -> None:
        self._retired = plan.retired()
        self._pilot = None if choice.limit is None else pilot(plan, self._retired, choice.limit)
        self.retry = retried(choice.retry_failed)
        """Which failures are asked again, by their reason; null: none."""

    def __call__(self, sample: str) -> bool:
        """Tell whether a planned sample is asked for in this run."""
        if self._pilot is not None:
            return sample in self._pilot
        return sample not in self._retired

    @property
    def is_everything(self) -> bool:
        """Whether every planned sample is wanted."""
        return self._pilot is None and not self._retired

    @property
    def pilot_size(self) -> int | None:
        """How many samples the pilot has; null: no pilot."""
        return None if self._pilot is None else len(self._pilot)

    def partitions(self, plan: Plan) -> Iterator[int]:
        """Yield the partitions that may hold wanted samples."""
        for partition in range(plan.partitions):
            if self._pilot is None or not self._pilot.isdisjoint(plan.ids_of(partition)):
                yield partition


class Chosen:
    """Which partitions are visited: those with wanted samples that have not ended."""

    def __init__(self, plan: Plan, store: Store, choice: Choice) -> None:
        self.wanted = Wanted(plan, choice)
        self.partitions = [
            p for p in self.wanted.partitions(plan) if self._has_work(plan, store, p)
        ]

    def _has_work(self, plan: Plan, store: Store, partition: int) -> bool:
        commits = store.commits.get(partition, ())
        if self.wanted.retry is not None and any(commit.rows("failures") for commit in commits):
            return True
        if store.ended(partition) >= plan.rows_of(partition):
            return False
        if self.wanted.is_everything:
            return True
        ended = store.ended_ids(partition)
        return any(self.wanted(s) and s not in ended for s in plan.ids_of(partition))


def pilot(plan: Plan, retired: frozenset[str], limit: int) -> frozenset[str]:
    """Return the first `limit` samples, taken from the prompt sets in turn."""
    by_set: dict[str, Iterator[str]] = {}
    for run in plan.runs:
        by_set.setdefault(run.prompt_set, _live_ids(plan, run.prompt_set, retired))
    taken: list[str] = []
    while by_set and len(taken) < limit:
        for name, ids in list(by_set.items()):
            sample = next(ids, None)
            if sample is None:
                del by_set[name]
            elif len(taken) < limit:
                taken.append(sample)
    return frozenset(taken)


def _live_ids(plan: Plan, prompt_set: str, retired: frozenset[str]) -> Iterator[str]:
    for run in plan.runs:
        if run.prompt_set == prompt_set:
            for partition in range(run.first_partition, run.first_partition + run.partitions):
                yield from (s for s in plan.ids_of(partition) if s not in retired)


def retried(reason: str | None) -> Callable[[str], bool] | None:
    """Return what says, by its reason, which failure is asked again; null: none is."""
    if reason is None:
        return None
    return lambda found: reason in ("all", found)
