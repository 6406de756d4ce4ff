"""Commit markers: a part of a partition exists when, and only when, its marker does.

A marker is created with its whole content or not at all, and never changed. There is no global
pointer, so that many writers never contend.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import msgspec

from corpusgen.errors import CorpusError
from corpusgen.files import put_if_absent
from corpusgen.layout import Layout
from corpusgen.schema import FORMAT_VERSION


class PartFile(msgspec.Struct, frozen=True):
    """One Parquet file of a part."""

    path: str
    """Relative to the corpus."""
    rows: int
    bytes: int
    digest: str
    """BLAKE2b-128 of the file, hexadecimal."""


class Commit(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one part holds."""

    format_version: int
    partition: int
    part: int
    files: dict[str, PartFile]
    """By kind: generations, failures, attempts; a kind without rows has no file."""
    superseded: int = 0
    """Failures of earlier parts whose samples were asked again here and ended."""
    settled_picousd: int = 0
    """What this part's attempts are known to have cost."""
    reserved_picousd: int = 0
    """What is charged for attempts whose cost nobody saw."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def rows(self, kind: str) -> int:
        """Return how many rows of a kind this part holds."""
        file = self.files.get(kind)
        return 0 if file is None else file.rows

    @property
    def ended(self) -> int:
        """How many samples more have ended with this part."""
        return self.rows("generations") + self.rows("failures") - self.superseded

    @property
    def charged_picousd(self) -> int:
        """What counts against a budget."""
        return self.settled_picousd + self.reserved_picousd


def file_digest(path: Path) -> str:
    """Return BLAKE2b-128 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def describe(path: Path, layout: Layout, rows: int) -> PartFile:
    """Return what a marker says of a file that has just been written."""
    return PartFile(
        path=str(path.relative_to(layout.root)),
        rows=rows,
        bytes=path.stat().st_size,
        digest=file_digest(path),
    )


def put(layout: Layout, commit: Commit) -> None:
    """Create a part's marker: the commit itself. Raises `CorpusError` where it stands already."""
    target = layout.commit(commit.partition, commit.part)
    if not put_if_absent(target, msgspec.json.format(msgspec.json.encode(commit)) + b"\n"):
        raise CorpusError(
            f"{target}: this part was committed by another process; run the command again."
        )


def read(path: Path) -> Commit:
    """Read one marker; raise `CorpusError` where it is torn, foreign or of a newer version."""
    try:
        commit = msgspec.json.decode(path.read_bytes(), type=Commit)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: is not a readable commit marker: {error}.") from None
    if commit.format_version > FORMAT_VERSION:
        raise CorpusError(
            f"{path}: was written in format {commit.format_version}; this corpusgen reads up to "
            f"{FORMAT_VERSION}. Install a newer one."
        )
    return commit


def read_all(layout: Layout) -> list[Commit]:
    """Return all commits, by partition and part."""
    return [read(path) for path in sorted(layout.commits.glob("*-*.json"))]


def by_partition(commits: Iterable[Commit]) -> dict[int, list[Commit]]:
    """Group commits by partition, parts in order."""
    grouped: dict[int, list[Commit]] = {}
    for commit in commits:
        grouped.setdefault(commit.partition, []).append(commit)
    return grouped
