from __future__ import annotations

import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from corpus_factory import Row, generation, message, write_generations, write_verdicts
from hypothesis import given
from hypothesis import strategies as st

from corpusgen.errors import CorpusError
from corpusgen.report.examples import Token, cut
from corpusgen.report.facts import (
    CostFacts,
    DatasetFacts,
    DropFacts,
    GenerationFacts,
    PromptSetFacts,
    ReportFacts,
    SetFacts,
    TeacherFacts,
    gather,
)
from corpusgen.report.histogram import MOST_BARS, Bar, Counts, Histogram
from corpusgen.report.html import render_report, visible
from corpusgen.report.scan import Input

VOID = {"meta", "rect", "br"}
HOSTILE = (
    "<script>alert(1)</script>\x00\x1b[31m\u202egnp.exe\u2066 </pre></details></html>"
    '<img src=x onerror=alert(1)> {{ 7 * 7 }} " onmouseover="x" &lt;b&gt; '
    "\u0645\u0631\u062d\u0628\u0627"
)


class Page(HTMLParser):
    """Reads a page strictly: every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.blocks: list[tuple[str, str]] = []
        self._texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self._texts.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        text = self._texts.pop()
        self.blocks.append((tag, text))
        if self._texts:
            self._texts[-1] += text

    def handle_data(self, data: str) -> None:
        if self._texts:
            self._texts[-1] += data

    def texts(self, tag: str) -> list[str]:
        return [text for found, text in self.blocks if found == tag]

    def cells(self) -> list[list[str]]:
        rows: list[list[str]] = []
        row: list[str] = []
        for tag, text in self.blocks:
            if tag in ("td", "th"):
                row.append(text.strip())
            elif tag == "tr":
                rows.append(row)
                row = []
        return rows


def logprobs(values: list[float], k: int = 2) -> Row:
    return {
        "completion_token_bytes": [b"tok" for _ in values],
        "sampled_logprob": values,
        "topk_logprobs": [[math.log(0.6), math.log(0.3)][:k] for _ in values],
        "completion_tokens": len(values),
    }


def inputs_of(directory: Path, *parts: list[Row], dropped: Any = None, **more: Any) -> list[Input]:
    found: list[Input] = []
    for number, rows in enumerate(parts):
        name = f"part-{number:05d}-000.parquet"
        path = write_generations(directory / "generations" / name, rows, **more)
        verdicts = None
        if dropped is not None:
            verdicts = write_verdicts(directory / "verdicts" / name, path, dropped)
        found.append((path, verdicts))
    return found


def report(generations: GenerationFacts, **changes: Any) -> ReportFacts:
    facts = ReportFacts(
        title="quickstart",
        corpus_id="0123",
        corpusgen_version="0.1.0",
        created="2026-11-21",
        planned=10,
        failures={"timeout": 2, "rejected": 1},
        pending=1,
        teachers=(TeacherFacts("teacher", "m", None, "mit", None),),
        prompt_sets=(PromptSetFacts("quickstart", "a.jsonl", 5, 10),),
        generations=generations,
        costs=(CostFacts("local", "answered", 6, 42, 12, "$0.01"), CostFacts("local", "lost", 1)),
        datasets=(DatasetFacts("messages", {"train": 4}),),
        cost="$0.01",
        wall_s=3725.0,
        notes=("One thing to know.",),
    )
    return msgspec.structs.replace(facts, **changes)


# Counting


def test_what_is_counted(tmp_path: Path) -> None:
    rows = [
        generation("a", prompt="a", **logprobs([-0.5, -1.5])),
        generation("b", prompt="b", finish_reason="length", **logprobs([-2.0])),
        generation("c", prompt="c", prompt_set="other", completion_tokens=None),
        generation("d", prompt="d", completion_tokens=9, prompt_tokens=None),
        generation("e", prompt="e", completion_tokens=0, sampled_logprob=[]),
    ]
    ids = [row["sample_id"] for row in rows]
    dropped = {
        ids[1]: ("finish_reason", "finish_reason is length"),
        ids[2]: ("duplicate", f"same as {ids[0]}"),
        ids[3]: ("duplicate", f"same as {ids[1]}"),
    }
    found = gather(inputs_of(tmp_path, rows[:2], rows[2:], [], dropped=dropped))
    assert (found.generations, found.kept, found.uncounted) == (5, 2, 1)
    assert (found.prompt_tokens, found.completion_tokens) == (28, 12)
    assert found.finish_reasons == {"stop": 4, "length": 1}
    assert found.dropped == (
        DropFacts("duplicate", "same as another generation", 2),
        DropFacts("finish_reason", "finish_reason is length", 1),
    )
    assert found.sets == (
        SetFacts("other", "teacher", 1, 0, 0),
        SetFacts("quickstart", "teacher", 4, 2, 12),
    )
    assert found.lengths.values == 4
    assert [bar.count for bar in found.lengths.bars if bar.count] == [1, 1, 1, 1]
    assert found.logprobs.values == 2
    assert found.logprobs.mean == pytest.approx(-1.5, abs=0.03)
    assert found.mass is not None
    assert found.mass.mean == pytest.approx(0.9, abs=1e-6)
    assert (found.mass.k, found.mass.positions) == (2, 3)


def test_without_verdicts_and_without_logprobs(tmp_path: Path) -> None:
    found = gather(inputs_of(tmp_path, [generation()]))
    assert (found.kept, found.dropped, found.mass) == (None, (), None)
    assert found.logprobs == Histogram()
    assert [example.verdict for example in found.examples] == [None]


def test_an_empty_corpus(tmp_path: Path) -> None:
    for inputs in ([], inputs_of(tmp_path, [], dropped={})):
        found = gather(inputs)
        assert (found.generations, found.examples, found.lengths) == (0, (), Histogram())
        Page(render_report(report(found, planned=0, failures={}, teachers=(), prompt_sets=())))


def test_unknown_and_infinite_logprobs_are_survived(tmp_path: Path) -> None:
    rows = [
        generation("a", prompt="a", sampled_logprob=[math.nan, -1.0, None]),
        generation("b", prompt="b", sampled_logprob=[-math.inf]),
        generation("c", prompt="c", sampled_logprob=[math.nan]),
        generation("d", prompt="d", topk_logprobs=[None, [], [math.log(0.5)]]),
    ]
    found = gather(inputs_of(tmp_path, rows))
    assert found.logprobs.values == 2
    assert found.mass is not None
    assert (found.mass.mean, found.mass.positions) == (pytest.approx(0.5), 1)


def test_the_same_corpus_shows_the_same_examples(tmp_path: Path) -> None:
    rows = [generation(f"Answer {i}.", prompt=f"{i}", draw=i) for i in range(300)]
    dropped = {row["sample_id"]: ("empty", "x") for row in rows[::3]}
    first = gather(inputs_of(tmp_path / "a", rows[:150], rows[150:], dropped=dropped))
    random.Random(1).shuffle(rows)
    again = gather(
        inputs_of(tmp_path / "b", rows[:20], rows[20:], dropped=dropped, row_group_size=7)
    )
    assert again.examples == first.examples
    assert len(first.examples) == 20
    assert sum(example.verdict == "kept" for example in first.examples) == 15
    by_id = {row["sample_id"]: row for row in rows}
    for example in first.examples:
        row = by_id[example.sample_id]
        assert (example.text, example.draw) == (row["text"], row["draw"])
        assert (example.verdict == "kept") == (example.sample_id not in dropped)
    assert gather(inputs_of(tmp_path / "a", rows[:5]), examples=0).examples == ()
    few = gather(inputs_of(tmp_path / "c", rows[:9], dropped={}), examples=20)
    assert len(few.examples) == 9


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    [(path, verdicts)] = inputs_of(tmp_path, [generation()], dropped={})
    with pytest.raises(CorpusError, match=r"absent\.parquet: cannot be read"):
        gather([(tmp_path / "absent.parquet", None)])
    [(other, _)] = inputs_of(tmp_path / "other", [generation(draw=i) for i in range(2)])
    with pytest.raises(CorpusError, match="does not hold the verdicts of"):
        gather([(other, verdicts)])
    pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["teacher"]), path)
    with pytest.raises(CorpusError, match="lacks the column teacher"):
        gather([(path, None)])
    path.write_bytes(b"PAR1 torn")
    with pytest.raises(CorpusError, match="cannot be read"):
        gather([(path, None)])


# Tokens


def test_tokens_that_split_a_character_are_joined() -> None:
    smile = "\U0001f600".encode()
    pieces = [b"Hi", smile[:2], smile[2:], b"\xff", smile[:1]]
    found = cut(pieces, [0.0, math.log(0.5), math.log(0.25), None, math.nan])
    assert found[0] == Token("Hi", 1.0)
    assert found[1].text == "\U0001f600"
    assert found[1].probability == pytest.approx(0.25)
    assert [token.text for token in found[2:]] == ["\ufffd", "\ufffd"]
    assert [token.probability for token in found[2:]] == [None, None]


@given(st.text(max_size=40), st.randoms())
def test_no_character_is_lost_between_tokens(text: str, chance: random.Random) -> None:
    raw = text.encode("utf-8", "replace")
    cuts = sorted(chance.choices(range(len(raw) + 1), k=5))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    tokens = cut(pieces, [-1.0] * len(pieces))
    assert "".join(token.text for token in tokens) == raw.decode()


def test_token_ids_are_shown_where_their_text_is_given(tmp_path: Path) -> None:
    rows = [
        generation("Hi you", completion_token_ids=[5, 6], sampled_logprob=[-0.1, -3.0]),
    ]
    inputs = inputs_of(tmp_path, rows)
    assert gather(inputs).examples[0].tokens == ()
    vocabulary = {5: b"Hi", 6: b" you"}
    found = gather(inputs, token_bytes=lambda ids: [vocabulary[i] for i in ids])
    assert [token.text for token in found.examples[0].tokens] == ["Hi", " you"]
    page = render_report(report(found))
    assert (
        '<span class="p9" title="90.5%">Hi</span><span class="p0" title="5.0%"> you</span>' in page
    )


def test_long_answers_are_cut_and_it_is_said(tmp_path: Path) -> None:
    rows = [
        generation("x" * 9000, prompt="y" * 9000),
        generation("long", prompt="z", **logprobs([-1.0] * 700)),
    ]
    page = render_report(report(gather(inputs_of(tmp_path, rows))))
    assert page.count("… (5,000 more characters)") == 2
    assert "… (100 more tokens)" in page


# Histograms


def test_bars_are_round_and_few() -> None:
    counts = Counts(1000)
    counts.add(np.array([3, 4, 4, 250, 999, 5000]))
    found = counts.histogram(unit="tokens")
    assert found.bars[0] == Bar("0 to 49 tokens", 3)
    assert (len(found.bars), found.values) == (21, 6)
    assert found.bars[-1] == Bar("1,000 to 1,049 tokens", 1)
    assert (found.median, found.mean) == (4, pytest.approx(6260 / 6))
    single = Counts(10)
    single.add(np.array([7]))
    assert single.histogram().bars == (Bar("7", 1),)


@given(st.lists(st.integers(0, 140_000), min_size=1, max_size=60))
def test_every_value_is_in_one_bar(values: list[int]) -> None:
    counts = Counts(1 << 17)
    counts.add(np.array(values))
    found = counts.histogram()
    assert sum(bar.count for bar in found.bars) == len(values) == found.values
    assert len(found.bars) <= MOST_BARS
    assert found.bars[0].count
    assert found.bars[-1].count


# The page


def test_the_page_says_it_all(tmp_path: Path) -> None:
    rows = [generation(f"{i}", prompt=f"{i}", **logprobs([-0.5] * (i + 1))) for i in range(6)]
    dropped = {rows[0]["sample_id"]: ("refusal", "refusal (en)")}
    facts = report(gather(inputs_of(tmp_path, rows, dropped=dropped)))
    page = Page(render_report(facts))
    heads = dict(zip(page.texts("dt"), page.texts("dd"), strict=True))
    assert heads == {
        "samples planned": "10",
        "generations": "6",
        "failures": "3",
        "kept": "83.3%",
        "completion tokens": "21",
        "prompt tokens": "42",
        "cost": "$0.01",
        "time generating": "1 h 02 min",
    }
    cells = page.cells()
    for row in (
        ["planned", "10", ""],
        ["failed: timeout", "−2", "20.0%"],
        ["not answered yet", "−1", "10.0%"],
        ["generated", "6", "60.0%"],
        ["dropped", "−1", "10.0%"],
        ["kept", "5", "50.0%"],
        ["in messages, train", "4", ""],
        ["refusal", "refusal (en)", "1", "16.7%"],
        ["teacher", "m", "not stated", "mit", "not stated"],
        ["quickstart", "a.jsonl", "5", "10"],
        ["quickstart", "teacher", "6", "83.3%", "21"],
        ["stop", "6", "100.0%"],
        ["local", "answered", "6", "42", "12", "$0.01"],
        ["local", "lost", "1", "not known", "not known", "not known"],
    ):
        assert row in cells
    assert len(page.texts("figure")) == 2
    assert len(page.texts("details")) == 6
    assert "The top 2 held 90.0% of the probability on average" in " ".join(page.texts("p"))
    assert "One thing to know." in page.texts("p")
    assert any("dropped by refusal: refusal (en)" in text for text in page.texts("summary"))


def test_the_page_fetches_nothing(tmp_path: Path) -> None:
    rows = [generation("See https://example.com/x.png", prompt="a", **logprobs([-1.0]))]
    text = render_report(report(gather(inputs_of(tmp_path, rows))))
    page = Page(text)
    policy = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    assert policy == [
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    loading = {"script", "img", "link", "iframe", "object", "embed", "video", "audio", "base", "a"}
    assert not {tag for tag, _ in page.tags} & loading
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name in ("src", "href") or name.startswith("on")}
    style = "".join(page.texts("style"))
    assert not re.search(r"url\(|@import|expression", style)
    assert "prefers-color-scheme: dark" in style
    assert (
        "meta",
        {"name": "viewport", "content": "width=device-width, initial-scale=1"},
    ) in page.tags
    assert text.startswith("<!DOCTYPE html>")


def test_hostile_answers_are_inert(tmp_path: Path) -> None:
    rows = [
        generation(
            HOSTILE,
            messages=[message("user", HOSTILE, tool_calls=HOSTILE), message(HOSTILE, None)],
            reasoning=HOSTILE,
            tool_calls=HOSTILE,
            prompt_set=HOSTILE,
            teacher=HOSTILE,
            finish_reason=HOSTILE,
        ),
        generation(
            HOSTILE,
            prompt="b",
            **{**logprobs([-1.0]), "completion_token_bytes": [HOSTILE.encode()]},
        ),
        generation(HOSTILE, prompt="c"),
    ]
    dropped = {rows[2]["sample_id"]: (HOSTILE, HOSTILE)}
    facts = report(
        gather(inputs_of(tmp_path, rows, dropped=dropped)),
        title=HOSTILE,
        corpus_id=HOSTILE,
        created=HOSTILE,
        failures={HOSTILE: 1},
        teachers=(TeacherFacts(*[HOSTILE] * 4),),
        prompt_sets=(PromptSetFacts(HOSTILE, HOSTILE),),
        costs=(CostFacts(HOSTILE, HOSTILE, 1, cost=HOSTILE),),
        datasets=(DatasetFacts(HOSTILE, {HOSTILE: 1}),),
        cost=HOSTILE,
        notes=(HOSTILE,),
    )
    text = render_report(facts)
    page = Page(text)
    plain = Page(render_report(report(gather([]))))
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in plain.tags} | {
        *("pre", "b", "details", "summary", "span", "figure", "figcaption"),
        *("svg", "g", "title", "rect"),
    }
    names = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in names if name.startswith("on") or name == "src"}
    assert page.texts("pre").count(visible(HOSTILE)) == 5
    assert visible(HOSTILE) in page.texts("title")
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text)
    assert "␀␛[31m[U+202E]gnp.exe[U+2066]" in text
    for tag, attributes in page.tags:
        if tag in ("pre", "summary", "h1"):
            assert attributes["dir"] == "auto"
