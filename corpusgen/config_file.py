"""Read a configuration file strictly, and explain every mistake in one sentence.

YAML 1.2 is read with ruamel.yaml (duplicate keys are errors there); `${NAME}` and
`${NAME:-default}` in text values read the environment, `$${` stands for a literal `${`. The
unexpanded text is what is stored with a corpus, so that no secret is. Keys whose values stand in
every planned sample take no `${NAME}` at all, since nothing tells a secret from another value.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from corpusgen import config as model
from corpusgen.config_mistakes import explain
from corpusgen.errors import ConfigError

_VARIABLE = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_STORED = re.compile(
    r"(sampling|prompts\[\d+\]\.(sampling|system|template|tools|response_format)"
    r"|(teacher|teachers\..+)\.template_args)(?=[.\[]|$)"
)
"""Paths of keys whose expanded values the plan would hold."""
_DUPLICATE = re.compile(r'^found duplicate key "(.*?)" with value ', re.DOTALL)


class LoadedConfig(msgspec.Struct, frozen=True):
    """A configuration with the text that it came from."""

    config: model.Config
    text: str
    """The YAML with `--set` applied and `${NAME}` unexpanded: what is stored with the corpus."""
    directory: Path
    """Where relative prompt paths start."""
    source: str
    """How messages name it."""


def read_config(
    path: Path,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> LoadedConfig:
    """Read, override, expand and check a configuration file.

    `overrides` are `key.path=value` pairs; the value is read as YAML. Raises `ConfigError`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"{path}: no such file. Write a starter file with `corpusgen init {path}`."
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}.") from None
    return parse_config(text, overrides, environment, directory=path.parent, source=str(path))


def parse_config(
    text: str,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
    *,
    directory: Path = Path(),
    source: str = "configuration",
) -> LoadedConfig:
    """Do what `read_config` does, on text."""
    tree = _parse_yaml(text, source)
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: must be a mapping of keys, such as `out: runs/first`.")
    for override in overrides:
        _apply(tree, override)
    try:
        expanded = _expand(tree, environment, source, "")
    except RecursionError:
        raise ConfigError(f"{source}: an anchor (&) contains itself; write it out.") from None
    config = convert(expanded, source)
    _check(config, source)
    return LoadedConfig(config, _dump(tree) if overrides else text, directory, source)


def convert(tree: Any, source: str) -> model.Config:
    """Turn a tree of plain values into a `Config`; raise `ConfigError` with the key's path."""
    try:
        return msgspec.convert(tree, model.Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{source}: {explain(str(error), tree)}") from None


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration, for editors (`corpusgen.schema.json`)."""
    schema = msgspec.json.schema(model.Config)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "corpusgen configuration",
        **schema,
    }


def _yaml() -> YAML:
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    return yaml


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return _yaml().load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{where}: not valid YAML: {_yaml_problem(error)}.") from None
    except (YAMLError, ValueError) as error:
        problem = " ".join(str(error).split("\n")[:1])
        raise ConfigError(f"{source}: not valid YAML: {problem}.") from None
    except RecursionError:
        raise ConfigError(f"{source}: not valid YAML: it is nested too deeply.") from None


def _yaml_problem(error: MarkedYAMLError) -> str:
    problem = str(error.problem or "it cannot be read")
    duplicate = _DUPLICATE.match(problem)
    if isinstance(error, DuplicateKeyError) and duplicate:  # the values may be long, or secret
        return f"the key {duplicate.group(1)} stands twice"
    if problem.startswith("but ") and error.context:
        problem = f"{error.context}, {problem}"
    return " ".join(problem.split())


def _dump(tree: Any) -> str:
    from io import StringIO

    out = StringIO()
    _yaml().dump(tree, out)
    return out.getvalue()


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, raw = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: must be key=value, such as teacher.model=my-model.")
    value = _read_value(raw)
    node: Any = tree
    steps = key.split(".")
    for depth, step in enumerate(steps):
        last = depth == len(steps) - 1
        if isinstance(node, list):
            if not step.isdecimal() or int(step) >= len(node):
                at = ".".join(steps[:depth])
                raise ConfigError(
                    f"--set {key}: {at} is a list of {len(node)}; use an index such as {at}.0."
                )
            if last:
                node[int(step)] = value
            else:
                node = node[int(step)]
        elif isinstance(node, dict):
            if last:
                node[step] = value
            else:
                if node.get(step) is None:
                    node[step] = {}
                node = node[step]
        else:
            raise ConfigError(f"--set {key}: {'.'.join(steps[:depth])} holds a value, not keys.")


def _read_value(raw: str) -> Any:
    """Read a value as YAML; what is none, such as `*.parquet` or `{{ text }}`, is text."""
    try:
        return _yaml().load(raw) if raw else ""
    except (YAMLError, ValueError, TypeError, RecursionError):
        return raw


def _expand(node: Any, environment: Mapping[str, str], source: str, at: str) -> Any:
    if isinstance(node, dict):
        return {
            key: _expand(value, environment, source, f"{at}.{key}" if at else str(key))
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [
            _expand(value, environment, source, f"{at}[{index}]")
            for index, value in enumerate(node)
        ]
    if isinstance(node, float) and not math.isfinite(node):
        raise ConfigError(f"{source}: {at} must be a finite number.")
    if not isinstance(node, str) or "${" not in node:
        return node

    def replace(match: re.Match[str]) -> str:
        escaped, name, default = match.groups()
        if escaped:
            return match.group(0)[1:]
        if _STORED.match(at):
            raise ConfigError(
                f"{source}: {at} reads ${{{name}}}, but its value would be stored with the corpus; "
                "put secrets into endpoints (api_key_env, headers)."
            )
        if name in environment:
            return environment[name]
        if default is not None:
            return default
        raise ConfigError(
            f"{source}: {at} reads ${{{name}}}, but the environment variable {name} is not set."
        )

    return _VARIABLE.sub(replace, node)


def _check(config: model.Config, source: str) -> None:
    """Check what a type cannot say: the keys that need each other or exclude each other."""
    if (config.teacher is None) == (not config.teachers):
        raise ConfigError(f"{source}: set either teacher or teachers, and only one of them.")
    teachers = model.teachers_of(config)
    seen: dict[str, int] = {}
    for index, prompt_set in enumerate(config.prompts):
        at = f"prompts[{index}]"
        if (prompt_set.path is None) == (prompt_set.dataset is None):
            raise ConfigError(f"{source}: {at}: set either path or dataset, and only one of them.")
        name = model.set_name(prompt_set)
        if name in seen:
            raise ConfigError(
                f"{source}: {at} and prompts[{seen[name]}] are both named {name}; "
                "give one of them another name."
            )
        seen[name] = index
        if prompt_set.teacher is None and len(teachers) > 1:
            raise ConfigError(
                f"{source}: {at}.teacher is missing; name one of {', '.join(teachers)}."
            )
        if prompt_set.teacher is not None and prompt_set.teacher not in teachers:
            raise ConfigError(
                f"{source}: {at}.teacher: there is no teacher {prompt_set.teacher}; "
                f"use one of {', '.join(teachers)}."
            )
    _check_workers(config, teachers, source)
    names = [export.name or export.format for export in config.export]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{source}: export: two exports are named {name}; give one of them a name."
            )


def _check_workers(
    config: model.Config, teachers: Mapping[str, model.TeacherConfig], source: str
) -> None:
    for name, teacher in teachers.items():
        if config.generate.workers > 1 and isinstance(teacher, model.LlamaCppTeacher):
            raise ConfigError(
                f"{source}: generate.workers is {config.generate.workers}, but each worker would "
                f"load the teacher {name} once more; leave it out, workers are for remote teachers."
            )
