"""A planned corpus with a batch teacher, and the batching of it as the pipeline does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec

from corpusgen.batching import Batching, BatchLane, Waiting
from corpusgen.config import Generate, OpenAIBatchTeacher, Retry
from corpusgen.corpus import Corpus, create_or_check, new_facts
from corpusgen.errors import CorpusgenError
from corpusgen.events import Event, Log
from corpusgen.layout import Layout
from corpusgen.lease import Lease
from corpusgen.limits import Budget
from corpusgen.meter import RunMeter
from corpusgen.money import Tariff, tariff
from corpusgen.plan.planning import SetRequest, plan
from corpusgen.plan.segments import Plan
from corpusgen.retry import RetryPolicy
from corpusgen.shards import TokenFormat
from corpusgen.stopping import FailureRate, Stop
from corpusgen.store import Store
from corpusgen.teachers.openai_batch import create
from corpusgen.types import Prompt, Sampling

SIZE = 4
TARIFF = tariff("1", "2", None, "configuration").discounted(Decimal("0.5"))


class Batched:
    """One corpus, run as often as a test likes; each run is what a new process does."""

    def __init__(
        self,
        root: Path,
        prompts: list[str],
        *,
        n: int = 1,
        sampling: Sampling | None = None,
        **request: Any,
    ) -> None:
        self.layout = Layout(root / "out")
        self.layout.root.mkdir(parents=True, exist_ok=True)
        create_or_check(self.layout, new_facts("0", SIZE, 0, "float32"))
        self.told: list[str] = []
        asked = [
            Prompt(f"p{i}", [{"role": "user", "content": text}], f"f:{i}")
            for i, text in enumerate(prompts)
        ]
        plan(
            self.layout,
            [
                SetRequest(
                    name="set",
                    teacher="m",
                    teacher_identity={"model": "m"},
                    sampling=sampling or Sampling(max_tokens=20),
                    n=n,
                    keys={},
                    inputs=[],
                    read=lambda: iter(asked),
                    **request,
                )
            ],
            partition_size=SIZE,
        )

    @property
    def corpus(self) -> Corpus:
        """The corpus as it stands."""
        return Corpus(self.layout.root)

    def run(self, base_url: str, **keys: Any) -> CorpusgenError | None:
        """Bring every sample to an end; return why that ended early, if it did."""
        return asyncio.run(self.running(base_url, **keys))

    async def running(
        self,
        base_url: str,
        *,
        during: Callable[[Batching, Stop], None] | None = None,
        cap: int | None = None,
        price: Tariff | None = TARIFF,
        top_logprobs: int = 0,
        max_attempts: int = 3,
        drain_s: float = 5.0,
        retry_failed: Callable[[str], bool] | None = None,
        **options: Any,
    ) -> CorpusgenError | None:
        """Do what `run` does, in a running loop; `during` is called when it has begun."""
        defaults = {"poll_s": 0.05, "lookup_s": 0.0}
        kind = msgspec.convert(
            {"kind": "openai_batch", "model": "m", "endpoints": [{"base_url": base_url}]}
            | defaults
            | options,
            type=OpenAIBatchTeacher,
        )
        teacher = create("teacher", kind)
        settings = Generate(
            retry=Retry(max_attempts=max_attempts, first_wait_s=0.01, longest_wait_s=0.02),
            drain_s=drain_s,
        )
        self.stop = stop = Stop()
        with Lease(self.layout.lease, "run") as lease:
            found = Plan(self.layout, SIZE)
            tokens = TokenFormat(top_logprobs, "float32", "raw")
            store = Store(self.layout, self.corpus.facts.corpus_id, found, lambda _: tokens, lease)
            store.recover()
            waiting = Waiting(self.layout, store)
            self.budget = budget = Budget(cap, store.charged_picousd())
            meter = RunMeter(self._observe, done=0, total=found.samples, charged_picousd=lambda: 0)
            lane = BatchLane(
                teacher,
                {endpoint.name: price for endpoint in teacher.endpoints},
                range(found.partitions),
                top_logprobs=top_logprobs,
            )
            batching = Batching(
                self.layout,
                self.corpus.facts.corpus_id,
                store,
                [lane],
                waiting,
                RetryPolicy(settings.retry, stop.sleep),
                settings,
                budget,
                meter,
                stop,
                FailureRate(stop, 0.9, 200, 50),
                lambda _: True,
                retry_failed,
                lambda level, text: self.told.append(f"{level}: {text}"),
                lease.check,
            )
            await teacher.open()
            if during is not None:
                during(batching, stop)
            try:
                await batching.run()
            finally:
                store.close()
                await teacher.close()
        return stop.reason or batching.reached

    def _observe(self, event: Event) -> None:
        if isinstance(event, Log):
            self.told.append(f"{event.level}: {event.message}")

    def texts(self) -> dict[str, str]:
        """Return the answers by sample id; fail where one stands twice."""
        table = self.corpus.generations().to_table(columns=["sample_id", "text"])
        ids = table["sample_id"].to_pylist()
        assert len(ids) == len(set(ids))
        return dict(zip(ids, table["text"].to_pylist(), strict=True))

    def attempts(self) -> list[dict[str, Any]]:
        """Return all attempt rows."""
        rows: list[dict[str, Any]] = self.corpus.attempts().to_table().to_pylist()
        assert len({row["attempt_id"] for row in rows}) == len(rows)
        return rows

    def failures(self) -> dict[str, str]:
        """Return the reasons of failures by sample id."""
        rows = self.corpus.failures().to_table(columns=["sample_id", "reason"]).to_pylist()
        return {row["sample_id"]: row["reason"] for row in rows}

    def outcomes(self) -> list[str]:
        """Return the outcomes of all attempts, sorted."""
        return sorted(row["outcome"] for row in self.attempts())
