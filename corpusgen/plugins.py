"""Find teachers, filters and exporters by entry point; the built-in ones come the same way."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from corpusgen.errors import ConfigError

TEACHERS = "corpusgen.teachers"
FILTERS = "corpusgen.filters"
EXPORTERS = "corpusgen.exporters"

_WORDS = {TEACHERS: "teacher", FILTERS: "filter", EXPORTERS: "export format"}


def names(group: str) -> list[str]:
    """Return the names registered in a group, sorted."""
    return sorted({entry.name for entry in entry_points(group=group)})


def load(group: str, name: str) -> Callable[..., Any]:
    """Return the factory registered under a name.

    Raises `ConfigError` where there is none, or where its module cannot be imported.
    """
    found = [entry for entry in entry_points(group=group) if entry.name == name]
    word = _WORDS[group]
    if not found:
        known = names(group)
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
        raise ConfigError(f"there is no {word} named {name}. {hint}")
    try:
        factory = found[0].load()
    except Exception as error:  # a plug-in's import may raise anything
        raise ConfigError(
            f"the {word} {name} ({found[0].value}) cannot be loaded: "
            f"{type(error).__name__}: {error}."
        ) from error
    if not callable(factory):
        raise ConfigError(f"the {word} {name} ({found[0].value}) is not a function.")
    return factory  # type: ignore[no-any-return]


def fingerprint(group: str, name: str) -> str | None:
    """Return what changes with a plug-in's code: its package's version and its module's digest.

    Null for the built-in ones, whose users carry an algorithm version, and for unknown names.
    """
    found = [entry for entry in entry_points(group=group) if entry.name == name]
    if not found or found[0].value.startswith("corpusgen."):
        return None
    spec = find_spec(found[0].module)
    origin = Path(spec.origin) if spec is not None and spec.origin else None
    source = origin.read_bytes() if origin is not None and origin.is_file() else b""
    version = found[0].dist.version if found[0].dist is not None else ""
    return f"{found[0].value} {version} {hashlib.blake2b(source, digest_size=16).hexdigest()}"
