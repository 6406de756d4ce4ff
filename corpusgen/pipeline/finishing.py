"""The stages after generation: verdicts, datasets with their cards, and the report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

import corpusgen
from corpusgen import commits
from corpusgen import config as model
from corpusgen.config import Config, PromptSet
from corpusgen.config_file import LoadedConfig
from corpusgen.corpus import Corpus
from corpusgen.curate.parts import PartInput, verdicts_path
from corpusgen.curate.run import CurationResult, curate, curation_digest
from corpusgen.events import Observer
from corpusgen.export.card import (
    CardFacts,
    ColumnFacts,
    FunnelFacts,
    PromptSetFacts,
    TeacherFacts,
    render_card,
)
from corpusgen.export.kept import ExportInput
from corpusgen.export.run import ExportResult, export, read_export
from corpusgen.files import write_file
from corpusgen.ledger import Ledger
from corpusgen.money import dollars_text
from corpusgen.parquet import read_table
from corpusgen.plan.segments import SetCounts
from corpusgen.report import facts
from corpusgen.report.facts import GenerationFacts, gather
from corpusgen.report.html import render_report
from corpusgen.types import Sampling

_NO_PRICE = "not known: the teacher's price is not known"


def curate_corpus(corpus: Corpus, config: Config, observer: Observer) -> CurationResult:
    """Judge everything that is committed; found done where the settings and parts are the same."""
    parts = _parts(corpus)
    retired, updates = corpus.plan.retired(), corpus.plan.updates()
    digest = curation_digest(config.curate, parts, retired, updates)
    directory = corpus.layout.curation / digest
    result = curate(config.curate, parts, directory, observer, retired, updates)
    if result.reused:  # the latest curation is the one that was asked for last
        os.utime(directory / "curation.json")
    return result


def _parts(corpus: Corpus) -> list[PartInput]:
    return [
        PartInput(
            name=Path(commit.files["generations"].path).stem,
            generations=corpus.path / commit.files["generations"].path,
            digest=commit.files["generations"].digest,
        )
        for commit in corpus.commits
        if "generations" in commit.files
    ]


def export_corpus(
    corpus: Corpus, loaded: LoadedConfig, curation: CurationResult, told: Facts, observer: Observer
) -> list[Path]:
    """Write every dataset that the configuration asks for; return their directories."""
    directory = corpus.layout.curation / curation.digest
    inputs = [
        ExportInput(part.generations, verdicts_path(directory, part.name))
        for part in _parts(corpus)
    ]
    updates = corpus.plan.updates()
    destinations = []
    for options in loaded.config.export:
        destination = corpus.layout.datasets / (options.name or options.format)
        export(
            options,
            loaded.config.split,
            inputs,
            destination,
            lambda result, jsonl=options.jsonl: render_card(told.card(result, jsonl=jsonl)),  # type: ignore[misc]
            source=curation.digest,
            updates=updates,
            observer=observer,
        )
        destinations.append(destination)
    return destinations


class Facts:
    """What a corpus' cards and report have in common; counts the failures when it is made."""

    def __init__(
        self, corpus: Corpus, config: Config, curation: CurationResult, ledger: Ledger
    ) -> None:
        self._corpus = corpus
        self._config = config
        self._curation = curation
        self._ledger = ledger
        self.failed = failed_by_reason(corpus)
        self.cost = _cost_text(ledger)

    def card(self, result: ExportResult, *, jsonl: bool) -> CardFacts:
        """Return what the card of one dataset says."""
        config = self._config
        return CardFacts(
            title=config.card.title or f"{self._corpus.path.name} ({result.format})",
            corpus_id=self._corpus.facts.corpus_id,
            corpusgen_version=corpusgen.__version__,
            created=self._corpus.facts.created_at[:10],
            format=result.format,
            splits=result.rows,
            columns=tuple(ColumnFacts(column.name, column.type) for column in result.columns),
            teachers=self.teachers(),
            prompt_sets=self.prompt_sets(),
            funnel=self.funnel(),
            license=config.card.license or self._teacher_license(),
            languages=tuple(config.card.languages),
            description=config.card.description,
            prompt_tokens=result.prompt_tokens,
            completion_tokens=result.completion_tokens,
            cost=self.cost or _NO_PRICE,
            curation=curation_text(config),
            jsonl=jsonl,
        )

    def teachers(self) -> tuple[TeacherFacts, ...]:
        """Return the teachers that prompt sets name."""
        used = {model.set_teacher(self._config, s) for s in self._config.prompts}
        return tuple(
            TeacherFacts(
                name=name,
                model=options.model,
                revision=options.revision or _planned_revision(self._corpus, name),
                license=options.terms.license,
                training_allowed=options.terms.training_allowed,
                source=options.terms.source,
            )
            for name, options in model.teachers_of(self._config).items()
            if name in used
        )

    def prompt_sets(self) -> tuple[PromptSetFacts, ...]:
        """Return the prompt sets, with what the latest planning found in them."""
        return tuple(self._prompt_set(s) for s in self._config.prompts)

    def _prompt_set(self, prompt_set: PromptSet) -> PromptSetFacts:
        name = model.set_name(prompt_set)
        counts = self._counts().get(name)
        return PromptSetFacts(
            name=name,
            source=prompt_set.path or prompt_set.dataset,
            prompts=None if counts is None else counts.rows,
            samples=None if counts is None else counts.samples,
            sampling=sampling_text(model.set_sampling(self._config, prompt_set)),
            license=prompt_set.license,
        )

    def _counts(self) -> dict[str, SetCounts]:
        plannings = self._corpus.plan.plannings
        return plannings[-1].sets if plannings else {}

    def funnel(self) -> FunnelFacts:
        """Return what became of the planned samples, retired ones left out."""
        dropped = dict(self._curation.dropped)
        retired = dropped.pop("retired", 0)
        planned = self._corpus.plan.samples - len(self._corpus.plan.retired())
        generated = self._curation.generations - retired
        return FunnelFacts(
            planned=planned,
            generated=generated,
            kept=self._curation.kept,
            failed=self.failed,
            dropped=dropped,
            pending=max(planned - generated - sum(self.failed.values()), 0),
        )

    def report(self, generations: GenerationFacts) -> facts.ReportFacts:
        """Return what the report says."""
        funnel = self.funnel()
        return facts.ReportFacts(
            title=self._config.card.title or self._corpus.path.name,
            corpus_id=self._corpus.facts.corpus_id,
            corpusgen_version=corpusgen.__version__,
            created=self._corpus.facts.created_at[:10],
            planned=funnel.planned,
            failures=self.failed,
            pending=funnel.pending,
            teachers=tuple(
                facts.TeacherFacts(t.name, t.model, t.revision, t.license, t.training_allowed)
                for t in self.teachers()
            ),
            prompt_sets=tuple(
                facts.PromptSetFacts(s.name, s.source, s.prompts, s.samples)
                for s in self.prompt_sets()
            ),
            generations=generations,
            costs=tuple(self._costs()),
            datasets=tuple(self._datasets()),
            cost=self.cost,
            wall_s=self._ledger.active_s,
        )

    def _costs(self) -> Iterator[facts.CostFacts]:
        for endpoint, outcomes in sorted(self._ledger.by_endpoint_outcome.items()):
            for outcome, sums in sorted(outcomes.items()):
                yield facts.CostFacts(
                    endpoint=endpoint,
                    outcome=outcome,
                    attempts=sums.attempts,
                    prompt_tokens=sums.prompt_tokens,
                    completion_tokens=sums.completion_tokens,
                    cost=dollars_text(sums.cost_picousd) if sums.cost_known else None,
                )

    def _datasets(self) -> Iterator[facts.DatasetFacts]:
        for directory in self._corpus.datasets():
            result = read_export(directory)
            if result is not None:
                yield facts.DatasetFacts(directory.name, dict(result.rows))

    def _teacher_license(self) -> str | None:
        licenses = {teacher.license for teacher in self.teachers()}
        return licenses.pop() if len(licenses) == 1 else None


def failed_by_reason(corpus: Corpus) -> dict[str, int]:
    """Count failures that no generation supersedes, by reason; retired samples are left out."""
    retired = corpus.plan.retired()
    reasons: Counter[str] = Counter()
    for parts in commits.by_partition(corpus.commits).values():
        if not any(commit.rows("failures") for commit in parts):
            continue
        failed: dict[str, str] = {}
        for commit in parts:
            if "failures" in commit.files:
                table = read_table(corpus.path / commit.files["failures"].path)
                failed |= zip(
                    table["sample_id"].to_pylist(), table["reason"].to_pylist(), strict=True
                )
            if "generations" in commit.files:
                path = corpus.path / commit.files["generations"].path
                for sample in read_table(path, ["sample_id"])["sample_id"].to_pylist():
                    failed.pop(sample, None)
        reasons.update(reason for sample, reason in failed.items() if sample not in retired)
    return dict(reasons.most_common())


def _planned_revision(corpus: Corpus, teacher: str) -> str | None:
    """Return the revision under which a teacher's samples were planned last."""
    for planning in reversed(corpus.plan.plannings):
        for run in planning.runs:
            if run.teacher == teacher:
                revision = planning.variants[run.variant].get("teacher.revision")
                return None if revision is None else str(revision)
    return None


def sampling_text(sampling: Sampling) -> str:
    """Return sampling in words: `temperature 0.7, top_p 0.95`."""
    values: dict[str, Any] = msgspec.to_builtins(sampling)
    parts = [f"{key} {value}" for key, value in values.items() if not isinstance(value, dict)]
    return ", ".join(parts) or "the teacher's defaults"


def curation_text(config: Config) -> str:
    """Return the curation in words: its filters, then the de-duplication."""
    names = [f if isinstance(f, str) else next(iter(f), "") for f in config.curate.filters]
    exact = config.curate.dedup.exact
    parts = [f"filters {', '.join(names)}" if names else "no filters"]
    if exact:
        of = "prompt and response" if exact in (True, "pair") else str(exact)
        parts.append(f"exact duplicates removed by {of}")
    return "; ".join(parts)


def _cost_text(ledger: Ledger) -> str | None:
    if not ledger.cost_known:
        return None
    total, parts = ledger.total, []
    if ledger.price_known or not ledger.gpu:
        text = dollars_text(total.cost_picousd)
        if total.unknown_cost and total.reserved_picousd:
            most = dollars_text(ledger.charged_picousd)
            text += f" known, at most {most} with attempts whose outcome was not seen"
        parts.append(text)
    if ledger.gpu:
        parts.append(f"{dollars_text(ledger.gpu_picousd)} of GPU time")
    if total.unreserved:
        parts.append(f"{total.unreserved} attempts at a price that is not known")
    return ", and ".join(parts)


def report_corpus(corpus: Corpus, curation: CurationResult, told: Facts) -> Path:
    """Write `report.html`; return its path."""
    directory = corpus.layout.curation / curation.digest
    inputs = [(part.generations, verdicts_path(directory, part.name)) for part in _parts(corpus)]
    html = render_report(told.report(gather(inputs)))
    write_file(corpus.layout.report, html.encode())
    return corpus.layout.report
