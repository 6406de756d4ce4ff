"""Build what a run needs, in the parent and in each worker: store, fan-out, lanes, limits."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from corpusgen import config as model
from corpusgen import money
from corpusgen.batching import BatchLane
from corpusgen.fanout import FanOut, Meter
from corpusgen.lane import Lane
from corpusgen.limits import (
    DAY_S,
    LONGEST_COOL_OFF_S,
    Admission,
    Budget,
    Gate,
    GateSettings,
    LocalAdmission,
)
from corpusgen.pipeline.choosing import Wanted
from corpusgen.pipeline.session import Session
from corpusgen.plan.segments import Plan
from corpusgen.retry import RetryPolicy
from corpusgen.shards import TokenFormat
from corpusgen.stopping import FailureRate, Stop
from corpusgen.store import Store
from corpusgen.teachers.interface import BatchTeacher, Teacher


def by_teacher(session: Session, plan: Plan, partitions: Iterable[int]) -> dict[str, list[int]]:
    """Return partitions by the configured teacher that answers them; others are left out."""
    found: dict[str, list[int]] = {}
    for partition in partitions:
        name = session.teacher_of(plan, plan.run_of(partition))
        if name is not None:
            found.setdefault(name, []).append(partition)
    return found


def open_store(session: Session, plan: Plan, opened: Mapping[str, Teacher]) -> Store:
    """Return the store; `opened` are the teachers whose tokenizers can be asked."""
    return Store(
        session.layout,
        session.facts.corpus_id,
        plan,
        partial(token_format, session, plan, opened),
        session.lease,
        session.journal_directory,
    )


def fan_out(session: Session, store: Store, stop: Stop, meter: Meter, wanted: Wanted) -> FanOut:
    """Return the fan-out of this process."""
    settings = session.config.generate
    return FanOut(
        store,
        RetryPolicy(settings.retry, stop.sleep),
        meter,
        stop,
        failure_rate(session, stop),
        wanted,
        wanted.retry,
        settings.drain_s,
    )


def failure_rate(session: Session, stop: Stop) -> FailureRate:
    """Return what stops a run in which too many samples fail."""
    settings = session.config.generate
    return FailureRate(
        stop, settings.max_failure_rate, settings.failure_window, settings.failure_minimum
    )


def run_budget(session: Session, store: Store) -> Budget:
    """Return the run's budget, with what the corpus is charged already."""
    limit = model.budget_usd(session.config)
    cap = None if limit is None else money.picousd(limit)
    return Budget(cap, store.charged_picousd())


def teacher_budget(session: Session, plan: Plan, store: Store, name: str) -> Budget | None:
    """Return a teacher's own budget, with what this corpus is charged for it already."""
    limit = model.teacher_budget_usd(session.config, name)
    if limit is None:
        return None
    charged = store.charged_picousd(_asked_of(session, plan, name))
    key = f"{model.teacher_key(session.config, name)}.budget_usd"
    return Budget(money.picousd(limit), charged, key)


def admission(
    session: Session,
    plan: Plan,
    store: Store,
    name: str,
    budgets: Sequence[Budget],
    tell: Callable[[str], None],
) -> Admission:
    """Return the limits of a teacher's endpoints, and the budgets over them."""
    settings, teacher = session.config.generate, session.teachers[name]
    gate = Gate(
        teacher.endpoints,
        time.monotonic,
        GateSettings(
            max_concurrency=settings.max_concurrency,
            longest_pause_s=settings.longest_pause_s,
            outage_s=settings.retry.max_seconds,
            first_tries=settings.retry.max_attempts,
            first_cool_off_s=settings.retry.first_wait_s,
            longest_cool_off_s=min(settings.retry.longest_wait_s, LONGEST_COOL_OFF_S),
            sticky=_is_sticky(session, name),
        ),
        earlier=_last_day(store, teacher, _asked_of(session, plan, name)),
        tell=tell,
    )
    return LocalAdmission(gate, budgets)


def lane(session: Session, name: str, admits: Admission, partitions: Sequence[int]) -> Lane:
    """Return what a fan-out needs to ask a teacher."""
    return Lane(
        session.teachers[name],
        admits,
        session.tariffs[name],
        partitions,
        top_logprobs=session.facts.top_logprobs,
        prompt_token_ids=session.config.generate.prompt_token_ids,
        sticky=_is_sticky(session, name),
    )


def batch_lane(
    session: Session,
    teacher: BatchTeacher,
    name: str,
    budget: Budget | None,
    partitions: Sequence[int],
) -> BatchLane:
    """Return what is needed to ask a teacher in batches."""
    return BatchLane(
        teacher,
        session.tariffs[name],
        partitions,
        top_logprobs=session.facts.top_logprobs,
        prompt_token_ids=session.config.generate.prompt_token_ids,
        budget=budget,
    )


def token_format(
    session: Session, plan: Plan, opened: Mapping[str, Teacher], partition: int
) -> TokenFormat:
    """Return what holds for the token columns of a partition's files."""
    run = plan.run_of(partition)
    teacher = opened.get(session.teacher_of(plan, run) or "")
    tokenizer = None if teacher is None else teacher.tokenizer
    temperature: Any = plan.keys_of(run).get("sampling.temperature")
    facts = session.facts
    return TokenFormat(
        k=facts.top_logprobs,
        precision="float32" if facts.logprob_precision == "float32" else "float16",
        logprobs_mode="unknown" if teacher is None else teacher.capabilities.logprobs_mode,
        temperature=temperature,
        tokenizer=None if tokenizer is None else tokenizer.fingerprint,
        tokenizer_name=None if tokenizer is None else tokenizer.name,
        vocabulary_size=None if tokenizer is None else tokenizer.vocabulary_size,
    )


def _asked_of(session: Session, plan: Plan, name: str) -> Callable[[int], bool]:
    """Return what tells whether a partition is a teacher's."""
    return lambda partition: session.teacher_of(plan, plan.run_of(partition)) == name


def _is_sticky(session: Session, name: str) -> bool:
    options = model.teachers_of(session.config)[name]
    return isinstance(options, model.OpenAITeacher) and options.routing == "sticky"


def _last_day(
    store: Store, teacher: Teacher, of: Callable[[int], bool]
) -> dict[str, list[tuple[float, int]]]:
    """Return (seconds ago, tokens) of the last day's requests by endpoint, for daily caps."""
    if not any(endpoint.rpd or endpoint.tpd for endpoint in teacher.endpoints):
        return {}
    now = time.time()
    found: dict[str, list[tuple[float, int]]] = {}
    for endpoint, started_at, tokens in store.attempts_since(now - DAY_S, of):
        found.setdefault(endpoint, []).append((now - started_at, tokens))
    return found
