"""The pipeline: the only place that knows the order in which the parts work.

`run` is plan, generate, curate, export and report in one; each of them can be called alone.
"""

from corpusgen.pipeline.choosing import Choice
from corpusgen.pipeline.run import Options, Result, curate, export, generate, make_report, plan, run

__all__ = [
    "Choice",
    "Options",
    "Result",
    "curate",
    "export",
    "generate",
    "make_report",
    "plan",
    "run",
]
