"""The remote teacher: any endpoint that speaks OpenAI's chat completions.

One call is one HTTP request. Answers are decoded from the raw bytes into arrays, never through an
SDK's objects, so that an answer with its top-k costs milliseconds. Importing this module and
constructing a teacher is cheap and offline; the HTTP client is imported when the teacher is opened.
Nothing is sent anywhere but to the configured endpoints.
"""

from __future__ import annotations

import os
import ssl
from typing import TYPE_CHECKING

import msgspec

from corpusgen.config import OpenAITeacher
from corpusgen.errors import ConfigError
from corpusgen.teachers.interface import Capabilities, Endpoint, Identity, Tokenizer
from corpusgen.teachers.openai_errors import from_status
from corpusgen.teachers.openai_request import encode_request
from corpusgen.teachers.openai_sites import OPENAI_HOST, Site, sites_of
from corpusgen.teachers.openai_wire import decode_reply
from corpusgen.types import Reply, Request

if TYPE_CHECKING:
    from corpusgen.teachers.openai_transport import Transport

_OPENAI_TOP_LOGPROBS = 20
_MAX_DRAWS = 128


def create(key: str, options: OpenAITeacher) -> RemoteTeacher:
    """Make a teacher of its configuration, offline.

    `key` is where the teacher stands in the configuration, for messages. Raises `ConfigError`
    where a base_url cannot be used, a key's environment variable is not set, or `ca_file` cannot
    be read.
    """
    return RemoteTeacher(options, sites_of(key, options), _tls(options.ca_file, f"{key}.ca_file"))


class RemoteTeacher:
    """Ask one or more endpoints for the same model."""

    def __init__(
        self, options: OpenAITeacher, sites: dict[str, Site], tls: ssl.SSLContext | None
    ) -> None:
        self._options = options
        self._sites = sites
        self._tls = tls
        self._transport: Transport | None = None

    @property
    def identity(self) -> Identity:
        """Say which model answers."""
        return Identity(
            model=self._options.model,
            revision=self._options.revision,
            template_args=self._options.template_args,
        )

    @property
    def capabilities(self) -> Capabilities:
        """Say what can be asked for; what only the endpoint knows is null."""
        largest = self._options.max_top_logprobs
        if largest is None and any(site.host == OPENAI_HOST for site in self._sites.values()):
            largest = _OPENAI_TOP_LOGPROBS
        return Capabilities(
            max_top_logprobs=largest,
            token_ids=None,
            max_draws=_MAX_DRAWS,
            seeds=True,
            tools=True,
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
        """Return the body as the first endpoint would get it."""
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
        Token ids are in it where the server sends them: vLLM does when `sampling.extra_body` has
        `return_token_ids: true`. Cancelling closes the connection.
        """
        assert self._transport is not None, "open() comes first"
        site = self._sites[endpoint.name]
        body = self._encode(request, site)
        answer = await self._transport.post(site.url, site.headers, body, site.origin)
        if not 200 <= answer.status < 300:
            raise from_status(site.origin, answer.status, answer.headers, answer.body)
        return decode_reply(answer.body, request, site.origin, answer.status, answer.headers)

    def _encode(self, request: Request, site: Site) -> bytes:
        options = self._options
        return encode_request(request, options.model, options.template_args, site.limit_key)

    async def close(self) -> None:
        """Close every connection; do nothing where none was opened."""
        if self._transport is not None:
            await self._transport.close()
            self._transport = None


def _tls(ca_file: str | None, key: str) -> ssl.SSLContext | None:
    """Return a context that trusts the system's authorities and those of a PEM file.

    Without a file in the configuration, `CURL_CA_BUNDLE` is read, as curl does. Null: the default
    context, which honours `SSL_CERT_FILE` and `SSL_CERT_DIR`.
    """
    path = ca_file or os.environ.get("CURL_CA_BUNDLE")
    if not path:
        return None
    where = key if ca_file else "the environment variable CURL_CA_BUNDLE"
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{where}: {path} cannot be read as PEM certificates: {reason}. Correct the path."
        ) from None
    return context
