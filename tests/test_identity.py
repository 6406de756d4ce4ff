"""The golden ids pin what makes two samples the same: a change here makes every user pay again."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpusgen.config_file import parse_config
from corpusgen.identity import bad_row_id, canonical, digest, sample_content, sample_id, seed_for
from corpusgen.types import Message, Sampling

USER: list[Message] = [{"role": "user", "content": "Hello"}]
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {}}},
}
EVERY_KEY = Sampling(
    temperature=0.7,
    top_p=0.95,
    top_k=40,
    min_p=0.05,
    max_tokens=256,
    stop=["\n\n", "END"],
    seed=7,
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.1,
    extra_body={"guided_choice": ["a", "b"], "top_a": 0.2},
)


def content(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "teacher": {"model": "m"},
        "messages": USER,
        "sampling": Sampling(),
        "tools": None,
        "response_format": None,
    }
    return sample_content(**{**given, **changes})


CASES: dict[str, dict[str, Any]] = {
    "plain": content(),
    "multi-turn": content(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4"},
            {"role": "user", "content": "And 3+3?"},
        ]
    ),
    "tools": content(tools=[TOOL]),
    "tool turns": content(
        messages=[
            *USER,
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c1", "function": {}}]},
            {"role": "tool", "content": "4", "tool_call_id": "c1"},
        ],
        tools=[TOOL],
    ),
    "response format": content(response_format={"type": "json_object"}),
    "every sampling key": content(sampling=EVERY_KEY),
    "unicode": content(
        messages=[{"role": "user", "content": "Zürich 東京 🙂 \u0000 \u2028 \\ \"'"}]
    ),
    "teacher": content(
        teacher={
            "model": "m",
            "revision": "abc123",
            "adapter": "lora-1",
            "template_args": {"enable_thinking": False},
        }
    ),
}

GOLDEN = {
    "plain": (
        "642d2eb5ee1be4c1bdfbe87d69482020",
        "21942fb906ab60b940e32358df5ebfbf",
    ),
    "multi-turn": (
        "a0ac60c3ce67718dd7cdd8c29541d250",
        "42a3e8917539886506523839172efd24",
    ),
    "tools": (
        "45d777725c843ef17f3c00adeff752e7",
        "5bc696c36d85f78edfd404e5f241d726",
    ),
    "tool turns": (
        "6d5f40044ea339a6e705a7e75052706a",
        "9a52693b3f1552ec9b49168797e30f2b",
    ),
    "response format": (
        "93b2ef22b910fa9dd180acf28170e8a4",
        "3157bf424663f7c0e6ac3e323d8066ec",
    ),
    "every sampling key": (
        "098ac0a8dbd09cdc3b2f65eb71e5df31",
        "515396a1446969d22b8c6c0ad7c6de33",
    ),
    "unicode": (
        "12b65b3c027420ab233da06cbe9abc53",
        "dc26796a01eb73cf06db30e3df3c722a",
    ),
    "teacher": (
        "b1467af85c0b100f328bdeb17fa9b33b",
        "59200f535641a34eafe370dc4f2e47c2",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_golden_ids(case: str) -> None:
    ids = tuple(sample_id(CASES[case], draw) for draw in (0, 1))
    assert ids == GOLDEN[case]


@pytest.mark.parametrize("case", CASES)
def test_an_id_is_what_anyone_computes_from_the_documented_rule(case: str) -> None:
    """BLAKE2b-128 of JSON with sorted keys, without white space, non-ASCII as it is."""
    text = json.dumps(
        {**CASES[case], "draw": 3}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    expected = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    assert sample_id(CASES[case], 3) == expected


def test_golden_ids_of_bad_rows() -> None:
    assert bad_row_id("math", b'{"prompt": 3}', 0) == "573cc57e3e229b867a3354df12a0b82f"
    assert bad_row_id("math", b"\xff\x00", 12) == "f6140d938b8340f88446a5a92995d8d3"


def test_no_two_bad_rows_share_an_id() -> None:
    rows = [
        ("a", b"b", 1),
        ("a", b"b", 11),
        ("a", b"1b", 1),
        ("ab", b"", 1),
        ("a", b"", 1),
        ("", b"ab", 1),
        ("a1", b"b", 1),
    ]
    assert len({bad_row_id(*row) for row in rows}) == len(rows)


def from_yaml(sampling: str) -> Sampling:
    loaded = parse_config(
        f"out: o\nprompts: [{{path: p.jsonl, sampling: {{{sampling}}}}}]\nteacher: {{kind: fake}}"
    )
    return loaded.config.prompts[0].sampling


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("temperature: 1", "temperature: 1.0"),
        ("temperature: 0", "temperature: 0.0"),
        ("top_p: 1", "top_p: 1.00"),
        ("temperature: 0.5, top_p: 0.9", "top_p: 0.9, temperature: 5.0e-1"),
        ("repetition_penalty: 2", "repetition_penalty: 2.0"),
        ("", "temperature: null"),
    ],
)
def test_spelling_in_yaml_makes_no_difference(one: str, other: str) -> None:
    a, b = content(sampling=from_yaml(one)), content(sampling=from_yaml(other))
    assert sample_id(a, 0) == sample_id(b, 0)


KEYS: dict[str, dict[str, Any]] = {
    "model": {"teacher": {"model": "m2"}},
    "revision": {"teacher": {"model": "m", "revision": "r"}},
    "adapter": {"teacher": {"model": "m", "adapter": "r"}},
    "role": {"messages": [{"role": "system", "content": "Hello"}]},
    "content": {"messages": [{"role": "user", "content": "Hello "}]},
    "turns": {"messages": USER * 2},
    "tools": {"tools": [TOOL]},
    "response_format": {"response_format": {"type": "json_object"}},
    **{
        f"sampling.{key}": {"sampling": Sampling(**{key: getattr(EVERY_KEY, key)})}
        for key in Sampling.__struct_fields__
    },
}


def test_everything_that_is_asked_makes_another_id() -> None:
    ids = {sample_id(content(**change), draw) for change in ({}, *KEYS.values()) for draw in (0, 1)}
    assert len(ids) == 2 * (len(KEYS) + 1)


@pytest.mark.parametrize("empty", [None, []])
def test_no_tools_are_no_tools(empty: Any) -> None:
    assert sample_id(content(tools=empty), 0) == sample_id(content(), 0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)


def reordered(value: Any) -> Any:
    """Return the same value with the keys of every mapping the other way round."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    if isinstance(value, list):
        return [reordered(entry) for entry in value]
    return value


@given(st.dictionaries(st.text(max_size=5), json_values))
def test_the_order_of_keys_is_irrelevant(value: dict[str, Any]) -> None:
    assert canonical(reordered(value)) == canonical(value)
    assert digest(reordered(value)) == digest(value)
    one, other = (
        content(teacher=teacher, messages=[turn], sampling=Sampling(extra_body=extra), tools=[tool])
        for teacher, turn, extra, tool in ([value] * 4, [reordered(value)] * 4)
    )
    assert sample_id(one, 0) == sample_id(other, 0)


def test_seeds_are_31_bits_and_differ_by_draw_and_by_seed() -> None:
    ids = [sample_id(content(), draw) for draw in range(500)]
    seeds = [seed_for(7, sample) for sample in ids]
    assert all(seed is not None and 0 <= seed < 2**31 for seed in seeds)
    assert max(seed for seed in seeds if seed is not None) > 2**30
    assert len(set(seeds)) == 500
    assert seeds != [seed_for(8, sample) for sample in ids]
    assert seeds == [seed_for(7, sample) for sample in ids]
    assert seed_for(7, ids[0]) == 548303773


def test_no_seed_is_sent_where_none_is_set() -> None:
    assert seed_for(None, sample_id(content(), 0)) is None
    assert seed_for(0, sample_id(content(), 0)) is not None
