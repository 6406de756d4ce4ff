"""The configuration's structs: what may stand in a YAML file, with types, defaults and bounds.

Reading a file, expanding `${NAME}` and explaining mistakes is `config_file`'s work. Each key is of
one of three kinds (docs/configuration.md): *identity* keys name what is asked, *layout* keys are
fixed for a corpus, all others are *operational* and may change at any time.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from corpusgen.types import Sampling

PositiveInt = Annotated[int, Meta(ge=1)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Money = Annotated[str, Meta(pattern=r"^\d+(\.\d{1,12})?$")] | Annotated[float, Meta(ge=0)]
"""Dollars; decimal text is exact, a number is read as it is written."""
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]


class Strict(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, kw_only=True
):
    """A mapping in which every key is known."""


class Columns(Strict, frozen=True, kw_only=True):
    """Which column of a prompt file holds which field, where the names differ."""

    prompt: str = "prompt"
    messages: str = "messages"
    system: str = "system"
    id: str = "id"
    reference: str = "reference"
    metadata: str = "metadata"
    tools: str = "tools"
    max_tokens: str = "max_tokens"
    """A prompt's own `sampling.max_tokens`."""


class PromptSet(Strict, frozen=True, kw_only=True):
    """Prompts of one origin, with their template, sampling and licence."""

    path: str | None = None
    """A file, a glob, or a `datasets` directory; relative to the configuration file."""
    dataset: str | None = None
    """A dataset's name on the Hugging Face hub, instead of a path."""
    subset: str | None = None
    split: str = "train"
    name: Name | None = None
    """Defaults to the file's name without its ending."""
    format: Literal["jsonl", "json", "csv", "parquet", "datasets"] | None = None
    """Found from the file's ending unless set."""
    columns: Columns = Columns()
    template: str | None = None
    """A Jinja2 template over the row's fields; its result is the user's message."""
    system: str | None = None
    """A Jinja2 template for the system message; a row's own `system` wins."""
    tools: list[dict[str, Any]] | None = None
    response_format: dict[str, Any] | None = None
    n: PositiveInt = 1
    """Draws a prompt."""
    teacher: Name | None = None
    """Which of `teachers` answers; not needed where there is only one."""
    sampling: Sampling = Sampling()
    """Keys that are set here win over the run's `sampling`."""
    license: str | None = None


class Terms(Strict, frozen=True, kw_only=True):
    """What the teacher's provider allows; copied to the card and never interpreted."""

    license: str | None = None
    training_allowed: bool | None = None
    source: str | None = None


class Price(Strict, frozen=True, kw_only=True):
    """US dollars for a million tokens, as decimal text."""

    input_per_mtok: Money
    output_per_mtok: Money
    cached_input_per_mtok: Money | None = None
    """Defaults to the input's price."""
    reasoning_per_mtok: Money | None = None
    """Defaults to the output's price."""


class Gpu(Strict, frozen=True, kw_only=True):
    """What the machine of a local teacher costs by the hour; counted beside the price of tokens."""

    usd_per_hour: Money
    """For one GPU (or one machine without)."""
    count: PositiveInt = 1


class FakeTeacher(Strict, frozen=True, kw_only=True, tag_field="kind", tag="fake"):
    """A teacher without a model: deterministic text and distributions; for trying and tests."""

    model: str = "fake-1"
    revision: str | None = None
    latency_s: Annotated[float, Meta(ge=0)] = 0.0
    answer_tokens: PositiveInt = 24
    """Mean tokens an answer."""
    vocabulary: Annotated[int, Meta(ge=64)] = 32_000
    price: Price | None = None
    budget_usd: Money | None = None
    """The most that this teacher may cost, earlier runs included."""
    gpu: Gpu | None = None
    terms: Terms = Terms()


class LlamaCppTeacher(Strict, frozen=True, kw_only=True, tag_field="kind", tag="llama_cpp"):
    """The embedded teacher: llama.cpp in a child process of the run, on any GGUF file."""

    model: str = "SmolLM2-135M-Instruct"
    """A GGUF file's path, or `SmolLM2-135M-Instruct`, whose weights come in a package."""
    revision: str | None = None
    """Defaults to a digest of the file."""
    context_length: PositiveInt = 4096
    """Tokens of prompt and answer that one request may take together."""
    slots: PositiveInt = 4
    """Requests that are decoded at the same time."""
    threads: PositiveInt | None = None
    """Threads that decode; defaults to the free cores but one, for a spare thread costs dearly."""
    gpu_layers: Annotated[int, Meta(ge=-1)] = -1
    """Layers on the GPU, where the build has one; -1: as many as fit."""
    template_args: dict[str, Any] | None = None
    """Arguments of the chat template, such as `enable_thinking`."""
    gpu: Gpu | None = None
    """What its machine costs, for the ledger."""
    terms: Terms = Terms()


class OpenAIEndpoint(Strict, frozen=True, kw_only=True):
    """One place that speaks the OpenAI protocol."""

    base_url: str = "https://api.openai.com/v1"
    name: Name | None = None
    """As it stands in the ledger; defaults to the host and port."""
    api_key_env: str | None = None
    """The environment variable that holds the key; none: no key is sent."""
    style: Literal["openai", "azure"] = "openai"
    """`azure`: a base_url like https://NAME.openai.azure.com, the key in the header `api-key`."""
    deployment: str | None = None
    """Of Azure; defaults to the teacher's model."""
    api_version: str | None = None
    """Of Azure, such as 2024-10-21."""
    max_concurrency: PositiveInt | None = None
    """Requests in flight; unset: starts low and finds what the endpoint takes best."""
    rpm: PositiveInt | None = None
    """Requests a minute that it allows."""
    tpm: PositiveInt | None = None
    """Tokens a minute that it allows, those of prompts and answers together."""
    tpm_counts: Literal["used", "max_tokens"] | None = None
    """Whether `tpm` counts the tokens that are used, or reserves `max_tokens` for each answer when
    a request arrives, as OpenAI and Azure do; defaults to what is known of the host."""
    rpd: PositiveInt | None = None
    """Requests a day: at most so many in any 24 hours."""
    tpd: PositiveInt | None = None
    """Tokens a day."""
    weight: PositiveFloat = 1.0
    """Its share of the load beside the other endpoints."""
    price: Price | None = None
    """Where it differs from the teacher's."""
    headers: dict[str, str] = {}
    extra_body: dict[str, Any] = {}
    """Further keys of the request's body for this endpoint only; no part of a sample's identity."""


class OpenAITeacher(Strict, frozen=True, kw_only=True, tag_field="kind", tag="openai"):
    """A remote teacher behind one or more OpenAI-compatible endpoints."""

    model: str
    revision: str | None = None
    endpoints: Annotated[list[OpenAIEndpoint], Meta(min_length=1)]
    protocol: Literal["chat", "completions"] = "chat"
    """`completions`: the prompt is sent as plain text, for base models."""
    routing: Literal["least_loaded", "sticky"] = "least_loaded"
    """`sticky`: prompts that begin alike go to the same endpoint, for its prefix cache."""
    draws_per_request: Annotated[int, Meta(ge=1, le=128)] = 8
    """Draws of a prompt that one request asks for (`n`); 1 where sampling has a seed."""
    return_token_ids: bool = False
    """Ask for token ids (vLLM's `return_token_ids`)."""
    reasoning_tag: Name | None = None
    """Split an answer's leading `<think>…</think>` off as its reasoning: the tag, such as think."""
    timeout_s: PositiveFloat = 600.0
    """For a whole answer."""
    connect_timeout_s: PositiveFloat = 15.0
    ca_file: str | None = None
    """A certificate authority's PEM file, for private endpoints."""
    max_top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    """The endpoint's largest k, where it is known; checked at plan time."""
    template_args: dict[str, Any] | None = None
    """Sent as `chat_template_kwargs`."""
    price: Price | None = None
    """Defaults to the dated table of genai-prices, where it knows the model."""
    budget_usd: Money | None = None
    """The most that this teacher may cost, earlier runs included."""
    gpu: Gpu | None = None
    """What the machines of its endpoints cost, where they are your own; for the ledger."""
    terms: Terms = Terms()


class OpenAIBatchTeacher(Strict, frozen=True, kw_only=True, tag_field="kind", tag="openai_batch"):
    """A remote teacher asked through the provider's Batch API: within a day, at half the price."""

    model: str
    revision: str | None = None
    endpoints: Annotated[list[OpenAIEndpoint], Meta(min_length=1)]
    """As of `openai`; limits by the minute and the day do not apply to batches."""
    requests_per_batch: Annotated[int, Meta(ge=1, le=1_000_000)] = 50_000
    """The most requests of one batch."""
    bytes_per_batch: Annotated[int, Meta(ge=1_000)] = 200_000_000
    """The largest file of requests."""
    enqueued_tokens: PositiveInt | None = None
    """Prompt tokens that may wait at an endpoint over all of its batches, where it limits them."""
    max_batches: PositiveInt = 20
    """Batches out at an endpoint at the same time."""
    completion_window: str = "24h"
    poll_s: PositiveFloat = 60.0
    """Between two looks at the batches; varies by a quarter, and grows while looks fail."""
    lookup_s: Annotated[float, Meta(ge=0)] = 60.0
    """How long a batch is looked for whose creation was cut short, before it is made again."""
    delete_files: bool = True
    """Delete the files at the provider when their results are committed."""
    draws_per_request: Annotated[int, Meta(ge=1, le=128)] = 8
    """Draws of a prompt that one request asks for (`n`); 1 where sampling has a seed."""
    reasoning_tag: Name | None = None
    """Split an answer's leading `<think>…</think>` off as its reasoning: the tag, such as think."""
    timeout_s: PositiveFloat = 600.0
    """Without a byte sent or received."""
    connect_timeout_s: PositiveFloat = 15.0
    ca_file: str | None = None
    """A certificate authority's PEM file, for private endpoints."""
    max_top_logprobs: Annotated[int, Meta(ge=0)] | None = None
    """The endpoint's largest k, where it is known; checked at plan time."""
    template_args: dict[str, Any] | None = None
    """Sent as `chat_template_kwargs`."""
    price: Price | None = None
    """Outside batches; defaults to the dated table of genai-prices, where it knows the model."""
    batch_discount: Money = "0.5"
    """The share of the price, listed or configured, that a batch costs."""
    budget_usd: Money | None = None
    """The most that this teacher may cost, earlier runs included."""
    terms: Terms = Terms()


class PluginTeacher(Strict, frozen=True, kw_only=True, tag_field="kind", tag="plugin"):
    """A teacher from an installed package, found by its entry point."""

    plugin: Name
    """The entry point's name in the group `corpusgen.teachers`."""
    model: str
    revision: str | None = None
    options: dict[str, Any] = {}
    """Given to the plug-in as they are."""
    price: Price | None = None
    budget_usd: Money | None = None
    """The most that this teacher may cost, earlier runs included."""
    gpu: Gpu | None = None
    terms: Terms = Terms()


TeacherConfig = FakeTeacher | LlamaCppTeacher | OpenAITeacher | OpenAIBatchTeacher | PluginTeacher


class RunSampling(Sampling, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How answers are drawn, and how much of the distribution is kept with them."""

    top_logprobs: Annotated[int, Meta(ge=0)] = 0
    """Alternatives kept at each position; 0: none. Fixed for a corpus."""


class Retry(Strict, frozen=True, kw_only=True):
    """How long a sample is tried before it becomes a failure."""

    max_attempts: PositiveInt = 6
    max_seconds: PositiveFloat = 900.0
    """From the first attempt; no further one is begun after it."""
    first_wait_s: Annotated[float, Meta(ge=0)] = 1.0
    """Doubles with each attempt, with full jitter."""
    longest_wait_s: Annotated[float, Meta(ge=0)] = 60.0


class Generate(Strict, frozen=True, kw_only=True):
    """How the fan-out works."""

    partition_size: Annotated[int, Meta(ge=1, le=100_000)] = 1024
    """Samples a partition, the unit of commit. Fixed for a corpus."""
    max_concurrency: PositiveInt | None = None
    """Requests in flight for each teacher; defaults to what its endpoints take."""
    workers: PositiveInt = 1
    """Processes that ask, decode and write, for remote teachers whose answers are more than one
    core can take; limits and budgets hold over all of them."""
    longest_pause_s: PositiveFloat = 3600.0
    """Stop, with exit code 4, where every endpoint asks for a longer pause than this."""
    budget_usd: Money | None = None
    """The most that this corpus may cost, earlier runs included."""
    max_failure_rate: Share = 0.5
    """Stop when more than this share of the last answers failed."""
    failure_window: PositiveInt = 200
    """Samples that `max_failure_rate` looks at."""
    failure_minimum: PositiveInt = 50
    """Samples that must have ended before `max_failure_rate` is applied."""
    retry: Retry = Retry()
    drain_s: Annotated[float, Meta(ge=0)] = 25.0
    """Seconds that SIGTERM leaves to the requests in flight."""
    skip_bad_prompts: bool = False
    """Make a row that cannot be read a failure instead of stopping."""
    prompt_token_ids: bool = False
    """Keep the prompt's token ids, where the teacher gives them."""
    logprob_precision: Literal["float32", "float16"] = "float16"
    """float16 keeps float32 columns, rounded to float16's precision. Fixed for a corpus."""
    journal_dir: str | None = None
    """A local directory for the journal; defaults to the corpus' own `journal/`."""


class Dedup(Strict, frozen=True, kw_only=True):
    """Which generations count as the same."""

    exact: bool | Literal["pair", "response", "prompt"] = True
    """On normalised text; true: prompt and response together (`pair`)."""
    within_prompt: bool = True
    """Whether draws of one prompt are compared with each other."""


class Curate(Strict, frozen=True, kw_only=True):
    """What is kept for the dataset."""

    filters: list[str | dict[str, dict[str, Any]]] = msgspec.field(
        default_factory=lambda: ["finish_reason", "empty", "refusal", "repetition"]
    )
    """Filters by name, or `{name: {option: value}}`; the first that objects names the reason."""
    dedup: Dedup = Dedup()


class Export(Strict, frozen=True, kw_only=True):
    """One dataset."""

    format: Name
    name: Name | None = None
    """The directory under `dataset/`; defaults to the format's name."""
    jsonl: bool = False
    """Write JSON Lines beside the Parquet files."""
    rows_per_shard: PositiveInt = 100_000
    reasoning: Literal["field", "inline", "drop"] = "field"
    """`reasoning_content` of its own, `<think>` before the text, or left out."""


class Split(Strict, frozen=True, kw_only=True):
    """How rows are divided; a prompt's draws always fall on the same side."""

    validation: Share = 0.0
    by: Literal["prompt"] = "prompt"
    seed: int = 0


class Card(Strict, frozen=True, kw_only=True):
    """What the dataset's card says beyond what the corpus knows."""

    title: str | None = None
    license: str | None = None
    """Defaults to the teacher's terms."""
    languages: list[str] = []
    description: str | None = None


class Config(Strict, frozen=True, kw_only=True):
    """A whole configuration file."""

    out: str
    """The corpus' directory; relative to the working directory."""
    prompts: Annotated[list[PromptSet], Meta(min_length=1)]
    teacher: TeacherConfig | None = None
    """The only teacher."""
    teachers: dict[Name, TeacherConfig] = {}
    """Several teachers by name, instead of `teacher`."""
    sampling: RunSampling = RunSampling()
    generate: Generate = Generate()
    curate: Curate = Curate()
    export: list[Export] = msgspec.field(default_factory=lambda: [Export(format="messages")])
    split: Split = Split()
    card: Card = Card()


def teachers_of(config: Config) -> dict[str, TeacherConfig]:
    """Return the teachers by name; a single `teacher` is named by its model's last part."""
    if config.teacher is not None:
        return {_as_name(config.teacher.model.removesuffix(".gguf")) or "teacher": config.teacher}
    return dict(config.teachers)


def set_name(prompt_set: PromptSet) -> str:
    """Return the prompt set's name: its own, or one made from its path or dataset."""
    if prompt_set.name is not None:
        return prompt_set.name
    source = (prompt_set.path or prompt_set.dataset or "").rstrip("/")
    return _as_name(source.rsplit("/", 1)[-1].split(".", 1)[0]) or "prompts"


def _as_name(path: str) -> str:
    last = path.rstrip("/").rsplit("/", 1)[-1]
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in last)
    return kept.strip("-._")[:120]


def set_sampling(config: Config, prompt_set: PromptSet) -> Sampling:
    """Return the sampling of a set: the run's, with the keys that the set itself sets."""
    merged: dict[str, Any] = {}
    for source in (config.sampling, prompt_set.sampling):
        for field in Sampling.__struct_fields__:
            value = getattr(source, field)
            if value is not None:
                merged[field] = value
    return Sampling(**merged)


def set_teacher(config: Config, prompt_set: PromptSet) -> str:
    """Return the name of the teacher that answers a set; `config_file` checked that it exists."""
    if prompt_set.teacher is not None:
        return prompt_set.teacher
    return next(iter(teachers_of(config)))


def budget_usd(config: Config) -> Decimal | None:
    """Return the run's budget, null where there is none."""
    limit = config.generate.budget_usd
    return None if limit is None else Decimal(str(limit))


def teacher_key(config: Config, name: str) -> str:
    """Return where a teacher stands in the configuration, for messages."""
    return "teacher" if config.teacher is not None else f"teachers.{name}"


def teacher_budget_usd(config: Config, name: str) -> Decimal | None:
    """Return a teacher's own budget, null where it has none."""
    limit = getattr(teachers_of(config)[name], "budget_usd", None)
    return None if limit is None else Decimal(str(limit))
