"""Measure how near to a server's best a run comes by itself, when nothing is configured.

    python benchmarks/bench_adaptive.py [--seconds 60] [--models queueing collapsing refusing]
                                        [--fixed 8 16 32 64 128] [--json]

Three servers, each with its own best (tests/loopback_capacity.py), log-normal lengths around 40
tokens, 100 tokens a second in each slot:

    queueing      32 slots; what is beyond waits in line, so that more concurrency only adds latency
    collapsing    128 slots, but above 48 requests in flight the throughput falls as they grow
    refusing      32 slots, and 429 to what is beyond 48 in flight

`corpusgen generate` runs without max_concurrency, and beside it, at servers of their own, with each
fixed setting. Reported are tokens a second over the last third, their share of the best that the
model allows, the peak in flight, the share of 429 in the whole run, and after how many seconds a
five-second mean first came within 90% of the best.

The issue asks for no figure; the bars are ours.
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
from benchmarks.running import first_request_at, running, sleep_until
from tests.loopback import Running, spawned

LEAST_SHARE_OF_BEST = 0.85
NEAR = 0.9
STEP_S = 5.0
STARTING_S = 30.0
"""Until all runs are under way; the first one must not be through by then."""
PACE = 100
"""Tokens a second in each slot."""
MEAN_TOKENS = 40
MODELS: dict[str, tuple[tuple[str, ...], int]] = {
    "queueing": (("--slots", "32"), 32),
    "collapsing": (("--slots", "128", "--collapse-above", "48"), 48),
    "refusing": (("--slots", "32", "--capacity", "48"), 32),
}
"""The options of a model, and how many requests at once are its best."""


def throughput(log: list[dict[str, Any]], since: float, until: float) -> float:
    """Return tokens a second of the answers that ended in an interval."""
    ended = [e for e in log if since <= e["at"] + e["latency_s"] < until]
    tokens: int = sum(entry["completion_tokens"] for entry in ended)
    return tokens / (until - since)


def near_after(
    log: list[dict[str, Any]], began: float, seconds: float, best: float
) -> float | None:
    """Return after how many seconds a mean over `STEP_S` was near the best; null: never."""
    starts = [began + step for step in range(int(seconds - STEP_S))]
    reached = (at for at in starts if throughput(log, at, at + STEP_S) >= NEAR * best)
    found = next(reached, None)
    return None if found is None else found - began + STEP_S


def measured(server: Running, began: float, best: float, seconds: float) -> dict[str, Any]:
    """Return the figures of one run."""
    log = [entry for entry in server.log() if entry["at"] < began + seconds]
    reached = throughput(log, began + seconds * 2 / 3, began + seconds)
    near = near_after(log, began, seconds, best)
    return {
        "tokens_per_s": reached,
        "share_of_best": reached / best,
        "peak": max(entry["in_flight"] for entry in log),
        "rejected": sum(entry["status"] == 429 for entry in log) / len(log),
        "near_after_s": "never" if near is None else f"{near:.0f}",
    }


def compare(model: str, chosen: argparse.Namespace, cpu: tuple[str, ...]) -> dict[str, Any]:
    """Run one model with every setting, side by side."""
    options, at_once = MODELS[model]
    best = at_once * PACE
    shape = ("--tokens-per-s", str(PACE), "--lengths", "lognormal", "--length-sigma", "0.5")
    prompts = int(1.2 * best / MEAN_TOKENS * (chosen.seconds + STARTING_S))
    begun: dict[str, tuple[Running, float]] = {}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        runs = []
        for setting in ("adaptive", *map(str, chosen.fixed)):
            tokens = ("--answer-tokens", str(MEAN_TOKENS))
            server = stack.enter_context(spawned(*cpu, *shape, *tokens, *options))
            limit = {} if setting == "adaptive" else {"max_concurrency": int(setting)}
            endpoint = {"base_url": server.base_url, **limit}
            run = stack.enter_context(running(directory / setting, [endpoint], prompts))
            runs.append(run)
            begun[setting] = (server, first_request_at(server, run))
        sleep_until(max(at for _, at in begun.values()) + chosen.seconds)
        found = {
            setting: measured(server, at, best, chosen.seconds)
            for setting, (server, at) in begun.items()
        }
        for run in runs:
            run.stop()
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS))
    parser.add_argument("--fixed", type=int, nargs="*", default=[8, 16, 32, 64, 128])
    chosen = parser.parse_args()
    report = Report(f"nothing configured, for {chosen.seconds:g} s")
    cpu = pin()
    for model in chosen.models:
        found = compare(model, chosen, cpu)
        for setting, figures in found.items():
            report.row(server=model, concurrency=setting, **figures)
        share = found["adaptive"]["share_of_best"]
        report.bar(f"adaptive: share of the best, {model}", share, at_least=LEAST_SHARE_OF_BEST)
    leave(report, chosen)


if __name__ == "__main__":
    main()
