"""`verify` finds every way in which a corpus can contradict itself, and says it in a sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from corpusgen import commits, schema
from corpusgen.commits import Commit
from corpusgen.corpus import load
from corpusgen.errors import CorpusError, ExitCode
from corpusgen.lease import Lease
from corpusgen.money import dollars
from corpusgen.shards import TokenFormat
from corpusgen.store import Store
from corpusgen.types import Intent
from corpusgen.verify import Proof, verify
from tests.loopback import Script, serving
from tests.runs import corpusgen, remote, succeeded, write_config, write_prompts

PRICE = {"input_per_mtok": "1", "output_per_mtok": "2"}
QUESTIONS = [
    *(f"question {i}" for i in range(20)),
    "[[400]] refused",
    "[[once:500]] mends itself",
    "[[once:torn]] is billed all the same",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a corpus with failures, retries, two parts a partition, and some pending samples."""
    directory = tmp_path_factory.mktemp("made")
    prompts = write_prompts(directory / "prompts.jsonl", QUESTIONS)
    with serving(Script()) as server:
        config = write_config(
            directory,
            teacher=remote(server.base_url, price=PRICE),
            sampling={"temperature": 0.7, "max_tokens": 20, "top_logprobs": 3},
            generate={"partition_size": 8, "retry": {"first_wait_s": 0.01}},
            export=[{"format": "messages", "jsonl": True}],
            split={"validation": 0.3},
        )
        succeeded(corpusgen("run", config, "--limit", "12"))
        succeeded(corpusgen("run", config), code=3)
    write_prompts(prompts, [*QUESTIONS, *(f"pending {i}" for i in range(5))])
    succeeded(corpusgen("plan", config))
    return directory / "out"


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may break."""
    return Path(shutil.copytree(made, tmp_path / "out"))


def proof_of(root: Path, *, complete: bool = False) -> Proof:
    return verify(load(root), complete=complete)


def contradiction(root: Path, *, complete: bool = False) -> str:
    """Return the sentence with which a broken corpus is refused."""
    with pytest.raises(CorpusError) as refused:
        proof_of(root, complete=complete)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert str(root) in sentence, "it says where"
    assert refused.value.exit_code is ExitCode.ERROR
    return sentence.replace(str(root), "OUT")


# Ways to break a corpus so that only one thing is wrong


def marker_of(root: Path, partition: int, part: int) -> tuple[Path, Commit]:
    path = root / f"commits/{partition:05d}-{part:03d}.json"
    return path, commits.read(path)


def put_marker(path: Path, commit: Commit) -> None:
    path.write_bytes(msgspec.json.encode(commit))


def remark(root: Path, partition: int, part: int, **changes: Any) -> None:
    """Change fields of a commit marker."""
    path, commit = marker_of(root, partition, part)
    put_marker(path, msgspec.structs.replace(commit, **changes))


def rewrite(
    root: Path, kind: str, partition: int, part: int, change: Callable[[pa.Table], pa.Table]
) -> None:
    """Change a file's rows and make its marker agree in rows, size and digest."""
    marker, commit = marker_of(root, partition, part)
    path = root / commit.files[kind].path
    table = change(pq.ParquetFile(path).read())
    pq.write_table(table, path)
    described = msgspec.structs.replace(
        commit.files[kind],
        rows=table.num_rows,
        bytes=path.stat().st_size,
        digest=commits.file_digest(path),
    )
    put_marker(marker, msgspec.structs.replace(commit, files={**commit.files, kind: described}))


def generations_of(root: Path, partition: int, part: int) -> Path:
    return root / f"generations/part-{partition:05d}-{part:03d}.parquet"


def curation_of(root: Path) -> Path:
    return load(root).curations()[-1]


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | changes))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def with_value(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    index = table.schema.get_field_index(column)
    values = table[column].to_pylist()
    values[row] = value
    field = table.schema.field(index)
    if pa.types.is_dictionary(field.type):
        column_values = pa.array(values, field.type.value_type).dictionary_encode()
    else:
        column_values = pa.array(values, field.type)
    return table.set_column(index, field, column_values)


# What holds


def test_an_undamaged_corpus_passes(made: Path) -> None:
    proof = proof_of(made)
    assert proof == Proof(
        samples=28,
        generations=22,
        failures=1,
        pending=5,
        attempts=25,
        lost_attempts=0,
        files=proof.files,
        curations=2,
        exports=1,
        positions_without_distribution=0,
    )
    output = succeeded(corpusgen("verify", made))
    assert output.startswith(
        "verified: 28 samples = 22 generations + 1 failures + 5 pending; 25 attempts (0 lost)"
    )


def test_what_no_marker_names_is_not_part_of_the_corpus(root: Path) -> None:
    """A crash before a commit leaves such files; the next run writes them again."""
    shutil.copy(generations_of(root, 0, 0), generations_of(root, 3, 0))
    (root / "attempts/part-00003-000.parquet.0123456789ab.tmp").write_bytes(b"half")
    (root / "journal").mkdir(exist_ok=True)
    (root / "notes.txt").write_text("mine")
    assert proof_of(root).generations == 22


def test_progress_is_told_for_each_partition(made: Path) -> None:
    told: list[int] = []
    verify(load(made), progress=told.append)
    assert told == list(range(load(made).plan.partitions))


def test_a_damaged_corpus_exits_with_1(root: Path) -> None:
    flip(generations_of(root, 0, 0))
    done = corpusgen("verify", root)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        f"corpusgen: {generations_of(root, 0, 0)}: its content is not what was committed (the "
        "digest differs).\n"
    )


# Pending samples


def test_pending_samples_contradict_only_completeness(root: Path) -> None:
    assert contradiction(root, complete=True) == (
        "OUT: 5 samples are pending; run the same command again to ask them."
    )


def test_retired_samples_are_not_asked_for(root: Path, made: Path) -> None:
    """Neither a retired pending sample, nor a retired answer, hides one that is pending."""
    config = made.parent / "config.yaml"
    write_prompts(root.parent / "prompts.jsonl", [*QUESTIONS[3:], "pending 0"])
    changed = json.loads(config.read_bytes()) | {"out": str(root)}
    (root.parent / "config.yaml").write_text(json.dumps(changed))
    succeeded(corpusgen("plan", root.parent / "config.yaml"))
    assert len(load(root).plan.retired()) == 7
    assert contradiction(root, complete=True).startswith("OUT: 1 samples are pending")
    write_prompts(root.parent / "prompts.jsonl", QUESTIONS[3:])
    succeeded(corpusgen("plan", root.parent / "config.yaml"))
    assert proof_of(root, complete=True).pending == 5


# Committed files


@pytest.mark.parametrize("kind", ["generations", "attempts", "failures"])
def test_a_committed_file_is_missing(root: Path, kind: str) -> None:
    path = sorted((root / kind).glob("*.parquet"))[0]
    path.unlink()
    assert contradiction(root) == f"OUT/{kind}/{path.name}: is missing."


@pytest.mark.parametrize("kind", ["generations", "attempts", "failures"])
def test_a_byte_is_flipped(root: Path, kind: str) -> None:
    path = sorted((root / kind).glob("*.parquet"))[0]
    flip(path)
    assert contradiction(root) == (
        f"OUT/{kind}/{path.name}: its content is not what was committed (the digest differs)."
    )


def test_a_file_is_no_parquet_although_its_digest_is_right(root: Path) -> None:
    marker, commit = marker_of(root, 0, 0)
    path = generations_of(root, 0, 0)
    path.write_bytes(b"PAR1 but not really")
    described = msgspec.structs.replace(
        commit.files["generations"], digest=commits.file_digest(path)
    )
    files = {**commit.files, "generations": described}
    put_marker(marker, msgspec.structs.replace(commit, files=files))
    assert contradiction(root).startswith(
        "OUT/generations/part-00000-000.parquet: cannot be read: "
    )


def test_a_file_has_other_columns(root: Path) -> None:
    rewrite(root, "attempts", 0, 0, lambda table: table.drop_columns(["request_id"]))
    assert contradiction(root) == (
        "OUT/attempts/part-00000-000.parquet: its columns are not those of format 1."
    )


def test_a_marker_states_other_rows(root: Path) -> None:
    _, commit = marker_of(root, 1, 0)
    file = commit.files["generations"]
    files = {**commit.files, "generations": msgspec.structs.replace(file, rows=file.rows + 1)}
    remark(root, 1, 0, files=files)
    assert contradiction(root) == (
        f"OUT/{file.path}: holds {file.rows} rows, but its marker says {file.rows + 1}."
    )


# Markers


def test_a_marker_in_the_middle_is_gone(root: Path) -> None:
    marker_of(root, 1, 1)
    (root / "commits/00001-000.json").unlink()
    assert contradiction(root) == (
        "OUT/commits: a part of partition 1 is missing; found parts [1]."
    )


def test_the_last_marker_is_gone(root: Path) -> None:
    """Its samples could be pending, but a curation has judged them."""
    (root / "commits/00002-000.json").unlink()
    assert contradiction(root).endswith("judges a part that is not committed.")


def test_a_marker_stands_twice_under_two_names(root: Path) -> None:
    shutil.copy(root / "commits/00000-000.json", root / "commits/00000-001.json")
    assert "a part of partition 0 is missing; found parts [0, 0]" in contradiction(root)


def test_a_marker_speaks_of_a_partition_that_was_never_planned(root: Path) -> None:
    path, commit = marker_of(root, 0, 0)
    put_marker(path.with_name("00077-000.json"), msgspec.structs.replace(commit, partition=77))
    assert contradiction(root) == "OUT/commits: partition 77 is committed but not planned."


def test_a_marker_s_cost_is_edited(root: Path) -> None:
    _, commit = marker_of(root, 0, 0)
    settled, reserved = commit.settled_picousd, commit.reserved_picousd
    assert settled > 0
    remark(root, 0, 0, settled_picousd=settled + 1)
    assert contradiction(root) == (
        f"OUT/commits/00000-000.json: states a cost of {settled + 1} + {reserved} picodollars, but "
        f"its attempt rows sum up to {settled} + {reserved}."
    )


def test_a_marker_s_reservations_are_edited(root: Path) -> None:
    found = [c for c in load(root).commits if c.reserved_picousd]
    assert found, "a torn answer is charged at its reservation"
    remark(root, found[0].partition, found[0].part, reserved_picousd=0)
    assert "states a cost of" in contradiction(root)


def test_a_marker_supersedes_what_never_failed(root: Path) -> None:
    remark(root, 0, 0, superseded=1)
    assert contradiction(root) == (
        "OUT/commits: the markers of partition 0 state 7 ended samples, but its files hold 8."
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"format_version": 1}'])
def test_a_torn_marker_is_one_sentence(root: Path, content: bytes) -> None:
    (root / "commits/00000-000.json").write_bytes(content)
    assert contradiction(root).startswith(
        "OUT/commits/00000-000.json: is not a readable commit marker: "
    )


def test_a_marker_of_a_newer_format(root: Path) -> None:
    remark(root, 0, 0, format_version=99)
    assert contradiction(root) == (
        "OUT/commits/00000-000.json: was written in format 99; this corpusgen reads up to 1. "
        "Install a newer one."
    )


# Rows


def test_a_row_stands_in_two_parts(root: Path) -> None:
    first = pq.ParquetFile(generations_of(root, 1, 0)).read().slice(0, 1)

    def doubled(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table, first.cast(table.schema)]).sort_by("sample_id")

    rewrite(root, "generations", 1, 1, doubled)
    sample = first["sample_id"][0].as_py()
    assert contradiction(root) == (
        f"OUT/generations/part-00001-001.parquet: sample {sample} has ended before."
    )


def test_a_row_stands_twice_in_one_part(root: Path) -> None:
    rewrite(root, "generations", 0, 0, lambda t: pa.concat_tables([t.slice(0, 1), t]))
    assert contradiction(root).endswith("stands twice or out of order.")


def test_rows_are_out_of_order(root: Path) -> None:
    rewrite(root, "generations", 0, 0, lambda t: t.sort_by([("sample_id", "descending")]))
    assert contradiction(root).endswith("stands twice or out of order.")


def test_a_row_was_never_planned(root: Path) -> None:
    rewrite(root, "generations", 0, 0, lambda t: with_value(t, "sample_id", 0, "0" * 32))
    assert contradiction(root) == (
        f"OUT/generations/part-00000-000.parquet: sample {'0' * 32} was never planned."
    )


def test_a_row_is_lost_and_its_marker_agrees(root: Path) -> None:
    """Then only the curation remembers it."""
    rewrite(root, "generations", 0, 0, lambda table: table.slice(1))
    assert contradiction(root).endswith(
        "part-00000-000.parquet: has not one verdict for each generation of its part."
    )


def test_an_attempt_row_is_lost(root: Path) -> None:
    partition, part, row = retried(root)

    def without(table: pa.Table) -> pa.Table:
        return pa.concat_tables([table.slice(0, row), table.slice(row + 1)])

    rewrite(root, "attempts", partition, part, without)
    assert "states 2 attempts, but 1 attempt rows name it." in contradiction(root)


def retried(root: Path) -> tuple[int, int, int]:
    """Return where the attempt stands that failed with HTTP 500 and cost nothing."""
    for commit in load(root).commits:
        table = pq.ParquetFile(root / commit.files["attempts"].path).read()
        for row, status in enumerate(table["http_status"].to_pylist()):
            if status == 500:
                return commit.partition, commit.part, row
    raise AssertionError("no attempt was answered with 500")


def test_an_attempt_row_stands_twice(root: Path) -> None:
    partition, part, row = retried(root)
    rewrite(root, "attempts", partition, part, lambda t: pa.concat_tables([t, t.slice(row, 1)]))
    assert "states 2 attempts, but 3 attempt rows name it." in contradiction(root)


def interrupted(root: Path, sample: str) -> None:
    """Send a request for a sample that has ended, in a part of its own, and die."""
    corpus = load(root)
    partition = next(n for n in range(3) if sample in corpus.plan.ids_of(n))
    tokens = TokenFormat(3, "float16", "raw")
    with Lease(corpus.layout.lease, "run") as lease:
        for _ in range(2):
            store = Store(
                corpus.layout, corpus.facts.corpus_id, corpus.plan, lambda _: tokens, lease
            )
            store.recover()
            opened, _ = store.take_up(partition, lambda _: True, lambda _: True)
            if not opened.contents.attempts:
                opened.begin(Intent("f" * 32, [sample], "e", 1760000000.0, 100))
                store.close()
        assert store.commit(opened) is not None


def test_a_failure_may_be_asked_again_and_lost_in_a_later_part(root: Path) -> None:
    (failed,) = load(root).failures().to_table(columns=["sample_id"])["sample_id"].to_pylist()
    interrupted(root, failed)
    proof = proof_of(root)
    assert (proof.failures, proof.attempts, proof.lost_attempts) == (1, 26, 1)


def test_a_failure_states_more_attempts_than_its_part_knows(root: Path) -> None:
    """The rows of a later part do not count for it."""
    (failed,) = load(root).failures().to_table(columns=["sample_id"])["sample_id"].to_pylist()
    (where,) = [c for c in load(root).commits if "failures" in c.files]
    interrupted(root, failed)
    rewrite(
        root, "failures", where.partition, where.part, lambda t: with_value(t, "attempts", 0, 2)
    )
    assert contradiction(root).endswith(
        f"sample {failed} states 2 attempts, but 1 attempt rows name it."
    )


def test_a_generation_is_never_asked_again(root: Path) -> None:
    sample = pq.ParquetFile(generations_of(root, 0, 0)).read()["sample_id"][0].as_py()
    interrupted(root, sample)
    assert contradiction(root) == (
        f"OUT/generations/part-00000-000.parquet: sample {sample} states 1 attempts, but 2 attempt "
        "rows name it."
    )


def test_an_attempt_names_a_sample_of_another_partition(root: Path) -> None:
    rewrite(root, "attempts", 0, 0, lambda t: with_value(t, "sample_ids", 0, ["0" * 32]))
    assert contradiction(root) == (
        "OUT/attempts/part-00000-000.parquet: an attempt names a sample of another partition."
    )


def test_a_cost_is_edited_in_its_row(root: Path) -> None:
    rewrite(root, "attempts", 0, 0, lambda t: with_value(t, "cost_picousd", 0, 0))
    assert "picodollars, but its attempt rows sum up to" in contradiction(root)


@pytest.mark.parametrize("column", ["sampled_logprob", "topk_logprobs", "completion_token_bytes"])
def test_token_columns_are_not_equally_long(root: Path, column: str) -> None:
    table = pq.ParquetFile(generations_of(root, 0, 0)).read()
    shorter = table[column][2].as_py()[:-1]
    rewrite(root, "generations", 0, 0, lambda t: with_value(t, column, 2, shorter))
    sample = table["sample_id"][2].as_py()
    sentence = contradiction(root)
    assert f"sample {sample}: the column " in sentence
    assert sentence.endswith("has another length.")


def test_positions_without_a_distribution_are_counted(root: Path) -> None:
    table = pq.ParquetFile(generations_of(root, 0, 0)).read()
    entries = table["topk_logprobs"][0].as_py()
    entries[0] = None
    rewrite(root, "generations", 0, 0, lambda t: with_value(t, "topk_logprobs", 0, entries))
    shutil.rmtree(root / "curation")
    shutil.rmtree(root / "dataset")
    assert proof_of(root).positions_without_distribution == 1


# The budget


def store_configurations(root: Path, *texts: str | bytes) -> None:
    """Replace the configurations that are stored with a corpus."""
    shutil.rmtree(root / "config")
    (root / "config").mkdir()
    for number, text in enumerate(texts):
        content = text if isinstance(text, bytes) else text.encode()
        (root / f"config/{number}.yaml").write_bytes(content)


def budget(limit: object) -> str:
    return f"generate:\n  budget_usd: {limit}\nteacher:\n  api_key: ${{A_KEY}}\n"


@pytest.mark.parametrize("quote", ["", '"'])
def test_more_is_charged_than_the_budget_allows(root: Path, quote: str) -> None:
    charged = sum(commit.charged_picousd for commit in load(root).commits)
    exactly, less = dollars(charged), dollars(charged - 1)
    store_configurations(root, budget(f"{quote}{exactly}{quote}"))
    assert proof_of(root).samples == 28
    store_configurations(root, budget(f"{quote}{less}{quote}"))
    assert contradiction(root) == (
        f"OUT/commits: ${exactly} is charged, more than generate.budget_usd (${less}) allows."
    )


def test_a_budget_that_was_lowered_after_it_was_spent_is_no_contradiction(root: Path) -> None:
    store_configurations(root, budget("10"), budget("0"))
    assert proof_of(root).samples == 28
    store_configurations(root, budget("0"), budget("0.000000000001"))
    assert contradiction(root).endswith("generate.budget_usd ($0.000000000001) allows.")


@pytest.mark.parametrize(
    "text",
    ["", "[]", "generate:", "generate: {}", b"\xff", "a: [", "a: 1\na: 2"]
    + [budget(limit) for limit in ("${BUDGET}", "null", "[1]", "true", ".nan", ".inf", "'x'")],
)
def test_a_configuration_without_a_plain_budget_allows_anything(
    root: Path, text: str | bytes
) -> None:
    store_configurations(root, text)
    assert proof_of(root).samples == 28
    store_configurations(root, budget("0"), text)
    assert proof_of(root).samples == 28


# The plan


def plan_rows(root: Path, number: int, change: Callable[[pa.Table], pa.Table]) -> None:
    """Change the rows of a planning's only file, keeping its row groups."""
    path = root / f"plan/{number:06d}-00000.parquet"
    opened = pq.ParquetFile(path)
    groups = [opened.read_row_group(g) for g in range(opened.num_row_groups)]
    with pq.ParquetWriter(path, schema.PLAN) as writer:
        for group in groups:
            writer.write_table(change(group))


def test_a_sample_is_planned_twice(root: Path) -> None:
    first = load(root).plan.ids_of(0)[0]
    plan_rows(root, 2, lambda table: with_value(table, "sample_id", 0, first))
    assert contradiction(root) == f"OUT/plan: sample {first} is planned twice."


def test_a_partition_has_fewer_samples_than_its_marker_says(root: Path) -> None:
    plan_rows(root, 2, lambda table: table.slice(1))
    assert contradiction(root) == ("OUT/plan: partition 3 holds 4 samples, but its marker says 5.")


def test_the_plan_is_torn(root: Path) -> None:
    path = root / "plan/000001-00000.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert contradiction(root).startswith("OUT/plan/000001-00000.parquet: cannot be read: ")


# Curations


def verdicts_of(root: Path) -> Path:
    return sorted((curation_of(root) / "verdicts").glob("*.parquet"))[0]


def test_verdicts_are_missing(root: Path) -> None:
    path = verdicts_of(root)
    path.unlink()
    assert contradiction(root).endswith(f"verdicts/{path.name}: is missing.")


def test_a_verdict_is_missing(root: Path) -> None:
    path = verdicts_of(root)
    pq.write_table(pq.ParquetFile(path).read().slice(1), path)
    assert contradiction(root).endswith(
        f"{path.name}: has not one verdict for each generation of its part."
    )


def test_a_verdict_is_on_another_sample(root: Path) -> None:
    path = verdicts_of(root)
    table = pq.ParquetFile(path).read()
    pq.write_table(with_value(table, "sample_id", 0, "0" * 32), path)
    assert contradiction(root).endswith("has not one verdict for each generation of its part.")


def test_a_verdict_is_turned_round(root: Path) -> None:
    path = verdicts_of(root)
    table = pq.ParquetFile(path).read()
    pq.write_table(with_value(table, "keep", 0, not table["keep"][0].as_py()), path)
    assert "kept, but its verdicts hold" in contradiction(root)


@pytest.mark.parametrize("content", [b"", b"PAR1PAR1", b"text"])
def test_verdicts_are_torn(root: Path, content: bytes) -> None:
    path = verdicts_of(root)
    path.write_bytes(content)
    assert f"{path.name}: cannot be read: " in contradiction(root)


def test_verdicts_are_another_file(root: Path) -> None:
    path = verdicts_of(root)
    pq.write_table(pa.table({"sample_id": ["a"]}), path)
    assert contradiction(root).endswith(f"{path.name}: its columns are not those of format 1.")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"parts": 3}', b"\xff"])
def test_a_curation_s_marker_is_torn(root: Path, content: bytes) -> None:
    (curation_of(root) / "curation.json").write_bytes(content)
    assert "/curation.json: is not readable: " in contradiction(root)


@pytest.mark.parametrize("field", ["generations", "kept"])
def test_a_curation_s_counts_are_edited(root: Path, field: str) -> None:
    path = curation_of(root) / "curation.json"
    edit_json(path, **{field: 7})
    assert "but its verdicts hold" in contradiction(root)


# Exports


def dataset_of(root: Path) -> Path:
    return root / "dataset/messages"


def test_an_export_s_row_count_is_edited(root: Path) -> None:
    record = dataset_of(root) / "export.json"
    rows = json.loads(record.read_bytes())["rows"]
    edit_json(record, rows=rows | {"train": rows["train"] + 1})
    assert contradiction(root) == (
        f"OUT/dataset/messages: the split train holds {rows['train']} rows, but export.json says "
        f"{rows['train'] + 1}."
    )


def test_an_export_has_fewer_rows_than_its_curation_kept(root: Path) -> None:
    """Its own record agrees, so only the curation tells."""
    directory = dataset_of(root)
    record = json.loads((directory / "export.json").read_bytes())
    path = directory / "train-00000-of-00001.parquet"
    table = pq.ParquetFile(path).read()
    pq.write_table(table.slice(1), path)
    for file in record["files"]:
        if file["path"] == path.name:
            file |= {"rows": table.num_rows - 1, "size": path.stat().st_size}
    rows = record["rows"] | {"train": table.num_rows - 1}
    edit_json(directory / "export.json", files=record["files"], rows=rows)
    assert contradiction(root) == (
        f"OUT/dataset/messages: holds {sum(rows.values())} rows, but no finished curation keeps as "
        "many."
    )


def test_a_shard_of_a_dataset_is_missing(root: Path) -> None:
    (dataset_of(root) / "train-00000-of-00001.parquet").unlink()
    assert contradiction(root) == ("OUT/dataset/messages/train-00000-of-00001.parquet: is missing.")


@pytest.mark.parametrize("name", ["train-00000-of-00001.parquet", "jsonl"])
def test_a_file_of_a_dataset_is_cut(root: Path, name: str) -> None:
    path = dataset_of(root) / name
    path = sorted(path.iterdir())[0] if path.is_dir() else path
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    assert contradiction(root).endswith(
        f"{path.name}: has {len(content) - 1} bytes, but export.json says {len(content)}."
    )


def test_a_shard_of_the_right_size_is_no_parquet(root: Path) -> None:
    path = dataset_of(root) / "train-00000-of-00001.parquet"
    path.write_bytes(bytes(path.stat().st_size))
    assert "train-00000-of-00001.parquet: cannot be read: " in contradiction(root)


def test_a_shard_that_does_not_belong_to_the_dataset_would_be_loaded_with_it(root: Path) -> None:
    directory = dataset_of(root)
    shutil.copy(
        directory / "train-00000-of-00001.parquet", directory / "train-00001-of-00002.parquet"
    )
    assert "the split train holds" in contradiction(root)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rows": 3}'])
def test_an_export_s_record_is_torn(root: Path, content: bytes) -> None:
    (dataset_of(root) / "export.json").write_bytes(content)
    assert contradiction(root).startswith("OUT/dataset/messages/export.json: is not readable: ")


def test_every_column_of_the_ledger_is_used_by_this_corpus(made: Path) -> None:
    """The tests above would prove little on a corpus in which nothing went wrong."""
    table = load(made).attempts().to_table()
    outcomes = {v["values"]: v["counts"] for v in pc.value_counts(table["outcome"]).to_pylist()}
    assert outcomes == {"answered": 22, "rejected": 1, "server_error": 1, "torn_answer": 1}
