"""The commands that only read: verify, ledger, status, show, teachers."""

from __future__ import annotations

from pathlib import Path

import click

from corpusgen import plugins
from corpusgen.cli.ledger import ledger
from corpusgen.cli.options import corpus_argument, json_option, opened, print_json
from corpusgen.cli.rows import print_rows
from corpusgen.cli.status import read_status, status_lines
from corpusgen.verify import verify as prove


@click.command()
@corpus_argument
@click.option("--complete", is_flag=True, help="Make a pending sample a contradiction as well.")
@json_option
def verify(corpus: Path, complete: bool, as_json: bool) -> None:
    """Prove from the files that nothing is missing, twice or uncharged; exit 1 where not."""
    proof = prove(opened(corpus), complete=complete)
    if as_json:
        print_json(proof)
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
def status(corpus: Path, as_json: bool) -> None:
    """Tell where a running or stopped run is."""
    found = read_status(opened(corpus))
    if as_json:
        print_json(found)
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
        print_json(groups)
        return
    for title, found in groups.items():
        click.echo(f"{title}: {', '.join(found)}")


COMMANDS = (verify, ledger, status, show, teachers)
