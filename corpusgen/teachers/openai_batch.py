"""The remote teacher behind a Batch API: files of requests out, files of answers back.

It knows OpenAI's `/files` and `/batches` and nothing of corpora: which samples are out, what is
sent again and what survives a crash is `batching`'s. Constructing it is cheap and offline; the
openai package is imported when the teacher is opened.
"""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import msgspec

from corpusgen.config import OpenAIBatchTeacher, OpenAIEndpoint, OpenAITeacher
from corpusgen.errors import TeacherBroken, TeacherError
from corpusgen.teachers.interface import (
    Batch,
    BatchSettings,
    Capabilities,
    Endpoint,
    Identity,
    Label,
    Tokenizer,
)
from corpusgen.teachers.openai_batch_lines import decode_line, encode_line, identity_of
from corpusgen.teachers.openai_reasoning import split_reasoning
from corpusgen.teachers.openai_request import encode_request
from corpusgen.teachers.openai_sites import OPENAI_HOST, Site, sites_of
from corpusgen.teachers.openai_tls import trusted
from corpusgen.types import Reply, Request

if TYPE_CHECKING:
    from corpusgen.teachers.openai_batch_client import BatchClient

_OPENAI_TOP_LOGPROBS = 20
_KEPT_S = 40 * 86_400.0
"""Files of batches are gone after 30 days by themselves."""


def create(key: str, options: OpenAIBatchTeacher) -> RemoteBatchTeacher:
    """Make a teacher of its configuration, offline.

    `key` is where the teacher stands in the configuration, for messages. Raises `ConfigError`
    where a base_url cannot be used, a key's environment variable is not set, or `ca_file` cannot
    be read.
    """
    sites = sites_of(key, OpenAITeacher(model=options.model, endpoints=options.endpoints))
    return RemoteBatchTeacher(options, sites, trusted(options.ca_file, f"{key}.ca_file"))


class _Place(msgspec.Struct, frozen=True):
    """One endpoint: its configuration and what was made of it."""

    site: Site
    configured: OpenAIEndpoint

    @property
    def path(self) -> str:
        """The path that each request of a file names."""
        return "/chat/completions" if self.configured.style == "azure" else "/v1/chat/completions"

    def model(self, model: str) -> str:
        """Return the model as this endpoint calls it: Azure knows deployments only."""
        return self.configured.deployment or model

    @property
    def base_url(self) -> str:
        """The address below which files and batches are."""
        parts = urlsplit(self.configured.base_url.strip())
        path = parts.path.rstrip("/")
        if self.configured.style == "azure" and not path.endswith("/openai"):
            path += "/openai"
        return urlunsplit(parts._replace(path=path, query="", fragment=""))

    @property
    def query(self) -> dict[str, str]:
        """What is sent with each request."""
        if self.configured.style != "azure":
            return {}
        return {"api-version": self.configured.api_version or ""}


class RemoteBatchTeacher:
    """Ask one or more accounts for the same model, in batches."""

    def __init__(
        self, options: OpenAIBatchTeacher, sites: dict[str, Site], tls: ssl.SSLContext | None
    ) -> None:
        self._options = options
        self._places = {
            name: _Place(site, configured)
            for (name, site), configured in zip(sites.items(), options.endpoints, strict=True)
        }
        self._tls = tls
        self._clients: dict[str, BatchClient] = {}

    @property
    def identity(self) -> Identity:
        """Say which model answers: the same one as outside batches."""
        return Identity(
            model=self._options.model,
            revision=self._options.revision,
            template_args=self._options.template_args,
        )

    @property
    def capabilities(self) -> Capabilities:
        """Say what can be asked for; what only the endpoint knows is null."""
        largest = self._options.max_top_logprobs
        if largest is None and any(p.site.host == OPENAI_HOST for p in self._places.values()):
            largest = _OPENAI_TOP_LOGPROBS
        return Capabilities(
            max_top_logprobs=largest,
            token_ids=None,
            max_draws=self._options.draws_per_request,
            seeds=True,
            tools=True,
            response_format=True,
            logprobs_mode="unknown",
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Name the endpoints in their configured order."""
        return tuple(place.site.endpoint for place in self._places.values())

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Return null: the protocol does not say which vocabulary its ids belong to."""
        return None

    @property
    def batch_settings(self) -> BatchSettings:
        """Say how much goes out at once."""
        options = self._options
        return BatchSettings(
            requests_per_batch=options.requests_per_batch,
            bytes_per_batch=options.bytes_per_batch,
            enqueued_tokens=options.enqueued_tokens,
            max_batches=options.max_batches,
            poll_s=options.poll_s,
            lookup_s=options.lookup_s,
        )

    def preview(self, request: Request) -> object:
        """Return a line of the file as the first endpoint would get it."""
        place = next(iter(self._places.values()))
        line = encode_line("set when it is sent", place.path, self._body(request, place))
        return {"url": f"{place.base_url}/batches", "line": msgspec.Raw(line.rstrip())}

    async def open(self) -> None:
        """Make ready to connect; the first request connects."""
        from corpusgen.teachers.openai_batch_client import BatchClient

        for name, place in self._places.items():
            self._clients[name] = BatchClient(
                place.site,
                place.base_url,
                query=place.query,
                window=self._options.completion_window,
                timeout_s=self._options.timeout_s,
                connect_timeout_s=self._options.connect_timeout_s,
                tls=self._tls,
            )

    async def generate(self, request: Request, endpoint: Endpoint) -> Reply:
        """Refuse: one request alone would be neither cheap nor a batch."""
        del request
        raise TeacherBroken(
            f"endpoint {endpoint.name}: this teacher answers batches only. Use kind: openai for "
            "single requests."
        )

    def encode_item(self, item_id: str, request: Request, endpoint: Endpoint) -> bytes:
        """Return a request as a line of the file; raise `Rejected` where it cannot be made."""
        place = self._places[endpoint.name]
        return encode_line(item_id, place.path, self._body(request, place))

    def identify(self, line: bytes) -> str | None:
        """Return whose result a line is."""
        return identity_of(line)

    def decode_item(self, line: bytes, request: Request, endpoint: Endpoint) -> Reply:
        """Return what a line brought; raise the `TeacherError` that it holds instead."""
        reply = decode_line(line, request, self._places[endpoint.name].site.origin)
        tag = self._options.reasoning_tag
        return reply if tag is None else split_reasoning(reply, tag)

    async def upload(self, label: Label, requests: Path, endpoint: Endpoint) -> str:
        """Upload a file of requests under the label's name."""
        return await self._clients[endpoint.name].upload(_file_name(label), requests)

    async def submit(self, label: Label, file_id: str, endpoint: Endpoint) -> Batch:
        """Make a batch of an uploaded file."""
        place = self._places[endpoint.name]
        return await self._clients[endpoint.name].create(label, file_id, place.path)

    async def poll(self, batch_id: str, endpoint: Endpoint) -> Batch:
        """Return how a batch stands."""
        return await self._clients[endpoint.name].retrieve(batch_id)

    async def listed(self, corpus_id: str, since: float, endpoint: Endpoint) -> list[Batch]:
        """Return a corpus' batches."""
        return await self._clients[endpoint.name].batches(corpus_id, since)

    async def fetch(self, batch: Batch, target: Path, endpoint: Endpoint) -> None:
        """Download the output file and the error file into one local file."""
        with target.open("wb") as file:
            for file_id in batch.result_files:
                await self._clients[endpoint.name].download(file_id, file)
                file.write(b"\n")  # the last line may lack its own

    async def cancel(self, batch_id: str, endpoint: Endpoint) -> Batch:
        """Ask that a batch end; one that has ended is returned as it stands."""
        client = self._clients[endpoint.name]
        try:
            return await client.cancel(batch_id)
        except TeacherError as error:
            if error.http_status not in (400, 409):
                raise
            return await client.retrieve(batch_id)

    async def withdraw(self, label: Label, endpoint: Endpoint) -> None:
        """Delete every upload of a submission."""
        client = self._clients[endpoint.name]
        for file_id in await client.uploads(_file_name(label), time.time() - _KEPT_S):
            await client.delete(file_id)

    async def discard(self, batch: Batch, endpoint: Endpoint) -> None:
        """Delete a batch's files, unless `delete_files` is off."""
        if self._options.delete_files:
            for file_id in filter(None, (batch.request_file, *batch.result_files)):
                await self._clients[endpoint.name].delete(file_id)

    async def close(self) -> None:
        """Close every connection; do nothing where none was opened."""
        clients, self._clients = self._clients, {}
        for client in clients.values():
            await client.close()

    def _body(self, request: Request, place: _Place) -> bytes:
        return encode_request(
            request,
            place.model(self._options.model),
            self._options.template_args,
            place.site.limit_key,
            endpoint_body=place.configured.extra_body,
        )


def _file_name(label: Label) -> str:
    return f"corpusgen-{label.corpus_id}-{label.submission_id}.jsonl"
