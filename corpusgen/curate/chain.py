"""Run the configured filters over a table, one after the other.

The first filter that objects to a row names its verdict; later ones do not see that row. A filter
that raises, or returns something other than one reason a row, is asked again row by row, and drops
the rows on which it still raises: a bad row is data, and so is a filter's bug on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import pyarrow as pa

from corpusgen import plugins, schema
from corpusgen.config import Curate
from corpusgen.curate.interface import Filter
from corpusgen.errors import ConfigError

LONGEST_ERROR = 200
"""Characters of an exception's message that are kept in a reason."""


class NamedFilter(msgspec.Struct, frozen=True):
    """A filter with the name under which it is registered."""

    name: str
    filter: Filter


class Verdict(msgspec.Struct, frozen=True):
    """Why a row is dropped."""

    filter: str
    reason: str


def load_filters(settings: Curate) -> tuple[NamedFilter, ...]:
    """Make the configured filters, so that a mistake is met before anything is paid for.

    Raises `ConfigError` on an unknown filter, option, or generation column.
    """
    return tuple(_load(name, options) for name, options in filter_options(settings))


def filter_options(settings: Curate) -> list[tuple[str, dict[str, object]]]:
    """Return the configured filters' names and options, in order."""
    found: list[tuple[str, dict[str, object]]] = []
    for entry in settings.filters:
        if isinstance(entry, str):
            found.append((entry, {}))
        elif len(entry) == 1:
            found.extend(entry.items())
        else:
            raise ConfigError(
                f"curate.filters: an entry holds {len(entry)} filters "
                f"({', '.join(entry) or 'none'}); give each an entry of its own."
            )
    return found


def judge(filters: Sequence[NamedFilter], table: pa.Table) -> list[Verdict | None]:
    """Return a verdict for each row that is dropped, null for each that is kept."""
    verdicts: list[Verdict | None] = [None] * table.num_rows
    alive = np.arange(table.num_rows)
    for named in filters:
        if not len(alive):
            break
        rows = table.select(list(named.filter.columns)) if named.filter.columns else table
        reasons = _ask(named.filter, rows if len(alive) == len(rows) else rows.take(alive))
        for row, reason in zip(alive.tolist(), reasons, strict=True):
            if reason is not None:
                verdicts[row] = Verdict(named.name, reason)
        alive = alive[[reason is None for reason in reasons]]
    return verdicts


def _load(name: str, options: dict[str, object]) -> NamedFilter:
    made = plugins.load(plugins.FILTERS, name)(options)
    for column in made.columns:
        if column not in schema.GENERATIONS.names:
            raise ConfigError(
                f"curate.filters: the filter {name} reads the column {column}, "
                "which generations do not have; correct the filter."
            )
    return NamedFilter(name, made)


def _ask(judge: Filter, table: pa.Table) -> list[str | None]:
    try:
        return _checked(judge.judge(table), table.num_rows)
    except Exception:  # noqa: BLE001 - a plug-in may raise anything
        return [_ask_one(judge, table.slice(row, 1)) for row in range(table.num_rows)]


def _ask_one(judge: Filter, row: pa.Table) -> str | None:
    try:
        return _checked(judge.judge(row), 1)[0]
    except Exception as error:  # noqa: BLE001 - a plug-in may raise anything
        lines = str(error).splitlines()
        message = lines[0] if lines else type(error).__name__
        return f"error: {message[:LONGEST_ERROR]}"


def _checked(reasons: list[str | None], rows: int) -> list[str | None]:
    reasons = list(reasons)
    if len(reasons) != rows:
        raise ValueError(f"the filter returned {len(reasons)} reasons for {rows} rows")
    for reason in reasons:
        if reason is not None and not isinstance(reason, str):
            raise TypeError(f"the filter returned {type(reason).__name__} instead of a reason")
    return reasons
