from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from corpus_factory import Row, generation, message, sample_id, write_generations
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen import schema
from corpusgen.config import Curate, Dedup
from corpusgen.curate.chain import load_filters
from corpusgen.curate.dedup import normalise
from corpusgen.curate.parts import PartInput, verdicts_path
from corpusgen.curate.run import CurationResult, curate, curation_digest, read_curation
from corpusgen.errors import ConfigError, CorpusError
from corpusgen.events import Curated, Event

NO_FILTERS = Curate(filters=[], dedup=Dedup(exact=False))
PLUGIN = """
class Odd:
    columns = ("text",)

    def __init__(self, mode):
        self.mode = mode

    def judge(self, table):
        texts = table["text"].to_pylist()
        if self.mode == "short":
            return [None] * (len(texts) - 1) if len(texts) > 1 else [None]
        if self.mode == "number":
            return [1 if "bad" in text else None for text in texts]
        if self.mode == "unknown column":
            self.columns = ("txet",)
        if any("bad" in text for text in texts):
            raise RuntimeError("no\\nmore")
        return ["odd" if "odd" in text else None for text in texts]


def create(options):
    made = Odd(options.get("mode"))
    if made.mode == "unknown column":
        made.columns = ("txet",)
    return made
"""


def parts_of(directory: Path, *parts: list[Row], **options: Any) -> list[PartInput]:
    return [
        PartInput(
            f"part-{number:05d}-000",
            write_generations(
                directory / "generations" / f"part-{number:05d}-000.parquet", rows, **options
            ),
            digest=f"digest-{number}",
        )
        for number, rows in enumerate(parts)
    ]


def verdicts(directory: Path, parts: list[PartInput]) -> dict[str, tuple[str, str] | None]:
    """Read all verdicts, having checked that they stand beside their generations row by row."""
    found: dict[str, tuple[str, str] | None] = {}
    for part in parts:
        table = pq.read_table(verdicts_path(directory, part.name), partitioning=None)
        assert table.schema.equals(schema.VERDICTS)
        ids = pq.read_table(part.generations, partitioning=None)["sample_id"].to_pylist()
        assert table["sample_id"].to_pylist() == ids
        for row in table.to_pylist():
            assert row["keep"] == (row["filter"] is None) == (row["reason"] is None)
            found[row["sample_id"]] = None if row["keep"] else (row["filter"], row["reason"])
    return found


def plug_in(directory: Path, monkeypatch: pytest.MonkeyPatch, source: str = PLUGIN) -> None:
    """Install a filter as a package would: a module, and metadata with its entry point."""
    info = directory / "odd_filter-1.0.dist-info"
    info.mkdir(parents=True)
    (directory / "odd_filter.py").write_text(source)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-filter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[corpusgen.filters]\nodd = odd_filter:create\n")
    monkeypatch.syspath_prepend(directory)
    monkeypatch.delitem(sys.modules, "odd_filter", raising=False)


def test_filters_name_the_reason_in_their_order(tmp_path: Path) -> None:
    rows = [
        generation("A good answer.", prompt="a"),
        generation("", prompt="b", finish_reason="length"),
        generation("", prompt="c"),
        generation("I'm sorry, but I can't help with that.", prompt="d"),
        generation("Fine.", prompt="e", completion_tokens=1),
    ]
    parts = parts_of(tmp_path, rows[:2], rows[2:], [])
    chosen = Curate(
        filters=["finish_reason", "empty", "refusal", "repetition", {"length": {"min_tokens": 2}}]
    )
    events: list[Event] = []
    result = curate(chosen, parts, tmp_path / "curation", events.append)
    found = verdicts(tmp_path / "curation", parts)
    assert [found[row["sample_id"]] for row in rows] == [
        None,
        ("finish_reason", "finish_reason is length"),
        ("empty", "no text and no tool calls"),
        ("refusal", "refusal (en)"),
        ("length", "fewer than 2 tokens"),
    ]
    assert (result.generations, result.kept, result.reused) == (5, 1, False)
    assert result.dropped == {"empty": 1, "finish_reason": 1, "length": 1, "refusal": 1}
    first = result.reasons[0]
    assert (first.filter, first.reason, first.count) == ("empty", "no text and no tool calls", 1)
    assert events == [Curated(result.digest, 5, 1, result.dropped, False)]
    stored = msgspec.json.decode((tmp_path / "curation" / "curation.json").read_bytes())
    assert stored["kept"] == 1
    assert stored["parts"] == {"part-00000-000": 2, "part-00001-000": 3, "part-00002-000": 0}


def test_an_empty_corpus_is_curated(tmp_path: Path) -> None:
    result = curate(Curate(), [], tmp_path)
    assert (result.generations, result.kept, result.dropped) == (0, 0, {})


def test_retired_generations_are_dropped_and_never_a_survivor(tmp_path: Path) -> None:
    rows = sorted((generation("Same.", draw=i) for i in range(3)), key=lambda r: r["sample_id"])
    parts = parts_of(tmp_path, rows)
    ids = [row["sample_id"] for row in rows]
    result = curate(Curate(filters=[]), parts, tmp_path / "c", retired={ids[0], "unknown"})
    assert verdicts(tmp_path / "c", parts) == {
        ids[0]: ("retired", "its prompt is no longer in the prompt set"),
        ids[1]: None,
        ids[2]: ("duplicate", f"same as {ids[1]}"),
    }
    assert result.dropped == {"duplicate": 1, "retired": 1}


# Reuse and crashes


def test_a_finished_curation_is_reused_until_something_changes(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, [generation("Same.", draw=i) for i in range(3)])
    chosen = Curate()
    first = curate(chosen, parts, tmp_path / "c")
    path = verdicts_path(tmp_path / "c", parts[0].name)
    written = path.stat().st_mtime_ns
    again = curate(chosen, parts, tmp_path / "c")
    assert again == msgspec.structs.replace(first, reused=True)
    assert path.stat().st_mtime_ns == written
    other = curate(chosen, parts, tmp_path / "c", retired=frozenset({"x"}))
    assert not other.reused
    path.unlink()
    assert not curate(chosen, parts, tmp_path / "c", retired=frozenset({"x"})).reused
    assert path.is_file()


@pytest.mark.parametrize("torn", [b"", b"{", b"\xff\xfe", b'{"digest": 1}', b"[]"])
def test_what_a_crash_left_is_written_again(tmp_path: Path, torn: bytes) -> None:
    rows = [generation("Same.", draw=i) for i in range(3)]
    parts = parts_of(tmp_path, rows)
    directory = tmp_path / "c"
    (directory / "verdicts").mkdir(parents=True)
    (directory / "verdicts" / "part-00000-000.parquet").write_bytes(b"PAR1 torn")
    (directory / "verdicts" / "part-00099-000.parquet.abc.tmp").write_bytes(b"")
    (directory / "curation.json").write_bytes(torn)
    assert read_curation(directory) is None
    assert curate(Curate(), parts, directory).kept == 1
    assert len(verdicts(directory, parts)) == 3
    assert [p.name for p in (directory / "verdicts").iterdir()] == ["part-00000-000.parquet"]


def test_a_crash_in_the_middle_leaves_no_finished_curation(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, [generation("One.")], [generation("Two.", prompt="b")])
    curate(Curate(), parts, tmp_path / "c")
    parts[1].generations.write_bytes(b"PAR1 torn")
    changed = [msgspec.structs.replace(part, digest="new") for part in parts]
    with pytest.raises(CorpusError, match=r"part-00001-000.parquet: cannot be read"):
        curate(Curate(), changed, tmp_path / "c")
    assert read_curation(tmp_path / "c") is None


def test_files_that_are_no_generations_are_named(tmp_path: Path) -> None:
    absent = PartInput("part-00000-000", tmp_path / "absent.parquet")
    with pytest.raises(CorpusError, match=r"absent\.parquet: cannot be read"):
        curate(Curate(), [absent], tmp_path / "c")
    [part] = parts_of(tmp_path, [generation()])
    pq.write_table(pq.read_table(part.generations).drop_columns(["text"]), part.generations)
    with pytest.raises(CorpusError, match="lacks the column text"):
        curate(Curate(), [part], tmp_path / "c")
    [part] = parts_of(tmp_path, [generation(sample_id="not hexadecimal")])
    with pytest.raises(CorpusError, match="not 32 hexadecimal digits"):
        curate(Curate(), [part], tmp_path / "c")
    with pytest.raises(CorpusError, match="two parts have the same name"):
        curate(Curate(), [part, part], tmp_path / "c")


def test_the_digest_covers_what_changes_a_verdict(tmp_path: Path) -> None:
    parts = [PartInput("a", tmp_path, "1"), PartInput("b", tmp_path, "2")]
    digest = curation_digest(Curate(), parts)
    assert len(digest) == 32
    assert curation_digest(Curate(), parts[::-1]) == digest
    same = Curate(
        filters=[{name: {}} for name in ("finish_reason", "empty", "refusal", "repetition")]
    )
    assert curation_digest(same, parts) == digest
    assert curation_digest(Curate(dedup=Dedup(exact="pair")), parts) == digest
    different = {
        curation_digest(Curate(filters=["empty"]), parts),
        curation_digest(Curate(dedup=Dedup(exact="prompt")), parts),
        curation_digest(Curate(dedup=Dedup(exact=False)), parts),
        curation_digest(Curate(dedup=Dedup(within_prompt=False)), parts),
        curation_digest(Curate(), parts[:1]),
        curation_digest(Curate(), [parts[0], PartInput("b", tmp_path, "3")]),
        curation_digest(Curate(), parts, {"x"}),
        digest,
    }
    assert len(different) == 8


# Filters of other packages


def test_a_filter_that_raises_drops_only_the_rows_on_which_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path / "site", monkeypatch)
    rows = [generation(text, prompt=text) for text in ("fine", "odd", "bad", "good")]
    parts = parts_of(tmp_path, rows)
    result = curate(Curate(filters=["odd", "empty"]), parts, tmp_path / "c")
    found = verdicts(tmp_path / "c", parts)
    assert [found[row["sample_id"]] for row in rows] == [
        None,
        ("odd", "odd"),
        ("odd", "error: no"),
        None,
    ]
    assert result.dropped == {"odd": 2}


def test_a_filter_that_breaks_its_promise_is_asked_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path / "site", monkeypatch)
    rows = [generation(text, prompt=text) for text in ("fine", "bad")]
    parts = parts_of(tmp_path, rows)
    curate(Curate(filters=[{"odd": {"mode": "short"}}]), parts, tmp_path / "c")
    assert set(verdicts(tmp_path / "c", parts).values()) == {None}
    curate(Curate(filters=[{"odd": {"mode": "number"}}]), parts, tmp_path / "c")
    found = verdicts(tmp_path / "c", parts)
    assert found[rows[0]["sample_id"]] is None
    assert found[rows[1]["sample_id"]] == (
        "odd",
        "error: the filter returned int instead of a reason",
    )


REFERENCE_PLUGIN = """
class Known:
    columns = ("reference",)

    def judge(self, table):
        return [value and "wrong " + value for value in table["reference"].to_pylist()]


def create(options):
    return Known()
"""


def test_a_filter_that_reads_the_reference_sees_the_plan_s_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path, monkeypatch, REFERENCE_PLUGIN)
    rows = [generation("a", prompt="a", reference="1"), generation("b", prompt="b")]
    parts = parts_of(tmp_path, rows)
    first, second = (row["sample_id"] for row in rows)
    updates: dict[str, tuple[str | None, str | None]] = {first: (None, None), second: ("2", None)}
    blind, reading = NO_FILTERS, Curate(filters=["odd"], dedup=Dedup(exact=False))
    assert curation_digest(blind, parts) == curation_digest(blind, parts, updates=updates)
    assert curation_digest(reading, parts) != curation_digest(reading, parts, updates=updates)
    curate(reading, parts, tmp_path)
    assert verdicts(tmp_path, parts) == {first: ("odd", "wrong 1"), second: None}
    assert not curate(reading, parts, tmp_path, updates=updates).reused
    assert verdicts(tmp_path, parts) == {first: None, second: ("odd", "wrong 2")}


def test_a_changed_plug_in_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug_in(tmp_path / "site", monkeypatch)
    before = curation_digest(Curate(filters=["odd"]), [])
    (tmp_path / "site" / "odd_filter.py").write_text(PLUGIN + "\n# changed\n")
    assert curation_digest(Curate(filters=["odd"]), []) != before


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        (["emty"], "there is no filter named emty. Did you mean empty"),
        ([{"empty": {}, "refusal": {}}], r"an entry holds 2 filters \(empty, refusal\)"),
        ([{}], r"an entry holds 0 filters \(none\)"),
        ([{"odd": {"mode": "unknown column"}}], "the filter odd reads the column txet"),
    ],
)
def test_wrong_filters_are_met_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: list[Any], message: str
) -> None:
    plug_in(tmp_path / "site", monkeypatch)
    with pytest.raises(ConfigError, match=message):
        load_filters(Curate(filters=filters))


# Exact duplicates


def duplicates(tmp_path: Path, rows: list[Row], dedup: Dedup) -> set[str]:
    parts = parts_of(tmp_path, rows)
    curate(Curate(filters=[], dedup=dedup), parts, tmp_path / "c")
    return {key for key, value in verdicts(tmp_path / "c", parts).items() if value is not None}


def test_normalisation() -> None:
    assert normalise("  Straße\t\n CAFE\u0301 ") == normalise("STRASSE café")
    assert normalise("\x1e\x1f a") == "a"
    assert normalise("a b") != normalise("ab")


def test_what_is_compared(tmp_path: Path) -> None:
    base = generation("Hello  World", prompt="Question", sample_id=f"{0:032x}")

    def like(number: int, **changes: Any) -> Row:
        return {**base, "sample_id": f"{number:032x}", "draw": number, **changes}

    call = '[{{"id": "{}", "index": {}, "function": {{"name": "f", "arguments": "{}"}}}}]'
    rows = [
        base,
        like(1, text="hello world "),
        like(2, messages=[message("user", "QUESTION")]),
        like(3, messages=[message("system", "Be kind."), message("user", "Question")]),
        like(4, messages=[message("system", "Question")]),
        like(5, text="other"),
        like(6, tools='[{"type": "function"}]'),
        like(7, tool_calls=call.format("a", 0, "x")),
        like(8, tool_calls=call.format("b", 1, "x")),
        like(9, tool_calls=call.format("c", 0, "y")),
        like(10, reasoning="thought otherwise"),
        like(11, tool_calls="{broken"),
    ]
    dropped = duplicates(tmp_path, rows, Dedup())
    assert {int(sample, 16) for sample in dropped} == {1, 2, 8, 10}
    dropped = duplicates(tmp_path, rows, Dedup(exact="response"))
    assert {int(sample, 16) for sample in dropped} == {1, 2, 3, 4, 6, 8, 10}
    assert duplicates(tmp_path, rows, Dedup(exact="prompt")) == set()  # draws of one prompt
    assert duplicates(tmp_path, rows, Dedup(exact=False)) == set()
    other = [{**row, "prompt_set": "z" if int(row["sample_id"], 16) % 2 else "a"} for row in rows]
    dropped = duplicates(tmp_path, other, Dedup(exact="prompt"))
    assert {int(sample, 16) for sample in dropped} == {1, 5, 7, 9, 11}


def model(rows: list[Row], dedup: Dedup) -> dict[str, tuple[str, str] | None]:
    """Say in a few slow lines what the result must be."""

    def key(row: Row) -> Any:
        prompt = str([(m["role"], normalise(m["content"])) for m in row["messages"]])
        response = normalise(row["text"])
        return {"prompt": prompt, "response": response}.get(str(dedup.exact), (prompt, response))

    alive = [row for row in rows if row["finish_reason"] == "stop"]
    found: dict[str, tuple[str, str] | None] = {}
    for row in rows:
        if row not in alive:
            found[row["sample_id"]] = ("finish_reason", "finish_reason is length")
            continue
        group = [other for other in alive if key(other) == key(row)]
        survivor = min(group, key=lambda other: other["sample_id"])
        siblings = (survivor["prompt_set"], survivor["prompt_id"]) == (
            row["prompt_set"],
            row["prompt_id"],
        )
        apart = dedup.exact == "prompt" or not dedup.within_prompt
        kept = row is survivor or (apart and siblings)
        found[row["sample_id"]] = (
            None if kept else ("duplicate", f"same as {survivor['sample_id']}")
        )
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([True, "response", "prompt"]),
    st.booleans(),
    st.integers(1, 4),
)
def test_duplicates_depend_on_neither_order_nor_cutting(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    exact: Any,
    within_prompt: bool,
    pieces: int,
) -> None:
    chance = random.Random(seed)
    rows = [
        generation(
            chance.choice(["Yes.", "yes. ", "No.", "Perhaps."]),
            prompt=chance.choice(["One?", "ONE?", "Two?"]),
            prompt_set=chance.choice(["a", "b"]),
            finish_reason=chance.choice(["stop", "stop", "stop", "length"]),
            draw=draw,
            sample_id=sample_id(seed, draw),
        )
        for draw in range(24)
    ]
    dedup = Dedup(exact=exact, within_prompt=within_prompt)
    chance.shuffle(rows)
    cut = [rows[piece::pieces] for piece in range(pieces)]
    directory = tmp_path_factory.mktemp("corpus")
    parts = parts_of(directory, *cut, row_group_size=5)
    result = curate(Curate(filters=["finish_reason"], dedup=dedup), parts, directory / "c")
    expected = model(rows, dedup)
    assert verdicts(directory / "c", parts) == expected
    assert result.kept == sum(value is None for value in expected.values())


def test_parts_of_many_batches(tmp_path: Path) -> None:
    rows = [
        generation("Same." if i % 3 == 0 else f"Answer {i}.", prompt="p", draw=i)
        for i in range(2500)
    ]
    parts = parts_of(tmp_path, rows[:1200], rows[1200:], row_group_size=700)
    result = curate(Curate(), parts, tmp_path / "c")
    assert result.dropped == {"duplicate": 833}
    again = curate(Curate(), parts[::-1], tmp_path / "d")
    assert verdicts(tmp_path / "c", parts) == verdicts(tmp_path / "d", parts)
    assert again.digest == result.digest


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    result = curate(NO_FILTERS, parts_of(tmp_path, [generation()]), tmp_path / "c")
    assert isinstance(result, CurationResult)
    assert read_curation(tmp_path / "c") == result
