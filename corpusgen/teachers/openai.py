"""The remote teacher: any endpoint that speaks OpenAI's chat completions, or its completions.

One call is one HTTP request. Answers are decoded from the raw bytes into arrays, never through an
SDK's objects, so that an answer with its top-k costs milliseconds. Importing this module and
constructing a teacher is cheap and offline; the HTTP client is imported when the teacher is opened.
Nothing is sent anywhere but to the configured endpoints.
"""

from __future__ import annotations

import ssl
import time
from typing import TYPE_CHECKING

import msgspec

from corpusgen.config import OpenAITeacher
from corpusgen.errors import ConfigError, TeacherError
from corpusgen.teachers.interface import Capabilities, Endpoint, Identity, Tokenizer
from corpusgen.teachers.openai_completions import decode_completion
from corpusgen.teachers.openai_errors import from_status
from corpusgen.teachers.openai_rate import rate_hint
from corpusgen.teachers.openai_reasoning import split_reasoning
from corpusgen.teachers.openai_request import encode_completion, encode_request
from corpusgen.teachers.openai_sites import OPENAI_HOST, Site, sites_of
from corpusgen.teachers.openai_tls import trusted
from corpusgen.teachers.openai_wire import decode_reply
from corpusgen.types import Reply, Request

if TYPE_CHECKING:
    from corpusgen.teachers.openai_transport import HttpAnswer, Transport

_OPENAI_TOP_LOGPROBS = {"chat": 20, "completions": 5}

_ATTEMPT_HEADER = "X-Client-Request-Id"
"""OpenAI's name for a request's id that the client chooses; proxies and servers log it too."""


def create(key: str, options: OpenAITeacher) -> RemoteTeacher:
    """Make a teacher of its configuration, offline.

    `key` is where the teacher stands in the configuration, for messages. Raises `ConfigError`
    where a base_url cannot be used, a key's environment variable is not set, `ca_file` cannot be
    read, or `template_args` are given for plain text.
    """
    if options.protocol == "completions" and options.template_args is not None:
        raise ConfigError(
            f"{key}.template_args: a chat template is not used with protocol: completions. "
            "Remove it."
        )
    return RemoteTeacher(
        options, sites_of(key, options), trusted(options.ca_file, f"{key}.ca_file")
    )


class RemoteTeacher:
    """Ask one or more endpoints for the same model."""

    def __init__(
        self, options: OpenAITeacher, sites: dict[str, Site], tls: ssl.SSLContext | None
    ) -> None:
        self._options = options
        self._sites = sites
        self._tls = tls
        self._plain = options.protocol == "completions"
        self._decode = decode_completion if self._plain else decode_reply
        self._transport: Transport | None = None

    @property
    def identity(self) -> Identity:
        """Say which model answers; a text that no template wraps is asked otherwise than a chat."""
        protocol: dict[str, object] = {"protocol": "completions"}
        return Identity(
            model=self._options.model,
            revision=self._options.revision,
            template_args=protocol if self._plain else self._options.template_args,
        )

    @property
    def capabilities(self) -> Capabilities:
        """Say what can be asked for; what only the endpoint knows is null."""
        largest = self._options.max_top_logprobs
        if largest is None and any(site.host == OPENAI_HOST for site in self._sites.values()):
            largest = _OPENAI_TOP_LOGPROBS[self._options.protocol]
        return Capabilities(
            max_top_logprobs=largest,
            token_ids=None,
            max_draws=self._options.draws_per_request,
            seeds=True,
            tools=not self._plain,
            response_format=True,
            logprobs_mode="unknown",
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Name the endpoints in their configured order."""
        return tuple(site.endpoint for site in self._sites.values())

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Return null: the protocol does not say which vocabulary its ids belong to."""
        return None

    def preview(self, request: Request) -> object:
        """Return the address and the body as the first endpoint would get it."""
        site = next(iter(self._sites.values()))
        return {"url": site.url, "body": msgspec.Raw(self._encode(request, site))}

    async def open(self) -> None:
        """Make ready to connect; the first request connects."""
        from corpusgen.teachers.openai_transport import Transport

        self._transport = Transport(
            timeout_s=self._options.timeout_s,
            connect_timeout_s=self._options.connect_timeout_s,
            tls=self._tls,
        )

    async def generate(self, request: Request, endpoint: Endpoint) -> Reply:
        """Make one attempt; raise a `TeacherError` where it brings no answer.

        The reply holds at most `request.draws` answers, and fewer where the server sent fewer.
        Token ids are in it where the server sends them. Cancelling closes the connection.
        """
        assert self._transport is not None, "open() comes first"
        site = self._sites[endpoint.name]
        body = self._encode(request, site)
        headers = site.headers
        if request.attempt_id is not None:
            headers = {**headers, _ATTEMPT_HEADER: request.attempt_id}
        answer = await self._transport.post(site.url, headers, body, site.origin)
        if not 200 <= answer.status < 300:
            raise from_status(site.origin, answer.status, answer.headers, answer.body)
        return self._read(answer, request, site)

    def _read(self, answer: HttpAnswer, request: Request, site: Site) -> Reply:
        rate = rate_hint(answer.headers, time.time())
        try:
            reply = self._decode(answer.body, request, site.origin, answer.status, answer.headers)
        except TeacherError as error:
            error.rate = error.rate or rate
            raise
        if self._options.reasoning_tag is not None:
            reply = split_reasoning(reply, self._options.reasoning_tag)
        return reply if rate is None else msgspec.structs.replace(reply, rate=rate)

    def _encode(self, request: Request, site: Site) -> bytes:
        options = self._options
        if self._plain:
            return encode_completion(
                request,
                options.model,
                endpoint_body=site.extra_body,
                token_ids=options.return_token_ids,
            )
        return encode_request(
            request,
            options.model,
            options.template_args,
            site.limit_key,
            endpoint_body=site.extra_body,
            token_ids=options.return_token_ids,
        )

    async def close(self) -> None:
        """Close every connection; do nothing where none was opened."""
        if self._transport is not None:
            await self._transport.close()
            self._transport = None
