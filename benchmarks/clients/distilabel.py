"""Ask with distilabel, in its own environment: a pipeline of one generating step, no cache."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

ASKED: dict[str, Any] = json.loads(sys.argv[1])
HOME = Path(ASKED["directory"])


def prepare() -> None:
    """Turn off what would reach for the network."""
    sys.path.pop(0)  # this directory, in which a module has the package's name
    os.environ |= {
        "HOME": str(HOME),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "DISTILABEL_LOG_LEVEL": "WARNING",
    }


def cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def ask(what: str, count: int) -> tuple[int, int]:
    """Return how many rows have an answer, and for how many tokens of the first
    one alternatives are kept."""
    from distilabel.models import OpenAILLM
    from distilabel.pipeline import Pipeline
    from distilabel.steps import LoadDataFromDicts
    from distilabel.steps.tasks import TextGeneration

    top = ASKED["top_logprobs"]
    options = {"max_new_tokens": ASKED["max_tokens"]}
    options |= {"logprobs": True, "top_logprobs": top} if top else {}
    llm = OpenAILLM(
        model="m", base_url=ASKED["base_url"], api_key="none", generation_kwargs=options
    )
    rows = [{"instruction": f"{what} {i}"} for i in range(count)]
    batch = ASKED["in_flight"]
    with Pipeline(name="benchmark", cache_dir=HOME / "pipelines") as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=batch)
        load >> TextGeneration(llm=llm, input_batch_size=batch)
    answered = pipeline.run(use_cache=False)["default"]["train"]
    return sum(bool(text) for text in answered["generation"]), _positions(answered)


def _positions(answered: Any) -> int:
    """Count the tokens of the first answer whose alternatives are kept."""
    column = next((name for name in answered.column_names if name.endswith("_logprobs")), None)
    return 0 if column is None else len(answered[0][column])


def main() -> None:
    prepare()
    if ASKED["warm_up"]:
        ask("warm up", ASKED["warm_up"])
    startup, wall = cpu_s(), time.perf_counter()
    answers, positions = ask("question", ASKED["answers"])
    cpu, wall = cpu_s() - startup, time.perf_counter() - wall
    said = {"answers": answers, "startup_s": startup, "cpu_s": cpu, "wall_s": wall}
    print()
    print(json.dumps(said | {"positions_kept": positions}))


if __name__ == "__main__":
    main()
