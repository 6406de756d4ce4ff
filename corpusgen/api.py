"""The Python entry point beside `load`: run a configuration from a program or a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from corpusgen import pipeline
from corpusgen.config import Config
from corpusgen.config_file import LoadedConfig, parse_config, read_config
from corpusgen.events import Observer, ignore
from corpusgen.pipeline import Choice, Options, Result


def run(
    config: str | Path | Mapping[str, Any] | Config,
    *,
    overrides: Sequence[str] = (),
    limit: int | None = None,
    retry_failed: str | None = None,
    skip_bad_prompts: bool = False,
    add: bool = False,
    observer: Observer = ignore,
) -> Result:
    """Generate, curate, export and report; go on where an earlier run ended.

    `config` is a YAML file's path, a mapping with the same keys, or a `Config`; paths in the
    latter two are relative to the working directory. `overrides` are `key=value` pairs. `limit`
    makes a pilot. `observer` is called with each event.

    Returns a `Result` whose `exit_code` is 0, 3 (samples failed), 4 (budget reached) or 5
    (interrupted). Raises `CorpusgenError` for a fault of the whole run; what was answered is
    committed even then. Works inside a running event loop too (a notebook): it then uses a thread,
    and signals are left to the caller.
    """
    options = Options(Choice(limit, retry_failed), skip_bad_prompts, add)
    return pipeline.run(_loaded(config, overrides), options, observer)


def _loaded(
    config: str | Path | Mapping[str, Any] | Config, overrides: Sequence[str]
) -> LoadedConfig:
    if isinstance(config, str | Path):
        return read_config(Path(config), overrides)
    tree = msgspec.to_builtins(config) if isinstance(config, Config) else dict(config)
    return parse_config(msgspec.json.encode(tree).decode(), overrides)
