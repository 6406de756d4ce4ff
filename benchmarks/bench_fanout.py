"""Measure the CPU that an answer costs on its way from the wire to committed Parquet.

    python benchmarks/bench_fanout.py [--answers 2000] [--in-flight 200] [--rounds 3]
                                      [--without-peers] [--json]

2,000 short answers of a scripted server that takes 100 ms for each, 200 in flight. Compared are a
bare aiohttp client that reads the bytes and forgets them; corpusgen with journal, ledger, budget,
rate limits and Parquet; curator and distilabel (benchmarks/peers.py) with what they write.

The server runs on one core; each client runs on the other, alone, in a process of its own, twice:
cold, where the CPU of the whole command counts, start-up included; and warm, where the process has
asked 20 other prompts before the measurement begins. The bars compare like with like: what asking
costs, warm (corpusgen's from the moment when the plan stands; the others plan nothing). The whole
command of each, start-up and planning included, stands beside it without a bar. Of several rounds
the cheapest counts; peers run once.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.measuring import Report, Used, arguments, child, leave, pin
from benchmarks.peers import CLIENTS, REQUIREMENTS, python_of
from tests.loopback import spawned

MOST_TIMES_BARE = 2.0
LEAST_TIMES_LESS_THAN_PEERS = 5.0
WARM_UP = 20


class Costs(msgspec.Struct, frozen=True):
    """What an answer costs a client."""

    answers_per_s: float
    warm_ms: float
    cold_ms: float
    asking_ms: float
    """Warm, and without planning, where a client plans."""


def run(client: str, python: str | Path, asked: dict[str, Any], *, warm: bool) -> Used:
    """Run a client; raise `RuntimeError` where an answer is missing."""
    with tempfile.TemporaryDirectory() as directory:
        wanted = asked | {"directory": directory, "warm_up": WARM_UP if warm else 0}
        used = child(python, CLIENTS / f"{client}.py", wanted)
    if used.said["answers"] != asked["answers"]:
        raise RuntimeError(f"{client} has {used.said['answers']} of {asked['answers']} answers")
    return used


def cheapest(client: str, python: str | Path, asked: dict[str, Any], rounds: int) -> Costs:
    """Return what a client costs, in milliseconds of CPU an answer."""
    warm = [run(client, python, asked, warm=True) for _ in range(rounds)]
    cold = [run(client, python, asked, warm=False) for _ in range(rounds)]
    each = 1000 / asked["answers"]
    return Costs(
        answers_per_s=asked["answers"] / min(used.said["wall_s"] for used in warm),
        warm_ms=each * min(used.said["cpu_s"] for used in warm),
        cold_ms=each * min(used.cpu_s for used in cold),
        asking_ms=each * min(used.said.get("asking_cpu_s", used.said["cpu_s"]) for used in warm),
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-peers", action="store_true")
    chosen = parser.parse_args()
    peers = {} if chosen.without_peers else {name: python_of(name) for name in REQUIREMENTS}
    report = Report(f"{chosen.answers} short answers, {chosen.in_flight} in flight")
    server_options = (*pin(), "--latency-ms", "100")
    with spawned(*server_options) as server:
        asked = {
            "base_url": server.base_url,
            "answers": chosen.answers,
            "in_flight": chosen.in_flight,
            "max_tokens": 64,
            "top_logprobs": 0,
        }
        bare = cheapest("bare", sys.executable, asked, chosen.rounds)
        ours = cheapest("ours", sys.executable, asked, chosen.rounds)
        found = {name: cheapest(name, python, asked, 1) for name, python in peers.items()}
    for name, costs in {"bare aiohttp": bare, "corpusgen": ours, **found}.items():
        report.row(
            client=name,
            answers_per_s=costs.answers_per_s,
            warm_ms_an_answer=costs.warm_ms,
            cold_ms_an_answer=costs.cold_ms,
        )
    report.note(f"corpusgen, warm, without its planning: {ours.asking_ms:.3f} ms an answer")
    ratio = ours.asking_ms / bare.warm_ms
    report.bar("corpusgen's CPU, times bare aiohttp's", ratio, at_most=MOST_TIMES_BARE)
    for name, costs in found.items():
        report.note(f"{name}'s CPU, cold, times ours: {costs.cold_ms / ours.cold_ms:.1f}")
        times = costs.warm_ms / ours.asking_ms
        report.bar(f"{name}'s CPU, warm, times ours", times, at_least=LEAST_TIMES_LESS_THAN_PEERS)
    leave(report, chosen)


if __name__ == "__main__":
    main()
