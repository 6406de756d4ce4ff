from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
import yaml
from huggingface_hub import DatasetCard
from ruamel.yaml import YAML

from corpusgen.export.card import (
    CardFacts,
    ColumnFacts,
    FunnelFacts,
    PromptSetFacts,
    TeacherFacts,
    render_card,
)
from corpusgen.export.markdown import markdown_code, markdown_text, yaml_text

FACTS = CardFacts(
    title="Quickstart",
    corpus_id="0123abcd",
    corpusgen_version="0.1.0",
    created="2026-11-21",
    format="messages",
    splits={"train": 1900, "validation": 100},
    columns=(ColumnFacts("messages", "list<...>"), ColumnFacts("sample_id", "string")),
    teachers=(
        TeacherFacts("teacher", "SmolLM2-135M-Instruct", "abc", "apache-2.0", True, "model card"),
    ),
    prompt_sets=(
        PromptSetFacts("quickstart", "prompts/a.jsonl", 1200, 2400, "temperature 0.7", "cc0-1.0"),
    ),
    funnel=FunnelFacts(
        planned=2400,
        generated=2300,
        kept=2000,
        failed={"timeout": 60},
        dropped={"refusal": 200, "duplicate": 100},
        pending=40,
    ),
    license="Apache-2.0",
    languages=("en", "no"),
    description="Some *words*.",
    prompt_tokens=123456,
    completion_tokens=None,
    cost="$1.25",
    curation="finish_reason, empty; exact duplicates (pair)",
)

HOSTILE = [
    'a"b: c\n- d',
    "no",
    "1.0",
    "---\nevil: true\n---",
    "| a | b |\n<script>alert(1)</script>",
    "[x](javascript:alert(1)) `code` **bold**",
    "{{ 7 * 7 }} {% raw %}",
    "nul\x00 bell\x07 del\x7f nel\x85 ls\u2028 bom\ufeff rtl\u202e emoji \U0001f600 back\\slash",
    "'", "# title", "&amp; !!python/object:os.system", "  ", "\ud800",
]  # fmt: skip


def front_matter(card: str) -> dict[str, Any]:
    """Read the front matter as the hub does (PyYAML), having checked that YAML 1.2 agrees."""
    match = re.match(r"\A---\n(.*?)\n---\n", card, re.DOTALL)
    assert match is not None
    found = yaml.safe_load(match.group(1))
    assert YAML(typ="safe", pure=True).load(match.group(1)) == found
    return dict(found)


def changed(**changes: Any) -> str:
    return render_card(msgspec.structs.replace(FACTS, **changes))


def cells(card: str, start: str) -> list[str]:
    line = next(line for line in card.splitlines() if line.startswith(start))
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def test_the_front_matter_is_what_the_hub_reads() -> None:
    card = render_card(FACTS)
    assert front_matter(card) == {
        "license": "apache-2.0",
        "language": ["en", "no"],
        "pretty_name": "Quickstart",
        "size_categories": ["1K<n<10K"],
        "task_categories": ["text-generation"],
        "tags": ["synthetic", "distillation", "corpusgen"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": "train", "path": "train-*.parquet"},
                    {"split": "validation", "path": "validation-*.parquet"},
                ],
            }
        ],
    }
    assert DatasetCard(card).data.license == "apache-2.0"


def test_the_card_says_how_it_was_made() -> None:
    card = render_card(FACTS)
    assert "# Quickstart\n\nSome *words*.\n" in card
    assert "2,000 rows (1,900 in `train`, 100 in `validation`)" in card
    assert cells(card, "| teacher | SmolLM2") == [
        *("teacher", "SmolLM2-135M-Instruct", "abc", "apache-2.0", "yes", "model card"),
    ]
    assert cells(card, "| quickstart") == [
        *("quickstart", "prompts/a.jsonl", "1,200", "2,400", "temperature 0.7", "cc0-1.0"),
    ]
    funnel = re.findall(r"^\| (planned|failed.*?|not .*?|generated|dropped.*?|\*\*kept.*?|in .*?) "
                        r"\| (.*?) \|$", card, re.MULTILINE)  # fmt: skip
    assert funnel == [
        ("planned", "2,400"),
        ("failed: timeout", "−60"),
        ("not answered yet", "−40"),
        ("generated", "2,300"),
        ("dropped by refusal", "−200"),
        ("dropped by duplicate", "−100"),
        ("**kept**", "**2,000**"),
        ("in `train`", "1,900"),
        ("in `validation`", "100"),
    ]
    assert "| prompt tokens | 123,456 |\n| completion tokens | not stated |" in card
    assert "| `sample_id` | `string` | 128-bit hash" in card
    assert "Curation: finish\\_reason, empty; exact duplicates (pair)." in card
    assert "assistant_only_loss=True" in card
    assert "Warning" not in card
    assert "has no rows" not in card
    assert "jsonl/" not in card
    assert not re.search(r"\n\n\n", card)


def test_unstated_terms_are_said_and_warned_of() -> None:
    card = changed(
        teachers=(TeacherFacts("t", "m"), TeacherFacts("u", "n", training_allowed=False))
    )
    assert cells(card, "| t |")[2:] == ["not stated"] * 4
    assert "it is not stated that the terms allow training other models on what m writes" in card
    assert "it is stated that the terms do not allow training other models on what n writes" in card


@pytest.mark.parametrize(
    ("stated", "expected", "name"),
    [
        (None, "unknown", None),
        ("  ", "unknown", None),
        ("MIT", "mit", None),
        ("Provider Terms (2026)!", "other", "provider-terms-2026"),
        ("???", "other", "custom"),
    ],
)
def test_licences(stated: str | None, expected: str, name: str | None) -> None:
    found = front_matter(changed(license=stated))
    assert (found["license"], found.get("license_name")) == (expected, name)


@pytest.mark.parametrize(
    ("rows", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (5_000_000, "1M<n<10M"), (10**12, "n>1T")],
)
def test_size_categories(rows: int, category: str) -> None:
    assert front_matter(changed(splits={"train": rows}))["size_categories"] == [category]


def test_a_dataset_without_rows_says_so() -> None:
    card = changed(splits={"train": 0}, languages=(), description=None, curation=None)
    assert "**This dataset has no rows.**" in card
    assert "language" not in front_matter(card)


def test_formats_and_jsonl_are_explained() -> None:
    card = changed(format="prompt_completion", jsonl=True, splits={"validation": 3})
    assert "TRL trains on the completions alone." in card
    assert 'train_dataset=dataset["validation"]' in card
    assert "args=SFTConfig()," in card
    assert "JSON Lines under `jsonl/`" in card


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_text(text: str) -> None:
    card = changed(
        title=text,
        license=text,
        languages=(text,),
        teachers=(TeacherFacts(text, text, text, text, None, text),),
        prompt_sets=(PromptSetFacts(text, text, 1, 1, text, text),),
        funnel=FunnelFacts(1, 1, 1, {text: 1}, {text: 1}),
        curation=text,
        description=None,
    )
    clean = text.encode("utf-8", "replace").decode()
    found = front_matter(card)
    assert found["pretty_name"] == clean
    assert found["language"] == [clean]
    assert set(found) == set(front_matter(render_card(FACTS))) | ({"license_name"} & set(found))
    body = card.split("\n---\n", 1)[1]
    assert not re.search(r"(?<!\\)<", re.sub(r"(?<!\\)`[^`\n]*`", "", body))
    assert "](" not in re.sub(r"\\.", "", body)
    assert not re.search(r"[\x00-\x08\x7f-\x9f\u202e\u2028]", body)
    for line in body.splitlines():
        if line.startswith("| ") and "|---" not in line:
            assert len(re.split(r"(?<!\\)\|", line)) in (4, 5, 8), line


@pytest.mark.parametrize("text", HOSTILE)
def test_yaml_scalars_read_back(text: str) -> None:
    clean = text.encode("utf-8", "replace").decode()
    assert yaml.safe_load(f"a: {yaml_text(text)}\nb: 1") == {"a": clean, "b": 1}


def test_markdown_is_escaped() -> None:
    assert markdown_text("a|b\nc `d` <e>") == r"a\|b c \`d\` \<e\>"
    assert markdown_code("a|b\n`c`") == r"`a\|b 'c'`"
