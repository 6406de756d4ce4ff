"""Ask with aiohttp alone: send, read the bytes, forget them."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any

import aiohttp


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def ask(asked: dict[str, Any], what: str, count: int) -> int:
    url = f"{asked['base_url']}/chat/completions"
    top = asked["top_logprobs"]
    options = {"logprobs": True, "top_logprobs": top} if top else {}
    queue = iter(range(count))
    answers = 0
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def worker() -> None:
            nonlocal answers
            for number in queue:
                messages = [{"role": "user", "content": f"{what} {number}"}]
                body = {"model": "m", "messages": messages, "max_tokens": asked["max_tokens"]}
                async with session.post(url, json=body | options) as response:
                    await response.read()
                    answers += response.status == 200

        await asyncio.gather(*(worker() for _ in range(asked["in_flight"])))
    return answers


def main() -> None:
    asked = json.loads(sys.argv[1])
    asyncio.run(ask(asked, "warm up", asked["warm_up"]))
    startup, wall = cpu_s(), time.perf_counter()
    answers = asyncio.run(ask(asked, "question", asked["answers"]))
    cpu, wall = cpu_s() - startup, time.perf_counter() - wall
    print(json.dumps({"answers": answers, "startup_s": startup, "cpu_s": cpu, "wall_s": wall}))


if __name__ == "__main__":
    main()
