"""Measure the whole way of an answer, from the wire to committed Parquet, against bare aiohttp.

    python benchmarks/bench_fanout.py [--answers 2000] [--in-flight 200]

Both clients ask the same scripted server, which runs in a process of its own: the bare one reads
the bytes and forgets them, corpusgen decodes, journals, commits and keeps the ledger. Printed is
CPU time of the client per answer (its start-up left out) and the ratio of the two, in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import aiohttp

from corpusgen import pipeline
from corpusgen.config_file import parse_config
from corpusgen.events import Event, Planned
from tests.loopback import spawned


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def bare(base_url: str, answers: int, in_flight: int) -> tuple[float, float]:
    """Return wall and CPU seconds of a client that only reads the bytes."""
    queue = iter(range(answers))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        url = f"{base_url}/chat/completions"

        async def worker() -> None:
            for number in queue:
                messages = [{"role": "user", "content": f"question {number}"}]
                body = {"model": "m", "messages": messages, "max_tokens": 64}
                async with session.post(url, json=body) as response:
                    await response.read()

        wall, cpu = time.perf_counter(), cpu_s()
        await asyncio.gather(*(worker() for _ in range(in_flight)))
        return time.perf_counter() - wall, cpu_s() - cpu


def whole(base_url: str, answers: int, in_flight: int) -> tuple[float, float]:
    """Return wall and CPU seconds of `corpusgen generate` after its planning."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        prompts = root / "prompts.jsonl"
        prompts.write_text(
            "".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(answers))
        )
        endpoint = {"base_url": base_url, "max_concurrency": in_flight}
        config = {
            "out": str(root / "out"),
            "prompts": [{"path": str(prompts)}],
            "teacher": {"kind": "openai", "model": "m", "endpoints": [endpoint]},
            "sampling": {"max_tokens": 64},
        }
        began: list[float] = []

        def observer(event: Event) -> None:
            if isinstance(event, Planned):
                began.extend((time.perf_counter(), cpu_s()))

        pipeline.generate(parse_config(json.dumps(config)), observer=observer)
        return time.perf_counter() - began[0], cpu_s() - began[1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=200)
    chosen = parser.parse_args()
    with spawned("--latency-ms", "100") as server:
        asyncio.run(bare(server.base_url, 200, 50))  # warms the server
        rows = {
            "bare aiohttp": asyncio.run(bare(server.base_url, chosen.answers, chosen.in_flight)),
            "corpusgen": whole(server.base_url, chosen.answers, chosen.in_flight),
        }
    print(f"{chosen.answers} answers, {chosen.in_flight} in flight, {os.cpu_count()} cores")
    for name, (wall, cpu) in rows.items():
        rate, each = chosen.answers / wall, 1000 * cpu / chosen.answers
        print(f"{name:<14} {rate:8.0f} answers/s {each:8.3f} ms CPU an answer")
    print(f"ratio of CPU: {rows['corpusgen'][1] / rows['bare aiohttp'][1]:.2f}")


if __name__ == "__main__":
    main()
