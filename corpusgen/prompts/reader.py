"""Read a prompt set from end to end as a stream, and tell whether its files have changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from corpusgen.config import PromptSet
from corpusgen.errors import PromptError
from corpusgen.prompts.render import Renderer
from corpusgen.prompts.rows import Row, visible
from corpusgen.prompts.sources import Source, data_files, find_sources, opened, reason
from corpusgen.prompts.table_rows import hub_rows, parquet_rows, saved_rows
from corpusgen.prompts.text_rows import csv_rows, json_rows, jsonl_rows
from corpusgen.types import BadPrompt, Prompt

_TEXT_READERS = {"jsonl": jsonl_rows, "json": json_rows, "csv": csv_rows}


def read_prompts(prompt_set: PromptSet, directory: Path) -> Iterator[Prompt | BadPrompt]:
    """Return the set's prompts in the order of its files, in memory that does not grow.

    `directory` is where a relative `path` starts. A row that cannot be a prompt comes as a
    `BadPrompt`. Raises `ConfigError` for a template that does not parse and `PromptError` for
    files that cannot be found, both at once; while it is read, `PromptError` for a file that
    cannot be read on, and for a set without a single row.
    """
    renderer = Renderer(prompt_set)
    if prompt_set.dataset is not None:
        return _rendered(hub_rows(prompt_set), renderer, prompt_set.dataset)
    sources = find_sources(prompt_set, directory)
    rows = (row for source in sources for row in _rows(source, prompt_set.split))
    return _rendered(rows, renderer, str(directory / (prompt_set.path or "")))


def fingerprint(prompt_set: PromptSet, directory: Path) -> list[tuple[str, int, int]]:
    """Return each file of a set with its size in bytes and its mtime in nanoseconds.

    A change of the list means that the rows may have changed. Names are relative to `directory`
    where a file lies in it. A set on the hub has one entry, its name, subset and split: whether
    it changed there is not asked. Raises `PromptError` where a file cannot be found.
    """
    if prompt_set.dataset is not None:
        parts = (prompt_set.dataset, prompt_set.subset or "", prompt_set.split)
        return [(":".join(parts), 0, 0)]
    found = []
    for source in find_sources(prompt_set, directory):
        for path in data_files(source, prompt_set.split):
            try:
                state = path.stat()
            except OSError as error:
                raise PromptError(
                    f"{path}: cannot be read: {reason(error)}. Check that it is a readable file."
                ) from None
            # The same wherever the command is run from.
            name = path.relative_to(directory) if path.is_relative_to(directory) else path
            found.append((visible(str(name)), state.st_size, state.st_mtime_ns))
    return found


def _rendered(rows: Iterator[Row], renderer: Renderer, shown: str) -> Iterator[Prompt | BadPrompt]:
    row = None
    for row in rows:
        yield renderer.render(row)
    if row is None:
        raise PromptError(f"{shown}: holds no rows. Add prompts to it, or remove the prompt set.")


def _rows(source: Source, split: str) -> Iterator[Row]:
    if source.format == "parquet":
        yield from parquet_rows(source)
    elif source.format == "datasets":
        yield from saved_rows(source, split)
    else:
        with opened(source) as stream:
            yield from _TEXT_READERS[source.format](stream, source.shown)
