"""Bodies of errors, after providers' references and issue threads: the class and wait of each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corpusgen import errors
from corpusgen.errors import Overloaded, QuotaExhausted, RateLimited, Rejected, ServerFault
from corpusgen.teachers.openai_errors import Origin, from_answer, from_status
from corpusgen.types import RateHint

HERE = Origin("here")
WIRE = Path(__file__).parent / "wire"


def error_of(status: int, body: Any, headers: dict[str, str] | None = None) -> errors.TeacherError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return from_status(HERE, status, headers or {}, raw)


def openai(message: str = "", code: str | None = None, kind: str = "invalid_request_error") -> Any:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


CASES = [json.loads(line) for line in (WIRE / "errors.jsonl").read_text().splitlines()]
"""By name of the provider: status, body (or text, where it is no JSON), class and wait."""


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_each_providers_error_has_its_class(case: dict[str, Any]) -> None:
    status = case["status"]
    error = error_of(status, case["text"].encode() if "text" in case else case["body"])
    assert type(error).__name__ == case["kind"]
    assert error.retry_after_s == case.get("wait_s")
    assert error.http_status == status
    assert str(error).startswith(f"endpoint here: HTTP {status}")
    assert "\n" not in str(error)


def test_the_headers_word_wins_over_the_sentence() -> None:
    body = openai("Please try again in 6m0s.", "rate_limit_exceeded")
    assert error_of(429, body, {"Retry-After": "2"}).retry_after_s == 2.0
    assert error_of(503, body, {"Retry-After": "2"}).retry_after_s == 2.0
    assert error_of(503, body).retry_after_s == 360.0
    assert error_of(400, body).retry_after_s is None


def test_rate_headers_travel_with_the_error() -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}
    error = error_of(429, openai("slow", "rate_limit_exceeded"), headers)
    assert error.rate == RateHint(tokens_remaining=0, tokens_reset_s=360.0)
    # When it is full again is not when the next request fits.
    assert error.retry_after_s is None


def test_a_gateways_upstream_headers_are_read_in_the_body() -> None:
    upstream = {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "60"}
    body = {
        "error": {"message": "free-models-per-day", "code": 429, "metadata": {"headers": upstream}}
    }
    error = error_of(429, body)
    assert type(error) is RateLimited
    assert error.rate == RateHint(50, 0, 60.0)
    assert error.retry_after_s == 60.0
    hostile = {"error": {"code": 429, "metadata": {"headers": {"X-RateLimit-Reset": [1]}}}}
    assert error_of(429, hostile).rate is None


def test_an_allowance_of_nothing_is_not_waited_for() -> None:
    headers = {"x-ratelimit-limit-req-minute": "0", "x-ratelimit-remaining-req-minute": "0"}
    assert type(error_of(429, {"message": "Rate limit exceeded"}, headers)) is QuotaExhausted
    assert type(error_of(500, {"message": "x"}, headers)) is ServerFault


def test_a_quoted_prompt_does_not_end_the_run() -> None:
    quoted = "bad value: " + 300 * "x" + " insufficient balance, incorrect api key, model not exist"
    assert type(error_of(400, openai(quoted))) is Rejected
    assert type(error_of(422, openai("input 'insufficient balance' is not allowed"))) is Rejected


@pytest.mark.parametrize(
    "body",
    [
        [[[[[[[[[[[[]]]]]]]]]]]],
        {"error": {"error": {"error": {"error": {"error": {"error": {"error": {"error": {}}}}}}}}},
        {"error": {"code": {"a": 1}, "type": [], "status": None, "retryDelay": -5}},
        {"error": {"details": "no list", "metadata": 5, "violations": {}}},
        {"error": {"message": "x", "retry_after": float("1e300"), "code": True}},
    ],
)
def test_hostile_bodies_never_raise(body: Any) -> None:
    error = error_of(429, body)
    assert type(error) is RateLimited
    assert error.retry_after_s is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ({"code": "rate_limit_exceeded", "message": "slow"}, RateLimited),
        ({"type": "overloaded_error", "message": "busy"}, Overloaded),
        ({"type": "invalid_request_error", "message": "no"}, Rejected),
        ({"code": 403, "message": "Key limit exceeded (total limit)."}, QuotaExhausted),
        ({"code": 502, "message": "upstream"}, errors.GatewayFault),
        ({"message": "later", "code": "rate_limit_exceeded", "retry_after": 3}, RateLimited),
        ({}, ServerFault),
    ],
)
def test_an_error_inside_a_success(error: Any, kind: type[errors.TeacherError]) -> None:
    found = from_answer(HERE, 200, {"x-ratelimit-limit-requests": "9"}, error)
    assert type(found) is kind
    assert found.rate == RateHint(requests_limit=9)
    assert found.retry_after_s == error.get("retry_after")


@pytest.mark.parametrize("status", [502, 504, 524])
def test_what_a_gateway_lost_may_be_billed(status: int) -> None:
    error = from_status(Origin("x"), status, {}, b"<html>bad gateway</html>")
    assert error.retry == "again"
    assert error.may_be_billed, "nobody saw what the upstream did"
    assert not from_status(Origin("x"), 500, {}, b"").may_be_billed
