"""Carry one HTTP request and its whole answer; the only module that knows aiohttp.

It does not retry, follow redirects, keep cookies or read `.netrc`. Proxies are found as curl finds
them (`http_proxy`, `https_proxy`, `all_proxy`, `no_proxy`), once for each address: aiohttp's own
`trust_env` would look in a thread for each request and could send a password out of `.netrc`.
"""

from __future__ import annotations

import io
import socket
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import msgspec
from yarl import URL

from corpusgen.errors import (
    AnswerTimeout,
    AuthenticationFailed,
    ConnectionFailed,
    NotConnected,
    TeacherBroken,
    TeacherError,
    TornAnswer,
)
from corpusgen.teachers.openai_errors import Origin, request_id

BODY_LIMIT = 1 << 30
"""Bytes of an answer that are read; more is taken for a fault."""

_ERROR_BODY_LIMIT = 1 << 16
_IN_ONE_WRITE = 1 << 20
_KEEPALIVE_S = 4.0
"""Below the 5 s after which uvicorn (vLLM, SGLang) closes: it must not close while we send."""


class HttpAnswer(msgspec.Struct, frozen=True):
    """An HTTP answer, read to its end. `headers` does not mind upper and lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport:
    """Connections to any number of hosts; made inside a running event loop."""

    def __init__(
        self, *, timeout_s: float, connect_timeout_s: float, tls: ssl.SSLContext | None
    ) -> None:
        self._timeout_s = timeout_s
        self._routes: dict[str, tuple[URL, str | None]] = {}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # the fan-out bounds what is in flight
                ssl=tls if tls is not None else True,
                keepalive_timeout=_KEEPALIVE_S,
                socket_factory=_socket,
            ),
            timeout=aiohttp.ClientTimeout(total=timeout_s, connect=connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=1 << 20,
        )

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, origin: Origin
    ) -> HttpAnswer:
        """Send a body and return the answer, whatever its status.

        Raises `ConnectionFailed`, `AnswerTimeout`, `TornAnswer`, or `TeacherBroken` where trying
        again cannot help. Cancelling it closes the connection, so that the server can stop.
        """
        data = body if len(body) < _IN_ONE_WRITE else io.BytesIO(body)
        address, proxy = self._routes.get(url) or self._route(url, origin)
        request = self._session.post(
            address, headers=headers, data=data, proxy=proxy, allow_redirects=False
        )
        try:
            async with request as response:
                return await self._whole(response, origin)
        except TimeoutError as error:
            raise self._too_late(error, origin) from None
        except (aiohttp.ClientError, OSError) as error:
            raise _unconnected(error, origin) from None

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def _whole(self, response: aiohttp.ClientResponse, origin: Origin) -> HttpAnswer:
        """Read the body to its end; an error's body may break off, its status says enough."""
        failed = response.status >= 300
        limit = _ERROR_BODY_LIMIT if failed else BODY_LIMIT
        content = response.content
        chunks: list[bytes] = []
        size = 0
        try:
            while size <= limit and not content.at_eof():
                chunks.append(chunk := await content.readany())
                size += len(chunk)
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError) as error:
            if not failed:
                raise _broken_off(response, size, error, origin) from None
        if size > limit:
            response.close()
            if not failed:
                raise _broken_off(response, size, None, origin)
        return HttpAnswer(response.status, response.headers, b"".join(chunks))

    def _too_late(self, error: TimeoutError, origin: Origin) -> TeacherError:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return NotConnected(origin.sentence("no connection within connect_timeout_s"))
        return AnswerTimeout(origin.sentence(f"no whole answer within {self._timeout_s:g} s"))

    def _route(self, url: str, origin: Origin) -> tuple[URL, str | None]:
        """Return an address as aiohttp wants it, and its proxy; both are kept for the next time."""
        parts = urlsplit(url)
        proxy = _proxy_from_environment(parts.scheme, parts.netloc, origin)
        found = self._routes[url] = URL(url, encoded=True), proxy
        return found


def _proxy_from_environment(scheme: str, host: str, origin: Origin) -> str | None:
    """Return the proxy that the environment names for a host; its value may hold a password."""
    found: dict[str, Any] = getproxies()
    proxy = found.get(scheme) or found.get("all")
    if not proxy or proxy_bypass(host):
        return None
    proxy = str(proxy) if "://" in proxy else f"http://{proxy}"
    if not proxy.startswith(("http://", "https://")):
        raise TeacherBroken(
            origin.sentence(
                "the environment names a proxy that is not HTTP; set an http:// or https:// proxy, "
                "or add the host to no_proxy"
            )
        )
    return proxy


def _socket(address: Any) -> socket.socket:
    """Make a socket whose silence is probed: an answer may take longer than a NAT remembers."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, option):
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), 60)
    return made


def _broken_off(
    response: aiohttp.ClientResponse, size: int, error: Exception | None, origin: Origin
) -> TornAnswer:
    what = f"the answer broke off after {size} bytes" if error else f"the answer exceeds {size} B"
    return TornAnswer(
        origin.sentence(what),
        http_status=response.status,
        request_id=request_id(response.headers),
    )


def _unconnected(error: Exception, origin: Origin) -> TeacherError:
    """Return the error for a request that brought no headers."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        what = "its certificate is not trusted; name the authority's file in the teacher's ca_file"
        return TeacherBroken(origin.sentence(what, str(error.certificate_error)))
    if isinstance(error, aiohttp.ClientHttpProxyError):
        kind = AuthenticationFailed if error.status == 407 else ConnectionFailed
        return kind(origin.sentence(f"the proxy answered HTTP {error.status}", error.message))
    if isinstance(error, aiohttp.ClientResponseError):
        return TornAnswer(origin.sentence("the answer is not HTTP", error.message))
    if isinstance(error, aiohttp.ClientConnectorError):
        return NotConnected(origin.sentence("no connection", str(error) or repr(error)))
    return ConnectionFailed(origin.sentence("the connection failed", str(error) or repr(error)))
