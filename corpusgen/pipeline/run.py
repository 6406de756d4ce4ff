"""The commands of the pipeline, each a function: `run` and its stages alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from corpusgen.config_file import LoadedConfig
from corpusgen.corpus import Corpus
from corpusgen.errors import CorpusgenError, ExitCode, RunStopped, TeacherError
from corpusgen.events import Estimated, Finished, Observer, StageStarted, ignore
from corpusgen.lease import Lease
from corpusgen.ledger import gpus_of, read_ledger
from corpusgen.money import dollars_text
from corpusgen.pipeline import generating
from corpusgen.pipeline.choosing import Choice
from corpusgen.pipeline.counting import Generated, counted
from corpusgen.pipeline.estimating import estimated, what_is_left
from corpusgen.pipeline.session import Session, layout_of, make_plan, opened


class Options(msgspec.Struct, frozen=True):
    """What a command line adds to a configuration."""

    choice: Choice = Choice()
    skip_bad_prompts: bool = False
    add: bool = False
    """Keep samples of an older configuration beside those of this one."""
    confirm: Callable[[Estimated], None] | None = None
    """Is told what asking will take before anything is asked; raises to have nothing asked."""


DEFAULTS = Options()


class Result(msgspec.Struct, frozen=True):
    """Where a corpus stands when a command ends."""

    exit_code: ExitCode
    message: str
    corpus: Path
    samples: int
    generations: int
    failures: int
    pending: int
    kept: int | None = None
    datasets: tuple[Path, ...] = ()
    report: Path | None = None
    cost_usd: str | None = None
    estimate: Estimated | None = None
    """What is still to be asked will take; of `plan` only."""


def plan(loaded: LoadedConfig, options: Options = DEFAULTS, observer: Observer = ignore) -> Result:
    """Bring the plan up to the configuration; ask nothing."""
    with opened(loaded, "plan") as session:
        _planned(session, options, observer)
        corpus = Corpus(session.layout.root)
        state = counted(session.layout, corpus.plan)
        found = estimated(session, options.choice)
        observer(found)
        message = f"{state.pending} of {state.planned} samples are still to be asked"
        result = _result(session.layout.root, state, ExitCode.COMPLETE, message)
        return _finish(msgspec.structs.replace(result, estimate=found), observer)


def generate(
    loaded: LoadedConfig, options: Options = DEFAULTS, observer: Observer = ignore
) -> Result:
    """Plan, and ask what is still to be asked."""
    with opened(loaded, "generate") as session:
        state = _generated(session, options, observer)
        return _finish(_after_generation(session, state, options), observer)


def run(loaded: LoadedConfig, options: Options = DEFAULTS, observer: Observer = ignore) -> Result:
    """Plan, generate, curate, export and report; go on where an earlier run ended.

    Returns with exit code 0, 3 (some samples failed), 4 (the budget is reached) or 5
    (interrupted). Raises `CorpusgenError` for a fault of the whole run; what was answered is
    committed even then.
    """
    with opened(loaded, "run") as session:
        state = _generated(session, options, observer)
        result = _after_generation(session, state, options)
        if result.exit_code is not ExitCode.INTERRUPTED:
            result = _finished(loaded, result, observer)
        return _finish(result, observer)


def curate(loaded: LoadedConfig, observer: Observer = ignore) -> Result:
    """Write verdicts on what is committed; starts no teacher."""
    return _finish(_without_teacher(loaded, "curate", observer), observer)


def export(loaded: LoadedConfig, observer: Observer = ignore) -> Result:
    """Curate and write the datasets; starts no teacher."""
    return _finish(_without_teacher(loaded, "export", observer), observer)


def make_report(loaded: LoadedConfig, observer: Observer = ignore) -> Result:
    """Curate, export and write the report; starts no teacher."""
    return _finish(_without_teacher(loaded, "report", observer), observer)


def _without_teacher(loaded: LoadedConfig, command: str, observer: Observer) -> Result:
    layout = layout_of(loaded.config)
    corpus = Corpus(layout.root)
    with Lease(layout.lease, command):
        state = counted(layout, corpus.plan)
        result = _result(layout.root, state, ExitCode.COMPLETE, "")
        return _finished(loaded, result, observer, until=command)


def _planned(session: Session, options: Options, observer: Observer) -> None:
    observer(StageStarted("plan"))
    make_plan(session, observer, add=options.add, skip_bad_prompts=options.skip_bad_prompts)


def _generated(session: Session, options: Options, observer: Observer) -> Generated:
    _planned(session, options, observer)
    if options.confirm is not None:
        found = estimated(session, options.choice)
        observer(found)
        options.confirm(found)
    observer(StageStarted("generate"))
    return generating.generate(session, session.plan(), options.choice, observer)


def _after_generation(session: Session, state: Generated, options: Options) -> Result:
    """Tell how generation ended; raise where it was a fault of the whole run."""
    root = session.layout.root
    stopped = state.stopped
    if stopped is not None and stopped.exit_code not in (ExitCode.BUDGET, ExitCode.INTERRUPTED):
        raise _resumable(stopped)
    if stopped is not None:
        told = [str(stopped).rstrip(".")]
        if stopped.exit_code is ExitCode.BUDGET:
            told.append(what_is_left(session, state.pending))
        return _result(root, state, stopped.exit_code, ". ".join(told))
    told = []
    if state.pending and options.choice.limit is not None:
        told.append(f"the pilot is complete; {state.pending} samples are left for a run without it")
    elif state.pending:
        told.append(
            f"{state.pending} samples were planned for a teacher that this configuration does not "
            "have; they wait for the configuration that has it"
        )
    if state.failures:
        told.append(
            f"{state.failures} of {state.planned} samples failed; `corpusgen show --failures` "
            "tells why, and --retry-failed asks them again"
        )
    if state.pending and options.choice.limit is None:
        code = ExitCode.ERROR
    else:
        code = ExitCode.FAILED_SAMPLES if state.failures else ExitCode.COMPLETE
    return _result(root, state, code, ". ".join(told) or "complete")


def _resumable(stopped: CorpusgenError) -> CorpusgenError:
    if not isinstance(stopped, TeacherError):
        return stopped
    sentence = str(stopped).rstrip(".")
    return RunStopped(
        f"{sentence}. What was answered is committed; run the same command again to go on",
        stopped.exit_code,
    )


def _finished(
    loaded: LoadedConfig, result: Result, observer: Observer, until: str = "report"
) -> Result:
    """Do the stages after generation, up to and with `until`."""
    # What only these stages need (templates of cards and reports) is imported for them alone.
    from corpusgen.pipeline.finishing import Facts, curate_corpus, export_corpus, report_corpus

    corpus = Corpus(result.corpus)
    observer(StageStarted("curate"))
    curation = curate_corpus(corpus, loaded.config, observer)
    result = msgspec.structs.replace(result, kept=curation.kept)
    if until == "curate":
        return result
    verdicts = corpus.layout.curation / curation.digest
    ledger = read_ledger(corpus, verdicts, gpus_of(loaded.config))
    cost = dollars_text(ledger.spent_picousd) if ledger.cost_known else None
    told = Facts(corpus, loaded.config, curation, ledger)
    observer(StageStarted("export"))
    datasets = export_corpus(corpus, loaded, curation, told, observer)
    result = msgspec.structs.replace(result, datasets=tuple(datasets), cost_usd=cost)
    if until == "export":
        return result
    observer(StageStarted("report"))
    report = report_corpus(corpus, curation, told)
    return msgspec.structs.replace(result, report=report)


def _result(root: Path, state: Generated, code: ExitCode, message: str) -> Result:
    return Result(
        exit_code=code,
        message=message,
        corpus=root,
        samples=state.planned,
        generations=state.generations,
        failures=state.failures,
        pending=state.pending,
    )


def _finish(result: Result, observer: Observer) -> Result:
    observer(
        Finished(
            exit_code=int(result.exit_code),
            message=result.message,
            samples=result.samples,
            generations=result.generations,
            failures=result.failures,
            pending=result.pending,
            kept=result.kept,
            cost_usd=result.cost_usd,
            dataset=str(result.datasets[0]) if result.datasets else None,
            report=None if result.report is None else str(result.report),
        )
    )
    return result
