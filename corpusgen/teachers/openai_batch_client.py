"""Speak to the files and batches of one endpoint through the openai package.

Each method makes one attempt: the package's own retries are off, for what follows a failure is
decided elsewhere. Whatever it or its transport raises leaves as a `TeacherError`. Importing this
module imports the package, which takes most of a second.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import openai

from corpusgen.errors import (
    AnswerTimeout,
    ConnectionFailed,
    ModelNotFound,
    NotConnected,
    QuotaExhausted,
    TeacherBroken,
    TeacherError,
    TornAnswer,
)
from corpusgen.teachers.interface import Batch, BatchProblem, Label
from corpusgen.teachers.openai_errors import Origin, from_answer, from_status, shortened
from corpusgen.teachers.openai_sites import Site

CORPUS_KEY = "corpusgen_corpus"
SUBMISSION_KEY = "corpusgen_submission"
_PAGE = 100
_CLOCKS_APART_S = 86_400.0
"""How far the provider's clock and ours may differ when a list is cut short by time."""
_UNCONNECTED = ("ConnectError", "ConnectTimeout")
_FULL_CODES = {"token_limit_exceeded", "rate_limit_exceeded", "batch_queue_full"}
_ENDINGS = ("completed_at", "failed_at", "expired_at", "cancelled_at")


class BatchClient:
    """Files and batches of one account."""

    def __init__(
        self,
        site: Site,
        base_url: str,
        *,
        query: Mapping[str, str],
        window: str,
        timeout_s: float,
        connect_timeout_s: float,
        tls: ssl.SSLContext | None,
    ) -> None:
        """`query` is sent with every request; `window` is the batches' completion window.

        Raises `TeacherBroken` where the environment's proxy settings cannot be used.
        """
        self._origin = site.origin
        self._window = window
        headers = {k: v for k, v in site.headers.items() if k.lower() != "content-type"}
        omitted = cast(str, openai.Omit())
        self._extra: dict[str, str] = {}
        if not any(key.lower() == "authorization" for key in headers):
            self._extra["Authorization"] = omitted
        limit = openai.Timeout(timeout_s, connect=connect_timeout_s)
        try:
            transport = openai.DefaultAsyncHttpxClient(
                verify=tls if tls is not None else True, timeout=limit, follow_redirects=False
            )
        except (ValueError, ImportError) as error:
            raise TeacherBroken(site.origin.sentence("cannot be reached", str(error))) from None
        self._client = openai.AsyncOpenAI(
            api_key="in the headers",  # never sent: either a header takes its place, or none is
            base_url=base_url,
            max_retries=0,
            timeout=limit,
            # The environment's organization and project are not read for other people's endpoints.
            default_headers={
                "OpenAI-Organization": omitted,
                "OpenAI-Project": omitted,
                **headers,
            },
            default_query=query,
            http_client=transport,
        )

    async def upload(self, name: str, requests: Path) -> str:
        """Upload a file of requests under a name; return its id."""
        with requests.open("rb") as file:
            found = await self._asked(lambda: self._create_file(name, file))
        return str(found.id)

    async def _create_file(self, name: str, file: BinaryIO) -> Any:
        return await self._client.files.create(
            file=(name, file, "application/jsonl"), purpose="batch", extra_headers=self._extra
        )

    async def create(self, label: Label, file_id: str, path: str) -> Batch:
        """Make a batch of an uploaded file."""
        metadata = {CORPUS_KEY: label.corpus_id, SUBMISSION_KEY: label.submission_id}
        return await self._asked_batch(
            lambda: self._client.batches.create(
                input_file_id=file_id,
                endpoint=cast(Literal["/v1/chat/completions"], path),
                completion_window=cast(Literal["24h"], self._window),
                metadata=metadata,
                extra_headers=self._extra,
            )
        )

    async def retrieve(self, batch_id: str) -> Batch:
        """Return a batch as it stands."""
        client = self._client.batches
        return await self._asked_batch(lambda: client.retrieve(batch_id, extra_headers=self._extra))

    async def cancel(self, batch_id: str) -> Batch:
        """Ask that a batch end; return it as it stands then."""
        client = self._client.batches
        return await self._asked_batch(lambda: client.cancel(batch_id, extra_headers=self._extra))

    async def _asked_batch(self, call: Callable[[], Awaitable[Any]]) -> Batch:
        found = await self._asked(call)
        if not isinstance(found.id, str):
            raise TornAnswer(self._origin.sentence("the answer is not a batch"))
        return _batch(found, self._origin)

    async def batches(self, corpus_id: str, since: float) -> list[Batch]:
        """Return the batches of a corpus that were made since a time, the newest first."""
        first = await self._asked(
            lambda: self._client.batches.list(limit=_PAGE, extra_headers=self._extra)
        )
        found = [_batch(each, self._origin) async for each in self._pages(first, since)]
        return [b for b in found if b.label is not None and b.label.corpus_id == corpus_id]

    async def uploads(self, name: str, since: float) -> list[str]:
        """Return the ids of the files that were uploaded under a name since a time."""
        first = await self._asked(
            lambda: self._client.files.list(
                purpose="batch", limit=_PAGE, order="desc", extra_headers=self._extra
            )
        )
        pages = self._pages(first, since)
        return [str(each.id) async for each in pages if each.filename == name]

    async def _pages(self, page: Any, since: float) -> AsyncIterator[Any]:
        """Yield what a list holds, page by page, until all of a page is older than `since`."""
        while True:
            entries = getattr(page, "data", None)
            if entries is None:
                raise TornAnswer(self._origin.sentence("the answer is not a list"))
            for entry in entries:
                yield entry
            times = [entry.created_at for entry in entries if entry.created_at is not None]
            old = bool(times) and max(times) < since - _CLOCKS_APART_S
            if old or not entries or not page.has_next_page():
                return
            page = await self._asked(page.get_next_page)

    async def download(self, file_id: str, target: BinaryIO) -> None:
        """Append a file's content to a local one."""
        async with self._errors():
            files = self._client.files.with_streaming_response
            async with files.content(file_id, extra_headers=self._extra) as response:
                async for chunk in response.iter_bytes():
                    target.write(chunk)

    async def delete(self, file_id: str) -> None:
        """Delete a file; do nothing where it is not there."""
        try:
            await self._asked(lambda: self._client.files.delete(file_id, extra_headers=self._extra))
        except TeacherError as error:
            if error.http_status != 404:
                raise

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def _asked(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Return what a call of the package brings."""
        async with self._errors():
            found = await call()
        if isinstance(found, str) or (not hasattr(found, "id") and not hasattr(found, "data")):
            raise TornAnswer(self._origin.sentence("the answer is not JSON", str(found)[:200]))
        return found

    @asynccontextmanager
    async def _errors(self) -> AsyncIterator[None]:
        """Turn whatever the package or its transport raises into a `TeacherError`."""
        try:
            yield
        except (TeacherError, OSError):  # OSError: the local disk
            raise
        except openai.APIStatusError as error:
            answer = error.response
            raise from_status(
                self._origin, answer.status_code, answer.headers, answer.content
            ) from None
        except openai.APIConnectionError as error:
            raise self._unconnected(error, error.__cause__) from None
        except Exception as error:  # noqa: BLE001 - while a body is read, the transport's own
            what = f"{type(error).__name__}: {error}"
            raise TornAnswer(self._origin.sentence("the answer broke off", what)) from None

    def _unconnected(
        self, error: openai.APIConnectionError, cause: BaseException | None
    ) -> TeacherError:
        why = str(cause or "") or repr(cause or error)
        if _is_untrusted(cause):
            return TeacherBroken(
                self._origin.sentence(
                    "its certificate is not trusted; name the authority's file in the teacher's "
                    "ca_file",
                    why,
                )
            )
        if type(cause).__name__ in _UNCONNECTED:
            return NotConnected(self._origin.sentence("no connection", why))
        if isinstance(error, openai.APITimeoutError):
            return AnswerTimeout(self._origin.sentence("no answer within timeout_s"))
        return ConnectionFailed(self._origin.sentence("the connection failed", why))


def _is_untrusted(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _batch(found: Any, origin: Origin) -> Batch:
    """Return a batch from the package's object, of which servers may leave anything out."""
    counts = found.request_counts
    results = (found.output_file_id, found.error_file_id)
    problems = getattr(found.errors, "data", None) or ()
    return Batch(
        batch_id=str(found.id),
        status=str(found.status or "validating"),
        label=_label(found.metadata),
        created_at=_time(found.created_at),
        ended_at=_time(next(filter(None, (getattr(found, key) for key in _ENDINGS)), None)),
        expires_at=_time(found.expires_at),
        requests=getattr(counts, "total", None) or 0,
        completed=getattr(counts, "completed", None) or 0,
        failed=getattr(counts, "failed", None) or 0,
        request_file=found.input_file_id or None,
        result_files=tuple(str(file) for file in results if file),
        problems=tuple(_problem(each, origin) for each in problems),
    )


def _label(metadata: Any) -> Label | None:
    if not isinstance(metadata, dict) or SUBMISSION_KEY not in metadata:
        return None
    return Label(str(metadata.get(CORPUS_KEY)), str(metadata[SUBMISSION_KEY]))


def _problem(found: Any, origin: Origin) -> BatchProblem:
    line = found.line if isinstance(found.line, int) else None
    error = from_answer(origin, 200, {}, {"code": found.code, "message": found.message})
    kind: Literal["full", "quota", "model", "request", "batch"] = "batch"
    if str(found.code).lower() in _FULL_CODES:
        kind = "full"
    elif isinstance(error, QuotaExhausted):
        kind = "quota"
    elif isinstance(error, ModelNotFound):
        kind = "model"
    elif line is not None:
        kind = "request"
    return BatchProblem(kind, shortened(str(found.message or found.code or "no reason")), line)


def _time(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None
