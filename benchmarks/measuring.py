"""Measure processes on a core of their own, and hold what was measured against a bar.

Every benchmark compares within one run: the server on one core, its clients on another, one after
the other. CPU time is user and system time of the process and of the children it waited for.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

ROOT = Path(__file__).resolve().parent.parent
SERVER_CPU, CLIENT_CPU = 0, 1


class Used(msgspec.Struct, frozen=True):
    """What a child process took, and the last line that it printed, as JSON."""

    wall_s: float
    cpu_s: float
    said: dict[str, Any]


class Bar(msgspec.Struct, frozen=True):
    """A figure that must not be missed."""

    what: str
    value: float
    at_least: float | None = None
    at_most: float | None = None

    @property
    def limits(self) -> str:
        """What is allowed, as text."""
        bounds = (("at least", self.at_least), ("at most", self.at_most))
        return ", ".join(f"{word} {bound:g}" for word, bound in bounds if bound is not None)

    @property
    def passed(self) -> bool:
        """Whether the figure is on the right side."""
        return (self.at_least is None or self.value >= self.at_least) and (
            self.at_most is None or self.value <= self.at_most
        )


class Report:
    """What a benchmark measured: printed for people or as JSON, and judged."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rows: list[dict[str, Any]] = []
        self._notes: list[str] = []
        self._bars: list[Bar] = []

    def row(self, **figures: Any) -> None:
        """Add a line of the table; each line has the same figures."""
        self._rows.append(figures)

    def note(self, sentence: str) -> None:
        """Add a sentence below the table."""
        self._notes.append(sentence)

    def bar(self, what: str, value: float, **limit: float) -> None:
        """Hold a figure against `at_least` or `at_most`."""
        self._bars.append(Bar(what, value, **limit))

    def finish(self, *, as_json: bool) -> int:
        """Print everything; return 1 where a bar is missed, else 0."""
        passed = all(bar.passed for bar in self._bars)
        print(self._json(passed) if as_json else self._text())
        return 0 if passed else 1

    def _json(self, passed: bool) -> str:
        bars = [{**msgspec.structs.asdict(bar), "passed": bar.passed} for bar in self._bars]
        content = {
            "benchmark": self._title,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "rows": self._rows,
            "notes": self._notes,
            "bars": bars,
            "passed": passed,
        }
        return json.dumps(content)

    def _text(self) -> str:
        lines = [self._title, *_table(self._rows), *self._notes]
        for bar in self._bars:
            verdict = "ok" if bar.passed else "MISSED"
            lines.append(f"{verdict:<7} {bar.what}: {bar.value:.4g} (bar {bar.limits})")
        return "\n".join(lines)


def _table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if not rows:
        return []
    cells = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows a script's docstring and knows `--json`."""
    parser = argparse.ArgumentParser(description=doc)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def pin() -> tuple[str, ...]:
    """Keep this process and its children on the client's core; return the server's option.

    On a machine with one core, or without affinities, nothing is pinned.
    """
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        return ()
    server, client = sorted(os.sched_getaffinity(0))[SERVER_CPU : CLIENT_CPU + 1]
    os.sched_setaffinity(0, {client})
    return ("--cpu", str(server))


def cpu_s() -> float:
    """Return the CPU seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def child(
    python: str | Path, script: Path, asked: Mapping[str, Any], environment: Mapping[str, str] = {}
) -> Used:
    """Run a client's script to its end; what it is asked travels as JSON.

    Raises `RuntimeError` with the end of its output where it fails.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [str(python), str(script), json.dumps(asked)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    assert process.stdout is not None
    with process.stdout as stdout:
        printed = stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    lines = [line for line in printed.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise RuntimeError(f"{script.name} failed:\n{printed[-4000:]}")
    wall = time.perf_counter() - began
    return Used(wall, used.ru_utime + used.ru_stime, json.loads(lines[-1]))


def leave(report: Report, chosen: argparse.Namespace) -> None:
    """Print a report and end the script with its verdict."""
    sys.exit(report.finish(as_json=chosen.json))
