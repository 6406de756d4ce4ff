"""The commands that make a configuration: init and schema."""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path

import click
import msgspec

from corpusgen.config_file import json_schema
from corpusgen.errors import ConfigError


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=Path("corpusgen.yaml"))
@click.option("--force", is_flag=True, help="Replace a file that exists.")
def init(path: Path, force: bool) -> None:
    """Write a commented starter configuration (corpusgen.yaml) and three prompts beside it."""
    prompts = path.with_name("prompts.jsonl")
    starter = files("corpusgen.cli").joinpath("starter")
    for target, name in ((path, "corpusgen.yaml"), (prompts, "prompts.jsonl")):
        if target.exists() and not force:
            if target == prompts:
                continue
            raise ConfigError(f"{target}: exists already; give another name, or --force.")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(starter.joinpath(name).read_text(encoding="utf-8"), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{target}: cannot be written: {error.strerror}.") from None
        click.echo(f"wrote {target}")
    click.echo(f"next: edit {path}, then `corpusgen plan {path}` and `corpusgen run {path}`")


@click.command()
def schema() -> None:
    """Print the configuration's JSON Schema, for editors."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(json_schema())).decode() + "\n")


COMMANDS = (init, schema)
