"""Run the fan-out over what the plan still lacks: teachers, limits, budget, workers, progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial

import msgspec

from corpusgen.batching import Batching, Waiting
from corpusgen.errors import CorpusgenError, ExitCode, TeacherError
from corpusgen.events import Log, Observer, Progress
from corpusgen.fanout import FanOut
from corpusgen.files import write_file
from corpusgen.limits import Admission, Budget
from corpusgen.meter import RunMeter
from corpusgen.pipeline import lanes
from corpusgen.pipeline.choosing import Choice, Chosen
from corpusgen.pipeline.counting import Generated, counted
from corpusgen.pipeline.interrupts import run_loop
from corpusgen.pipeline.session import Session
from corpusgen.pipeline.workers import Assignment, Crew
from corpusgen.plan.segments import Plan
from corpusgen.retry import RetryPolicy
from corpusgen.stopping import Stop
from corpusgen.store import Store
from corpusgen.teachers.interface import BatchTeacher, Teacher

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
        self._choice = choice
        self._observer = observer
        self._opened: dict[str, Teacher] = {}
        self._store = self._new_store()
        self._store.recover()
        self._tell_recovery()
        self._waiting = Waiting(session.layout, self._store)
        self._chosen = Chosen(plan, self._store, choice)
        self._budget = lanes.run_budget(session, self._store)
        self._budgets: dict[str, Budget | None] = {
            name: lanes.teacher_budget(session, plan, self._store, name)
            for name in session.teachers
        }

    def _new_store(self) -> Store:
        return lanes.open_store(self._session, self._plan, self._opened)

    @property
    def has_work(self) -> bool:
        """Whether anything is to be asked, fetched or committed."""
        return bool(self._chosen.partitions or self._store.open or self._waiting)

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

    def _tell_recovery(self) -> None:
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

    def _tell_stop(self, reason: CorpusgenError) -> None:
        if reason.exit_code is not ExitCode.INTERRUPTED:
            self._log("warning", f"stopping: {reason}")

    async def _generate(self, stop: Stop) -> CorpusgenError | None:
        meter = self._meter()
        try:
            partitions = self._partitions()
            await self._open(partitions)
            await self._watched(self._work(stop, meter, partitions), meter)
        except TeacherError as error:  # a teacher that cannot be opened
            stop(error)
        finally:
            self._store.close()
            for teacher in self._opened.values():
                await teacher.close()
        return stop.reason

    def _partitions(self) -> dict[str, list[int]]:
        """Return what is to be asked, by teacher; tell what no teacher is configured for."""
        found = lanes.by_teacher(self._session, self._plan, self._chosen.partitions)
        missing = len(self._chosen.partitions) - sum(map(len, found.values()))
        if missing:
            self._log(
                "warning",
                f"{missing} partitions were planned for a teacher (model, revision, template_args) "
                "that this configuration does not have; they are left as they are",
            )
        return found

    async def _open(self, partitions: dict[str, list[int]]) -> None:
        """Open the teachers that have work; what a journal holds needs its teacher's tokenizer."""
        waiting = [*self._store.open, *self._waiting.partitions]
        for name in {**partitions, **lanes.by_teacher(self._session, self._plan, waiting)}:
            self._log("info", f"opening the teacher {name}")
            self._opened[name] = self._session.teachers[name]
            await self._opened[name].open()

    def _meter(self) -> RunMeter:
        known = any(
            tariff is not None
            for tariffs in self._session.tariffs.values()
            for tariff in tariffs.values()
        )
        ended = sum(c.ended for parts in self._store.commits.values() for c in parts)
        ended += sum(
            len(opened.contents.generations.keys() | opened.contents.failures.keys())
            for opened in self._store.open.values()
        )
        total = self._plan.samples - len(self._plan.retired())
        if self._chosen.wanted.pilot_size is not None:
            total = max(self._chosen.wanted.pilot_size, ended)
        return RunMeter(
            self._observer,
            done=min(ended, total),
            total=total,
            charged_picousd=lambda: self._budget.charged if known else None,
        )

    def _work(
        self, stop: Stop, meter: RunMeter, partitions: dict[str, list[int]]
    ) -> tuple[FanOut, Batching, Crew, Coroutine[None, None, None]]:
        """Return all that asks, and the coroutine that lets it ask."""
        batching = self._batching(stop, meter, partitions)
        asked = {
            n: p for n, p in partitions.items() if not isinstance(self._opened[n], BatchTeacher)
        }
        admissions = {name: self._admission(name) for name in asked}
        workers = self._session.config.generate.workers
        crew = Crew(self._session, self._choice, admissions, meter, stop)
        fan_out = self._fan_out(self._store, stop, meter)
        if workers > 1:
            assignments = Assignment.share_out(asked, workers)
            self._store.hand_over({p for each in assignments for p in each.partitions})
            asking = crew.run(assignments)
        else:
            asking = fan_out.run(
                [lanes.lane(self._session, name, admissions[name], asked[name]) for name in asked]
            )
        return fan_out, batching, crew, self._all(asking, batching, fan_out, crew, stop, meter)

    async def _all(
        self,
        asking: Coroutine[None, None, None],
        batching: Batching,
        fan_out: FanOut,
        crew: Crew,
        stop: Stop,
        meter: RunMeter,
    ) -> None:
        workers = self._session.config.generate.workers
        ends = await asyncio.gather(asking, batching.run(), return_exceptions=True)
        if workers > 1:
            await fan_out.run([])  # commits what journals of earlier runs hold
            await self._commit_left_over(stop, meter)
        for mistake in ends:  # each has committed what it had
            if isinstance(mistake, BaseException):
                raise mistake
        for reached in (fan_out.reached, batching.reached, crew.reached):
            if reached is not None:
                stop(reached)  # not before: what one teacher's budget ends is not the run

    async def _commit_left_over(self, stop: Stop, meter: RunMeter) -> None:
        """Commit what workers left in journals: they died, or were stopped before they began."""
        store = self._new_store()
        store.recover()
        await self._fan_out(store, stop, meter).run([])
        store.close()

    def _fan_out(self, store: Store, stop: Stop, meter: RunMeter) -> FanOut:
        return lanes.fan_out(self._session, store, stop, meter, self._chosen.wanted)

    def _batching(self, stop: Stop, meter: RunMeter, partitions: dict[str, list[int]]) -> Batching:
        settings, session = self._session.config.generate, self._session
        return Batching(
            session.layout,
            session.facts.corpus_id,
            self._store,
            [
                lanes.batch_lane(
                    session, teacher, name, self._budgets[name], partitions.get(name, [])
                )
                for name, teacher in self._opened.items()
                if isinstance(teacher, BatchTeacher)
            ],
            self._waiting,
            RetryPolicy(settings.retry, stop.sleep),
            settings,
            self._budget,
            meter,
            stop,
            lanes.failure_rate(session, stop),
            self._chosen.wanted,
            self._chosen.wanted.retry,
            self._log,
            session.lease.check,
        )

    def _admission(self, name: str) -> Admission:
        own = self._budgets[name]
        budgets = [self._budget] if own is None else [self._budget, own]
        tell = partial(self._log, "warning")
        return lanes.admission(self._session, self._plan, self._store, name, budgets, tell)

    async def _watched(
        self,
        work: tuple[FanOut, Batching, Crew, Coroutine[None, None, None]],
        meter: RunMeter,
    ) -> None:
        fan_out, batching, crew, asking = work

        def in_flight() -> int:
            return fan_out.in_flight + batching.in_flight + crew.in_flight

        ticking = asyncio.create_task(self._tick(in_flight, meter))
        try:
            await asking
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking
            self._progress(meter.progress(0))
            missing = sum(each.logprobs.missing for each in (fan_out, batching))
            missing += crew.without_logprobs
            if missing:
                self._log(
                    "warning",
                    f"{missing} answers came without the logprobs that were asked for; their "
                    "token columns are null",
                )

    async def _tick(self, in_flight: Callable[[], int], meter: RunMeter) -> None:
        written = 0.0
        while True:
            await asyncio.sleep(PROGRESS_S)
            progress = meter.progress(in_flight())
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
