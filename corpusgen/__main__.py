"""Run the command line as `python -m corpusgen`."""

from corpusgen.cli import main

main()
