"""Measure whether the limit on concurrency is kept and used.

    python benchmarks/bench_concurrency.py [--limits 16 64 200] [--rounds 40] [--json]

A server that takes 100 ms for each short answer; `corpusgen generate` with max_concurrency set to
each limit in turn, and as many prompts as fill it 40 times. The peak in flight is what the server
saw. The rate is that of the answers between the moment when the limit was first reached and the
arrival of the last request; the share is the rate by concurrency / latency, which no client can
exceed. The bar holds for limits at which CPU is not what lacks: up to 64.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Report, arguments, leave, pin
from benchmarks.running import running
from tests.loopback import spawned

LEAST_SHARE = 0.95
CPU_SUFFICES_UP_TO = 64
LATENCY_S = 0.1


def rate_while_full(log: list[dict[str, Any]], limit: int) -> float:
    """Return answers a second from the moment when the limit, or the peak, was in flight."""
    full = min(limit, max(entry["in_flight"] for entry in log))
    began = min(entry["at"] for entry in log if entry["in_flight"] >= full)
    ended = max(entry["at"] for entry in log)
    ends = [entry["at"] + entry["latency_s"] for entry in log]
    seconds: float = ended - began
    return sum(1 for end in ends if began <= end < ended) / seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--limits", type=int, nargs="+", default=[16, 64, 200])
    parser.add_argument("--rounds", type=int, default=40)
    chosen = parser.parse_args()
    report = Report("100 ms answers, max_concurrency set")
    server_options = (*pin(), "--latency-ms", str(1000 * LATENCY_S))
    for limit in chosen.limits:
        with spawned(*server_options) as server, tempfile.TemporaryDirectory() as directory:
            endpoint = {"base_url": server.base_url, "max_concurrency": limit}
            with running(Path(directory) / "run", [endpoint], limit * chosen.rounds) as run:
                outcome = run.wait()
            log, peak = server.log(), server.stats()["peak_in_flight"]
        if outcome.generations != limit * chosen.rounds:
            raise RuntimeError(f"{outcome} of {limit * chosen.rounds} samples")
        rate = rate_while_full(log, limit)
        share = rate * LATENCY_S / limit
        report.row(limit=limit, peak=peak, answers_per_s=rate, share=share)
        report.bar(f"peak in flight at a limit of {limit}", peak, at_least=limit, at_most=limit)
        if limit <= CPU_SUFFICES_UP_TO:
            what = f"share of concurrency / latency at {limit} in flight"
            report.bar(what, share, at_least=LEAST_SHARE)
    leave(report, chosen)


if __name__ == "__main__":
    main()
