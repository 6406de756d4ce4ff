"""Write a ledger down for machines: one tidy table as CSV, or a tree as JSON."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import StringIO
from typing import Any

import msgspec

from corpusgen.ledger.sums import Ledger, Sums
from corpusgen.money import dollars

COLUMNS = (
    "dimension",
    "key",
    "attempts",
    "answered",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "cost_usd",
    "unknown_cost",
    "reserved_usd",
    "generations",
    "accepted",
    "accepted_tokens",
    "busy_s",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""Beginnings at which a spreadsheet takes a cell for a formula."""


def ways(ledger: Ledger) -> dict[str, dict[str, Sums]]:
    """Return the ways of looking at a ledger by their name; each sums up to the total."""
    return {
        "outcome": ledger.by_outcome,
        "fate": ledger.by_fate,
        "endpoint": ledger.by_endpoint,
        "teacher": ledger.by_teacher,
        "prompt_set": ledger.by_prompt_set,
        "day": ledger.by_day,
    }


def ledger_csv(ledger: Ledger) -> str:
    """Return one tidy table: a row for the total, for each key of each way, and for machines.

    Dollars are exact decimal text, and empty where no cost is known. A key that a spreadsheet
    would take for a formula gets an apostrophe before it.
    """
    out = StringIO()
    writer = csv.DictWriter(out, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    for row in _rows(ledger):
        writer.writerow({**row, "key": _safe(str(row["key"]))})
    return out.getvalue()


def _rows(ledger: Ledger) -> Iterator[dict[str, object]]:
    yield _row("total", "", ledger.total)
    for way, found in ways(ledger).items():
        for key, sums in sorted(found.items()):
            yield _row(way, key, sums)
    for teacher, gpu in sorted(ledger.gpu.items()):
        yield {
            "dimension": "gpu",
            "key": teacher,
            "cost_usd": dollars(gpu.cost_picousd),
            "busy_s": f"{gpu.busy_us // 1_000_000}.{gpu.busy_us % 1_000_000:06d}",
        }


def _row(way: str, key: str, sums: Sums) -> dict[str, object]:
    row: dict[str, object] = {"dimension": way, "key": key}
    row |= {name: getattr(sums, name) for name in COLUMNS if hasattr(sums, name)}
    row["reserved_usd"] = dollars(sums.reserved_picousd)
    if sums.cost_known:
        row["cost_usd"] = dollars(sums.cost_picousd)
    return row


def _safe(key: str) -> str:
    return f"'{key}" if key.startswith(_FORMULA) else key


def ledger_json(ledger: Ledger) -> dict[str, Any]:
    """Return a ledger as plain values, with what its sums come to."""
    told: dict[str, Any] = msgspec.to_builtins(ledger)
    return told | {
        "charged_picousd": ledger.charged_picousd,
        "gpu_picousd": ledger.gpu_picousd,
        "cost_per_accepted_picousd": ledger.cost_per_accepted_picousd,
        "cost_per_accepted_mtok_picousd": ledger.cost_per_accepted_mtok_picousd,
    }
