"""Every error that this package raises on purpose, drawn as one tree.

    CorpusgenError                 a fault of the whole run: one sentence, no traceback
    ├── ConfigError                the configuration: names the key and what to do
    ├── PromptError                a prompt file or row: names file and line
    ├── CorpusError                the corpus on disk: torn, foreign, newer, contradictory
    │   ├── CorpusLocked           another live process holds the corpus
    │   └── PlanConflict           a change that would orphan planned samples
    ├── RunStopped                 the run ends early, drained and committed; carries the exit code
    └── TeacherError               one attempt failed; `outcome` is what the ledger writes
        ├── again                  RateLimited, Overloaded, ServerFault, ConnectionFailed,
        │                          NotConnected, GatewayFault, AnswerTimeout, NotRun,
        │                          Withdrawn, TornAnswer
        ├── never                  Rejected, ContextOverflow, ContentRefused, TeacherRaised
        └── fatal                  AuthenticationFailed, ModelNotFound, QuotaExhausted,
                                   TeacherBroken

A failure of one sample is data: the fan-out turns a `TeacherError` of the first two branches into
a failure row. Only the third branch, and every other class here, ends a run.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar, Literal

from corpusgen.types import RateHint


class ExitCode(IntEnum):
    """Exit codes of every command; schedulers rely on them."""

    COMPLETE = 0
    ERROR = 1
    USAGE = 2
    FAILED_SAMPLES = 3
    BUDGET = 4
    INTERRUPTED = 5


class CorpusgenError(Exception):
    """Report a fault of the whole run in one sentence that says where, what, and what to do."""

    exit_code: ExitCode = ExitCode.ERROR


class ConfigError(CorpusgenError):
    """Report a configuration that cannot be used."""

    exit_code = ExitCode.USAGE


class PromptError(CorpusgenError):
    """Report a prompt file, or a row of one, that cannot be used."""


class CorpusError(CorpusgenError):
    """Report a corpus directory that cannot be read or extended."""


class CorpusLocked(CorpusError):
    """Report that another live process is writing to this corpus."""


class PlanConflict(CorpusError):
    """Report a changed configuration that would orphan samples which are already planned."""


class RunStopped(CorpusgenError):
    """Report that the run ended early; what was answered is committed and it can be resumed."""

    def __init__(self, message: str, exit_code: ExitCode) -> None:
        super().__init__(message)
        self.exit_code = exit_code


RetryClass = Literal["again", "never", "fatal"]


class TeacherError(CorpusgenError):
    """Report that one attempt brought no answer.

    `outcome` is the word written to `attempts.outcome` and, when the sample is given up, to
    `failures.reason`. `retry` says what may follow: another attempt, a failure row, or the end of
    the run.
    """

    outcome: ClassVar[str] = "error"
    retry: ClassVar[RetryClass] = "never"
    may_be_billed: ClassVar[bool] = False
    """Whether the provider may charge for it all the same: then its reservation stays charged."""

    def __init__(
        self,
        message: str,
        *,
        http_status: int | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
        rate: RateHint | None = None,
    ) -> None:
        super().__init__(message)
        self.http_status = http_status
        self.retry_after_s = retry_after_s
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.rate = rate


class RateLimited(TeacherError):
    """The endpoint asked for fewer requests (HTTP 429)."""

    outcome = "rate_limit"
    retry = "again"


class Overloaded(TeacherError):
    """The endpoint is at its capacity (HTTP 503, 529)."""

    outcome = "overloaded"
    retry = "again"


class ServerFault(TeacherError):
    """The endpoint failed on its own account (other HTTP 5xx)."""

    outcome = "server_error"
    retry = "again"


class GatewayFault(ServerFault):
    """A gateway lost its upstream (HTTP 502, 504, 52x), which may have answered and billed."""

    may_be_billed = True


class ConnectionFailed(TeacherError):
    """No connection, or one that broke before the answer's headers."""

    outcome = "connection"
    retry = "again"
    may_be_billed = True


class NotConnected(ConnectionFailed):
    """No connection was made, so nothing was sent and nothing can be billed."""

    may_be_billed = False


class AnswerTimeout(TeacherError):
    """No whole answer within `timeout_s`."""

    outcome = "timeout"
    retry = "again"
    may_be_billed = True


class NotRun(AnswerTimeout):
    """The provider ended the batch before it came to this request, so nothing is billed."""

    may_be_billed = False


class Withdrawn(NotRun):
    """The batch was cancelled before it came to this request."""

    outcome = "cancelled"


class TornAnswer(TeacherError):
    """The answer's body broke off, or is not what the protocol says."""

    outcome = "torn_answer"
    retry = "again"
    may_be_billed = True


class Rejected(TeacherError):
    """The endpoint will not answer this request, now or ever (HTTP 400, 413, 422)."""

    outcome = "rejected"


class ContextOverflow(TeacherError):
    """The prompt, or prompt and answer, do not fit the teacher's context."""

    outcome = "context_overflow"


class ContentRefused(TeacherError):
    """The provider's filter refused the prompt (an HTTP error, not an answer)."""

    outcome = "content_filter"


class TeacherRaised(TeacherError):
    """The teacher's own code raised something else: a fault of a plug-in on this sample."""

    outcome = "teacher_error"
    may_be_billed = True


class AuthenticationFailed(TeacherError):
    """The key is missing, wrong, or not allowed to use this model (HTTP 401, 403)."""

    outcome = "authentication"
    retry = "fatal"


class ModelNotFound(TeacherError):
    """The endpoint does not know the model or the path (HTTP 404)."""

    outcome = "model_not_found"
    retry = "fatal"


class QuotaExhausted(TeacherError):
    """The account has no money or quota left; the run can be resumed once it has."""

    outcome = "quota"
    retry = "fatal"
    exit_code = ExitCode.BUDGET


class TeacherBroken(TeacherError):
    """The teacher cannot be loaded or has died for good."""

    outcome = "teacher_broken"
    retry = "fatal"


#: The closed vocabulary of `failures.reason`.
FAILURE_REASONS: tuple[str, ...] = (
    "bad_prompt",
    *(
        error.outcome
        for error in (
            RateLimited,
            Overloaded,
            ServerFault,
            ConnectionFailed,
            AnswerTimeout,
            TornAnswer,
            Rejected,
            ContextOverflow,
            ContentRefused,
            TeacherRaised,
        )
    ),
)

#: The closed vocabulary of `attempts.outcome`: an answer, a failure's reason, a fatal error, or
#: `lost`: an attempt whose outcome nobody saw, because the process died.
ATTEMPT_OUTCOMES: tuple[str, ...] = (
    "answered",
    *FAILURE_REASONS[1:],
    AuthenticationFailed.outcome,
    ModelNotFound.outcome,
    QuotaExhausted.outcome,
    TeacherBroken.outcome,
    "cancelled",
    "lost",
)
