"""The lock of a corpus: a lease file that is renewed, because flock is unsafe on NFS and Lustre.

A lease names its owner (host, boot, process, start time) and is renewed by rewriting its time. On
the owner's own host a dead process is recognised at once; elsewhere a lease is dead when the file
system's clock says that it was not renewed for `EXPIRES_S`. A dead lease is removed under a guard
file, so that of many takers none removes the lease that another has just won.
"""

from __future__ import annotations

import os
import socket
import threading
import uuid
from pathlib import Path
from types import TracebackType
from typing import Protocol

import msgspec

from corpusgen.errors import CorpusLocked
from corpusgen.files import TEMPORARY_SUFFIX, put_if_absent

RENEW_S = 10.0
EXPIRES_S = 90.0


class Owner(msgspec.Struct, frozen=True):
    """Who holds a lease."""

    token: str
    host: str
    boot: str
    pid: int
    started: str
    """The process' start time in clock ticks since boot: a pid alone may be used again."""
    command: str
    namespace: str = ""
    """Its pid namespace: in another container the same pid is another process."""


def this_process(command: str) -> Owner:
    """Return this process as an owner, with a token of its own."""
    return Owner(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_boot_id(),
        pid=os.getpid(),
        started=_start_time(os.getpid()) or "",
        command=command,
        namespace=_pid_namespace(),
    )


def holder(path: Path) -> Owner | None:
    """Return the live owner of a lease, null where there is none or a dead one."""
    owner = _read(path)
    return owner if owner is not None and not _dead(owner, path) else None


class Holding(Protocol):
    """The right to write to a corpus, as those see it who commit."""

    def check(self) -> None:
        """Raise `CorpusLocked` if it was lost, so that no commit follows."""


class WatchedLease:
    """A lease that this process' parent holds."""

    def __init__(self, path: Path, token: str) -> None:
        self._path = path
        self.token = token

    def check(self) -> None:
        """Raise `CorpusLocked` if the parent lost it."""
        owner = _read(self._path)
        if owner is None or owner.token != self.token:
            raise _lost(self._path)


class Lease:
    """Hold a corpus while the `with` block runs; renew it from a thread.

    Entering raises `CorpusLocked` where another live process holds it.
    """

    def __init__(self, path: Path, command: str, *, renew_s: float = RENEW_S) -> None:
        self._path = path
        self._owner = this_process(command)
        self._renew_s = renew_s
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @property
    def token(self) -> str:
        """What tells this lease from any other."""
        return self._owner.token

    def __enter__(self) -> Lease:
        content = msgspec.json.format(msgspec.json.encode(self._owner)) + b"\n"
        while not put_if_absent(self._path, content):
            self._take_from_dead(content)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._is_ours():
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise `CorpusLocked` if the lease was lost, so that no commit follows."""
        if self._lost or not self._is_ours():
            raise _lost(self._path)

    def _take_from_dead(self, content: bytes) -> None:
        """Remove a dead lease; the guard keeps another taker from removing a fresh one instead."""
        guard = self._path.with_name(f"{self._path.name}.taking{TEMPORARY_SUFFIX}")
        if not put_if_absent(guard, content):
            if _is_left_by_dead(guard):
                guard.unlink(missing_ok=True)
            return
        try:
            if _is_left_by_dead(self._path):
                self._path.unlink()
        finally:
            guard.unlink(missing_ok=True)

    def _is_ours(self) -> bool:
        owner = _read(self._path)
        return owner is not None and owner.token == self._owner.token

    def _renew(self) -> None:
        while not self._stop.wait(self._renew_s):
            try:
                if not self._is_ours():
                    self._lost = True
                    return
                os.utime(self._path)
            except OSError:
                continue  # a file system that hiccups; `check` decides before a commit


def _lost(path: Path) -> CorpusLocked:
    return CorpusLocked(
        f"{path}: the lease was lost to another process (was this one suspended?). "
        "Nothing more is written here; run the command again."
    )


def _is_left_by_dead(path: Path) -> bool:
    """Tell whether a lease lies there that nobody holds; raise `CorpusLocked` on a live one."""
    try:
        owner = msgspec.json.decode(path.read_bytes(), type=Owner)
    except FileNotFoundError:
        return False
    except (msgspec.DecodeError, UnicodeDecodeError):
        return True  # torn by a disk: no owner of ours writes half a lease
    if not _dead(owner, path):
        raise CorpusLocked(
            f"{path.parent}: process {owner.pid} on {owner.host} is writing to this "
            f"corpus (`corpusgen {owner.command}`). Wait for it, or stop it first."
        )
    return True


def _read(path: Path) -> Owner | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Owner)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _dead(owner: Owner, path: Path) -> bool:
    if owner.host == socket.gethostname():
        if owner.boot == _boot_id() and owner.namespace == _pid_namespace():
            started = _start_time(owner.pid)
            return started is None or (owner.started != "" and started != owner.started)
        if _age_s(path) > _uptime_s():  # not renewed since this machine was started
            return True
    return _age_s(path) > EXPIRES_S


def _age_s(path: Path) -> float:
    """Return a lease's age by the clock of the file system that it lies on."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY_SUFFIX}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    finally:
        probe.unlink(missing_ok=True)


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _uptime_s() -> float:
    try:
        return float(Path("/proc/uptime").read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return float("inf")


def _start_time(pid: int) -> str | None:
    """Return a live process' start time, null where there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    except OSError:
        pass
    if Path("/proc/self").exists():
        return None
    try:  # no /proc: macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
