"""Find the files of a prompt set, and open them as streams of uncompressed bytes."""

from __future__ import annotations

import glob
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec
import pyarrow as pa

from corpusgen.config import PromptSet
from corpusgen.errors import PromptError
from corpusgen.prompts.rows import visible

Format = Literal["jsonl", "json", "csv", "parquet", "datasets"]

_ENDINGS: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
}
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_DATASET_FILES = ("state.json", "dataset_dict.json", "dataset_info.json")
_BUFFER_BYTES = 1 << 20

#: How a file that is something else begins, and what to do about it.
_FOREIGN: dict[bytes, str] = {
    b"\x1f\x8b": "is compressed with gzip; let its name end in .gz",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd; let its name end in .zst",
    b"PK\x03\x04": "is a zip archive; unpack it",
    b"PAR1": "is a Parquet file; set format: parquet",
    b"ARROW1": "is an Arrow file; give its dataset's directory, or save it as Parquet",
    b"\xff\xfe": "is UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "is UTF-16 text; save it as UTF-8",
}


class Source(msgspec.Struct, frozen=True):
    """One file, or one directory of a saved dataset."""

    path: Path
    shown: str
    """As locators and messages name it: the user's own path, under the directory it starts in."""
    format: Format
    compression: str | None = None


def find_sources(prompt_set: PromptSet, directory: Path) -> list[Source]:
    """Return the files that a set's `path` names, sorted, with their formats.

    Raises `PromptError` where there are none, or where a format cannot be told.
    """
    assert prompt_set.path is not None
    path = directory / Path(prompt_set.path).expanduser()
    if path.exists():
        return [_source(path, prompt_set.format)]
    if not glob.has_magic(prompt_set.path):
        raise PromptError(f"{path}: no such file or directory. Correct the path of the prompt set.")
    pattern = str(Path(prompt_set.path).expanduser())
    # `Path.glob` takes no absolute pattern.
    matches = glob.glob(pattern, root_dir=directory, recursive=True)  # noqa: PTH207
    paths = [directory / match for match in sorted(matches)]
    found = [path for path in paths if path.is_file() or _is_dataset(path)]
    if not found:
        raise PromptError(f"{path}: no file matches this pattern. Correct the prompt set's path.")
    return [_source(path, prompt_set.format) for path in found]


def data_files(source: Source, split: str) -> list[Path]:
    """Return the files whose content a source's rows come from."""
    if source.format != "datasets":
        return [source.path]
    root = source.path / split if (source.path / split).is_dir() else source.path
    return [
        path
        for path in sorted(root.rglob("*"))
        # `cache-*` files are what `datasets` itself leaves beside the data.
        if path.name in _DATASET_FILES
        or (path.suffix == ".arrow" and not path.name.startswith("cache-"))
    ]


@contextmanager
def opened(source: Source) -> Iterator[io.BufferedReader]:
    """Yield a file's uncompressed bytes.

    Raises `PromptError` for a file that is visibly of another kind, and when the file or its
    compression cannot be read, at the place where that shows.
    """
    try:
        with _open(source) as stream:
            _refuse_foreign(source, stream)
            yield stream
    except OSError as error:
        if source.compression is None:
            advice = "Check that it is a readable file."
        else:
            advice = f"Restore the file, or compress it again with {source.compression}."
        raise PromptError(f"{source.shown}: cannot be read: {reason(error)}. {advice}") from None


def reason(error: BaseException) -> str:
    """Return the first line of a foreign error, without a path and without a full stop."""
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(". ") if lines else type(error).__name__


def _source(path: Path, chosen: Format | None) -> Source:
    shown = visible(str(path))
    if path.is_dir():
        if chosen not in (None, "datasets") or not _is_dataset(path):
            raise PromptError(
                f"{shown}: is a directory, but not a saved dataset. "
                f"Name its files with a pattern such as {path / '*.jsonl'}."
            )
        return Source(path, shown, "datasets")
    ending = path.suffix.lower()
    compression = _COMPRESSIONS.get(ending)
    if compression is not None:
        ending = Path(path.stem).suffix.lower()
    known = chosen or _ENDINGS.get(ending)
    if known is None:
        raise PromptError(
            f"{shown}: the ending {ending or path.suffix or '(none)'} says no format. "
            "Set the prompt set's format to jsonl, json, csv or parquet."
        )
    if known == "datasets":
        raise PromptError(f"{shown}: is a file. With format: datasets, name a saved directory.")
    if known == "parquet" and compression is not None:
        raise PromptError(f"{shown}: Parquet is compressed inside. Unpack the file.")
    return Source(path, shown, known, compression)


def _is_dataset(path: Path) -> bool:
    return any((path / name).is_file() for name in _DATASET_FILES)


def _open(source: Source) -> io.BufferedReader:
    if source.compression is None:
        return io.BufferedReader(io.FileIO(source.path), _BUFFER_BYTES)
    stream = pa.CompressedInputStream(pa.OSFile(str(source.path)), source.compression)
    return io.BufferedReader(stream, _BUFFER_BYTES)


def _refuse_foreign(source: Source, stream: io.BufferedReader) -> None:
    start = stream.peek(8)[:8]
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise PromptError(f"{source.shown}: {what}.")
