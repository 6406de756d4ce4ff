"""One teacher with what stands around it: its limits, its prices, its partitions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from corpusgen import attempts
from corpusgen.errors import CorpusgenError
from corpusgen.identity import canonical
from corpusgen.limits import Admission, Claim, Expectation, Need, dearest, worst_case
from corpusgen.money import Tariff
from corpusgen.store import OpenPartition
from corpusgen.teachers.interface import Teacher
from corpusgen.types import Request, Sample

_PREFIX_BYTES = 1024
"""How much of a prompt's beginning decides where it goes, where routing is sticky."""


class Lane:
    """What a fan-out needs to ask one teacher."""

    def __init__(
        self,
        teacher: Teacher,
        admission: Admission,
        tariffs: Mapping[str, Tariff | None],
        partitions: Sequence[int],
        *,
        top_logprobs: int = 0,
        prompt_token_ids: bool = False,
        sticky: bool = False,
    ) -> None:
        """`tariffs` are by endpoint, null where the price is not known.

        `partitions` are those with samples for this teacher, in the order in which they are asked.
        """
        self.teacher = teacher
        self.admission = admission
        self.tariffs = tariffs
        self.partitions = partitions
        self.sticky = sticky
        self.expectation = Expectation()
        self.draws = teacher.capabilities.max_draws
        """Draws that one request asks for; falls to 1 where the server does only one."""
        self.closed: CorpusgenError | None = None
        """Why this teacher is asked no more, while others still are."""
        self.endpoints = {endpoint.name: endpoint for endpoint in teacher.endpoints}
        self._dearest = dearest(tariffs.values())
        self._prices_differ = len(set(tariffs.values())) > 1
        self._top_logprobs = top_logprobs
        self._prompt_token_ids = prompt_token_ids

    def asks(self, opened: OpenPartition, samples: Sequence[Sample]) -> Iterator[Ask]:
        """Yield requests for samples of one partition: draws of a prompt go together."""
        for group in attempts.grouped(samples, lambda: self.draws):
            yield Ask(self, opened, group)

    def request_for(self, samples: Sequence[Sample]) -> Request:
        """Return one request for all of some draws."""
        return attempts.request_for(samples, self._top_logprobs, self._prompt_token_ids)

    def claim(self, request: Request) -> Claim:
        """Return the most that a request can cost."""
        most = worst_case(request, self._dearest)
        if most is None or not self._prices_differ:
            return Claim(most)
        at = {name: worst_case(request, tariff) for name, tariff in self.tariffs.items()}
        return Claim(most, at)


class Ask:
    """A request that is to be answered, through all its attempts."""

    __slots__ = (
        "_claim",
        "_prefix",
        "_request",
        "failed_at",
        "lane",
        "opened",
        "samples",
        "split",
        "waited_s",
    )

    def __init__(
        self, lane: Lane, opened: OpenPartition, samples: list[Sample], *, split: bool = False
    ) -> None:
        self.lane = lane
        self.opened = opened
        self.samples = samples
        self.split = split
        """Whether it was one of several draws that the server refused together."""
        self.waited_s = 0.0
        """Seconds spent in line, which count against no bound of the retries."""
        self.failed_at: str | None = None
        """The endpoint at which the last attempt failed."""
        self._request: Request | None = None
        self._claim: Claim | None = None
        self._prefix: bytes | None = None

    @property
    def request(self) -> Request:
        """What is sent."""
        if self._request is None:
            self._request = self.lane.request_for(self.samples)
        return self._request

    @property
    def claim(self) -> Claim:
        """The most that it can cost."""
        if self._claim is None:
            self._claim = self.lane.claim(self.request)
        return self._claim

    def need(self) -> Need:
        """Return what it asks of the gate."""
        lane = self.lane
        tokens, most = 0, 0
        if lane.admission.counts_tokens:
            tokens, most = lane.expectation.tokens(self.request)
        if lane.sticky and self._prefix is None:
            self._prefix = canonical(self.request.messages)[:_PREFIX_BYTES]
        return Need(self.samples[0].sample_id, tokens, most, self.failed_at, self._prefix)

    def waited(self) -> float:
        """Return the seconds spent in line."""
        return self.waited_s
