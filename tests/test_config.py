"""Every mistake in a configuration is one sentence that names the file and the key."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from ruamel.yaml import YAML

from corpusgen import config as model
from corpusgen.config_file import LoadedConfig, json_schema, parse_config, read_config
from corpusgen.errors import ConfigError, ExitCode
from corpusgen.types import Sampling
from tests.runs import corpusgen

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = "out: o\nprompts: [{path: p.jsonl}]\n"
BASE = PROMPTS + "teacher: {kind: fake}\n"
REMOTE = PROMPTS + "teacher: {kind: openai, model: m, endpoints: [{}]}\n"


def parsed(text: str, *overrides: str, **environment: str) -> LoadedConfig:
    return parse_config(text, overrides, environment, source="c.yaml")


def refusal(text: str, *overrides: str, **environment: str) -> str:
    """Return the sentence with which a configuration is refused."""
    with pytest.raises(ConfigError) as refused:
        parsed(text, *overrides, **environment)
    sentence = str(refused.value)
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    assert refused.value.exit_code is ExitCode.USAGE
    assert refused.value.__cause__ is None
    return sentence


@pytest.mark.parametrize(
    ("added", "sentence"),
    [
        (
            "sampling: {temprature: 1}",
            "unknown key sampling.temprature. Did you mean temperature?",
        ),
        (
            "generate: {retry: {max_attempt: 3}}",
            "unknown key generate.retry.max_attempt. Did you mean max_attempts?",
        ),
        (
            "export: [{format: messages}, {format: a, json: true}]",
            "unknown key export[1].json. Did you mean jsonl?",
        ),
        (
            "split: {zzz: 1}",
            "unknown key split.zzz. Known keys here: validation, by, seed.",
        ),
        ("smapling: {}", "unknown key smapling. Did you mean sampling?"),
        ("sampling: {temperature: hot}", "sampling.temperature must be a number, but it is text."),
        ("sampling: {top_p: '0.5'}", "sampling.top_p must be a number, but it is text."),
        ("sampling: {stop: END}", "sampling.stop must be a list, but it is text."),
        ("sampling: {stop: [1]}", "sampling.stop[0] must be text, but it is a whole number."),
        (
            "sampling: {seed: 1.5}",
            "sampling.seed must be a whole number, but it is a number with a fraction.",
        ),
        (
            "sampling: {seed: true}",
            "sampling.seed must be a whole number, but it is true or false.",
        ),
        ("sampling: {seed: 2024-01-01}", "sampling.seed must be a whole number, but it is a date."),
        ("sampling: {temperature: .nan}", "sampling.temperature must be a finite number."),
        (
            "sampling: {extra_body: {a: [-.inf]}}",
            "sampling.extra_body.a[0] must be a finite number.",
        ),
        ("sampling: 3", "sampling must be a mapping, but it is a whole number."),
        ("sampling:", "sampling must be a mapping, but it is empty."),
        ("sampling: {1: 2}", "sampling: the key 1 must be text."),
        ("1: x", "the file: the key 1 must be text."),
        ("sampling: {extra_body: {1: 2}}", "sampling.extra_body: the key 1 must be text."),
        (
            "generate: {partition_size: 0}",
            "generate.partition_size must be a whole number of at least 1.",
        ),
        (
            "generate: {partition_size: 100001}",
            "generate.partition_size must be a whole number of at most 100000.",
        ),
        (
            "generate: {max_failure_rate: 1.5}",
            "generate.max_failure_rate must be a number of at most 1.",
        ),
        (
            "generate: {retry: {max_seconds: 0}}",
            "generate.retry.max_seconds must be a number of more than 0.",
        ),
        (
            "generate: {budget_usd: five}",
            "generate.budget_usd must be an amount of dollars, such as 0.15.",
        ),
        ("generate: {budget_usd: -1}", "generate.budget_usd must be a number of at least 0."),
        (
            "generate: {skip_bad_prompts: yes}",
            "generate.skip_bad_prompts must be true or false, but it is text.",
        ),
        (
            "generate: {logprob_precision: float8}",
            "generate.logprob_precision: 'float8' is not known; use one of float32, float16.",
        ),
        (
            "curate: {dedup: {exact: maybe}}",
            "curate.dedup.exact: 'maybe' is not known; "
            "use one of true, false, pair, response, prompt.",
        ),
        (
            "curate: {filters: [3]}",
            "curate.filters[0] must be text or a mapping, but it is a whole number.",
        ),
        (
            "curate: {filters: [{length: 3}]}",
            "curate.filters[0].length must be a mapping, but it is a whole number.",
        ),
        ("export: [{}]", "export[0].format is missing; set it."),
        (
            "export: [{format: a b}]",
            "export[0].format must be a name of letters, digits, '.', '_' and '-' that begins with "
            "a letter or digit.",
        ),
        (
            "export: [{format: messages}, {format: messages, jsonl: true}]",
            "export: two exports are named messages; give one of them a name.",
        ),
        (
            "export: [{format: a, name: x}, {format: x}]",
            "export: two exports are named x; give one of them a name.",
        ),
        (
            "teachers: {a: {kind: fake}}",
            "set either teacher or teachers, and only one of them.",
        ),
    ],
)
def test_a_mistake_in_one_key(added: str, sentence: str) -> None:
    assert refusal(BASE + added) == f"c.yaml: {sentence}"


KINDS = "fake, llama_cpp, openai, openai_batch, plugin"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("prompts: [{path: p}]\nteacher: {kind: fake}", "out is missing; set it."),
        ("out: o\nteacher: {kind: fake}", "prompts is missing; set it."),
        (PROMPTS, "set either teacher or teachers, and only one of them."),
        (PROMPTS + "teacher: fake", "teacher must be a mapping, but it is text."),
        (PROMPTS + "teacher: {model: m}", f"teacher.kind is missing; set it to one of {KINDS}."),
        (
            PROMPTS + "teacher: {kind: gpt}",
            f"teacher.kind: 'gpt' is not known; use one of {KINDS}.",
        ),
        (PROMPTS + "teacher: {kind: openai, model: m}", "teacher.endpoints is missing; set it."),
        (
            PROMPTS + "teacher: {kind: openai, model: m, endpoints: []}",
            "teacher.endpoints must be a list with at least 1 entry.",
        ),
        (
            PROMPTS + "teacher: {kind: openai, model: m, endpoints: [{}, {base_ur: x}]}",
            "unknown key teacher.endpoints[1].base_ur. Did you mean base_url?",
        ),
        (
            PROMPTS + "teacher: {kind: openai, model: m, endpoints: [{headers: {X-A: 1}}]}",
            "teacher.endpoints[0].headers.X-A must be text, but it is a whole number.",
        ),
        (
            PROMPTS + "teacher: {kind: fake, price: {input_per_mtok: '1,5', output_per_mtok: 1}}",
            "teacher.price.input_per_mtok must be an amount of dollars, such as 0.15.",
        ),
        (
            PROMPTS + "teacher: {kind: fake, kindd: 1}",
            "unknown key teacher.kindd. Did you mean kind?",
        ),
        (
            PROMPTS + "teachers: {first: {kind: fake}, second: {kind: fake, modl: x}}",
            "unknown key teachers.second.modl. Did you mean model?",
        ),
        (
            PROMPTS + "teachers: {first: {kind: fake}, second: {kind: nope}}",
            f"teachers.second.kind: 'nope' is not known; use one of {KINDS}.",
        ),
        (
            PROMPTS + "teachers: {first: {kind: fake, answer_tokens: 0}}",
            "teachers.first.answer_tokens must be a whole number of at least 1.",
        ),
        (
            PROMPTS + "teachers: {a b: {kind: fake}}",
            "teachers: the key 'a b' must be a name of letters, digits, '.', '_' and '-' that "
            "begins with a letter or digit.",
        ),
        (
            PROMPTS + "teachers: {a: {kind: fake}, b: {kind: fake}}",
            "prompts[0].teacher is missing; name one of a, b.",
        ),
        (
            "out: o\nprompts: [{path: p, teacher: c}]\n"
            "teachers: {a: {kind: fake}, b: {kind: fake}}",
            "prompts[0].teacher: there is no teacher c; use one of a, b.",
        ),
        (
            "out: o\nprompts: [{path: p, teacher: c}]\nteacher: {kind: fake}",
            "prompts[0].teacher: there is no teacher c; use one of fake-1.",
        ),
        (
            "out: o\nprompts: []\nteacher: {kind: fake}",
            "prompts must be a list with at least 1 entry.",
        ),
        (
            "out: o\nprompts: {path: p}\nteacher: {kind: fake}",
            "prompts must be a list, but it is a mapping.",
        ),
        (
            "out: o\nprompts: [p.jsonl]\nteacher: {kind: fake}",
            "prompts[0] must be a mapping, but it is text.",
        ),
        (
            "out: o\nprompts: [{path: p}, {path: q, n: 0}]\nteacher: {kind: fake}",
            "prompts[1].n must be a whole number of at least 1.",
        ),
        (
            "out: o\nprompts: [{path: p, columns: {promt: x}}]\nteacher: {kind: fake}",
            "unknown key prompts[0].columns.promt. Did you mean prompt?",
        ),
        (
            "out: o\nprompts: [{path: p, sampling: {top_logprobs: 3}}]\nteacher: {kind: fake}",
            "unknown key prompts[0].sampling.top_logprobs. Did you mean top_p?",
        ),
        (
            "out: o\nprompts: [{path: p, format: xls}]\nteacher: {kind: fake}",
            "prompts[0].format: 'xls' is not known; "
            "use one of jsonl, json, csv, parquet, datasets.",
        ),
        (
            "out: o\nprompts: [{path: p, dataset: d}]\nteacher: {kind: fake}",
            "prompts[0]: set either path or dataset, and only one of them.",
        ),
        (
            "out: o\nprompts: [{n: 2}]\nteacher: {kind: fake}",
            "prompts[0]: set either path or dataset, and only one of them.",
        ),
        (
            "out: o\nprompts: [{path: a/p.jsonl}, {path: q}, {path: b/p.csv}]\n"
            "teacher: {kind: fake}",
            "prompts[2] and prompts[0] are both named p; give one of them another name.",
        ),
        ("", "must be a mapping of keys, such as `out: runs/first`."),
        ("# nothing", "must be a mapping of keys, such as `out: runs/first`."),
        ("- a", "must be a mapping of keys, such as `out: runs/first`."),
        ("just text", "must be a mapping of keys, such as `out: runs/first`."),
        ("out: \x07", "not valid YAML: unacceptable character #x0007: special characters"),
        ("[" * 1000, "not valid YAML: it is nested too deeply."),
        ("out: &a [*a]", "an anchor (&) contains itself; write it out."),
    ],
)
def test_a_configuration_that_cannot_be_used(text: str, sentence: str) -> None:
    assert refusal(text).startswith(f"c.yaml: {sentence}")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("out: a\nout: b", "c.yaml:2: not valid YAML: the key out stands twice."),
        ("a: {b: 1,\n c: 2,\n b: 3}", "c.yaml:3: not valid YAML: the key b stands twice."),
        ("out: [", "c.yaml:1: not valid YAML: expected the node content, but found"),
        ("out: a: b", "c.yaml:1: not valid YAML: mapping values are not allowed here."),
        ("a: 1\n\tb: 2", "c.yaml:2: not valid YAML: found character '\\t' that cannot start"),
        ("a: *nope", "c.yaml:1: not valid YAML: found undefined alias 'nope'."),
        ("a: 'x", "c.yaml:1: not valid YAML: found unexpected end of stream."),
        ("a: !!python/object/apply:os.system [id]", "c.yaml:1: not valid YAML: could not"),
        ("a: 1\n---\nb: 2", "c.yaml:2: not valid YAML: expected a single document in the stream"),
    ],
)
def test_what_is_not_yaml_names_its_line(text: str, sentence: str) -> None:
    assert refusal(text).startswith(sentence)


def test_a_duplicate_key_does_not_repeat_what_may_be_a_secret() -> None:
    assert "sk-" not in refusal("headers: {A: sk-1}\nheaders: {A: sk-2}")


def test_no_wrong_value_is_repeated_where_a_variable_may_have_filled_it() -> None:
    text = PROMPTS + "teacher: {kind: openai, model: m, endpoints: [{max_concurrency: '${KEY}'}]}"
    assert refusal(text, KEY="sk-secret") == (
        "c.yaml: teacher.endpoints[0].max_concurrency must be a whole number, but it is text."
    )


# Variables


def test_variables_are_read_from_the_environment() -> None:
    text = BASE + (
        "card: {title: '${A} and ${B:-a default} and ${EMPTY:-d} $${A}', "
        "languages: ['${A}'], description: '${UNSET:-}$5 ${{ x }} $'}"
    )
    card = parsed(text, A="aaa", EMPTY="").config.card
    assert card.title == "aaa and a default and  ${A}"
    assert card.languages == ["aaa"]
    assert card.description == "$5 ${{ x }} $"


def test_a_value_from_the_environment_is_not_expanded_again() -> None:
    assert parsed(BASE + "card: {title: '${A}'}", A="${B} $${C}").config.card.title == "${B} $${C}"


def test_a_variable_that_is_not_set_is_named_with_its_key() -> None:
    text = REMOTE.replace("[{}]", "[{}, {headers: {X-Key: 'k ${SECRET}'}}]")
    assert refusal(text) == (
        "c.yaml: teacher.endpoints[1].headers.X-Key reads ${SECRET}, but the environment variable "
        "SECRET is not set."
    )


def test_what_is_stored_is_unexpanded() -> None:
    text = BASE + "card: {title: '${SECRET} $${x}'}  # a comment\n"
    assert parsed(text, SECRET="s3cr3t").text == text
    overridden = parsed(text, "card.description=${SECRET:-d}", "sampling.seed=3", SECRET="s3cr3t")
    assert overridden.config.card.description == "s3cr3t"
    assert "s3cr3t" not in overridden.text
    again = parsed(overridden.text, SECRET="s3cr3t")
    assert again.config == overridden.config


STORED = {
    "sampling: {extra_body: {api_key: '${KEY}'}}": "sampling.extra_body.api_key",
    "sampling: {stop: ['a', 'x${KEY:-d}']}": "sampling.stop[1]",
    "sampling: {temperature: '${KEY}'}": "sampling.temperature",
    "prompts: [{path: p.jsonl, system: 'Hi ${KEY}'}]": "prompts[0].system",
    "prompts: [{path: p.jsonl, template: '${KEY}'}]": "prompts[0].template",
    "prompts: [{path: p.jsonl}, {path: q.jsonl, sampling: {stop: ['${KEY}']}}]": (
        "prompts[1].sampling.stop[0]"
    ),
    "prompts: [{path: p.jsonl, tools: [{a: '${KEY}'}]}]": "prompts[0].tools[0].a",
    "prompts: [{path: p.jsonl, response_format: {type: '${KEY}'}}]": (
        "prompts[0].response_format.type"
    ),
    "teacher: {kind: llama_cpp, template_args: {a: {b: '${KEY}'}}}": "teacher.template_args.a.b",
    "teachers: {a.b: {kind: llama_cpp, template_args: {k: '${KEY}'}}}": (
        "teachers.a.b.template_args.k"
    ),
}


@pytest.mark.parametrize("text", STORED)
def test_no_variable_goes_into_what_the_plan_stores(text: str) -> None:
    assert refusal("out: o\n" + text, KEY="s3cr3t") == (
        f"c.yaml: {STORED[text]} reads ${{KEY}}, but its value would be stored with the corpus; "
        "put secrets into endpoints (api_key_env, headers)."
    )


def test_variables_stay_where_nothing_is_stored() -> None:
    text = (
        "out: '${KEY}'\n"
        "prompts: [{path: '${KEY}/p.jsonl', name: sampling, template: 'costs $${KEY}'}]\n"
        "teacher: {kind: openai, model: '${KEY}', endpoints: [{headers: {sampling: '${KEY}'}}]}\n"
        "card: {title: '${KEY}'}\n"
    )
    config = parsed(text, KEY="v").config
    assert config.prompts[0].template == "costs ${KEY}"
    assert config.prompts[0].path == "v/p.jsonl"


# --set


def test_set_overrides_keys_lists_and_new_keys() -> None:
    config = parsed(
        BASE + "generate:\n",
        "prompts.0.n=4",
        "sampling.temperature=0.3",
        "generate.retry.max_attempts=2",
        "curate.filters=[empty, {length: {min_tokens: 4}}]",
        "card.title=a=b",
        "teacher.model=",
        "out='7'",
    ).config
    assert config.prompts[0].n == 4
    assert config.sampling.temperature == 0.3
    assert config.generate.retry.max_attempts == 2
    assert config.curate.filters == ["empty", {"length": {"min_tokens": 4}}]
    assert config.card.title == "a=b"
    assert config.teacher == model.FakeTeacher(model="")
    assert config.out == "7"


@pytest.mark.parametrize(
    "value", ["*.jsonl", "{{ text }}", "a: b: c", "[", "@home", "[" * 1000, "'open", "%d", "x\ty"]
)
def test_a_set_value_that_is_no_yaml_is_text(value: str) -> None:
    assert parsed(BASE, f"out={value}").config.out == value


def test_a_later_set_wins() -> None:
    assert parsed(BASE, "out=a", "out=b").config.out == "b"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("prompts", "--set prompts: must be key=value, such as teacher.model=my-model."),
        ("=3", "--set =3: must be key=value, such as teacher.model=my-model."),
        (
            "prompts.1.n=4",
            "--set prompts.1.n: prompts is a list of 1; use an index such as prompts.0.",
        ),
        (
            "prompts.-1.n=4",
            "--set prompts.-1.n: prompts is a list of 1; use an index such as prompts.0.",
        ),
        (
            "prompts.².n=4",
            "--set prompts.².n: prompts is a list of 1; use an index such as prompts.0.",
        ),
        ("prompts.n=4", "--set prompts.n: prompts is a list of 1; use an index such as prompts.0."),
        ("out.deep=1", "--set out.deep: out holds a value, not keys."),
        ("out.deep.er=1", "--set out.deep.er: out holds a value, not keys."),
        ("prompts=[", "c.yaml: prompts must be a list, but it is text."),
        (
            "sampling.temprature=1",
            "c.yaml: unknown key sampling.temprature. Did you mean temperature?",
        ),
        ("sampling.seed=x", "c.yaml: sampling.seed must be a whole number, but it is text."),
        ("prompts=[]", "c.yaml: prompts must be a list with at least 1 entry."),
    ],
)
def test_a_set_that_cannot_be_applied(override: str, sentence: str) -> None:
    assert refusal(BASE, override).startswith(sentence)


# Files


def test_a_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    path = tmp_path / "no.yaml"
    with pytest.raises(
        ConfigError, match=r"no such file. Write a starter file with `corpusgen init"
    ):
        read_config(path)


@pytest.mark.parametrize("content", [b"out: \xff\xfe", b"\xff\xfeo\x00u\x00t\x00"])
def test_a_file_that_is_not_utf8(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.yaml: is not UTF-8 text; save it as UTF-8\.$"):
        read_config(path)


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory\.$"):
        read_config(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    loaded = read_config(path)
    assert loaded.config.out == "o"
    assert loaded.directory == tmp_path
    assert loaded.source == str(path)


def test_a_mistake_reaches_the_user_as_one_line_and_exit_code_2(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(BASE + "sampling: {temprature: 1}", encoding="utf-8")
    done = corpusgen("plan", path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        f"corpusgen: {path}: unknown key sampling.temprature. Did you mean temperature?\n"
    )


# What the values mean


def test_a_teacher_is_named_by_its_model_unless_there_are_several() -> None:
    def names(teacher: str) -> list[str]:
        return list(model.teachers_of(parsed(f"{PROMPTS}teacher: {{{teacher}}}").config))

    assert names("kind: fake") == ["fake-1"]
    assert names("kind: llama_cpp, model: /models/Big Model.Q4.gguf") == ["Big-Model.Q4"]
    assert names("kind: fake, model: org/name") == ["name"]
    assert names("kind: fake, model: 東京") == ["teacher"]
    several = parsed(
        PROMPTS.replace("}", ", teacher: b}") + "teachers: {a: {kind: fake}, b: {kind: fake}}"
    )
    assert list(model.teachers_of(several.config)) == ["a", "b"]
    assert model.set_teacher(several.config, several.config.prompts[0]) == "b"


@pytest.mark.parametrize(
    ("prompt_set", "name"),
    [
        (model.PromptSet(path="a/b/math.train.jsonl.gz"), "math"),
        (model.PromptSet(path="a/b/"), "b"),
        (model.PromptSet(path="a/*.jsonl"), "prompts"),
        (model.PromptSet(dataset="org/set"), "set"),
        (model.PromptSet(path="a/b.jsonl", name="own"), "own"),
        (model.PromptSet(path="a b (1).jsonl"), "a-b--1"),
    ],
)
def test_a_prompt_set_is_named_by_its_file(prompt_set: model.PromptSet, name: str) -> None:
    assert model.set_name(prompt_set) == name


def test_a_sets_sampling_wins_key_by_key() -> None:
    config = parsed(
        "out: o\nprompts: [{path: p, sampling: {temperature: 0, stop: [x]}}]\n"
        "teacher: {kind: fake}\nsampling: {temperature: 0.7, seed: 3, top_logprobs: 5}"
    ).config
    merged = model.set_sampling(config, config.prompts[0])
    assert merged == Sampling(temperature=0.0, seed=3, stop=["x"])


@pytest.mark.parametrize(
    ("budget", "amount"),
    [("5", "5"), ("0.1", "0.1"), ("'0.000000000001'", "0.000000000001"), ("0", "0")],
)
def test_a_budget_is_read_exactly(budget: str, amount: str) -> None:
    config = parsed(BASE + f"generate: {{budget_usd: {budget}}}").config
    assert model.budget_usd(config) == Decimal(amount)


def test_no_budget_is_none() -> None:
    assert model.budget_usd(parsed(BASE).config) is None


# The JSON Schema that editors read


def published() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs/corpusgen.schema.json").read_bytes())
    return found


def test_the_published_schema_is_the_one_of_this_version() -> None:
    expected = msgspec.json.format(msgspec.json.encode(json_schema())) + b"\n"
    assert (ROOT / "docs/corpusgen.schema.json").read_bytes() == expected


@pytest.mark.parametrize(
    "name", ["corpusgen/cli/starter/corpusgen.yaml", "prompts/quickstart.yaml"]
)
def test_the_schema_and_the_reader_accept_the_files_that_are_shipped(name: str) -> None:
    tree = YAML(typ="safe", pure=True).load((ROOT / name).read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(published()).validate(tree)
    assert read_config(ROOT / name).config.out


@pytest.mark.parametrize(
    "steps",
    [(), ("sampling",), ("teacher",), ("prompts", 0), ("export", 0), ("generate",)],
)
def test_the_schema_refuses_an_unknown_key_at_every_depth(steps: Sequence[str | int]) -> None:
    path = ROOT / "prompts/quickstart.yaml"
    tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    node = tree
    for step in steps:
        node = node.setdefault(step, {}) if isinstance(node, dict) else node[step]
    node["unheard_of"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(published()).validate(tree)


def test_the_schema_itself_is_valid() -> None:
    jsonschema.Draft202012Validator.check_schema(published())
