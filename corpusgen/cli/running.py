"""The commands that take a configuration and work: plan, run, generate, curate, export, report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import click

from corpusgen import pipeline
from corpusgen.cli.estimate import Dollars, confirming, has_terminal, print_estimate
from corpusgen.cli.options import config_argument, json_option, verbosity_options
from corpusgen.cli.progress import watching
from corpusgen.cli.requests import show_requests
from corpusgen.cli.summary import print_result
from corpusgen.config_file import LoadedConfig, read_config
from corpusgen.errors import FAILURE_REASONS
from corpusgen.events import Observer
from corpusgen.pipeline import Choice, Options, Result

Stage = Callable[[LoadedConfig, Observer], Result]
AskingStage = Callable[[LoadedConfig, Options, Observer], Result]


def _asking_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option(
            "--yes", is_flag=True, help="Agree to whatever --confirm-above would ask about."
        ),
        click.option(
            "--confirm-above",
            type=Dollars(),
            metavar="USD",
            help="Ask before spending more than this, or refuse where nobody can be asked.",
        ),
        click.option(
            "--add",
            is_flag=True,
            help="Keep samples that were planned under older sampling or templates beside the new.",
        ),
        click.option(
            "--skip-bad-prompts",
            is_flag=True,
            help="Make a prompt row that cannot be read a failure instead of stopping.",
        ),
        click.option(
            "--retry-failed",
            type=click.Choice(["all", *FAILURE_REASONS]),
            is_flag=False,
            flag_value="all",
            metavar="[all|REASON]",
            help="Ask failed samples again: all of them, or those with one reason.",
        ),
        click.option(
            "--limit",
            type=click.IntRange(min=1),
            metavar="N",
            help="A pilot: ask only the first N samples, from all prompt sets in turn.",
        ),
    ):
        command = option(command)
    return command


def _execute(stage: Stage, config: LoadedConfig, quiet: bool, verbose: bool, as_json: bool) -> None:
    with watching(quiet=quiet, verbose=verbose, as_json=as_json) as observer:
        result = stage(config, observer)
    if not as_json:
        print_result(result)
    sys.exit(int(result.exit_code))


def _asking_command(name: str, stage: AskingStage, doc: str) -> click.Command:
    """Return a command that asks the teacher: `run` and `generate` differ in their stage only."""

    @click.command(name, help=doc)
    @config_argument
    @_asking_options
    @verbosity_options
    @json_option
    def command(
        config: Path,
        overrides: tuple[str, ...],
        limit: int | None,
        retry_failed: str | None,
        skip_bad_prompts: bool,
        add: bool,
        confirm_above: Decimal | None,
        yes: bool,
        quiet: bool,
        verbose: bool,
        as_json: bool,
    ) -> None:
        confirm = None
        if confirm_above is not None and not yes:
            confirm = confirming(confirm_above, asks=has_terminal() and not as_json)
        options = Options(Choice(limit, retry_failed), skip_bad_prompts, add, confirm)
        settings = read_config(config, overrides)
        _execute(lambda c, o: stage(c, options, o), settings, quiet, verbose, as_json)

    return command


def _finishing_command(name: str, stage: Stage, doc: str) -> click.Command:
    """Return a command that starts no teacher."""

    @click.command(name, help=doc)
    @config_argument
    @verbosity_options
    @json_option
    def command(
        config: Path, overrides: tuple[str, ...], quiet: bool, verbose: bool, as_json: bool
    ) -> None:
        _execute(stage, read_config(config, overrides), quiet, verbose, as_json)

    return command


run = _asking_command(
    "run",
    pipeline.run,
    "Generate, curate, export and report; the same command again goes on where it ended.",
)
generate = _asking_command(
    "generate",
    pipeline.generate,
    "Ask the teacher what is still to be asked, and nothing after it.",
)
curate = _finishing_command(
    "curate",
    pipeline.curate,
    "Judge what is generated, and print the funnel; costs nothing.",
)
export = _finishing_command(
    "export",
    pipeline.export,
    "Curate, and write the datasets with their cards; costs nothing.",
)
report = _finishing_command(
    "report",
    pipeline.make_report,
    "Curate, export, and write report.html; costs nothing.",
)


@click.command()
@config_argument
@click.option("--show", type=click.IntRange(min=1), metavar="N", help="Print N requests as sent.")
@click.option("--skip-bad-prompts", is_flag=True, help="Make a row that cannot be read a failure.")
@click.option("--add", is_flag=True, help="Keep samples of older sampling beside the new.")
@verbosity_options
@json_option
def plan(
    config: Path,
    overrides: tuple[str, ...],
    show: int | None,
    skip_bad_prompts: bool,
    add: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Read the prompts, plan the samples, estimate what asking them takes; ask nothing."""
    settings = read_config(config, overrides)
    options = Options(skip_bad_prompts=skip_bad_prompts, add=add)
    with watching(quiet=quiet, verbose=verbose, as_json=as_json) as observer:
        result = pipeline.plan(settings, options, observer)
    if show is not None:
        show_requests(settings, show)
    elif not as_json:
        print_result(result)
        if result.estimate is not None:
            print_estimate(result.estimate)


COMMANDS = (plan, run, generate, curate, export, report)
