"""The command `ledger`: what was asked and what it cost, for people, for CSV and for JSON."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from corpusgen.cli.options import corpus_argument, json_option, opened_with_config, print_json
from corpusgen.ledger import (
    Ledger,
    Sums,
    gpus_of,
    latest_curation,
    ledger_csv,
    ledger_json,
    read_ledger,
    ways,
)
from corpusgen.money import dollars_text

_COLUMNS = (
    "attempts",
    "answered",
    "prompt tok",
    "cached",
    "completion tok",
    "reasoning",
    "accepted",
    "cost",
)


@click.command()
@corpus_argument
@click.option("--csv", "as_csv", is_flag=True, help="Print one tidy table as CSV.")
@json_option
def ledger(corpus: Path, as_csv: bool, as_json: bool) -> None:
    """Tell what was asked and what it cost, every attempt included.

    Given a configuration, it tells the cost of machines (`gpu`) as well.
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json exclude each other.")
    found, config = opened_with_config(corpus)
    gpus = {} if config is None else gpus_of(config)
    books = read_ledger(found, latest_curation(found), gpus)
    if as_json:
        print_json(ledger_json(books))
    elif as_csv:
        click.echo(ledger_csv(books), nl=False)
    else:
        _print(books)


def _print(books: Ledger) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200  # a file or a pipe has no edge to wrap at
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for title in _COLUMNS:
        table.add_column(title, justify="right")
    table.add_row("total", *_cells(books.total))
    for way, found in ways(books).items():
        for key, sums in sorted(found.items()):
            table.add_row(escape(f"{way.replace('_', ' ')}: {key}"), *_cells(sums))
    console.print(table)
    for line in _lines(books):
        console.print(line, markup=False)


def _cells(sums: Sums) -> list[str]:
    counts = (
        sums.attempts,
        sums.answered,
        sums.prompt_tokens,
        sums.cached_tokens,
        sums.completion_tokens,
        sums.reasoning_tokens,
        sums.accepted,
    )
    cost = dollars_text(sums.cost_picousd) if sums.cost_known else "unknown"
    return [*(f"{count:,}" for count in counts), cost]


def _lines(books: Ledger) -> list[str]:
    total, lines = books.total, []
    for teacher, gpu in sorted(books.gpu.items()):
        lines.append(
            f"machines of {teacher}: {gpu.count} x {gpu.busy_us / 3_600_000_000:,.3f} h at "
            f"${gpu.usd_per_hour} an hour: {dollars_text(gpu.cost_picousd)}."
        )
    if total.attempts and total.unreserved == total.attempts:
        lines.append("The price is unknown; set teacher.price to have the cost counted.")
    else:
        if total.unreserved:
            lines.append(
                f"{total.unreserved:,} attempts have no known price; set the teacher's price to "
                "have their cost counted."
            )
        if total.unknown_cost > total.unreserved:
            lines.append(
                f"{total.unknown_cost - total.unreserved:,} attempts have no known cost; they are "
                f"charged at their worst case, {dollars_text(total.reserved_picousd)}."
            )
    if books.kept is not None:
        lines.append(_accepted(books))
    return lines


def _accepted(books: Ledger) -> str:
    text = f"{books.total.accepted:,} of {books.generations:,} generations are accepted"
    each, million = books.cost_per_accepted_picousd, books.cost_per_accepted_mtok_picousd
    if each is not None:
        text += f": {dollars_text(each)} each"
    if million is not None:
        text += f", {dollars_text(million)} a million of their completion tokens"
    return f"{text}."
