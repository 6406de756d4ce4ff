"""Open a corpus for writing: lock it, check what is fixed, store the configuration, plan.

A corpus in which nothing was asked yet holds nothing worth keeping: there a changed configuration
simply plans anew.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

import corpusgen
from corpusgen.config import Config
from corpusgen.config_file import LoadedConfig
from corpusgen.corpus import Facts, create_or_check, new_facts, replace_facts
from corpusgen.errors import ConfigError, CorpusError, PlanConflict
from corpusgen.events import Log, Observer, Planned
from corpusgen.files import put_if_absent, write_file
from corpusgen.layout import Layout
from corpusgen.lease import Lease, WatchedLease
from corpusgen.pipeline.asking import (
    Tariffs,
    check_budget,
    check_capabilities,
    check_finishing,
    make_teachers,
    set_requests,
    tariffs_of,
)
from corpusgen.plan.planning import plan
from corpusgen.plan.segments import Plan, Run
from corpusgen.teachers.interface import Teacher


class Session(msgspec.Struct, frozen=True):
    """A corpus that this process may write to."""

    loaded: LoadedConfig
    layout: Layout
    facts: Facts
    lease: Lease | WatchedLease
    teachers: dict[str, Teacher]
    tariffs: Tariffs
    """By teacher and endpoint."""

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.loaded.config

    journal_directory: Path
    """Where open partitions' journals lie."""

    def plan(self) -> Plan:
        """Return the plan as it stands now."""
        return Plan(self.layout, self.facts.partition_size)

    def teacher_of(self, plan: Plan, run: Run) -> str | None:
        """Return which configured teacher answers a run's samples: the one of the same identity.

        A teacher's name in the configuration is no part of a sample's identity: what counts is
        that another model never answers for the one that was planned.
        """
        keys = plan.keys_of(run)
        planned = {k.removeprefix("teacher."): v for k, v in keys.items() if k[:8] == "teacher."}
        same = [
            name
            for name, teacher in self.teachers.items()
            if msgspec.to_builtins(teacher.identity) == planned
        ]
        return run.teacher if run.teacher in same else next(iter(same), None)


@contextmanager
def opened(loaded: LoadedConfig, command: str) -> Iterator[Session]:
    """Lock the corpus for asking a teacher, for a `with` block; make it where there is none.

    Raises `ConfigError`, `CorpusError`, `CorpusLocked` or `PlanConflict` before anything is asked.
    """
    config = loaded.config
    teachers = make_teachers(config)
    check_capabilities(config, teachers)
    check_finishing(config)
    tariffs = tariffs_of(config, teachers)
    check_budget(config, tariffs)
    layout = layout_of(config)
    new = not layout.root.exists()
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(f"{layout.root}: cannot be made: {error.strerror}.") from None
    with Lease(layout.lease, command) as lease:
        facts = _facts(layout, config)
        journals = _journal_directory(layout, facts, config.generate.journal_dir)
        _store(layout, loaded)
        yield Session(loaded, layout, facts, lease, teachers, tariffs, journals)
    if new and not any(layout.root.iterdir()):
        layout.root.rmdir()


def layout_of(config: Config) -> Layout:
    """Return where the corpus of a configuration lies; raise `ConfigError` on an object store."""
    if "://" in config.out:
        raise ConfigError(
            f"out: {config.out} is an object store; this version writes to directories only."
        )
    return Layout(Path(config.out))


def _facts(layout: Layout, config: Config) -> Facts:
    generate = config.generate
    wanted = new_facts(
        corpusgen.__version__,
        generate.partition_size,
        config.sampling.top_logprobs,
        generate.logprob_precision,
    )
    try:
        return create_or_check(layout, wanted)
    except PlanConflict:
        if not _untouched(layout):
            raise
        shutil.rmtree(layout.plan, ignore_errors=True)
        replace_facts(layout, wanted)
        return wanted


def _untouched(layout: Layout) -> bool:
    """Tell whether nothing was ever asked in this corpus."""
    if any(layout.batches.glob("*.json")):
        return False
    journals = [layout.journal, *_recorded_journals(layout)]
    return not any(layout.commits.glob("*.json")) and not any(
        any(directory.glob("*.log")) for directory in journals
    )


def _journal_directory(layout: Layout, facts: Facts, chosen: str | None) -> Path:
    """Return where journals lie, and record it: what they hold must be found by the next run.

    Raises `CorpusError` where another directory still holds journals of this corpus.
    """
    wanted = Path(chosen).resolve() / facts.corpus_id if chosen else layout.journal
    for directory in (layout.journal, *_recorded_journals(layout)):
        if directory.resolve() != wanted.resolve() and any(directory.glob("*.log")):
            raise CorpusError(
                f"{directory}: holds journals of this corpus, but generate.journal_dir names "
                f"{wanted}; put it back for one run, which commits what they hold."
            )
    recorded = None if wanted == layout.journal else str(wanted)
    if recorded != _read_record(layout):
        write_file(layout.journal_record, msgspec.json.encode(recorded) + b"\n")
    return wanted


def _recorded_journals(layout: Layout) -> list[Path]:
    recorded = _read_record(layout)
    return [] if recorded is None else [Path(recorded)]


def _read_record(layout: Layout) -> str | None:
    try:
        return msgspec.json.decode(layout.journal_record.read_bytes(), type=str | None)
    except (OSError, msgspec.DecodeError):
        return None


def _store(layout: Layout, loaded: LoadedConfig) -> None:
    """Keep the configuration, unexpanded, under its digest."""
    content = loaded.text.encode()
    digest = hashlib.blake2b(content, digest_size=8).hexdigest()
    put_if_absent(layout.configurations / f"{digest}.yaml", content)


def make_plan(session: Session, observer: Observer, *, add: bool, skip_bad_prompts: bool) -> Plan:
    """Bring the plan up to the configuration and tell what it holds."""
    requests = set_requests(session.loaded, session.teachers)
    skip = skip_bad_prompts or session.config.generate.skip_bad_prompts
    size = session.facts.partition_size
    try:
        result = plan(session.layout, requests, partition_size=size, add=add, skip_bad_prompts=skip)
    except PlanConflict:
        if not _untouched(session.layout):
            raise
        shutil.rmtree(session.layout.plan)
        observer(Log("info", "nothing was asked under the old configuration; planning anew"))
        result = plan(session.layout, requests, partition_size=size, add=add, skip_bad_prompts=skip)
    current = session.plan()
    retired = current.retired()
    observer(
        Planned(
            samples=current.samples - len(retired),
            new_samples=result.new_samples,
            partitions=current.partitions,
            aliases=sum(counts.aliases for counts in result.sets.values()),
            retired=len(retired),
            bad_prompts=sum(counts.bad_prompts for counts in result.sets.values()),
        )
    )
    return current
