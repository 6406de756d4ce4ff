"""What a run tells its observer while it goes on. The library itself never prints."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Event(msgspec.Struct, frozen=True, tag_field="event", tag=str.lower):
    """A thing that happened; encoded as one JSON object with its name under `event`."""


class Log(Event, frozen=True, tag="log"):
    """A sentence for the user."""

    level: str
    """`info`, `warning`, or `debug` (shown with `-v`)."""
    message: str


class StageStarted(Event, frozen=True, tag="stage"):
    """A stage of the pipeline begins: plan, generate, curate, export, report."""

    stage: str


class Planned(Event, frozen=True, tag="planned"):
    """The plan stands."""

    samples: int
    new_samples: int
    partitions: int
    aliases: int
    retired: int
    bad_prompts: int


class TokenRange(msgspec.Struct, frozen=True):
    """Tokens of answers."""

    low: int
    expected: int
    high: int | None
    """The most that `max_tokens` allows; null without it."""


class CostRange(msgspec.Struct, frozen=True):
    """Dollars as decimal text; null where a price is not known."""

    low: str | None
    expected: str | None
    high: str | None
    """The worst case that a budget reserves, each request sent once; null without `max_tokens`."""


class SetEstimate(msgspec.Struct, frozen=True):
    """What one prompt set will take, as it was planned once."""

    prompt_set: str
    teacher: str
    samples: int
    requests: int
    prompt_tokens: int
    """Of what is sent; a request for several draws sends its prompt once."""
    counted: str
    """How these were counted."""
    completion_tokens: TokenRange
    reckoned: str
    """How those were reckoned."""
    cost_usd: CostRange
    price: str
    """Where it is from; `unknown` where it is not known."""
    wall_s: float | None
    """At the limits; null: none is known that says."""
    wall_limit: str
    """What that is set by."""
    disk_bytes: int


class Estimated(Event, frozen=True, tag="estimated"):
    """What is still to be asked will probably take."""

    samples: int
    requests: int
    prompt_tokens: int
    completion_tokens: TokenRange
    cost_usd: CostRange
    """Of tokens."""
    gpu_usd: str | None
    """Of machines with a price, for `wall_s`; null where there is none or the time is not known."""
    wall_s: float | None
    """Teachers work side by side: the longest one's; null where one of them is not known."""
    wall_limit: str
    disk_bytes: int
    sets: tuple[SetEstimate, ...]


class Progress(Event, frozen=True, tag="progress"):
    """How far the fan-out is. Counts cover the whole corpus; rates cover this process."""

    done: int
    """Samples that ended: generations and failures, earlier runs included."""
    total: int
    failures: dict[str, int]
    """By reason, of this process."""
    in_flight: int
    completion_tokens: int
    """Answered by this process."""
    tokens_per_s: float
    """Over the last half minute."""
    elapsed_s: float
    remaining_s: float | None
    cost_usd: str | None
    """Decimal text; null where no price is known."""
    retries: int


class Committed(Event, frozen=True, tag="committed"):
    """A part of a partition is on disk for good."""

    partition: int
    part: int
    generations: int
    failures: int
    complete: bool


class Curated(Event, frozen=True, tag="curated"):
    """A curation stands."""

    digest: str
    generations: int
    kept: int
    dropped: dict[str, int]
    """By filter."""
    reused: bool


class Exported(Event, frozen=True, tag="exported"):
    """A dataset stands."""

    name: str
    path: str
    rows: dict[str, int]
    """By split."""
    reused: bool


class Finished(Event, frozen=True, tag="finished"):
    """The command ends; the last event of every run."""

    exit_code: int
    message: str
    samples: int
    generations: int
    failures: int
    pending: int
    kept: int | None = None
    cost_usd: str | None = None
    dataset: str | None = None
    report: str | None = None


class Observer(Protocol):
    """Receive events; called from the event loop's thread, must return at once."""

    def __call__(self, event: Event) -> None:
        """Take one event."""


def ignore(event: Event) -> None:
    """Take an event and do nothing: the observer of a run that nobody watches."""
    del event
