from __future__ import annotations

import random
import string
from typing import Any

import pytest
from corpus_factory import generation, table
from hypothesis import given
from hypothesis import strategies as st

from corpusgen import plugins
from corpusgen.curate.repetition import loop_period
from corpusgen.errors import ConfigError

WORDS = [
    *("river", "stone", "copper", "lantern", "quiet", "orchard", "signal", "meadow", "timber"),
    *("harbor", "velvet", "thunder", "canyon", "puzzle", "winter", "garden", "mirror", "bridge"),
    *("candle", "feather", "island", "marble", "needle", "ocean"),
]


def judge(name: str, rows: list[dict[str, Any]], **options: Any) -> list[str | None]:
    made = plugins.load(plugins.FILTERS, name)(options)
    return made.judge(table(rows).select(list(made.columns)))


def judge_texts(name: str, texts: list[str], **options: Any) -> list[str | None]:
    return judge(name, [generation(text) for text in texts], **options)


def prose(words: int, seed: int = 0) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.mark.parametrize("name", ["finish_reason", "empty", "length", "refusal", "repetition"])
def test_every_filter_takes_an_empty_table(name: str) -> None:
    options = {"min_tokens": 1, "min_chars": 1} if name == "length" else {}
    assert judge(name, [], **options) == []


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "length",
            {"min_tokns": 4},
            r"length\.min_tokns is not an option. Did you mean min_tokens",
        ),
        ("length", {"min_tokens": "4"}, r"length\.min_tokens: expected int \| null, got str"),
        ("length", {"min_chars": -1}, r"length\.min_chars: expected int >= 0"),
        ("length", {}, "length: no bound is set"),
        ("length", {"min_chars": 9, "max_chars": 3}, r"length\.min_chars: 9 is above max_chars, 3"),
        ("empty", {"x": 1}, r"empty\.x is not an option. It takes no options"),
        ("finish_reason", {"keep": "stop"}, r"finish_reason\.keep: expected array, got str"),
        (
            "refusal",
            {"languages": ["en", "xx"]},
            r"refusal\.languages: there are no patterns for xx",
        ),
        ("refusal", {"patterns": ["("]}, r"refusal\.patterns: '\(' is no regular expression"),
        ("repetition", {"min_repeats": 1}, r"repetition\.min_repeats: expected int >= 2"),
    ],
)
def test_options_are_strict(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="curate.filters: " + message):
        plugins.load(plugins.FILTERS, name)(options)


def test_finish_reason() -> None:
    rows = [generation(finish_reason=word) for word in ("stop", "length", "tool_calls", "weird")]
    assert judge("finish_reason", rows) == [
        None,
        "finish_reason is length",
        None,
        "finish_reason is weird",
    ]
    assert judge("finish_reason", rows, keep=["length"])[1] is None


def test_empty() -> None:
    rows = [
        generation(""),
        generation(" \n\t\u3000\u200b\ufeff \x00"),
        generation("."),
        generation("", tool_calls='[{"id":"1"}]'),
        generation("", tool_calls="[]"),
        generation("", reasoning="much thought"),
    ]
    reason = "no text and no tool calls"
    assert judge("empty", rows) == [reason, reason, None, None, reason, reason]


def test_length() -> None:
    rows = [
        generation("word", completion_tokens=1),
        generation("word " * 5, completion_tokens=5),
        generation("word " * 90, completion_tokens=90),
        generation("word", completion_tokens=None),
        generation("", completion_tokens=9, tool_calls="[{}]"),
    ]
    assert judge("length", rows, min_tokens=5, max_tokens=50) == [
        "fewer than 5 tokens",
        None,
        "more than 50 tokens",
        None,
        None,
    ]
    assert judge("length", rows, min_chars=5, max_chars=24) == [
        "fewer than 5 characters",
        None,
        "more than 24 characters",
        "fewer than 5 characters",
        None,
    ]


REFUSALS = {
    "en": [
        "I'm sorry, but I can't help with that request.",
        "I’m sorry, but I can’t assist with that.",
        "Sorry, I cannot do that.",
        "I'm really sorry, but I cannot provide instructions for this.",
        "I cannot provide information on how to build a weapon.",
        "I can't help with that.",
        "As an AI language model, I cannot form opinions about politicians.",
        "As an AI assistant I don't have personal feelings, so I cannot say.",
        "I'm just an AI, I can't condone that.",
        "I apologize, but I am not able to fulfill your request.",
        "I must decline to answer that.".replace("answer", "answer any part of") + " request",
        "Unfortunately, I am unable to help you with this.",
        "This goes against my ethical guidelines.",
        "<think>\nThey want harm.\n</think>\n\nI'm sorry, but I can't help with that.",
        "I won't help you with this request.",
    ],
    "de": [
        "Es tut mir leid, aber dabei kann ich dir nicht helfen.",
        "Tut mir leid, ich kann diese Anfrage nicht beantworten.",
        "Leider kann ich Ihnen dabei nicht weiterhelfen.",
        "Ich bin nicht in der Lage, das zu tun.",
        "Als KI-Sprachmodell habe ich keine eigene Meinung.",
    ],
    "fr": [
        "Je suis désolé, mais je ne peux pas vous aider.",
        "Désolée, je ne peux pas répondre à cette question.",
        "Je ne suis pas en mesure de fournir ces informations.",
        "En tant qu'intelligence artificielle, je n'ai pas d'opinion.",
    ],
    "es": [
        "Lo siento, pero no puedo ayudarte con eso.",
        "No puedo proporcionar esa información.",
        "Como modelo de lenguaje, no tengo opiniones.",
    ],
    "pt": ["Desculpe, mas não posso ajudar com isso.", "Sinto muito, não posso fornecer isso."],
    "it": ["Mi dispiace, ma non posso aiutarti.", "Non posso fornire queste informazioni."],
    "ru": ["Извините, но я не могу помочь с этим.", "К сожалению, я не могу ответить."],
    "zh": [
        "对不起,我无法提供这方面的帮助。",
        "抱歉,我不能回答这个问题。",
        "作为一个人工智能,我无法表达个人意见。",
        "我无法协助您完成这个请求。",
    ],
    "ja": [
        "申し訳ありませんが、そのご要望にはお応えできません。",
        "すみませんが、お手伝いできません。",
        "そのような情報を提供することはできません。",
    ],
    "ko": ["죄송하지만 그 요청은 도와드릴 수 없습니다.", "그 정보는 제공할 수 없습니다."],
}


@pytest.mark.parametrize("language", REFUSALS)
def test_refusals_are_found_in_each_language(language: str) -> None:
    texts = REFUSALS[language]
    found = judge_texts("refusal", texts, languages=[language])
    assert found == [f"refusal ({language})"] * len(texts)
    assert all(judge_texts("refusal", texts))


@pytest.mark.parametrize(
    "text",
    [
        "The guard folded his arms. \"I'm sorry, but I can't help you with that,\" he said.",
        "The guard said: “I’m sorry, but I cannot help you with that request.”",
        "‘I can’t help you with that,’ she whispered.",
        "„Es tut mir leid, ich kann dir nicht helfen“, sagte sie.",
        "« Je suis désolé, mais je ne peux pas vous aider », dit-il.",
        "「申し訳ありませんが、できません」と彼は言った。",
        "> I'm sorry, but I can't help with that.\n\nThis is how a refusal reads.",
        'A chatbot prints:\n```python\nprint("I cannot help with that request")\n```',
        "I can't help but notice that you like jazz.",
        "I'm sorry to hear that you are ill. Rest, drink water, and see a doctor.",
        "I apologize for the confusion. The answer is 42.",
        "Sorry for the wait! Here is your poem.",
        "Unfortunately, the river cannot be crossed in winter.",
        "As an artificial lake, it cannot drain by itself.",
        "You cannot divide by zero, so the limit does not exist.",
        "Here is the function. It won't help with large inputs.",
        "Dear Anna, I'm sorry I can't be there tonight.",
        "Leider war das Wetter nicht gut. Wir blieben zu Hause.",
        "Ich kann nicht schwimmen, sagte der Fisch im Traum.",
        "Lo siento mucho por tu pérdida. Aquí tienes un poema.",
        "对不起在英语里是 sorry。",
        "申し訳ありませんという表現は謝罪に使います。",
        "",
        "x" * 300 + " I'm sorry, but I can't help with that request.",
        "'Tis the season. It's a pity, isn't it?",
    ],
)
def test_content_is_no_refusal(text: str) -> None:
    assert judge_texts("refusal", [text]) == [None]


def test_refusal_takes_further_patterns_and_a_window() -> None:
    texts = ["Computer says NO.", "I'm sorry, but I can't help with that."]
    assert judge_texts("refusal", texts, languages=[], patterns=["computer says no"]) == [
        "refusal (pattern)",
        None,
    ]
    assert judge_texts("refusal", texts, window=10) == [None, None]


@pytest.mark.parametrize(
    "opening", ['"' * 5000, "'a" * 5000, "as an " * 3000, "> " * 4000, "ich " * 500]
)
def test_refusal_is_fast_on_hostile_openings(opening: str) -> None:
    assert judge_texts("refusal", [opening], window=4000) == [None]


@pytest.mark.parametrize("unit", [1, 3, 11, 60, 99, 100, 400, 1500])
@pytest.mark.parametrize("cut", [0, 0.4])
def test_loops_are_found_in_any_phase(unit: int, cut: float) -> None:
    letters = random.Random(unit)
    stretch = "".join(letters.choices(string.ascii_letters, k=unit))
    repeats = max(4, -(-100 // unit))
    text = prose(120) + " " + stretch * repeats + stretch[: int(cut * unit)]
    assert loop_period(text) == unit
    assert judge_texts("repetition", [text + "\n \n"]) == ["ends in a loop"]


def test_three_repeats_suffice_only_for_long_periods() -> None:
    long, short = prose(20, seed=1), prose(10, seed=1)[:50]
    assert len(long) > 100
    assert loop_period(prose(50) + (long + ". ") * 3 + long[:9]) is not None
    assert loop_period(prose(50) + (short + ". ") * 3 + short[:9]) is None


def test_a_loop_of_words_in_other_scripts() -> None:
    assert loop_period("今日は天気がいいので、" + "私は公園に行きました。" * 12) == 11


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ha ha ha ha ha",
        "1000000000000000000000000",
        prose(500),
        "A title\n" + "=" * 120,
        "| a | b |\n|---|---|\n" + "|   |   |\n" * 20,
        "\n".join(f"{i}. item {i}" for i in range(200)),
        "[" + ",\n ".join(["[0, 0, 0, 0]"] * 12) + "]\n```\nDone.",
        "for i in range(10):\n    print(i)\n" * 2,
        "Twinkle, twinkle, little star, how I wonder what you are.\n" * 2,
    ],
)
def test_texts_that_end_by_themselves_do_not_loop(text: str) -> None:
    assert judge_texts("repetition", [text]) == [None]


def test_prose_never_loops() -> None:
    assert judge_texts("repetition", [prose(300, seed) for seed in range(60)]) == [None] * 60


def brute_force(text: str, min_repeats: int, min_chars: int) -> bool:
    text = text.rstrip()
    for period in range(1, len(text) // 2 + 1):
        run = period
        while run < len(text) and text[-run - 1] == text[-run - 1 + period]:
            run += 1
        repeats = min(min_repeats, 3) if period >= 100 else min_repeats
        needed = min_chars if any(c.isalpha() for c in text[-period:]) else min_chars * 8
        if run >= max(repeats * period, needed):
            return True
    return False


@given(
    st.text("ab ", max_size=30),
    st.text("ab. ", min_size=1, max_size=12),
    st.integers(1, 90),
    st.text("ab.", max_size=4),
)
def test_loops_agree_with_the_definition(head: str, unit: str, repeats: int, end: str) -> None:
    text = head + unit * repeats + end
    assert (loop_period(text, 4, 60) is not None) == brute_force(text, 4, 60)


def test_gopher_is_an_option() -> None:
    lines = "\n".join(["a line of words", "another line of words"] * 6) + "\nthe end."
    assert judge_texts("repetition", [lines]) == [None]
    assert judge_texts("repetition", [lines], gopher=True) == ["Gopher: duplicate lines"]
    phrase = " ".join(f"red apple {word}" for word in WORDS)
    assert judge_texts("repetition", [phrase], gopher=True) == ["Gopher: top 2-gram"]
    sentence = "one two three four five six seven eight nine ten eleven"
    twice = f"{prose(30)} {sentence} {prose(5, 3)} {sentence}"
    assert judge_texts("repetition", [twice], gopher=True) == ["Gopher: duplicate 9-grams"]
    unique = " ".join(f"word{i}" for i in range(200))
    assert judge_texts("repetition", [unique, "", "one"], gopher=True) == [None, None, None]
