"""The documentation against the code: keys, defaults, columns, messages, links and examples."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corpusgen import config, events, lease, schema
from corpusgen.batching.submissions import Item, Place, Submission
from corpusgen.cli.reference import reference
from corpusgen.commits import Commit, PartFile
from corpusgen.config_file import parse_config
from corpusgen.corpus import LAYOUT_KEYS, Facts
from corpusgen.curate import empty, finish_reason, length, refusal, repetition
from corpusgen.curate.run import CurationResult, ReasonCount
from corpusgen.errors import ATTEMPT_OUTCOMES, FAILURE_REASONS, ExitCode
from corpusgen.export.run import Column, ExportResult
from corpusgen.export.shards import DatasetFile
from corpusgen.pipeline import Result
from corpusgen.plan.segments import Planning, Run, SetCounts
from corpusgen.types import Sampling
from tests.loopback import serving
from tests.runs import corpusgen, remote, succeeded, write_config, write_prompts

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
KINDS = {"identity", "layout", "growth", "operational"}

SECTIONS: dict[str, list[type[msgspec.Struct]]] = {
    "The whole file": [config.Config],
    "prompts": [config.PromptSet],
    "prompts.columns": [config.Columns],
    "kind: fake": [config.FakeTeacher],
    "kind: llama_cpp": [config.LlamaCppTeacher],
    "kind: openai": [config.OpenAITeacher],
    "kind: openai_batch": [config.OpenAIBatchTeacher],
    "endpoints": [config.OpenAIEndpoint],
    "kind: plugin": [config.PluginTeacher],
    "price": [config.Price],
    "gpu": [config.Gpu],
    "terms": [config.Terms],
    "sampling": [config.RunSampling, Sampling],
    "generate": [config.Generate],
    "generate.retry": [config.Retry],
    "curate": [config.Curate],
    "curate.dedup": [config.Dedup],
    "export": [config.Export],
    "split": [config.Split],
    "card": [config.Card],
}
"""The headings of docs/configuration.md and the structs whose keys stand below them."""

COLUMN_SECTIONS = {
    "generations": schema.GENERATIONS,
    "failures": schema.FAILURES,
    "attempts": schema.ATTEMPTS,
    "verdicts": schema.VERDICTS,
    "plan": schema.PLAN,
}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """Return what stands under a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", text, re.M | re.S)
    assert found, f"there is no heading {heading}"
    return found[1]


def tables(text: str) -> list[list[dict[str, str]]]:
    """Return the tables of a text, each row by column name."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        head, _, *rows = [
            [cell.strip() for cell in line.strip("|").split(" |")]
            for line in re.sub(r"^\| ", "", block, flags=re.M).splitlines()
        ]
        found.append([dict(zip(head, row, strict=True)) for row in rows])
    return found


def keyed(table: list[dict[str, str]], column: str) -> dict[str, dict[str, str]]:
    return {row[column].strip("`"): row for row in table}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


# Configuration


def test_every_struct_of_the_configuration_has_a_section() -> None:
    structs = {
        kind
        for kind in vars(config).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and kind.__struct_fields__
    }
    assert structs == {kind for kinds in SECTIONS.values() for kind in kinds}


@pytest.mark.parametrize("heading", SECTIONS)
def test_every_key_has_a_row_with_its_default_and_kind(heading: str) -> None:
    rows = keyed(tables(section(page("configuration.md"), heading))[0], "key")
    fields = {f.name: f for kind in SECTIONS[heading] for f in msgspec.structs.fields(kind)}
    assert rows.keys() == fields.keys()
    for name, row in rows.items():
        assert row["type"]
        assert row["kind"] in KINDS
        assert row["default"] in _defaults(fields[name]), name


def _defaults(field: Any) -> set[str]:
    """Return how a default may be written."""
    if field.default_factory is not msgspec.NODEFAULT:
        value = field.default_factory()
    elif field.default is msgspec.NODEFAULT:
        return {"required"}
    else:
        value = field.default
    if value is None:
        return {"none"}
    if isinstance(value, msgspec.Struct):
        return {"all unset", "see there"}
    plain = msgspec.to_builtins(value)
    if isinstance(plain, str):
        return {f"`{plain}`"}
    return {f"`{_flow(plain)}`"}


def _flow(value: Any) -> str:
    """Return a value as YAML's flow style writes it."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return value if isinstance(value, str) else json.dumps(value)


def test_the_layout_keys_are_those_of_the_code() -> None:
    text = page("configuration.md")
    found = {
        f"{heading}.{key}"
        for heading in SECTIONS
        for key, row in keyed(tables(section(text, heading))[0], "key").items()
        if row["kind"] == "layout"
    }
    assert found == set(LAYOUT_KEYS.values())


@pytest.mark.parametrize(
    "options",
    [
        finish_reason.FinishReasonOptions,
        length.LengthOptions,
        refusal.RefusalOptions,
        repetition.RepetitionOptions,
    ],
)
def test_every_option_of_a_filter_has_a_row_with_its_default(
    options: type[msgspec.Struct],
) -> None:
    fields = {f.name: f for f in msgspec.structs.fields(options)}
    found = [
        keyed(table, "option")
        for table in tables(section(page("configuration.md"), "The filters' options"))
    ]
    (rows,) = [table for table in found if table.keys() == fields.keys()]
    for name, row in rows.items():
        assert row["default"] in _defaults(fields[name]), name


def test_the_filter_without_options_has_none() -> None:
    assert not empty.EmptyOptions.__struct_fields__


def yaml_blocks() -> list[Any]:
    return [
        pytest.param(block, id=f"{path.name}-{number}")
        for path in PAGES
        for number, block in enumerate(blocks(path.read_text(encoding="utf-8"), "yaml"))
    ]


@pytest.mark.parametrize("block", yaml_blocks())
def test_every_yaml_block_is_a_valid_configuration(block: str) -> None:
    parse_config(block, environment={"AZURE_KEY": "k"})


# The corpus on disk


@pytest.mark.parametrize("heading", COLUMN_SECTIONS)
def test_every_column_has_a_row_with_its_type_and_nulls(heading: str) -> None:
    rows = keyed(tables(section(page("run-directory.md"), heading))[0], "column")
    _check_columns(rows, COLUMN_SECTIONS[heading])


def test_every_column_of_the_plans_changes_has_a_row() -> None:
    rows = keyed(tables(section(page("run-directory.md"), "plan"))[1], "column")
    _check_columns(rows, schema.PLAN_CHANGES)


def test_every_field_of_a_message_has_a_row() -> None:
    found = tables(section(page("run-directory.md"), "generations"))[1]
    rows = keyed(found, "field")
    assert list(rows) == [field.name for field in schema.MESSAGE]
    assert {row["type"] for row in rows.values()} == {"string"}


def _check_columns(rows: dict[str, dict[str, str]], columns: pa.Schema) -> None:
    assert list(rows) == columns.names
    for field in columns:
        row = rows[field.name]
        assert row["type"] == _type(field.type), field.name
        assert row["null means"], field.name
        assert (row["null means"] == "never") == (not field.nullable), field.name


def _type(kind: pa.DataType) -> str:
    """Return a type as the page writes it."""
    if kind.equals(schema.MESSAGE):
        return "message"
    if pa.types.is_list(kind):
        return f"list<{_type(kind.value_type)}>"
    if pa.types.is_dictionary(kind):
        return f"dictionary<{_type(kind.value_type)}>"
    if pa.types.is_timestamp(kind):
        return f"timestamp[{kind.unit}, {kind.tz}]"
    return str(kind)


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("`corpus.json`", [Facts]),
        ("`plan/000001.json`", [Planning, Run, SetCounts]),
        ("`commits/00000-000.json`", [Commit, PartFile]),
        ("`curation/<digest>/curation.json`", [CurationResult, ReasonCount]),
        ("`dataset/<name>/export.json`", [ExportResult, DatasetFile, Column]),
        ("`batches/<submission>.json`", [Submission, Item]),
        ("`batches/<submission>.place.json`", [Place]),
        ("`lease.json`", [lease.Owner]),
    ],
)
def test_every_key_of_a_json_file_is_named(name: str, kinds: list[type[msgspec.Struct]]) -> None:
    text = section(page("run-directory.md"), "JSON files")
    paragraph = next(part for part in text.split("\n\n") if part.strip().startswith(name))
    for kind in kinds:
        for field in kind.__struct_fields__:
            assert f"`{field}`" in paragraph, field


def test_every_reason_and_outcome_is_named() -> None:
    text = page("run-directory.md")
    assert list(keyed(tables(section(text, "failures"))[1], "reason")) == list(FAILURE_REASONS)
    attempts = section(text, "attempts")
    for outcome in set(ATTEMPT_OUTCOMES) - set(FAILURE_REASONS):
        assert f"`{outcome}`" in attempts, outcome


def test_the_metadata_of_a_real_file_is_named(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one"])
    path = write_config(tmp_path, sampling={"temperature": 0.5, "top_logprobs": 2})
    succeeded(corpusgen("run", path))
    metadata: set[str] = set()
    for kind in ("generations", "attempts"):
        (file,) = (tmp_path / "out" / kind).glob("*.parquet")
        metadata |= {key.decode() for key in pq.ParquetFile(file).schema_arrow.metadata}
    named = keyed(tables(section(page("run-directory.md"), "File metadata"))[0], "key")
    assert metadata == named.keys()


def test_every_entry_of_a_real_corpus_is_in_the_layout(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one", {"nothing": "here"}])
    path = write_config(tmp_path)
    succeeded(corpusgen("run", path, "--skip-bad-prompts"), code=3)
    drawn = blocks(page("run-directory.md"), "text")[0]
    for entry in (tmp_path / "out").iterdir():
        assert re.search(rf"^  {re.escape(entry.name)}\b", drawn, re.M), entry.name


def test_the_pages_examples_of_reading_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pandas")
    write_prompts(tmp_path / "prompts.jsonl", ["one", "two"])
    out = tmp_path / "runs/quickstart"
    succeeded(corpusgen("run", write_config(tmp_path, out=str(out))))
    monkeypatch.chdir(tmp_path)
    for block in blocks(page("run-directory.md"), "python"):
        exec(compile(block, "run-directory.md", "exec"), {})
    assert "keep" in capsys.readouterr().out


# The commands


def test_the_reference_of_the_commands_is_current() -> None:
    assert page("cli.md") == reference(), "run `make docs`"


def test_the_exit_codes_are_those_of_the_code() -> None:
    rows = keyed(tables(section(page("how-to/batch-jobs.md"), "Exit codes"))[0], "code")
    assert set(rows) == {str(int(code)) for code in ExitCode}


def test_every_event_is_named() -> None:
    text = section(page("how-to/batch-jobs.md"), "For machines: --json")
    for kind in vars(events).values():
        if isinstance(kind, type) and issubclass(kind, events.Event) and kind is not events.Event:
            assert f"`{kind.__struct_config__.tag}`" in text


def test_every_attribute_of_a_result_is_named() -> None:
    text = section(page("how-to/python-api.md"), "run")
    for field in Result.__struct_fields__:
        assert f"`{field}`" in text, field


# Messages


LEAST = 13
"""Characters that a message must share with a text of the code."""


def patterns() -> list[re.Pattern[str]]:
    """Return every sentence of the code, with anything in the place of its values."""
    found = []
    for path in (ROOT / "corpusgen").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                values = node.values
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                values = [node]
            else:
                continue
            texts = [str(v.value) if isinstance(v, ast.Constant) else None for v in values]
            literal = "".join(text for text in texts if text is not None)
            if len(literal) >= LEAST and " " in literal.strip():
                parts = [".*?" if text is None else re.escape(text) for text in texts]
                found.append(re.compile("".join(parts).removesuffix("\\ ")))
    return found


FOREIGN = ("Error: Invalid value for '--retry-failed'", "sample 0dd09160: rejected: endpoint")
"""What click and servers say, not we."""


def test_every_message_of_the_troubleshooting_stands_in_the_code() -> None:
    known = patterns()
    messages = [
        line for block in blocks(page("troubleshooting.md"), "text") for line in block.splitlines()
    ]
    assert len(messages) > 40
    for message in messages:
        if not message.startswith(FOREIGN):
            assert any(pattern.search(message) for pattern in known), message


def test_real_mistakes_say_what_the_troubleshooting_quotes(tmp_path: Path) -> None:
    text = page("troubleshooting.md")
    write_prompts(tmp_path / "p.jsonl", ["What is 1+1?"])
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": ""}\n')
    (tmp_path / "arr.jsonl").write_text('[{"prompt": "x"}]\n')
    (tmp_path / "c.yaml").write_text("out: o1\nprompts: [{path: p.jsonl}]\nteacher: {kind: fake}\n")
    succeeded(corpusgen("run", "c.yaml", cwd=tmp_path))
    for override in (
        "sampling.temprature=1",
        "sampling.max_tokens=abc",
        "out=${NIXDA}",
        "teacher={kind: plugin, plugin: nix, model: m}",
        "curate.filters=[lenght]",
        "export=[{format: mesages}]",
        "prompts.0.path=q.jsonl",
        "prompts.0.path=bad.jsonl",
        "prompts.0.path=arr.jsonl",
        "sampling.temperature=0.5",
        "sampling.top_logprobs=5",
        "out=.",
        "teacher={kind: llama_cpp, model: nix.gguf}",
    ):
        done = corpusgen("run", "c.yaml", "--set", override, cwd=tmp_path)
        assert done.returncode in (1, 2)
        assert done.stderr.splitlines()[-1] in text.splitlines(), done.stderr


# Examples


def extending() -> str:
    return page("extending.md")


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, str]:
    """Install the page's package as pip would: modules, metadata, entry points."""
    site = tmp_path / "site"
    site.mkdir()
    for block in blocks(extending(), "python"):
        name, _, source = block.removeprefix("# ").partition("\n")
        (site / name).write_text(source, encoding="utf-8")
    project = tomllib.loads(blocks(extending(), "toml")[0])["project"]
    metadata = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    )
    (metadata / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{name} = {at}\n" for name, at in entries.items())
            for group, entries in project["entry-points"].items()
        )
    )
    return {"PYTHONPATH": str(site)}


def test_the_plugins_run_as_they_stand(tmp_path: Path, installed: dict[str, str]) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["What is 1+1?", "HELLO THERE, HOW ARE YOU?"])
    (tmp_path / "c.yaml").write_text(blocks(extending(), "yaml")[0])
    listed = succeeded(corpusgen("teachers", environment=installed))
    assert listed.strip() in extending()
    succeeded(corpusgen("run", "c.yaml", cwd=tmp_path, environment=installed))
    out = tmp_path / "runs/extended"
    lines = (out / "dataset/alpaca/jsonl/train-00000-of-00001.jsonl").read_text().splitlines()
    assert [json.loads(line)["output"] for line in lines] == ["> What is 1+1?"]
    dropped = succeeded(corpusgen("show", out, "--dropped", environment=installed))
    assert "dropped by shouting: mostly capitals" in dropped
    succeeded(corpusgen("verify", out, "--complete", environment=installed))


def test_the_plugins_refuse_options_that_they_do_not_know(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["What is 1+1?"])
    (tmp_path / "c.yaml").write_text(blocks(extending(), "yaml")[0])
    for override in ("teacher.options={prefx: a}", "curate.filters=[{shouting: {hihest: 1}}]"):
        done = corpusgen("run", "c.yaml", "--set", override, cwd=tmp_path, environment=installed)
        assert done.returncode == 2
        assert "unknown field" in done.stderr


def test_another_option_of_the_plugin_teacher_is_another_sample(
    tmp_path: Path, installed: dict[str, str]
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["What is 1+1?"])
    (tmp_path / "c.yaml").write_text(blocks(extending(), "yaml")[0])
    succeeded(corpusgen("run", "c.yaml", cwd=tmp_path, environment=installed))
    changed = ("run", "c.yaml", "--set", "teacher.options={prefix: '? '}")
    done = corpusgen(*changed, cwd=tmp_path, environment=installed)
    assert done.returncode == 1
    assert "teacher.template_args changed" in done.stderr


def test_the_python_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(300)])
    path = write_config(tmp_path, sampling={"max_tokens": 64, "top_logprobs": 3})
    shutil.copy(path, tmp_path / "my.yaml")
    succeeded(corpusgen("run", path, "--set", "out=runs/quickstart", "--limit", "9", cwd=tmp_path))
    monkeypatch.chdir(tmp_path)
    text = page("how-to/python-api.md")
    for block in blocks(text, "python"):
        exec(compile(block, "python-api.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "20 20" in printed
    assert blocks(text, "text")[0] in printed
    assert "9 kept generations" in printed
    assert "outside the top 3" in printed


def test_the_quickstarts_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one"])
    path = write_config(tmp_path, out="runs/quickstart", sampling={"top_logprobs": 3})
    succeeded(corpusgen("run", path, cwd=tmp_path))
    monkeypatch.chdir(tmp_path)
    for block in blocks(page("quickstart.md"), "python"):
        exec(compile(block, "quickstart.md", "exec"), {})


def test_the_prompts_page_plans_as_it_says(tmp_path: Path) -> None:
    text = page("how-to/prompts.md")
    rows = [
        '{"id": "sum-1", "question": "What is 17 + 25?", "answer": "42", "grade": 3}',
        '{"id": "sum-2", "question": "What is 8 * 7?", "answer": "56", "grade": 4}',
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(rows) + "\n")
    dialogues = re.findall(r'^\{"id": "d\d".*?\}(?:\]\})?$', text, re.M | re.S)
    assert len(dialogues) == 2
    lines = [json.dumps(json.loads(row)) for row in dialogues]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "texts.csv").write_text(
        'id,text,language\n1,"Guten Morgen,\nFrau Schmidt",German\n2,Bonjour,French\n'
    )
    (tmp_path / "prompts.yaml").write_text(blocks(text, "yaml")[1])
    done = corpusgen("plan", "prompts.yaml", cwd=tmp_path)
    assert "8 planned, 0 answered, 8 pending" in succeeded(done)
    shown = json.loads(succeeded(corpusgen("plan", "prompts.yaml", "--show", "1", cwd=tmp_path)))
    assert shown["request"]["messages"][0]["content"] in text
    succeeded(corpusgen("run", "prompts.yaml", cwd=tmp_path))
    with (tmp_path / "questions.jsonl").open("a") as file:
        file.write('{"id": "sum-3", "question": "What is 9 - 4?", "answer": "5"}\n')
    done = corpusgen("plan", "prompts.yaml", cwd=tmp_path)
    assert "planned: 10 samples, 2 of them new" in done.stderr


def test_the_batch_script_says_how_a_run_ended(tmp_path: Path) -> None:
    script = tmp_path / "corpus-job.sh"
    script.write_text(blocks(page("how-to/batch-jobs.md"), "bash")[0])
    script.chmod(0o755)
    write_prompts(tmp_path / "prompts.jsonl", ["one", "[[400]] two"])
    with serving() as server:
        whole = write_config(tmp_path)
        assert run_script(script, whole) == (0, "complete")
        failing = tmp_path / "failing.yaml"
        failing.write_bytes(
            msgspec.json.encode(
                json.loads(whole.read_bytes())
                | {"out": str(tmp_path / "failing"), "teacher": remote(server.base_url)}
            )
        )
        code, line = run_script(script, failing)
        assert code == 3
        assert line.startswith("finished; some samples failed: corpusgen show ")
    code, line = run_script(script, tmp_path / "nothing.yaml")
    assert code == 2
    assert '"event":"error"' in line


def run_script(script: Path, path: Path) -> tuple[int, str]:
    found = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", str(script), str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PATH": found},
        check=False,
    )
    return done.returncode, done.stdout.splitlines()[-1]


# Links and names


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        aimed = (path.parent / name).resolve() if name else path
        assert aimed.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", aimed.read_text(encoding="utf-8"), re.M)
            assert anchor in {_anchor(heading) for heading in headings}, target


def _anchor(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    kept = re.sub(r"[^\w\- ]", "", heading.lower())
    return kept.replace(" ", "-")


def test_the_map_of_modules_is_complete() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named: set[str] = set()
    for row in tables(section(text, "Where what lives"))[0]:
        named.update(re.findall(r"`([^`]+)`", row["module"]))
    code = ROOT / "corpusgen"
    found = {path.stem for path in code.glob("*.py") if not path.stem.startswith("__")}
    found |= {f"{path.parent.name}/" for path in code.glob("*/__init__.py")}
    assert named == found


def test_no_page_names_a_target_of_make_that_does_not_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in PAGES:
        for target in re.findall(r"^\$ make ([a-z]+)", path.read_text(encoding="utf-8"), re.M):
            assert re.search(rf"^{target}:", makefile, re.M), target
