"""Turn a configuration into what the plan asks of each prompt set, and check that it can be asked.

Everything here is offline: teachers are constructed and never opened.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from corpusgen import config as model
from corpusgen import money, plugins
from corpusgen.config import Config, PromptSet, TeacherConfig
from corpusgen.config_file import LoadedConfig
from corpusgen.curate.chain import load_filters
from corpusgen.errors import ConfigError
from corpusgen.money import Tariff
from corpusgen.plan.planning import SetRequest
from corpusgen.prompts import fingerprint, read_prompts
from corpusgen.teachers.interface import Teacher


def make_teachers(config: Config) -> dict[str, Teacher]:
    """Construct the teachers that prompt sets name; raise `ConfigError` where one cannot be."""
    configured = model.teachers_of(config)
    used = {model.set_teacher(config, prompt_set) for prompt_set in config.prompts}
    alone = config.teacher is not None
    return {
        name: _make("teacher" if alone else f"teachers.{name}", options)
        for name, options in configured.items()
        if name in used
    }


def _make(key: str, options: TeacherConfig) -> Teacher:
    tag = options.__struct_config__.tag
    kind = options.plugin if isinstance(options, model.PluginTeacher) else str(tag)
    teacher: Teacher = plugins.load(plugins.TEACHERS, kind)(key, options)
    return teacher


def check_capabilities(config: Config, teachers: dict[str, Teacher]) -> None:
    """Refuse what the configuration asks of a teacher that it cannot do; raise `ConfigError`."""
    for prompt_set in config.prompts:
        name = model.set_teacher(config, prompt_set)
        able = teachers[name].capabilities
        sampling = model.set_sampling(config, prompt_set)
        wanted = config.sampling.top_logprobs
        if able.max_top_logprobs is not None and wanted > able.max_top_logprobs:
            raise ConfigError(
                f"sampling.top_logprobs is {wanted}, but the teacher {name} gives at most "
                f"{able.max_top_logprobs}; lower it."
            )
        lacking = {
            "sampling.seed": sampling.seed is not None and not able.seeds,
            "tools": bool(prompt_set.tools) and not able.tools,
            "response_format": bool(prompt_set.response_format) and not able.response_format,
            "generate.prompt_token_ids": config.generate.prompt_token_ids
            and able.token_ids is False,
        }
        for key, missing in lacking.items():
            if missing:
                raise ConfigError(
                    f"prompt set {model.set_name(prompt_set)}: {key} is set, but the teacher "
                    f"{name} cannot do that; leave it out or use another teacher."
                )


def check_finishing(config: Config) -> None:
    """Refuse filters and formats that do not exist or do not take their options.

    Raises `ConfigError` before anything is asked, not after it was paid for.
    """
    load_filters(config.curate)
    for options in config.export:
        plugins.load(plugins.EXPORTERS, options.format)(options)


def tariff_of(options: TeacherConfig) -> Tariff | None:
    """Return what a teacher's tokens cost; null where nobody knows."""
    if isinstance(options, model.LlamaCppTeacher):
        return money.LOCAL
    if options.price is not None:
        price = options.price
        cached = price.cached_input_per_mtok
        return money.tariff(
            str(price.input_per_mtok),
            str(price.output_per_mtok),
            None if cached is None else str(cached),
            "configuration",
        )
    if isinstance(options, model.FakeTeacher):
        return money.LOCAL
    if isinstance(options, model.OpenAITeacher):
        listed = [money.listed_tariff(options.model, e.base_url) for e in options.endpoints]
        return listed[0] if len(set(listed)) == 1 else None
    return None


def check_budget(config: Config, tariffs: dict[str, Tariff | None]) -> None:
    """Refuse a budget that cannot be kept, because a price or `max_tokens` is unknown."""
    if config.generate.budget_usd is None:
        return
    for prompt_set in config.prompts:
        name = model.set_teacher(config, prompt_set)
        tariff = tariffs[name]
        if tariff is None:
            raise ConfigError(
                f"generate.budget_usd is set, but the price of the teacher {name} is unknown; set "
                "teacher.price (input_per_mtok, output_per_mtok)."
            )
        if not tariff.free and model.set_sampling(config, prompt_set).max_tokens is None:
            raise ConfigError(
                "generate.budget_usd is set, but sampling.max_tokens is not, so an answer's worst "
                "case is unbounded; set sampling.max_tokens."
            )


def set_requests(loaded: LoadedConfig, teachers: dict[str, Teacher]) -> list[SetRequest]:
    """Return what is asked of each prompt set, in the configuration's order."""
    return [_set_request(loaded, prompt_set, teachers) for prompt_set in loaded.config.prompts]


def _set_request(
    loaded: LoadedConfig, prompt_set: PromptSet, teachers: dict[str, Teacher]
) -> SetRequest:
    config = loaded.config
    teacher = model.set_teacher(config, prompt_set)
    identity = msgspec.to_builtins(teachers[teacher].identity)
    sampling = model.set_sampling(config, prompt_set)
    return SetRequest(
        name=model.set_name(prompt_set),
        teacher=teacher,
        teacher_identity=identity,
        sampling=sampling,
        n=prompt_set.n,
        keys=_identity_keys(prompt_set, identity, msgspec.to_builtins(sampling)),
        inputs=list(fingerprint(prompt_set, loaded.directory)),
        read=partial(read_prompts, prompt_set, loaded.directory),
        response_format=prompt_set.response_format,
    )


def _content_columns(prompt_set: PromptSet) -> dict[str, str]:
    """Return the chosen columns that make up what is asked."""
    chosen: dict[str, str] = msgspec.to_builtins(prompt_set.columns)
    return {key: chosen[key] for key in ("prompt", "messages", "system", "tools") if key in chosen}


def _identity_keys(
    prompt_set: PromptSet, teacher: dict[str, Any], sampling: dict[str, Any]
) -> dict[str, Any]:
    """Return the keys whose change would give every sample of the set another id."""
    keys = {f"teacher.{key}": value for key, value in teacher.items()}
    keys |= {f"sampling.{key}": value for key, value in sampling.items()}
    own = {
        "prompts.template": prompt_set.template,
        "prompts.system": prompt_set.system,
        "prompts.tools": prompt_set.tools,
        "prompts.response_format": prompt_set.response_format,
        "prompts.columns": _content_columns(prompt_set) or None,
    }
    return keys | {key: value for key, value in own.items() if value is not None}
