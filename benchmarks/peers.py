"""The peers that benchmarks compare with, each in a virtual environment of its own.

Made with pip when first needed, and kept under `~/.cache/corpusgen-bench` (or
`$CORPUSGEN_BENCH_CACHE`): about 1.5 GB for both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

CLIENTS = Path(__file__).resolve().parent / "clients"

REQUIREMENTS = {
    "curator": ["bespokelabs-curator==0.1.31"],
    # It imports requests, which its dependencies brought along when it was released.
    "distilabel": ["distilabel[openai]==1.5.3", "requests"],
}


def python_of(peer: str) -> Path:
    """Return the Python that has a peer; install it where there is none yet."""
    default = Path.home() / ".cache" / "corpusgen-bench"
    root = Path(os.environ.get("CORPUSGEN_BENCH_CACHE") or default) / peer
    python, made = root / "bin" / "python", root / ".made"
    wanted = "\n".join(REQUIREMENTS[peer])
    if not made.exists() or made.read_text() != wanted:
        print(f"installing {peer} into {root} (once)", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(root)], check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, *REQUIREMENTS[peer]], check=True, stdout=sys.stderr)
        made.write_text(wanted)
    return python
