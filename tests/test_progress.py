"""What a run shows while it goes on: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from corpusgen.cli.progress import duration, progress_text
from corpusgen.events import Progress
from tests.loopback import Script, serving
from tests.runs import corpusgen, remote, succeeded, write_config, write_prompts


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_prompts(tmp_path / "prompts.jsonl", [f"question {i}" for i in range(20)])
    teacher = {"kind": "fake", "latency_s": 1.6}
    return write_config(tmp_path, teacher=teacher)


def on_a_terminal(*arguments: str | Path) -> str:
    """Run a command with a terminal as its standard error; return what it wrote there."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "corpusgen", *map(str, arguments)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=environment) as p:
        os.close(theirs)
        written = b""
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # Linux: the other side is closed
                break
            if not data:
                break
            written += data
        os.close(ours)
    assert p.returncode == 0
    return written.decode()


def test_a_terminal_gets_a_live_line(config: Path) -> None:
    shown = on_a_terminal("run", config)
    assert "\x1b[" in shown
    assert "0/20 (0%)" in shown
    assert "20 in flight" in shown
    assert "20/20 (100%)" in shown
    assert "curated: 20 of 20 kept" in shown


def test_elsewhere_there_are_plain_lines(config: Path) -> None:
    done = corpusgen("run", config)
    succeeded(done)
    assert "\x1b" not in done.stderr
    lines = done.stderr.splitlines()
    assert any("20/20 (100%)" in line for line in lines)
    assert all(line[:8].count(":") == 2 for line in lines)


def test_verbose_tells_commits_and_retries(tmp_path: Path) -> None:
    write_prompts(tmp_path / "prompts.jsonl", ["one", "[[once:500]] two"])
    with serving(Script()) as server:
        retry = {"first_wait_s": 0.01}
        config = write_config(tmp_path, teacher=remote(server.base_url), generate={"retry": retry})
        done = corpusgen("run", config, "-v")
    succeeded(done)
    assert "server_error: " in done.stderr
    assert "committed partition 0 part 0: 2 generations" in done.stderr


def test_progress_in_words() -> None:
    progress = Progress(
        done=50,
        total=200,
        failures={"timeout": 2},
        in_flight=8,
        completion_tokens=5000,
        tokens_per_s=1234.5,
        elapsed_s=10.0,
        remaining_s=190.0,
        cost_usd="0.0123",
        retries=3,
    )
    assert progress_text(progress) == (
        "50/200 (25%) · 1,234 tokens/s · 8 in flight · failed: 2 timeout · 3 attempts failed · "
        "$0.0123 · 3 min 10 s left"
    )


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (61, "1 min 1 s"), (7500, "2 h 5 min")]
)
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text
