"""Show a run while it goes on: a live line on a terminal, log lines elsewhere, or JSON events."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from corpusgen import events
from corpusgen.events import Event, Observer, Progress

LINE_S = 15.0
"""Seconds between progress lines where there is no terminal."""


@contextmanager
def watching(*, quiet: bool, verbose: bool, as_json: bool) -> Iterator[Observer]:
    """Yield the observer that fits: JSON on stdout, a live line or log lines on stderr."""
    console = Console(stderr=True, highlight=False)
    if as_json:
        yield _print_json
    elif console.is_terminal and not quiet:
        live = Live(console=console, refresh_per_second=4, transient=True)
        try:
            yield _Lines(console, verbose=verbose, quiet=False, live=live)
        finally:
            live.stop()
    else:
        yield _Lines(console, verbose=verbose, quiet=quiet, live=None)


def _print_json(event: Event) -> None:
    sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
    sys.stdout.flush()


class _Lines:
    """Write events as lines; keep the latest progress in the live line."""

    def __init__(self, console: Console, *, verbose: bool, quiet: bool, live: Live | None) -> None:
        self._console = console
        self._verbose = verbose
        self._quiet = quiet
        self._live = live
        self._last_line = time.monotonic()
        self._last_told: Progress | None = None

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Progress):
            self._progress(event)
            return
        line = self._line(event)
        if line is not None:
            stamp = "" if self._live is not None else time.strftime("%H:%M:%S ")
            self._console.print(f"{stamp}{escape(line)}", soft_wrap=True)

    def _progress(self, progress: Progress) -> None:
        if self._live is not None:
            self._live.start()  # not before: until then somebody may be asked something
            self._live.update(_panel(progress))
            return
        last = progress.in_flight == 0 and progress.done != getattr(self._last_told, "done", -1)
        if not self._quiet and (last or time.monotonic() - self._last_line >= LINE_S):
            self._last_line = time.monotonic()
            self._last_told = progress
            stamp = time.strftime("%H:%M:%S ")
            self._console.print(f"{stamp}{escape(progress_text(progress))}", soft_wrap=True)

    def _line(self, event: Event) -> str | None:
        match event:
            case events.Log(level, message):
                shown = level == "warning" or not self._quiet
                return message if shown and (level != "debug" or self._verbose) else None
            case _ if self._quiet:
                return None
            case events.Planned():
                return _planned_text(event)
            case events.Estimated(samples=samples, cost_usd=cost) if samples and cost.expected:
                return f"estimated: {samples:,} samples for ${cost.expected}"
            case events.Committed() if self._verbose:
                return (
                    f"committed partition {event.partition} part {event.part}: "
                    f"{event.generations} generations, {event.failures} failures"
                )
            case events.Curated():
                dropped = ", ".join(f"{count} {name}" for name, count in event.dropped.items())
                again = " (found done)" if event.reused else ""
                return (
                    f"curated: {event.kept} of {event.generations} kept"
                    f"{f'; dropped: {dropped}' if dropped else ''}{again}"
                )
            case events.Exported():
                rows = ", ".join(f"{count} {split}" for split, count in event.rows.items())
                return f"exported {event.name}: {rows}{' (found done)' if event.reused else ''}"
            case _:
                return None


def _planned_text(event: events.Planned) -> str:
    parts = [f"planned: {event.samples:,} samples"]
    if event.new_samples and event.new_samples != event.samples:
        parts.append(f"{event.new_samples:,} of them new")
    if event.aliases:
        parts.append(f"{event.aliases:,} rows repeat an earlier prompt")
    if event.retired:
        parts.append(f"{event.retired:,} retired")
    if event.bad_prompts:
        parts.append(f"{event.bad_prompts:,} bad prompts")
    return ", ".join(parts)


def progress_text(progress: Progress) -> str:
    """Return progress as one line of words."""
    share = progress.done / progress.total if progress.total else 1.0
    parts = [
        f"{progress.done:,}/{progress.total:,} ({share:.0%})",
        f"{progress.tokens_per_s:,.0f} tokens/s",
        f"{progress.in_flight} in flight",
    ]
    if progress.failures:
        reasons = ", ".join(f"{count} {reason}" for reason, count in progress.failures.items())
        parts.append(f"failed: {reasons}")
    if progress.retries:
        parts.append(f"{progress.retries} attempts failed")
    if progress.cost_usd not in (None, "0"):
        parts.append(f"${float(progress.cost_usd or 0):.4f}")
    if progress.remaining_s is not None and progress.done < progress.total:
        parts.append(f"{duration(progress.remaining_s)} left")
    return " · ".join(parts)


def _panel(progress: Progress) -> Table:
    grid = Table.grid(padding=(0, 1))
    grid.add_row(
        ProgressBar(total=max(progress.total, 1), completed=progress.done, width=24),
        escape(progress_text(progress)),
    )
    return grid


def duration(seconds: float) -> str:
    """Return seconds for people: `42 s`, `3 min 10 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
