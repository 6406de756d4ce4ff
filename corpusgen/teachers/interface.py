"""What a teacher promises. A new teacher is a class with these members and a `create` function.

One call of `generate` is one attempt: no retry, no rate limit, no file, no price inside. What an
SDK or an engine raises becomes a `TeacherError` there, so that the modules around it (`limits`,
`retry`, `fanout`) see one vocabulary.

Register `create(key: str, options: <config struct>) -> Teacher` under the entry point group
`corpusgen.teachers`; `key` is where the teacher stands in the configuration (`teacher` or
`teachers.<name>`), for messages. docs/extending.md walks through one.

A provider's Batch API takes many requests at once and answers hours later: `BatchTeacher` is what
it adds. It keeps no state either; what is out is written down by `batching`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import msgspec

from corpusgen.types import Reply, Request


class Capabilities(msgspec.Struct, frozen=True):
    """What a teacher can do, known without loading it; checked when a run is planned."""

    max_top_logprobs: int | None
    """The largest k; 0: no logprobs; null: known only to the endpoint, so it is tried."""
    token_ids: bool | None
    """Whether answers carry token ids; null: known only to the endpoint."""
    max_draws: int
    """Answers that one request may ask for."""
    seeds: bool
    tools: bool
    response_format: bool
    logprobs_mode: Literal["raw", "processed", "unknown"]
    """Whether logprobs are before (`raw`) or after temperature and truncation (`processed`)."""


class Tokenizer(msgspec.Struct, frozen=True):
    """Which vocabulary the token ids belong to."""

    fingerprint: str
    """BLAKE2b-128 over the vocabulary in id order; equal fingerprints mean equal ids."""
    vocabulary_size: int
    name: str


class Endpoint(msgspec.Struct, frozen=True):
    """A place to which a request can be sent."""

    name: str
    """As it stands in `generations.endpoint` and the ledger; never holds a secret."""
    max_concurrency: int | None = None
    """Requests in flight that it takes; null: what it takes best is found while the run goes on."""
    rpm: int | None = None
    """Requests a minute that it allows; null: unknown, or unlimited."""
    tpm: int | None = None
    """Tokens a minute, those of prompts and answers together."""
    tpm_counts: Literal["used", "max_tokens"] = "used"
    """Whether `tpm` counts what answers use, or all that they may use, when a request arrives."""
    rpd: int | None = None
    """Requests a day (24 hours back from now)."""
    tpd: int | None = None
    """Tokens a day."""
    weight: float = 1.0
    """Its share of the load beside other endpoints."""
    probed: bool = False
    """Whether the first request goes alone, so that a wrong key or model is met once."""


class Identity(msgspec.Struct, frozen=True, omit_defaults=True):
    """The part of a sample's identity that the teacher contributes."""

    model: str
    revision: str | None = None
    adapter: str | None = None
    template_args: dict[str, object] | None = None


class Teacher(Protocol):
    """A model that answers. Construction is cheap and offline; `open` loads or connects.

    The order of calls is: `identity`, `capabilities`, `endpoints` at any time; `open` once; then
    `generate` from many tasks of one event loop at the same time; `close` once, also after a
    failed `open`.
    """

    @property
    def identity(self) -> Identity:
        """Say which model answers. May read a local file's header; never the network."""

    @property
    def capabilities(self) -> Capabilities:
        """Say what can be asked for."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Name the places that requests can be sent to; at least one."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Name the vocabulary, where it is known; valid after `open`."""

    def preview(self, request: Request) -> object:
        """Return what `generate` would send, as plain values, for `corpusgen plan --show`."""

    async def open(self) -> None:
        """Load the model or make ready to connect; raise `TeacherBroken` where that fails."""

    async def generate(self, request: Request, endpoint: Endpoint) -> Reply:
        """Make one attempt and return `request.draws` answers; raise a `TeacherError` otherwise.

        Must be safe to cancel: a cancelled call frees what it holds.
        """

    async def close(self) -> None:
        """Free everything; called once, and after a failed `open` as well."""


class Label(msgspec.Struct, frozen=True):
    """The name under which a submission is known at the provider, before and after a crash."""

    corpus_id: str
    submission_id: str


class BatchProblem(msgspec.Struct, frozen=True):
    """Why a provider refused a batch as a whole, or one of its requests."""

    kind: Literal["full", "quota", "model", "request", "batch"]
    """`full`: too much is out already, come back later. `quota`: no money left. `model`: it is not
    there. `request`: the one in `line` will never be taken. `batch`: anything else."""
    message: str
    line: int | None = None
    """Of the file of requests, from 1."""


class Batch(msgspec.Struct, frozen=True):
    """A batch as the provider sees it. Times are seconds since the epoch."""

    batch_id: str
    status: str
    """`validating`, `in_progress`, `finalizing`, `completed`, `failed` (refused, nothing was run),
    `expired`, `cancelling`, `cancelled`; any other word: it goes on."""
    label: Label | None = None
    """Null: not one of ours."""
    created_at: float | None = None
    ended_at: float | None = None
    expires_at: float | None = None
    requests: int = 0
    completed: int = 0
    failed: int = 0
    request_file: str | None = None
    result_files: tuple[str, ...] = ()
    """Answers first, errors after them."""
    problems: tuple[BatchProblem, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.status in ("completed", "failed", "expired", "cancelled")


class BatchSettings(msgspec.Struct, frozen=True):
    """How much goes out at once, and how often it is looked at."""

    requests_per_batch: int
    bytes_per_batch: int
    enqueued_tokens: int | None
    """Prompt tokens over all batches of an endpoint; null: unknown, or unlimited."""
    max_batches: int
    """Of an endpoint, at the same time."""
    poll_s: float
    lookup_s: float
    """How long the provider's list may lack a batch that it has made."""


@runtime_checkable
class BatchTeacher(Teacher, Protocol):
    """A teacher that is asked through its provider's Batch API; `generate` always refuses.

    Each method that is a coroutine makes one attempt and raises a `TeacherError` where it fails;
    all of them may be called again after any failure.
    """

    @property
    def batch_settings(self) -> BatchSettings:
        """Say how much goes out at once."""

    def encode_item(self, item_id: str, request: Request, endpoint: Endpoint) -> bytes:
        """Return a request as a line of the file of requests, line break included.

        `item_id` has at most 64 characters and comes back with the result. Raises `Rejected` on a
        request that cannot be made.
        """

    def identify(self, line: bytes) -> str | None:
        """Return whose result a line of a fetched file is; null where it is torn."""

    def decode_item(self, line: bytes, request: Request, endpoint: Endpoint) -> Reply:
        """Return what a line brought; raise the `TeacherError` that it holds instead.

        Of `request`, only `draws`, `top_logprobs` and `prompt_token_ids` need be known.
        """

    async def upload(self, label: Label, requests: Path, endpoint: Endpoint) -> str:
        """Give the provider a file of requests; return its id there. Costs nothing."""

    async def submit(self, label: Label, file_id: str, endpoint: Endpoint) -> Batch:
        """Make a batch of an uploaded file, with the label in its metadata."""

    async def poll(self, batch_id: str, endpoint: Endpoint) -> Batch:
        """Return how a batch stands; the error of one that is not there has `http_status` 404."""

    async def listed(self, corpus_id: str, since: float, endpoint: Endpoint) -> list[Batch]:
        """Return a corpus' batches that were made since a time; older ones may be among them."""

    async def fetch(self, batch: Batch, target: Path, endpoint: Endpoint) -> None:
        """Write all results of a batch that has ended to a local file, a line each, in any order.

        Of two lines with the same id the first one counts.
        """

    async def cancel(self, batch_id: str, endpoint: Endpoint) -> Batch:
        """End a batch before its time; what it has answered is still fetched, and billed."""

    async def withdraw(self, label: Label, endpoint: Endpoint) -> None:
        """Delete what was uploaded for a submission: no batch can be made of it any more."""

    async def discard(self, batch: Batch, endpoint: Endpoint) -> None:
        """Delete a batch's files, where the configuration wants that; they are not needed now."""
