"""Estimate what a session's run will take: which teacher answers what, and who is measured how."""

from __future__ import annotations

from corpusgen.batching import SamplesOut
from corpusgen.corpus import Corpus
from corpusgen.estimates import (
    Answering,
    estimate,
    read_pilots,
    remaining_picousd,
    still_asked,
)
from corpusgen.events import Estimated
from corpusgen.ledger import gpus_of
from corpusgen.money import dollars_text
from corpusgen.pipeline.choosing import Choice, pilot, retried
from corpusgen.pipeline.session import Session
from corpusgen.plan.segments import Plan, Run


def estimated(session: Session, choice: Choice) -> Estimated:
    """Return what asking the samples of a choice will take, the plan being as it is.

    What is out at a provider is not asked again, and so not in it.
    """
    corpus = Corpus(session.layout.root)
    chosen = None
    if choice.limit is not None:
        chosen = pilot(corpus.plan, corpus.plan.retired(), choice.limit).__contains__
    asked = still_asked(
        corpus,
        lambda run: _draws(session, corpus.plan, run),
        chosen,
        retried(choice.retry_failed),
        SamplesOut(session.layout).of,
    )
    runs = {(each.run.prompt_set, each.run.variant): each.run for each in asked}
    return estimate(
        asked,
        read_pilots(corpus, runs.keys()),
        {key: _answering(session, corpus.plan, run) for key, run in runs.items()},
        session.facts.top_logprobs,
        session.facts.logprob_precision,
    )


def what_is_left(session: Session, pending: int) -> str:
    """Say how many samples are left and what they would cost by this corpus' own mean."""
    text = f"{pending} samples are left"
    tariffs = [tariff for each in session.tariffs.values() for tariff in each.values()]
    cost = remaining_picousd(Corpus(session.layout.root), pending)
    if not cost or None in tariffs:
        return text
    return f"{text}; at the mean of those that ended they would cost {dollars_text(cost)} more"


def _draws(session: Session, plan: Plan, run: Run) -> int:
    """Return how many draws of a prompt one request takes: one with a seed, which each has own."""
    name = session.teacher_of(plan, run)
    if name is None or plan.keys_of(run).get("sampling.seed") is not None:
        return 1
    return session.teachers[name].capabilities.max_draws


def _answering(session: Session, plan: Plan, run: Run) -> Answering | None:
    name = session.teacher_of(plan, run)
    if name is None:
        return None
    teacher = session.teachers[name]
    return Answering(
        name=name,
        endpoints=teacher.endpoints,
        tariffs=session.tariffs[name],
        token_ids=teacher.capabilities.token_ids is not False,
        max_concurrency=session.config.generate.max_concurrency,
        gpu=gpus_of(session.config).get(name),
    )
