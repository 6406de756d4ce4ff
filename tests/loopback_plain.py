"""What the loopback server says at `/completions`: the same answers, in the legacy shape."""

from __future__ import annotations

from typing import Any

import msgspec

from tests.loopback_text import Drawn, Ids, candidates_of, envelope, logprob_of, token_of


def text_body(
    model: str, number: int, answers: list[Drawn], prompted: int, top: int | None, ids: Ids
) -> bytes:
    """Encode a plain completion; `top` is null where no logprobs were asked for."""
    choices = [_choice(i, answer, prompted, top, ids) for i, answer in enumerate(answers)]
    return msgspec.json.encode(
        envelope(model, number, "text_completion", answers, prompted, choices)
    )


def _choice(index: int, answer: Drawn, prompted: int, top: int | None, ids: Ids) -> dict[str, Any]:
    choice = {
        "index": index,
        "text": answer.message["content"] or "",
        "logprobs": None if top is None else _lists(answer.words, top, ids.written),
        "finish_reason": answer.finish_reason,
    }
    if not ids.listed:
        return choice
    return choice | {"token_ids": answer.words, "prompt_token_ids": list(range(prompted))}


def _lists(words: list[int], top: int, written: bool) -> dict[str, Any]:
    """Return parallel lists; the sampled token comes first and in addition to the k, as vLLM's."""
    tokens = [token_of(word, i == 0, written) for i, word in enumerate(words)]
    distributions = []
    for i, (word, token) in enumerate(zip(words, tokens, strict=True)):
        first = {token: logprob_of(word)}
        others = {token_of(w, i == 0, written): value for w, value in candidates_of(word, top)}
        distributions.append(first | others)
    return {
        "tokens": tokens,
        "token_logprobs": [logprob_of(word) for word in words],
        "top_logprobs": distributions,
        "text_offset": [sum(map(len, tokens[:i])) for i in range(len(tokens))],
    }
