"""The values that travel between the modules: frozen, without behaviour, without I/O."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Message = dict[str, Any]
"""One turn: `role` and `content`, and where they apply `name`, `tool_calls`, `tool_call_id`."""

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How an answer is drawn. A key that is not set is left out of requests and identities."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    max_tokens: int | None = None
    stop: list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    extra_body: dict[str, Any] | None = None
    """Further keys of the request's body, passed through as they are."""


class Prompt(msgspec.Struct, frozen=True):
    """One conversation that awaits an answer, as read and rendered from a prompt set."""

    prompt_id: str
    messages: list[Message]
    row: str
    """Where it came from, as `file:line` or `file#row`."""
    tools: list[dict[str, Any]] | None = None
    reference: str | None = None
    metadata: dict[str, Any] | None = None
    max_tokens: int | None = None
    """Its own `Sampling.max_tokens`, instead of the set's."""


class BadPrompt(msgspec.Struct, frozen=True):
    """A row that cannot be made into a prompt; `problem` is the sentence that says why."""

    prompt_id: str
    raw: bytes
    """Canonical bytes of the raw row: part of the identity of its failure."""
    row: str
    problem: str


class Sample(msgspec.Struct, frozen=True):
    """One prompt × teacher × sampling × draw: one line of the plan.

    `problem` is set, and `draw` is null, on a row that could not be rendered: it fails without an
    attempt.
    """

    sample_id: str
    """32 hexadecimal digits (BLAKE2b-128)."""
    partition: int
    prompt_set: str
    prompt_id: str
    draw: int | None
    teacher: str
    """The teacher's name in the configuration."""
    messages: list[Message]
    sampling: Sampling
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    reference: str | None = None
    metadata: dict[str, Any] | None = None
    row: str = ""
    problem: str | None = None


class Request(msgspec.Struct, frozen=True):
    """What a teacher is asked for in one attempt."""

    messages: list[Message]
    sampling: Sampling
    seed: int | None = None
    """The seed to send (31 bits), already derived for this sample; not `sampling.seed`."""
    draws: int = 1
    top_logprobs: int = 0
    """How many alternatives a position to return; 0: no logprobs at all."""
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    prompt_token_ids: bool = False
    """Whether to return the prompt's token ids, where the teacher can."""
    attempt_id: str | None = None
    """Which attempt of the ledger this is, for the provider's logs."""


class RateHint(msgspec.Struct, frozen=True):
    """What an endpoint's headers say of its limits; null where they do not."""

    requests_limit: int | None = None
    requests_remaining: int | None = None
    requests_reset_s: float | None = None
    """Until the limit is full again."""
    tokens_limit: int | None = None
    tokens_remaining: int | None = None
    tokens_reset_s: float | None = None


class Usage(msgspec.Struct, frozen=True):
    """Token counts as the teacher reports them; null where it does not."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None


class ByteStrings(msgspec.Struct, frozen=True, eq=False):
    """A list of byte strings in one buffer, so that thousands cost no Python object each.

    Raises ValueError where the lengths are not the data's. Iterate for the strings themselves.
    """

    data: bytes
    """All strings, one after the other."""
    lengths: Int32s
    """[N] bytes of each."""

    def __post_init__(self) -> None:
        if self.lengths.sum(dtype=np.int64) != len(self.data) or (self.lengths < 0).any():
            raise ValueError("the lengths of byte strings are not those of their data")

    @classmethod
    def of(cls, strings: Collection[bytes]) -> ByteStrings:
        """Join strings."""
        return cls(b"".join(strings), np.fromiter(map(len, strings), np.int32, len(strings)))

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[bytes]:
        start = 0
        for length in self.lengths.tolist():
            yield self.data[start : start + length]
            start += length


class TokenTrace(msgspec.Struct, frozen=True):
    """The tokens of one answer and the distribution at each of them.

    Position i is completion token i: `P(completion[i] | prompt, completion[<i])`. All arrays speak
    of the same T positions, the stop token included where the teacher returns it. Distributions
    are ragged and stored flat: position i owns `topk_counts[i]` entries, in descending order.
    Values are natural logarithms of the teacher's own probabilities, not renormalised over the k.
    """

    ids: Int32s | None = None
    """[T] token ids; null where the teacher gives none."""
    token_bytes: ByteStrings | None = None
    """[T] the tokens' bytes; kept where there are no ids."""
    sampled_logprob: Float32s | None = None
    """[T] NaN where unknown."""
    sampled_rank: Int32s | None = None
    """[T] 1 = most likely; 0 where unknown (the sampled token is outside the top k)."""
    topk_counts: Int32s | None = None
    """[T] entries at each position; -1 where the teacher gave no distribution."""
    topk_ids: Int32s | None = None
    """[sum of counts]"""
    topk_bytes: ByteStrings | None = None
    """[sum of counts] kept where there are no ids."""
    topk_logprobs: Float32s | None = None
    """[sum of counts]"""


class Answer(msgspec.Struct, frozen=True):
    """One draw's answer, as the teacher gave it."""

    text: str
    finish_reason: str
    """`stop`, `length`, `tool_calls`, `content_filter`, or the teacher's own word."""
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    trace: TokenTrace | None = None


class Reply(msgspec.Struct, frozen=True):
    """What one attempt brought: an answer for each draw, and what the request used."""

    answers: list[Answer]
    usage: Usage = Usage()
    """Of the whole request: the prompt once, all draws' completion tokens together."""
    prompt_token_ids: Int32s | None = None
    model_revision: str | None = None
    """The model as the server names it (`model`, `system_fingerprint`), where it does."""
    request_id: str | None = None
    http_status: int | None = None
    rate: RateHint | None = None
    """What the answer's headers say of the endpoint's limits."""


class Generation(msgspec.Struct, frozen=True):
    """A sample's answer, with the circumstances in which it came."""

    sample_id: str
    answer: Answer
    usage: Usage
    """This answer's share: the prompt's tokens, and its own completion tokens."""
    endpoint: str
    started_at: float
    """Seconds since the epoch, UTC, when the attempt that answered was sent."""
    latency_s: float
    attempts: int
    """Requests sent for this sample, the one that answered included."""
    prompt_token_ids: Int32s | None = None
    model_revision: str | None = None


class Failure(msgspec.Struct, frozen=True):
    """A sample that ended without an answer."""

    sample_id: str
    reason: str
    """One of `errors.FAILURE_REASONS`."""
    detail: str
    attempts: int


class Attempt(msgspec.Struct, frozen=True):
    """One request sent, whatever came of it. Money is in picodollars (1e-12 USD)."""

    attempt_id: str
    sample_ids: list[str]
    endpoint: str
    started_at: float
    outcome: str
    """One of `errors.ATTEMPT_OUTCOMES`."""
    latency_s: float | None = None
    http_status: int | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_picousd: int | None = None
    """Null: unknown, because the price or the usage is."""
    reserved_picousd: int | None = None
    """What was set aside before sending; null where no price is known."""
    request_id: str | None = None


class Intent(msgspec.Struct, frozen=True):
    """An attempt that is about to be sent; without an outcome it becomes `lost`."""

    attempt_id: str
    sample_ids: list[str]
    endpoint: str
    started_at: float
    reserved_picousd: int | None = None
