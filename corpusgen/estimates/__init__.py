"""Say beforehand what a run will take: tokens, money, time and disk, and how well that is known.

Nothing here asks anybody. Where the corpus has answers already (a pilot, an earlier run) they are
the measure; elsewhere a stated rule is.
"""

from corpusgen.estimates.estimate import Answering, estimate
from corpusgen.estimates.pending import Asked, still_asked
from corpusgen.estimates.pilot import Pilot, read_pilots
from corpusgen.estimates.remainder import remaining_picousd

__all__ = [
    "Answering",
    "Asked",
    "Pilot",
    "estimate",
    "read_pilots",
    "remaining_picousd",
    "still_asked",
]
