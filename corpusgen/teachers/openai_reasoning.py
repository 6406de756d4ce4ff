"""Split reasoning that a model writes into its answer's text off into `Answer.reasoning`.

Servers with a reasoning parser do this themselves; this is for those without. The token trace
stays whole: its positions are the tokens of both.
"""

from __future__ import annotations

import msgspec

from corpusgen.types import Answer, Reply


def split_reasoning(reply: Reply, tag: str) -> Reply:
    """Return the reply with the leading `<tag>…</tag>` of each answer as its reasoning."""
    answers = [_split(answer, f"<{tag}>", f"</{tag}>") for answer in reply.answers]
    return msgspec.structs.replace(reply, answers=answers)


def _split(answer: Answer, opening: str, closing: str) -> Answer:
    """Split one answer; one whose server told the reasoning apart stays as it is.

    The opening tag may be missing, because some chat templates end the prompt with it. An answer
    that was cut off within its reasoning is reasoning only.
    """
    if answer.reasoning is not None:
        return answer
    text = answer.text
    begun = text.lstrip()
    opened = begun.startswith(opening)
    inside, closed, after = (begun.removeprefix(opening) if opened else text).partition(closing)
    if not (opened or closed):
        return answer
    return msgspec.structs.replace(
        answer, reasoning=inside.strip() or None, text=after.lstrip("\r\n")
    )
