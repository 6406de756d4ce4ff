"""From the journal to the commit, and back to work after a death between any two steps."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from corpusgen import commits, journal
from corpusgen.commits import Commit
from corpusgen.errors import CorpusError, CorpusLocked
from corpusgen.layout import Layout
from corpusgen.lease import Lease
from corpusgen.plan.planning import SetRequest, plan
from corpusgen.plan.segments import Plan
from corpusgen.shards import TokenFormat
from corpusgen.store import OpenPartition, Store
from corpusgen.types import Answer, Attempt, Failure, Generation, Intent, Prompt, Sampling, Usage

CORPUS = "c" * 32
SIZE = 4


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Plan ten samples in partitions of four."""
    layout = Layout(tmp_path / "out")
    prompts = [
        Prompt(f"p{index}", [{"role": "user", "content": f"q{index}"}], f"f:{index}")
        for index in range(10)
    ]
    request = SetRequest(
        name="set",
        teacher="t",
        teacher_identity={"model": "m"},
        sampling=Sampling(),
        n=1,
        keys={},
        inputs=[],
        read=lambda: iter(prompts),
    )
    plan(layout, [request], partition_size=SIZE)
    return layout


@pytest.fixture
def lease(layout: Layout) -> Iterator[Lease]:
    with Lease(layout.lease, "run") as lease:
        yield lease


@pytest.fixture
def restarted(layout: Layout, lease: Lease) -> Iterator[Callable[..., Store]]:
    """Return a function that opens the store as a new process does."""
    stores: list[Store] = []

    def restart(journals: Path | None = None) -> Store:
        for store in stores:
            store.close()
        tokens = TokenFormat(0, "float32", "raw")
        found = Plan(layout, SIZE)
        stores.append(Store(layout, CORPUS, found, lambda _: tokens, lease, journals))
        stores[-1].recover()
        return stores[-1]

    yield restart
    for store in stores:
        store.close()


def take_up(
    store: Store, partition: int = 0, retry: Callable[[str], bool] | None = None
) -> tuple[OpenPartition, list[str]]:
    opened, samples = store.take_up(partition, lambda _: True, retry)
    return opened, [sample.sample_id for sample in samples]


class Asker:
    """Plays the fan-out: begins attempts and ends them."""

    def __init__(self) -> None:
        self.sent = 0

    def begin(self, opened: OpenPartition, sample: str, reserved: int = 100) -> Intent:
        self.sent += 1
        intent = Intent(f"{self.sent:032x}", [sample], "local", 1760000000.0 + self.sent, reserved)
        opened.begin(intent)
        opened.sent[sample] += 1
        return intent

    def answer(self, opened: OpenPartition, sample: str, cost: int | None = 7) -> None:
        intent = self.begin(opened, sample)
        found = Generation(
            sample,
            Answer(f"answer to {sample}", "stop", completion_tokens=3),
            Usage(5, 3),
            "local",
            intent.started_at,
            0.1,
            opened.sent[sample],
        )
        opened.end(attempt(intent, "answered", cost, 5, 3), [found])

    def fail(self, opened: OpenPartition, sample: str, reason: str = "timeout") -> None:
        intent = self.begin(opened, sample)
        opened.end(attempt(intent, reason, None), [])
        opened.fail(Failure(sample, reason, "no", opened.sent[sample]))


def attempt(
    intent: Intent,
    outcome: str,
    cost: int | None,
    prompt_tokens: int | None = None,
    completion_tokens: int | None = None,
) -> Attempt:
    return Attempt(
        intent.attempt_id,
        intent.sample_ids,
        intent.endpoint,
        intent.started_at,
        outcome,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        cost_picousd=cost,
        reserved_picousd=intent.reserved_picousd,
    )


@pytest.fixture
def asker() -> Asker:
    return Asker()


def commit(store: Store, opened: OpenPartition) -> Commit:
    made = store.commit(opened)
    assert made is not None
    store.committed(opened, made)
    return made


def column(layout: Layout, found: Commit, kind: str, name: str) -> list[Any]:
    table = pq.ParquetFile(layout.root / found.files[kind].path).read([name])
    values: list[Any] = table[name].to_pylist()
    return values


def journals(layout: Layout) -> list[str]:
    return sorted(path.name for path in layout.journal.glob("*"))


# The straight way


def test_a_finished_partition_becomes_files_a_marker_and_no_journal(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    store = restarted()
    opened, samples = take_up(store)
    assert journals(layout) == ["00000-000.log"]
    asker.fail(opened, samples[1])
    for sample in (samples[3], samples[0], samples[2]):
        assert not opened.finished
        asker.answer(opened, sample)
    assert opened.finished
    made = commit(store, opened)
    assert journals(layout) == []
    assert store.open == {}
    assert commits.read_all(layout) == [made]
    assert (made.partition, made.part, made.ended, made.superseded) == (0, 0, 4, 0)
    assert (made.settled_picousd, made.reserved_picousd) == (21, 100)
    assert (made.prompt_tokens, made.completion_tokens) == (15, 9)
    answered = [samples[index] for index in (0, 2, 3)]
    assert column(layout, made, "generations", "sample_id") == sorted(answered)
    assert column(layout, made, "generations", "text") == [
        f"answer to {s}" for s in sorted(answered)
    ]
    assert column(layout, made, "failures", "sample_id") == [samples[1]]
    assert column(layout, made, "attempts", "outcome") == ["timeout", *["answered"] * 3]
    for file in made.files.values():
        path = layout.root / file.path
        assert file.digest == commits.file_digest(path)
        assert file.bytes == path.stat().st_size
    assert store.ended(0) == 4
    assert store.charged_picousd() == 121


def test_a_kind_without_rows_has_no_file(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    store = restarted()
    opened, samples = take_up(store)
    asker.answer(opened, samples[0])
    assert commit(store, opened).files.keys() == {"generations", "attempts"}
    opened, samples = take_up(store, 1)
    opened.fail(Failure(samples[0], "bad_prompt", "line 3", 0))
    assert commit(store, opened).files.keys() == {"failures"}
    assert not (layout.root / "attempts/part-00001-000.parquet").exists()


def test_a_partition_in_which_nothing_happened_is_no_part(
    layout: Layout, restarted: Callable[..., Store]
) -> None:
    store = restarted()
    opened, _ = take_up(store)
    assert store.commit(opened) is None
    store.committed(opened, None)
    assert (journals(layout), store.open, commits.read_all(layout)) == ([], {}, [])
    opened, samples = take_up(store)
    assert (opened.part, len(samples)) == (0, 4)


def test_only_what_is_wanted_and_has_not_ended_is_asked(
    restarted: Callable[..., Store], asker: Asker
) -> None:
    store = restarted()
    _, all_of_it = take_up(store)
    chosen = set(all_of_it[1:3])
    opened, samples = store.take_up(0, chosen.__contains__, None)
    assert [sample.sample_id for sample in samples] == all_of_it[1:3]
    for sample in samples:
        asker.answer(opened, sample.sample_id)
    assert opened.finished
    commit(store, opened)
    opened, rest = take_up(store)
    assert opened.part == 1
    assert rest == [all_of_it[0], all_of_it[3]]


# Restarts


def test_an_open_journal_is_replayed(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    opened, samples = take_up(restarted())
    asker.answer(opened, samples[0])
    asker.fail(opened, samples[1])
    asker.begin(opened, samples[2], reserved=500)
    store = restarted()
    assert store.charged_picousd() == 7 + 100 + 500
    opened, rest = take_up(store)
    assert rest == samples[2:]
    assert opened.part == 0
    assert opened.sent == {samples[0]: 1, samples[1]: 1, samples[2]: 1}
    asker.answer(opened, samples[2])
    asker.answer(opened, samples[3])
    made = commit(store, opened)
    assert (made.ended, made.rows("attempts")) == (4, 5)
    outcomes = column(layout, made, "attempts", "outcome")
    assert sorted(outcomes) == ["answered", "answered", "answered", "lost", "timeout"]
    asked_twice = column(layout, made, "generations", "attempts")
    assert sorted(asked_twice) == [1, 1, 2], "the lost request is counted"
    assert (made.settled_picousd, made.reserved_picousd) == (21, 600)


def test_a_lost_attempt_is_entered_once_however_often_the_process_dies(
    restarted: Callable[..., Store], asker: Asker
) -> None:
    opened, samples = take_up(restarted())
    asker.begin(opened, samples[0], reserved=500)
    for _ in range(3):
        store = restarted()
        assert store.charged_picousd() == 500
        assert [a.outcome for a in store.open[0].contents.attempts] == ["lost"]


def test_a_torn_tail_is_cut_off_and_told(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    opened, samples = take_up(restarted())
    asker.answer(opened, samples[0])
    path = opened.journal_path
    with path.open("ab") as file:
        file.write(b"\x40\x00\x00\x00half a record")
    size = path.stat().st_size
    store = restarted()
    assert store.torn_bytes == 17
    assert path.stat().st_size == size - 17
    opened, rest = take_up(store)
    assert rest == samples[1:]
    for sample in rest:
        asker.answer(opened, sample)
    assert commit(store, opened).ended == 4


def test_a_journal_whose_marker_stands_is_deleted(
    layout: Layout, restarted: Callable[..., Store], asker: Asker, tmp_path: Path
) -> None:
    """The process died between the marker and the deletion."""
    store = restarted()
    opened, samples = take_up(store)
    for sample in samples:
        asker.answer(opened, sample)
    copy = tmp_path / "copy.log"
    shutil.copy(opened.journal_path, copy)
    commit(store, opened)
    shutil.copy(copy, opened.journal_path)
    store = restarted()
    assert journals(layout) == []
    assert store.open == {}
    assert store.charged_picousd() == 28
    assert take_up(store)[1] == []


def test_files_without_a_marker_are_written_again(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    """The process died between the files and the marker."""
    opened, samples = take_up(restarted())
    for sample in samples:
        asker.answer(opened, sample)
    torn = layout.part("generations", 0, 0)
    torn.parent.mkdir(parents=True)
    torn.write_bytes(b"half")
    layout.part("attempts", 0, 0).parent.mkdir(parents=True)
    store = restarted()
    opened, rest = take_up(store)
    assert rest == []
    assert opened.finished
    made = commit(store, opened)
    assert len(column(layout, made, "generations", "text")) == 4
    assert [path.name for path in torn.parent.iterdir()] == [torn.name]


def test_an_empty_journal_is_taken_up(layout: Layout, restarted: Callable[..., Store]) -> None:
    """The process died when it had made the file and not written to it."""
    layout.journal.mkdir(parents=True)
    (layout.journal / "00001-000.log").write_bytes(b"")
    store = restarted()
    assert take_up(store, 1)[0].contents.size == 0
    assert journal.read_contents(
        layout.journal / "00001-000.log", journal.Opened(CORPUS, 1, 0)
    ).size


def test_journals_may_lie_elsewhere(
    layout: Layout, restarted: Callable[..., Store], asker: Asker, tmp_path: Path
) -> None:
    local = tmp_path / "local"
    opened, samples = take_up(restarted(local))
    asker.answer(opened, samples[0])
    assert [path.name for path in local.iterdir()] == ["00000-000.log"]
    store = restarted(local)
    opened, rest = take_up(store)
    assert len(rest) == 3
    commit(store, opened)
    assert list(local.iterdir()) == []
    assert not layout.journal.exists()


def test_an_attempt_without_an_outcome_is_lost_at_the_commit(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    store = restarted()
    opened, samples = take_up(store)
    asker.answer(opened, samples[0])
    asker.begin(opened, samples[1], reserved=500)
    made = commit(store, opened)
    assert sorted(column(layout, made, "attempts", "outcome")) == ["answered", "lost"]
    assert (made.settled_picousd, made.reserved_picousd) == (7, 500)
    opened, _ = take_up(store, 1)
    asker.begin(opened, opened.pending.copy().pop())
    assert commit(store, opened).files.keys() == {"attempts"}, "no answer, but it may be billed"


def test_a_damaged_record_costs_only_itself_and_is_told(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    opened, samples = take_up(restarted())
    for sample in samples[:3]:
        asker.answer(opened, sample)
    opened.close()
    place = opened.contents.generations[samples[1]]
    as_found = bytearray(opened.journal_path.read_bytes())
    as_found[place.offset + 40] ^= 1
    opened.journal_path.write_bytes(as_found)
    store = restarted()
    kept = layout.journal / "00000-000.log.damaged"
    assert (store.damaged, store.damaged_bytes, store.torn_bytes) == ([kept], place.length, 0)
    assert kept.read_bytes() == as_found
    store = restarted()
    assert (store.damaged, store.damaged_bytes) == ([], 0), "it is told once"
    opened, rest = take_up(store)
    assert rest == [samples[1], samples[3]]
    for sample in rest:
        asker.answer(opened, sample)
    made = commit(store, opened)
    assert sorted(column(layout, made, "generations", "text")) == sorted(
        f"answer to {sample}" for sample in samples
    )
    outcomes = column(layout, made, "attempts", "outcome")
    assert sorted(outcomes) == ["answered"] * 4 + ["lost"], "its intent was not damaged"
    assert journals(layout) == [kept.name]


def test_a_row_states_no_attempt_that_damage_took(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    opened, samples = take_up(restarted())
    first = asker.begin(opened, samples[0])
    opened.end(attempt(first, "timeout", None), [])
    asker.answer(opened, samples[0])
    opened.close()
    content = opened.journal_path.read_bytes()
    head = content.index(b"\xa4type\xa5Begun") - 9
    upto = content.index(b"\xa4type\xa5Begun", head + 20) - 9
    opened.journal_path.write_bytes(content[:head] + bytes(upto - head) + content[upto:])
    store = restarted()
    opened, _ = take_up(store)
    made = commit(store, opened)
    assert made.rows("attempts") == 1
    assert column(layout, made, "generations", "attempts") == [1]


def test_a_stale_process_writes_into_nothing(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    """It lost its lease, in a cloned container say, and still has its journal open."""
    opened, samples = take_up(restarted())
    asker.answer(opened, samples[0])
    with opened.journal_path.open("ab") as stale:
        store = restarted()
        taken, rest = take_up(store)
        before = taken.journal_path.read_bytes()
        stale.write(b"x" * 100)
        stale.flush()
        assert taken.journal_path.read_bytes() == before
        for sample in rest:
            asker.answer(taken, sample)
    assert commit(store, taken).rows("generations") == 4


def test_what_a_death_left_half_copied_is_swept(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    opened, samples = take_up(restarted())
    asker.answer(opened, samples[0])
    (layout.journal / "00000-000.log.0123456789ab.tmp").write_bytes(b"half")
    (layout.journal / "00000-000.log.damaged.0123456789ab.tmp").write_bytes(b"half")
    restarted()
    assert journals(layout) == ["00000-000.log"]


# Failures that are asked again


def test_a_failure_is_asked_again_only_for_its_reason(
    restarted: Callable[..., Store], asker: Asker
) -> None:
    store = restarted()
    opened, samples = take_up(store)
    asker.fail(opened, samples[0], "timeout")
    asker.fail(opened, samples[1], "rejected")
    assert take_up(store, retry="rejected".__eq__)[1] == [samples[1], *samples[2:]]
    commit(store, opened)
    assert take_up(store)[1] == samples[2:]
    assert take_up(store, retry="timeout".__eq__)[1] == [samples[0], *samples[2:]]
    assert take_up(store, retry=lambda _: True)[1] == samples


def test_a_generation_supersedes_its_failure_and_the_sums_stay_right(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    store = restarted()
    opened, samples = take_up(store)
    for sample in samples:
        asker.fail(opened, sample)
    assert commit(store, opened).ended == 4
    opened, again = take_up(store, retry=lambda _: True)
    assert again == samples
    asker.answer(opened, samples[0])
    asker.fail(opened, samples[1], "rejected")
    made = commit(store, opened)
    assert (made.part, made.superseded, made.ended) == (1, 2, 0)
    assert store.ended(0) == 4
    assert column(layout, made, "generations", "attempts") == [2]
    assert column(layout, made, "failures", "attempts") == [2]
    opened, again = take_up(store, retry=lambda _: True)
    assert again == samples[1:], "what was answered is never asked again"
    assert opened.sent == {samples[0]: 2, samples[1]: 2, samples[2]: 1, samples[3]: 1}
    for sample in again:
        asker.answer(opened, sample)
    assert commit(store, opened).superseded == 3
    assert store.ended(0) == 4
    assert take_up(restarted(), retry=lambda _: True)[1] == []


def test_a_failure_that_is_answered_in_the_same_journal_is_no_row(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    opened, samples = take_up(restarted())
    asker.fail(opened, samples[0])
    store = restarted()
    opened, again = take_up(store, retry=lambda _: True)
    assert again == samples
    asker.answer(opened, samples[0])
    made = commit(store, opened)
    assert made.files.keys() == {"generations", "attempts"}
    assert (made.superseded, made.ended) == (0, 1)


def test_a_failure_states_the_attempts_after_it_in_the_same_journal(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    """It was asked again, and that was interrupted."""
    opened, samples = take_up(restarted())
    asker.fail(opened, samples[0])
    opened, again = take_up(restarted(), retry=lambda _: True)
    assert again == samples
    asker.begin(opened, samples[0])
    store = restarted()
    made = commit(store, take_up(store)[0])
    assert column(layout, made, "attempts", "outcome") == ["timeout", "lost"]
    assert column(layout, made, "failures", "attempts") == [2]


# What must not happen


def test_nothing_is_committed_when_the_lease_is_lost(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    store = restarted()
    opened, samples = take_up(store)
    asker.answer(opened, samples[0])
    ours = layout.lease.read_bytes()
    layout.lease.unlink()
    with pytest.raises(CorpusLocked):
        store.commit(opened)
    layout.lease.write_bytes(ours)
    assert commits.read_all(layout) == []
    assert journals(layout) == ["00000-000.log"], "the answers are still there"


def test_a_part_is_committed_only_once(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    store = restarted()
    opened, samples = take_up(store)
    asker.answer(opened, samples[0])
    theirs = Commit(format_version=1, partition=0, part=0, files={})
    commits.put(layout, theirs)
    with pytest.raises(CorpusError, match="this part was committed by another process"):
        store.commit(opened)
    assert commits.read_all(layout) == [theirs]


def test_a_foreign_journal_stops_the_run_and_stays(
    layout: Layout, restarted: Callable[..., Store]
) -> None:
    path = layout.journal_file(0, 0)
    journal.JournalWriter(path, journal.Opened("d" * 32, 0, 0)).close()
    before = path.read_bytes()
    with pytest.raises(CorpusError, match="is not this part's journal in this corpus"):
        restarted()
    assert path.read_bytes() == before


def test_a_journal_under_another_partition_s_name_is_refused(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    opened, samples = take_up(restarted())
    asker.answer(opened, samples[0])
    opened.close()
    opened.journal_path.rename(layout.journal_file(2, 0))
    with pytest.raises(CorpusError, match=r"00002-000\.log: is not this part's journal"):
        restarted()


def test_a_journal_of_a_partition_that_was_never_planned(
    layout: Layout, restarted: Callable[..., Store]
) -> None:
    journal.JournalWriter(layout.journal_file(3, 0), journal.Opened(CORPUS, 3, 0)).close()
    with pytest.raises(CorpusError, match="belongs to a partition that was never planned"):
        restarted()


def test_a_journal_of_samples_that_the_plan_lacks(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    opened, _ = take_up(restarted())
    asker.answer(opened, "0" * 32)
    before = opened.journal_path.read_bytes()
    with pytest.raises(CorpusError) as refused:
        restarted()
    assert str(refused.value) == (
        f"{opened.journal_path}: holds the sample {'0' * 32}, which partition 0 of the plan lacks; "
        "restore the plan/ with which it was made, or move the journal away to ask its samples "
        "again."
    )
    assert opened.journal_path.read_bytes() == before


@pytest.mark.parametrize("how", ["answer", "fail", "begin"])
def test_samples_that_the_plan_lacks_are_never_committed(
    layout: Layout, restarted: Callable[..., Store], asker: Asker, how: str
) -> None:
    store = restarted()
    opened, _ = take_up(store)
    getattr(asker, how)(opened, "0" * 32)
    with pytest.raises(CorpusError, match=r"00000-000\.log: holds the sample 0{32}, which"):
        store.commit(opened)
    assert journals(layout) == ["00000-000.log"]
    assert commits.read_all(layout) == []


def test_a_file_that_only_looks_like_a_journal(
    layout: Layout, restarted: Callable[..., Store]
) -> None:
    layout.journal.mkdir(parents=True)
    (layout.journal / "notes-of-me.txt").write_text("mine")
    restarted()
    (layout.journal / "sample-abc.log").write_text("mine")
    with pytest.raises(CorpusError, match=r"sample-abc\.log: is no journal; move it away"):
        restarted()


def test_a_torn_part_is_one_sentence(
    layout: Layout, restarted: Callable[..., Store], asker: Asker
) -> None:
    store = restarted()
    opened, samples = take_up(store)
    asker.answer(opened, samples[0])
    made = commit(store, opened)
    (layout.root / made.files["attempts"].path).write_bytes(b"PAR1")
    with pytest.raises(CorpusError) as refused:
        take_up(store)
    assert "part-00000-000.parquet: cannot be read" in str(refused.value)
    assert str(refused.value).endswith("Run `corpusgen verify` on the corpus.")
    assert "\n" not in str(refused.value)
