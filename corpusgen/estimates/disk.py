"""Say how much disk a prompt set's answers take, as committed Parquet.

Measured on SmolLM2's answers to GSM8K, compressed as they are written here: a token's text takes
1.4 bytes and its id 1.4; with logprobs the sampled one takes 2.6 and each alternative 3.3, or 1.5
more with `logprob_precision: float32`; a byte of prompt takes 0.5, and a row with its attempt about
150. Journals of open partitions and exported datasets come on top.
"""

from __future__ import annotations

from corpusgen.estimates.pending import Asked
from corpusgen.estimates.pilot import Pilot

_ROW = 150
_PROMPT_BYTE = 0.5
_TEXT, _ID, _SAMPLED, _ALTERNATIVE, _FULL_PRECISION = 1.4, 1.4, 2.6, 3.3, 1.5


def disk_bytes(
    asked: Asked, pilot: Pilot | None, tokens: int, ids: bool, top_logprobs: int, precision: str
) -> int:
    """Return about how many bytes answers of so many tokens take; as earlier ones, if many are."""
    if pilot is not None and pilot.bytes_an_answer is not None:
        return int(asked.samples * pilot.bytes_an_answer)
    token = _TEXT + (_ID if ids else 0.0)
    if top_logprobs:
        token += _SAMPLED + top_logprobs * _ALTERNATIVE
        if precision == "float32":
            token += (1 + top_logprobs) * _FULL_PRECISION
    return round(asked.samples * _ROW + asked.bytes * _PROMPT_BYTE + tokens * token)
