"""The plan only grows: nothing that was planned is edited, asked twice or forgotten."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpusgen import identity, schema
from corpusgen.errors import CorpusError, PlanConflict, PromptError
from corpusgen.layout import Layout
from corpusgen.plan.planning import Planned, SetRequest, plan
from corpusgen.plan.segments import Plan, SetCounts
from corpusgen.types import BadPrompt, Prompt, Sampling

SIZE = 4
COLD = Sampling(temperature=0.2)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


def prompt(text: str, **changes: Any) -> Prompt:
    values: dict[str, Any] = {
        "prompt_id": f"id-{text}",
        "messages": [{"role": "user", "content": text}],
        "row": f"p.jsonl:{text}",
    }
    return Prompt(**{**values, **changes})


def bad(raw: bytes = b"{") -> BadPrompt:
    return BadPrompt("row-1", raw, "p.jsonl:3", "not valid JSON: it breaks off")


def prompts(count: int, start: int = 0) -> list[Prompt]:
    return [prompt(f"q{index}") for index in range(start, start + count)]


def asked(
    rows: Iterable[Prompt | BadPrompt],
    name: str = "set",
    n: int = 1,
    teacher: str = "t",
    sampling: Sampling | None = None,
    **changes: Any,
) -> SetRequest:
    """Return what a configuration asks of one set; its input digest covers the rows."""
    rows = list(rows)
    sampling = sampling or Sampling(temperature=0.7)
    model = {"model": f"model-of-{teacher}"}
    keys = {f"sampling.{k}": v for k, v in msgspec.to_builtins(sampling).items()}
    values: dict[str, Any] = {
        "name": name,
        "teacher": teacher,
        "teacher_identity": model,
        "sampling": sampling,
        "n": n,
        "keys": {"teacher.model": model["model"], **keys},
        "inputs": [
            (f"{name}.jsonl", 1, int(hashlib.sha256(repr(rows).encode()).hexdigest()[:8], 16))
        ],
        "read": lambda: iter(rows),
    }
    return SetRequest(**{**values, **changes})


def planned(layout: Layout, *requests: SetRequest, size: int = SIZE, **options: Any) -> Planned:
    return plan(layout, requests, partition_size=size, **options)


def stored(layout: Layout, size: int = SIZE) -> Plan:
    return Plan(layout, size)


def ids(found: Plan) -> list[str]:
    return [sample for partition in range(found.partitions) for sample in found.ids_of(partition)]


def live(layout: Layout) -> list[str]:
    """Return the prompt id of each sample that is not retired, sorted."""
    found = stored(layout)
    samples = [sample for p in range(found.partitions) for sample in found.samples_of(p)]
    return sorted(s.prompt_id for s in samples if s.sample_id not in found.retired())


def partitions(found: Plan) -> list[tuple[str, list[str]]]:
    """Return each partition's set and its prompts, in order."""
    return [
        (found.run_of(p).prompt_set, [s.prompt_id for s in found.samples_of(p)])
        for p in range(found.partitions)
    ]


def files(layout: Layout) -> dict[str, bytes]:
    return {str(path.relative_to(layout.root)): path.read_bytes() for path in all_files(layout)}


def all_files(layout: Layout) -> Iterator[Path]:
    return (path for path in sorted(layout.plan.rglob("*")) if path.is_file())


def unread() -> Iterator[Prompt]:
    raise AssertionError("the prompts were read")


# One planning


def test_a_sample_holds_all_that_its_prompt_and_its_set_say(layout: Layout) -> None:
    tools = [{"type": "function", "function": {"name": "add"}}]
    calls = [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2+2? 🙂", "name": "Ann"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "4", "tool_call_id": "c1"},
    ]
    row = prompt("x", messages=messages, tools=tools, reference="4", metadata={"b": [1], "a": None})
    sampling = Sampling(temperature=0.0, stop=["\n"], extra_body={"k": 1}, seed=3)
    request = asked([row], sampling=sampling, n=2, response_format={"type": "json_object"})
    planned(layout, request)
    first, second = stored(layout).samples_of(0)
    content = identity.sample_content(
        teacher=request.teacher_identity,
        messages=messages,
        sampling=sampling,
        tools=tools,
        response_format={"type": "json_object"},
    )
    assert [first.sample_id, second.sample_id] == [identity.sample_id(content, d) for d in (0, 1)]
    assert msgspec.structs.replace(first, sample_id="", draw=1) == msgspec.structs.replace(
        second, sample_id=""
    )
    expected = [{k: v for k, v in message.items() if v is not None} for message in messages]
    assert first.messages == expected
    assert (first.prompt_set, first.teacher, first.prompt_id) == ("set", "t", "id-x")
    assert (first.sampling, first.tools) == (sampling, tools)
    assert (first.reference, first.metadata) == ("4", {"b": [1], "a": None})
    assert first.response_format == {"type": "json_object"}
    assert (first.row, first.problem) == ("p.jsonl:x", None)


def test_samples_stand_in_the_order_of_the_prompts_in_full_partitions(layout: Layout) -> None:
    result = planned(layout, asked(prompts(5), n=2))
    assert result.new_samples == 10
    assert result.sets == {"set": SetCounts(rows=5, samples=10, aliases=0, bad_prompts=0)}
    found = stored(layout)
    assert [found.rows_of(p) for p in range(found.partitions)] == [4, 4, 2]
    samples = [s for p in range(3) for s in found.samples_of(p)]
    assert [(s.prompt_id, s.draw) for s in samples] == [
        (f"id-q{index}", draw) for index in range(5) for draw in (0, 1)
    ]
    assert [s.partition for s in samples] == [0] * 4 + [1] * 4 + [2] * 2


def test_partitions_never_straddle_sets(layout: Layout) -> None:
    planned(
        layout,
        asked(prompts(5), "a"),
        asked(prompts(1, 100), "b", teacher="u"),
        asked(prompts(4, 200), "c"),
    )
    assert [(name, len(rows)) for name, rows in partitions(stored(layout))] == [
        ("a", 4),
        ("a", 1),
        ("b", 1),
        ("c", 4),
    ]
    found = stored(layout)
    assert [found.run_of(p).teacher for p in range(4)] == ["t", "t", "u", "t"]
    assert [found.rows_of(p) for p in range(4)] == [4, 1, 1, 4]


def test_rows_with_the_same_content_are_one_prompt(layout: Layout) -> None:
    twice = [prompt("q0"), prompt("q1"), prompt("q0", prompt_id="other", reference="r")]
    result = planned(layout, asked(twice, "a", n=2), asked([prompt("q1"), prompt("q2")], "b", n=3))
    assert result.sets["a"] == SetCounts(rows=3, samples=6, aliases=1, bad_prompts=0)
    assert result.sets["b"] == SetCounts(rows=2, samples=6, aliases=1, bad_prompts=0)
    assert result.new_samples == 8
    found = stored(layout)
    assert len(set(ids(found))) == len(ids(found)) == 8
    assert partitions(found)[0] == ("a", ["id-q0", "id-q0", "id-q1", "id-q1"])
    assert partitions(found)[1] == ("b", ["id-q1", "id-q2", "id-q2", "id-q2"])
    assert found.samples_of(0)[0].reference is None, "the first row is the prompt"


def test_many_partitions_are_spread_over_files(layout: Layout) -> None:
    planned(layout, asked(prompts(300)), asked(prompts(5, 1000), "b"), size=1)
    found = stored(layout, 1)
    assert found.partitions == 305
    assert [path.name for path in sorted(layout.plan.glob("*.parquet"))] == [
        "000001-00000.parquet",
        "000001-00001.parquet",
    ]
    for partition in (0, 255, 256, 299, 300, 304):
        (sample,) = found.samples_of(partition)
        assert sample.partition == partition
        expected = f"id-q{partition if partition < 300 else partition + 700}"
        assert sample.prompt_id == expected
    with pytest.raises(CorpusError, match="there is no partition 305"):
        found.read(305)
    planned(layout, asked(prompts(301)), asked(prompts(5, 1000), "b"), size=1)
    assert stored(layout, 1).samples_of(305)[0].prompt_id == "id-q300"


def test_the_files_have_the_documented_columns(layout: Layout) -> None:
    planned(layout, asked(prompts(3)))
    planned(layout, asked(prompts(2)))
    assert pq.ParquetFile(layout.segment(1, "-00000.parquet")).schema_arrow.equals(schema.PLAN)
    changes = pq.ParquetFile(layout.segment(2, "-changes.parquet"))
    assert changes.schema_arrow.equals(schema.PLAN_CHANGES)


# Growth


GROWTH: dict[str, tuple[Callable[[], list[SetRequest]], Callable[[], list[SetRequest]], int]] = {
    "rows appended": (lambda: [asked(prompts(5))], lambda: [asked(prompts(8))], 3),
    "rows put in front": (
        lambda: [asked(prompts(5))],
        lambda: [asked([*prompts(3, 90), *prompts(5)])],
        3,
    ),
    "n raised": (lambda: [asked(prompts(5))], lambda: [asked(prompts(5), n=3)], 10),
    "a new set": (
        lambda: [asked(prompts(5))],
        lambda: [asked(prompts(5)), asked(prompts(2, 50), "b")],
        2,
    ),
    "a new set in front": (
        lambda: [asked(prompts(5))],
        lambda: [asked(prompts(2, 50), "b"), asked(prompts(5))],
        2,
    ),
    "a second teacher": (
        lambda: [asked(prompts(5))],
        lambda: [asked(prompts(5)), asked(prompts(5), "b", teacher="u")],
        5,
    ),
    "a set of known content": (
        lambda: [asked(prompts(5))],
        lambda: [asked(prompts(5)), asked(prompts(5), "b")],
        0,
    ),
}


@pytest.mark.parametrize("kind", GROWTH)
def test_growth_plans_only_what_is_new_and_edits_nothing(layout: Layout, kind: str) -> None:
    before, after, new = GROWTH[kind]
    planned(layout, *before())
    old_files, old_ids = files(layout), ids(stored(layout))
    result = planned(layout, *after())
    assert (result.new_samples, result.changes, result.reused) == (new, {}, False)
    assert files(layout).items() >= old_files.items()
    found = stored(layout)
    assert ids(found)[: len(old_ids)] == old_ids
    assert len(set(ids(found))) == len(ids(found)) == found.samples == len(old_ids) + new
    assert found.plannings[1].first_partition == found.plannings[0].partitions
    assert planned(layout, *after()).reused


def test_unchanged_input_is_reused_without_being_read(layout: Layout) -> None:
    request = asked(prompts(5))
    planned(layout, request)
    before = files(layout)
    again = planned(layout, msgspec.structs.replace(request, read=unread))
    assert again == Planned(0, {}, {"set": SetCounts(5, 5, 0, 0)}, reused=True)
    assert files(layout) == before


def test_a_touched_file_with_the_same_rows_adds_an_empty_planning(layout: Layout) -> None:
    planned(layout, asked(prompts(5)))
    result = planned(layout, asked(prompts(5), inputs=[("another time", 1, 1)]))
    assert (result.new_samples, result.changes, result.reused) == (0, {}, False)
    assert stored(layout).samples == 5
    assert not layout.segment(2, "-changes.parquet").exists()
    assert planned(layout, asked(prompts(5), inputs=[("another time", 1, 1)], read=unread)).reused


# Changes


def test_rows_removed_are_retired_and_restored_when_they_come_back(layout: Layout) -> None:
    planned(layout, asked(prompts(6), n=2))
    by_prompt = {s.prompt_id: s.sample_id for s in stored(layout).samples_of(0) if s.draw == 0}
    result = planned(layout, asked(prompts(5, 1), n=2))
    assert result.changes == {"retire": 2}
    assert by_prompt["id-q0"] in stored(layout).retired()
    assert len(stored(layout).retired()) == 2
    assert planned(layout, asked(prompts(5, 1), n=2, inputs=[("again", 1, 1)])).changes == {}
    result = planned(layout, asked(prompts(6), n=2))
    assert (result.new_samples, result.changes) == (0, {"restore": 2})
    assert stored(layout).retired() == frozenset()
    assert stored(layout).samples == 12


def test_a_lower_n_retires_draws_and_a_removed_set_all_of_its_samples(layout: Layout) -> None:
    planned(layout, asked(prompts(3), n=3), asked(prompts(2, 50), "b"))
    assert planned(layout, asked(prompts(3), n=1)).changes == {"retire": 8}
    again = planned(layout, asked(prompts(3), n=3), asked(prompts(2, 50), "b"))
    assert again.changes == {"restore": 8}


def test_content_that_another_set_still_asks_for_is_not_retired(layout: Layout) -> None:
    planned(layout, asked(prompts(3), "a"), asked(prompts(3), "b"))
    assert planned(layout, asked(prompts(3), "b")).changes == {}
    assert stored(layout).retired() == frozenset()


def test_a_changed_reference_or_metadata_is_an_update(layout: Layout) -> None:
    rows = [prompt("q0", reference="1"), prompt("q1", metadata={"a": 1}), prompt("q2")]
    planned(layout, asked(rows))
    first = {s.prompt_id: s.sample_id for s in stored(layout).samples_of(0)}
    rows = [prompt("q0", reference="2"), prompt("q1", metadata={"a": 2, "b": "é"}), prompt("q2")]
    result = planned(layout, asked(rows))
    assert (result.new_samples, result.changes) == (0, {"update": 2})
    (table,) = stored(layout).changes()
    assert sorted(table.to_pylist(), key=lambda row: str(row["reference"])) == [
        {
            "sample_id": first["id-q0"],
            "action": "update",
            "reference": "2",
            "metadata": None,
        },
        {
            "sample_id": first["id-q1"],
            "action": "update",
            "reference": None,
            "metadata": '{"a":2,"b":"é"}',
        },
    ]
    assert planned(layout, asked(rows, inputs=[("again", 1, 1)])).changes == {}, (
        "the update is remembered"
    )
    assert stored(layout).updates() == {
        first["id-q0"]: ("2", None),
        first["id-q1"]: (None, '{"a":2,"b":"é"}'),
    }
    back = [prompt("q0", reference="1"), rows[1], rows[2]]
    assert planned(layout, asked(back)).changes == {"update": 1}
    assert stored(layout).updates()[first["id-q0"]] == ("1", None), "the latest counts"
    assert planned(layout, asked(back, inputs=[("once more", 1, 1)])).changes == {}


def test_the_order_of_metadata_s_keys_is_no_change(layout: Layout) -> None:
    planned(layout, asked([prompt("q", metadata={"a": 1, "b": {"c": 2, "d": 3}})]))
    other = [prompt("q", metadata={"b": {"d": 3, "c": 2}, "a": 1})]
    assert planned(layout, asked(other, inputs=[("x", 1, 1)])).changes == {}


def test_a_prompt_comes_back_with_another_reference(layout: Layout) -> None:
    planned(layout, asked([prompt("a"), prompt("b", reference="1")]))
    planned(layout, asked([prompt("a")]))
    result = planned(layout, asked([prompt("a"), prompt("b", reference="2")]))
    assert result.changes == {"restore": 1, "update": 1}


# A prompt's own max_tokens

FIVE, TEN = Sampling(temperature=0.7, max_tokens=5), Sampling(temperature=0.7, max_tokens=10)


def longest(layout: Layout) -> list[tuple[str, int | None]]:
    """Return the prompt and the max_tokens of each sample that is not retired, sorted."""
    found = stored(layout)
    samples = [sample for p in range(found.partitions) for sample in found.samples_of(p)]
    kept = [s for s in samples if s.sample_id not in found.retired()]
    return sorted((s.prompt_id, s.sampling.max_tokens) for s in kept)


def test_a_prompt_s_own_max_tokens_is_as_if_its_set_had_it(tmp_path: Path) -> None:
    alone, own, unset = (Layout(tmp_path / name) for name in ("alone", "own", "unset"))
    planned(alone, asked([prompt("x")], sampling=TEN, n=2))
    planned(own, asked([prompt("x", max_tokens=10)], sampling=FIVE, n=2))
    planned(unset, asked([prompt("x", max_tokens=10)], n=2))
    assert ids(stored(own)) == ids(stored(unset)) == ids(stored(alone))
    for layout in (alone, own, unset):
        assert [s.sampling for s in stored(layout).samples_of(0)] == [TEN, TEN]


def test_one_conversation_with_two_max_tokens_is_two_prompts(layout: Layout) -> None:
    rows = [
        prompt("x"),
        prompt("x", max_tokens=10),
        prompt("x", max_tokens=5),  # what the set says
        prompt("x", max_tokens=10),
    ]
    result = planned(layout, asked(rows, sampling=FIVE))
    assert result.sets["set"] == SetCounts(rows=4, samples=4, aliases=2, bad_prompts=0)
    assert longest(layout) == [("id-x", 5), ("id-x", 10)]


def test_a_changed_max_tokens_of_a_row_is_a_changed_prompt(layout: Layout) -> None:
    def rows(own: int | None) -> list[Prompt]:
        return [prompt("x", max_tokens=own), prompt("y", max_tokens=7)]

    planned(layout, asked(rows(None), sampling=FIVE))
    same = planned(layout, asked(rows(5), sampling=FIVE))
    assert (same.new_samples, same.changes, same.reused) == (0, {}, False)
    longer = planned(layout, asked(rows(10), sampling=FIVE))
    assert (longer.new_samples, longer.changes) == (1, {"retire": 1})
    assert longest(layout) == [("id-x", 10), ("id-y", 7)]
    back = planned(layout, asked(rows(None), sampling=FIVE))
    assert (back.new_samples, back.changes) == (0, {"retire": 1, "restore": 1})


def test_a_changed_max_tokens_of_a_row_counts_under_older_variants_too(layout: Layout) -> None:
    def rows(own: int | None) -> list[Prompt]:
        return [prompt("x", max_tokens=own), prompt("y", max_tokens=7), prompt("z")]

    planned(layout, asked(rows(20), sampling=FIVE))
    colder = Sampling(temperature=0.2, max_tokens=5)
    assert planned(layout, asked(rows(20), sampling=colder), add=True).changes == {}
    result = planned(layout, asked(rows(30), sampling=colder))
    assert (result.new_samples, result.changes) == (1, {"retire": 2})
    assert longest(layout) == [("id-x", 30), *2 * [("id-y", 7)], *2 * [("id-z", 5)]]
    back = planned(layout, asked(rows(20), sampling=colder))
    assert back.changes == {"retire": 1, "restore": 2}


def test_a_row_without_max_tokens_follows_each_variant_s_own(layout: Layout) -> None:
    rows = [prompt("x"), prompt("y", max_tokens=7)]
    planned(layout, asked(rows, sampling=FIVE))
    result = planned(layout, asked(rows, sampling=TEN), add=True)
    assert (result.new_samples, result.changes) == (1, {}), "y is the same under both"
    assert longest(layout) == [("id-x", 5), ("id-x", 10), ("id-y", 7)]
    assert planned(layout, asked(rows, sampling=TEN, inputs=[("x", 1, 1)])).changes == {}
    own = [prompt("x", max_tokens=10), rows[1]]
    result = planned(layout, asked(own, sampling=TEN))
    assert (result.new_samples, result.changes) == (0, {"retire": 1}), "under the older it was 5"
    assert planned(layout, asked(own[:1], sampling=TEN)).changes == {"retire": 1}
    assert longest(layout) == [("id-x", 10)]


# Conflicts


def test_a_changed_identity_key_is_refused_with_its_old_and_new_value(layout: Layout) -> None:
    planned(layout, asked(prompts(3)))
    before = files(layout)
    changed = asked(prompts(3), sampling=Sampling(temperature=0.2, max_tokens=5), teacher="u")
    with pytest.raises(PlanConflict) as refused:
        planned(layout, changed)
    assert str(refused.value) == (
        "prompt set set: sampling.max_tokens changed from unset to 5, sampling.temperature "
        'changed from 0.7 to 0.2, teacher.model changed from "model-of-t" to "model-of-u". The '
        "samples that are planned under the old value would be orphaned: put it back, use another "
        "`out`, or give --add to keep both side by side."
    )
    assert files(layout) == before


def test_a_key_that_is_unset_again_is_a_change_and_long_values_are_cut(layout: Layout) -> None:
    planned(layout, asked(prompts(1), sampling=Sampling(stop=["x" * 500])))
    with pytest.raises(PlanConflict) as refused:
        planned(layout, asked(prompts(1), sampling=Sampling()))
    assert "sampling.stop changed from" in str(refused.value)
    assert "to unset" in str(refused.value)
    assert len(str(refused.value)) < 400


def test_add_keeps_both_side_by_side(layout: Layout) -> None:
    old, new = asked(prompts(3)), asked(prompts(3), sampling=Sampling(temperature=0.2))
    planned(layout, old)
    result = planned(layout, new, add=True)
    assert (result.new_samples, result.changes) == (3, {})
    assert stored(layout).retired() == frozenset()
    grown = asked(prompts(4), sampling=COLD)
    assert planned(layout, grown).new_samples == 1, "both are known now: no flag is needed"
    assert planned(layout, asked(prompts(4), inputs=[("x", 1, 1)])).new_samples == 1
    assert live(layout) == sorted(2 * [f"id-q{index}" for index in range(4)])


@pytest.mark.parametrize("later", [2, 3], ids=["the newer is asked", "the older is asked"])
def test_a_row_removed_leaves_and_comes_back_under_both_variants(
    layout: Layout, later: float
) -> None:
    planned(layout, asked(prompts(3)))
    planned(layout, asked(prompts(3), sampling=COLD), add=True)
    sampling = COLD if later == 2 else None
    assert planned(layout, asked(prompts(2), sampling=sampling)).changes == {"retire": 2}
    assert live(layout) == ["id-q0", "id-q0", "id-q1", "id-q1"]
    again = asked(prompts(2), sampling=sampling, inputs=[("x", 1, 1)])
    assert planned(layout, again).changes == {}
    assert planned(layout, asked(prompts(3), sampling=sampling)).changes == {"restore": 2}
    assert stored(layout).retired() == frozenset()


def test_a_set_that_leaves_comes_back_under_both_variants_without_what_left_meanwhile(
    layout: Layout,
) -> None:
    other = asked(prompts(1, 50), "b")
    planned(layout, asked(prompts(3), n=2), other)
    planned(layout, asked(prompts(3), sampling=COLD), other, add=True)
    assert planned(layout, other).changes == {"retire": 9}
    back = planned(layout, asked(prompts(2), sampling=COLD), other)
    assert (back.new_samples, back.changes) == (0, {"restore": 6})
    assert live(layout) == ["id-q0"] * 3 + ["id-q1"] * 3 + ["id-q50"]
    assert planned(layout, asked(prompts(3), sampling=COLD), other).changes == {"restore": 3}


def test_an_edited_row_is_retired_under_both_variants_and_its_old_text_stays_retired(
    layout: Layout,
) -> None:
    planned(layout, asked([prompt("old", prompt_id="p"), prompt("x")]))
    planned(layout, asked([prompt("new", prompt_id="p"), prompt("x")]))
    edited = asked([prompt("new", prompt_id="p"), prompt("x")], sampling=COLD)
    assert planned(layout, edited, add=True).changes == {}
    newest = asked([prompt("newest", prompt_id="p"), prompt("x")], sampling=COLD)
    result = planned(layout, newest)
    assert (result.new_samples, result.changes) == (1, {"retire": 2})
    assert live(layout) == ["id-x", "id-x", "p"]


def test_with_another_template_rows_are_known_by_their_own_ids_only(layout: Layout) -> None:
    def rendered(template: str, rows: list[str], own: bool) -> SetRequest:
        made = [
            prompt(f"{template} {row} {own}", prompt_id=row if own else f"{template}-{row}")
            for row in rows
        ]
        name = "own" if own else "made"
        return asked(made, name, keys={"prompts.template": template})

    def both(template: str, rows: list[str]) -> list[SetRequest]:
        return [rendered(template, rows, own=True), rendered(template, rows, own=False)]

    planned(layout, *both("A", ["x", "y"]))
    assert planned(layout, *both("B", ["x", "y"]), add=True).changes == {}
    assert planned(layout, *both("B", ["x"])).changes == {"retire": 3}
    assert live(layout) == ["A-x", "A-y", "B-x", "x", "x"]
    assert planned(layout, asked(prompts(1), "c")).changes == {"retire": 5}
    back = planned(layout, *both("B", ["x"]))
    assert back.changes == {"restore": 5, "retire": 1}
    assert live(layout) == ["A-x", "A-y", "B-x", "x", "x"]
    assert planned(layout, *both("B", ["x", "y"])).changes == {"restore": 3}


def test_a_lower_n_of_one_variant_leaves_the_draws_of_another(layout: Layout) -> None:
    planned(layout, asked(prompts(2), n=3))
    planned(layout, asked(prompts(2), n=2))
    assert len(live(layout)) == 4
    assert planned(layout, asked(prompts(2), sampling=COLD), add=True).changes == {}
    assert len(live(layout)) == 6, "draws that were given up before stay so"


def test_a_variant_that_another_set_asks_does_not_retire_what_add_keeps(layout: Layout) -> None:
    planned(layout, asked(prompts(2), "a"), asked(prompts(2, 50), "b"))
    mixed = (asked(prompts(2), "a", sampling=COLD), asked(prompts(2, 50), "b"))
    assert planned(layout, *mixed, add=True).changes == {}


def test_a_bad_row_that_is_mended_leaves_under_an_older_variant_too(layout: Layout) -> None:
    planned(layout, asked([prompt("a"), bad()]), skip_bad_prompts=True)
    cold = asked([prompt("a"), bad()], sampling=COLD)
    assert planned(layout, cold, add=True, skip_bad_prompts=True).changes == {}
    mended = asked([prompt("a"), prompt("b")], sampling=COLD)
    assert planned(layout, mended, skip_bad_prompts=True).changes == {"retire": 1}


def test_a_renamed_set_with_a_changed_key_is_refused(layout: Layout) -> None:
    file = [("p.jsonl", 10, 20)]
    planned(layout, asked(prompts(3), "a", inputs=file))
    before = files(layout)
    for inputs in ([("p.jsonl", 11, 21)], [("moved.jsonl", 10, 20)]):
        with pytest.raises(PlanConflict) as refused:
            planned(layout, asked(prompts(3), "b", sampling=COLD, inputs=inputs))
        assert str(refused.value) == (
            "prompt set b reads the files of a, which is no longer there, and "
            "sampling.temperature changed from 0.7 to 0.2. The samples of a would be retired and "
            "its prompts asked again: put the name or the value back, use another `out`, or give "
            "--add to go on."
        )
    assert files(layout) == before
    assert planned(layout, asked(prompts(3), "b", inputs=file)).changes == {}, "renamed alone"
    with pytest.raises(PlanConflict, match=r"^prompt set b: sampling\.temperature changed"):
        planned(layout, asked(prompts(3), "b", sampling=COLD, inputs=file))
    go_on = planned(layout, asked(prompts(3), "c", sampling=COLD, inputs=file), add=True)
    assert (go_on.new_samples, go_on.changes) == (3, {"retire": 3})


def test_a_new_set_of_other_files_or_beside_the_old_one_is_growth(layout: Layout) -> None:
    file, other = [("p.jsonl", 10, 20)], [("q.jsonl", 11, 21)]
    first = asked(prompts(3), "a", inputs=file)
    planned(layout, first)
    assert planned(layout, first, asked(prompts(3), "b", sampling=COLD, inputs=file)).changes == {}
    moved = asked(prompts(3), "d", inputs=file)  # the old value stays, under another name
    cold = asked(prompts(3), "b", sampling=COLD, inputs=file)
    assert planned(layout, moved, cold).changes == {}
    planned(layout, asked(prompts(3, 9), "c", sampling=Sampling(temperature=0.1), inputs=other))


def test_a_set_whose_samples_all_stand_in_another_is_checked_too(layout: Layout) -> None:
    planned(layout, asked(prompts(3), "a"), asked(prompts(3), "b"))
    with pytest.raises(PlanConflict, match=r"^prompt set b: sampling\.temperature changed"):
        planned(layout, asked(prompts(3), "a"), asked(prompts(3), "b", sampling=COLD))


def test_a_marker_of_before_variants_were_recorded_is_read(layout: Layout) -> None:
    planned(layout, asked(prompts(3)))
    path = layout.segment(1, ".json")
    marker = json.loads(path.read_bytes())
    del marker["asked"], marker["sources"]
    path.write_text(json.dumps(marker))
    with pytest.raises(PlanConflict, match=r"changed from 0\.7 to 0\.2"):
        planned(layout, asked(prompts(3), sampling=COLD))
    assert planned(layout, asked(prompts(2))).changes == {"retire": 1}


def test_a_key_of_one_set_does_not_concern_another(layout: Layout) -> None:
    planned(layout, asked(prompts(3), "a"))
    result = planned(
        layout, asked(prompts(3), "a"), asked(prompts(3), "b", sampling=Sampling(temperature=0.0))
    )
    assert result.new_samples == 3


# Bad rows


def test_a_bad_row_stops_the_planning_and_names_its_place(layout: Layout) -> None:
    with pytest.raises(PromptError) as refused:
        planned(layout, asked([*prompts(2), bad(), *prompts(2, 5)]))
    assert str(refused.value) == (
        "p.jsonl:3: not valid JSON: it breaks off. Fix the row or run with --skip-bad-prompts."
    )
    assert list(all_files(layout)) == []
    assert list(layout.plan.iterdir()) == []


def test_a_bad_row_becomes_a_sample_with_a_problem(layout: Layout) -> None:
    result = planned(
        layout, asked([prompt("q0"), bad(), prompt("q1"), bad()], n=2), skip_bad_prompts=True
    )
    assert result.sets["set"] == SetCounts(rows=4, samples=6, aliases=0, bad_prompts=2)
    found = stored(layout)
    samples = [s for p in range(found.partitions) for s in found.samples_of(p)]
    assert [(s.draw, s.problem is not None) for s in samples] == [
        (0, False),
        (1, False),
        (None, True),
        (0, False),
        (1, False),
        (None, True),
    ]
    broken = samples[2]
    assert broken.sample_id == identity.bad_row_id("set", b"{", 1)
    assert (broken.messages, broken.row) == ([], "p.jsonl:3")
    assert broken.problem == "not valid JSON: it breaks off"
    assert samples[5].sample_id != broken.sample_id, "the same row at another place is another"


def test_a_bad_row_that_is_mended_is_retired(layout: Layout) -> None:
    planned(layout, asked([prompt("q0"), bad()]), skip_bad_prompts=True)
    broken = stored(layout).samples_of(0)[1].sample_id
    result = planned(layout, asked([prompt("q0"), prompt("q1")]), skip_bad_prompts=True)
    assert (result.new_samples, result.changes) == (1, {"retire": 1})
    assert stored(layout).retired() == {broken}


# Crashes


class Killed(BaseException):
    """Stands for a process that ends while it plans."""


def test_a_planning_that_dies_before_its_marker_leaves_no_trace(layout: Layout) -> None:
    planned(layout, asked(prompts(5)))
    before = files(layout)

    def dying() -> Iterator[Prompt]:
        yield from prompts(500)
        raise Killed

    with pytest.raises(Killed):
        planned(layout, asked([], inputs=[("x", 1, 1)], read=dying))
    assert files(layout) == before


def test_what_a_killed_planning_left_is_removed_and_written_again(layout: Layout) -> None:
    planned(layout, asked(prompts(5)), size=1)
    first = files(layout)
    grown = asked(prompts(270))
    planned(layout, grown, size=1)
    complete = files(layout)
    layout.segment(2, ".json").unlink()  # killed before the marker
    scratch = layout.plan / "planning.0123456789ab.tmp"
    (scratch / "asked").mkdir(parents=True)
    (scratch / "rows").write_bytes(b"half")
    layout.segment(2, "-changes.parquet.0123456789ab.tmp").write_bytes(b"half")
    layout.segment(2, "-changes.parquet").write_bytes(b"half")
    assert ids(stored(layout, 1)) == ids_of_files(first)
    smaller = asked(prompts(6))
    assert planned(layout, smaller, size=1).new_samples == 1
    assert set(files(layout)) == {*first, "plan/000002.json", "plan/000002-00000.parquet"}
    assert files(layout).items() >= first.items()
    layout.segment(2, ".json").unlink()
    planned(layout, grown, size=1)
    assert files(layout).keys() == complete.keys()
    assert len(ids(stored(layout, 1))) == 270


def ids_of_files(content: dict[str, bytes]) -> list[str]:
    found: list[str] = []
    for name, data in sorted(content.items()):
        if name.endswith(".parquet"):
            found += pq.read_table(pa.BufferReader(data))["sample_id"].to_pylist()
    return found


def test_two_plannings_of_one_number_cannot_both_stand(layout: Layout) -> None:
    def overtaken() -> Iterator[Prompt]:
        yield from prompts(2)
        layout.segment(1, ".json").write_bytes(b"{}")

    with pytest.raises(CorpusError, match=r"000001\.json: was planned by another process"):
        planned(layout, asked([], read=overtaken))
    assert layout.segment(1, ".json").read_bytes() == b"{}"


# Torn and foreign files


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"number": 1}', b"\xff\xfe", b"\0" * 99])
def test_a_torn_marker_is_one_sentence(layout: Layout, content: bytes) -> None:
    planned(layout, asked(prompts(2)))
    layout.segment(1, ".json").write_bytes(content)
    with pytest.raises(CorpusError, match=r"000001\.json: is not a readable plan marker"):
        stored(layout)


def test_a_marker_of_a_newer_format_says_so(layout: Layout) -> None:
    planned(layout, asked(prompts(2)))
    path = layout.segment(1, ".json")
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"format_version": 99}))
    with pytest.raises(CorpusError, match="was written in format 99; this corpusgen reads up to"):
        stored(layout)


def test_a_missing_marker_is_noticed(layout: Layout) -> None:
    for count in (2, 3, 4):
        planned(layout, asked(prompts(count)))
    layout.segment(2, ".json").unlink()
    with pytest.raises(CorpusError, match=r"the marker 000002\.json is missing; restore"):
        stored(layout)


@pytest.mark.parametrize("kind", ["missing", "empty", "cut", "foreign"])
@pytest.mark.parametrize("name", ["-00000.parquet", "-changes.parquet"])
def test_a_torn_file_is_one_sentence(layout: Layout, kind: str, name: str) -> None:
    planned(layout, asked(prompts(5)))
    planned(layout, asked(prompts(5, 1)))
    path = layout.segment(2, name)
    content = path.read_bytes()
    path.unlink()
    if kind == "foreign":
        pq.write_table(pa.table({"a": [1]}), path)
    elif kind != "missing":
        path.write_bytes(b"" if kind == "empty" else content[: len(content) // 2])
    found = stored(layout)
    with pytest.raises(CorpusError) as refused:
        found.samples_of(2) if "changes" not in name else found.retired()
    sentence = str(refused.value)
    assert sentence.startswith(f"{path}: ")
    assert sentence.endswith(("Restore it from a copy.", "restore it from a copy."))
    assert "\n" not in sentence


# Any history


contents = st.integers(0, 12)
requests = st.lists(st.lists(contents, max_size=10), min_size=1, max_size=3)


def as_requests(sets: list[list[int]], n: int) -> list[SetRequest]:
    rows = [[prompt(f"q{c}") for c in chosen] for chosen in sets]
    return [asked(chosen, f"set{i}", n=n) for i, chosen in enumerate(rows)]


def active(layout: Layout) -> set[str]:
    found = stored(layout, 3)
    return set(ids(found)) - found.retired()


@settings(max_examples=25, deadline=None)
@given(
    history=st.lists(st.tuples(requests, st.integers(1, 2)), min_size=1, max_size=3),
    last=requests,
    n=st.integers(1, 2),
)
def test_many_plannings_ask_for_the_same_as_one(
    tmp_path_factory: pytest.TempPathFactory,
    history: list[tuple[list[list[int]], int]],
    last: list[list[int]],
    n: int,
) -> None:
    base = tmp_path_factory.getbasetemp() / "plans"
    shutil.rmtree(base, ignore_errors=True)
    in_steps, at_once = Layout(base / "steps"), Layout(base / "once")
    for sets, draws in history:
        planned(in_steps, *as_requests(sets, draws), size=3)
    for layout in (in_steps, at_once):
        planned(layout, *as_requests(last, n), size=3)
    expected = {
        identity.sample_id(
            identity.sample_content(
                teacher={"model": "model-of-t"},
                messages=[{"role": "user", "content": f"q{c}"}],
                sampling=Sampling(temperature=0.7),
                tools=None,
                response_format=None,
            ),
            draw,
        )
        for chosen in last
        for c in chosen
        for draw in range(n)
    }
    assert active(in_steps) == active(at_once) == expected
    everything = ids(stored(in_steps, 3))
    assert len(everything) == len(set(everything)), "nothing is planned twice"
    found = stored(in_steps, 3)
    for partition in range(found.partitions):
        rows = found.read(partition)
        assert rows.num_rows == found.rows_of(partition) <= 3
        assert set(rows["prompt_set"].to_pylist()) == {found.run_of(partition).prompt_set}
        assert set(rows["partition"].to_pylist()) == {partition}
