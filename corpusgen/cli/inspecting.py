"""The commands that only read: verify, ledger, status, show, teachers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from corpusgen import plugins
from corpusgen.cli.options import corpus_argument, json_option, opened
from corpusgen.cli.rows import print_rows
from corpusgen.cli.status import read_status, status_lines
from corpusgen.corpus import Corpus
from corpusgen.curate.run import read_curation
from corpusgen.ledger import Ledger, Sums, dollars_text, read_ledger
from corpusgen.verify import verify as prove


def _print_json(value: Any) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def _kept(corpus: Corpus) -> int | None:
    curations = corpus.curations()
    result = read_curation(curations[-1]) if curations else None
    return None if result is None else result.kept


@click.command()
@corpus_argument
@click.option("--complete", is_flag=True, help="Make a pending sample a contradiction as well.")
@json_option
def verify(corpus: Path, complete: bool, as_json: bool) -> None:
    """Prove from the files that nothing is missing, twice or uncharged; exit 1 where not."""
    proof = prove(opened(corpus), complete=complete)
    if as_json:
        _print_json(proof)
        return
    click.echo(
        f"verified: {proof.samples:,} samples = {proof.generations:,} generations + "
        f"{proof.failures:,} failures + {proof.pending:,} pending; {proof.attempts:,} attempts "
        f"({proof.lost_attempts:,} lost), {proof.files:,} files, {proof.curations:,} curations, "
        f"{proof.exports:,} exports"
    )
    if proof.positions_without_distribution:
        click.echo(
            f"{proof.positions_without_distribution:,} token positions have no distribution "
            "(inside split characters)"
        )


@click.command()
@corpus_argument
@json_option
def ledger(corpus: Path, as_json: bool) -> None:
    """Tell what was asked and what it cost, every attempt included."""
    found = opened(corpus)
    sums = read_ledger(found, _kept(found))
    if as_json:
        _print_json(
            {
                **msgspec.to_builtins(sums),
                "cost_per_kept_picousd": sums.cost_per_kept_picousd,
                "charged_picousd": sums.charged_picousd,
            }
        )
        return
    _print_ledger(sums)


def _print_ledger(ledger: Ledger) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 160  # a file or a pipe has no edge to wrap at
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for title in ("attempts", "answered", "prompt tok", "cached", "completion tok", "cost"):
        table.add_column(title, justify="right")
    table.add_row("total", *_cells(ledger.total, ledger.price_known))
    for title, groups in (
        ("outcome", ledger.by_outcome),
        ("endpoint", ledger.by_endpoint),
        ("teacher", ledger.by_teacher),
        ("prompt set", ledger.by_prompt_set),
    ):
        for name, sums in sorted(groups.items()):
            table.add_row(f"{title}: {name}", *_cells(sums, ledger.price_known))
    console.print(table)
    unknown = ledger.total.unknown_cost
    if not ledger.price_known:
        console.print("The price is unknown; set teacher.price to have the cost counted.")
    elif unknown:
        console.print(
            f"{unknown:,} attempts have no known cost; they are charged at their worst case, "
            f"{dollars_text(ledger.total.reserved_picousd)}.",
            markup=False,
        )
    if ledger.kept is not None and ledger.cost_per_kept_picousd is not None:
        console.print(
            f"{ledger.kept:,} of {ledger.generations:,} generations are kept: "
            f"{dollars_text(ledger.cost_per_kept_picousd)} each.",
            markup=False,
        )


def _cells(sums: Sums, price_known: bool) -> list[str]:
    return [
        f"{sums.attempts:,}",
        f"{sums.answered:,}",
        f"{sums.prompt_tokens:,}",
        f"{sums.cached_tokens:,}",
        f"{sums.completion_tokens:,}",
        dollars_text(sums.cost_picousd) if price_known else "unknown",
    ]


@click.command()
@corpus_argument
@json_option
def status(corpus: Path, as_json: bool) -> None:
    """Tell where a running or stopped run is."""
    found = read_status(opened(corpus))
    if as_json:
        _print_json(found)
        return
    for line in status_lines(found):
        click.echo(line)


@click.command()
@corpus_argument
@click.option("--limit", type=click.IntRange(min=1), default=5, show_default=True, metavar="N")
@click.option("--failures", is_flag=True, help="Show failed samples instead of generations.")
@click.option("--dropped", is_flag=True, help="Show only what the latest curation dropped.")
@click.option("--dropped-by", metavar="FILTER", help="Show only what this filter dropped.")
@click.option("--prompt-id", metavar="ID", help="Show only this prompt's samples.")
@json_option
def show(
    corpus: Path,
    limit: int,
    failures: bool,
    dropped: bool,
    dropped_by: str | None,
    prompt_id: str | None,
    as_json: bool,
) -> None:
    """Show generations with their verdicts, or failures with their reasons."""
    print_rows(
        opened(corpus),
        limit=limit,
        failures=failures,
        dropped=dropped or dropped_by is not None,
        dropped_by=dropped_by,
        prompt_id=prompt_id,
        as_json=as_json,
    )


@click.command()
@json_option
def teachers(as_json: bool) -> None:
    """List the kinds of teacher, filters and export formats that are installed."""
    groups = {
        "teachers": plugins.names(plugins.TEACHERS),
        "filters": plugins.names(plugins.FILTERS),
        "export formats": plugins.names(plugins.EXPORTERS),
    }
    if as_json:
        _print_json(groups)
        return
    for title, found in groups.items():
        click.echo(f"{title}: {', '.join(found)}")


COMMANDS = (verify, ledger, status, show, teachers)
