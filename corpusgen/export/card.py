"""Render a dataset's card: the README that the hub shows and that `datasets` reads.

The front matter's `configs` names the Parquet files, which is what makes `load_dataset` open the
directory offline. The card says what was stated and nothing more: terms that nobody stated are
"not stated", with a warning where it is not stated that training is allowed.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import Any

import msgspec
from jinja2 import Environment, StrictUndefined

from corpusgen.export.licenses import HUB_LICENSES
from corpusgen.export.markdown import markdown_code, markdown_text, yaml_text

_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
    (100_000_000_000, "10B<n<100B"),
    (1_000_000_000_000, "100B<n<1T"),
)

_MEANINGS = {
    "messages": "the conversation; its last message is the teacher's answer",
    "prompt": "the conversation up to the answer",
    "completion": "the teacher's answer, as a conversation of one message",
    "tools": "the tools that the teacher was offered, as JSON text",
    "sample_id": "128-bit hash of model, prompt, sampling and draw; joins with the corpus",
    "prompt_set": "which prompt set the prompt is from",
    "prompt_id": "the prompt within its set",
    "draw": "index of the sampled answer to the prompt, from 0",
    "teacher": "which teacher answered",
    "reference": "the reference answer that the prompt set gives",
    "metadata": "what else the prompt set says of the prompt, as JSON text",
}

_TRL_ARGUMENTS = {"messages": "assistant_only_loss=True"}


class TeacherFacts(msgspec.Struct, frozen=True):
    """Who answered, and what its provider is stated to allow."""

    name: str
    model: str
    revision: str | None = None
    license: str | None = None
    training_allowed: bool | None = None
    source: str | None = None


class PromptSetFacts(msgspec.Struct, frozen=True):
    """What was asked."""

    name: str
    source: str | None = None
    """A path or a dataset's name."""
    prompts: int | None = None
    samples: int | None = None
    sampling: str | None = None
    """In words, such as `temperature 0.7, top_p 0.95`."""
    license: str | None = None


class FunnelFacts(msgspec.Struct, frozen=True):
    """What became of the planned samples."""

    planned: int
    generated: int
    kept: int
    failed: dict[str, int] = {}
    """By reason."""
    dropped: dict[str, int] = {}
    """By filter."""
    pending: int = 0


class ColumnFacts(msgspec.Struct, frozen=True):
    """One column of the dataset."""

    name: str
    type: str


class CardFacts(msgspec.Struct, frozen=True):
    """Everything that a card says."""

    title: str
    corpus_id: str
    corpusgen_version: str
    created: str
    """A date."""
    format: str
    splits: dict[str, int]
    """Rows by split."""
    columns: tuple[ColumnFacts, ...]
    teachers: tuple[TeacherFacts, ...]
    prompt_sets: tuple[PromptSetFacts, ...]
    funnel: FunnelFacts
    license: str | None = None
    languages: tuple[str, ...] = ()
    description: str | None = None
    """The user's own Markdown; put in as it is."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: str | None = None
    """In words, such as `$1.25`."""
    curation: str | None = None
    """The filters and the de-duplication, in words."""
    jsonl: bool = False


def render_card(facts: CardFacts) -> str:
    """Return the card: YAML front matter that the hub accepts, then Markdown."""
    rows = sum(facts.splits.values())
    hub_license, license_name = _license(facts.license)
    return (
        _environment()
        .from_string(_template())
        .render(
            facts=facts,
            rows=rows,
            hub_license=hub_license,
            license_name=license_name,
            size_category=_size_category(rows),
            first_split=next(iter(facts.splits), "train"),
            trl_arguments=_TRL_ARGUMENTS.get(facts.format, ""),
        )
    )


def _environment() -> Environment:
    # Markdown and YAML are not HTML: each value passes the filter of the place where it stands.
    made = Environment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)  # noqa: S701
    made.filters |= {
        "yaml": yaml_text,
        "md": markdown_text,
        "code": markdown_code,
        "stated": _stated,
        "allowed": _allowed,
        "count_text": _count_text,
        "meaning": lambda name: _MEANINGS.get(name, ""),
    }
    return made


def _template() -> str:
    return resources.files("corpusgen.export").joinpath("card.md.j2").read_text(encoding="utf-8")


def _license(stated: str | None) -> tuple[str, str | None]:
    """Return the hub's identifier and, where the hub does not know it, a name for it."""
    if stated is None or not stated.strip():
        return "unknown", None
    identifier = stated.strip().lower()
    if identifier in HUB_LICENSES:
        return identifier, None
    return "other", re.sub(r"[^a-z0-9.+-]+", "-", identifier).strip("-") or "custom"


def _size_category(rows: int) -> str:
    return next((name for limit, name in _SIZES if rows < limit), "n>1T")


def _stated(value: Any) -> str:
    return "not stated" if value is None or value == "" else markdown_text(value)


def _allowed(value: bool | None) -> str:
    return "not stated" if value is None else "yes" if value else "no"


def _count_text(value: int | None) -> str:
    return "not stated" if value is None else f"{value:,}"
