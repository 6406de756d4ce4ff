"""Rate headers of every provider, and waits in headers and sentences."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpusgen.teachers.openai_rate import (
    LONGEST_WAIT_S,
    grants_nothing,
    rate_hint,
    retry_after_s,
    span_s,
    wait_in_sentence,
    window_wait_s,
)
from corpusgen.types import RateHint

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT

OPENAI = {
    "x-ratelimit-limit-requests": "5000",
    "x-ratelimit-limit-tokens": "160000",
    "x-ratelimit-limit-tokens_usage_based": "160000",
    "x-ratelimit-remaining-requests": "4999",
    "x-ratelimit-remaining-tokens": "159976",
    "x-ratelimit-reset-requests": "12ms",
    "x-ratelimit-reset-tokens": "6m0s",
}
ANTHROPIC = {
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:21Z",
    "anthropic-ratelimit-tokens-limit": "48000",
    "anthropic-ratelimit-tokens-remaining": "40000",
    "anthropic-ratelimit-tokens-reset": "2023-11-14T22:13:30Z",
    "anthropic-ratelimit-input-tokens-limit": "40000",
    "anthropic-ratelimit-input-tokens-remaining": "39000",
    "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:13:22Z",
    "anthropic-ratelimit-output-tokens-limit": "8000",
    "anthropic-ratelimit-output-tokens-remaining": "1000",
    "anthropic-ratelimit-output-tokens-reset": "2023-11-14T23:14:12.5+01:00",
    "anthropic-ratelimit-unified-5h-reset": "1700003600",
}
MISTRAL = {
    "x-ratelimit-limit-req-minute": "60",
    "x-ratelimit-limit-tokens-minute": "50000",
    "x-ratelimit-limit-tokens-month": "4000000",
    "x-ratelimit-remaining-req-minute": "59",
    "x-ratelimit-remaining-tokens-minute": "47196",
    "x-ratelimit-remaining-tokens-month": "9000",
    "x-ratelimit-tokens-query-cost": "2804",
}
CEREBRAS = {
    "x-ratelimit-limit-requests-day": "14400",
    "x-ratelimit-limit-tokens-minute": "60000",
    "x-ratelimit-remaining-requests-day": "0",
    "x-ratelimit-remaining-tokens-minute": "59000",
    "x-ratelimit-reset-requests-day": "33011.382867",
    "x-ratelimit-reset-tokens-minute": "11.382867",
}


@pytest.mark.parametrize(
    ("headers", "hint"),
    [
        (OPENAI, RateHint(5000, 4999, 0.012, 160000, 159976, 360.0)),
        (ANTHROPIC, RateHint(50, 49, 1.0, 8000, 1000, 52.5)),
        (MISTRAL, RateHint(60, 59, None, 50000, 47196, None)),
        (
            {"x-ratelimit-limit-req-minute": "60", "x-ratelimit-limit-req-day": "900"},
            RateHint(requests_limit=60),
        ),
        (CEREBRAS, RateHint(14400, 0, 33011.382867, 60000, 59000, 11.382867)),
        (  # Azure
            {"x-ratelimit-remaining-requests": "9", "x-ratelimit-remaining-tokens": "99"},
            RateHint(requests_remaining=9, tokens_remaining=99),
        ),
        (  # Groq
            {"x-ratelimit-limit-requests": "14400", "x-ratelimit-reset-requests": "2m59.56s"},
            RateHint(requests_limit=14400, requests_reset_s=179.56),
        ),
        (  # Together
            {
                "x-ratelimit-limit": "10",
                "x-ratelimit-remaining": "9",
                "x-ratelimit-reset": "1",
                "x-tokenlimit-limit": "3000",
                "x-tokenlimit-remaining": "2000",
            },
            RateHint(10, 9, 1.0, 3000, 2000, None),
        ),
        (  # OpenRouter
            {
                "X-RateLimit-Limit": "50",
                "X-RateLimit-Remaining": "0",
                "X-RateLimit-Reset": "1700000060000",
            },
            RateHint(50, 0, 60.0),
        ),
        (  # Fireworks
            {
                "x-ratelimit-limit-tokens-prompt": "600",
                "x-ratelimit-remaining-tokens-prompt": "500",
                "x-ratelimit-limit-tokens-generated": "100",
                "x-ratelimit-remaining-tokens-generated": "10",
                "x-ratelimit-over-limit": "no",
            },
            RateHint(tokens_limit=100, tokens_remaining=10),
        ),
        (  # the IETF's draft
            {
                "RateLimit-Limit": "100, 100;w=60",
                "RateLimit-Remaining": "40",
                "RateLimit-Reset": "53",
            },
            RateHint(100, 40, 53.0),
        ),
        (
            {"x-ratelimit-reset-requests": "1700000030", "x-ratelimit-limit-requests": "1"},
            RateHint(requests_limit=1, requests_reset_s=30.0),
        ),
        (
            {
                "x-ratelimit-reset": "Tue, 14 Nov 2023 22:13:50 GMT",
                "Date": "Tue, 14 Nov 2023 22:13:40 GMT",
            },
            RateHint(requests_reset_s=10.0),
        ),
        (
            {"ratelimitbysize-remaining": "7", "x-ratelimitbysize-limit-minute": "9"},
            RateHint(tokens_limit=9, tokens_remaining=7),
        ),
        ({"x-ratelimit-reset": "2023-11-14 22:13:50"}, RateHint(requests_reset_s=30.0)),
        ({"x-ratelimit-reset": "1600000000"}, RateHint(requests_reset_s=0.0)),
    ],
)
def test_each_providers_headers_are_understood(headers: dict[str, str], hint: RateHint) -> None:
    assert rate_hint(headers, NOW) == hint


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/json", "x-request-id": "r"},
        {"x-ratelimit-limit-images": "5", "x-ratelimit-policy": "a", "limit": "5"},
        {"x-ratelimit-limit-requests": "many", "x-ratelimit-reset-tokens": "soon"},
        {"x-ratelimit-limit-requests": "-5", "x-ratelimit-remaining-tokens": "nan"},
        {"x-ratelimit-limit-requests": "9" * 5000, "x-ratelimit-reset-tokens": "inf"},
        {"x-ratelimit-limit-requests": "0", "x-ratelimit-limit-tokens": "1e300"},
        {"x-ratelimit-reset-requests": "99999-99-99T00:00:00Z", "x-ratelimit-": "1"},
        {"x-ratelimit-reset-requests": "Tue, 99 Nov 99999 22:13:40 GMT"},
    ],
)
def test_what_says_nothing_is_nothing(headers: dict[str, str]) -> None:
    assert rate_hint(headers, NOW) is None


def test_a_reset_in_the_far_future_is_bounded() -> None:
    for value in ("9e17", "99999d", "9999-12-31T00:00:00Z", "999999999"):
        hint = rate_hint({"x-ratelimit-reset-tokens": value}, NOW)
        assert hint is not None
        assert hint.tokens_reset_s == LONGEST_WAIT_S


@given(
    st.dictionaries(
        st.sampled_from(
            [*OPENAI, *ANTHROPIC, *MISTRAL, "x-ratelimit-reset", "Date", "Retry-After"]
        ),
        st.text(max_size=80)
        | st.from_regex(r"\A-?[0-9]{1,40}(\.[0-9]+)?(ms|s|m|h|d)?\Z")
        | st.datetimes().map(lambda moment: moment.isoformat()),
        max_size=6,
    )
)
def test_hostile_values_never_raise(headers: dict[str, str]) -> None:
    hint = rate_hint(headers, NOW)
    found = [] if hint is None else [getattr(hint, name) for name in hint.__struct_fields__]
    found += [retry_after_s(headers, NOW), window_wait_s(headers, NOW)]
    assert all(value is None or 0 <= value < 10**15 for value in found)
    grants_nothing(headers)


@given(st.text(max_size=200))
def test_no_sentence_raises(said: str) -> None:
    for wait in (wait_in_sentence(said), wait_in_sentence(f"try again in 1{said}s"), span_s(said)):
        assert wait is None or 0 <= wait <= LONGEST_WAIT_S


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1.0),
        ("20ms", 0.02),
        ("6m0s", 360.0),
        ("2m59.56s", 179.56),
        ("1h2m3.5s", 3723.5),
        ("1d", 86400.0),
        ("1 minute", 60.0),
        (" 7 sec ", 7.0),
        ("", None),
        ("s", None),
        ("5", None),
        ("-1s", None),
        ("1month", None),
        ("1s and", None),
    ],
)
def test_spans(text: str, seconds: float | None) -> None:
    assert span_s(text) == seconds


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("Rate limit reached on tokens per min. Please try again in 1.2s. Visit https://x", 1.2),
        ("Please try again in 6m0s.", 360.0),
        ("please try again after 1 seconds", 1.0),
        ("Please retry after 7 seconds. Go to", 7.0),
        ("Please wait 38021 seconds before retrying.", 38021.0),
        ("Please retry in 34.074824224s.", 34.074824224),
        ("Please try again in 20ms.", 0.02),
        ("No deployments available, Try again in 5 seconds. Passed model=x", 5.0),
        ("try again in 5 minutes and 3 seconds", 303.0),
        ("Please retry after 24 hours.", 86400.0),
        ("Please try again later.", None),
        ("You may retry 3 models", None),
        ("Wait 1 month", None),
        ("", None),
    ],
)
def test_waits_in_sentences(said: str, seconds: float | None) -> None:
    assert wait_in_sentence(said) == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "1m30s"}, 90.0),
        ({"Retry-After": "86400"}, 86400.0),
        ({"Retry-After": "1e300"}, LONGEST_WAIT_S),
        ({"retry-after-ms": "1e300"}, LONGEST_WAIT_S),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"Retry-After": "Tue, 14 Nov 2023 22:13:50 -0000"}, 30.0),
        ({"Retry-After": "2023-11-14T22:13:50Z"}, 30.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": ""}, None),
    ],
)
def test_retry_after_beyond_plain_seconds(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


def test_only_a_window_that_is_used_up_says_when_to_come_back() -> None:
    assert window_wait_s(CEREBRAS, NOW) == 33011.382867
    used = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1700000060000"}
    assert window_wait_s(used, NOW) == 60.0
    assert window_wait_s({**used, "x-ratelimit-remaining": "1"}, NOW) is None
    full_again = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    assert window_wait_s(full_again, NOW) is None
    assert window_wait_s({}, NOW) is None


def test_a_limit_of_nothing_is_no_limit_that_waiting_helps_with() -> None:
    assert grants_nothing({"x-ratelimit-limit-req-minute": "0"})
    assert not grants_nothing(OPENAI)
    assert not grants_nothing({"x-ratelimit-limit-images": "0"})
    assert not grants_nothing({})
