"""What the configuration asks of its prompt sets, and which changes of it are refused.

A change of an identity key would give every sample of a set another id: all would be paid again
and the old ones retired. It is refused under the set's own name, and under a new name that reads
the files of a set that leaves at the same time. A set that is renamed and whose files are moved
and rewritten is a new set: nothing here reads a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from corpusgen import identity
from corpusgen.errors import PlanConflict
from corpusgen.plan.segments import Plan
from corpusgen.types import BadPrompt, Prompt, Sampling


class SetRequest(msgspec.Struct, frozen=True):
    """What the configuration asks of one prompt set."""

    name: str
    teacher: str
    """The teacher's name in the configuration."""
    teacher_identity: dict[str, Any]
    """`model` and, where set, `revision`, `adapter`, `template_args`."""
    sampling: Sampling
    n: int
    keys: dict[str, Any]
    """The identity keys by their path in the configuration, for messages."""
    inputs: list[tuple[str, int, int]]
    """Names, sizes and times of the files, to tell whether anything changed."""
    read: Callable[[], Iterable[Prompt | BadPrompt]]
    response_format: dict[str, Any] | None = None

    @property
    def variant(self) -> str:
        """Digest of the identity keys."""
        return identity.digest(self.keys)

    @property
    def sources(self) -> list[str]:
        """Digests by which the files are known again: of their names, of their sizes and times."""
        names = [name for name, *_ in self.inputs]
        states = [state for _, *state in self.inputs if any(state)]
        return [identity.digest(known) for known in (names, states) if known]


def request_digest(requests: Sequence[SetRequest], skip_bad_prompts: bool) -> str:
    """Return a digest of all that is asked: equal means that there is nothing to plan."""
    asked = [
        {"set": request.name, "keys": request.keys, "n": request.n, "inputs": request.inputs}
        for request in requests
    ]
    return identity.digest({"asked": asked, "skip_bad_prompts": skip_bad_prompts})


def check_conflicts(existing: Plan, requests: Sequence[SetRequest]) -> None:
    """Raise `PlanConflict` where samples would be orphaned by a changed identity key."""
    for request in requests:
        planned = _variants_of(existing, request.name)
        if planned and request.variant not in planned:
            old = list(planned.values())[-1]
            raise PlanConflict(
                f"prompt set {request.name}: {_changed_keys(old, request.keys)}. The samples that "
                "are planned under the old value would be orphaned: put it back, use another "
                "`out`, or give --add to keep both side by side."
            )
        if not planned:
            _check_renamed(existing, request, requests)


def _variants_of(existing: Plan, prompt_set: str) -> dict[str, dict[str, Any]]:
    """Return the identity keys under which a set was asked, by variant, the latest last."""
    found: dict[str, dict[str, Any]] = {}
    for planning in existing.plannings:
        variants = [run.variant for run in planning.runs if run.prompt_set == prompt_set]
        if prompt_set in planning.asked:  # a set whose samples all stand in others has no runs
            variants.append(planning.asked[prompt_set])
        for variant in variants:
            found.pop(variant, None)
            found[variant] = planning.variants[variant]
    return found


def _check_renamed(existing: Plan, request: SetRequest, requests: Sequence[SetRequest]) -> None:
    if not existing.plannings:
        return
    last = existing.plannings[-1]
    names = {other.name for other in requests}
    variants = {other.variant for other in requests if set(other.sources) & set(request.sources)}
    for name, variant in last.asked.items():
        shared = set(last.sources.get(name, ())) & set(request.sources)
        if name not in names and shared and variant not in variants:
            changed = _changed_keys(last.variants[variant], request.keys)
            raise PlanConflict(
                f"prompt set {request.name} reads the files of {name}, which is no longer there, "
                f"and {changed}. The samples of {name} would be retired and its prompts asked "
                "again: put the name or the value back, use another `out`, or give --add to go on."
            )


def _changed_keys(old: dict[str, Any], new: dict[str, Any]) -> str:
    changes = [
        f"{key} changed from {_short(old.get(key))} to {_short(new.get(key))}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    return ", ".join(changes)


def _short(value: Any) -> str:
    text = "unset" if value is None else msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
