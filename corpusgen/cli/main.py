"""The entry point: the one place where this package's errors become a sentence and an exit code."""

from __future__ import annotations

import os
import signal
import sys

import click
import msgspec

import corpusgen
from corpusgen.cli import batches, inspecting, making, running
from corpusgen.errors import CorpusgenError, ExitCode

_EPILOG = (
    "Exit codes: 0 complete; 1 error; 2 usage; 3 finished, but with failed samples; "
    "4 budget reached; 5 interrupted, and can be resumed."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(corpusgen.__version__, prog_name="corpusgen")
def cli() -> None:
    """Turn prompts into a distillation corpus: a teacher's answers, curated and paid for once."""


_COMMANDS = (
    *making.COMMANDS,
    *running.COMMANDS,
    *batches.COMMANDS,
    *inspecting.COMMANDS,
)
for _command in _COMMANDS:
    cli.add_command(_command)


def main() -> None:
    """Run the command line and leave with its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        code = cli.main(standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as left:
        code = left.exit_code
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE
    except (click.Abort, KeyboardInterrupt):
        sys.stderr.write("corpusgen: interrupted; run the same command again to go on.\n")
        code = ExitCode.INTERRUPTED
    except CorpusgenError as error:
        _tell(error)
        code = error.exit_code
    except BrokenPipeError:  # the reader of our output has left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.COMPLETE
    except OSError as error:  # a full disk, a file system that only reads
        where = error.filename or "a file of the corpus"
        _tell(CorpusgenError(f"{where}: {error.strerror or error}. Mend it and run this again"))
        code = ExitCode.ERROR
    sys.exit(int(code or 0))


def _interrupt(number: int, frame: object) -> None:
    """Leave as Ctrl-C does: what is open is closed, and the lease is given back."""
    del number, frame
    raise KeyboardInterrupt


def _tell(error: CorpusgenError) -> None:
    sentence = str(error)
    if not sentence.endswith((".", "!", "?", "`")):
        sentence += "."
    if "--json" in sys.argv:
        line = {"event": "error", "exit_code": int(error.exit_code), "message": sentence}
        sys.stdout.write(msgspec.json.encode(line).decode() + "\n")
    sys.stderr.write(f"corpusgen: {sentence}\n")
