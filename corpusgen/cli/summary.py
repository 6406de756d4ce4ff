"""Print how a command ended: counts, where everything lies, and what to do next."""

from __future__ import annotations

from rich.console import Console

from corpusgen.errors import ExitCode
from corpusgen.pipeline import Result


def print_result(result: Result) -> None:
    """Print a result for people."""
    console = Console(highlight=False, soft_wrap=True)
    rows = [("corpus", str(result.corpus)), ("samples", _samples(result))]
    if result.kept is not None:
        rows.append(("kept", f"{result.kept:,} of {result.generations:,} generations"))
    if result.cost_usd is not None:
        rows.append(("cost", result.cost_usd))
    for directory in result.datasets:
        rows.append(("dataset", str(directory)))
    if result.datasets:
        rows.append(("card", str(result.datasets[0] / "README.md")))
    if result.report is not None:
        rows.append(("report", str(result.report)))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        console.print(f"{name:<{width}}  {value}", markup=False)
    if result.message and result.message != "complete":
        console.print(f"{result.message.rstrip('.')}.", markup=False)
    if result.report is not None:
        console.print(f"next: {_next_step(result)}", markup=False)


def _samples(result: Result) -> str:
    parts = [f"{result.samples:,} planned", f"{result.generations:,} answered"]
    if result.failures:
        parts.append(f"{result.failures:,} failed")
    if result.pending:
        parts.append(f"{result.pending:,} pending")
    return ", ".join(parts)


def _next_step(result: Result) -> str:
    if result.exit_code is ExitCode.FAILED_SAMPLES:
        return f"see why with `corpusgen show {result.corpus} --failures`"
    if not result.kept:
        return f"nothing was kept; see why with `corpusgen show {result.corpus} --dropped`"
    if result.datasets:
        return (
            f"open {result.report} in a browser; load the rows with "
            f'datasets.load_dataset("{result.datasets[0]}")'
        )
    return f"open {result.report} in a browser"
