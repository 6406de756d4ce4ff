"""Run the fan-out over what the plan still lacks: teachers, limits, budget, signals, progress."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from corpusgen import config as model
from corpusgen import money
from corpusgen.corpus import Corpus
from corpusgen.errors import CorpusgenError, ExitCode, RunStopped, TeacherError
from corpusgen.events import Log, Observer, Progress
from corpusgen.fanout import FanOut, Lane
from corpusgen.files import write_file
from corpusgen.layout import Layout
from corpusgen.limits import Budget, Gate
from corpusgen.meter import RunMeter
from corpusgen.pipeline.session import Session
from corpusgen.plan.segments import Plan
from corpusgen.retry import RetryPolicy
from corpusgen.shards import TokenFormat
from corpusgen.stopping import FailureRate, Stop
from corpusgen.store import Store
from corpusgen.teachers.interface import Teacher

PROGRESS_S = 1.0
STATUS_S = 5.0


class Choice(msgspec.Struct, frozen=True):
    """Which samples a run asks for."""

    limit: int | None = None
    """A pilot: only the first so many samples of the plan, taken from all prompt sets in turn."""
    retry_failed: str | None = None
    """Ask failed samples again: `all`, or one reason."""


class Generated(msgspec.Struct, frozen=True):
    """Where the corpus stands after the fan-out."""

    planned: int
    """Samples that the configuration asks for."""
    generations: int
    failures: int
    stopped: CorpusgenError | None
    """Why the run ended early."""

    @property
    def pending(self) -> int:
        """Samples that have not ended."""
        return max(self.planned - self.generations - self.failures, 0)


def generate(session: Session, plan: Plan, choice: Choice, observer: Observer) -> Generated:
    """Ask for every sample that is wanted and has not ended; return when all is committed."""
    opened: dict[str, Teacher] = {}
    store = Store(
        session.layout,
        session.facts.corpus_id,
        plan,
        lambda partition: _token_format(session, plan, opened, partition),
        session.lease,
        session.journal_directory,
    )
    store.recover()
    if store.torn_bytes:
        observer(Log("info", f"cut {store.torn_bytes} bytes of a torn record off the journal"))
    chosen = _Chosen(plan, store, choice)
    if chosen.partitions or store.open:
        stop = _run_loop(session, plan, store, chosen, opened, observer)
    else:
        stop = None
    return counted(session.layout, plan, stop)


def counted(layout: Layout, plan: Plan, stopped: CorpusgenError | None) -> Generated:
    """Return where a corpus stands by its commits; retired samples do not count."""
    corpus = Corpus(layout.root)
    retired = plan.retired()
    generations = corpus.rows("generations")
    ended = sum(commit.ended for commit in corpus.commits)
    failures = ended - generations
    if retired:
        gone = _retired_rows(corpus, retired)
        generations, failures = generations - gone[0], failures - gone[1]
    return Generated(plan.samples - len(retired), generations, failures, stopped)


def _retired_rows(corpus: Corpus, retired: frozenset[str]) -> tuple[int, int]:
    generated = _ids_among(corpus, "generations", retired)
    failed = _ids_among(corpus, "failures", retired) - generated
    return len(generated), len(failed)


def _ids_among(corpus: Corpus, kind: str, wanted: frozenset[str]) -> set[str]:
    dataset = corpus.generations() if kind == "generations" else corpus.failures()
    found: set[str] = set()
    for batch in dataset.to_batches(columns=["sample_id"]):
        found.update(wanted.intersection(batch.column(0).to_pylist()))
    return found


class _Chosen:
    """Which partitions are visited, and which of their samples are asked for."""

    def __init__(self, plan: Plan, store: Store, choice: Choice) -> None:
        self._retired = plan.retired()
        self._pilot = None if choice.limit is None else _pilot(plan, self._retired, choice.limit)
        self.retry = _retry_predicate(choice.retry_failed)
        self.partitions = [p for p in self._visited(plan) if self._has_work(plan, store, p)]

    def wanted(self, sample: str) -> bool:
        """Tell whether a planned sample is asked for in this run."""
        if self._pilot is not None:
            return sample in self._pilot
        return sample not in self._retired

    @property
    def pilot_size(self) -> int | None:
        """How many samples the pilot has; null: no pilot."""
        return None if self._pilot is None else len(self._pilot)

    def _visited(self, plan: Plan) -> Iterator[int]:
        for partition in range(plan.partitions):
            if self._pilot is None or not self._pilot.isdisjoint(plan.ids_of(partition)):
                yield partition

    def _has_work(self, plan: Plan, store: Store, partition: int) -> bool:
        if store.ended(partition) < plan.rows_of(partition):
            return True
        commits = store.commits.get(partition, ())
        return self.retry is not None and any(commit.rows("failures") for commit in commits)


def _pilot(plan: Plan, retired: frozenset[str], limit: int) -> frozenset[str]:
    """Return the first `limit` samples, taken from the prompt sets in turn."""
    by_set: dict[str, Iterator[str]] = {}
    for run in plan.runs:
        by_set.setdefault(run.prompt_set, _live_ids(plan, run.prompt_set, retired))
    taken: list[str] = []
    while by_set and len(taken) < limit:
        for name, ids in list(by_set.items()):
            sample = next(ids, None)
            if sample is None:
                del by_set[name]
            elif len(taken) < limit:
                taken.append(sample)
    return frozenset(taken)


def _live_ids(plan: Plan, prompt_set: str, retired: frozenset[str]) -> Iterator[str]:
    for run in plan.runs:
        if run.prompt_set == prompt_set:
            for partition in range(run.first_partition, run.first_partition + run.partitions):
                yield from (s for s in plan.ids_of(partition) if s not in retired)


def _retry_predicate(reason: str | None) -> Callable[[str], bool] | None:
    if reason is None:
        return None
    return lambda found: reason in ("all", found)


def _run_loop(
    session: Session,
    plan: Plan,
    store: Store,
    chosen: _Chosen,
    opened: dict[str, Teacher],
    observer: Observer,
) -> CorpusgenError | None:
    work = _generate(session, plan, store, chosen, opened, observer)
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    return _run_in_thread(work)  # a notebook: its loop is already running in this thread


def _run_in_thread(work: object) -> CorpusgenError | None:
    result: list[CorpusgenError | None] = []
    failure: list[BaseException] = []

    def target() -> None:
        try:
            result.append(asyncio.run(work))  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            failure.append(error)

    thread = threading.Thread(target=target, name="corpusgen")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


async def _generate(
    session: Session,
    plan: Plan,
    store: Store,
    chosen: _Chosen,
    opened: dict[str, Teacher],
    observer: Observer,
) -> CorpusgenError | None:
    settings = session.config.generate
    stop = Stop()
    budget = Budget(_cap(session), store.charged_picousd())
    meter = _meter(session, plan, store, chosen, budget, observer)
    fan_out = FanOut(
        store,
        RetryPolicy(settings.retry, stop.sleep),
        budget,
        meter,
        stop,
        FailureRate(
            stop, settings.max_failure_rate, settings.failure_window, settings.failure_minimum
        ),
        chosen.wanted,
        chosen.retry,
        settings.drain_s,
    )
    with _signals(stop, observer, settings.drain_s):
        try:
            await _open(session, plan, store, chosen, opened, observer)
            lanes = _lanes(session, plan, chosen, opened)
            await _watched(fan_out, lanes, meter, session, observer)
        except TeacherError as error:  # a teacher that cannot be opened
            stop(error)
        finally:
            store.close()
            for teacher in opened.values():
                await teacher.close()
    return stop.reason


def _cap(session: Session) -> int | None:
    limit = model.budget_usd(session.config)
    return None if limit is None else money.picousd(limit)


def _meter(
    session: Session,
    plan: Plan,
    store: Store,
    chosen: _Chosen,
    budget: Budget,
    observer: Observer,
) -> RunMeter:
    known = any(tariff is not None for tariff in session.tariffs.values())
    ended = sum(commit.ended for parts in store.commits.values() for commit in parts)
    ended += sum(
        len(opened.contents.generations.keys() | opened.contents.failures.keys())
        for opened in store.open.values()
    )
    total = plan.samples - len(plan.retired())
    if chosen.pilot_size is not None:
        total = max(chosen.pilot_size, ended)
    return RunMeter(
        observer,
        done=min(ended, total),
        total=total,
        charged_picousd=lambda: budget.charged if known else None,
    )


async def _open(
    session: Session,
    plan: Plan,
    store: Store,
    chosen: _Chosen,
    opened: dict[str, Teacher],
    observer: Observer,
) -> None:
    """Open the teachers that have work; what a journal holds needs its teacher's tokenizer."""
    for partition in [*chosen.partitions, *store.open]:
        name = plan.run_of(partition).teacher
        if name in opened or name not in session.teachers:
            continue
        teacher = opened[name] = session.teachers[name]
        observer(Log("info", f"opening the teacher {name}"))
        await teacher.open()


def _lanes(session: Session, plan: Plan, chosen: _Chosen, opened: dict[str, Teacher]) -> list[Lane]:
    limit = session.config.generate.max_concurrency
    return [
        Lane(
            teacher=teacher,
            gate=Gate(teacher.endpoints, time.monotonic, limit),
            tariff=session.tariffs[name],
            partitions=[p for p in chosen.partitions if plan.run_of(p).teacher == name],
            top_logprobs=session.facts.top_logprobs,
            prompt_token_ids=session.config.generate.prompt_token_ids,
        )
        for name, teacher in opened.items()
    ]


def _token_format(
    session: Session, plan: Plan, opened: dict[str, Teacher], partition: int
) -> TokenFormat:
    run = plan.run_of(partition)
    teacher = opened.get(run.teacher)
    tokenizer = None if teacher is None else teacher.tokenizer
    sampling = plan.samples_of(partition)[0].sampling
    return TokenFormat(
        k=session.facts.top_logprobs,
        precision="float32" if session.facts.logprob_precision == "float32" else "float16",
        logprobs_mode="unknown" if teacher is None else teacher.capabilities.logprobs_mode,
        temperature=sampling.temperature,
        tokenizer=None if tokenizer is None else tokenizer.fingerprint,
        tokenizer_name=None if tokenizer is None else tokenizer.name,
        vocabulary_size=None if tokenizer is None else tokenizer.vocabulary_size,
    )


async def _watched(
    fan_out: FanOut, lanes: list[Lane], meter: RunMeter, session: Session, observer: Observer
) -> None:
    ticking = asyncio.create_task(_tick(fan_out, meter, session, observer))
    try:
        await fan_out.run(lanes)
    finally:
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        _tell(meter.progress(0), session, observer)
        if fan_out.logprobs.missing:
            observer(
                Log(
                    "warning",
                    f"{fan_out.logprobs.missing} answers came without the logprobs that were asked "
                    "for; their token columns are null",
                )
            )


async def _tick(fan_out: FanOut, meter: RunMeter, session: Session, observer: Observer) -> None:
    written = 0.0
    while True:
        await asyncio.sleep(PROGRESS_S)
        progress = meter.progress(fan_out.in_flight)
        observer(progress)
        if time.monotonic() - written >= STATUS_S:
            written = time.monotonic()
            _write_status(progress, session)


def _tell(progress: Progress, session: Session, observer: Observer) -> None:
    observer(progress)
    _write_status(progress, session)


def _write_status(progress: Progress, session: Session) -> None:
    content = {"updated_at": time.time(), "progress": progress}
    with suppress(OSError):  # status is a convenience; the run does not depend on it
        write_file(session.layout.status, msgspec.json.format(msgspec.json.encode(content)))


@contextmanager
def _signals(stop: Stop, observer: Observer, drain_s: float) -> Iterator[None]:
    """Drain on the first SIGINT or SIGTERM, leave at once on the second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_asked():
            os._exit(ExitCode.INTERRUPTED)  # the journal holds what was answered
        observer(
            Log(
                "info",
                f"stopping: up to {drain_s:g} s for the requests in flight, then everything is "
                "committed; a second signal leaves at once",
            )
        )
        stop(
            RunStopped(
                "interrupted; what was answered is committed. Run the same command again to go on",
                ExitCode.INTERRUPTED,
            )
        )

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ask)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
