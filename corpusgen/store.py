"""Keep a partition's answers from the journal to the commit; the only writer of both.

An open partition has one journal. When its last sample has ended (or the run drains) the journal
becomes Parquet files, then a commit marker, and only then is it deleted. A crash between any two
of these steps leaves a state that `Store.recover` completes: a journal with a marker is deleted, a
journal without one is replayed. No attempt leaves the ledger: one without an outcome is `lost`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import msgspec
import pyarrow as pa

from corpusgen import commits, journal, shards
from corpusgen.attempts import charge, lost
from corpusgen.commits import Commit
from corpusgen.errors import CorpusError
from corpusgen.files import TEMPORARY_SUFFIX
from corpusgen.layout import Layout
from corpusgen.lease import Holding
from corpusgen.parquet import read_table
from corpusgen.plan.segments import Plan
from corpusgen.schema import FORMAT_VERSION
from corpusgen.shards import TokenFormat
from corpusgen.types import Attempt, Failure, Generation, Intent, Sample


class OpenPartition:
    """A partition that is being answered."""

    def __init__(
        self,
        number: int,
        part: int,
        contents: journal.Contents,
        writer: journal.JournalWriter,
    ) -> None:
        self.number = number
        self.part = part
        self.contents = contents
        self.pending: set[str] = set()
        """Samples of this run that have not ended."""
        self.sent: Counter[str] = Counter()
        """Requests that earlier parts and earlier processes sent, by sample."""
        self.fed = False
        """Whether all of this run's samples of this partition are in `pending`."""
        self._writer = writer

    def begin(self, intent: Intent) -> None:
        """Journal that a request is about to be sent."""
        self._append(journal.Begun(intent))

    def end(self, attempt: Attempt, generations: list[Generation]) -> None:
        """Journal what an attempt brought."""
        self._append(journal.Ended(attempt, generations))
        for generation in generations:
            self.pending.discard(generation.sample_id)

    def fail(self, failure: Failure) -> None:
        """Journal that a sample is given up."""
        self._append(journal.Failed(failure))
        self.pending.discard(failure.sample_id)

    def lose_unfinished(self) -> None:
        """Journal that nobody will see how the attempts end that have not."""
        for intent in list(self.contents.unfinished.values()):
            self.end(lost(intent), [])

    @property
    def finished(self) -> bool:
        """Whether all of this run's samples have ended."""
        return self.fed and not self.pending

    @property
    def dirty(self) -> bool:
        """Whether something was appended since the last sync."""
        return self._writer.dirty

    @property
    def journal_path(self) -> Path:
        """The journal's file."""
        return self._writer.path

    def sync(self) -> None:
        """Make what was appended survive a power cut."""
        self._writer.sync()

    def close(self) -> None:
        """Close the journal; it stays on disk."""
        self._writer.close()

    def _append(self, record: journal.Record) -> None:
        offset, length = self._writer.append(record)
        journal.take(self.contents, record, offset, length)


class Store:
    """All open partitions of a corpus, for the process that holds its lease."""

    def __init__(
        self,
        layout: Layout,
        corpus_id: str,
        plan: Plan,
        token_format: Callable[[int], TokenFormat],
        lease: Holding,
        journal_directory: Path | None = None,
    ) -> None:
        self._layout = layout
        self._corpus_id = corpus_id
        self._plan = plan
        self._token_format = token_format
        self._lease = lease
        self._journals = journal_directory or layout.journal
        self.commits = commits.by_partition(commits.read_all(layout))
        self.open: dict[int, OpenPartition] = {}
        self.torn_bytes = 0
        """What `recover` cut off the ends of journals."""
        self.damaged: list[Path] = []
        """Copies of journals in which `recover` found damaged records, as they were."""
        self.damaged_bytes = 0
        """What those records took; answers, failures and intents in them are gone."""

    def recover(self) -> None:
        """Take up the journals that earlier processes left; charge what they did not see end."""
        for path in self._journals.glob(f"?????*-???.log.*{TEMPORARY_SUFFIX}"):
            path.unlink()
        committed = {(c.partition, c.part) for parts in self.commits.values() for c in parts}
        for path in sorted(self._journals.glob("?????*-???.log")):
            number, part = _parse_name(path)
            if (number, part) in committed:
                path.unlink()
            elif number < self._plan.partitions:
                self.open[number] = self._resume(path, number, part)
            else:
                raise CorpusError(
                    f"{path}: belongs to a partition that was never planned; was plan/ restored "
                    "from an older copy? Restore the newer one."
                )

    def ended(self, partition: int) -> int:
        """Return how many samples of a partition have ended, by its commits alone."""
        return sum(commit.ended for commit in self.commits.get(partition, ()))

    def ended_ids(self, partition: int) -> set[str]:
        """Return the samples of a partition that have ended, by its commits and its journal."""
        ended: set[str] = set()
        for commit in self.commits.get(partition, ()):
            for kind in ("generations", "failures"):
                ended.update(self._column(commit, kind, "sample_id"))
        if partition in self.open:
            contents = self.open[partition].contents
            ended |= contents.generations.keys() | contents.failures.keys()
        return ended

    def charged_picousd(self, of: Callable[[int], bool] = lambda _: True) -> int:
        """Return what counts against a budget so far: committed and journaled.

        `of` tells which partitions count.
        """
        committed = sum(
            commit.charged_picousd
            for partition, parts in self.commits.items()
            if of(partition)
            for commit in parts
        )
        waiting = [a for o in self.open.values() if of(o.number) for a in o.contents.attempts]
        return committed + sum(charge(attempt) for attempt in waiting)

    def attempts_since(
        self, moment: float, of: Callable[[int], bool]
    ) -> Iterator[tuple[str, float, int]]:
        """Yield (endpoint, started at, tokens) of attempts since a moment, in epoch seconds.

        `of` tells which partitions count.
        """
        columns = ["endpoint", "started_at", "prompt_tokens", "completion_tokens"]
        for partition, parts in self.commits.items():
            for commit in parts if of(partition) else ():
                file = commit.files.get("attempts")
                path = self._layout.root / file.path if file is not None else None
                if path is None or path.stat().st_mtime < moment:
                    continue
                for row in read_table(path, columns).to_pylist():
                    if row["started_at"].timestamp() >= moment:
                        tokens = (row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0)
                        yield row["endpoint"], row["started_at"].timestamp(), tokens
        for opened in self.open.values():
            for attempt in opened.contents.attempts if of(opened.number) else ():
                if attempt.started_at >= moment:
                    tokens = (attempt.prompt_tokens or 0) + (attempt.completion_tokens or 0)
                    yield attempt.endpoint, attempt.started_at, tokens

    def take_up(
        self, partition: int, wanted: Callable[[str], bool], retry: Callable[[str], bool] | None
    ) -> tuple[OpenPartition, list[Sample]]:
        """Open a partition and return those of its samples that are wanted and have not ended.

        `retry` says, by its reason, which failure is to be asked again.
        """
        opened = self.open.get(partition) or self._create(partition)
        generated, failures, sent = self._ended_before(partition, opened)
        again = {s for s, reason in failures.items() if retry is not None and retry(reason)}
        ended = generated | (failures.keys() - again)
        samples = [
            sample
            for sample in self._plan.samples_of(partition)
            if sample.sample_id not in ended and wanted(sample.sample_id)
        ]
        opened.sent = sent
        opened.pending = {sample.sample_id for sample in samples}
        opened.fed = True
        self.open[partition] = opened
        return opened, samples

    def commit(self, opened: OpenPartition) -> Commit | None:
        """Turn an open partition's journal into a committed part; null where it holds nothing.

        Blocks; meant for a thread. The partition must have no request in flight.
        """
        contents = opened.contents
        opened.lose_unfinished()
        opened.close()
        if not (contents.generations or contents.failures or contents.attempts):
            opened.journal_path.unlink()
            return None
        plan = self._plan.read(opened.number)
        planned = plan.column("sample_id").to_pylist()
        _check_planned(opened.journal_path, opened.number, contents, planned)
        files = dict(self._write_files(opened, plan))
        commit = Commit(
            format_version=FORMAT_VERSION,
            partition=opened.number,
            part=opened.part,
            files=files,
            superseded=self._superseded(opened),
            settled_picousd=sum(a.cost_picousd or 0 for a in contents.attempts),
            reserved_picousd=sum(
                a.reserved_picousd or 0 for a in contents.attempts if a.cost_picousd is None
            ),
            prompt_tokens=sum(a.prompt_tokens or 0 for a in contents.attempts),
            completion_tokens=sum(a.completion_tokens or 0 for a in contents.attempts),
        )
        self._lease.check()
        commits.put(self._layout, commit)
        opened.journal_path.unlink()
        return commit

    def committed(self, opened: OpenPartition, commit: Commit | None) -> None:
        """Enter a finished commit; belongs to the event loop's thread."""
        self.open.pop(opened.number, None)
        if commit is not None:
            self.commits.setdefault(commit.partition, []).append(commit)

    def hand_over(self, partitions: Collection[int]) -> None:
        """Let go of partitions that another process will take up."""
        for partition in partitions:
            opened = self.open.pop(partition, None)
            if opened is not None:
                opened.close()

    def close(self) -> None:
        """Close all journals; they stay on disk for the next process."""
        for opened in self.open.values():
            opened.close()

    def _write_files(
        self, opened: OpenPartition, plan: pa.Table
    ) -> Iterator[tuple[str, commits.PartFile]]:
        contents = opened.contents
        sent = self._sent(opened.number, contents)
        failures = [
            msgspec.structs.replace(failure, attempts=sent[sample])
            for sample, failure in contents.failures.items()
            if sample not in contents.generations
        ]
        where = (opened.number, opened.part)
        if contents.generations:
            path = self._layout.part("generations", *where)
            rows = shards.write_generations(
                path,
                _stored_generations(opened.journal_path, contents, sent),
                plan,
                self._token_format(opened.number),
                self._corpus_id,
            )
            yield "generations", commits.describe(path, self._layout, rows)
        if failures:
            path = self._layout.part("failures", *where)
            rows = shards.write_failures(path, failures, plan, self._corpus_id)
            yield "failures", commits.describe(path, self._layout, rows)
        if contents.attempts:
            path = self._layout.part("attempts", *where)
            rows = shards.write_attempts(path, contents.attempts, self._corpus_id)
            yield "attempts", commits.describe(path, self._layout, rows)

    def _superseded(self, opened: OpenPartition) -> int:
        failed_before = {
            sample
            for commit in self.commits.get(opened.number, ())
            for sample in self._column(commit, "failures", "sample_id")
        }
        contents = opened.contents
        return len(failed_before & (contents.generations.keys() | contents.failures.keys()))

    def _create(self, partition: int) -> OpenPartition:
        part = len(self.commits.get(partition, ()))
        path = self._layout.journal_file(partition, part, self._journals)
        if path.exists():  # handed over by the process that recovered it
            return self._resume(path, partition, part)
        head = journal.Opened(self._corpus_id, partition, part)
        contents = journal.Contents({}, {}, [], {}, 0, 0)
        return OpenPartition(partition, part, contents, journal.JournalWriter(path, head))

    def _resume(self, path: Path, number: int, part: int) -> OpenPartition:
        head = journal.Opened(self._corpus_id, number, part)
        contents = journal.read_contents(path, head)
        _check_planned(path, number, contents, self._plan.ids_of(number))
        self.torn_bytes += contents.torn_bytes
        self.damaged_bytes += contents.damaged_bytes
        kept = journal.renew(path, head, contents)
        if kept is not None:
            self.damaged.append(kept)
            contents = journal.read_contents(path, head)
        writer = journal.JournalWriter(path, head, resume_at=contents.size)
        opened = OpenPartition(number, part, contents, writer)
        opened.lose_unfinished()
        return opened

    def _ended_before(
        self, partition: int, opened: OpenPartition
    ) -> tuple[set[str], dict[str, str], Counter[str]]:
        """Return what has ended by commits and journal: generated, failed by reason, sent."""
        generated: set[str] = set()
        failures: dict[str, str] = {}
        for commit in self.commits.get(partition, ()):
            generated.update(self._column(commit, "generations", "sample_id"))
            reasons = self._column(commit, "failures", "reason")
            failures |= zip(self._column(commit, "failures", "sample_id"), reasons, strict=True)
        sent = self._sent(partition, opened.contents)
        generated.update(opened.contents.generations)
        failures |= {s: failure.reason for s, failure in opened.contents.failures.items()}
        return generated, {s: r for s, r in failures.items() if s not in generated}, sent

    def _sent(self, partition: int, contents: journal.Contents) -> Counter[str]:
        """Return how many attempts name each sample, in earlier parts and in an open journal."""
        sent: Counter[str] = Counter()
        for commit in self.commits.get(partition, ()):
            for samples in self._column(commit, "attempts", "sample_ids"):
                sent.update(samples)
        for attempt in contents.attempts:
            sent.update(attempt.sample_ids)
        return sent

    def _column(self, commit: Commit, kind: str, column: str) -> list[str]:
        file = commit.files.get(kind)
        if file is None:
            return []
        path = self._layout.root / file.path
        return read_table(path, [column]).column(0).to_pylist()  # type: ignore[no-any-return]


def _stored_generations(
    path: Path, contents: journal.Contents, sent: Mapping[str, int]
) -> Iterator[Generation]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for sample in sorted(contents.generations):
            found = journal.read_generation(descriptor, contents.generations[sample])
            if found.attempts > sent[sample]:  # a damaged journal has lost an attempt
                found = msgspec.structs.replace(found, attempts=sent[sample])
            yield found
    finally:
        os.close(descriptor)


def _check_planned(
    path: Path, partition: int, contents: journal.Contents, planned: Collection[str]
) -> None:
    """Refuse a journal that holds samples which its partition lacks."""
    held = contents.generations.keys() | contents.failures.keys()
    held.update(*(attempt.sample_ids for attempt in contents.attempts))
    held.update(*(intent.sample_ids for intent in contents.unfinished.values()))
    unknown = held.difference(planned)
    if unknown:
        raise CorpusError(
            f"{path}: holds the sample {min(unknown)}, which partition {partition} of the plan "
            "lacks; restore the plan/ with which it was made, or move the journal away to ask its "
            "samples again."
        )


def _parse_name(path: Path) -> tuple[int, int]:
    partition, _, part = path.stem.partition("-")
    if not (partition.isdigit() and part.isdigit()):
        raise CorpusError(f"{path}: is no journal; move it away and run the command again.")
    return int(partition), int(part)
