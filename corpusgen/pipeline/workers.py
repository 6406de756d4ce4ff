"""Start worker processes, give each its partitions, and be one: `generate.workers`.

Partitions are dealt out in turn before any worker starts; none is shared. A worker ignores signals
(the parent passes the wish to stop on) and leaves at once when its parent is gone, as the corpus
may have a new owner then; its journals hold what was answered.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import msgspec

from corpusgen.config_file import parse_config
from corpusgen.corpus import Facts
from corpusgen.errors import CorpusgenError, ExitCode
from corpusgen.events import Committed, Log
from corpusgen.layout import Layout
from corpusgen.lease import WatchedLease
from corpusgen.limits import Admission
from corpusgen.meter import RunMeter
from corpusgen.pipeline import lanes
from corpusgen.pipeline.asking import make_teachers, tariffs_of
from corpusgen.pipeline.choosing import Choice, Wanted
from corpusgen.pipeline.session import Session
from corpusgen.stopping import Stop, stop_for
from corpusgen.workers.guest import Calls, RemoteAdmission, RemoteMeter, listen
from corpusgen.workers.host import Host, reason_of
from corpusgen.workers.messages import Counts, Ended, Mouth, PartCommitted, Said, heard_first

TELL_S = 0.5
_LAST_WORDS_S = 10.0
_LIMIT = 1 << 24
"""Bytes of a message."""


class Assignment(msgspec.Struct, frozen=True):
    """What one worker asks."""

    by_teacher: dict[str, list[int]]

    @property
    def partitions(self) -> list[int]:
        """All its partitions."""
        return [p for partitions in self.by_teacher.values() for p in partitions]

    @staticmethod
    def share_out(partitions: Mapping[str, Sequence[int]], workers: int) -> list[Assignment]:
        """Deal partitions out in turn; fewer workers where there are fewer partitions."""
        shares: list[dict[str, list[int]]] = [{} for _ in range(workers)]
        turn = 0
        for name, numbers in partitions.items():
            for number in numbers:
                shares[turn % workers].setdefault(name, []).append(number)
                turn += 1
        return [Assignment(share) for share in shares if share]


class Brief(msgspec.Struct, frozen=True):
    """All that a worker must know. The configuration's secrets are in its environment."""

    text: str
    directory: str
    source: str
    root: str
    facts: Facts
    lease_token: str
    journal_directory: str
    choice: Choice
    assignment: Assignment
    counts_tokens: dict[str, bool]
    workers: int


class Crew:
    """All workers of a run, seen from the parent."""

    def __init__(
        self,
        session: Session,
        choice: Choice,
        admissions: Mapping[str, Admission],
        meter: RunMeter,
        stop: Stop,
    ) -> None:
        self._session = session
        self._choice = choice
        self._admissions = admissions
        self._meter = meter
        self._stop = stop
        self._hosts: list[Host] = []
        self.without_logprobs = 0
        """Answers that came without the logprobs that were asked for."""
        self.reached: CorpusgenError | None = None
        """Which budget or limit ended a worker early, if one did."""

    @property
    def in_flight(self) -> int:
        """Requests that workers have under way."""
        return sum(host.holding for host in self._hosts)

    async def run(self, assignments: Sequence[Assignment]) -> None:
        """Let workers ask their partitions; return when all have ended and committed."""
        halting = asyncio.create_task(self._halt_all())
        try:
            ends = await asyncio.gather(
                *(self._employ(each, len(assignments)) for each in assignments),
                return_exceptions=True,
            )
        finally:
            halting.cancel()
            with suppress(asyncio.CancelledError):
                await halting
            for admission in self._admissions.values():
                admission.close()
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _halt_all(self) -> None:
        await self._stop.wait()
        assert self._stop.reason is not None
        for host in self._hosts:
            host.halt(self._stop.reason)

    async def _employ(self, assignment: Assignment, workers: int) -> None:
        try:
            await self._accompany(assignment, workers)
        except Exception as error:  # noqa: BLE001 - sorted out there
            mistake = stop_for(self._stop, error)
            if mistake is not None:
                raise mistake from None

    async def _accompany(self, assignment: Assignment, workers: int) -> None:
        ours, theirs = socket.socketpair()
        brief = Brief(
            text=self._session.loaded.text,
            directory=str(self._session.loaded.directory),
            source=self._session.loaded.source,
            root=str(self._session.layout.root),
            facts=self._session.facts,
            lease_token=self._session.lease.token,
            journal_directory=str(self._session.journal_directory),
            choice=self._choice,
            assignment=assignment,
            counts_tokens={n: a.counts_tokens for n, a in self._admissions.items()},
            workers=workers,
        )
        process = await _start(theirs)
        host = Host(self._admissions, self, self._stop)
        self._hosts.append(host)
        reader, writer = await asyncio.open_connection(sock=ours, limit=_LIMIT)
        host.open(writer, brief)
        if self._stop.reason is not None:  # it was asked while this worker was being started
            host.halt(self._stop.reason)
        await host.serve(reader)
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _LAST_WORDS_S)
        self._judge(host.ended, process.returncode)

    def _judge(self, ended: Ended | None, code: int | None) -> None:
        if ended is None:
            self._stop(
                CorpusgenError(
                    f"a worker process ended unexpectedly (exit code {code}). What it "
                    "had answered is in its journals; run the same command again to go on"
                )
            )
            return
        self.without_logprobs += ended.without_logprobs
        reason = reason_of(ended)
        if reason is not None and reason.exit_code is ExitCode.BUDGET:
            self.reached = reason  # others may have teachers left that can be asked
        elif reason is not None:
            self._stop(reason)

    def counted(self, counts: Counts) -> None:
        """Add a worker's counts."""
        self._meter.add(
            counts.generations, counts.completion_tokens, counts.retries, counts.failures
        )

    def said(self, message: Said) -> None:
        """Pass a sentence on."""
        self._meter.observer(Log(message.level, message.message))

    def committed(self, part: PartCommitted) -> None:
        """Tell that a part was committed."""
        self._meter.observer(
            Committed(part.partition, part.part, part.generations, part.failures, part.complete)
        )


async def _start(theirs: socket.socket) -> asyncio.subprocess.Process:
    """Start a worker in a fresh interpreter: a fork would share this one's threads and loop."""
    descriptor = theirs.fileno()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"from corpusgen.pipeline.workers import be_worker; be_worker({descriptor})",
        stdin=asyncio.subprocess.DEVNULL,
        pass_fds=(descriptor,),
    )
    theirs.close()
    return process


def be_worker(descriptor: int) -> None:
    """Be a worker whose parent is at the other end of a socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    asyncio.run(_work(socket.socket(fileno=descriptor)))


async def _work(parent: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=parent, limit=_LIMIT)
    brief = msgspec.msgpack.decode(await heard_first(reader), type=Brief)
    mouth, calls, stop = Mouth(writer), Calls(), Stop()
    listening = asyncio.create_task(listen(reader, calls, stop, partial(os._exit, 1)))
    meter = RemoteMeter(mouth)
    telling = asyncio.create_task(_tell_often(meter))
    missing, reached = 0, None
    try:
        missing, reached = await _ask(brief, mouth, calls, stop, meter)
    except CorpusgenError as error:
        stop(error)
    telling.cancel()
    meter.tell()
    reason = stop.reason or reached
    if reason is None:
        mouth.say(Ended(without_logprobs=missing))
    else:
        mouth.say(Ended(str(reason), int(reason.exit_code), missing))
    listening.cancel()
    await mouth.close()


async def _tell_often(meter: RemoteMeter) -> None:
    while True:
        await asyncio.sleep(TELL_S)
        meter.tell()


async def _ask(
    brief: Brief, mouth: Mouth, calls: Calls, stop: Stop, meter: RemoteMeter
) -> tuple[int, CorpusgenError | None]:
    """Ask the partitions of a brief.

    Returns how many answers lacked their logprobs, and which budget or limit was reached.
    """
    session = _session(brief)
    plan = session.plan()
    store = lanes.open_store(session, plan, session.teachers)
    fan_out = lanes.fan_out(session, store, stop, meter, Wanted(plan, brief.choice))
    asked = brief.assignment.by_teacher
    try:
        for name in asked:
            await session.teachers[name].open()
        await fan_out.run(
            [
                lanes.lane(session, name, _remote(brief, name, mouth, calls), partitions)
                for name, partitions in asked.items()
            ]
        )
    finally:
        store.close()
        for name in asked:
            await session.teachers[name].close()
    return fan_out.logprobs.missing, fan_out.reached


def _remote(brief: Brief, name: str, mouth: Mouth, calls: Calls) -> RemoteAdmission:
    return RemoteAdmission(
        name, mouth, calls, counts_tokens=brief.counts_tokens[name], workers=brief.workers
    )


def _session(brief: Brief) -> Session:
    loaded = parse_config(brief.text, directory=Path(brief.directory), source=brief.source)
    layout = Layout(Path(brief.root))
    teachers = make_teachers(loaded.config)
    return Session(
        loaded,
        layout,
        brief.facts,
        WatchedLease(layout.lease, brief.lease_token),
        teachers,
        tariffs_of(loaded.config, teachers),
        Path(brief.journal_directory),
    )
