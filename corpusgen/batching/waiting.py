"""Tell what is out when a run begins, before anybody spends what is reserved for it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

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
        self._reserved: dict[str, int] = {}
        self.partitions: frozenset[int] = frozenset()
        """The partitions of their samples; their teachers are needed."""
        for submission in outstanding(layout):
            self._reserved[submission.submission_id] = _unsettled(layout, store, submission)
            self.partitions |= submission.partitions

    def __bool__(self) -> bool:
        return bool(self._reserved)

    @property
    def reserved_picousd(self) -> int:
        """What they may still cost; to be set aside before anything else is."""
        return sum(self._reserved.values())

    def of(self, lane: BatchLane) -> tuple[list[Submission], int]:
        """Return a lane's submissions, and what they may still cost."""
        found = [each for each in outstanding(self._layout) if lane.serves(each)]
        return found, sum(self._reserved.get(each.submission_id, 0) for each in found)

    def check(self, lanes: Collection[BatchLane]) -> None:
        """Refuse lanes that leave a submission out: its samples would be asked and paid again.

        Raises `ConfigError`.
        """
        for submission in outstanding(self._layout):
            if not any(lane.serves(submission) for lane in lanes):
                raise ConfigError(
                    f"{self._layout.submission(submission.submission_id)}: "
                    f"{len(submission.items)} requests are out at the endpoint "
                    f"{submission.endpoint} for the model {submission.model}, which this "
                    "configuration does not have as kind: openai_batch. Put it back for one run, "
                    "which fetches what they bring."
                )


def by_partition(items: list[Item]) -> dict[int, list[Item]]:
    """Return a submission's items by partition, in the plan's order."""
    found: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        found[item.partition].append(item)
    return dict(sorted(found.items()))


def _unsettled(layout: Layout, store: Store, submission: Submission) -> int:
    total = 0
    for partition, items in by_partition(submission.items).items():
        done = recorded_in_commits(layout, store, partition)
        if partition in store.open:
            done.update(a.attempt_id for a in store.open[partition].contents.attempts)
        total += sum(i.reserved_picousd or 0 for i in items if i.item_id not in done)
    return total
