"""Open a corpus to read it: its facts, its commits, and its files as Arrow datasets.

Only committed files are seen, so a corpus can be read while another process writes to it.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pyarrow as pa

from corpusgen import commits, schema
from corpusgen.commits import Commit
from corpusgen.errors import CorpusError, PlanConflict
from corpusgen.files import TEMPORARY_SUFFIX, put_if_absent, write_file
from corpusgen.layout import Layout
from corpusgen.plan.segments import Plan

if TYPE_CHECKING:
    import pyarrow.dataset as ds


class Facts(msgspec.Struct, frozen=True):
    """`corpus.json`: what is fixed for a corpus when it is made."""

    format_version: int
    corpus_id: str
    created_at: str
    """ISO 8601, UTC."""
    corpusgen_version: str
    partition_size: int
    top_logprobs: int
    logprob_precision: str


LAYOUT_KEYS = {
    "partition_size": "generate.partition_size",
    "top_logprobs": "sampling.top_logprobs",
    "logprob_precision": "generate.logprob_precision",
}
"""Fields of `Facts` that a configuration may not change, with their keys there."""


class Corpus:
    """A corpus on disk. Construction reads `corpus.json`, the commit markers and plan markers."""

    def __init__(self, path: str | Path) -> None:
        """Open a corpus; raise `CorpusError` where there is none, or a newer or torn one."""
        self.layout = Layout(Path(path))
        self.facts = read_facts(self.layout)
        self.commits: list[Commit] = commits.read_all(self.layout)
        self.plan = Plan(self.layout, self.facts.partition_size)

    @property
    def path(self) -> Path:
        """The corpus' directory."""
        return self.layout.root

    def files(self, kind: str) -> list[Path]:
        """Return the committed files of `generations`, `failures` or `attempts`, in order."""
        return [self.path / c.files[kind].path for c in self.commits if kind in c.files]

    def rows(self, kind: str) -> int:
        """Return how many committed rows of a kind there are."""
        return sum(commit.rows(kind) for commit in self.commits)

    def generations(self) -> ds.Dataset:
        """Return all generations as a lazy Arrow dataset (`schema.GENERATIONS`)."""
        return self._dataset("generations", schema.GENERATIONS)

    def failures(self) -> ds.Dataset:
        """Return all failures; one whose sample was answered later is still listed."""
        return self._dataset("failures", schema.FAILURES)

    def attempts(self) -> ds.Dataset:
        """Return the ledger's rows: one for each request sent."""
        return self._dataset("attempts", schema.ATTEMPTS)

    def curations(self) -> list[Path]:
        """Return the finished curations' directories, the latest last."""
        found = self.layout.curation.glob("*/curation.json")
        return [path.parent for path in sorted(found, key=lambda p: (p.stat().st_mtime_ns, p))]

    def verdicts(self, curation: str | None = None) -> ds.Dataset:
        """Return a curation's verdicts; the latest one's unless a digest is given."""
        directories = [d for d in self.curations() if curation in (None, d.name)]
        if not directories:
            raise CorpusError(f"{self.path}: no such curation; run `corpusgen curate`.")
        files = sorted((directories[-1] / "verdicts").glob("*.parquet"))
        return _dataset(files, schema.VERDICTS)

    def datasets(self) -> list[Path]:
        """Return the exported datasets' directories."""
        return sorted(path.parent for path in self.layout.datasets.glob("*/export.json"))

    def _dataset(self, kind: str, columns: pa.Schema) -> ds.Dataset:
        return _dataset(self.files(kind), columns)


def _dataset(files: list[Path], columns: pa.Schema) -> ds.Dataset:
    import pyarrow.dataset as ds  # takes 0.2 s: it imports pandas where that is installed

    return ds.dataset([str(path) for path in files], schema=columns, format="parquet")


def load(path: str | Path) -> Corpus:
    """Open a corpus lazily; nothing but its markers is read.

    >>> corpus = load("runs/quickstart")          # doctest: +SKIP
    >>> corpus.generations().to_table(columns=["text", "topk_logprobs"])   # doctest: +SKIP

    Raises `CorpusError` where `path` holds no corpus, or one of a newer format.
    """
    return Corpus(path)


def read_facts(layout: Layout) -> Facts:
    """Read `corpus.json`; raise `CorpusError` with what to do."""
    try:
        facts = msgspec.json.decode(layout.corpus_file.read_bytes(), type=Facts)
    except FileNotFoundError:
        raise CorpusError(
            f"{layout.root}: is no corpus (there is no corpus.json). Give the `out` of a run."
        ) from None
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorpusError(f"{layout.corpus_file}: is not readable: {error}.") from None
    if facts.format_version > schema.FORMAT_VERSION:
        raise CorpusError(
            f"{layout.corpus_file}: was written in format {facts.format_version}; this corpusgen "
            f"reads up to {schema.FORMAT_VERSION}. Install a newer one."
        )
    return facts


def create_or_check(layout: Layout, wanted: Facts) -> Facts:
    """Make a corpus, or check that the configuration's layout keys are those of the one there is.

    Raises `PlanConflict` where one differs, `CorpusError` where the directory holds other things.
    """
    if not layout.corpus_file.exists():
        if layout.root.exists() and any(
            path.name not in ("lease.json", "status.json") and path.suffix != TEMPORARY_SUFFIX
            for path in layout.root.iterdir()
        ):
            raise CorpusError(
                f"{layout.root}: is not empty and holds no corpus. Give `out` a new directory."
            )
        put_if_absent(layout.corpus_file, msgspec.json.format(msgspec.json.encode(wanted)) + b"\n")
    facts = read_facts(layout)
    changed = [
        f"{key} changed from {getattr(facts, field)} to {getattr(wanted, field)}"
        for field, key in LAYOUT_KEYS.items()
        if getattr(facts, field) != getattr(wanted, field)
    ]
    if changed:
        raise PlanConflict(
            f"{layout.root}: {', '.join(changed)}, which is fixed for a corpus. Put it back, or "
            "use another `out`."
        )
    return facts


def replace_facts(layout: Layout, facts: Facts) -> None:
    """Replace `corpus.json`, in a corpus in which nothing was asked yet."""
    write_file(layout.corpus_file, msgspec.json.format(msgspec.json.encode(facts)) + b"\n")


def new_facts(version: str, partition_size: int, top_logprobs: int, precision: str) -> Facts:
    """Return the facts of a corpus that is made now."""
    return Facts(
        format_version=schema.FORMAT_VERSION,
        corpus_id=uuid.uuid4().hex,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        corpusgen_version=version,
        partition_size=partition_size,
        top_logprobs=top_logprobs,
        logprob_precision=precision,
    )
