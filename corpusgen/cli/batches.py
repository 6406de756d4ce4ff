"""The command that lists and cancels what is out at a provider's Batch API."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from corpusgen.cli.options import config_argument, json_option, print_json
from corpusgen.config_file import read_config
from corpusgen.pipeline.batches import BatchRow, list_batches


@click.command()
@config_argument
@click.option("--cancel", is_flag=True, help="End those that go on; what they answered is kept.")
@json_option
def batches(config: Path, overrides: tuple[str, ...], cancel: bool, as_json: bool) -> None:
    """List the corpus' batches at the provider, as the provider sees them."""
    rows = list_batches(read_config(config, overrides), cancel=cancel)
    if as_json:
        print_json(rows)
        return
    if not rows:
        click.echo("no batches")
        return
    _print(rows)
    if cancel:
        click.echo(
            "What was answered before is fetched, and billed, by the next `corpusgen run`, which "
            "also sends the rest again."
        )


def _print(rows: list[BatchRow]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no edge to wrap at
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("batch", "endpoint", "status", "made at", "in the corpus"):
        table.add_column(title, no_wrap=True)
    for title in ("requests", "answered", "failed"):
        table.add_column(title, justify="right")
    for row in rows:
        made = "" if row.made_at is None else _minute(row.made_at)
        table.add_row(
            row.batch_id or row.submission_id,
            row.endpoint,
            row.status,
            made,
            "yes" if row.fetched else "no",
            f"{row.requests:,}",
            f"{row.completed:,}",
            f"{row.failed:,}",
        )
    console.print(table)


def _minute(moment: float) -> str:
    return f"{datetime.fromtimestamp(moment, UTC).astimezone():%Y-%m-%d %H:%M}"


COMMANDS = (batches,)
