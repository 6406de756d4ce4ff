"""Die just before the n-th change to a corpus' files; for programs given to `python -c`."""

from __future__ import annotations

HOOK = """
import os, signal, sys
seen = 0
def hook(event, arguments):
    global seen
    if event not in ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate"):
        return
    if not any(isinstance(a, (str, bytes, os.PathLike)) and
               os.path.realpath(os.fsdecode(a)).startswith(out) for a in arguments):
        return
    if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    seen += 1
    if seen == at:
        os.kill(os.getpid(), signal.SIGKILL)
"""
"""Defines `hook` for `sys.addaudithook`; wants `out`, the corpus' real path, and `at`, the n."""
