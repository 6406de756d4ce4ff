"""Keep text that UTF-8 cannot hold out of files: JSON may spell half a character."""

from __future__ import annotations

import re
from typing import overload

_SURROGATES = re.compile("[\ud800-\udfff]")


@overload
def storable(text: str) -> str: ...
@overload
def storable(text: str | None) -> str | None: ...
def storable(text: str | None) -> str | None:
    """Return text with each lone surrogate replaced by U+FFFD; null stays null."""
    if text is None or text.isascii():
        return text
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", text)
