"""Write files so that a crash at any instant leaves either the old state or the new one.

Only local (and POSIX network) file systems are spoken to here.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
"""Ends every name that is not yet a result; such files may be deleted when their writer is dead."""


def sync_directory(directory: Path) -> None:
    """Make the names in a directory survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make a file's content survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(target: Path) -> Path:
    """Return a name beside `target` that no other writer uses."""
    return target.with_name(f"{target.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a temporary path; on success sync it and rename it to `target`, else remove it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    try:
        yield temporary
        sync_file(temporary)
        temporary.rename(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(target.parent)


def write_file(target: Path, content: bytes) -> None:
    """Replace a file's content in one step."""
    with written_aside(target) as temporary:
        temporary.write_bytes(content)


def put_if_absent(target: Path, content: bytes) -> bool:
    """Create a file with its whole content unless it exists; return whether it was created.

    A hard link makes the name and the content appear together, and fails when the name is taken.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(target)
    try:
        temporary.write_bytes(content)
        sync_file(temporary)
        try:
            os.link(temporary, target)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(target.parent)
    return True
