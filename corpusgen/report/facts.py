"""What a report says, as plain values: what the pipeline knows, and what is read from the files."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from corpusgen.report.examples import Example, TokenBytes, load_examples
from corpusgen.report.histogram import Histogram
from corpusgen.report.scan import (
    LOGPROB_STEP,
    LOWEST_LOGPROB,
    Input,
    Mass,
    Tally,
    scan,
    topk_mass,
)


class SetFacts(msgspec.Struct, frozen=True):
    """The generations of one prompt set by one teacher."""

    prompt_set: str
    teacher: str
    generations: int
    kept: int | None
    """Null: not curated."""
    completion_tokens: int


class DropFacts(msgspec.Struct, frozen=True):
    """Generations that were dropped for one reason."""

    filter: str
    reason: str
    count: int


class GenerationFacts(msgspec.Struct, frozen=True):
    """What is read from the generations and their verdicts."""

    generations: int
    kept: int | None
    """Null: not curated."""
    prompt_tokens: int
    completion_tokens: int
    uncounted: int
    """Answers whose tokens the teacher did not count."""
    finish_reasons: dict[str, int]
    dropped: tuple[DropFacts, ...]
    sets: tuple[SetFacts, ...]
    lengths: Histogram
    """Completion tokens an answer."""
    logprobs: Histogram
    """Mean logprob of an answer's sampled tokens, in nats."""
    mass: Mass | None
    examples: tuple[Example, ...]


class TeacherFacts(msgspec.Struct, frozen=True):
    """Who answered."""

    name: str
    model: str
    revision: str | None = None
    license: str | None = None
    training_allowed: bool | None = None


class PromptSetFacts(msgspec.Struct, frozen=True):
    """What was asked."""

    name: str
    source: str | None = None
    prompts: int | None = None
    samples: int | None = None


class CostFacts(msgspec.Struct, frozen=True):
    """Attempts with one outcome at one endpoint."""

    endpoint: str
    outcome: str
    attempts: int
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: str | None = None
    """In words, such as `$1.25`."""


class DatasetFacts(msgspec.Struct, frozen=True):
    """A dataset that was written."""

    name: str
    rows: dict[str, int]
    """By split."""


class ReportFacts(msgspec.Struct, frozen=True):
    """Everything that a report says."""

    title: str
    corpus_id: str
    corpusgen_version: str
    created: str
    """When the report was made."""
    planned: int
    failures: dict[str, int]
    """By reason."""
    pending: int
    teachers: tuple[TeacherFacts, ...]
    prompt_sets: tuple[PromptSetFacts, ...]
    generations: GenerationFacts
    costs: tuple[CostFacts, ...] = ()
    datasets: tuple[DatasetFacts, ...] = ()
    cost: str | None = None
    """Of the whole corpus, in words."""
    wall_s: float | None = None
    """Seconds spent generating, all runs together."""
    notes: tuple[str, ...] = ()
    """Sentences that the reader should not miss."""


def gather(
    inputs: Sequence[Input], examples: int = 20, token_bytes: TokenBytes | None = None
) -> GenerationFacts:
    """Read generations and verdicts as a stream, and return what a report says of them.

    Examples are those with the smallest hashes of their sample ids, up to a quarter of them dropped
    ones: the same corpus shows the same. `token_bytes` gives the text of token ids where the files
    hold ids alone. Raises `CorpusError` where a file cannot be read.
    """
    tally = scan(inputs, examples)
    return GenerationFacts(
        generations=tally.generations,
        kept=_kept(tally),
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        uncounted=tally.uncounted,
        finish_reasons=dict(tally.finish_reasons.most_common()),
        dropped=tuple(
            DropFacts(name, reason, count) for (name, reason), count in tally.dropped.most_common()
        ),
        sets=_sets(tally),
        lengths=tally.lengths.histogram(unit="tokens"),
        logprobs=tally.logprobs.histogram(LOGPROB_STEP, LOWEST_LOGPROB, "nats"),
        mass=topk_mass([generations for generations, _ in inputs]),
        examples=load_examples(inputs, tally.examples(), token_bytes),
    )


def _kept(tally: Tally) -> int | None:
    return tally.kept_by_set.total() if tally.curated else None


def _sets(tally: Tally) -> tuple[SetFacts, ...]:
    return tuple(
        SetFacts(
            name,
            teacher,
            count,
            tally.kept_by_set[name, teacher] if tally.curated else None,
            tally.tokens_by_set[name, teacher],
        )
        for (name, teacher), count in sorted(tally.by_set.items())
    )
