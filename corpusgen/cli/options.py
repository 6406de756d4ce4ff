"""Arguments and options that several commands share."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import msgspec

from corpusgen.config import Config
from corpusgen.config_file import read_config
from corpusgen.corpus import Corpus, load

Command = Callable[..., Any]

_CONFIG_ENDINGS = (".yaml", ".yml")


def config_argument(command: Command) -> Command:
    """Add CONFIG and --set."""
    command = click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override one key, such as sampling.temperature=0.3 or prompts.0.n=4.",
    )(command)
    return click.argument("config", type=click.Path(path_type=Path))(command)


def corpus_argument(command: Command) -> Command:
    """Add CORPUS: a corpus' directory, or the configuration that made it."""
    return click.argument("corpus", type=click.Path(path_type=Path))(command)


def json_option(command: Command) -> Command:
    """Add --json."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for machines.")(
        command
    )


def verbosity_options(command: Command) -> Command:
    """Add --quiet and --verbose."""
    command = click.option("-v", "--verbose", is_flag=True, help="Tell every retry as well.")(
        command
    )
    return click.option("-q", "--quiet", is_flag=True, help="Tell only warnings and the result.")(
        command
    )


def opened(path: Path) -> Corpus:
    """Open the corpus at a path, or of the configuration at a path; raise `CorpusError`."""
    return opened_with_config(path)[0]


def opened_with_config(path: Path) -> tuple[Corpus, Config | None]:
    """Do what `opened` does; return the configuration as well, where it was given."""
    if path.suffix in _CONFIG_ENDINGS and not path.is_dir():
        config = read_config(path).config
        return load(config.out), config
    return load(path), None


def print_json(value: Any) -> None:
    """Print a value as one JSON document."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")
