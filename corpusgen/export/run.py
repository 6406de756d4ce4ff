"""Write one dataset: the kept generations, divided, formatted, in shards, with a card.

It knows no format: an exporter turns each table of generations into a table of rows. Rows come in
the parts' order and in each file's order, so that the same corpus gives the same files. The whole
directory is written aside and takes the old one's place at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from corpusgen import config, plugins, schema
from corpusgen.errors import ConfigError, CorpusgenError
from corpusgen.events import Exported, Observer, ignore
from corpusgen.export.interface import Exporter
from corpusgen.export.kept import (
    Absent,
    ExportInput,
    empty_table,
    find_absent,
    read_kept,
)
from corpusgen.export.shards import DatasetFile, SplitWriter
from corpusgen.export.split import TRAIN, VALIDATION, in_validation
from corpusgen.export.swap import recover, replaced
from corpusgen.files import write_file
from corpusgen.updates import Updates

EXPORT_VERSION = 1
"""Raised with every change that may change a dataset of the same settings."""

CARD = "README.md"
RECORD = "export.json"

_NO_UPDATES: Updates = {}
_COUNTED = ("prompt_tokens", "completion_tokens")


class Column(msgspec.Struct, frozen=True):
    """One column of a dataset."""

    name: str
    type: str
    """As Arrow spells it."""


class ExportResult(msgspec.Struct, frozen=True):
    """A finished dataset: what `export.json` holds, and what a card can say."""

    digest: str
    format: str
    rows: dict[str, int]
    """By split; a split without rows is not there, unless there are no rows at all."""
    files: tuple[DatasetFile, ...]
    columns: tuple[Column, ...]
    prompt_tokens: int | None
    """Of all rows together; null where no teacher counted them."""
    completion_tokens: int | None
    version: int = EXPORT_VERSION
    reused: bool = False


Card = Callable[[ExportResult], str]


def updates_digest(updates: Updates) -> str:
    """Return 32 hexadecimal digits that name references and metadata; empty without any."""
    if not updates:
        return ""
    encoded = msgspec.json.encode(dict(updates), order="sorted")
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def export_digest(
    options: config.Export, split: config.Split, source: str, updates_digest: str = ""
) -> str:
    """Return 32 hexadecimal digits that name a dataset's rows: equal digests mean equal rows.

    `source` is the digest of the curation whose verdicts are used, which covers the generations;
    `updates_digest` that of the references and metadata that take the place of theirs.
    """
    settings = msgspec.structs.asdict(options)
    del settings["name"]
    canonical = {
        "version": EXPORT_VERSION,
        "settings": settings,
        "split": msgspec.structs.asdict(split),
        "source": f"{source}+{updates_digest}" if updates_digest else source,
        "plugin": plugins.fingerprint(plugins.EXPORTERS, options.format),
    }
    encoded = msgspec.json.encode(canonical, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def export(
    options: config.Export,
    split: config.Split,
    inputs: Sequence[ExportInput],
    destination: Path,
    card: Card,
    *,
    source: str,
    updates: Updates = _NO_UPDATES,
    observer: Observer = ignore,
) -> ExportResult:
    """Write a dataset into `destination`, replacing what is there in one step.

    `updates` are the plan's latest references and metadata by sample id; they take the place of
    those with which a sample was answered.

    A dataset with the same digest is left as it is and returned with `reused` set; only its card is
    written anew where it says something else. `card` makes the card from the result. Raises
    `ConfigError` on an unknown format, `CorpusError` on files that cannot be read.
    """
    recover(destination)
    digest = export_digest(options, split, source, updates_digest(updates))
    found = read_export(destination)
    if found is not None and _stands(found, digest, destination):
        result = msgspec.structs.replace(found, reused=True)
        _refresh(destination / CARD, card(found))
    else:
        exporter: Exporter = plugins.load(plugins.EXPORTERS, options.format)(options)
        with replaced(destination) as aside:
            result = _write(options, split, inputs, updates, aside, exporter, digest)
            write_file(aside / CARD, card(result).encode())
            record = msgspec.json.format(msgspec.json.encode(result))
            write_file(aside / RECORD, record)
    name = options.name or options.format
    observer(Exported(name, str(destination), dict(result.rows), result.reused))
    return result


def read_export(directory: Path) -> ExportResult | None:
    """Return the dataset that is finished in a directory; null where there is none."""
    try:
        return msgspec.json.decode((directory / RECORD).read_bytes(), type=ExportResult)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _stands(found: ExportResult, digest: str, destination: Path) -> bool:
    return found.digest == digest and all(
        (destination / file.path).is_file()
        and (destination / file.path).stat().st_size == file.size
        for file in found.files
    )


def _refresh(path: Path, text: str) -> None:
    content = text.encode()
    if not path.is_file() or path.read_bytes() != content:
        write_file(path, content)


def _write(
    options: config.Export,
    split: config.Split,
    inputs: Sequence[ExportInput],
    updates: Updates,
    aside: Path,
    exporter: Exporter,
    digest: str,
) -> ExportResult:
    _check_columns(exporter, options.format)
    absent = find_absent(inputs, updates)
    empty = _convert(exporter, empty_table(exporter.columns, absent), options.format)
    made = empty.schema
    writers = {
        name: SplitWriter(aside, name, made, options.rows_per_shard, jsonl=options.jsonl)
        for name in (TRAIN, VALIDATION)
    }
    try:
        tokens = _fill(writers, exporter, split, inputs, updates, absent, made, options.format)
        if not any(writer.rows for writer in writers.values()):
            writers[TRAIN].write_empty()
        files = tuple(file for writer in writers.values() for file in writer.close())
    finally:
        for writer in writers.values():
            writer.abandon()
    used = {file.split for file in files}
    return ExportResult(
        digest=digest,
        format=options.format,
        rows={name: writer.rows for name, writer in writers.items() if name in used},
        files=files,
        columns=tuple(Column(field.name, str(field.type)) for field in made),
        prompt_tokens=tokens[0],
        completion_tokens=tokens[1],
    )


def _fill(
    writers: dict[str, SplitWriter],
    exporter: Exporter,
    split: config.Split,
    inputs: Sequence[ExportInput],
    updates: Updates,
    absent: Absent,
    expected: pa.Schema,
    name: str,
) -> list[int | None]:
    """Write all rows; return the sums of prompt and completion tokens."""
    tokens: list[int | None] = [None, None]
    columns = list(dict.fromkeys((*exporter.columns, "messages", *_COUNTED)))
    for part in inputs:
        for table in read_kept(part, columns, absent, updates):
            for index, column in enumerate(_COUNTED):
                tokens[index] = _add(tokens[index], pc.sum(table[column]).as_py())
            rows = _convert(exporter, table.select(list(exporter.columns)), name)
            _check_schema(rows.schema, expected, name)
            held_out = in_validation(table["messages"], split)
            for writer, side in ((writers[TRAIN], ~held_out), (writers[VALIDATION], held_out)):
                writer.write(rows.filter(pa.array(np.asarray(side))))
    return tokens


def _convert(exporter: Exporter, table: pa.Table, name: str) -> pa.Table:
    try:
        rows = exporter.convert(table)
    except CorpusgenError:
        raise
    except Exception as error:  # a plug-in may raise anything
        problem = f"{type(error).__name__}: {error}"
        raise CorpusgenError(f"the export format {name} failed: {problem}.") from error
    if rows.num_rows != table.num_rows:
        raise CorpusgenError(
            f"the export format {name} made {rows.num_rows} rows of {table.num_rows} generations; "
            "it must make one of each. Correct the format."
        )
    return rows


def _check_columns(exporter: Exporter, name: str) -> None:
    for column in exporter.columns:
        if column not in schema.GENERATIONS.names:
            raise ConfigError(
                f"export: the format {name} reads the column {column}, "
                "which generations do not have; correct the format."
            )


def _check_schema(found: pa.Schema, expected: pa.Schema, name: str) -> None:
    if not found.equals(expected):
        raise CorpusgenError(
            f"the export format {name} changes its columns from table to table "
            f"({', '.join(expected.names)} became {', '.join(found.names)}). Correct the format."
        )


def _add(total: int | None, more: int | None) -> int | None:
    return more if total is None else total + (more or 0)
