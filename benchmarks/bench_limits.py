"""Measure how much of a rate limit is used, and how often it is run into.

    python benchmarks/bench_limits.py [--seconds 180] [--window 60] [--rpm 600] [--tpm 60000]
                                      [--tpm-rule usage] [--json]

Four servers that enforce a limit over a true sliding window (tests/loopback_limits.py), four runs
of `corpusgen generate` beside each other, each configured with its server's limit:

    rpm            600 requests a minute
    tpm            60,000 tokens a minute; answers of log-normal length, 150 tokens in the mean
    rpm, headers   the same, and the server sends x-ratelimit-* with each answer, and Retry-After
    tpm, headers   with each rejection

Tokens are charged by usage: the prompt's at arrival, the answer's when it is complete; a request is
rejected when the window's sum is at the limit. `--tpm-rule max_tokens` charges prompt and
max_tokens at arrival instead, as OpenAI does. Rejected requests are not charged.

The share used is what was admitted (or charged) from the first request on, by what the rate allows
in that time; the share rejected is of all requests that arrived in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Report, arguments, leave, pin
from benchmarks.running import Run, first_request_at, running, sleep_until
from tests.loopback import Running, spawned

LEAST_USED = 0.95
MOST_REJECTED = 0.01
MAX_TOKENS = 1024
SHAPE = (
    *("--latency-ms", "400", "--latency-sigma", "0.5"),
    *("--lengths", "lognormal", "--length-sigma", "0.8", "--answer-tokens", "150"),
)


def start(
    stack: ExitStack, chosen: argparse.Namespace, kind: str, directory: Path, cpu: tuple[str, ...]
) -> tuple[Running, Run]:
    """Start a server that enforces one limit, and a run that knows it."""
    limit = chosen.rpm if kind.startswith("rpm") else chosen.tpm
    key = kind[:3]
    options = [f"--{key}", str(limit), "--window-s", str(chosen.window)]
    options += ["--tpm-rule", chosen.tpm_rule]
    options += ["--rate-headers"] if kind.endswith("headers") else []
    server = stack.enter_context(spawned(*cpu, *SHAPE, *options))
    endpoint = {"base_url": server.base_url, key: limit}
    prompts = int(1.3 * chosen.rpm * chosen.seconds / 60) + 200
    run = stack.enter_context(
        running(directory / kind.replace(", ", "-"), [endpoint], prompts, MAX_TOKENS)
    )
    return server, run


def measured(
    server: Running, since: float, chosen: argparse.Namespace, kind: str
) -> dict[str, Any]:
    """Return the shares of one variant."""
    stats = server.stats(since=since, until=since + chosen.seconds)
    admitted = stats["requests"] - stats["rejected"]
    minutes = chosen.seconds / 60
    if kind.startswith("rpm"):
        used = admitted / (chosen.rpm * minutes)
    else:
        used = stats["charged_tokens"] / (chosen.tpm * minutes)
    return {
        "limit": kind,
        "requests": stats["requests"],
        "rejected": stats["rejected"],
        "peak_in_flight": stats["peak_in_flight"],
        "used": used,
        "share_rejected": stats["rejected"] / max(1, stats["requests"]),
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--window", type=float, default=60.0)
    parser.add_argument("--rpm", type=int, default=600)
    parser.add_argument("--tpm", type=int, default=60_000)
    parser.add_argument("--tpm-rule", choices=("usage", "max_tokens"), default="usage")
    chosen = parser.parse_args()
    report = Report(
        f"{chosen.rpm} RPM, {chosen.tpm:,} TPM charged by {chosen.tpm_rule}, sliding "
        f"{chosen.window:g} s, for {chosen.seconds:g} s"
    )
    kinds = ("rpm", "tpm", "rpm, headers", "tpm, headers")
    cpu = pin()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started = {kind: start(stack, chosen, kind, directory, cpu) for kind in kinds}
        begun = {kind: first_request_at(*pair) for kind, pair in started.items()}
        sleep_until(max(begun.values()) + chosen.seconds + 1)
        rows = [measured(started[kind][0], begun[kind], chosen, kind) for kind in kinds]
        outcomes = [run.stop() for _, run in started.values()]
    for row in rows:
        report.row(**row)
    for row in rows:
        report.bar(f"share of the rate used: {row['limit']}", row["used"], at_least=LEAST_USED)
        what = f"share of requests rejected: {row['limit']}"
        report.bar(what, row["share_rejected"], at_most=MOST_REJECTED)
    report.bar("failed samples", sum(outcome.failures for outcome in outcomes), at_most=0)
    leave(report, chosen)


if __name__ == "__main__":
    main()
