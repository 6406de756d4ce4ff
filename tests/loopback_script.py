"""What the loopback server is told to do, and what it writes down of each request."""

from __future__ import annotations

from typing import Literal

import msgspec

from tests.loopback_limits import TpmRule


class Script(msgspec.Struct, frozen=True):
    """How the server behaves where a prompt has no marker."""

    latency_ms: float = 0.0
    """Mean, where `latency_sigma` is set."""
    latency_sigma: float = 0.0
    """Of a log-normal distribution; 0: each answer takes as long."""
    slow_ms: float = 2000.0
    answer_tokens: int = 24
    """Mean tokens an answer; `max_tokens` cuts it."""
    lengths: Literal["uniform", "lognormal", "equal"] = "uniform"
    length_sigma: float = 1.0
    """Of log-normal lengths."""
    variants: int | None = None
    """Answer with one of so many bodies, each built once: for benchmarks of the other side."""
    fault: str | None = None
    """What happens to every request from now on, by the name of its marker, such as 500."""
    shares: dict[str, float] = {}
    """Share of the requests by fault."""
    seed: int = 0
    retry_after: str | None = None
    """The value of the Retry-After header of 429 and 503."""
    capacity: int | None = None
    """Requests in flight above which it answers 429."""
    slots: int | None = None
    """Answers that are decoded at once; more wait in line."""
    tokens_per_s: float = 100.0
    """Of each slot."""
    collapse_above: int | None = None
    """Requests in flight above which every slot slows down, and the throughput falls."""
    rpm: int | None = None
    """Requests a minute, enforced over a sliding window; more are answered with 429."""
    tpm: int | None = None
    """Tokens a minute, charged by `tpm_rule`."""
    tpm_rule: TpmRule = "usage"
    window_s: float = 60.0
    """Length of the sliding window; the rates stay what they are a minute."""
    rate_headers: bool = False
    """Send `x-ratelimit-*` with each answer, and Retry-After with a 429 of rpm or tpm."""
    bill_cancelled: bool = False
    """Bill the whole answer of a request whose client left, as a provider does that decodes on."""
    api_key: str | None = None
    """Where set, requests without it are answered with 401."""
    max_top_logprobs: int = 20
    most_choices: int | None = None
    """Choices that an answer holds at the most, whatever `n` asks for."""
    refuse_n: bool = False
    """Answer 400 where `n` is above 1."""
    keep_bodies: bool = True
    """Whether the log holds each request's body."""


class Record(msgspec.Struct):
    """One request as the server saw it."""

    number: int
    at: float
    path: str
    prompt: str
    seen: int
    """How often this prompt had come, this time included."""
    in_flight: int
    """Requests in flight, this one included."""
    draws: int
    seed: int | None
    authorization: str | None
    attempt_id: str | None
    """As the client names the request (`X-Client-Request-Id`)."""
    body: msgspec.Raw | None
    fault: str | None = None
    status: int | None = None
    """Null: no status was sent, or the client left first."""
    cancelled: bool = False
    prompt_tokens: int = 0
    """Billed; 0 where nothing is. A torn answer is billed, an error is not."""
    completion_tokens: int = 0
    charged_tokens: int = 0
    """What counts against `tpm`."""
    latency_s: float = 0.0

    @property
    def is_underway(self) -> bool:
        """Whether it would have been answered, had its client stayed."""
        return self.status is None and self.fault in (None, "slow", "torn")

    @property
    def ended_at(self) -> float:
        """When it was answered, or given up."""
        return self.at + self.latency_s
