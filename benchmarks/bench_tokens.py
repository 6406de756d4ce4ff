"""Measure what an answer's tokens cost, stage by stage, from the wire's bytes to committed Parquet.

    python benchmarks/bench_tokens.py [--answers 400] [--tokens 200] [--top 20] [--rounds 3]

Everything happens in this process, without a network: bodies of chat completions are decoded, made
into arrays, journaled, read back and written as a part's Parquet file, with the code that a run
uses. Printed is the CPU time of each stage by token (of the quickest round), the tokens per second
of the whole, and the same for short answers without logprobs, by answer.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from corpusgen import attempts, journal, schema, shards
from corpusgen.teachers import openai_wire
from corpusgen.teachers.openai_errors import Origin
from corpusgen.types import Generation, Intent, Reply, Request, Sample, Sampling

ORIGIN = Origin("here")
HEADERS = {"x-request-id": "req-1"}
STAGES = ("decode", "trace", "journal", "read back", "Arrow", "Parquet")


def vocabulary(size: int = 20_000) -> list[str]:
    """Return distinct tokens whose lengths and scripts are about those of English text."""
    rng = random.Random(1)
    letters, rare = "etaoinshrdlucmfwypvbgkjqxz", "éüß東京🙂"
    found: dict[str, None] = {}
    while len(found) < size:
        word = "".join(rng.choice(letters) for _ in range(rng.choice((1, 2, 3, 4, 4, 5, 6, 8))))
        tail = rng.choice(rare) if rng.random() < 0.03 else ""
        found[(" " if rng.random() < 0.7 else "") + word + tail] = None
    return list(found)


def body(rng: random.Random, words: list[str], tokens: int, top: int) -> bytes:
    """Return a chat completion as OpenAI writes it; `top` 0: without logprobs."""
    entries = [_entry(rng, words, top) for _ in range(tokens)]
    content = {
        "id": "chatcmpl-0123456789",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "".join(entry["token"] for entry in entries),
                    "refusal": None,
                },
                "logprobs": {"content": entries, "refusal": None} if top else None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 20,
            "completion_tokens": tokens,
            "total_tokens": 20 + tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "system_fingerprint": "fp_0123456789",
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _entry(rng: random.Random, words: list[str], top: int) -> dict[str, Any]:
    """Return a position; about one sampled token in twenty lies outside the candidates."""
    picked: dict[str, None] = {}
    while len(picked) < max(top, 1):
        picked[words[min(len(words), int(rng.paretovariate(0.6))) - 1]] = None
    values = sorted((round(-rng.expovariate(0.12), 6) for _ in picked), reverse=True)
    candidates = [_candidate(word, value) for word, value in zip(picked, values, strict=True)]
    rank = int(rng.expovariate(1.0))
    outside = _candidate(words[-1 - rank], -40.5)
    sampled = outside if rng.random() < 0.05 else candidates[min(rank, len(candidates) - 1)]
    return {**sampled, "top_logprobs": candidates}


def _candidate(word: str, value: float) -> dict[str, Any]:
    return {"token": word, "logprob": value, "bytes": list(word.encode())}


class Stopwatch:
    """Add up CPU seconds by stage."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(STAGES, 0.0)

    @contextmanager
    def on(self, stage: str) -> Iterator[None]:
        before = time.process_time()
        yield
        self.spent[stage] += time.process_time() - before


def once(bodies: list[bytes], answers: int, top: int, directory: Path) -> dict[str, float]:
    """Take all answers from bytes to a part's files; return the CPU seconds by stage."""
    watch = Stopwatch()
    samples = [sample(number) for number in range(answers)]
    plan = plan_of(samples)
    asked = Request(messages=samples[0].messages, sampling=Sampling(), top_logprobs=top)
    path = directory / "journal" / "00000-000.log"
    writer = journal.JournalWriter(path, journal.Opened("c" * 32, 0, 0))
    contents = journal.Contents({}, {}, [], {}, 0, 0)

    def kept(record: journal.Record) -> None:
        journal.take(contents, record, *writer.append(record))

    for number, planned in enumerate(samples):
        raw = bodies[number % len(bodies)]
        intent = Intent(f"{number:032x}", [planned.sample_id], "here", 1_760_000_000.0, 10**9)
        with watch.on("journal"):
            kept(journal.Begun(intent))
        with watch.on("decode"):
            openai_wire._COMPLETION.decode(raw)
        with watch.on("trace"):
            reply = openai_wire.decode_reply(raw, asked, ORIGIN, 200, HEADERS)
            reply = attempts.checked(reply)
        with watch.on("journal"):
            kept(ended(intent, planned, reply))
    writer.close()
    watch.spent["trace"] -= watch.spent["decode"]  # it holds the decoding as well

    descriptor = os.open(path, os.O_RDONLY)
    with watch.on("read back"):
        places = (contents.generations[name] for name in sorted(contents.generations))
        generations = [journal.read_generation(descriptor, place) for place in places]
    os.close(descriptor)
    with watch.on("Arrow"):
        tables(generations, plan)
    with watch.on("Parquet"):
        files(directory, generations, contents, plan, top)
    watch.spent["Parquet"] -= watch.spent["Arrow"]  # it holds the tables as well
    return watch.spent


def ended(intent: Intent, planned: Sample, reply: Reply) -> journal.Ended:
    attempt = attempts.answered(intent, reply, 0.1, 10**8)
    return journal.Ended(attempt, [attempts.generation(intent, planned, reply, 0.1, 1)])


def sample(number: int) -> Sample:
    return Sample(
        sample_id=f"{number * 7919:032x}",
        partition=0,
        prompt_set="set",
        prompt_id=f"p-{number}",
        draw=0,
        teacher="t",
        messages=[{"role": "user", "content": f"question {number}"}],
        sampling=Sampling(),
        row=f"p.jsonl:{number + 1}",
    )


def plan_of(samples: list[Sample]) -> pa.Table:
    names = ("sample_id", "partition", "prompt_set", "prompt_id", "draw", "teacher", "row")
    rows = [
        {name: getattr(each, name) for name in names}
        | {"messages": each.messages, "sampling": "{}"}
        for each in samples
    ]
    return pa.Table.from_pylist(rows, schema=schema.PLAN)


def tables(generations: list[Generation], plan: pa.Table) -> None:
    places = {name: index for index, name in enumerate(plan.column("sample_id").to_pylist())}
    taken = plan.select(["sample_id", *shards._FROM_PLAN])
    for group in shards._groups(generations):
        shards._generation_table(group, taken, places, "float16")


def files(
    directory: Path,
    generations: list[Generation],
    contents: journal.Contents,
    plan: pa.Table,
    top: int,
) -> None:
    described = shards.TokenFormat(top, "float16", "raw")
    shards.write_generations(directory / "g.parquet", generations, plan, described, "c" * 32)
    shards.write_attempts(directory / "a.parquet", contents.attempts, "c" * 32)


def quickest(bodies: list[bytes], answers: int, top: int, rounds: int) -> dict[str, float]:
    found = []
    for _ in range(rounds):
        gc.collect()
        with tempfile.TemporaryDirectory() as directory:
            found.append(once(bodies, answers, top, Path(directory)))
    return min(found, key=lambda spent: sum(spent.values()))


def report(title: str, spent: dict[str, float], parts: int, unit: str, factor: float) -> None:
    print(title)
    for stage, seconds in spent.items():
        print(f"  {stage:<10} {factor * seconds / parts:8.2f} {unit}")
    whole = sum(spent.values())
    print(f"  {'whole':<10} {factor * whole / parts:8.2f} {unit}   {parts / whole:,.0f}/s")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--answers", type=int, default=400)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    rng, words = random.Random(2), vocabulary()
    long = [body(rng, words, chosen.tokens, chosen.top) for _ in range(min(chosen.answers, 50))]
    short = [body(rng, words, 24, 0) for _ in range(50)]
    spent = quickest(long, chosen.answers, chosen.top, chosen.rounds)
    size = sum(map(len, long)) // len(long) // 1000
    report(
        f"{chosen.answers} answers of {chosen.tokens} tokens, top {chosen.top}, {size} kB each",
        spent,
        chosen.answers * chosen.tokens,
        "us a token",
        1e6,
    )
    plain = quickest(short, 5 * chosen.answers, 0, chosen.rounds)
    title = f"{5 * chosen.answers} answers of 24 tokens without logprobs"
    report(title, plain, 5 * chosen.answers, "us an answer", 1e6)


if __name__ == "__main__":
    main()
