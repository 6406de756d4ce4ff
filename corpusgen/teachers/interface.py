"""What a teacher promises. A new teacher is a class with these members and a `create` function.

One call of `generate` is one attempt: no retry, no rate limit, no file, no price inside. What an
SDK or an engine raises becomes a `TeacherError` there, so that the modules around it (`limits`,
`retry`, `fanout`) see one vocabulary.

Register `create(key: str, options: <config struct>) -> Teacher` under the entry point group
`corpusgen.teachers`; `key` is where the teacher stands in the configuration (`teacher` or
`teachers.<name>`), for messages. docs/extending.md walks through one.
"""

from __future__ import annotations

from typing import Literal, Protocol

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
    """Requests in flight that it takes; null: only `generate.max_concurrency` limits it."""


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
