"""Read out of a failed batch what is to be done with its requests: nothing of it was run."""

from __future__ import annotations

import msgspec

from corpusgen.batching.submissions import Submission
from corpusgen.errors import (
    CorpusgenError,
    ExitCode,
    ModelNotFound,
    QuotaExhausted,
    Rejected,
    RunStopped,
    TeacherError,
)
from corpusgen.teachers.interface import Batch


class Verdict(msgspec.Struct, frozen=True):
    """What a failed batch means."""

    said: str
    """The provider's first reason, as a sentence."""
    refusals: dict[str, TeacherError]
    """Requests that will never be taken, by item id."""
    full: bool = False
    """Whether the rest is to be sent later."""
    error: CorpusgenError | None = None
    """Why the run ends."""


def verdict(submission: Submission, batch: Batch) -> Verdict:
    """Decide what follows from the problems of a batch that failed."""
    where = f"endpoint {submission.endpoint}: the batch {batch.batch_id} was refused"
    said = next((p.message.rstrip(". ") + "." for p in batch.problems), "no reason is given.")
    kinds = {problem.kind for problem in batch.problems}
    if "quota" in kinds:
        topped = f"{where}: {said} Top up the account, then run the same command again."
        return Verdict(said, {}, error=QuotaExhausted(topped))
    if "model" in kinds:
        named = f"{where}: {said} Check the teacher's model and the endpoint's base_url."
        return Verdict(said, {}, error=ModelNotFound(named))
    if "full" in kinds:
        return Verdict(said, {}, full=True)
    refusals: dict[str, TeacherError] = {
        submission.items[problem.line - 1].item_id: Rejected(f"{where}: {problem.message}")
        for problem in batch.problems
        if problem.line is not None and 0 < problem.line <= len(submission.items)
    }
    if refusals:
        return Verdict(said, refusals)
    return Verdict(said, {}, error=RunStopped(f"{where}: {said}", ExitCode.ERROR))
