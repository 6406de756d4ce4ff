"""Run the event loop so that a signal, or an interrupted notebook cell, drains and commits."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

from corpusgen.errors import ExitCode, RunStopped
from corpusgen.stopping import Stop

T = TypeVar("T")

Work = Callable[[Stop], Coroutine[None, None, T]]
"""What is run: a coroutine function that takes the run's `Stop`."""


_RARELY = (20_000, 20, 50)
"""Thresholds of the garbage collector while requests are in flight."""


def interrupted() -> RunStopped:
    """Return the reason of a run that a signal ended."""
    return RunStopped(
        "interrupted; what was answered is committed. Run the same command again to go on",
        ExitCode.INTERRUPTED,
    )


def run_loop(work: Work[T], make_stop: Callable[[], Stop], announce: Callable[[], None]) -> T:
    """Run a coroutine to its end, in a thread where this one runs a loop already (a notebook).

    `announce` is called when the first signal comes.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_main(work, make_stop, announce, []))
    return _run_in_thread(work, make_stop, announce)


@contextmanager
def _collecting_rarely() -> Iterator[None]:
    """Collect garbage less often for a while, and never look at what stands already.

    Answers make many objects and no cycles; looking through the whole heap for some again and
    again costs a third of a fan-out's time.
    """
    before = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def _main(
    work: Work[T],
    make_stop: Callable[[], Stop],
    announce: Callable[[], None],
    started: list[tuple[asyncio.AbstractEventLoop, Stop]],
) -> T:
    stop = make_stop()
    started.append((asyncio.get_running_loop(), stop))
    with _signals(stop, announce), _collecting_rarely():
        return await work(stop)


def _run_in_thread(work: Work[T], make_stop: Callable[[], Stop], announce: Callable[[], None]) -> T:
    ended = threading.Event()
    results: list[T] = []
    failures: list[BaseException] = []
    started: list[tuple[asyncio.AbstractEventLoop, Stop]] = []

    def target() -> None:
        try:
            results.append(asyncio.run(_main(work, make_stop, announce, started)))
        except BaseException as error:  # noqa: BLE001 - carried over to the caller's thread
            failures.append(error)
        finally:
            ended.set()

    thread = threading.Thread(target=target, name="corpusgen")
    thread.start()
    while not ended.is_set():
        try:
            ended.wait()  # not join: interrupted, it takes the thread for ended (CPython 3.11)
        except KeyboardInterrupt:  # the lease is this thread's: it must outlive the run
            announce()
            for loop, stop in started:
                loop.call_soon_threadsafe(stop, interrupted())
    if failures:
        raise failures[0]
    return results[0]


@contextmanager
def _signals(stop: Stop, announce: Callable[[], None]) -> Iterator[None]:
    """Drain on the first SIGINT or SIGTERM, leave at once on the second."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    seen: list[int] = []

    def ask(number: int) -> None:
        if seen:
            os._exit(ExitCode.INTERRUPTED)  # the journal holds what was answered
        seen.append(number)
        announce()
        stop(interrupted())

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        loop.add_signal_handler(number, ask, number)
    try:
        yield
    finally:
        for number, handler in before.items():
            loop.remove_signal_handler(number)
            if handler is not None:  # null: a handler that another language set
                signal.signal(number, handler)
