from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.loopback import Running, Script, serving, spawned


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
