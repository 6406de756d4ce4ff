"""Which price holds at which endpoint: the endpoint's, the teacher's, the table's, or none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from corpusgen.config_file import parse_config
from corpusgen.money import LOCAL, OWN, Tariff, listed_tariff
from corpusgen.pipeline.asking import make_teachers, tariffs_of

OPENAI = "https://api.openai.com/v1"
MINE = "http://127.0.0.1:8000/v1"
PRICE = {"input_per_mtok": "1", "output_per_mtok": "2"}
OTHER = {"input_per_mtok": 3, "output_per_mtok": 4, "reasoning_per_mtok": "5"}


def tariffs(**teacher: Any) -> dict[str, Tariff | None]:
    keys = {"out": "o", "prompts": [{"path": "p.jsonl"}], "teacher": teacher}
    config = parse_config(json.dumps(keys), directory=Path()).config
    (found,) = tariffs_of(config, make_teachers(config)).values()
    return found


def remote(*endpoints: dict[str, Any], model: str = "gpt-4o-mini", **more: Any) -> dict[str, Any]:
    return {"kind": "openai", "model": model, "endpoints": list(endpoints)} | more


def test_each_endpoint_has_its_own_price_or_else_the_teachers_or_else_the_tables() -> None:
    own = {"base_url": MINE, "name": "own", "price": OTHER}
    listed, unknown = {"base_url": OPENAI, "name": "listed"}, {"base_url": MINE, "name": "unknown"}
    assert tariffs(**remote(own, listed, unknown)) == {
        "own": Tariff(3_000_000, 3_000_000, 4_000_000, "configuration", 5_000_000),
        "listed": listed_tariff("gpt-4o-mini", OPENAI),
        "unknown": None,
    }
    priced = Tariff(1_000_000, 1_000_000, 2_000_000, "configuration")
    found = tariffs(**remote(own, listed, unknown, price=PRICE))
    assert found["listed"] == found["unknown"] == priced != found["own"]


def test_machines_of_ones_own_cost_nothing_a_token() -> None:
    found = tariffs(**remote({"base_url": MINE, "name": "mine"}, gpu={"usd_per_hour": 2}))
    assert found == {"mine": OWN}
    assert OWN.free


def test_local_teachers_are_free_unless_priced() -> None:
    assert set(tariffs(kind="fake").values()) == {LOCAL}
    (priced,) = tariffs(kind="fake", price=PRICE).values()
    assert priced == Tariff(1_000_000, 1_000_000, 2_000_000, "configuration")


def test_a_batch_costs_its_share_of_the_price() -> None:
    endpoint = {"base_url": OPENAI, "name": "e"}
    teacher = remote(endpoint, kind="openai_batch", price=PRICE)
    assert tariffs(**teacher) == {
        "e": Tariff(500_000, 500_000, 1_000_000, "configuration, less 50%")
    }
    assert tariffs(**teacher, batch_discount="0.25")["e"] == Tariff(
        250_000, 250_000, 500_000, "configuration, less 75%"
    )
    listed = tariffs(**remote(endpoint, kind="openai_batch"))["e"]
    assert listed is not None
    assert (listed.input_picousd, listed.output_picousd) == (75_000, 300_000)
    assert tariffs(**remote({"base_url": MINE, "name": "e"}, kind="openai_batch"))["e"] is None
