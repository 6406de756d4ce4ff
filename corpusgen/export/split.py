"""Divide rows into splits by their prompt, for ever the same way.

A prompt's side is a hash of the split's seed and of its messages, and of nothing else: draws of one
prompt, and one prompt in two sets, fall on the same side, and a corpus that grows moves no row. A
larger share only moves prompts from train to validation.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from corpusgen.config import Split

TRAIN = "train"
VALIDATION = "validation"


def in_validation(messages: pa.ChunkedArray, split: Split) -> npt.NDArray[np.bool_]:
    """Return, for each prompt, whether it belongs to the validation split."""
    if split.validation <= 0 or split.validation >= 1:
        return np.full(len(messages), split.validation >= 1)
    return np.fromiter(
        (fraction(turns, split.seed) < split.validation for turns in messages.to_pylist()),
        bool,
        len(messages),
    )


def fraction(messages: list[dict[str, Any]], seed: int) -> float:
    """Return where a prompt lies between 0 and 1: a uniform hash of its messages and the seed."""
    turns = [{key: value for key, value in turn.items() if value is not None} for turn in messages]
    canonical = msgspec.json.encode([seed, turns], order="deterministic")
    digest = hashlib.blake2b(canonical, digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
