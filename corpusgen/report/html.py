"""Render a report: one HTML file that opens anywhere and fetches nothing.

Everything a model or a prompt file wrote is escaped, its control characters are made visible, and
the page's policy forbids scripts and every request, so that an answer cannot act.
"""

from __future__ import annotations

import re
from importlib import resources

from jinja2 import Environment, StrictUndefined

from corpusgen.report.facts import ReportFacts
from corpusgen.report.histogram import Histogram

LONGEST_TEXT = 4000
"""Characters of a prompt or an answer that are shown."""
SHADES = 10
"""Classes of probability by which tokens are coloured."""

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)
_PICTURES = 0x2400
"""Unicode's pictures of the first 32 control characters begin here."""


def render_report(facts: ReportFacts) -> str:
    """Return the report as HTML; every value of unknown origin is inert text in it."""
    return _environment().from_string(_template()).render(facts=facts, found=facts.generations)


def _environment() -> Environment:
    made = Environment(
        undefined=StrictUndefined, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "visible": visible,
        "excerpt": excerpt,
        "number": _number,
        "duration": _duration,
        "share": _share,
        "shade": _shade,
        "heights": _heights,
    }
    return made


def _template() -> str:
    source = resources.files("corpusgen.report").joinpath("report.html.j2")
    return source.read_text(encoding="utf-8")


def visible(value: object) -> str:
    """Return text in which control characters, bidirectional ones included, can be seen."""
    return _CONTROL.sub(_picture, str(value))


def excerpt(value: str, longest: int = LONGEST_TEXT) -> str:
    """Return the beginning of a text, made visible, and how much is left out."""
    if len(value) <= longest:
        return visible(value)
    return f"{visible(value[:longest])} … ({len(value) - longest:,} more characters)"


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    return chr(_PICTURES + code) if code < 0x20 else f"[U+{code:04X}]"


def _number(value: float | None, digits: int = 0) -> str:
    return "not known" if value is None else f"{value:,.{digits}f}"


def _share(part: int | None, whole: int) -> str:
    return "–" if part is None or not whole else f"{part / whole:.1%}"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "not known"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"


def _shade(probability: float | None) -> str:
    """Return the class of a probability: p0, unlikely, to p9; empty where it is unknown."""
    if probability is None:
        return ""
    return f"p{min(int(probability * SHADES), SHADES - 1)}"


def _heights(histogram: Histogram) -> list[tuple[int, str, int]]:
    """Return each bar's height in percent of the highest, its label and its count."""
    highest = max((bar.count for bar in histogram.bars), default=0) or 1
    return [(round(100 * bar.count / highest), bar.label, bar.count) for bar in histogram.bars]
