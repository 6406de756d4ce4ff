"""Check the configured endpoints and find their keys, without a connection.

A `Site` holds secrets; its representation does not show them, and nothing writes one to disk.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit, urlunsplit

from corpusgen.config import OpenAIEndpoint, OpenAITeacher
from corpusgen.errors import ConfigError
from corpusgen.teachers.interface import Endpoint
from corpusgen.teachers.openai_errors import Origin

OPENAI_HOST = "api.openai.com"


class Site:
    """One endpoint, ready to be asked: where to send, which headers, how errors name it."""

    __slots__ = ("endpoint", "headers", "host", "origin", "url")

    def __init__(
        self, endpoint: Endpoint, url: SplitResult, headers: Mapping[str, str], origin: Origin
    ) -> None:
        self.endpoint = endpoint
        self.url = urlunsplit(url)
        self.host = url.hostname or ""
        self.headers = headers
        self.origin = origin

    def __repr__(self) -> str:
        return f"Site({self.endpoint.name!r})"

    @property
    def limit_key(self) -> str:
        """Name the key that carries `max_tokens`: OpenAI's reasoning models refuse the old one."""
        return "max_completion_tokens" if self.host == OPENAI_HOST else "max_tokens"


def sites_of(
    teacher: str, options: OpenAITeacher, environment: Mapping[str, str] = os.environ
) -> dict[str, Site]:
    """Return the sites by endpoint name, in the configured order; equal names get `-2`, `-3`, ….

    `teacher` is the teacher's key in the configuration, for messages. Raises `ConfigError` on a
    base_url that cannot be used and on a key that is not there.
    """
    sites: dict[str, Site] = {}
    for i, configured in enumerate(options.endpoints):
        key = f"{teacher}.endpoints[{i}]"
        url = _url(configured.base_url, f"{key}.base_url")
        unique = _unique(configured.name or url.netloc, sites)
        secrets = _headers(configured, key, environment)
        sites[unique] = Site(
            Endpoint(name=unique, max_concurrency=configured.max_concurrency),
            url,
            {**secrets, "Content-Type": "application/json"},
            # The value without its scheme as well: servers quote the bare key.
            Origin(unique, tuple(v for value in secrets.values() for v in _spellings(value))),
        )
    return sites


def _spellings(value: str) -> list[str]:
    bare = value.removeprefix("Bearer ")
    return [part for part in (value, bare) if len(part) >= 6]


def _unique(name: str, taken: Mapping[str, object]) -> str:
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique


def _url(base_url: str, key: str) -> SplitResult:
    """Return the address of the completions below a base_url; its query, if any, is kept."""
    try:
        parts = urlsplit(base_url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"{key}: {_shown(base_url)} is not a URL. {_EXAMPLE}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"{key}: {_shown(base_url)} must begin with http:// or https:// and name a host. "
            f"{_EXAMPLE}"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"{key}: holds a user name or password. Remove it, and name the environment variable "
            "of the key in api_key_env."
        )
    return parts._replace(path=parts.path.rstrip("/") + "/chat/completions", fragment="")


_EXAMPLE = "Write it like https://api.openai.com/v1."


def _shown(base_url: str) -> str:
    """Quote a base_url up to its last @, before which a password may stand."""
    return repr(base_url.rpartition("@")[2][:100])


def _headers(
    configured: OpenAIEndpoint, key: str, environment: Mapping[str, str]
) -> dict[str, str]:
    """Return the headers that may hold secrets; configured ones win over the key's."""
    headers = dict(configured.headers)
    variable = configured.api_key_env
    if variable is not None and not any(k.lower() == "authorization" for k in headers):
        headers["Authorization"] = f"Bearer {_api_key(variable, key, environment)}"
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
