"""What a provider's refusal means: status, headers and body of an error become one of our errors, and no secret gets into it.

Pure; shared by the adapters that speak HTTP. Imports errors, net.redact and net.connection (for the exceptions of the client).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import ceil

import msgspec

from mayros.errors import ContextLengthExceeded, GatewayError, InsufficientQuota, RateLimited, UpstreamError, UpstreamRefused, UpstreamTimeout
from mayros.net.connection import ConnectFailed, ConnectTimeout, Failed, TimedOut
from mayros.net.redact import Redactor

BODY_LIMIT = 64 * 1024  # bytes read of the body of an error
RETRY_LIMIT = 3600  # seconds; a longer Retry-After is cut to it

_TOO_LONG = re.compile(
    r"prompt is too long|exceeds? the (?:model's )?(?:maximum )?context (?:window|length)|maximum context length|token count.{0,40}exceed"
    r"|exceed context limit|reduce the length|available context size|too many tokens|context_length_exceeded|exceed_context_size"
    # xAI; LM Studio; vLLM; MiniMax; Moonshot; Bedrock; z.ai; text-generation-inference, and so Together
    r"|maximum prompt length|greater than the context length|longer than the maximum model length|context window exceeds|exceeded model token limit"
    r"|input is too long|prompt exceeds max|`inputs` tokens \+ `max_new_tokens`",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(r"insufficient_quota|insufficient (?:credit|balance|quota)|billing|credit balance|exceeded your current quota", re.IGNORECASE)
#: Google's word for any limit: of a minute, of a day, or of what was paid.
_GOOGLE_LIMIT = "RESOURCE_EXHAUSTED"
#: Google and xAI say so with a 400.
_BAD_KEY = re.compile(r"API key (?:not valid|not found|expired)|API_KEY_INVALID|incorrect API key", re.IGNORECASE)
_RATE = re.compile(r"rate_limit|rate limit|too many requests", re.IGNORECASE)
#: Anthropic says so with a 400, xAI with a 403.
_CREDIT_GONE = re.compile(
    r"credit balance|insufficient_quota|insufficient (?:credit|balance|funds|quota)|API usage limits|have any credits", re.IGNORECASE
)
_NO_MODEL = re.compile(r"model_not_found|\bmodel\b.{0,120}(?:does not exist|not found|not supported|not available)|unknown model", re.IGNORECASE)
_NUMBER = re.compile(r"[0-9]{1,12}(\.[0-9]{0,12})?")
#: What one vendor does not like about a conversation another one may take: ids of calls, calls without results, the order of messages.
_FORMAT = re.compile(
    r"tool_use_id|tool_call_id|tool call id|tool_use|tool_result|tool_calls|function (?:call|response)|string should match pattern"
    r"|roles must alternate|invalid (?:message|input)|thought_?signature|must be followed by",
    re.IGNORECASE,
)


class Malformed(UpstreamError):
    """The model's provider could not read what its own model had written."""

    # Raised by decoders that have told nothing yet: the adapter asks once more.


class _Said(msgspec.Struct):
    """What a provider said about an error: its words, and what else tells its kind."""

    message: str = ""
    kind: str = ""
    status: int | None = None
    #: Seconds after which to try again, where Google says so (google.rpc.RetryInfo).
    retry: int | None = None


def client_failure(error: Failed, provider: str) -> GatewayError:
    """Our error for one of the HTTP client."""
    found: GatewayError
    if isinstance(error, TimedOut):
        found = UpstreamTimeout(f"The provider {provider!r} did not answer in time: {error}")
    else:
        found = UpstreamError(f"The provider {provider!r} could not be reached or broke off: {error}")
    if isinstance(error, ConnectFailed | ConnectTimeout):
        found.kind = "connect"
    return found


def refusal(status: int, headers: Mapping[bytes, bytes], body: bytes, provider: str, redact: Redactor, now: float) -> GatewayError:
    """Our error for an answer whose status is not 200. `body`: what was read of it; `now`: seconds since 1970, for dates in Retry-After."""
    if 300 <= status < 400:
        return UpstreamError(f"The provider {provider!r} answered with a redirect (HTTP {status}), which is not followed.")
    said = _said(body)
    error = _classified(status, said, provider, redact)
    if status in (429, 503, 529):
        seconds = retry_after(headers, now)
        if seconds is None:
            seconds = said.retry
        if seconds is not None:
            error.retry_after = seconds
    if error.kind not in ("auth", "billing", "overflow"):
        _heed(headers.get(b"x-should-retry", b"").strip().lower(), error)
    return error


def _heed(advice: bytes, error: GatewayError) -> None:
    """The provider's own word on whether the same request may succeed later: for our client, and whether another model is asked after a refusal."""
    if advice == b"true":
        error.should_retry = error.fallback = True
    elif advice == b"false":
        error.should_retry = False


def stream_failure(error: object, provider: str, redact: Redactor) -> GatewayError:
    """Our error for an error object inside an answer that began with 200."""
    said = _said_by(error)
    status = said.status
    if status is None or not 400 <= status < 600:
        words = f"{said.kind} {said.message}"
        status = 400 if _TOO_LONG.search(words) else 429 if _NO_CREDIT.search(words) or _RATE.search(words) else 502
    failed = _classified(status, said, provider, redact)
    if status in (429, 503) and said.retry is not None:
        failed.retry_after = said.retry
    return failed


def retry_after(headers: Mapping[bytes, bytes], now: float) -> int | None:
    """Whole seconds, from 0 to 3600 and rounded up; None where nothing is said that makes sense. `retry-after-ms` wins over Retry-After, whose value
    is seconds or a date."""
    value = headers.get(b"retry-after", b"").decode("latin-1").strip()
    for number, in_a_second in ((headers.get(b"retry-after-ms", b"").decode("latin-1").strip(), 1000), (value, 1)):
        if (whole := _seconds(number, in_a_second)) is not None:
            return whole
    try:
        date = parsedate_to_datetime(value)
        seconds = (date if date.tzinfo is not None else date.replace(tzinfo=UTC)).timestamp() - now
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(ceil(seconds), 0), RETRY_LIMIT)


def _classified(status: int, said: _Said, provider: str, redact: Redactor) -> GatewayError:
    """The error for a status and what was said with it."""
    words = f"{said.kind} {said.message}"
    shown = redact.short(said.message)
    because = f"(HTTP {status}): {shown}" if shown else f"(HTTP {status})."
    limited = status == 429 or (status == 413 and _RATE.search(words) is not None)  # Groq: more than its limit of a minute
    if status in (400, 413, 422) and not limited and (status == 413 or _TOO_LONG.search(words)):
        return ContextLengthExceeded()
    unpaid = status == 429 and said.retry is None and _GOOGLE_LIMIT not in said.kind and _NO_CREDIT.search(words) is not None
    if status == 402 or unpaid or (status in (400, 403) and _CREDIT_GONE.search(words)):
        return InsufficientQuota(f"The quota or credit at the provider {provider!r} is used up {because}")
    if limited:
        return RateLimited(f"The provider {provider!r} limits the rate of requests {because}")
    if status == 408:
        return UpstreamTimeout(f"The provider {provider!r} did not answer in time {because}")
    if status in (401, 403) or (status == 400 and _BAD_KEY.search(words)):
        return _elsewhere("auth", f"The provider {provider!r} refused the gateway's credential {because}")
    if status == 404 or (status in (400, 422) and _NO_MODEL.search(words)):
        return _elsewhere("model_not_found", f"The provider {provider!r} does not know the model or the address {because}")
    if status == 409 or not 400 <= status < 500:
        return UpstreamError(f"The provider {provider!r} failed {because}")
    refused = f"The provider {provider!r} refused the request {because}"
    return _elsewhere("format", refused) if status in (400, 422) and _FORMAT.search(words) else UpstreamRefused(refused)


def _elsewhere(kind: str, message: str) -> UpstreamRefused:
    """A refusal that says nothing about other keys or models."""
    error = UpstreamRefused(message)
    error.kind, error.fallback = kind, True
    return error


def _said(body: bytes) -> _Said:
    """What the body of an error says: the usual JSON shapes, plain text, or nothing where it is a page."""
    text = body.decode("utf-8", "replace").strip()
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return _Said("" if text[:1] == "<" else text)
    if isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, dict) and value.get("error"):
        value = value["error"]
    return _said_by(value)


def _said_by(error: object) -> _Said:
    """What an error object says; it may be a bare text."""
    if isinstance(error, str):
        return _Said(error)
    if not isinstance(error, dict):
        return _Said()
    message = next((error[key] for key in ("message", "detail", "error_description", "error") if isinstance(error.get(key), str)), "")
    kind = " ".join(error[key] for key in ("type", "code", "status") if isinstance(error.get(key), str))
    code = next((error[key] for key in ("code", "status") if type(error.get(key)) is int), None)
    return _Said(message, kind, code, _retry(error.get("details")))


def _retry(details: object) -> int | None:
    for detail in details if isinstance(details, list) else ():
        delay = detail.get("retryDelay") if isinstance(detail, dict) else None
        if isinstance(delay, str) and delay.endswith("s") and (seconds := _seconds(delay[:-1])) is not None:
            return seconds
    return None


def _seconds(number: str, in_a_second: int = 1) -> int | None:
    """Whole seconds, rounded up and not over the limit; None for what is no decimal number."""
    return min(ceil(float(number) / in_a_second), RETRY_LIMIT) if _NUMBER.fullmatch(number) else None
