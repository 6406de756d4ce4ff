"""Decide what becomes of samples that `--add` keeps under an older variant of their set.

Their ids are no longer asked for, so they follow their prompt. A prompt is known again by its
messages, tools and `max_tokens` (its own, or else the older variant's) where the older variant
renders rows as the asked one does (only sampling, teacher or response format differ), and by its
`prompt_id` where template, system message, tools or columns differ.

- The prompt occurs in its set: the sample stays. Retired before, it is restored, unless it was
  retired while its own variant was the one asked: then the row was edited, or n lowered.
- It does not occur: the sample is retired. Known by `prompt_id`, it is retired only if the asked
  variant once held that id; ids that are made from the messages differ between templates, so that
  an id which never occurred says nothing.
- Nothing can be said: it stays, and is restored where it was retired because the set left.

Draws follow their prompt whatever `n` is now. Nothing is followed from a set to another: samples
that were planned under another set's name live and leave with that name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from corpusgen import identity
from corpusgen.plan.requests import SetRequest
from corpusgen.plan.rows import digest64, stored_message, text
from corpusgen.plan.segments import Plan, Run
from corpusgen.plan.spill import Buckets, Marks, Rows
from corpusgen.types import Prompt, Sampling

_ASKED = 0
_HELD = 1
_FOLLOWER = 2
_COLUMNS = ["sample_id", "prompt_id", "messages", "tools", "sampling", "reference", "metadata"]


class Fate(msgspec.Struct, frozen=True, array_like=True):
    """What becomes of a sample of an older variant whose id is not asked for."""

    sample: str
    extra: int
    retired: bool
    """As it stands now."""
    leaves: bool
    returns: bool


class _Follower(msgspec.Struct, frozen=True, array_like=True):
    sample: str
    extra: int
    retired: bool
    by_content: bool
    left: bool
    """Whether it was retired because its set left."""
    own: bool
    """Whether it was retired while its own variant was asked."""


class Followers:
    """The samples of older variants, beside the prompts of their sets as they are now."""

    def __init__(self, directory: Path, existing: Plan, requests: Sequence[SetRequest]) -> None:
        self._existing = existing
        self._asked = {request.name: request.variant for request in requests}
        self._keys = {key: value for p in existing.plannings for key, value in p.variants.items()}
        self._keys |= {request.variant: request.keys for request in requests}
        self._variants: dict[str, set[str]] = {}
        for run in filter(self.follow, existing.runs):
            self._variants.setdefault(run.prompt_set, set()).add(run.variant)
        self._prompts = Buckets(directory / "prompts")
        self._samples = Rows(directory / "samples")
        self._count = 0

    def __enter__(self) -> Followers:
        return self

    def __exit__(self, *error: object) -> None:
        self._samples.__exit__(*error)

    def follow(self, run: Run) -> bool:
        """Tell whether a run's samples are of an older variant of a set that is asked."""
        return self._asked.get(run.prompt_set, run.variant) != run.variant

    def ask(self, prompt_set: str, prompt: Prompt) -> None:
        """Note that a prompt occurs in its set."""
        variants = self._variants.get(prompt_set)
        if variants is None:
            return
        messages = [stored_message(message) for message in prompt.messages]
        for variant in variants:
            longest = prompt.max_tokens or self._keys[variant].get("sampling.max_tokens")
            content = _content_key(prompt_set, variant, messages, text(prompt.tools), longest)
            self._prompts.add(content, _ASKED, 0)
        self._prompts.add(_id_key(prompt_set, prompt.prompt_id), _ASKED, 0)

    def hold(self, partition: int) -> None:
        """Note the prompts that a partition of an asked variant holds."""
        prompt_set = self._existing.run_of(partition).prompt_set
        if prompt_set in self._variants:
            for prompt_id in self._existing.read(partition, ["prompt_id"])["prompt_id"].to_pylist():
                self._prompts.add(_id_key(prompt_set, prompt_id), _HELD, 0)

    def add(self, partition: int, retirements: dict[str, int]) -> None:
        """Take a partition of an older variant; `retirements` are plannings by sample id."""
        run = self._existing.run_of(partition)
        alike = self._rendering(run.variant) == self._rendering(self._asked[run.prompt_set])
        for row in self._existing.read(partition, _COLUMNS).to_pylist():
            by_content = alike or row["messages"] is None  # a bad row that was mended leaves
            if by_content:
                messages, longest = row["messages"] or [], _longest(row["sampling"])
                key = _content_key(run.prompt_set, run.variant, messages, row["tools"], longest)
            else:
                key = _id_key(run.prompt_set, row["prompt_id"])
            self._prompts.add(key, _FOLLOWER, self._count)
            number = retirements.get(row["sample_id"])
            planning = None if number is None else self._existing.plannings[number - 1]
            follower = _Follower(
                sample=row["sample_id"],
                extra=digest64(row["reference"], row["metadata"]),
                retired=planning is not None,
                by_content=by_content,
                left=planning is not None and run.prompt_set not in planning.sets,
                own=planning is not None and planning.asked.get(run.prompt_set) == run.variant,
            )
            self._samples.add(follower)
            self._count += 1

    def fates(self) -> Iterator[Fate]:
        """Yield what becomes of each sample that was added."""
        asked, held = Marks(self._count), Marks(self._count)
        for bucket in range(256):
            entries = self._prompts.read(bucket)
            followers = entries[entries["extra"] == _FOLLOWER]
            for marks, role in ((asked, _ASKED), (held, _HELD)):
                keys = entries["id"][entries["extra"] == role]
                marks.add(followers["ordinal"][np.isin(followers["id"], keys)])
        for number, values in enumerate(self._samples.read()):
            follower = msgspec.convert(values, _Follower)
            occurs = number in asked
            gone = not occurs and (follower.by_content or number in held)
            returns = not follower.own if occurs else follower.left and not gone
            yield Fate(follower.sample, follower.extra, follower.retired, gone, returns)

    def _rendering(self, variant: str) -> dict[str, Any]:
        """Return the keys that decide which messages and tools a row becomes."""
        keys = self._keys[variant]
        return {
            key: value
            for key, value in keys.items()
            if key.startswith("prompts.") and key != "prompts.response_format"
        }


def _content_key(
    prompt_set: str, variant: str, messages: list[Any], tools: str | None, longest: int | None
) -> str:
    said = [{k: v for k, v in message.items() if v is not None} for message in messages]
    return identity.digest(["content", prompt_set, variant, said, tools, longest])


def _longest(sampling: str) -> int | None:
    return msgspec.json.decode(sampling, type=Sampling).max_tokens


def _id_key(prompt_set: str, prompt_id: str) -> str:
    return identity.digest(["id", prompt_set, prompt_id])
