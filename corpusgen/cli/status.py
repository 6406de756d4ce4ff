"""Tell where a run is, from the lease, the commits and the progress that it last wrote."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from corpusgen.batching import outstanding
from corpusgen.cli.progress import progress_text
from corpusgen.corpus import Corpus
from corpusgen.events import Progress
from corpusgen.lease import Owner, holder
from corpusgen.pipeline.counting import counted


class Status(msgspec.Struct, frozen=True):
    """Where a corpus stands, and who is working on it."""

    corpus: str
    running: bool
    owner: Owner | None
    samples: int
    generations: int
    failures: int
    pending: int
    """Not committed; a running process may have answered some of them already."""
    age_s: float | None
    """Seconds since the progress was written."""
    progress: Progress | None
    batches: int
    """Submissions that are out at a provider's Batch API."""
    batched_requests: int
    batched_since: float | None
    """When the oldest of them was made, in seconds since the epoch."""


def read_status(corpus: Corpus) -> Status:
    """Read a corpus' state without touching it."""
    state = counted(corpus.layout, corpus.plan)
    owner = holder(corpus.layout.lease)
    written = _written(corpus)
    out = list(outstanding(corpus.layout))
    return Status(
        corpus=str(corpus.path),
        running=owner is not None,
        owner=owner,
        samples=state.planned,
        generations=state.generations,
        failures=state.failures,
        pending=state.pending,
        age_s=None if written is None else max(time.time() - written.updated_at, 0.0),
        progress=None if written is None else written.progress,
        batches=len(out),
        batched_requests=sum(len(each.items) for each in out),
        batched_since=min((each.made_at for each in out), default=None),
    )


class _Written(msgspec.Struct, frozen=True):
    updated_at: float
    progress: Progress


def _written(corpus: Corpus) -> _Written | None:
    try:
        content: Any = corpus.layout.status.read_bytes()
        return msgspec.json.decode(content, type=_Written)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def status_lines(status: Status) -> list[str]:
    """Return a status for people."""
    lines = [
        f"{status.corpus}: {status.samples:,} samples planned; committed: "
        f"{status.generations:,} generations, {status.failures:,} failures; "
        f"{status.pending:,} pending"
    ]
    if status.batched_since is not None:
        hours = max(time.time() - status.batched_since, 0.0) / 3600
        lines.append(
            f"{status.batched_requests:,} requests in {status.batches:,} batches are out at the "
            f"provider, the oldest for {hours:.1f} hours"
        )
    if status.owner is not None:
        lines.append(
            f"running: `corpusgen {status.owner.command}`, process {status.owner.pid} on "
            f"{status.owner.host}"
        )
        if status.progress is not None and status.age_s is not None:
            lines.append(f"{status.age_s:.0f} s ago: {progress_text(status.progress)}")
    elif status.pending:
        lines.append("stopped; run the same command again to go on")
    else:
        lines.append("complete")
    return lines
