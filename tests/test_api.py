"""The Python entry points: `corpusgen.run` and `corpusgen.load`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import corpusgen
from corpusgen import CorpusgenError
from corpusgen.config import Config, FakeTeacher, PromptSet
from corpusgen.errors import ExitCode
from corpusgen.events import Event, Finished
from tests.runs import write_config, write_prompts


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    path = write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(6)])
    return {
        "out": str(tmp_path / "out"),
        "prompts": [{"path": str(path)}],
        "teacher": {"kind": "fake"},
        "sampling": {"top_logprobs": 3, "max_tokens": 16},
    }


def test_a_mapping_runs(settings: dict[str, Any]) -> None:
    result = corpusgen.run(settings)
    assert result.exit_code is ExitCode.COMPLETE
    assert (result.samples, result.generations, result.pending) == (6, 6, 0)
    assert result.report is not None
    assert result.report.exists()
    assert [path.name for path in result.datasets] == ["messages"]


def test_a_file_runs_with_overrides_and_an_observer(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one", "two"])
    events: list[Event] = []
    config = write_config(tmp_path)
    result = corpusgen.run(config, overrides=["prompts.0.n=3"], limit=4, observer=events.append)
    assert (result.generations, result.pending) == (4, 2)
    assert isinstance(events[-1], Finished)


def test_a_config_object_runs(tmp_path: Path) -> None:
    path = write_prompts(tmp_path / "prompts.jsonl", ["one"])
    config = Config(
        out=str(tmp_path / "out"), prompts=[PromptSet(path=str(path))], teacher=FakeTeacher()
    )
    assert corpusgen.run(config).generations == 1


def test_it_runs_inside_a_running_loop_as_in_a_notebook(settings: dict[str, Any]) -> None:
    async def cell() -> int:
        return corpusgen.run(settings).generations

    assert asyncio.run(cell()) == 6


def test_load_is_lazy_and_typed(settings: dict[str, Any]) -> None:
    corpus = corpusgen.load(corpusgen.run(settings).corpus)
    table = corpus.generations().to_table(columns=["text", "topk_ids", "topk_logprobs"])
    assert table.num_rows == 6
    assert table.schema.field("topk_logprobs").type == pa.list_(pa.list_(pa.float32()))
    assert corpus.verdicts().count_rows() == 6
    assert corpus.attempts().count_rows() == 6
    assert corpus.failures().count_rows() == 0


def test_mistakes_are_one_exception_class(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CorpusgenError, match="no corpus"):
        corpusgen.load(tmp_path / "nothing")
    with pytest.raises(CorpusgenError, match="temprature"):
        corpusgen.run({**settings, "sampling": {"temprature": 1}})


def test_the_package_offers_what_it_lists() -> None:
    for name in corpusgen.__all__:
        assert getattr(corpusgen, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        corpusgen.nothing  # noqa: B018


def test_importing_the_package_is_cheap() -> None:
    heavy = "pandas", "datasets", "aiohttp", "openai", "pyarrow", "xllamacpp"
    code = f"import sys, corpusgen; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
