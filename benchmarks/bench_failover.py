"""Measure what a sick endpoint costs: its own throughput, and nothing else.

    python benchmarks/bench_failover.py [--seconds 60] [--calm 15] [--max-concurrency 20] [--json]

Two endpoints of equal, fixed capacity: 16 slots, 0.4 s an answer, so 40 answers a second each. One
answers 500 to everything for a minute, then recovers. Measured at the servers: how much of the
healthy one's capacity is used meanwhile, and of both together from half a minute after the
recovery on; then that no sample failed. `--max-concurrency 0` leaves the endpoints' concurrency to
be found.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Report, arguments, leave, pin
from benchmarks.running import first_request_at, running, sleep_until
from tests.loopback import Running, spawned

LEAST_OF_HEALTHY = 0.90
LEAST_OF_BOTH = 0.95
RECOVERY_S = 30.0
LOOK_S = 10.0
"""How long both are looked at after the recovery."""

SLOTS, TOKENS, TOKENS_PER_S = 16, 40, 100
CAPACITY = SLOTS * TOKENS_PER_S / TOKENS
"""Answers a second of one endpoint."""


def rate(servers: Sequence[Running], since: float, until: float) -> float:
    """Return answers a second in an interval."""
    answered: int = sum(s.stats(since=since, until=until)["answered"] for s in servers)
    return answered / (until - since)


def recovered_after(servers: Sequence[Running], at: float, until: float) -> float | None:
    """Return after how long both together were back for two seconds, null: never."""
    steps = int(2 * (until - at)) - 4
    starts = [at + step / 2 for step in range(max(0, steps))]
    full = LEAST_OF_BOTH * CAPACITY * len(servers)
    return next((begin - at for begin in starts if rate(servers, begin, begin + 2) >= full), None)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long one is sick")
    parser.add_argument("--calm", type=float, default=15.0, help="how long both are well before")
    parser.add_argument("--recovery", type=float, default=RECOVERY_S)
    parser.add_argument("--max-concurrency", type=int, default=20)
    chosen = parser.parse_args()
    options = (
        *(*pin(), "--slots", str(SLOTS), "--tokens-per-s", str(TOKENS_PER_S)),
        *("--lengths", "equal", "--answer-tokens", str(TOKENS)),
    )
    total_s = chosen.calm + chosen.seconds + chosen.recovery + LOOK_S
    with (
        spawned(*options) as sick,
        spawned(*options) as healthy,
        tempfile.TemporaryDirectory() as directory,
    ):
        limit = {"max_concurrency": chosen.max_concurrency} if chosen.max_concurrency else {}
        endpoints: list[dict[str, Any]] = [
            {"base_url": server.base_url, **limit} for server in (sick, healthy)
        ]
        prompts = int(2 * CAPACITY * (total_s + 10))
        both = (sick, healthy)
        with running(Path(directory) / "run", endpoints, prompts) as run:
            sleep_until(first_request_at(healthy, run) + chosen.calm)
            fell = sick.control(fault="500")
            sleep_until(fell + chosen.seconds)
            rose = sick.control(fault=None)
            sleep_until(rose + chosen.recovery + LOOK_S + 1)
            outcome = run.stop()
        well = rate(both, fell - chosen.calm / 2, fell)
        meanwhile = rate([healthy], fell, rose)
        after = rate(both, rose + chosen.recovery, rose + chosen.recovery + LOOK_S)
        back_s = recovered_after(both, rose, rose + chosen.recovery + LOOK_S)
        errors = sick.stats(since=fell, until=rose)["requests"]
    report = Report(
        f"two endpoints of {CAPACITY:g} answers/s; one is sick for {chosen.seconds:g} s"
    )
    report.row(when="both well", answers_per_s=well, share=well / CAPACITY / 2)
    report.row(when="one sick", answers_per_s=meanwhile, share=meanwhile / CAPACITY)
    report.row(when="both again", answers_per_s=after, share=after / CAPACITY / 2)
    when = "never" if back_s is None else f"{back_s:.1f} s after its recovery"
    report.note(f"both were back {when}; the sick one got {errors} requests")
    share = meanwhile / CAPACITY
    report.bar("share of the healthy one's capacity", share, at_least=LEAST_OF_HEALTHY)
    what = f"share of both {chosen.recovery:g} s after the recovery"
    report.bar(what, after / CAPACITY / 2, at_least=LEAST_OF_BOTH)
    report.bar("failed samples", outcome.failures, at_most=0)
    leave(report, chosen)


if __name__ == "__main__":
    main()
