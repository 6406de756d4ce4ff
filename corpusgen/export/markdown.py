"""Put text of unknown origin into YAML and Markdown without letting it act as either.

Names of prompt sets, titles and licences come from files and the command line. In YAML they become
double-quoted scalars that YAML 1.1 readers (the hub's) and 1.2 readers take alike; in Markdown
every character that could begin markup or end a table's cell is escaped.
"""

from __future__ import annotations

import json
import re

_NOT_PLAIN = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029\ufeff]")
_MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~!$&])")


def yaml_text(value: str) -> str:
    """Return a YAML scalar that reads back as this text."""
    quoted = json.dumps(_encodable(value), ensure_ascii=False)
    return _NOT_PLAIN.sub(lambda match: f"\\u{ord(match.group()):04x}", quoted)


def markdown_text(value: object) -> str:
    """Return one line of Markdown, fit for a table's cell, that shows this text, inert."""
    return _MARKUP.sub(r"\\\1", _one_line(value))


def markdown_code(value: object) -> str:
    """Return a code span, fit for a table's cell; backticks become apostrophes."""
    return "`" + _one_line(value).replace("`", "'").replace("|", "\\|") + "`"


def _one_line(value: object) -> str:
    return _CONTROL.sub("", " ".join(_encodable(str(value)).split()))


def _encodable(value: str) -> str:
    return value.encode("utf-8", "replace").decode()
