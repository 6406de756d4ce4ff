"""Guess what a request will use, for limits by tokens; money is reserved by its worst case.

The guess follows the mean of the answers so far, exponentially weighted, from a first one that is
only as good as any. Each request is settled on its real usage, so that an error does not last.
"""

from __future__ import annotations

from corpusgen.limits.worst_case import most_tokens, worst_case_tokens
from corpusgen.types import Request, Usage

_FIRST_SHARE = 0.25
"""Prompt tokens a byte, before any answer says better."""
_FIRST_ANSWER = 256.0
_WEIGHT = 0.05


class Expectation:
    """The mean usage of one teacher's answers."""

    def __init__(self) -> None:
        self._share = _FIRST_SHARE
        self._answer = _FIRST_ANSWER

    def tokens(self, request: Request) -> tuple[int, int]:
        """Return how many tokens a request will probably use, and how many at the most.

        Prompt and draws together; the prompt's are a guess in both.
        """
        prompt = self._share * worst_case_tokens(
            request.messages, request.tools, request.response_format
        )
        longest = most_tokens(request.sampling)
        answer = self._answer if longest is None else min(self._answer, longest)
        most = answer if longest is None else longest
        return (
            max(int(prompt + request.draws * answer), 1),
            max(int(prompt + request.draws * most), 1),
        )

    def learn(self, request: Request, usage: Usage) -> None:
        """Take one answer's usage into the mean."""
        if usage.prompt_tokens is None or usage.completion_tokens is None:
            return
        most = worst_case_tokens(request.messages, request.tools, request.response_format)
        self._share += _WEIGHT * (usage.prompt_tokens / max(most, 1) - self._share)
        self._answer += _WEIGHT * (usage.completion_tokens / request.draws - self._answer)
