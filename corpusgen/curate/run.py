"""Judge every generation of a corpus, and write the verdicts beside it.

Two passes over the parts. The first runs the filters, writes each part's verdicts, and enters what
is kept into the contest of exact duplicates; the second rewrites only the verdicts of parts in
which a duplicate was found. `curation.json` is written last: its presence is the commit, and what
a crashed curation left behind is written again. Generations are read and never touched.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from corpusgen import plugins
from corpusgen.config import Curate
from corpusgen.curate.chain import NamedFilter, Verdict, filter_options, judge, load_filters
from corpusgen.curate.dedup import Contest, mode_of
from corpusgen.curate.parts import (
    PartInput,
    count_rows,
    read_generations,
    read_verdicts,
    verdict_table,
    verdicts_path,
    write_verdicts,
)
from corpusgen.errors import CorpusError
from corpusgen.events import Curated, Observer, ignore
from corpusgen.files import write_file
from corpusgen.updates import UPDATED, Updates, updated

ALGORITHM_VERSION = 1
"""Raised with every change that may change a verdict of the same settings."""

RETIRED = Verdict("retired", "its prompt is no longer in the prompt set")
DUPLICATE = "duplicate"
SAME = "same as another generation"
"""The reason under which duplicates are counted; each one's verdict names its survivor."""
_NO_UPDATES: Updates = {}
MOST_REASONS = 500
"""Different reasons that are counted apart; what a plug-in adds beyond is counted together."""


class ReasonCount(msgspec.Struct, frozen=True):
    """How many generations were dropped for one reason."""

    filter: str
    reason: str
    count: int


class CurationResult(msgspec.Struct, frozen=True):
    """A finished curation: what `curation.json` holds."""

    digest: str
    generations: int
    kept: int
    dropped: dict[str, int]
    """By filter; `retired` and `duplicate` stand among them."""
    reasons: tuple[ReasonCount, ...]
    parts: dict[str, int]
    """Rows of each part."""
    settings: Any
    algorithm: int = ALGORITHM_VERSION
    reused: bool = False


def curation_digest(
    settings: Curate,
    parts: Iterable[PartInput],
    retired: AbstractSet[str] = frozenset(),
    updates: Updates = _NO_UPDATES,
) -> str:
    """Return 32 hexadecimal digits that name a curation: equal digests mean equal verdicts.

    Covers the settings, the parts (in any order), the retired samples, the sources of filters that
    other packages bring, and the version of the algorithms; the updates where a filter reads the
    reference or the metadata.
    """
    canonical: dict[str, Any] = {
        "algorithm": ALGORITHM_VERSION,
        "settings": _canonical(settings),
        "parts": sorted((part.name, part.digest) for part in parts),
        "retired": sorted(retired),
        "sources": {
            name: plugins.fingerprint(plugins.FILTERS, name) for name, _ in filter_options(settings)
        },
    }
    if updates and _read_by_a_filter(settings):
        canonical["updates"] = dict(updates)
    encoded = msgspec.json.encode(canonical, order="deterministic")
    return hashlib.blake2b(encoded, digest_size=16).hexdigest()


def _read_by_a_filter(settings: Curate) -> bool:
    """Tell whether a filter reads a column that updates change."""
    read = {name for named in load_filters(settings) for name in named.filter.columns}
    return not read.isdisjoint(UPDATED)


def curate(
    settings: Curate,
    parts: Sequence[PartInput],
    directory: Path,
    observer: Observer = ignore,
    retired: AbstractSet[str] = frozenset(),
    updates: Updates = _NO_UPDATES,
) -> CurationResult:
    """Write a verdict for every generation under `directory/verdicts/`, then `curation.json`.

    A curation that is finished under the same digest is returned as it is, with `reused` set.
    `updates` are the plan's latest references and metadata by sample id; filters that read them see
    these. Verdicts depend neither on the parts' order nor on how rows are cut into parts. Raises
    `ConfigError` on the filters, `CorpusError` on a generations file that cannot be read.
    """
    digest = curation_digest(settings, parts, retired, updates)
    found = read_curation(directory)
    if found is not None and _stands(found, digest, parts, directory):
        result = msgspec.structs.replace(found, reused=True)
    else:
        result = _curate(settings, parts, directory, retired, updates, digest)
        write_file(directory / "curation.json", msgspec.json.format(msgspec.json.encode(result)))
    observer(Curated(digest, result.generations, result.kept, dict(result.dropped), result.reused))
    return result


def read_curation(directory: Path) -> CurationResult | None:
    """Return the curation that is finished in a directory; null where there is none."""
    try:
        return msgspec.json.decode((directory / "curation.json").read_bytes(), type=CurationResult)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _stands(
    found: CurationResult, digest: str, parts: Sequence[PartInput], directory: Path
) -> bool:
    return found.digest == digest and all(
        verdicts_path(directory, part.name).is_file() for part in parts
    )


def _curate(
    settings: Curate,
    parts: Sequence[PartInput],
    directory: Path,
    retired: AbstractSet[str],
    updates: Updates,
    digest: str,
) -> CurationResult:
    _clear(parts, directory)
    filters = load_filters(settings)
    rows = {part.name: count_rows(part.generations) for part in parts}
    mode = mode_of(settings.dedup)
    contest = mode and Contest(
        mode, within_prompt=settings.dedup.within_prompt, capacity=sum(rows.values())
    )
    dropped: Counter[tuple[str, str]] = Counter()
    entrants = [
        _judge_part(part, filters, directory, retired, updates, contest or None, dropped)
        for part in parts
    ]
    if contest:
        dropped[DUPLICATE, SAME] = _mark_duplicates(parts, entrants, directory, contest)
    return _result(digest, settings, rows, +dropped)


def _clear(parts: Sequence[PartInput], directory: Path) -> None:
    if len({part.name for part in parts}) != len(parts):
        raise CorpusError(f"{directory}: two parts have the same name, so nothing was curated.")
    (directory / "curation.json").unlink(missing_ok=True)
    shutil.rmtree(directory / "verdicts", ignore_errors=True)
    (directory / "verdicts").mkdir(parents=True)


def _judge_part(
    part: PartInput,
    filters: Sequence[NamedFilter],
    directory: Path,
    retired: AbstractSet[str],
    updates: Updates,
    contest: Contest | None,
    dropped: Counter[tuple[str, str]],
) -> int:
    """Write a part's verdicts by the filters; return how many generations enter the contest."""
    wanted = {"sample_id", *(name for named in filters for name in named.filter.columns)}
    wanted.update(contest.columns if contest else ())
    tables: list[pa.Table] = []
    entered = 0
    for table in read_generations(part.generations, sorted(wanted)):
        verdicts = _verdicts(updated(table, updates), filters, retired)
        tables.append(verdict_table(table["sample_id"], verdicts))
        _count(dropped, verdicts)
        if contest:
            kept = table.filter(tables[-1]["keep"])
            try:
                contest.add(kept)
            except ValueError as error:
                raise CorpusError(f"{part.generations}: {error}; it is another tool's.") from None
            entered += kept.num_rows
    write_verdicts(verdicts_path(directory, part.name), tables)
    return entered


def _verdicts(
    table: pa.Table, filters: Sequence[NamedFilter], retired: AbstractSet[str]
) -> list[Verdict | None]:
    if not retired:
        return judge(filters, table)
    gone = [sample in retired for sample in table["sample_id"].to_pylist()]
    judged = judge(filters, table)
    return [RETIRED if is_gone else verdict for is_gone, verdict in zip(gone, judged, strict=True)]


def _count(dropped: Counter[tuple[str, str]], verdicts: Iterable[Verdict | None]) -> None:
    for verdict in verdicts:
        if verdict is not None:
            key = (verdict.filter, verdict.reason)
            if key not in dropped and len(dropped) >= MOST_REASONS:
                key = (verdict.filter, "other reasons")
            dropped[key] += 1


def _mark_duplicates(
    parts: Sequence[PartInput], entrants: Sequence[int], directory: Path, contest: Contest
) -> int:
    """Rewrite the verdicts of the parts that hold duplicates; return how many there are."""
    losers, survivors = contest.losers()
    bounds = np.concatenate([[0], np.cumsum(entrants, dtype=np.int64)])
    cuts = np.searchsorted(losers, bounds)
    for index, part in enumerate(parts):
        here = slice(cuts[index], cuts[index + 1])
        if here.start != here.stop:
            reasons = {
                int(loser): f"same as {contest.sample_id(survivor)}"
                for loser, survivor in zip(
                    losers[here] - bounds[index], survivors[here], strict=True
                )
            }
            _mark_part(verdicts_path(directory, part.name), reasons)
    return len(losers)


def _mark_part(path: Path, reasons: dict[int, str]) -> None:
    """Drop the kept rows of a part that `reasons` names by their rank among its kept rows."""
    table = read_verdicts(path)
    kept = np.flatnonzero(table["keep"].to_numpy())
    columns = table.to_pydict()
    for rank, reason in reasons.items():
        row = int(kept[rank])
        columns["keep"][row] = False
        columns["filter"][row] = DUPLICATE
        columns["reason"][row] = reason
    write_verdicts(path, [pa.table(columns, schema=table.schema)])


def _result(
    digest: str, settings: Curate, rows: dict[str, int], dropped: Counter[tuple[str, str]]
) -> CurationResult:
    by_filter: Counter[str] = Counter()
    for (name, _), count in dropped.items():
        by_filter[name] += count
    total = sum(rows.values())
    return CurationResult(
        digest=digest,
        generations=total,
        kept=total - by_filter.total(),
        dropped=dict(sorted(by_filter.items())),
        reasons=tuple(
            ReasonCount(name, reason, count) for (name, reason), count in sorted(dropped.items())
        ),
        parts=rows,
        settings=_canonical(settings),
    )


def _canonical(settings: Curate) -> dict[str, Any]:
    """Spell the settings out, so that a default and its mention have one digest."""
    mode = mode_of(settings.dedup)
    return {
        "filters": [[name, options] for name, options in filter_options(settings)],
        "dedup": {
            "exact": mode or False,
            "within_prompt": settings.dedup.within_prompt and mode in ("pair", "response"),
        },
    }
