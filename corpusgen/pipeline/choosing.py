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


class Chosen:
    """Which partitions are visited, and which of their samples are asked for."""

    def __init__(self, plan: Plan, store: Store, choice: Choice) -> None:
        self._retired = plan.retired()
        self._pilot = None if choice.limit is None else _pilot(plan, self._retired, choice.limit)
        self.retry = _retry_predicate(choice.retry_failed)
        self.partitions = [p for p in self._visited(plan) if self._has_work(plan, store, p)]

    def wanted(self, sample: str) -> bool:
        """Tell whether a planned sample is asked for in this run."""
        if self._pilot is not None:
            return sample in self._pilot
        return sample not in self._retired

    @property
    def pilot_size(self) -> int | None:
        """How many samples the pilot has; null: no pilot."""
        return None if self._pilot is None else len(self._pilot)

    def _visited(self, plan: Plan) -> Iterator[int]:
        for partition in range(plan.partitions):
            if self._pilot is None or not self._pilot.isdisjoint(plan.ids_of(partition)):
                yield partition

    def _has_work(self, plan: Plan, store: Store, partition: int) -> bool:
        commits = store.commits.get(partition, ())
        if self.retry is not None and any(commit.rows("failures") for commit in commits):
            return True
        if store.ended(partition) >= plan.rows_of(partition):
            return False
        if self._pilot is None and not self._retired:
            return True
        ended = store.ended_ids(partition)
        return any(self.wanted(s) and s not in ended for s in plan.ids_of(partition))


def _pilot(plan: Plan, retired: frozenset[str], limit: int) -> frozenset[str]:
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


def _retry_predicate(reason: str | None) -> Callable[[str], bool] | None:
    if reason is None:
        return None
    return lambda found: reason in ("all", found)
