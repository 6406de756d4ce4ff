"""Reasoning that a model writes into its text, split off."""

from __future__ import annotations

import numpy as np
import pytest

from corpusgen.teachers.openai_reasoning import split_reasoning
from corpusgen.types import Answer, Reply, TokenTrace


def split(text: str, **keys: object) -> Answer:
    answer = Answer(text=text, finish_reason="stop", **keys)  # type: ignore[arg-type]
    (found,) = split_reasoning(Reply(answers=[answer]), "think").answers
    return found


@pytest.mark.parametrize(
    ("text", "reasoning", "rest"),
    [
        ("<think>hm</think>yes", "hm", "yes"),
        ("<think>\nhm\n</think>\n\nyes\n", "hm", "yes\n"),
        ("\n<think>hm</think>    code", "hm", "    code"),
        ("hm\n</think>\nyes", "hm", "yes"),  # the template has the opening tag
        ("<think>cut off", "cut off", ""),
        ("<think>", None, ""),
        ("<think>\n\n</think>\n\nyes", None, "yes"),
        ("yes", None, "yes"),
        ("", None, ""),
        ("say <think> aloud", None, "say <think> aloud"),
        ("<think>a</think>b</think>c", "a", "b</think>c"),
        ("<THINK>a</THINK>b", None, "<THINK>a</THINK>b"),
    ],
)
def test_the_leading_block_becomes_reasoning(text: str, reasoning: str | None, rest: str) -> None:
    answer = split(text)
    assert (answer.reasoning, answer.text) == (reasoning, rest)


def test_what_the_server_split_stays_and_so_does_the_trace() -> None:
    trace = TokenTrace(ids=np.arange(4, dtype=np.int32))
    answer = split("<think>hm</think>yes", trace=trace, completion_tokens=4)
    assert answer.trace is trace
    assert answer.completion_tokens == 4
    assert split("<think>a</think>b", reasoning="told").text == "<think>a</think>b"
