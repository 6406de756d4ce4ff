"""Render Jinja2 templates over a row, in a sandbox.

A template can read the row and nothing else: no file, no attribute of Python's own, no change of
the row. What it may make large is bounded where that is cheap; it is not a defence against an
author who means to exhaust the machine, who writes the configuration as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from functools import partial
from typing import Any

from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from corpusgen.errors import ConfigError
from corpusgen.prompts.rows import RowError

MAX_RENDERED_CHARACTERS = 10_000_000
_MAX_EXPONENT = 1000

Render = Callable[[Mapping[str, Any]], str]


def compile_template(text: str, key: str) -> Render:
    """Return a function that renders a row's fields; the row as a whole is `row`.

    A field that the row does not have, and a null that is printed, fail the row. Raises
    `ConfigError` with the key and the line for a template that does not parse. The function
    raises `RowError` for a row on which the template fails.
    """
    if "{" not in text:
        return partial(_constant, text.removesuffix("\n"))
    try:
        template = _sandbox().from_string(text)
    except TemplateSyntaxError as error:
        message = (error.message or "not a valid template").rstrip(".")
        raise ConfigError(f"{key}: line {error.lineno}: {message}. Fix the template.") from None
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{key}: cannot be compiled: {error}. Simplify the template.") from None

    def render(values: Mapping[str, Any]) -> str:
        try:
            return _bounded(template.generate({"row": values, **values}))
        except RowError:
            raise
        except SecurityError as error:
            raise RowError(f"the template does what it must not: {_first_line(error)}") from None
        except Exception as error:  # noqa: BLE001  (a template is a program of the user's)
            raise RowError(f"the template fails: {_first_line(error)}") from None

    return render


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")


def _constant(text: str, values: Mapping[str, Any]) -> str:
    del values
    return text


def _bounded(pieces: Any) -> str:
    kept: list[str] = []
    size = 0
    for piece in pieces:
        size += len(piece)
        if size > MAX_RENDERED_CHARACTERS:
            raise RowError(f"the template's result exceeds {MAX_RENDERED_CHARACTERS:,} characters")
        kept.append(piece)
    return "".join(kept)


def _sandbox() -> ImmutableSandboxedEnvironment:
    return _Sandbox(
        undefined=StrictUndefined,
        keep_trailing_newline=False,
        finalize=_printable,
        autoescape=False,  # prompts are text, not HTML
    )


def _printable(value: Any) -> Any:
    if value is None:
        raise UndefinedError("a null is printed; write {{ field or '' }}")
    return value


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja2's sandbox, which is extended by inheriting, with multiplications kept small."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left * right` or `left ** right`, unless the result would be huge."""
        if operator == "**" and isinstance(right, int) and abs(right) > _MAX_EXPONENT:
            raise SecurityError(f"{right} is too large an exponent")
        for repeated, times in ((left, right), (right, left)):
            if (
                operator == "*"
                and isinstance(repeated, Sized)
                and isinstance(times, int)
                and len(repeated) * times > MAX_RENDERED_CHARACTERS
            ):
                raise SecurityError(f"a text or list is repeated {times} times")
        return super().call_binop(context, operator, left, right)
