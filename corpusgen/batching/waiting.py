"""Tell what is out when a run begins, before anybody spends what is reserved for it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

from corpusgen.batching.lane import BatchLane
from corpusgen.batching.partitions import recorded_in_commits
from corpusgen.batching.submissions import Item, Submission, clean, outstanding
from corpusgen.errors import ConfigError
from corpusgen.layout import Layout
from corpusgen.store import Store


class Waiting:
    """The submissions that earlier processes left, less what of them is in the store already."""

    def __init__(self, layout: Layout, store: Store) -> None:
        """Read them; `store` has recovered its journals."""
        clean(layout)
        self._layout = layout
        self._store = store
        self.partitions: frozenset[int] = frozenset()
        """The partitions of their samples; their teachers are needed."""
        for submission in outstanding(layout):
            self.partitions |= submission.partitions

    def __bool__(self) -> bool:
        return bool(self.partitions)

    def of(self, lane: BatchLane) -> Iterator[Submission]:
        """Yield a lane's submissions."""
        return (each for each in outstanding(self._layout) if lane.serves(each))

    def may_cost(self, submission: Submission, lane: BatchLane, *, capped: bool) -> int:
        """Return what a submission may still cost; to be set aside before anything else is.

        Raises `ConfigError` where that is not known and money is `capped`.
        """
        total = 0
        for item in _unsettled(self._layout, self._store, submission):
            amount = lane.reserved(item)
            if amount is None and capped:
                raise ConfigError(
                    f"{self._layout.submission(submission.submission_id)}: holds requests that "
                    "are out at the provider and whose price or longest answer is not known, so "
                    "that no budget can be kept. Set teacher.price, or leave budget_usd out for "
                    "one run, which fetches what they bring."
                )
            total += amount or 0
        return total

    def check(self, lanes: Collection[BatchLane]) -> None:
        """Refuse lanes that leave a submission out: its samples would be asked and paid again.

        Raises `ConfigError`.
        """
        for submission in outstanding(self._layout):
            if not any(lane.serves(submission) for lane in lanes):
                raise ConfigError(
                    f"{self._layout.submission(submission.submission_id)}: "
                    f"{len(submission.items)} requests are out at the endpoint "
                    f"{submission.endpoint} for the {_named(submission.teacher)}, which this "
                    "configuration does not have as kind: openai_batch. Put it back for one run, "
                    "which fetches what they bring."
                )


def _named(teacher: dict[str, Any]) -> str:
    """Return a teacher's identity in words."""
    more = [f"{key} {json.dumps(value)}" for key, value in teacher.items() if key != "model"]
    return f"model {teacher['model']}" + "".join(f" ({each})" for each in more)


def by_partition(items: list[Item]) -> dict[int, list[Item]]:
    """Return a submission's items by partition, in the plan's order."""
    found: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        found[item.partition].append(item)
    return dict(sorted(found.items()))


def _unsettled(layout: Layout, store: Store, submission: Submission) -> Iterator[Item]:
    for partition, items in by_partition(submission.items).items():
        done = recorded_in_commits(layout, store, partition)
        if partition in store.open:
            done.update(a.attempt_id for a in store.open[partition].contents.attempts)
        yield from (item for item in items if item.item_id not in done)
