"""One teacher that answers in batches, with what stands around it; and what of it is out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from corpusgen import attempts
from corpusgen.batching.submissions import Item, Place, Submission, is_of, place_of
from corpusgen.layout import Layout
from corpusgen.limits import Budget, dearest, worst_case, worst_case_tokens
from corpusgen.limits.worst_case import most_tokens
from corpusgen.money import Tariff
from corpusgen.teachers.interface import Batch, BatchTeacher, Endpoint, Label
from corpusgen.types import Request, Sample, Sampling


class BatchLane:
    """What is asked of one teacher, and at which prices."""

    def __init__(
        self,
        teacher: BatchTeacher,
        tariffs: Mapping[str, Tariff | None],
        partitions: Sequence[int],
        *,
        top_logprobs: int = 0,
        prompt_token_ids: bool = False,
        budget: Budget | None = None,
    ) -> None:
        """`tariffs` are by endpoint, null where the price is not known.

        `partitions` are those with samples for this teacher, in the order in which they are asked.
        `budget` is the teacher's own, beside the run's.
        """
        self.teacher = teacher
        self.tariffs = tariffs
        self.partitions = partitions
        self.budget = budget
        self.draws = teacher.capabilities.max_draws
        self.endpoints: dict[str, Endpoint] = {e.name: e for e in teacher.endpoints}
        self._dearest = dearest(tariffs.values())
        self._top_logprobs = top_logprobs
        self._prompt_token_ids = prompt_token_ids

    def serves(self, submission: Submission) -> bool:
        """Whether a submission is this teacher's."""
        return is_of(submission, self.teacher) and submission.endpoint in self.endpoints

    def request_for(self, samples: Sequence[Sample]) -> Request:
        """Return one request for all of some draws."""
        return attempts.request_for(samples, self._top_logprobs, self._prompt_token_ids)

    def request_like(self, draws: int) -> Request:
        """Return what decoding needs to know of a request that was made earlier."""
        return Request(
            messages=[],
            sampling=Sampling(),
            draws=draws,
            top_logprobs=self._top_logprobs,
            prompt_token_ids=self._prompt_token_ids,
        )

    def worst_case(self, request: Request) -> int | None:
        """Return the most that a request can cost at any of the endpoints."""
        return worst_case(request, self._dearest)

    def most_tokens(self, request: Request) -> tuple[int, int] | None:
        """Return a request's most prompt tokens and answers' tokens; null: without limit."""
        longest = most_tokens(request.sampling)
        if longest is None:
            return None
        prompt = worst_case_tokens(request.messages, request.tools, request.response_format)
        return prompt, request.draws * longest

    def reserved(self, item: Item) -> int | None:
        """Return what is set aside for a request that is out.

        One that was sent without a price is reckoned by the present one; null where that is not
        known either, or nothing limits its answers.
        """
        if item.reserved_picousd is not None or self._dearest is None:
            return item.reserved_picousd
        if self._dearest.free:
            return 0
        return None if item.most_tokens is None else self._dearest.most(*item.most_tokens)

    def groups(self, samples: Sequence[Sample]) -> Iterator[list[Sample]]:
        """Yield the samples that go into one request: draws of a prompt without own seeds."""
        yield from attempts.grouped(samples, lambda: self.draws)


class Out:
    """A submission that is out, without its items: they stand on disk."""

    def __init__(self, submission: Submission, corpus_id: str, place: Place | None) -> None:
        self.label = Label(corpus_id, submission.submission_id)
        self.endpoint = submission.endpoint
        self.made_at = submission.made_at
        self.partitions = submission.partitions
        self.requests = len(submission.items)
        self.tokens = submission.tokens
        self.place = place
        self.batch: Batch | None = None
        """As last seen; null: not seen by this process."""
        self.seen_going = False
        """Whether this process saw it before anybody cancelled it."""

    def see(self, batch: Batch) -> None:
        """Enter how the batch stands now."""
        self.batch = batch
        self.seen_going |= not batch.ended and batch.status != "cancelling"

    @classmethod
    def of(cls, submission: Submission, corpus_id: str, layout: Layout) -> Out:
        """Return a submission without its items, with its place as it stands on disk."""
        return cls(submission, corpus_id, place_of(layout, submission.submission_id))

    @property
    def submission_id(self) -> str:
        """The submission's id."""
        return self.label.submission_id

    @property
    def in_doubt(self) -> bool:
        """Whether a batch was asked for and nobody knows whether it was made."""
        return self.place is not None and self.place.batch_id is None
