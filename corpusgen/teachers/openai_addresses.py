"""Say where an endpoint's requests go, without a connection: OpenAI's paths, or Azure's."""

from __future__ import annotations

from typing import Literal
from urllib.parse import SplitResult, quote, urlencode, urlsplit

from corpusgen.config import OpenAIEndpoint
from corpusgen.errors import ConfigError

OPENAI_HOST = "api.openai.com"

Protocol = Literal["chat", "completions"]

_PATHS: dict[Protocol, str] = {"chat": "/chat/completions", "completions": "/completions"}
_AZURE_HOST = ".openai.azure.com"
_AZURE_V1 = "/openai/v1"
_SINCE = "2024-09"
"""The first of Azure's versions that knows `max_completion_tokens`."""
_EXAMPLES = {
    "openai": "Write it like https://api.openai.com/v1.",
    "azure": "Write it like https://NAME.openai.azure.com.",
}


def address(configured: OpenAIEndpoint, model: str, protocol: Protocol, key: str) -> SplitResult:
    """Return the address of an endpoint's completions; the base_url's query, if any, is kept.

    `key` is where the endpoint stands in the configuration. Raises `ConfigError` where no request
    can be sent to it.
    """
    base = _parts(configured, f"{key}.base_url")
    base = base._replace(path=base.path.rstrip("/"), fragment="")
    if configured.style == "azure":
        return _azure(configured, base, model, _PATHS[protocol], key)
    for name in ("deployment", "api_version"):
        if getattr(configured, name) is not None:
            raise ConfigError(
                f"{key}.{name}: is only for Azure. Set style: azure beside it, or remove it."
            )
    return base._replace(path=base.path + _PATHS[protocol])


def limit_key(configured: OpenAIEndpoint, url: SplitResult) -> str:
    """Name the key that carries `max_tokens`: OpenAI's reasoning models refuse the old one."""
    host = url.hostname or ""
    if configured.style == "azure":
        new = (configured.api_version or "") >= _SINCE
    else:
        new = host == OPENAI_HOST or (host.endswith(_AZURE_HOST) and _AZURE_V1 in url.path)
    return "max_completion_tokens" if new else "max_tokens"


def tpm_counts(configured: OpenAIEndpoint, url: SplitResult) -> Literal["used", "max_tokens"]:
    """Say what the endpoint's tokens a minute count: OpenAI and Azure reserve `max_tokens`."""
    if configured.tpm_counts is not None:
        return configured.tpm_counts
    host = url.hostname or ""
    reserves = configured.style == "azure" or host == OPENAI_HOST or host.endswith(_AZURE_HOST)
    return "max_tokens" if reserves else "used"


def _azure(
    configured: OpenAIEndpoint, base: SplitResult, model: str, path: str, key: str
) -> SplitResult:
    if base.hostname == OPENAI_HOST:
        raise ConfigError(f"{key}.base_url: is not Azure's. {_EXAMPLES['azure']}")
    if base.path.endswith(_AZURE_V1):
        raise ConfigError(
            f"{key}.base_url: below {_AZURE_V1} Azure speaks as OpenAI does. Leave out style, "
            "deployment and api_version, and give the deployment as the teacher's model."
        )
    if "/deployments" in base.path:
        raise ConfigError(
            f"{key}.base_url: holds a deployment. Name it in deployment instead. "
            f"{_EXAMPLES['azure']}"
        )
    if not configured.api_version:
        raise ConfigError(f"{key}.api_version: is missing. Set it, such as 2024-10-21.")
    deployment = quote(configured.deployment or model, safe="")
    version = urlencode({"api-version": configured.api_version})
    return base._replace(
        path=f"{base.path.removesuffix('/openai')}/openai/deployments/{deployment}{path}",
        query="&".join(filter(None, (base.query, version))),
    )


def _parts(configured: OpenAIEndpoint, key: str) -> SplitResult:
    base_url, example = configured.base_url, _EXAMPLES[configured.style]
    try:
        parts = urlsplit(base_url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"{key}: {_shown(base_url)} is not a URL. {example}") from None
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"{key}: {_shown(base_url)} must begin with http:// or https:// and name a host. "
            f"{example}"
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"{key}: holds a user name or password. Remove it, and name the environment variable "
            "of the key in api_key_env."
        )
    return parts


def _shown(base_url: str) -> str:
    """Quote a base_url up to its last @, before which a password may stand."""
    return repr(base_url.rpartition("@")[2][:100])
