"""Find teachers, filters and exporters by entry point; the built-in ones come the same way."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from importlib.metadata import entry_points
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
