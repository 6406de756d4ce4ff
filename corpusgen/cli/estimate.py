"""Print an estimate, and ask before much money is spent: `plan`, `--confirm-above`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any

import click
from rich.console import Console

from corpusgen.cli.progress import duration
from corpusgen.errors import ExitCode, RunStopped
from corpusgen.events import CostRange, Estimated, SetEstimate, TokenRange
from corpusgen.money import dollars_text, picousd


class Dollars(click.ParamType[Decimal]):
    """Dollars as decimal text, read exactly."""

    name = "usd"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Decimal:
        """Return the amount; refuse what is none."""
        try:
            amount = Decimal(str(value))
        except InvalidOperation:
            amount = Decimal(-1)
        if not amount.is_finite() or amount < 0:
            self.fail(f"{value!r} is no amount of dollars, such as 50.", param, ctx)
        return amount


def print_estimate(found: Estimated) -> None:
    """Print what is still to be asked will take, in total and by prompt set, for people."""
    console = Console(highlight=False, soft_wrap=True)
    if not found.samples:
        return
    if len(found.sets) > 1:
        for each in found.sets:
            console.print(f"prompt set {each.prompt_set}, answered by {each.teacher}", markup=False)
            _print_rows(console, _rows_of_set(each))
        console.print("together", markup=False)
        _print_rows(console, _rows_of_all(found))
    else:
        _print_rows(console, [*_rows_of_set(found.sets[0]), *_machines(found)])


def _print_rows(console: Console, rows: list[tuple[str, str]]) -> None:
    for name, value in rows:
        console.print(f"{name:<10}  {value}", markup=False)


def _rows_of_set(each: SetEstimate) -> list[tuple[str, str]]:
    return [
        ("to ask", f"{each.samples:,} samples in {each.requests:,} requests"),
        ("tokens in", f"{each.prompt_tokens:,} (counted {each.counted})"),
        ("tokens out", f"{_tokens(each.completion_tokens)} ({each.reckoned})"),
        ("cost", f"{_cost(each.cost_usd)} (price: {each.price})"),
        ("time", f"{_time(each.wall_s)} ({each.wall_limit})"),
        ("disk", _bytes(each.disk_bytes)),
    ]


def _rows_of_all(found: Estimated) -> list[tuple[str, str]]:
    return [
        ("to ask", f"{found.samples:,} samples in {found.requests:,} requests"),
        ("tokens in", f"{found.prompt_tokens:,}"),
        ("tokens out", _tokens(found.completion_tokens)),
        ("cost", _cost(found.cost_usd)),
        *_machines(found),
        ("time", f"{_time(found.wall_s)} ({found.wall_limit})"),
        ("disk", _bytes(found.disk_bytes)),
    ]


def _machines(found: Estimated) -> list[tuple[str, str]]:
    return [] if found.gpu_usd is None else [("machines", _dollars(found.gpu_usd))]


def _tokens(tokens: TokenRange) -> str:
    high = "no limit" if tokens.high is None else f"{tokens.high:,}"
    return f"low {tokens.low:,}, expected {tokens.expected:,}, high {high}"


def _cost(cost: CostRange) -> str:
    if cost.low is None or cost.expected is None:
        return "unknown"
    high = "no limit" if cost.high is None else _dollars(cost.high)
    return f"low {_dollars(cost.low)}, expected {_dollars(cost.expected)}, high {high}"


def _dollars(text: str) -> str:
    return dollars_text(picousd(Decimal(text)))


def _time(seconds: float | None) -> str:
    return "unknown" if seconds is None else duration(seconds)


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"about {size:.3g} {unit}"
        size /= 1000
    raise AssertionError


def confirming(above: Decimal, *, asks: bool) -> Callable[[Estimated], None]:
    """Return what agrees to an estimate or raises `RunStopped` with exit code 2.

    It agrees where nothing is to be asked, and up to `above` dollars; otherwise it asks the
    terminal where `asks` says that there is one.
    """

    def confirm(found: Estimated) -> None:
        if not found.samples:
            return
        expected = _expected(found)
        if expected is not None and expected <= above:
            return
        if expected is None:
            told = "the price is not known, so the cost of asking "
            told += f"{found.samples} samples is not known either"
        else:
            told = f"asking {found.samples} samples will probably cost {_dollars(str(expected))}, "
            told += f"more than --confirm-above {above:f}"
        if asks and click.confirm(f"{told[0].upper()}{told[1:]}. Go on?", err=True):
            return
        raise RunStopped(
            f"{told}. Nothing was asked; run the command again with --yes to agree", ExitCode.USAGE
        )

    return confirm


def _expected(found: Estimated) -> Decimal | None:
    """Return the expected cost of tokens and machines; null where a price is not known."""
    if found.cost_usd.expected is None:
        return None
    return Decimal(found.cost_usd.expected) + Decimal(found.gpu_usd or 0)


def has_terminal() -> bool:
    """Tell whether somebody can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()
