"""Write docs/cli.md from the commands themselves: `python -m corpusgen.cli.reference`."""

from __future__ import annotations

import click

from corpusgen.cli.main import cli

_HEAD = """# The commands

Made from the code by `make docs`; do not edit.
"""


def reference() -> str:
    """Return the reference of all commands as Markdown."""
    parts = [_HEAD, _section("corpusgen", cli)]
    parts += [_section(f"corpusgen {name}", cli.commands[name]) for name in cli.commands]
    return "\n".join(parts)


def _section(name: str, command: click.Command) -> str:
    context = command.make_context(
        name, [], resilient_parsing=True, parent=click.Context(cli, **cli.context_settings)
    )
    context.terminal_width = context.max_content_width = 88
    context.info_name, context.parent = name, None
    return f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"


if __name__ == "__main__":
    click.echo(reference(), nl=False)
