"""The report in a real browser: it renders, and what a teacher wrote stays text."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.runs import corpusgen, succeeded, write_config, write_prompts

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on this machine (.ci/run installs Debian's)"
)

HOSTILE = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"


def dumped_dom(page: Path, profile: Path) -> str:
    assert CHROMIUM is not None
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=2000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


def test_a_hostile_corpus_is_shown_and_not_run(tmp_path: Path) -> None:
    prompts = [f"question {i} {HOSTILE}" for i in range(5)]
    write_prompts(tmp_path / "prompts.jsonl", prompts)
    config = write_config(tmp_path, card={"title": f"A corpus {HOSTILE}"})
    succeeded(corpusgen("run", config))
    dom = dumped_dom(tmp_path / "out/report.html", tmp_path / "profile")
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None
    assert title.group(1).strip() != "owned"
    assert "A corpus" in title.group(1)
    assert "<script" not in dom
    assert "<img" not in dom
    assert dom.count("question ") >= 5
    assert "<svg" in dom
