"""Check the configured endpoints and find their keys, without a connection.

A `Site` holds secrets; its representation does not show them, and nothing writes one to disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlunsplit

from corpusgen.config import OpenAIEndpoint, OpenAITeacher
from corpusgen.errors import ConfigError
from corpusgen.teachers.interface import Endpoint
from corpusgen.teachers.openai_addresses import (
    OPENAI_HOST,
    address,
    limit_key,
    tpm_counts,
)
from corpusgen.teachers.openai_errors import Origin
from corpusgen.types import Sampling

__all__ = ["OPENAI_HOST", "Site", "sites_of"]

_OF_THE_SAMPLE = {
    *Sampling.__struct_fields__,
    "messages",
    "prompt",
    "n",
    "best_of",
    "stream",
    "max_completion_tokens",
    "logprobs",
    "top_logprobs",
    "tools",
    "response_format",
    "chat_template_kwargs",
}
"""Keys of a body that say what is asked, and so may not differ from endpoint to endpoint."""


class Site:
    """One endpoint, ready to be asked: where to send, which headers, how errors name it."""

    __slots__ = ("endpoint", "extra_body", "headers", "host", "limit_key", "origin", "url")

    def __init__(
        self,
        endpoint: Endpoint,
        url: SplitResult,
        headers: Mapping[str, str],
        origin: Origin,
        *,
        limit_key: str = "max_tokens",
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.url = urlunsplit(url)
        self.host = url.hostname or ""
        self.headers = headers
        self.origin = origin
        self.limit_key = limit_key
        """The key that carries `max_tokens`."""
        self.extra_body = extra_body or None

    def __repr__(self) -> str:
        return f"Site({self.endpoint.name!r})"


def sites_of(
    teacher: str, options: OpenAITeacher, environment: Mapping[str, str] = os.environ
) -> dict[str, Site]:
    """Return the sites by endpoint name, in the configured order; equal names get `-2`, `-3`, ….

    `teacher` is the teacher's key in the configuration, for messages. Raises `ConfigError` on a
    base_url that cannot be used, on a key that is not there, and on an `extra_body` that changes
    what is asked.
    """
    sites: dict[str, Site] = {}
    for i, configured in enumerate(options.endpoints):
        key = f"{teacher}.endpoints[{i}]"
        url = address(configured, options.model, options.protocol, key)
        unique = _unique(configured.name or url.netloc, sites)
        secrets = _headers(configured, key, environment)
        _check_extra_body(configured.extra_body, f"{key}.extra_body")
        sites[unique] = Site(
            _endpoint(unique, configured, url),
            url,
            {**secrets, "Content-Type": "application/json"},
            # The value without its scheme as well: servers quote the bare key.
            Origin(unique, tuple(v for value in secrets.values() for v in _spellings(value))),
            limit_key=limit_key(configured, url),
            extra_body=configured.extra_body,
        )
    return sites


def _endpoint(name: str, configured: OpenAIEndpoint, url: SplitResult) -> Endpoint:
    return Endpoint(
        name=name,
        max_concurrency=configured.max_concurrency,
        rpm=configured.rpm,
        tpm=configured.tpm,
        tpm_counts=tpm_counts(configured, url),
        rpd=configured.rpd,
        tpd=configured.tpd,
        weight=configured.weight,
        probed=True,
    )


def _check_extra_body(extra_body: Mapping[str, Any], key: str) -> None:
    for name in extra_body:
        if name in _OF_THE_SAMPLE:
            raise ConfigError(
                f"{key}.{name}: is part of what is asked, which is the same at every endpoint. "
                "Set it under sampling or the prompt set."
            )


def _spellings(value: str) -> list[str]:
    bare = value.removeprefix("Bearer ")
    return [part for part in (value, bare) if len(part) >= 6]


def _unique(name: str, taken: Mapping[str, object]) -> str:
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique


def _headers(
    configured: OpenAIEndpoint, key: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the headers that may hold secrets; configured ones win over the key's."""
    headers = dict(configured.headers)
    variable = configured.api_key_env
    azure = configured.style == "azure"
    instead = {"authorization", "api-key"} if azure else {"authorization"}
    if variable is not None and instead.isdisjoint(header.lower() for header in headers):
        value = _api_key(variable, key, environment)
        headers |= {"api-key": value} if azure else {"Authorization": f"Bearer {value}"}
    for header, value in headers.items():
        if not (header.isascii() and header.replace("-", "").replace("_", "").isalnum()):
            raise ConfigError(f"{key}.headers: {header!r} is not the name of a header. Correct it.")
        if any(ord(c) < 32 or ord(c) > 126 for c in value):
            raise ConfigError(
                f"{key}.headers.{header}: holds a character that no header may hold. Correct it."
            )
    return headers


def _api_key(variable: str, key: str, environment: Mapping[str, str]) -> str:
    value = environment.get(variable, "").strip()
    if not value:
        raise ConfigError(
            f"{key}.api_key_env: the environment variable {variable} is not set. "
            "Export it, or remove the line if the endpoint needs no key."
        )
    if not value.isascii() or not value.isprintable():
        raise ConfigError(
            f"{key}.api_key_env: the environment variable {variable} does not hold a key: "
            "it has characters that no key has. Export it again."
        )
    return value
