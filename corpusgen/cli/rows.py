"""Print single samples: `corpusgen show`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
from rich.console import Console
from rich.text import Text

from corpusgen.corpus import Corpus
from corpusgen.errors import CorpusError
from corpusgen.parquet import read_table

_GENERATION_COLUMNS = [
    "sample_id",
    "prompt_set",
    "prompt_id",
    "draw",
    "messages",
    "text",
    "reasoning",
    "finish_reason",
    "completion_tokens",
    "reference",
]


def print_rows(
    corpus: Corpus,
    *,
    limit: int,
    failures: bool,
    dropped: bool,
    dropped_by: str | None,
    prompt_id: str | None,
    as_json: bool,
) -> None:
    """Print up to `limit` rows; raise `CorpusError` where verdicts are needed and missing."""
    rows = _failures(corpus) if failures else _generations(corpus, needs_verdicts=dropped)
    console = Console(highlight=False, soft_wrap=True)
    printed = 0
    for row in rows:
        if prompt_id is not None and row["prompt_id"] != prompt_id:
            continue
        if dropped and row.get("keep") is not False:
            continue
        if dropped_by is not None and row.get("filter") != dropped_by:
            continue
        if printed == limit:
            break
        printed += 1
        if as_json:
            sys.stdout.write(msgspec.json.encode(row).decode() + "\n")
        else:
            console.print(_text(row), end="\n\n")
    if not printed and not as_json:
        console.print("nothing to show")


def _failures(corpus: Corpus) -> Iterator[dict[str, Any]]:
    for path in corpus.files("failures"):
        yield from read_table(path).to_pylist()


def _generations(corpus: Corpus, *, needs_verdicts: bool) -> Iterator[dict[str, Any]]:
    curations = corpus.curations()
    if needs_verdicts and not curations:
        raise CorpusError(f"{corpus.path}: there is no curation; run `corpusgen curate` first.")
    for path in corpus.files("generations"):
        verdicts = _verdicts(curations[-1], path) if curations else {}
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            for row in file.read_row_group(group, columns=_GENERATION_COLUMNS).to_pylist():
                yield row | verdicts.get(row["sample_id"], {})


def _verdicts(curation: Path, generations: Path) -> dict[str, dict[str, Any]]:
    path = curation / "verdicts" / generations.name
    if not path.exists():
        return {}
    return {row.pop("sample_id"): row for row in read_table(path).to_pylist()}


def _text(row: dict[str, Any]) -> Text:
    text = Text()
    draw = "" if row["draw"] is None else f" draw {row['draw']}"
    text.append(f"{row['prompt_set']}/{row['prompt_id']}{draw}", style="bold")
    text.append(f"  {row['sample_id']}\n", style="dim")
    if "reason" in row and "detail" in row:
        text.append(f"failed: {row['reason']}: {row['detail']}")
        return text
    for message in row["messages"]:
        text.append(f"{message['role']}: ", style="dim")
        text.append(f"{message['content']}\n")
    if row["reasoning"]:
        text.append("reasoning: ", style="dim")
        text.append(f"{row['reasoning']}\n")
    text.append("answer: ", style="dim")
    text.append(f"{row['text']}\n")
    verdict = "not curated"
    if row.get("keep") is not None:
        verdict = "kept" if row["keep"] else f"dropped by {row['filter']}: {row['reason']}"
    text.append(
        f"[{row['finish_reason']}, {row['completion_tokens']} tokens, {verdict}]", style="dim"
    )
    return text
