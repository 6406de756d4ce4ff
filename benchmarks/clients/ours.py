"""Ask with corpusgen: plan, generate, commit; limits, budget and prices are configured.

`cpu_s` is the CPU time of the whole command after a warm-up, `asking_cpu_s` that from the moment
when the plan stands to the last commit.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

from corpusgen import load, pipeline
from corpusgen.config_file import parse_config
from corpusgen.events import Event, Planned


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def config(asked: dict[str, Any], what: str, count: int) -> dict[str, Any]:
    root = Path(asked["directory"]) / what
    root.mkdir(parents=True)
    rows = (json.dumps({"prompt": f"{what} {i}"}) + "\n" for i in range(count))
    (root / "prompts.jsonl").write_text("".join(rows))
    endpoint = {
        "base_url": asked["base_url"],
        "max_concurrency": asked["in_flight"],
        "rpm": 10_000_000,
        "tpm": 1_000_000_000,
    }
    price = {"input_per_mtok": "0.15", "output_per_mtok": "0.60"}
    return {
        "out": str(root / "out"),
        "prompts": [{"path": str(root / "prompts.jsonl")}],
        "teacher": {"kind": "openai", "model": "m", "endpoints": [endpoint], "price": price},
        "sampling": {"max_tokens": asked["max_tokens"], "top_logprobs": asked["top_logprobs"]},
        "generate": {"budget_usd": "1000"},
    }


def generate(asked: dict[str, Any], what: str, count: int) -> dict[str, Any]:
    planned: list[tuple[float, float]] = []

    def observe(event: Event) -> None:
        if isinstance(event, Planned):
            planned.append((cpu_s(), time.perf_counter()))

    wanted = config(asked, what, count)
    cpu = cpu_s()
    pipeline.generate(parse_config(json.dumps(wanted)), observer=observe)
    end_cpu, end = cpu_s(), time.perf_counter()
    generations = load(wanted["out"]).generations()
    tokens = generations.to_table(columns=["completion_tokens"])["completion_tokens"]
    return {
        "answers": len(tokens),
        "tokens": sum(tokens.to_pylist()),
        "cpu_s": end_cpu - cpu,
        "asking_cpu_s": end_cpu - planned[0][0],
        "wall_s": end - planned[0][1],
    }


def main() -> None:
    asked = json.loads(sys.argv[1])
    if asked["warm_up"]:
        generate(asked, "warm up", asked["warm_up"])
    startup = cpu_s()
    print(json.dumps({"startup_s": startup, **generate(asked, "question", asked["answers"])}))


if __name__ == "__main__":
    main()
