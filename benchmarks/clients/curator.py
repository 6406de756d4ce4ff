"""Ask with bespokelabs-curator, in its own environment: its telemetry and its viewer are off."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

ASKED: dict[str, Any] = json.loads(sys.argv[1])


def prepare() -> None:
    """Turn off what would reach for the network; its tokenizer's file lies in litellm."""
    sys.path.pop(0)  # this directory, in which a module has the package's name
    home = Path(ASKED["directory"])
    litellm = importlib.util.find_spec("litellm")
    assert litellm is not None
    assert litellm.origin is not None
    tokenizers = Path(litellm.origin).parent / "litellm_core_utils" / "tokenizers"
    os.environ |= {
        "HOME": str(home),
        "OPENAI_API_KEY": "none",
        "TELEMETRY_ENABLED": "false",
        "CURATOR_VIEWER": "0",
        "CURATOR_CACHE_DIR": str(home / "curator"),
        "CURATOR_DISABLE_RICH_DISPLAY": "1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "TIKTOKEN_CACHE_DIR": str(tokenizers),
        "HF_HUB_OFFLINE": "1",
    }


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def ask(what: str, count: int) -> int:
    from bespokelabs import curator

    llm = curator.LLM(
        model_name="m",
        backend="openai",
        generation_params={"max_tokens": ASKED["max_tokens"]},
        backend_params={
            "base_url": ASKED["base_url"],
            "max_concurrent_requests": ASKED["in_flight"],
            "max_requests_per_minute": 10**9,
            "max_tokens_per_minute": 10**12,
        },
    )
    answered = llm([f"{what} {i}" for i in range(count)]).dataset
    return sum(bool(text) for text in answered["response"])


def main() -> None:
    prepare()
    if ASKED["warm_up"]:
        ask("warm up", ASKED["warm_up"])
    startup, wall = cpu_s(), time.perf_counter()
    answers = ask("question", ASKED["answers"])
    cpu, wall = cpu_s() - startup, time.perf_counter() - wall
    print()
    print(json.dumps({"answers": answers, "startup_s": startup, "cpu_s": cpu, "wall_s": wall}))


if __name__ == "__main__":
    main()
