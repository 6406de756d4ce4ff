"""Every claim of the README, run."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import pytest

import corpusgen as package
from corpusgen.config_file import parse_config
from tests.loopback import Script, serving
from tests.runs import corpusgen, succeeded

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)[number]


def commands(number: int) -> list[list[str]]:
    lines = [line for line in block("console", number).splitlines() if line.startswith("$ ")]
    return [line[2:].split("#")[0].split() for line in lines]


def test_the_quickstart_is_the_makefiles_and_names_its_files() -> None:
    assert commands(0) == [["make", "quickstart"]]
    makefile = (ROOT / "Makefile").read_text()
    assert "corpusgen run prompts/quickstart.yaml" in makefile
    for path in re.findall(r"runs/quickstart\S*", block("console")):
        assert path.startswith("runs/quickstart")


def test_init_plan_pilot_run_as_written(tmp_path: Path) -> None:
    for name, *arguments in commands(1):
        assert name == "corpusgen"
        if arguments[0] != "init":
            arguments += ["--set", "teacher={kind: fake}"]
        output = succeeded(corpusgen(*arguments, cwd=tmp_path))
        assert output
    assert "3 planned, 3 answered" in output
    assert (tmp_path / "my.yaml").exists()
    assert (tmp_path / "prompts.jsonl").exists()


def test_the_yaml_block_is_a_valid_configuration() -> None:
    config = parse_config(block("yaml")).config
    assert config.generate.budget_usd == 5
    assert config.prompts[0].n == 4


def test_the_yaml_block_runs_against_an_endpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n{"prompt": "Good-bye"}\n')
    (tmp_path / "my.yaml").write_text(block("yaml"))
    with serving(Script()) as server:
        overrides = [f"teacher.endpoints.0.base_url={server.base_url}"]
        overrides.append("teacher.price={input_per_mtok: '0.15', output_per_mtok: '0.60'}")
        sets = [word for override in overrides for word in ("--set", override)]
        done = corpusgen("run", "my.yaml", *sets, environment={"OPENAI_API_KEY": "test-key"})
    assert "8 planned, 8 answered" in succeeded(done)
    corpus = package.load("runs/mine")
    columns = ["text", "completion_token_ids", "topk_logprobs"]
    assert corpus.generations().to_table(columns=columns).num_rows == 8
    stored = "".join(p.read_text(errors="replace") for p in Path("runs").rglob("*.yaml"))
    assert "test-key" not in stored


def test_the_python_block_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
    (tmp_path / "my.yaml").write_text(
        "out: runs/mine\nprompts: [{path: prompts.jsonl}]\nteacher: {kind: fake}\n"
        "sampling: {top_logprobs: 2}\n"
    )
    exec(compile(textwrap.dedent(block("python")), "README.md", "exec"), {})
    assert package.load("runs/mine").rows("generations") == 1


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_the_inspecting_commands_exist_and_read(tmp_path: Path) -> None:
    succeeded(corpusgen("init", cwd=tmp_path))
    arguments = ("run", "corpusgen.yaml", "--set", "teacher={kind: fake}")
    succeeded(corpusgen(*arguments, cwd=tmp_path))
    for command in ("status", "show", "ledger", "verify"):
        assert succeeded(corpusgen(command, "runs/first", cwd=tmp_path))
    status = json.loads(succeeded(corpusgen("status", "runs/first", "--json", cwd=tmp_path)))
    assert status["pending"] == 0
