"""Where everything lies in a corpus directory. The only module that spells a name on disk."""

from __future__ import annotations

from pathlib import Path

import msgspec


class Layout(msgspec.Struct, frozen=True):
    """The paths of one corpus."""

    root: Path

    @property
    def corpus_file(self) -> Path:
        """`corpus.json`, written once."""
        return self.root / "corpus.json"

    @property
    def lease(self) -> Path:
        """The lock: present while a process writes."""
        return self.root / "lease.json"

    @property
    def configurations(self) -> Path:
        """Each configuration that was used, unexpanded."""
        return self.root / "config"

    @property
    def plan(self) -> Path:
        """The plan's segments."""
        return self.root / "plan"

    @property
    def commits(self) -> Path:
        """A marker for each committed part."""
        return self.root / "commits"

    @property
    def journal(self) -> Path:
        """Answers of partitions that are still open."""
        return self.root / "journal"

    @property
    def journal_record(self) -> Path:
        """Where the journals lie, if not in `journal`."""
        return self.root / "journal.json"

    @property
    def curation(self) -> Path:
        """A directory for each curation."""
        return self.root / "curation"

    @property
    def datasets(self) -> Path:
        """A directory for each exported dataset."""
        return self.root / "dataset"

    @property
    def report(self) -> Path:
        """The report to open in a browser."""
        return self.root / "report.html"

    @property
    def status(self) -> Path:
        """The last progress that a running process wrote."""
        return self.root / "status.json"

    @property
    def batches(self) -> Path:
        """What is out at a provider's Batch API."""
        return self.root / "batches"

    def submission(self, submission_id: str) -> Path:
        """Return the file that lists a submission's requests; its presence is the submission."""
        return self.batches / f"{submission_id}.json"

    def submission_place(self, submission_id: str) -> Path:
        """Return the file that says where a submission is at the provider."""
        return self.batches / f"{submission_id}.place.json"

    def submission_work(self, submission_id: str, what: str) -> Path:
        """Return a file that is only there while a process works: `requests` or `results`."""
        return self.batches / f"{submission_id}.{what}.jsonl.tmp"

    def segment(self, number: int, ending: str) -> Path:
        """Return a planning's file: `000001.json`, `000001-00000.parquet`, `000001-changes…`."""
        return self.plan / f"{number:06d}{ending}"

    def part(self, kind: str, partition: int, part: int) -> Path:
        """Return a part's Parquet file; `kind` is generations, failures or attempts."""
        return self.root / kind / f"part-{partition:05d}-{part:03d}.parquet"

    def commit(self, partition: int, part: int) -> Path:
        """Return the marker whose presence commits a part."""
        return self.commits / f"{partition:05d}-{part:03d}.json"

    def journal_file(self, partition: int, part: int, directory: Path | None = None) -> Path:
        """Return the journal of a part that is still open."""
        return (directory or self.journal) / f"{partition:05d}-{part:03d}.log"
