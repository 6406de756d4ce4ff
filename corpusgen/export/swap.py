"""Replace a directory as a whole: written aside, synced, renamed into place.

POSIX cannot exchange two directories in one portable step, so the old one is renamed away first. A
crash between the two renames leaves the old one beside its place, from where `recover` brings it
back; no instant loses both. Only one process may work on a directory at a time.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from corpusgen.files import TEMPORARY_SUFFIX, sync_directory, temporary_name

OLD_SUFFIX = ".old"


def recover(directory: Path) -> None:
    """Bring back what a crash left renamed away, and delete every other leftover."""
    if not directory.parent.is_dir():
        return
    for old in _beside(directory, OLD_SUFFIX):
        if directory.exists():
            shutil.rmtree(old)
        else:
            old.rename(directory)
            sync_directory(directory.parent)
    for unfinished in _beside(directory, TEMPORARY_SUFFIX):
        shutil.rmtree(unfinished)


@contextmanager
def replaced(directory: Path) -> Iterator[Path]:
    """Yield an empty directory that takes the place of `directory` on success, else vanishes.

    What is written into it must be synced file by file; directories are synced here.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    aside = temporary_name(directory)
    aside.mkdir()
    try:
        yield aside
        for folder, _, _ in os.walk(aside):
            sync_directory(Path(folder))
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    _swap(directory, aside)


def _swap(directory: Path, aside: Path) -> None:
    old = directory.with_name(f"{directory.name}.{uuid.uuid4().hex[:12]}{OLD_SUFFIX}")
    if directory.exists():
        directory.rename(old)
    aside.rename(directory)
    sync_directory(directory.parent)
    shutil.rmtree(old, ignore_errors=True)


def _beside(directory: Path, suffix: str) -> list[Path]:
    """Return the leftovers of this directory alone: `messages` is not `messages.v2`."""
    pattern = re.compile(re.escape(directory.name) + r"\.[0-9a-f]{12}" + re.escape(suffix))
    return [path for path in directory.parent.iterdir() if pattern.fullmatch(path.name)]
