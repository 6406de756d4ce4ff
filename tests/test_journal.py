"""What was written is read back; a torn tail is cut off; damage costs only itself; foreign files
are refused.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen.attempts import lost
from corpusgen.errors import CorpusError
from corpusgen.journal import (
    Begun,
    Contents,
    Ended,
    Failed,
    JournalWriter,
    Opened,
    Record,
    read_contents,
    read_generation,
    renew,
    take,
)
from corpusgen.types import (
    Answer,
    Attempt,
    ByteStrings,
    Failure,
    Generation,
    Intent,
    TokenTrace,
    Usage,
)

CORPUS = "c" * 32
OPENED = Opened(CORPUS, 12, 3)


def i32(*values: int) -> Any:
    return np.array(values, np.int32)


def f32(*values: float) -> Any:
    return np.array(values, np.float32)


FULL_TRACE = TokenTrace(
    ids=i32(1, 2, 2**31 - 1),
    token_bytes=ByteStrings.of([b"a", b"\xff\x00", b""]),
    sampled_logprob=f32(-0.5, np.nan, -1e-30),
    sampled_rank=i32(1, 0, 20),
    topk_counts=i32(2, -1, 0),
    topk_ids=i32(1, 7),
    topk_bytes=ByteStrings.of([b"\xf0\x9f", b"x"]),
    topk_logprobs=f32(-0.25, -np.inf),
)
EMPTY_TRACE = TokenTrace(ids=i32(), topk_counts=i32(), topk_ids=i32(), topk_logprobs=f32())


def generation(sample: str, answer: Answer | None = None, **changes: Any) -> Generation:
    values: dict[str, Any] = {
        "sample_id": sample,
        "answer": answer or Answer("An answer.", "stop"),
        "usage": Usage(7, 3, None, 0),
        "endpoint": "local",
        "started_at": 1760000000.123456,
        "latency_s": 0.25,
        "attempts": 1,
    }
    return Generation(**{**values, **changes})


def attempt(number: int, *samples: str, outcome: str = "answered", **changes: Any) -> Attempt:
    return Attempt(f"{number:032x}", list(samples), "local", 1760000000.0, outcome, **changes)


def intent(number: int, *samples: str, reserved: int | None = None) -> Intent:
    return Intent(f"{number:032x}", list(samples), "local", 1760000000.0, reserved)


FULL_GENERATION = generation(
    "s1",
    Answer(
        text="Zürich 東京 🙂 \u0000",
        finish_reason="stop",
        reasoning="Hmm.",
        tool_calls=[{"id": "1", "function": {"name": "f", "arguments": "{}"}}],
        completion_tokens=3,
        reasoning_tokens=1,
        trace=FULL_TRACE,
    ),
    prompt_token_ids=i32(5, 6),
    model_revision="m@fp",
)
RECORDS: list[Record] = [
    OPENED,
    Begun(intent(1, "s1", "s2", reserved=10**15)),
    Ended(
        attempt(1, "s1", "s2", http_status=200, cost_picousd=123, request_id="r-1"),
        [FULL_GENERATION, generation("s2", Answer("", "length", trace=EMPTY_TRACE))],
    ),
    Begun(intent(2, "s3")),
    Ended(attempt(2, "s3", outcome="rate_limit"), [], [Failure("s3", "rate_limit", "no.", 1)]),
    Failed(Failure("s4", "bad_prompt", "line 3", 0)),
    Begun(intent(3, "s5", reserved=7)),
]


def write(path: Path, records: list[Record]) -> list[tuple[int, int]]:
    opened, *rest = records
    assert isinstance(opened, Opened)
    writer = JournalWriter(path, opened)
    places = [writer.append(record) for record in rest]
    writer.close()
    return places


def plain(value: Any) -> Any:
    """Return a value in which arrays can be compared, NaN included."""
    return msgspec.to_builtins(
        value, enc_hook=lambda array: [array.dtype.str, array.tobytes().hex()]
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal" / "00012-003.log"


def stored(path: Path, contents: Contents, sample: str) -> Generation:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_generation(descriptor, contents.generations[sample])
    finally:
        os.close(descriptor)


def test_every_kind_of_record_comes_back_as_it_was(path: Path) -> None:
    write(path, RECORDS)
    contents = read_contents(path, OPENED)
    assert contents.size == path.stat().st_size
    assert contents.torn_bytes == 0
    assert list(contents.generations) == ["s1", "s2"]
    assert list(contents.failures) == ["s3", "s4"]
    assert contents.failures["s4"] == Failure("s4", "bad_prompt", "line 3", 0)
    ended = [record.attempt for record in RECORDS if isinstance(record, Ended)]
    assert contents.attempts == ended
    assert list(contents.unfinished.values()) == [intent(3, "s5", reserved=7)]
    answered = RECORDS[2]
    assert isinstance(answered, Ended)
    for expected in answered.generations:
        assert plain(stored(path, contents, expected.sample_id)) == plain(expected)


def test_what_is_entered_while_writing_equals_what_is_read(path: Path) -> None:
    """The store keeps contents up to date by `take`; a restart reads them from the file."""
    writer = JournalWriter(path, OPENED)
    kept = Contents({}, {}, [], {}, 0, 0)
    for record in RECORDS[1:]:
        take(kept, record, *writer.append(record))
    writer.close()
    read = read_contents(path, OPENED)
    assert (kept.generations, kept.failures, kept.attempts, kept.unfinished) == (
        read.generations,
        read.failures,
        read.attempts,
        read.unfinished,
    )


def test_a_generation_after_a_failure_and_a_later_generation_are_both_kept(path: Path) -> None:
    """`--retry-failed` after a crash goes on in the same journal."""
    write(
        path,
        [
            OPENED,
            Failed(Failure("s1", "timeout", "late", 6)),
            Ended(attempt(1, "s1"), [generation("s1", attempts=7)]),
        ],
    )
    contents = read_contents(path, OPENED)
    assert "s1" in contents.failures
    assert stored(path, contents, "s1").attempts == 7


LAST: list[Record] = [
    RECORDS[2],
    RECORDS[3],
    RECORDS[4],
    RECORDS[5],
]


@pytest.mark.parametrize("last", LAST, ids=lambda record: type(record).__name__)
def test_a_record_torn_at_any_byte_costs_only_itself(path: Path, last: Record) -> None:
    before: list[Record] = [
        OPENED,
        Begun(intent(8, "s8")),
        Ended(attempt(8, "s8"), [generation("s8")]),
    ]
    offset, length = write(path, [*before, last])[-1]
    whole = path.read_bytes()
    assert len(whole) == offset + length
    for cut in range(offset, offset + length):
        path.write_bytes(whole[:cut])
        contents = read_contents(path, OPENED)
        assert (contents.size, contents.torn_bytes) == (offset, cut - offset)
        assert list(contents.generations) == ["s8"]
        assert contents.attempts == [attempt(8, "s8")]
        assert not contents.failures
    for cut in (offset, offset + 3, offset + length - 1):
        path.write_bytes(whole[:cut])
        writer = JournalWriter(path, OPENED, resume_at=read_contents(path, OPENED).size)
        assert writer.append(last) == (offset, length)
        writer.close()
        assert path.read_bytes() == whole


def test_a_journal_torn_in_its_first_record_begins_anew(path: Path) -> None:
    write(path, [OPENED])
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        contents = read_contents(path, OPENED)
        assert (contents.size, contents.torn_bytes) == (0, cut)
        JournalWriter(path, OPENED, resume_at=0).close()
        assert path.read_bytes() == whole


def test_zeros_after_a_power_cut_are_a_torn_tail(path: Path) -> None:
    """A file system may extend a file before it writes the data: the tail reads as zeros."""
    write(path, RECORDS)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(4096))
    contents = read_contents(path, OPENED)
    assert (contents.size, contents.torn_bytes) == (size, 4096)


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1 << (at % 8)
    path.write_bytes(content)


def ended(number: int, text: str = "An answer.") -> Record:
    found = generation(f"s{number}", Answer(text, "stop"))
    return Ended(attempt(number, f"s{number}"), [found])


def test_a_flipped_bit_costs_only_its_record(path: Path) -> None:
    """Wherever it stands: in a length, a checksum, a payload or the first record."""
    records: list[Record] = [OPENED, ended(1), *RECORDS[1:3], ended(3), Begun(intent(4, "s4"))]
    ends = [0, *(sum(place) for place in write(path, records))]
    starts = [0, *(place[0] for place in write(path, records))]
    whole = path.read_bytes()
    bounds = list(zip(starts, [*starts[1:], ends[-1]], strict=True))
    for at in range(len(whole)):
        path.write_bytes(whole)
        flip(path, at)
        hit = next(i for i, (start, end) in enumerate(bounds) if start <= at < end)
        expected = Contents({}, {}, [], {}, 0, 0)
        for index, record in enumerate(records):
            if index != hit:
                start, end = bounds[index]
                take(expected, record, start, end - start)
        contents = read_contents(path, OPENED)
        last = hit == len(records) - 1
        start, end = bounds[hit]
        assert contents.damaged == ([] if last else [(start, end - start)])
        assert contents.torn_bytes == (end - start if last else 0)
        assert contents.size == (start if last else len(whole))
        assert contents.generations == expected.generations
        assert contents.attempts == expected.attempts
        assert contents.unfinished == expected.unfinished


def test_records_that_are_damaged_side_by_side_are_one_stretch(path: Path) -> None:
    places = write(path, [OPENED, *(ended(n) for n in range(5))])
    flip(path, places[1][0] + 1)  # a length
    flip(path, places[2][0] + 30)
    contents = read_contents(path, OPENED)
    assert list(contents.generations) == ["s0", "s3", "s4"]
    assert contents.damaged == [(places[1][0], places[1][1] + places[2][1])]
    assert contents.damaged_records == 1
    assert contents.damaged_bytes == places[1][1] + places[2][1]


def test_a_record_inside_an_answer_is_not_found_while_the_length_is_whole(path: Path) -> None:
    """A teacher's bytes may look like a record of ours."""
    forged = TokenTrace(
        token_bytes=ByteStrings.of([record_bytes(msgspec.msgpack.encode(plain_failure("s9")))])
    )
    hiding = Ended(attempt(1, "s1"), [generation("s1", Answer("", "stop", trace=forged))])
    places = write(path, [OPENED, hiding, ended(2)])
    flip(path, places[0][0] + 20)
    contents = read_contents(path, OPENED)
    assert (list(contents.generations), contents.failures) == (["s2"], {})
    assert contents.damaged == [places[0]]


def plain_failure(sample: str) -> Any:
    return msgspec.to_builtins(Failed(Failure(sample, "forged", "", 0)))


def test_a_power_cut_s_garbage_before_a_whole_record_is_damage(path: Path) -> None:
    write(path, [OPENED, ended(1)])
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(bytes(4096) + record_bytes(msgspec.msgpack.encode(plain_failure("s2"))))
    contents = read_contents(path, OPENED)
    assert contents.damaged == [(size, 4096)]
    assert (list(contents.generations), list(contents.failures)) == (["s1"], ["s2"])


def test_a_damaged_record_of_another_kind_is_skipped(path: Path) -> None:
    """Its checksum is right: only the content is not ours."""
    write(path, [OPENED, ended(1)])
    size = path.stat().st_size
    foreign = record_bytes(msgspec.msgpack.encode({"type": "Later", "x": 1}))
    with path.open("ab") as file:
        file.write(foreign + record_bytes(msgspec.msgpack.encode(plain_failure("s2"))))
    assert read_contents(path, OPENED).damaged == [(size, len(foreign))]


def test_a_head_that_is_damaged_throughout_is_foreign(path: Path) -> None:
    places = write(path, [OPENED, ended(1)])
    content = path.read_bytes()
    path.write_bytes(bytes(places[0][0]) + content[places[0][0] :])
    with pytest.raises(CorpusError, match="is not this part's journal"):
        read_contents(path, OPENED)


def test_a_damaged_head_of_another_corpus_is_foreign(path: Path) -> None:
    write(path, [Opened("d" * 32, 12, 3), ended(1)])
    flip(path, 9)
    with pytest.raises(CorpusError, match="is not this part's journal"):
        read_contents(path, OPENED)


def test_a_renewed_journal_is_another_file_and_whole(path: Path) -> None:
    write(path, RECORDS)
    whole = path.read_bytes()
    with path.open("ab") as stale:
        stale.write(b"torn")
        stale.flush()
        assert renew(path, OPENED, read_contents(path, OPENED)) is None
        stale.write(b"a process that does not know")
    assert path.read_bytes() == whole
    assert [found.name for found in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("at", [0, 20, 300, 1000])
def test_a_renewed_journal_leaves_damage_out_and_keeps_a_copy(path: Path, at: int) -> None:
    write(path, [*RECORDS, ended(7)])
    flip(path, at)
    as_found = path.read_bytes() + b"torn"
    path.write_bytes(as_found)
    before = read_contents(path, OPENED)
    assert before.damaged
    kept = renew(path, OPENED, before)
    assert kept == path.with_name(f"{path.name}.damaged")
    assert kept.read_bytes() == as_found
    after = read_contents(path, OPENED)
    assert (after.damaged, after.torn_bytes, after.size) == ([], 0, path.stat().st_size)
    assert after.generations.keys() == before.generations.keys()
    assert (after.attempts, after.failures) == (before.attempts, before.failures)
    assert stored(path, after, "s7").answer.text == "An answer."
    flip(path, after.generations["s7"].offset - 1)
    again = renew(path, OPENED, read_contents(path, OPENED))
    assert again == path.with_name(f"{path.name}.damaged-2"), "no copy is overwritten"
    assert kept.read_bytes() == as_found
    assert list(path.parent.glob("*.log")) == [path]


def record_bytes(payload: bytes, *, length: int | None = None) -> bytes:
    size = len(payload) if length is None else length
    return struct.pack("<II", size, zlib.crc32(payload)) + payload


@pytest.mark.parametrize("length", [2**32 - 1, 2**31, 2**30 + 1, 2**30, 10_000])
def test_an_absurd_length_is_a_torn_tail_and_allocates_nothing(path: Path, length: int) -> None:
    write(path, RECORDS)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(record_bytes(b"x" * 100, length=length))
    contents = read_contents(path, OPENED)
    assert (contents.size, contents.torn_bytes) == (size, 108)


def test_an_empty_file_is_an_empty_journal(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"")
    contents = read_contents(path, OPENED)
    assert (contents.size, contents.torn_bytes) == (0, 0)


FOREIGN: dict[str, bytes | Opened] = {
    "another corpus": Opened("d" * 32, 12, 3),
    "another partition": Opened(CORPUS, 13, 3),
    "another part": Opened(CORPUS, 12, 0),
    "text": b"2026-11-01 12:00:00 INFO started\n" * 40,
    "binary": bytes(range(256)) * 4,
    "zeros": bytes(4096),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused_and_left_alone(path: Path, kind: str) -> None:
    content = FOREIGN[kind]
    if isinstance(content, Opened):
        write(path, [content, *RECORDS[1:]])
    else:
        path.parent.mkdir()
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(
        CorpusError, match="is not this part's journal in this corpus; move it away"
    ):
        read_contents(path, OPENED)
    assert path.read_bytes() == before


def test_a_journal_that_does_not_begin_with_its_corpus_is_foreign(path: Path) -> None:
    offset, _ = write(path, RECORDS)[0]
    path.write_bytes(path.read_bytes()[offset:])
    with pytest.raises(CorpusError, match="is not this part's journal in this corpus"):
        read_contents(path, OPENED)


def test_resuming_cuts_and_goes_on_where_it_is_told(path: Path) -> None:
    places = write(path, RECORDS)
    offset, _ = places[2]
    writer = JournalWriter(path, OPENED, resume_at=offset)
    assert path.stat().st_size == offset
    assert writer.append(RECORDS[5])[0] == offset
    writer.close()
    contents = read_contents(path, OPENED)
    assert list(contents.failures) == ["s4"]
    assert list(contents.generations) == ["s1", "s2"]


def test_closing_and_syncing_twice_are_harmless(path: Path) -> None:
    writer = JournalWriter(path, OPENED)
    assert writer.dirty
    writer.sync()
    synced = writer.dirty
    writer.append(RECORDS[1])
    assert (synced, writer.dirty) == (False, True)
    writer.close()
    writer.close()
    writer.sync()
    assert read_contents(path, OPENED).torn_bytes == 0


def test_an_intent_without_an_outcome_is_charged_at_its_reservation() -> None:
    found = lost(intent(3, "s5", "s6", reserved=7))
    assert found.outcome == "lost"
    assert found.sample_ids == ["s5", "s6"]
    assert found.reserved_picousd == 7
    assert found.cost_picousd is found.prompt_tokens is found.latency_s is None


@settings(max_examples=120, deadline=None)
@given(garbage=st.binary(max_size=700), after=st.integers(0, 7))
def test_garbage_raises_nothing_but_corpus_errors(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes, after: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "garbage.log"
    path.unlink(missing_ok=True)
    size = 0
    if after:
        write(path, RECORDS[:after])
        size = path.stat().st_size
    with path.open("ab") as file:
        file.write(garbage)
    try:
        contents = read_contents(path, OPENED)
    except CorpusError:
        assert after == 0
    else:
        assert contents.size == size
        assert contents.torn_bytes == len(garbage)


msgpack_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.binary() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "failure", "intent", "attempt", "generations", "x"]), inner
        )
    ),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=60) | msgpack_values.map(msgspec.msgpack.encode))
def test_a_whole_record_of_another_kind_ends_the_journal(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes
) -> None:
    """Length and checksum are right: only the content is not ours."""
    path = tmp_path_factory.getbasetemp() / "forged.log"
    path.unlink(missing_ok=True)
    write(path, RECORDS)
    size = path.stat().st_size
    with path.open("ab") as file:
        file.write(record_bytes(payload))
    contents = read_contents(path, OPENED)
    assert (contents.size, contents.torn_bytes) == (size, 8 + len(payload))


@pytest.mark.parametrize("array", [b"", b"abcx", b"abi", b"abcdi ", "abci", [1], 3, {"a": 1}])
def test_a_forged_array_ends_the_journal(path: Path, array: Any) -> None:
    write(path, RECORDS)
    size = path.stat().st_size
    record = plain_record(generation("s9"))
    record["generations"][0]["prompt_token_ids"] = array
    with path.open("ab") as file:
        file.write(record_bytes(msgspec.msgpack.encode(record)))
    assert read_contents(path, OPENED).size == size


@pytest.mark.parametrize("lengths", [[1, 1], [4, -1], [2**31 - 1] * 4])
def test_forged_byte_strings_end_the_journal(path: Path, lengths: list[int]) -> None:
    """Their lengths become offsets into memory."""
    write(path, RECORDS)
    size = path.stat().st_size
    record = plain_record(generation("s9"))
    forged = {"data": b"abc", "lengths": i32(*lengths).tobytes() + b"i"}
    record["generations"][0]["answer"]["trace"] = {"token_bytes": forged}
    with path.open("ab") as file:
        file.write(record_bytes(msgspec.msgpack.encode(record)))
    assert read_contents(path, OPENED).size == size


def plain_record(found: Generation) -> dict[str, Any]:
    record: dict[str, Any] = msgspec.to_builtins(Ended(attempt(9, "s9"), [found]))
    return record


finite = st.floats(width=32, allow_nan=True, allow_infinity=True)


@settings(max_examples=60, deadline=None)
@given(
    ids=st.none() | st.lists(st.integers(-(2**31), 2**31 - 1), max_size=20),
    logprobs=st.none() | st.lists(finite, max_size=20),
    text=st.text(max_size=50),
)
def test_any_answer_comes_back(
    tmp_path_factory: pytest.TempPathFactory,
    ids: list[int] | None,
    logprobs: list[float] | None,
    text: str,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.log"
    path.unlink(missing_ok=True)
    trace = TokenTrace(
        ids=None if ids is None else np.array(ids, np.int32),
        topk_logprobs=None if logprobs is None else np.array(logprobs, np.float32),
    )
    given_one = generation("s", Answer(text, "stop", trace=trace))
    write(path, [OPENED, Ended(attempt(1, "s"), [given_one])])
    assert plain(stored(path, read_contents(path, OPENED), "s")) == plain(given_one)
