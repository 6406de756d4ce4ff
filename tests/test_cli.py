"""What a user meets when something is wrong: one sentence, an exit code, no traceback."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from tests.loopback import Script, serving
from tests.runs import corpusgen, remote, succeeded, write_config, write_prompts


def sentence(*arguments: str | Path, code: int, cwd: Path | None = None) -> str:
    """Run a command that must fail; return its one sentence."""
    done = corpusgen(*arguments, cwd=cwd)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("corpusgen: ")
    assert last.endswith((".", "`", "?"))
    return last.removeprefix("corpusgen: ")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_prompts(tmp_path / "prompts.jsonl", ["one", "two"])
    return write_config(tmp_path)


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("sampling.temprature=1", 2, ["sampling.temprature", "temperature"]),
        ("sampling.temperature=hot", 2, ["sampling.temperature"]),
        ("teacher.kind=vlm", 2, ["teacher.kind", "vlm", "llama_cpp"]),
        ("teacher={kind: openai, model: m, endpoints: []}", 2, ["teacher.endpoints"]),
        ("teacher={kind: openai, model: m, endpoints: [{base_url: x}]}", 2, ["base_url"]),
        (
            "teacher={kind: openai, model: m, endpoints: [{api_key_env: NO_SUCH_KEY}]}",
            2,
            ["NO_SUCH_KEY"],
        ),
        ("teacher={kind: llama_cpp, model: none.gguf}", 1, ["teacher.model", "none.gguf"]),
        ("teacher={kind: plugin, plugin: lama_cpp, model: x}", 2, ["lama_cpp", "llama_cpp"]),
        ("teacher.model=${NO_SUCH_VARIABLE}", 2, ["teacher.model", "NO_SUCH_VARIABLE"]),
        ("sampling.top_logprobs=99999", 2, ["sampling.top_logprobs", "32000"]),
        ("prompts.0.path=none.jsonl", 1, ["none.jsonl"]),
        ("prompts.0.path=*.parquet", 1, ["*.parquet"]),
        ("prompts.0.template={{ nothing }}", 1, ["nothing"]),
        ("prompts.0.template={% if %}", 2, ["template"]),
        ("prompts.1={path: prompts.jsonl}", 2, ["prompts"]),
        ("curate.filters=[refusals]", 2, ["refusals", "refusal"]),
        ("curate.filters=[{length: {min_token: 4}}]", 2, ["min_token", "min_tokens"]),
        ("export=[{format: mesages}]", 2, ["mesages", "messages"]),
        ("generate.budget_usd=1", 0, []),
        ("out=s3://bucket/corpus", 2, ["out", "s3://bucket/corpus"]),
        ("out=/proc/nothing/here", 1, ["/proc/nothing/here"]),
        ("nothing", 2, ["--set nothing", "key=value"]),
    ],
)
def test_a_wrong_key_is_named(config: Path, override: str, code: int, words: list[str]) -> None:
    if code == 0:
        succeeded(corpusgen("run", config, "--set", override))
        return
    told = sentence("run", config, "--set", override, code=code)
    for word in words:
        assert word in told


def test_wrong_curation_and_export_stop_before_anything_is_asked(config: Path) -> None:
    for override in ("curate.filters=[refusals]", "export=[{format: mesages}]"):
        sentence("run", config, "--set", override, code=2)
        assert not (config.parent / "out").exists()


def test_a_budget_without_a_price_or_a_limit_is_refused(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one"])
    teacher = remote("http://127.0.0.1:1/v1")
    config = write_config(tmp_path, teacher=teacher, generate={"budget_usd": 1})
    assert "teacher.price" in sentence("run", config, code=2)
    price = "teacher.price={input_per_mtok: 1, output_per_mtok: 2}"
    arguments = ("run", config, "--set", price, "--set", "sampling.max_tokens=null")
    assert "sampling.max_tokens" in sentence(*arguments, code=2)


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert "corpusgen init" in sentence("run", tmp_path / "none.yaml", code=2)
    for command in ("verify", "ledger", "status", "show"):
        assert "no corpus" in sentence(command, tmp_path / "none", code=1)
    for command in ("curate", "export", "report"):
        assert "no corpus" in sentence(command, write_config(tmp_path), code=1)


def test_an_out_that_holds_other_things_is_refused(config: Path) -> None:
    out = config.parent / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    assert "is not empty" in sentence("run", config, code=1)
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


def test_an_out_that_is_a_file_is_refused(config: Path) -> None:
    (config.parent / "out").write_text("a file")
    assert str(config.parent / "out") in sentence("run", config, code=1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_out_that_cannot_be_written_is_refused(config: Path) -> None:
    out = config.parent / "out"
    out.mkdir(mode=0o500)
    assert "out" in sentence("run", config, code=1)


def test_a_corpus_of_a_newer_format_is_refused(config: Path) -> None:
    succeeded(corpusgen("run", config))
    path = config.parent / "out/corpus.json"
    facts = json.loads(path.read_bytes()) | {"format_version": 2}
    path.write_text(json.dumps(facts))
    for command in (("run", config), ("verify", config.parent / "out")):
        told = sentence(*command, code=1)
        assert "format 2" in told
        assert "newer" in told


def test_an_endpoint_that_is_not_there_is_named(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(60)])
    retry = {"max_attempts": 2, "first_wait_s": 0.01}
    teacher = remote(f"http://127.0.0.1:{port}/v1")
    config = write_config(tmp_path, teacher=teacher, generate={"retry": retry})
    told = sentence("run", config, code=1)
    assert f"127.0.0.1:{port}" in told
    assert "no endpoint of the teacher answers" in told


def test_an_endpoint_without_logprobs_stops_the_run(tmp_path: Path) -> None:
    answer = {
        "model": "m",
        "choices": [{"message": {"content": "hello"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    prompts = [f"{i} [[raw]]{json.dumps(answer)}" for i in range(300)]
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    with serving(Script()) as server:
        teacher = remote(server.base_url, endpoint={"max_concurrency": 4})
        config = write_config(tmp_path, teacher=teacher, sampling={"top_logprobs": 5})
        told = sentence("run", config, code=1)
        assert len(server.log()) < 20
    assert "sampling.top_logprobs is 5" in told


def test_help_and_version_need_no_configuration() -> None:
    assert "Exit codes: 0 complete" in succeeded(corpusgen("--help"))
    assert succeeded(corpusgen("--version")).startswith("corpusgen, version ")
    assert "llama_cpp" in succeeded(corpusgen("teachers"))


def test_usage_mistakes_exit_2() -> None:
    for arguments in (["run"], ["runn"], ["run", "x.yaml", "--limit", "0"], ["show"]):
        done = corpusgen(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_json_errors_are_json(tmp_path: Path) -> None:
    done = corpusgen("run", tmp_path / "none.yaml", "--json")
    assert json.loads(done.stdout)["event"] == "error"
    assert json.loads(done.stdout)["exit_code"] == done.returncode == 2


def test_init_writes_a_configuration_that_plans(tmp_path: Path) -> None:
    output = succeeded(corpusgen("init", "a/my.yaml", cwd=tmp_path))
    assert "corpusgen run a/my.yaml" in output
    arguments = ("plan", "a/my.yaml", "--set", "teacher={kind: fake}")
    assert "3 of 3 samples" in succeeded(corpusgen(*arguments, cwd=tmp_path))
    assert "exists already" in sentence("init", "a/my.yaml", code=2, cwd=tmp_path)
    succeeded(corpusgen("init", "a/my.yaml", "--force", cwd=tmp_path))


def test_quiet_says_nothing_but_the_result(config: Path) -> None:
    done = corpusgen("run", config, "-q")
    assert succeeded(done).startswith("corpus ")
    assert done.stderr == ""


def test_a_closed_pipe_is_no_error(config: Path) -> None:
    succeeded(corpusgen("run", config))
    done = os.system(
        f"python -m corpusgen show {config.parent / 'out'} --json | head -c 1 > /dev/null"
    )
    assert done == 0
