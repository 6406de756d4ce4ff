"""A corpus opens in one call, shows only what is committed, and says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import corpusgen
from corpusgen import schema
from corpusgen.commits import Commit, PartFile, by_partition, put, read, read_all
from corpusgen.corpus import LAYOUT_KEYS, Corpus, create_or_check, load, new_facts, read_facts
from corpusgen.errors import CorpusError, CorpusgenError, PlanConflict
from corpusgen.layout import Layout
from tests.runs import corpusgen as command
from tests.runs import succeeded, write_config, write_prompts

FACTS = new_facts("1.0", 8, 20, "float16")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "out")


def refusal(path: Path) -> str:
    with pytest.raises(CorpusError) as refused:
        load(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# corpus.json


def test_a_corpus_is_made_once_and_found_again(layout: Layout) -> None:
    assert create_or_check(layout, FACTS) == FACTS
    content = layout.corpus_file.read_bytes()
    again = new_facts("1.1", 8, 20, "float16")
    assert again.corpus_id != FACTS.corpus_id
    assert create_or_check(layout, again) == FACTS
    assert layout.corpus_file.read_bytes() == content
    assert load(layout.root).facts == FACTS


@pytest.mark.parametrize("left", ["lease.json", "status.json", "corpus.json.0123.tmp"])
def test_what_a_first_run_leaves_behind_is_no_obstacle(layout: Layout, left: str) -> None:
    layout.root.mkdir()
    (layout.root / left).write_bytes(b"")
    assert create_or_check(layout, FACTS) == FACTS


def test_a_directory_that_holds_other_things_is_refused_and_left_alone(layout: Layout) -> None:
    layout.root.mkdir()
    (layout.root / "thesis.tex").write_text("mine")
    with pytest.raises(CorpusError) as refused:
        create_or_check(layout, FACTS)
    assert str(refused.value) == (
        f"{layout.root}: is not empty and holds no corpus. Give `out` a new directory."
    )
    assert [path.name for path in layout.root.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"partition_size": 16}, "generate.partition_size changed from 8 to 16"),
        ({"top_logprobs": 0}, "sampling.top_logprobs changed from 20 to 0"),
        (
            {"logprob_precision": "float32"},
            "generate.logprob_precision changed from float16 to float32",
        ),
        (
            {"partition_size": 16, "top_logprobs": 5},
            "generate.partition_size changed from 8 to 16, sampling.top_logprobs changed from 20 "
            "to 5",
        ),
    ],
)
def test_a_changed_layout_key_is_named(
    layout: Layout, changes: dict[str, Any], sentence: str
) -> None:
    create_or_check(layout, FACTS)
    with pytest.raises(PlanConflict) as refused:
        create_or_check(layout, msgspec.structs.replace(FACTS, **changes))
    assert str(refused.value) == (
        f"{layout.root}: {sentence}, which is fixed for a corpus. Put it back, or use another "
        "`out`."
    )


def test_every_layout_key_stands_in_the_facts() -> None:
    assert set(LAYOUT_KEYS) <= set(FACTS.__struct_fields__)


def test_where_there_is_no_corpus(tmp_path: Path) -> None:
    sentence = "is no corpus (there is no corpus.json). Give the `out` of a run."
    assert refusal(tmp_path) == f"{tmp_path}: {sentence}"
    assert refusal(tmp_path / "nowhere") == f"{tmp_path / 'nowhere'}: {sentence}"
    (tmp_path / "file").write_bytes(b"")
    assert refusal(tmp_path / "file").startswith(
        f"{tmp_path / 'file'}/corpus.json: is not readable"
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"\0" * 99, b'{"corpus_id": "x"}'])
def test_a_torn_corpus_file(layout: Layout, content: bytes) -> None:
    create_or_check(layout, FACTS)
    layout.corpus_file.write_bytes(content)
    assert refusal(layout.root).startswith(f"{layout.corpus_file}: is not readable: ")


def test_a_newer_format_says_so(layout: Layout) -> None:
    newer = msgspec.structs.replace(FACTS, format_version=schema.FORMAT_VERSION + 1)
    create_or_check(layout, FACTS)
    layout.corpus_file.write_bytes(msgspec.json.encode(newer))
    assert refusal(layout.root) == (
        f"{layout.corpus_file}: was written in format 2; this corpusgen reads up to 1. Install a "
        "newer one."
    )
    with pytest.raises(CorpusError, match="was written in format 2"):
        create_or_check(layout, FACTS)


def test_a_later_version_may_add_facts(layout: Layout) -> None:
    create_or_check(layout, FACTS)
    content = json.loads(layout.corpus_file.read_bytes()) | {"shoe_size": 44}
    layout.corpus_file.write_text(json.dumps(content))
    assert read_facts(layout) == FACTS


# Commit markers


FILE = PartFile("generations/part-00001-000.parquet", 3, 100, "d" * 32)
COMMIT = Commit(1, 1, 0, {"generations": FILE}, settled_picousd=5, reserved_picousd=2)


def test_a_marker_comes_back_as_it_was(layout: Layout) -> None:
    put(layout, COMMIT)
    assert read(layout.commit(1, 0)) == COMMIT
    assert (COMMIT.ended, COMMIT.rows("failures"), COMMIT.charged_picousd) == (3, 0, 7)


def test_a_marker_is_put_once_and_never_changed(layout: Layout) -> None:
    put(layout, COMMIT)
    with pytest.raises(CorpusError, match="this part was committed by another process"):
        put(layout, msgspec.structs.replace(COMMIT, superseded=1))
    assert read_all(layout) == [COMMIT]


def test_markers_come_by_partition_and_part(layout: Layout) -> None:
    where = [(2, 0), (0, 1), (0, 0), (12345, 0), (2, 1)]
    for partition, part in where:
        put(layout, msgspec.structs.replace(COMMIT, partition=partition, part=part))
    (layout.commits / "00000-002.json.0123456789ab.tmp").write_bytes(b"half")
    found = read_all(layout)
    assert [(c.partition, c.part) for c in found] == sorted(where)
    assert {p: [c.part for c in parts] for p, parts in by_partition(found).items()} == {
        0: [0, 1],
        2: [0, 1],
        12345: [0],
    }


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"\0" * 9, b'{"partition": 1}'])
def test_a_torn_marker(layout: Layout, content: bytes) -> None:
    create_or_check(layout, FACTS)
    put(layout, COMMIT)
    layout.commit(1, 0).write_bytes(content)
    sentence = f"{layout.commit(1, 0)}: is not a readable commit marker: "
    assert refusal(layout.root).startswith(sentence)


# Reading a real corpus


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("made")
    write_prompts(directory / "prompts.jsonl", [f"question {i}" for i in range(10)])
    config = write_config(
        directory,
        generate={"partition_size": 4},
        sampling={"temperature": 0.7, "max_tokens": 30, "seed": 1, "top_logprobs": 5},
    )
    succeeded(command("run", config))
    return directory / "out"


def test_a_corpus_is_read_as_arrow_datasets(made: Path) -> None:
    corpus = corpusgen.load(made)
    assert isinstance(corpus, Corpus)
    assert corpus.path == made
    assert corpus.generations().schema.equals(schema.GENERATIONS)
    assert corpus.generations().count_rows() == corpus.rows("generations") == 10
    assert corpus.attempts().count_rows() == corpus.rows("attempts") == 10
    assert corpus.failures().count_rows() == corpus.rows("failures") == 0
    table = corpus.generations().to_table(columns=["text", "topk_logprobs"])
    assert table.column_names == ["text", "topk_logprobs"]
    assert len(corpus.files("generations")) == 3
    assert corpus.verdicts().count_rows() == 10
    assert [path.name for path in corpus.datasets()] == ["messages"]


def test_only_committed_files_are_seen(made: Path) -> None:
    stray = made / "generations" / "part-00077-000.parquet"
    stray.write_bytes(b"half")
    try:
        assert load(made).generations().count_rows() == 10
    finally:
        stray.unlink()


def test_verdicts_of_a_curation_that_is_not_there(made: Path) -> None:
    corpus = load(made)
    (directory,) = corpus.curations()
    assert corpus.verdicts(directory.name).count_rows() == 10
    with pytest.raises(CorpusError, match="no such curation; run `corpusgen curate`"):
        corpus.verdicts("0" * 32)


def test_a_corpus_in_which_nothing_was_asked_is_empty(layout: Layout) -> None:
    create_or_check(layout, FACTS)
    corpus = load(layout.root)
    assert corpus.generations().count_rows() == 0
    assert corpus.generations().schema.equals(schema.GENERATIONS)
    assert (corpus.plan.samples, corpus.curations(), corpus.datasets()) == (0, [], [])


def test_opening_raises_the_project_s_own_error(tmp_path: Path) -> None:
    with pytest.raises(CorpusgenError):
        corpusgen.load(tmp_path)
