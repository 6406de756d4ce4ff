"""Ask teachers that answer in batches, hours later: the counterpart of the fan-out.

A submission is a list of requests that goes out as one file and becomes one batch. It stands on
disk before anything is sent and until everything that it brought is committed, so that a process
that dies at any instant leaves either a batch that the next one finds, or none at all.
"""

from corpusgen.batching.lane import BatchLane
from corpusgen.batching.run import Batching
from corpusgen.batching.samples_out import SamplesOut
from corpusgen.batching.submissions import Place, Submission, is_of, outstanding, place_of
from corpusgen.batching.waiting import Waiting

__all__ = [
    "BatchLane",
    "Batching",
    "Place",
    "SamplesOut",
    "Submission",
    "Waiting",
    "is_of",
    "outstanding",
    "place_of",
]
