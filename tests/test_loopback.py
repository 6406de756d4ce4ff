from __future__ import annotations

import json
import os
import random
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from typing import Any

import pytest

from tests.loopback import Running, Script, serving, spawned
from tests.loopback_capacity import lognormal
from tests.loopback_limits import Limits, SlidingLimits, duration


def post(server: Running, prompt: str, **keys: Any) -> tuple[int, dict[str, Any]]:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **keys}
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions", json.dumps(body).encode(), method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def post_headers(server: Running, prompt: str, **keys: Any) -> tuple[int, Message]:
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **keys}
    request = urllib.request.Request(
        f"{server.base_url}/chat/completions", json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers


def post_all(server: Running, prompts: list[str], **keys: Any) -> list[int]:
    with ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(lambda prompt: post(server, prompt, **keys)[0], prompts))


def text(answer: tuple[int, dict[str, Any]]) -> str:
    content: str = answer[1]["choices"][0]["message"]["content"]
    return content


def test_answers_are_a_function_of_the_request() -> None:
    with serving() as server:
        first, again = text(post(server, "hi", seed=1)), text(post(server, "hi", seed=1))
        assert first == again
        assert first != text(post(server, "hi", seed=2))
        assert first != text(post(server, "ho", seed=1))
    with serving() as other:
        assert first == text(post(other, "hi", seed=1))


def test_the_log_holds_each_request_and_what_it_cost() -> None:
    with serving() as server:
        answered = post(server, "a b c", n=3, seed=5)[1]
        assert post(server, "[[500]]")[0] == 500
        first, second = server.log()
        stats = server.stats()
    usage = answered["usage"]
    assert len(answered["choices"]) == 3
    assert (first["prompt"], first["draws"], first["seed"]) == ("a b c", 3, 5)
    assert first["body"]["n"] == 3
    assert first["completion_tokens"] == usage["completion_tokens"] == stats["completion_tokens"]
    assert first["prompt_tokens"] == usage["prompt_tokens"] == stats["prompt_tokens"] == 7
    assert (second["status"], second["completion_tokens"]) == (500, 0)
    assert stats["statuses"] == {"200": 1, "500": 1}
    assert (stats["requests"], stats["in_flight"], stats["billed_requests"]) == (2, 0, 1)


def test_a_fault_can_strike_once() -> None:
    with serving() as server:
        assert [post(server, "x [[once:503]]")[0] for _ in range(3)] == [503, 200, 200]
        assert post(server, "y [[once:503]]")[0] == 503


def test_shares_are_the_same_in_any_order() -> None:
    script = Script(shares={"429": 0.3, "500": 0.2}, seed=3)
    prompts = [f"prompt {i}" for i in range(200)]
    with serving(script) as server:
        forward = {p: post(server, p)[0] for p in prompts}
    with serving(script) as server:
        backward = {p: post(server, p)[0] for p in reversed(prompts)}
    assert forward == backward
    counts = [list(forward.values()).count(status) for status in (429, 500, 200)]
    assert sum(counts) == 200
    assert 40 < counts[0] < 80
    assert 20 < counts[1] < 60


def test_max_tokens_cuts_and_says_so() -> None:
    with serving(Script(answer_tokens=50)) as server:
        choice = post(server, "long", max_tokens=2)[1]["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["content"].split()) == 2


@pytest.mark.parametrize("wrong", [b"", b"{", b"[]", b'{"model": 1}'])
def test_a_body_that_is_no_request_is_a_400(wrong: bytes) -> None:
    with serving() as server:
        request = urllib.request.Request(f"{server.base_url}/chat/completions", wrong)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=10)
        caught.value.close()
    assert caught.value.code == 400


def test_it_runs_as_a_process() -> None:
    with spawned("--api-key", "right", "--share", "500=1.0") as server:
        assert post(server, "hi")[0] == 401
        with urllib.request.urlopen(f"{server.base_url}/models", timeout=10) as response:
            assert json.load(response)["data"][0]["id"] == "loopback"
        assert server.stats()["statuses"] == {"401": 1}
        assert server.log()[0]["body"] is None


def test_no_stretch_of_a_window_admits_more_than_the_rate() -> None:
    chance = random.Random(3)
    now = 0.0
    limits = SlidingLimits(lambda: now)
    rates = Limits(rpm=60, tpm=6000, window_s=10.0, tpm_rule="max_tokens")
    admitted: list[tuple[float, int]] = []
    rejected = 0
    while now < 200:
        now += chance.expovariate(3)
        wait_s = limits.admit(rates, 20, 120)
        if wait_s is None:
            admitted.append((now, 140))
        else:
            rejected += 1
            assert 0 < wait_s <= 10
    for begin, _ in admitted:
        within = [tokens for at, tokens in admitted if begin <= at < begin + 10]
        assert len(within) <= 10
        assert sum(within) <= 1000
    assert rejected > 100
    assert len(admitted) > 0.9 * 200 * 1000 / 140 / 10, "it admits what it may"
    assert limits.charged_tokens == 140 * len(admitted), "what is rejected is not charged"


def test_a_wait_that_is_told_is_enough_and_not_too_long() -> None:
    now = 100.0
    limits = SlidingLimits(lambda: now)
    rates = Limits(rpm=4, window_s=30.0)  # two in half a minute
    assert limits.admit(rates, 1, 1) is None
    now += 7
    assert limits.admit(rates, 1, 1) is None
    now += 2
    assert limits.headers(rates) == {
        "x-ratelimit-limit-requests": "4",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "28s",
    }
    wait_s = limits.admit(rates, 1, 1)
    assert wait_s is not None
    assert wait_s == pytest.approx(21)
    now += wait_s - 0.001
    assert limits.admit(rates, 1, 1) is not None
    now += 0.002
    assert limits.admit(rates, 1, 1) is None


def test_usage_is_charged_when_it_is_known() -> None:
    now = 0.0
    limits = SlidingLimits(lambda: now)
    rates = Limits(tpm=100)
    assert limits.admit(rates, 60, 1000) is None
    assert limits.admit(rates, 60, 1000) is None, "the sum was 60: below the limit"
    assert limits.admit(rates, 1, 1) is not None
    now = 61.0
    assert limits.admit(rates, 10, 1000) is None
    limits.completed(rates, 90)
    assert limits.admit(rates, 1, 1) == pytest.approx(60)
    assert limits.charged_tokens == 220


def test_spans_are_written_as_openai_writes_them() -> None:
    assert [duration(s) for s in (0, 0.02, 1.5, 12, 360)] == ["0ms", "20ms", "1.5s", "12s", "6m0s"]


def test_a_rate_is_enforced_over_http_and_says_when_to_come_back() -> None:
    with serving(Script(rpm=600, window_s=0.5, rate_headers=True)) as server:
        began = time.time()
        statuses = [post_headers(server, f"p {i}") for i in range(7)]
        assert [status for status, _ in statuses] == [200] * 5 + [429] * 2
        headers = statuses[-1][1]
        assert headers["Retry-After"] == "1"
        assert 0 < int(headers["retry-after-ms"]) <= 500
        assert headers["x-ratelimit-remaining-requests"] == "0"
        assert statuses[0][1]["x-ratelimit-remaining-requests"] == "4"
        time.sleep(int(headers["retry-after-ms"]) / 1000 + 0.01)
        assert post(server, "later")[0] == 200
        stats = server.stats()
        early = server.stats(since=began, until=began + 0.3)
        assert server.stats(since=time.time())["requests"] == 0
    assert (stats["answered"], stats["rejected"], stats["billed_requests"]) == (6, 2, 6)
    assert (early["answered"], early["rejected"], early["peak_in_flight"]) == (5, 2, 1)
    assert early["completion_tokens"] < stats["completion_tokens"]


def test_without_rate_headers_a_429_says_nothing() -> None:
    with serving(Script(tpm=60, tpm_rule="max_tokens", window_s=60)) as server:
        assert post(server, "a b c", max_tokens=50)[0] == 200  # 7 and 50 of 60
        status, headers = post_headers(server, "a b c", max_tokens=50)
        assert status == 429
        assert not [name for name in headers if "ratelimit" in name or "etry" in name]
        assert post(server, "", max_tokens=0)[0] == 429, "unset: the mean length"
    with serving(Script(tpm=60, answer_tokens=30)) as server:
        while (answer := post(server, f"{time.time()}"))[0] == 200:
            pass
        stats = server.stats()
    assert answer[1]["error"]["code"] == "rate_limit_exceeded"
    assert stats["prompt_tokens"] + stats["completion_tokens"] >= 60


def test_the_script_changes_while_it_runs() -> None:
    with serving() as server:
        assert post(server, "a")[0] == 200
        turned = server.control(fault="500")
        assert [post(server, "a")[0] for _ in range(2)] == [500, 500]
        server.control(fault=None, latency_ms=80)
        began = time.monotonic()
        assert post(server, "a")[0] == 200
        assert time.monotonic() - began > 0.075
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.control(latency=3)
        caught.value.close()
        assert caught.value.code == 400
        assert server.stats(since=turned)["statuses"] == {"500": 2, "200": 1}


def test_it_dies_and_comes_back() -> None:
    with serving(Script(latency_ms=500)) as server, ThreadPoolExecutor(1) as pool:
        cut = pool.submit(post, server, "in flight")
        while not server.stats()["in_flight"]:
            time.sleep(0.01)
        server.control(die_s=0.4, latency_ms=0)
        with pytest.raises(OSError):  # noqa: PT011 - reset, or closed without an answer
            cut.result(10)
        with pytest.raises(urllib.error.URLError):
            post(server, "refused")
        time.sleep(0.5)
        assert post(server, "again")[0] == 200
        assert server.stats()["cancelled"] == 1


def test_slots_bound_the_throughput_and_the_rest_waits_in_line() -> None:
    script = Script(slots=4, tokens_per_s=100, lengths="equal", answer_tokens=10)
    with serving(script) as server:
        began = time.monotonic()
        assert post_all(server, [f"p {i}" for i in range(12)]) == [200] * 12
        took = time.monotonic() - began
        latencies = sorted(entry["latency_s"] for entry in server.log())
    assert 0.3 <= took < 1.0, "three rounds of four answers of 0.1 s"
    assert latencies[4] - latencies[3] > 0.05
    assert latencies[11] - latencies[3] > 0.15


def test_a_crowd_makes_a_collapsing_server_slower() -> None:
    script = Script(slots=64, tokens_per_s=100, collapse_above=4, lengths="equal", answer_tokens=10)
    with serving(script) as server:
        began = time.monotonic()
        post_all(server, ["a", "b", "c", "d"])
        calm = time.monotonic() - began
        post_all(server, [f"p {i}" for i in range(8)])
        crowded = time.monotonic() - began - calm
    assert crowded > 2.5 * calm, "the last of eight is four times slower"
    assert crowded < 1.5


def test_lengths_vary_as_they_are_told_to() -> None:
    lengths = [lognormal(f"{i}".encode(), 100, 1.0) for i in range(5000)]
    assert sum(lengths) / 5000 == pytest.approx(100, rel=0.1)
    assert sum(length > 310 for length in lengths) / 5000 == pytest.approx(0.05, abs=0.02)
    script = Script(lengths="lognormal", answer_tokens=40, length_sigma=1.2)
    with serving(script) as server:
        usages = [post(server, f"p {i}", max_tokens=100)[1] for i in range(40)]
        again = post(server, "p 0", max_tokens=100)[1]
    counts = [answer["usage"]["completion_tokens"] for answer in usages]
    reasons = [answer["choices"][0]["finish_reason"] for answer in usages]
    assert counts[0] == again["usage"]["completion_tokens"]
    assert min(counts) < 15
    assert max(counts) == 100
    assert {
        count == 100 for count, why in zip(counts, reasons, strict=True) if why == "length"
    } == {True}


def test_variants_are_built_once_and_billed_alike() -> None:
    with serving(Script(variants=3, lengths="equal", answer_tokens=5)) as server:
        answers = [post(server, f"p {i}", logprobs=True, top_logprobs=2)[1] for i in range(20)]
        stats = server.stats()
    assert len({json.dumps(answer) for answer in answers}) == 3
    assert stats["completion_tokens"] == 100


def test_an_answer_whose_client_left_is_billed_on_request() -> None:
    for bill in (False, True):
        with serving(Script(latency_ms=3000, bill_cancelled=bill)) as server:
            request = urllib.request.Request(
                f"{server.base_url}/chat/completions",
                json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}]}).encode(),
            )
            with pytest.raises(TimeoutError):
                urllib.request.urlopen(request, timeout=0.2)
            while server.stats()["in_flight"]:
                time.sleep(0.01)
            stats = server.stats()
        assert stats["cancelled"] == 1
        assert (stats["completion_tokens"] > 0) == bill
        assert stats["billed_requests"] == bill


def test_every_response_has_an_id_that_is_in_the_log() -> None:
    with serving() as server:
        for number, prompt in enumerate(["a", "[[500]]", "[[429]]", "[[html]]"]):
            assert post_headers(server, prompt)[1]["x-request-id"] == f"req-{number}"
            assert server.log()[number]["number"] == number


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no cores to choose from")
def test_it_runs_on_the_core_that_it_is_told() -> None:
    core = min(os.sched_getaffinity(0))
    with spawned("--cpu", str(core), "--slots", "2", "--tpm-rule", "max_tokens") as server:
        assert post(server, "hi")[0] == 200
