"""Run the fan-out over what the plan still lacks: teachers, limits, budget, progress."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import msgspec

from corpusgen import config as model
from corpusgen import money
from corpusgen.errors import CorpusgenError, ExitCode, TeacherError
from corpusgen.events import Log, Observer, Progress
from corpusgen.fanout import FanOut, Lane
from corpusgen.files import write_file
from corpusgen.limits import Budget, Gate
from corpusgen.meter import RunMeter
from corpusgen.pipeline.choosing import Choice, Chosen
from corpusgen.pipeline.counting import Generated, counted
from corpusgen.pipeline.interrupts import run_loop
from corpusgen.pipeline.session import Session
from corpusgen.plan.segments import Plan, Run
from corpusgen.retry import RetryPolicy
from corpusgen.shards import TokenFormat
from corpusgen.stopping import FailureRate, Stop
from corpusgen.store import Store
from corpusgen.teachers.interface import Teacher

PROGRESS_S = 1.0
STATUS_S = 5.0


def generate(session: Session, plan: Plan, choice: Choice, observer: Observer) -> Generated:
    """Ask for every sample that is wanted and has not ended; return when all is committed."""
    run = _Generation(session, plan, choice, observer)
    stopped = run.run() if run.has_work else None
    return counted(session.layout, plan, stopped)


class _Generation:
    """One run of the fan-out, with what its steps have in common."""

    def __init__(self, session: Session, plan: Plan, choice: Choice, observer: Observer) -> None:
        self._session = session
        self._plan = plan
        self._observer = observer
        self._opened: dict[str, Teacher] = {}
        self._store = Store(
            session.layout,
            session.facts.corpus_id,
            plan,
            self._token_format,
            session.lease,
            session.journal_directory,
        )
        self._store.recover()
        if self._store.torn_bytes:
            self._log(
                "info", f"cut {self._store.torn_bytes} bytes of a torn record off the journal"
            )
        for copy in self._store.damaged:
            self._log(
                "warning",
                f"{copy}: a damaged record was left out ({self._store.damaged_bytes} bytes in "
                "all); answers in it are asked again, and requests of which it was the only "
                "record are not in the ledger; the journal as it was is kept there",
            )
        self._chosen = Chosen(plan, self._store, choice)
        self._budget = Budget(self._cap(), self._store.charged_picousd())

    @property
    def has_work(self) -> bool:
        """Whether anything is to be asked or committed."""
        return bool(self._chosen.partitions or self._store.open)

    def run(self) -> CorpusgenError | None:
        """Run to the end; return why it ended early, if it did."""
        drain_s = self._session.config.generate.drain_s
        return run_loop(
            self._generate,
            lambda: Stop(self._tell_stop),
            lambda: self._log(
                "info",
                f"stopping: up to {drain_s:g} s for the requests in flight, then everything is "
                "committed; a second signal leaves at once",
            ),
        )

    def _log(self, level: str, message: str) -> None:
        self._observer(Log(level, message))

    def _tell_stop(self, reason: CorpusgenError) -> None:
        if reason.exit_code is not ExitCode.INTERRUPTED:
            self._log("warning", f"stopping: {reason}")

    async def _generate(self, stop: Stop) -> CorpusgenError | None:
        settings = self._session.config.generate
        meter = self._meter()
        fan_out = FanOut(
            self._store,
            RetryPolicy(settings.retry, stop.sleep),
            self._budget,
            meter,
            stop,
            FailureRate(
                stop, settings.max_failure_rate, settings.failure_window, settings.failure_minimum
            ),
            self._chosen.wanted,
            self._chosen.retry,
            settings.drain_s,
        )
        try:
            await self._open()
            await self._watched(fan_out, meter)
        except TeacherError as error:  # a teacher that cannot be opened
            stop(error)
        finally:
            self._store.close()
            for teacher in self._opened.values():
                await teacher.close()
        return stop.reason

    def _cap(self) -> int | None:
        limit = model.budget_usd(self._session.config)
        return None if limit is None else money.picousd(limit)

    def _meter(self) -> RunMeter:
        known = any(tariff is not None for tariff in self._session.tariffs.values())
        ended = sum(c.ended for parts in self._store.commits.values() for c in parts)
        ended += sum(
            len(opened.contents.generations.keys() | opened.contents.failures.keys())
            for opened in self._store.open.values()
        )
        total = self._plan.samples - len(self._plan.retired())
        if self._chosen.pilot_size is not None:
            total = max(self._chosen.pilot_size, ended)
        return RunMeter(
            self._observer,
            done=min(ended, total),
            total=total,
            charged_picousd=lambda: self._budget.charged if known else None,
        )

    async def _open(self) -> None:
        """Open the teachers that have work; what a journal holds needs its teacher's tokenizer."""
        missing = 0
        for partition in [*self._chosen.partitions, *self._store.open]:
            run = self._plan.run_of(partition)
            name = self._teacher_of(run)
            if name is None:
                missing += partition in self._chosen.partitions
            elif name not in self._opened:
                self._log("info", f"opening the teacher {name}")
                self._opened[name] = self._session.teachers[name]
                await self._opened[name].open()
        if missing:
            self._log(
                "warning",
                f"{missing} partitions were planned for a teacher (model, revision, template_args) "
                "that this configuration does not have; they are left as they are",
            )

    def _teacher_of(self, run: Run) -> str | None:
        """Return which configured teacher answers a run's samples: the one of the same identity.

        A teacher's name in the configuration is no part of a sample's identity: what counts is
        that another model never answers for the one that was planned.
        """
        keys = self._plan.keys_of(run)
        planned = {k.removeprefix("teacher."): v for k, v in keys.items() if k[:8] == "teacher."}
        same = [
            name
            for name, teacher in self._session.teachers.items()
            if msgspec.to_builtins(teacher.identity) == planned
        ]
        return run.teacher if run.teacher in same else next(iter(same), None)

    def _lanes(self) -> list[Lane]:
        partitions: dict[str, list[int]] = {name: [] for name in self._opened}
        for partition in self._chosen.partitions:
            name = self._teacher_of(self._plan.run_of(partition))
            if name is not None:
                partitions[name].append(partition)
        limit = self._session.config.generate.max_concurrency
        return [
            Lane(
                teacher=teacher,
                gate=Gate(teacher.endpoints, time.monotonic, limit),
                tariff=self._session.tariffs[name],
                partitions=partitions[name],
                top_logprobs=self._session.facts.top_logprobs,
                prompt_token_ids=self._session.config.generate.prompt_token_ids,
            )
            for name, teacher in self._opened.items()
        ]

    def _token_format(self, partition: int) -> TokenFormat:
        run = self._plan.run_of(partition)
        teacher = self._opened.get(self._teacher_of(run) or "")
        tokenizer = None if teacher is None else teacher.tokenizer
        temperature: Any = self._plan.keys_of(run).get("sampling.temperature")
        facts = self._session.facts
        return TokenFormat(
            k=facts.top_logprobs,
            precision="float32" if facts.logprob_precision == "float32" else "float16",
            logprobs_mode="unknown" if teacher is None else teacher.capabilities.logprobs_mode,
            temperature=temperature,
            tokenizer=None if tokenizer is None else tokenizer.fingerprint,
            tokenizer_name=None if tokenizer is None else tokenizer.name,
            vocabulary_size=None if tokenizer is None else tokenizer.vocabulary_size,
        )

    async def _watched(self, fan_out: FanOut, meter: RunMeter) -> None:
        ticking = asyncio.create_task(self._tick(fan_out, meter))
        try:
            await fan_out.run(self._lanes())
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            self._progress(meter.progress(0))
            if fan_out.logprobs.missing:
                self._log(
                    "warning",
                    f"{fan_out.logprobs.missing} answers came without the logprobs that were asked "
                    "for; their token columns are null",
                )

    async def _tick(self, fan_out: FanOut, meter: RunMeter) -> None:
        written = 0.0
        while True:
            await asyncio.sleep(PROGRESS_S)
            progress = meter.progress(fan_out.in_flight)
            if time.monotonic() - written >= STATUS_S:
                written = time.monotonic()
                self._progress(progress)
            else:
                self._observer(progress)

    def _progress(self, progress: Progress) -> None:
        """Tell the observer, and whoever runs `corpusgen status`."""
        self._observer(progress)
        content = {"updated_at": time.time(), "progress": progress}
        with suppress(OSError):  # status is a convenience; the run does not depend on it
            encoded = msgspec.json.format(msgspec.json.encode(content))
            write_file(self._session.layout.status, encoded)
