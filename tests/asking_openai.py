"""Ask a remote teacher in a test: make one, send it requests, keep its replies or its error."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from corpusgen import errors
from corpusgen.config import OpenAIEndpoint, OpenAITeacher
from corpusgen.teachers.openai import RemoteTeacher, create
from corpusgen.types import Reply, Request, Sampling


def teacher_at(base_url: str, *, endpoint: dict[str, Any] | None = None, **keys: Any) -> Any:
    place = OpenAIEndpoint(base_url=base_url, **(endpoint or {}))
    return create("teacher", OpenAITeacher(model="m", endpoints=[place], **keys))


def request(prompt: str, **keys: Any) -> Request:
    keys.setdefault("sampling", Sampling())
    return Request(messages=[{"role": "user", "content": prompt}], **keys)


def ask(teacher: RemoteTeacher, *requests: Request) -> list[Reply]:
    async def run() -> list[Reply]:
        await teacher.open()
        try:
            asked = (teacher.generate(r, teacher.endpoints[0]) for r in requests)
            return list(await asyncio.gather(*asked))
        finally:
            await teacher.close()

    return asyncio.run(run())


def fail(teacher: RemoteTeacher, prompt: str) -> errors.TeacherError:
    with pytest.raises(errors.TeacherError) as caught:
        ask(teacher, request(prompt))
    return caught.value
