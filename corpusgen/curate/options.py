"""Decode a filter's options strictly, so that a misspelt threshold never passes in silence.

It knows no filter: each one defines a struct of its own and hands it over.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, TypeVar

import msgspec

from corpusgen.errors import ConfigError

Options = TypeVar("Options", bound=msgspec.Struct)

_PATH = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")


def decode(name: str, options: dict[str, Any], kind: type[Options]) -> Options:
    """Turn a filter's options into its struct.

    Raises `ConfigError` that names `curate.filters: <filter>.<key>`, and the nearest known key
    where the key is unknown.
    """
    known = kind.__struct_fields__
    for key in options:
        if key not in known:
            raise ConfigError(f"{where(name, str(key))} is not an option. {_hint(key, known)}")
    try:
        return msgspec.convert(options, kind, strict=True)
    except msgspec.ValidationError as error:
        message = str(error)
        located = _PATH.search(message)
        problem = message[: located.start()] if located else message
        at = where(name, located.group(1) if located else "")
        raise ConfigError(f"{at}: {problem[0].lower()}{problem[1:].replace('`', '')}.") from None


def where(name: str, key: str = "") -> str:
    """Return how a message names a filter's option."""
    return f"curate.filters: {name}.{key}" if key else f"curate.filters: {name}"


def _hint(key: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean {near[0]}?"
    return f"Known: {', '.join(known)}." if known else "It takes no options."
