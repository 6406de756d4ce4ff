"""Count where a corpus stands, from its commits; retired samples do not count."""

from __future__ import annotations

from pathlib import Path

import msgspec

from corpusgen.corpus import Corpus
from corpusgen.errors import CorpusgenError
from corpusgen.layout import Layout
from corpusgen.parquet import read_table
from corpusgen.plan.segments import Plan


class Generated(msgspec.Struct, frozen=True):
    """Where a corpus stands."""

    planned: int
    """Samples that the configuration asks for."""
    generations: int
    failures: int
    stopped: CorpusgenError | None = None
    """Why a run ended early."""

    @property
    def pending(self) -> int:
        """Samples that have not ended."""
        return max(self.planned - self.generations - self.failures, 0)


def counted(layout: Layout, plan: Plan, stopped: CorpusgenError | None = None) -> Generated:
    """Return where a corpus stands; raise `CorpusError` on a file that cannot be read."""
    corpus = Corpus(layout.root)
    retired = plan.retired()
    generations = corpus.rows("generations")
    failures = sum(commit.ended for commit in corpus.commits) - generations
    if retired:
        generated = _ids_among(corpus.files("generations"), retired)
        failed = _ids_among(corpus.files("failures"), retired) - generated
        generations, failures = generations - len(generated), failures - len(failed)
    return Generated(plan.samples - len(retired), generations, failures, stopped)


def _ids_among(files: list[Path], wanted: frozenset[str]) -> set[str]:
    found: set[str] = set()
    for path in files:
        found |= wanted.intersection(read_table(path, ["sample_id"])["sample_id"].to_pylist())
    return found
