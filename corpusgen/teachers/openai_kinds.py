"""Choose the class of an error of an OpenAI-compatible endpoint: the table of codes and phrases.

Codes are more exact than statuses, which are coarse, and phrases stand in for codes where a
provider has none. What follows from a class (again, never, the end of the run) stands on the
class. Sources: the error references of OpenAI, Azure, Anthropic, Google, Mistral, DeepSeek, Groq,
Together, Fireworks, OpenRouter and xAI; the bodies that vLLM, SGLang, llama.cpp, TGI and LiteLLM
really send. tests/test_openai_errors.py holds one of each.
"""

from __future__ import annotations

import re

from corpusgen.errors import (
    AnswerTimeout,
    AuthenticationFailed,
    ContentRefused,
    ContextOverflow,
    GatewayFault,
    ModelNotFound,
    Overloaded,
    QuotaExhausted,
    RateLimited,
    Rejected,
    ServerFault,
    TeacherError,
)
from corpusgen.teachers.openai_error_body import ErrorBody

_QUOTA_CODES = frozenset(
    {
        "insufficient_quota",
        "billing_hard_limit_reached",
        "billing_not_active",
        "insufficient_balance",
        "exceeded_current_quota_error",
        "budget_exceeded",
        "arrearage",
        "accountoverdueerror",
        "allocationquota.freetieronly",
    }
)
_QUOTA_PHRASES = (
    "insufficient balance",
    "insufficient credit",
    "insufficient_quota",
    "credit balance is too low",
    "credit limit exceeded",
    "spending limit",
    "used all available credits",
    "key limit exceeded",
    "call volume quota",
    "specified api usage limits",
    "usage limit reached",
    "budget has been exceeded",
    "account is not active",
    "limit: 0,",
)
"""The last is Google's, for a model that the plan does not include."""
_MODEL_CODES = frozenset(
    {
        "model_not_found",
        "model_not_available",
        "model_decommissioned",
        "unknown_model",
        "invalid_model",
        "deploymentnotfound",
    }
)
_MODEL_PHRASES = ("model not exist", "is not a valid model id", "invalid model name")
_KEY_CODES = frozenset(
    {
        "invalid_api_key",
        "api_key_invalid",
        "authentication_error",
        "organization_restricted",
    }
)
_KEY_PHRASES = ("incorrect api key", "api key not valid", "api key expired", "invalid api key")
_OVERFLOW_CODES = frozenset(
    {"context_length_exceeded", "exceed_context_size_error", "tokens_limit_reached"}
)
_OVERFLOW_PHRASES = (
    "context length",
    "context window",
    "context size",
    "context limit",
    "maximum model length",
    "maximum allowed length",
    "maximum prompt length",
    "prompt is too long",
    "input is too long",
    "input token count",
    "`inputs` tokens + `max_new_tokens` must be",
    "`inputs` must have less than",
)
_REFUSAL_CODES = frozenset(
    {
        "content_filter",
        "contentfilter",
        "content_policy_violation",
        "responsibleaipolicyviolation",
        "data_inspection_failed",
        "datainspectionfailed",
        "sensitivecontentdetected",
        "inputtextsensitivecontentdetected",
        "invalid_prompt",
    }
)
_REFUSAL_PHRASES = (
    "was flagged",
    "content management policy",
    "content policy",
    "content exists risk",
)
_CROWDED_CODES = frozenset(
    {
        "overloaded",
        "overloaded_error",
        "engine_overloaded_error",
        "service_tier_capacity_exceeded",
        "queue_exceeded",
    }
)
_BY_STATUS: dict[int, type[TeacherError]] = {
    401: AuthenticationFailed,
    402: QuotaExhausted,
    403: AuthenticationFailed,
    404: ModelNotFound,
    407: AuthenticationFailed,
    408: AnswerTimeout,
    409: ServerFault,
    410: ModelNotFound,
    424: ServerFault,  # TGI: the generation failed
    425: ServerFault,
    429: RateLimited,
    **dict.fromkeys((502, 504, 520, 521, 522, 523, 524), GatewayFault),
    498: Overloaded,  # Groq: no capacity in the flex tier
    501: Rejected,
    503: Overloaded,
    529: Overloaded,
}
_BY_CODE: dict[str, type[TeacherError]] = {
    "rate_limit_exceeded": RateLimited,
    "rate_limit_error": RateLimited,
    "too_many_requests": RateLimited,
    "resource_exhausted": RateLimited,
    "invalid_request_error": Rejected,
    "badrequesterror": Rejected,
    "timeout": AnswerTimeout,
}
"""For an error inside a success, which has no status of its own."""

_TOO_LARGE = re.compile(r"limit:? (\d{1,15}),.{0,40}?requested:? (\d{1,15})", re.ASCII)


def kind_of(
    status: int | None, body: ErrorBody, *, no_allowance: bool = False
) -> type[TeacherError]:
    """Return the class of an error.

    `status` is null for an error inside a success that names none. `no_allowance` says that the
    rate headers name a limit of 0.
    """
    codes, said = body.codes, body.said.lower()
    # A server may quote the request, but only after its own words.
    begins = said[:300]
    fatal = _fatal(status, codes, begins)
    if fatal is not None:
        return fatal
    limited = status in (None, 413, 429)
    if limited and ("request too large" in begins or _alone_too_large(begins)):
        return Rejected
    if status == 429 and no_allowance:
        return QuotaExhausted
    asked_wrong = status is None or status in (400, 413, 422)
    if codes & _OVERFLOW_CODES or (asked_wrong and _any(_OVERFLOW_PHRASES, said)):
        return ContextOverflow
    if codes & _REFUSAL_CODES or ((asked_wrong or status == 403) and _any(_REFUSAL_PHRASES, said)):
        return ContentRefused
    if codes & _CROWDED_CODES:
        return Overloaded
    if status == 403 and body.page:
        return Rejected  # a firewall took offence at this prompt; a wrong key is told in JSON
    return _plain(status, codes)


def _fatal(status: int | None, codes: frozenset[str], said: str) -> type[TeacherError] | None:
    """Return the class of an error that every further request would meet; null for others."""
    of_account = status is None or status in (400, 401, 402, 403, 412, 429)
    if codes & _QUOTA_CODES or (of_account and _any(_QUOTA_PHRASES, said)):
        return QuotaExhausted
    if status == 429 and any("perday" in code for code in codes):
        return QuotaExhausted  # Google's retryDelay is seconds even where the day's quota is used
    wrong = status is None or status in (400, 404)
    if codes & _MODEL_CODES or (wrong and _any(_MODEL_PHRASES, said)):
        return ModelNotFound
    if codes & _KEY_CODES or (status == 400 and _any(_KEY_PHRASES, said)):
        return AuthenticationFailed
    return None


def _plain(status: int | None, codes: frozenset[str]) -> type[TeacherError]:
    if status is None:
        return next((kind for code, kind in _BY_CODE.items() if code in codes), ServerFault)
    if 300 <= status < 400:
        return ModelNotFound
    return _BY_STATUS.get(status, ServerFault if status >= 500 else Rejected)


def _alone_too_large(said: str) -> bool:
    """Tell whether one request asks for more tokens than a whole minute allows."""
    found = _TOO_LARGE.search(said)
    return found is not None and int(found[2]) > int(found[1])


def _any(phrases: tuple[str, ...], said: str) -> bool:
    return any(phrase in said for phrase in phrases)
