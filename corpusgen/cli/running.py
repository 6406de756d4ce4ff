"""The commands that take a configuration and work: plan, run, generate, curate, export, report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click

from corpusgen import pipeline
from corpusgen.cli.options import config_argument, json_option, loaded, verbosity_options
from corpusgen.cli.progress import watching
from corpusgen.cli.requests import show_requests
from corpusgen.cli.summary import print_result
from corpusgen.config_file import LoadedConfig
from corpusgen.errors import FAILURE_REASONS
from corpusgen.events import Observer
from corpusgen.pipeline import Choice, Options, Result

Stage = Callable[[LoadedConfig, Observer], Result]


def _asking_options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
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


@click.command()
@config_argument
@_asking_options
@verbosity_options
@json_option
def run(
    config: Path,
    overrides: tuple[str, ...],
    limit: int | None,
    retry_failed: str | None,
    skip_bad_prompts: bool,
    add: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Generate, curate, export and report; the same command again goes on where it ended."""
    options = Options(Choice(limit, retry_failed), skip_bad_prompts, add)
    _execute(
        lambda c, o: pipeline.run(c, options, o), loaded(config, overrides), quiet, verbose, as_json
    )


@click.command()
@config_argument
@_asking_options
@verbosity_options
@json_option
def generate(
    config: Path,
    overrides: tuple[str, ...],
    limit: int | None,
    retry_failed: str | None,
    skip_bad_prompts: bool,
    add: bool,
    quiet: bool,
    verbose: bool,
    as_json: bool,
) -> None:
    """Ask the teacher what is still to be asked, and nothing after it."""
    options = Options(Choice(limit, retry_failed), skip_bad_prompts, add)
    _execute(
        lambda c, o: pipeline.generate(c, options, o),
        loaded(config, overrides),
        quiet,
        verbose,
        as_json,
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
    """Read the prompts and plan the samples; ask nothing."""
    settings = loaded(config, overrides)
    options = Options(skip_bad_prompts=skip_bad_prompts, add=add)
    with watching(quiet=quiet, verbose=verbose, as_json=as_json) as observer:
        result = pipeline.plan(settings, options, observer)
    if show is not None:
        show_requests(settings, show)
    elif not as_json:
        print_result(result)


@click.command()
@config_argument
@verbosity_options
@json_option
def curate(
    config: Path, overrides: tuple[str, ...], quiet: bool, verbose: bool, as_json: bool
) -> None:
    """Judge what is generated, and print the funnel; costs nothing."""
    _execute(pipeline.curate, loaded(config, overrides), quiet, verbose, as_json)


@click.command()
@config_argument
@verbosity_options
@json_option
def export(
    config: Path, overrides: tuple[str, ...], quiet: bool, verbose: bool, as_json: bool
) -> None:
    """Curate, and write the datasets with their cards; costs nothing."""
    _execute(pipeline.export, loaded(config, overrides), quiet, verbose, as_json)


@click.command()
@config_argument
@verbosity_options
@json_option
def report(
    config: Path, overrides: tuple[str, ...], quiet: bool, verbose: bool, as_json: bool
) -> None:
    """Curate, export, and write report.html; costs nothing."""
    _execute(pipeline.make_report, loaded(config, overrides), quiet, verbose, as_json)


COMMANDS = (plan, run, generate, curate, export, report)
