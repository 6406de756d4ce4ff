"""Prove a corpus' promises from its files alone.

Every planned sample is exactly one of: a generation, a failure that no generation supersedes, or
pending; no id stands twice; files match their commit markers in rows and digest; the attempts that
a row states are the attempt rows that name it; what is charged keeps within the budget; the token
columns of a row are equally long; every finished curation has one verdict for each generation it
was made of; an export holds as many rows as its curation kept. Partitions are checked one by one,
so memory stays flat; ids are compared across partitions through buckets on disk.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from corpusgen import commits, money, schema
from corpusgen.commits import Commit, PartFile
from corpusgen.corpus import Corpus
from corpusgen.curate.run import CurationResult
from corpusgen.errors import CorpusError
from corpusgen.export.run import ExportResult
from corpusgen.plan.spill import Buckets

_Marker = TypeVar("_Marker")
_TOKEN_COLUMNS = (
    "completion_token_ids",
    "completion_token_bytes",
    "sampled_logprob",
    "sampled_rank",
    "topk_ids",
    "topk_bytes",
    "topk_logprobs",
)
_SCHEMAS = {
    "generations": schema.GENERATIONS,
    "failures": schema.FAILURES,
    "attempts": schema.ATTEMPTS,
}


class Contradiction(CorpusError):
    """Report the first place where a corpus contradicts itself."""


class Proof(msgspec.Struct, frozen=True):
    """What was checked and holds."""

    samples: int
    generations: int
    failures: int
    pending: int
    """Retired samples that were never asked included."""
    attempts: int
    lost_attempts: int
    files: int
    curations: int
    exports: int
    positions_without_distribution: int
    """Completion tokens for which the teacher gave no top-k although the corpus stores it."""


class _Row(msgspec.Struct, frozen=True):
    """A sample that ended, by the part that says so last."""

    kind: str
    attempts: int
    path: Path


class _Seen(msgspec.Struct):
    """Sums while partitions are checked."""

    generations: int = 0
    failures: int = 0
    attempts: int = 0
    lost: int = 0
    pending: int = 0
    """Without the retired ones, which nobody asks for any more."""
    files: int = 0
    without_distribution: int = 0


def verify(
    corpus: Corpus, *, complete: bool = False, progress: Callable[[int], None] | None = None
) -> Proof:
    """Check everything; raise `Contradiction` at the first that does not hold.

    `complete` makes a pending sample a contradiction. `progress` is told each partition.
    """
    seen = _Seen()
    by_partition = commits.by_partition(corpus.commits)
    _check_markers(corpus, by_partition)
    _check_budget(corpus)
    retired = corpus.plan.retired()
    for partition in range(corpus.plan.partitions):
        _check_partition(corpus, partition, by_partition.get(partition, []), retired, seen)
        if progress is not None:
            progress(partition)
    _check_unique(corpus)
    if complete and seen.pending:
        raise Contradiction(
            f"{corpus.path}: {seen.pending} samples are pending; run the same command again to ask "
            "them."
        )
    curations, exports = corpus.curations(), corpus.datasets()
    kept = {_check_curation(corpus, directory) for directory in curations}
    for directory in exports:
        _check_export(directory, kept)
    return Proof(
        samples=corpus.plan.samples,
        generations=seen.generations,
        failures=seen.failures,
        pending=corpus.plan.samples - seen.generations - seen.failures,
        attempts=seen.attempts,
        lost_attempts=seen.lost,
        files=seen.files,
        curations=len(curations),
        exports=len(exports),
        positions_without_distribution=seen.without_distribution,
    )


def _check_markers(corpus: Corpus, by_partition: dict[int, list[Commit]]) -> None:
    for partition, parts in by_partition.items():
        if partition >= corpus.plan.partitions:
            raise Contradiction(
                f"{corpus.layout.commits}: partition {partition} is committed but not planned."
            )
        if [commit.part for commit in parts] != list(range(len(parts))):
            raise Contradiction(
                f"{corpus.layout.commits}: a part of partition {partition} is missing; "
                f"found parts {[commit.part for commit in parts]}."
            )


def _check_budget(corpus: Corpus) -> None:
    """Check that what is charged never passed the highest budget under which it was asked.

    The configurations do not say in which order they were used, and a budget may be lowered after
    it was spent. So nothing is checked where one of them has no budget that can be read.
    """
    budgets = [_budget(path) for path in sorted(corpus.layout.configurations.glob("*.yaml"))]
    known = [budget for budget in budgets if budget is not None]
    if not known or len(known) < len(budgets):
        return
    charged = sum(commit.charged_picousd for commit in corpus.commits)
    limit = money.picousd(max(known))
    if charged > limit:
        raise Contradiction(
            f"{corpus.layout.commits}: ${money.dollars(charged)} is charged, more than "
            f"generate.budget_usd (${money.dollars(limit)}) allows."
        )


def _budget(path: Path) -> Decimal | None:
    """Return a stored configuration's budget; null where it has none, or one of a variable."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        tree = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        limit = Decimal(str(tree["generate"]["budget_usd"]))
    except (OSError, YAMLError, ValueError, RecursionError, InvalidOperation):
        return None
    except (LookupError, TypeError):  # no mapping, or without this key
        return None
    return limit if limit.is_finite() else None


def _check_partition(
    corpus: Corpus, partition: int, parts: list[Commit], retired: AbstractSet[str], seen: _Seen
) -> None:
    planned = corpus.plan.ids_of(partition)
    if len(planned) != corpus.plan.rows_of(partition):
        raise Contradiction(
            f"{corpus.layout.plan}: partition {partition} holds {len(planned)} samples, but its "
            f"marker says {corpus.plan.rows_of(partition)}."
        )
    known = set(planned)
    ended: dict[str, _Row] = {}
    sent: Counter[str] = Counter()
    for commit in parts:
        _check_attempts(corpus, commit, known, sent, seen)
        for sample, row in _rows(corpus, commit, known, seen):
            if sample in ended and ended[sample].kind == "generations":
                raise Contradiction(f"{row.path}: sample {sample} has ended before.")
            _check_stated(sample, row, sent)
            ended[sample] = row
    for sample, row in ended.items():
        if row.kind == "generations":  # a failure may have been asked again in a later part
            _check_stated(sample, row, sent)
    kinds = Counter(row.kind for row in ended.values())
    seen.generations += kinds["generations"]
    seen.failures += kinds["failures"]
    seen.pending += len((known - ended.keys()) - retired)
    stated = sum(commit.ended for commit in parts)
    if stated != len(ended):
        raise Contradiction(
            f"{corpus.layout.commits}: the markers of partition {partition} state {stated} ended "
            f"samples, but its files hold {len(ended)}."
        )


def _check_stated(sample: str, row: _Row, sent: Counter[str]) -> None:
    if row.attempts != sent[sample]:
        raise Contradiction(
            f"{row.path}: sample {sample} states {row.attempts} attempts, but {sent[sample]} "
            "attempt rows name it."
        )


def _rows(
    corpus: Corpus, commit: Commit, known: set[str], seen: _Seen
) -> Iterator[tuple[str, _Row]]:
    """Yield the samples that one part says have ended."""
    for kind in ("generations", "failures"):
        file = commit.files.get(kind)
        if file is None:
            continue
        columns = ["sample_id", "attempts"]
        if kind == "generations":
            columns += ["completion_tokens", *_TOKEN_COLUMNS]
        previous = ""
        for path, table in _tables(corpus, kind, file, columns, seen):
            if kind == "generations":
                seen.without_distribution += _check_tokens(path, table)
            for sample, attempts in zip(
                table["sample_id"].to_pylist(), table["attempts"].to_pylist(), strict=True
            ):
                if sample not in known:
                    raise Contradiction(f"{path}: sample {sample} was never planned.")
                if sample <= previous:
                    raise Contradiction(f"{path}: sample {sample} stands twice or out of order.")
                previous = sample
                yield sample, _Row(kind, attempts, path)


def _check_attempts(
    corpus: Corpus, commit: Commit, known: set[str], sent: Counter[str], seen: _Seen
) -> None:
    file = commit.files.get("attempts")
    columns = ["sample_ids", "outcome", "cost_picousd", "reserved_picousd"]
    settled = reserved = 0
    if file is not None:
        for path, table in _tables(corpus, "attempts", file, columns, seen):
            for samples in table["sample_ids"].to_pylist():
                if not known.issuperset(samples):
                    raise Contradiction(f"{path}: an attempt names a sample of another partition.")
                sent.update(samples)
            seen.attempts += table.num_rows
            seen.lost += pc.sum(pc.equal(table["outcome"], "lost")).as_py() or 0
            settled += pc.sum(table["cost_picousd"]).as_py() or 0
            unknown = table.filter(pc.is_null(table["cost_picousd"]))
            reserved += pc.sum(unknown["reserved_picousd"]).as_py() or 0
    if (settled, reserved) != (commit.settled_picousd, commit.reserved_picousd):
        raise Contradiction(
            f"{corpus.layout.commit(commit.partition, commit.part)}: states a cost of "
            f"{commit.settled_picousd} + {commit.reserved_picousd} picodollars, but its attempt "
            f"rows sum up to {settled} + {reserved}."
        )


def _tables(
    corpus: Corpus, kind: str, file: PartFile, columns: list[str], seen: _Seen
) -> Iterator[tuple[Path, pa.Table]]:
    """Yield a committed file's row groups, after its digest and before its row count is checked."""
    path = corpus.path / file.path
    seen.files += 1
    rows = 0
    with _readable(path):
        if commits.file_digest(path) != file.digest:
            raise Contradiction(
                f"{path}: its content is not what was committed (the digest differs)."
            )
        with pq.ParquetFile(path) as opened:
            if not opened.schema_arrow.equals(_SCHEMAS[kind]):
                raise Contradiction(f"{path}: its columns are not those of format 1.")
            for group in range(opened.num_row_groups):
                table = opened.read_row_group(group, columns=columns)
                rows += table.num_rows
                yield path, table
    if rows != file.rows:
        raise Contradiction(f"{path}: holds {rows} rows, but its marker says {file.rows}.")


def _check_tokens(path: Path, table: pa.Table) -> int:
    """Check that token columns are equally long; return the positions without a distribution."""
    lengths = {
        name: pc.list_value_length(table[name]).to_numpy(zero_copy_only=False)
        for name in _TOKEN_COLUMNS
    }
    expected = np.full(table.num_rows, np.nan)
    for name in _TOKEN_COLUMNS:
        given = lengths[name].astype(float)
        differ = ~np.isnan(given) & ~np.isnan(expected) & (given != expected)
        if differ.any():
            sample = table["sample_id"][int(np.argmax(differ))].as_py()
            raise Contradiction(f"{path}: sample {sample}: the column {name} has another length.")
        expected = np.where(np.isnan(expected), given, expected)
    topk = table["topk_logprobs"].combine_chunks()
    return int(topk.flatten().null_count)


def _check_unique(corpus: Corpus) -> None:
    """Check that no sample is planned twice, in flat memory."""
    with tempfile.TemporaryDirectory(prefix="corpusgen-verify-") as directory:
        buckets = Buckets(Path(directory) / "ids")
        for partition in range(corpus.plan.partitions):
            for sample in corpus.plan.ids_of(partition):
                buckets.add(sample, 0, partition)
        for bucket in range(256):
            entries = buckets.read(bucket)
            ids, counts = np.unique(entries["id"], return_counts=True)
            if (counts > 1).any():
                twice = ids[int(np.argmax(counts > 1))].ljust(16, b"\0").hex()
                raise Contradiction(f"{corpus.layout.plan}: sample {twice} is planned twice.")


def _check_curation(corpus: Corpus, directory: Path) -> int:
    """Check that each generation has one verdict; return how many are kept."""
    result = _marker(directory / "curation.json", CurationResult)
    kept = rows = 0
    files = {path.stem: path for path in corpus.files("generations")}
    for name, stated in result.parts.items():
        path = directory / "verdicts" / f"{name}.parquet"
        if name not in files:
            raise Contradiction(f"{path}: judges a part that is not committed.")
        with _readable(path), pq.ParquetFile(path) as opened:
            if not opened.schema_arrow.equals(schema.VERDICTS):
                raise Contradiction(f"{path}: its columns are not those of format 1.")
            table = opened.read()
        ids = pq.ParquetFile(files[name]).read(columns=["sample_id"])["sample_id"]
        if table.num_rows != stated or not table["sample_id"].equals(ids):
            raise Contradiction(f"{path}: has not one verdict for each generation of its part.")
        rows += table.num_rows
        kept += pc.sum(table["keep"]).as_py() or 0
    if (rows, kept) != (result.generations, result.kept):
        raise Contradiction(
            f"{directory / 'curation.json'}: states {result.generations} generations and "
            f"{result.kept} kept, but its verdicts hold {rows} and {kept}."
        )
    return kept


def _check_export(directory: Path, kept: Collection[int]) -> None:
    """Check a dataset's files; `kept` is what each finished curation keeps."""
    result = _marker(directory / "export.json", ExportResult)
    for file in result.files:
        with _readable(directory / file.path):
            size = (directory / file.path).stat().st_size
        if size != file.size:
            raise Contradiction(
                f"{directory / file.path}: has {size} bytes, but export.json says {file.size}."
            )
    for split, stated in result.rows.items():
        found = 0
        for path in sorted(directory.glob(f"{split}-*.parquet")):
            with _readable(path):
                found += pq.read_metadata(path).num_rows
        if found != stated:
            raise Contradiction(
                f"{directory}: the split {split} holds {found} rows, but export.json says {stated}."
            )
    total = sum(result.rows.values())
    if kept and total not in kept:
        raise Contradiction(
            f"{directory}: holds {total} rows, but no finished curation keeps as many."
        )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what reading a file raises into a contradiction."""
    try:
        yield
    except FileNotFoundError:
        raise Contradiction(f"{path}: is missing.") from None
    except (OSError, pa.ArrowException) as error:
        problem = " ".join(str(error).splitlines()[:1]).rstrip(".")
        raise Contradiction(f"{path}: cannot be read: {problem}.") from None


def _marker(path: Path, kind: type[_Marker]) -> _Marker:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Contradiction(f"{path}: is not readable: {error}.") from None
