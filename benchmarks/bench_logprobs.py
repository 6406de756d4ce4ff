"""Measure how fast answers with distributions become committed Parquet.

    python benchmarks/bench_logprobs.py [--answers 400] [--tokens 200] [--top 20] [--in-flight 64]
                                        [--rounds 3] [--without-peers] [--json]

400 answers of 200 tokens with top-20 logprobs each, about 290 kB of JSON an answer, 64 in flight,
at a server that answers at once from bodies built beforehand. Compared are corpusgen, which stores
typed columns of ranked alternatives, and distilabel, which keeps strings and numbers in nested
dictionaries; both from the wire to their Parquet files, start-up left out (see bench_fanout.py).

The server runs on one core and each client, alone, on the other. Tokens a second are those of a
second of CPU; what the clock says stands beside it. Of several rounds the best counts.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bench_fanout import run
from benchmarks.measuring import Report, Used, arguments, leave, pin
from benchmarks.peers import python_of
from tests.loopback import spawned

LEAST_TIMES_DISTILABEL = 25.0
AIM_TOKENS_PER_S = 60_000
"""On a quiet machine; printed, and no bar."""


def cpu_of(used: Used) -> float:
    """Return the CPU seconds from the plan (where there is one) to the last file."""
    found: float = used.said.get("asking_cpu_s", used.said["cpu_s"])
    return found


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--answers", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-peers", action="store_true")
    chosen = parser.parse_args()
    peer = None if chosen.without_peers else python_of("distilabel")
    report = Report(
        f"{chosen.answers} answers of {chosen.tokens} tokens with top-{chosen.top}, "
        f"{chosen.in_flight} in flight"
    )
    shape = ("--lengths", "equal", "--answer-tokens", str(chosen.tokens), "--variants", "64")
    found: dict[str, Used] = {}
    with spawned(*pin(), *shape, "--max-top-logprobs", str(chosen.top)) as server:
        asked = {
            "base_url": server.base_url,
            "answers": chosen.answers,
            "in_flight": chosen.in_flight,
            "max_tokens": 2 * chosen.tokens,
            "top_logprobs": chosen.top,
        }
        ours = [run("ours", sys.executable, asked, warm=True) for _ in range(chosen.rounds)]
        found["corpusgen"] = min(ours, key=cpu_of)
        found["bare aiohttp"] = run("bare", sys.executable, asked, warm=True)
        if peer is not None:
            found["distilabel"] = run("distilabel", peer, asked, warm=True)
    tokens = chosen.answers * chosen.tokens
    if found["corpusgen"].said["tokens"] != tokens:
        raise RuntimeError("corpusgen did not store every token")
    for name, used in found.items():
        report.row(
            client=name,
            tokens_per_cpu_s=tokens / cpu_of(used),
            tokens_per_s=tokens / used.said["wall_s"],
            cpu_ms_an_answer=1000 * cpu_of(used) / chosen.answers,
        )
    reached = tokens / cpu_of(found["corpusgen"])
    report.note(f"the aim on a quiet machine is {AIM_TOKENS_PER_S:,}: {reached:,.0f} were reached")
    if "distilabel" in found:
        if found["distilabel"].said["positions_kept"] != chosen.tokens:
            raise RuntimeError("distilabel did not keep every token's alternatives")
        times = cpu_of(found["distilabel"]) / cpu_of(found["corpusgen"])
        report.bar("tokens/s of a core, times distilabel's", times, at_least=LEAST_TIMES_DISTILABEL)
    leave(report, chosen)


if __name__ == "__main__":
    main()
