"""The commands. Each body parses, calls one library function and renders what it returns."""

from corpusgen.cli.main import cli, main

__all__ = ["cli", "main"]
