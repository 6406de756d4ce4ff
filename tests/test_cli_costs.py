"""Money on the command line: estimates, questions before spending, budgets and the ledger."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import subprocess
import sys
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from corpusgen.cli.estimate import confirming
from corpusgen.errors import ExitCode, RunStopped
from corpusgen.events import CostRange, Estimated, TokenRange
from tests.loopback import Script, serving
from tests.runs import corpusgen, remote, succeeded, write_config, write_prompts

PRICE = {"input_per_mtok": "1", "output_per_mtok": "2"}
PRICED = {"kind": "fake", "price": PRICE}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A priced teacher and 20 prompts; half of max_tokens is 32 tokens an answer."""
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(20)])
    return write_config(tmp_path, teacher=PRICED)


def events_of(output: str) -> dict[str, Any]:
    return {event["event"]: event for event in map(json.loads, output.splitlines())}


# plan


def test_plan_says_what_asking_takes(config: Path) -> None:
    text = succeeded(corpusgen("plan", config))
    assert "to ask      20 samples in 20 requests" in text
    assert "counted approximately, from 20 of 20 prompts" in text
    assert "tokens out  low 160, expected 640, high 1,280 (a guess: half of max_tokens" in text
    assert "(price: configuration)" in text
    assert re.search(
        r"^cost        low \$0\.0\d+, expected \$0\.0\d+, high \$0\.0\d+ \(", text, re.M
    )
    assert "time        unknown (not known: no limit is set" in text
    assert "disk        about " in text


def test_plan_gives_all_numbers_to_machines(config: Path) -> None:
    told = events_of(succeeded(corpusgen("plan", config, "--json")))["estimated"]
    assert told["samples"] == told["sets"][0]["samples"] == 20
    assert told["completion_tokens"] == {"low": 160, "expected": 640, "high": 1280}
    dollars = told["prompt_tokens"] + 640 * 2
    assert Decimal(told["cost_usd"]["expected"]) * 1_000_000 == dollars
    assert told["wall_s"] is None
    assert told["disk_bytes"] > 0


def test_plan_says_that_a_price_is_unknown(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one"])
    config = write_config(tmp_path, teacher=remote("http://127.0.0.1:1/v1"))
    assert "cost        unknown (price: unknown)" in succeeded(corpusgen("plan", config))


def test_plan_tells_several_sets_apart_and_adds_them_up(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_prompts(tmp_path / f"{name}.jsonl", [f"{name}{i}" for i in range(4)])
    sets = [{"path": "a.jsonl"}, {"path": "b.jsonl", "sampling": {"max_tokens": 8}}]
    text = succeeded(corpusgen("plan", write_config(tmp_path, teacher=PRICED, prompts=sets)))
    assert "prompt set a, answered by fake-1" in text
    assert "prompt set b, answered by fake-1" in text
    assert "together\nto ask      8 samples in 8 requests" in text
    assert "expected 144, high 288" in text


def test_a_pilot_makes_the_estimate_a_measurement(config: Path) -> None:
    succeeded(corpusgen("generate", config, "--limit", "10"))
    text = succeeded(corpusgen("plan", config))
    assert "to ask      10 samples" in text
    assert "counted by the teacher, over 10 answers of this corpus" in text
    assert "mean of 10 answers of this corpus" in text


def test_nothing_is_estimated_where_nothing_is_left(config: Path) -> None:
    succeeded(corpusgen("generate", config))
    assert "to ask" not in succeeded(corpusgen("plan", config))


# --confirm-above


def refused(*arguments: str | Path) -> str:
    done = corpusgen(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", ["run", "generate"])
def test_what_costs_more_is_refused_where_nobody_can_be_asked(config: Path, command: str) -> None:
    told = refused(command, config, "--confirm-above", "0.0001")
    assert told.startswith("corpusgen: asking 20 samples will probably cost $0.00")
    assert "more than --confirm-above 0.0001" in told
    assert told.endswith("--yes to agree.")
    assert not (config.parent / "out/attempts").exists()
    assert not (config.parent / "out/lease.json").exists()


def test_yes_agrees(config: Path) -> None:
    arguments = ("generate", config, "--confirm-above", "0.0001", "--yes")
    assert "20 answered" in succeeded(corpusgen(*arguments))


def test_what_costs_less_is_asked_without_a_question(config: Path) -> None:
    arguments = ("generate", config, "--confirm-above", "0.01", "--limit", "3")
    assert "3 answered" in succeeded(corpusgen(*arguments))
    # What is left is asked about, not what there was.
    assert "17 samples" in refused("generate", config, "--confirm-above", "0")


def test_a_pilot_is_asked_about_for_itself(config: Path) -> None:
    told = refused("generate", config, "--confirm-above", "0", "--limit", "3")
    assert "asking 3 samples" in told


def test_an_unknown_price_is_refused(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one"])
    config = write_config(tmp_path, teacher=remote("http://127.0.0.1:1/v1"))
    told = refused("generate", config, "--confirm-above", "1000")
    assert told.startswith("corpusgen: the price is not known")


def test_with_json_the_refusal_is_json(config: Path) -> None:
    done = corpusgen("generate", config, "--confirm-above", "0", "--json")
    told = events_of(done.stdout)
    assert told["error"]["exit_code"] == done.returncode == 2
    assert told["estimated"]["samples"] == 20


@pytest.mark.parametrize("amount", ["abc", "-1", "nan", "inf", ""])
def test_an_amount_that_is_none_is_a_usage_mistake(config: Path, amount: str) -> None:
    done = corpusgen("generate", config, f"--confirm-above={amount}")
    assert done.returncode == 2
    assert "is no amount of dollars" in done.stderr


def answering(answer: bytes, *arguments: str | Path) -> tuple[int, str]:
    """Run a command with a terminal on which somebody answers; return its code and what stood."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "corpusgen", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(
        command, stdin=theirs, stdout=subprocess.DEVNULL, stderr=theirs, env=environment
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # Linux: the other side is closed
                break
            shown += data
            if b"[y/N]" in shown and answer:
                os.write(ours, answer)
                answer = b""
        os.close(ours)
    return process.returncode, shown.decode()


def test_a_terminal_is_asked(config: Path) -> None:
    code, shown = answering(b"n\n", "generate", config, "--confirm-above", "0")
    assert code == 2
    assert "Asking 20 samples will probably cost" in shown
    assert "Go on? [y/N]" in shown
    assert not (config.parent / "out/attempts").exists()
    code, shown = answering(b"y\n", "generate", config, "--confirm-above", "0")
    assert code == 0, shown
    assert (config.parent / "out/attempts").exists()


def estimated(expected: str | None, gpu: str | None = None, samples: int = 5) -> Estimated:
    cost = CostRange(expected, expected, expected)
    return Estimated(samples, 5, 9, TokenRange(1, 2, 3), cost, gpu, None, "", 0, ())


@pytest.mark.parametrize(
    ("found", "agrees"),
    [
        (estimated("10"), True),
        (estimated("10.000000000001"), False),
        (estimated("9", gpu="1"), True),
        (estimated("9", gpu="1.5"), False),
        (estimated(None), False),
        (estimated(None, samples=0), True),
    ],
)
def test_the_machines_count_and_the_limit_itself_is_within(found: Estimated, agrees: bool) -> None:
    confirm = confirming(Decimal(10), asks=False)
    if agrees:
        confirm(found)
        return
    with pytest.raises(RunStopped) as refusal:
        confirm(found)
    assert refusal.value.exit_code is ExitCode.USAGE


# Budgets


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher": {"budget_usd": 1}}, ["teacher.budget_usd", "127.0.0.1:1", "teacher.price"]),
        ({"generate": {"budget_usd": 1}}, ["generate.budget_usd", "teacher.price"]),
    ],
)
def test_a_budget_needs_a_price_at_every_endpoint(
    tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one"])
    places = [
        {"base_url": "http://127.0.0.1:9/v1", "price": PRICE},
        {"base_url": "http://127.0.0.1:1/v1"},
    ]
    teacher = {"kind": "openai", "model": "m", "endpoints": places} | change.get("teacher", {})
    keys = {"teacher": teacher, "generate": change.get("generate", {})}
    told = refused("generate", write_config(tmp_path, **keys))
    for word in words:
        assert word in told
    teacher["price"] = PRICE
    succeeded(corpusgen("plan", write_config(tmp_path, **keys)))


def test_a_teachers_budget_needs_max_tokens_and_names_the_teacher(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one"])
    teachers = {"x": {**PRICED, "budget_usd": "0.5"}}
    keys = {"teacher": None, "teachers": teachers, "sampling": {"seed": 1}}
    told = refused("generate", write_config(tmp_path, **keys))
    assert "teachers.x.budget_usd is set, but sampling.max_tokens is not" in told


def test_at_the_cap_it_says_what_is_left_and_what_it_would_cost(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(60)])
    with serving(Script()) as server:
        teacher = remote(server.base_url, price=PRICE)
        config = write_config(tmp_path, teacher=teacher, generate={"budget_usd": "0.002"})
        text = succeeded(corpusgen("generate", config), code=4)
    left = re.search(
        r"(\d+) samples are left; at the mean of those that ended they would cost \$([0-9.]+) more",
        text,
    )
    assert left, text
    pending = re.search(r"(\d+) answered, (\d+) pending", text)
    assert pending
    assert left[1] == pending[2]
    books = json.loads(succeeded(corpusgen("ledger", tmp_path / "out", "--json")))
    mean = books["charged_picousd"] / int(pending[1])
    assert float(left[2]) * 1e12 == pytest.approx(mean * int(left[1]), rel=0.01)


# ledger


def test_the_ledger_of_a_configuration_counts_its_machines(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(6)])
    teacher = {"kind": "fake", "latency_s": 0.05, "gpu": {"usd_per_hour": "36", "count": 2}}
    config = write_config(tmp_path, teacher=teacher, generate={"max_concurrency": 1})
    succeeded(corpusgen("run", config))
    books = json.loads(succeeded(corpusgen("ledger", config, "--json")))
    gpu = books["gpu"]["fake-1"]
    assert 0.3e6 <= gpu["busy_us"] < 60e6
    assert gpu["cost_picousd"] == books["gpu_picousd"] == gpu["busy_us"] * 20_000_000_000 // 10**6
    accepted = books["total"]["accepted"]
    assert books["cost_per_accepted_picousd"] == -(-gpu["cost_picousd"] // accepted)
    text = succeeded(corpusgen("ledger", config))
    assert re.search(r"^machines of fake-1: 2 x 0\.000 h at \$36 an hour: \$0\.\d+\.$", text, re.M)
    assert f"{accepted} of 6 generations are accepted: $0.0" in text
    assert "gpu" not in json.loads(succeeded(corpusgen("ledger", config, "--json")))["by_fate"]
    assert json.loads(succeeded(corpusgen("ledger", tmp_path / "out", "--json")))["gpu"] == {}


def test_the_ledger_as_a_table_adds_up(config: Path) -> None:
    succeeded(corpusgen("run", config))
    text = succeeded(corpusgen("ledger", config, "--csv"))
    rows = list(csv.DictReader(StringIO(text)))
    ways: dict[str, Decimal] = {}
    for row in rows:
        ways[row["dimension"]] = ways.get(row["dimension"], Decimal()) + Decimal(row["cost_usd"])
    assert ways.keys() == {"total", "outcome", "fate", "endpoint", "teacher", "prompt_set", "day"}
    assert len(set(ways.values())) == 1
    assert ways["total"] > 0


def test_csv_and_json_exclude_each_other(config: Path) -> None:
    done = corpusgen("ledger", config, "--csv", "--json")
    assert done.returncode == 2
    assert "exclude each other" in done.stderr


def test_the_card_says_that_a_price_is_unknown(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one", "two"])
    with serving(Script()) as server:
        config = write_config(tmp_path, teacher=remote(server.base_url))
        succeeded(corpusgen("run", config))
    card = (tmp_path / "out/dataset/messages/README.md").read_text()
    assert "not known: the teacher's price is not known" in card
