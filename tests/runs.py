"""Run the command line as a user does: in a process of its own, on files of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from corpusgen.corpus import Corpus, load


def write_prompts(path: Path, prompts: Sequence[str | Mapping[str, Any]]) -> Path:
    """Write a JSONL prompt set."""
    rows = [{"prompt": p} if isinstance(p, str) else dict(p) for p in prompts]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_config(directory: Path, **keys: Any) -> Path:
    """Write a configuration; keys replace those of a small default with the fake teacher."""
    config: dict[str, Any] = {
        "out": str(directory / "out"),
        "prompts": [{"path": "prompts.jsonl"}],
        "teacher": {"kind": "fake"},
        "sampling": {"temperature": 0.7, "max_tokens": 64, "seed": 1},
    }
    config |= keys
    path = directory / "config.yaml"
    path.write_bytes(msgspec.json.encode(config))  # JSON is YAML
    return path


def remote(base_url: str, **keys: Any) -> dict[str, Any]:
    """Return a teacher behind one endpoint."""
    endpoint = {"base_url": base_url, **keys.pop("endpoint", {})}
    return {"kind": "openai", "model": "m", "endpoints": [endpoint]} | keys


def corpusgen(
    *arguments: str | Path,
    timeout: float = 120,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "corpusgen", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        check=False,
    )


def start(*arguments: str | Path, **keywords: Any) -> subprocess.Popen[str]:
    """Start a command."""
    return subprocess.Popen(
        [sys.executable, "-m", "corpusgen", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **keywords,
    )


def succeeded(done: subprocess.CompletedProcess[str], code: int = 0) -> str:
    """Return a command's output; fail with all of it where the exit code is another."""
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


def corpus_of(directory: Path) -> Corpus:
    """Open the corpus of `write_config`."""
    return load(directory / "out")


def texts(corpus: Corpus) -> dict[str, str]:
    """Return the answers by sample id; fail where one stands twice."""
    table = corpus.generations().to_table(columns=["sample_id", "text"])
    ids = table["sample_id"].to_pylist()
    assert len(ids) == len(set(ids))
    return dict(zip(ids, table["text"].to_pylist(), strict=True))
