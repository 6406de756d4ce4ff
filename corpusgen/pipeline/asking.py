"""Turn a configuration into what the plan asks of each prompt set, and check that it can be asked.

Everything here is offline: teachers are constructed and never opened.
"""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from corpusgen import config as model
from corpusgen import money, plugins
from corpusgen.config import Config, Price, PromptSet, TeacherConfig
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


Tariffs = dict[str, dict[str, Tariff | None]]
"""What tokens cost by teacher and endpoint; null where nobody knows."""


def tariffs_of(config: Config, teachers: dict[str, Teacher]) -> Tariffs:
    """Return what the tokens of each teacher cost at each of its endpoints."""
    configured = model.teachers_of(config)
    return {name: _tariffs(configured[name], teacher) for name, teacher in teachers.items()}


def _tariffs(options: TeacherConfig, teacher: Teacher) -> dict[str, Tariff | None]:
    names = [endpoint.name for endpoint in teacher.endpoints]
    if isinstance(options, model.OpenAITeacher | model.OpenAIBatchTeacher):
        return {
            name: _endpoint_tariff(options, endpoint)
            for name, endpoint in zip(names, options.endpoints, strict=True)
        }
    return dict.fromkeys(names, _local_tariff(options))


def _endpoint_tariff(
    options: model.OpenAITeacher | model.OpenAIBatchTeacher, endpoint: model.OpenAIEndpoint
) -> Tariff | None:
    price = endpoint.price or options.price
    tariff = (
        money.listed_tariff(options.model, endpoint.base_url) if price is None else _priced(price)
    )
    if isinstance(options, model.OpenAITeacher):
        return money.OWN if tariff is None and options.gpu is not None else tariff
    return tariff and tariff.discounted(1 - Decimal(str(options.batch_discount)))


def _local_tariff(
    options: model.FakeTeacher | model.LlamaCppTeacher | model.PluginTeacher,
) -> Tariff | None:
    if isinstance(options, model.LlamaCppTeacher):
        return money.LOCAL
    if options.price is not None:
        return _priced(options.price)
    if isinstance(options, model.FakeTeacher):
        return money.LOCAL
    return None if options.gpu is None else money.OWN


def _priced(price: Price) -> Tariff:
    cached, reasoning = price.cached_input_per_mtok, price.reasoning_per_mtok
    return money.tariff(
        str(price.input_per_mtok),
        str(price.output_per_mtok),
        None if cached is None else str(cached),
        "configuration",
        None if reasoning is None else str(reasoning),
    )


def check_budget(config: Config, tariffs: Tariffs) -> None:
    """Refuse a budget that cannot be kept, because a price or `max_tokens` is unknown."""
    for prompt_set in config.prompts:
        name = model.set_teacher(config, prompt_set)
        key = _budget_key(config, name)
        if key is None:
            continue
        at = model.teacher_key(config, name)
        unknown = [endpoint for endpoint, tariff in tariffs[name].items() if tariff is None]
        if unknown:
            raise ConfigError(
                f"{key} is set, but the price of the teacher {name} at {unknown[0]} is unknown; "
                f"set {at}.price (input_per_mtok, output_per_mtok)."
            )
        free = all(tariff is not None and tariff.free for tariff in tariffs[name].values())
        if not free and model.set_sampling(config, prompt_set).max_tokens is None:
            raise ConfigError(
                f"{key} is set, but sampling.max_tokens is not, so an answer's worst "
                "case is unbounded; set sampling.max_tokens."
            )


def _budget_key(config: Config, teacher: str) -> str | None:
    """Return the key of a budget that a teacher's requests count against, null for none."""
    if config.generate.budget_usd is not None:
        return "generate.budget_usd"
    if model.teacher_budget_usd(config, teacher) is None:
        return None
    return f"{model.teacher_key(config, teacher)}.budget_usd"


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
    asked = ("prompt", "messages", "system", "tools", "max_tokens")
    return {key: chosen[key] for key in asked if key in chosen}


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
