"""Keep submissions on disk, from before they are sent until what they brought is committed.

They are files of their own and not journal records: a journal's unfinished attempts are lost when
their process dies, while a batch goes on without us.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from corpusgen.errors import CorpusError
from corpusgen.files import TEMPORARY_SUFFIX, put_if_absent, write_file
from corpusgen.layout import Layout
from corpusgen.teachers.interface import BatchTeacher

_PLACE_SUFFIX = ".place.json"


class Item(msgspec.Struct, frozen=True, array_like=True):
    """One request of a submission; its id is the attempt's."""

    item_id: str
    partition: int
    sample_ids: list[str]
    reserved_picousd: int | None
    """Null: its price was not known when it was sent, or nothing limits its answers."""
    most_tokens: tuple[int, int] | None = None
    """Of the prompt and of all answers, at worst, to reckon by a later price; null: reckoned, or
    without limit."""


class Submission(msgspec.Struct, frozen=True):
    """A list of requests that goes out as one file; written once, before anything is sent."""

    submission_id: str
    teacher: dict[str, Any]
    """Its identity."""
    endpoint: str
    made_at: float
    """Seconds since the epoch."""
    tokens: int
    """Prompt tokens, as estimated when it was made."""
    items: list[Item]

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions of its samples."""
        return frozenset(item.partition for item in self.items)


class Place(msgspec.Struct, frozen=True):
    """Where a submission is at the provider; there is none before its file is uploaded."""

    file_id: str
    sent_at: float
    """When a batch was first asked for; until `batch_id` is known it may or may not be made."""
    batch_id: str | None = None


def identity_of(teacher: BatchTeacher) -> dict[str, Any]:
    """Return a teacher's identity as submissions keep it."""
    found: dict[str, Any] = msgspec.to_builtins(teacher.identity)
    return found


def is_of(submission: Submission, teacher: BatchTeacher) -> bool:
    """Whether a submission was made for a teacher, or for another one of the same identity."""
    return submission.teacher == identity_of(teacher)


def write(layout: Layout, submission: Submission) -> None:
    """Put a submission on disk."""
    put_if_absent(layout.submission(submission.submission_id), msgspec.json.encode(submission))


def write_place(layout: Layout, submission_id: str, place: Place) -> None:
    """Write down where a submission is now."""
    write_file(layout.submission_place(submission_id), msgspec.json.encode(place))


def read(layout: Layout, submission_id: str) -> Submission:
    """Return a submission; raise `CorpusError` where its file cannot be read."""
    path = layout.submission(submission_id)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Submission)
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{path}: cannot be read: {error}. It lists requests that are out at a provider; "
            "restore it, or delete it to send them again and pay twice."
        ) from None


def place_of(layout: Layout, submission_id: str) -> Place | None:
    """Return where a submission is, null where nothing was asked for yet."""
    try:
        return msgspec.json.decode(layout.submission_place(submission_id).read_bytes(), type=Place)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        path = layout.submission_place(submission_id)
        raise CorpusError(
            f"{path}: cannot be read: {error}. Delete it while {submission_id}.json stands: the "
            "batch is then found by its metadata."
        ) from None


def remove_place(layout: Layout, submission_id: str) -> None:
    """Take back that a batch was asked for: it certainly was not made."""
    layout.submission_place(submission_id).unlink(missing_ok=True)


def remove(layout: Layout, submission_id: str) -> None:
    """Forget a submission: all that it brought is committed, or it never was a batch."""
    layout.submission(submission_id).unlink(missing_ok=True)
    layout.submission_place(submission_id).unlink(missing_ok=True)


def outstanding(layout: Layout) -> Iterator[Submission]:
    """Yield the submissions on disk, the oldest first by name of file."""
    for path in sorted(layout.batches.glob("*.json")):
        if not path.name.endswith(_PLACE_SUFFIX):
            yield read(layout, path.stem)


def clean(layout: Layout) -> None:
    """Delete what dead processes left beside the submissions; needs the corpus' lease."""
    for path in layout.batches.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink(missing_ok=True)
    for path in layout.batches.glob(f"*{_PLACE_SUFFIX}"):
        submission_id = path.name.removesuffix(_PLACE_SUFFIX)
        if not layout.submission(submission_id).exists():
            path.unlink(missing_ok=True)
