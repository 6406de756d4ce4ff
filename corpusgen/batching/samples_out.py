"""Tell which samples are out, for whoever goes through the plan in its order.

It holds the ids of those submissions only that reach into the partitions at hand.
"""

from __future__ import annotations

from collections.abc import Collection

from corpusgen.batching.submissions import outstanding, read
from corpusgen.layout import Layout


class SamplesOut:
    """The samples of the submissions on disk, as they were when this was made."""

    def __init__(self, layout: Layout) -> None:
        """Read which partitions they hold; needs the corpus' lease."""
        self._layout = layout
        self._partitions = {each.submission_id: each.partitions for each in outstanding(layout)}
        self._held: dict[str, dict[int, set[str]]] = {}

    def of(self, partition: int) -> set[str]:
        """Return which samples of a partition are out; fastest in ascending order."""
        found: set[str] = set()
        for submission_id, partitions in self._partitions.items():
            if partition in partitions:
                if submission_id not in self._held:
                    self._held[submission_id] = self._read(submission_id, partitions)
                found |= self._held[submission_id][partition]
            elif submission_id in self._held and partition > max(partitions):
                del self._held[submission_id]
        return found

    def _read(self, submission_id: str, partitions: Collection[int]) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {partition: set() for partition in partitions}
        for item in read(self._layout, submission_id).items:
            found[item.partition].update(item.sample_ids)
        return found
