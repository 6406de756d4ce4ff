"""Stand between the fan-out and the endpoints: where a request may go now, and at what cost.

`Gate` hands out places at endpoints, each with its buckets, its concurrency and its health;
`Budget` sets money aside before a request is sent and settles it afterwards. All of it waits and
counts; nothing here sends, retries or writes.
"""

from corpusgen.limits.admission import Admission, Admitted, Claim, LocalAdmission
from corpusgen.limits.bucket import DAY_S
from corpusgen.limits.budget import Budget
from corpusgen.limits.expected import Expectation
from corpusgen.limits.gate import Gate, GateSettings
from corpusgen.limits.health import LONGEST_COOL_OFF_S
from corpusgen.limits.place import Fate, Need, Permit
from corpusgen.limits.worst_case import dearest, worst_case, worst_case_tokens

__all__ = [
    "DAY_S",
    "LONGEST_COOL_OFF_S",
    "Admission",
    "Admitted",
    "Budget",
    "Claim",
    "Expectation",
    "Fate",
    "Gate",
    "GateSettings",
    "LocalAdmission",
    "Need",
    "Permit",
    "dearest",
    "worst_case",
    "worst_case_tokens",
]
