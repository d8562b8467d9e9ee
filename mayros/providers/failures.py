"""What a provider's refusal means: status, headers and body of an error become one of our errors, and no secret gets into it.

Pure; shared by the adapters that speak HTTP. Imports errors and net.connection (for the exceptions of the client).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from math import ceil
from urllib.parse import quote, quote_plus

import msgspec

from mayros.errors import ContextLengthExceeded, GatewayError, InsufficientQuota, RateLimited, UpstreamError, UpstreamRefused, UpstreamTimeout
from mayros.net.connection import Failed, TimedOut

BODY_LIMIT = 64 * 1024  # bytes read of the body of an error
MESSAGE_LIMIT = 300  # characters shown of a provider's own words
RETRY_LIMIT = 3600  # seconds; a longer Retry-After is cut to it

_HIDDEN = "***"
#: What looks like a credential even when it is none of ours.
_CREDENTIALS = re.compile(
    r"""\b(?:sk|pk|rk|gsk|xai)[-_][\w*.-]{6,}  # the keys of OpenAI and those who imitate it
      | \bAIza[\w-]{20,}
      | \b(?:Bearer|Basic)\s+[\w.~+/=*-]{6,}
      | (?<=://)[^/\s:@]+:[^/\s@]+(?=@)""",
    re.VERBOSE | re.IGNORECASE,
)
_TOO_LONG = re.compile(
    r"prompt is too long|exceeds? the (?:model's )?(?:maximum )?context (?:window|length)|maximum context length|input token count.{0,40}exceed"
    r"|reduce the length|available context size|too many tokens|context_length_exceeded|exceed_context_size",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(r"insufficient_quota|insufficient (?:credit|balance|quota)|billing|credit balance|exceeded your current quota", re.IGNORECASE)
_RATE = re.compile(r"rate_limit|rate limit|too many requests", re.IGNORECASE)


#: A shorter key is no secret (local servers take any), and hiding it would make every text unreadable.
LEAST_SECRET = 8


class Redactor:
    """Hides known secrets, as they are and as a URL holds them, and whatever looks like a credential."""

    def __init__(self, secrets: Iterable[str | None]) -> None:
        known = {secret for secret in secrets if secret and len(secret) >= LEAST_SECRET}
        forms = {form for secret in known for form in (secret, quote(secret, safe=""), quote_plus(secret), secret.strip())}
        # The longest first: one may begin with another.
        self._known = re.compile("|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True) if form) or r"(?!)")

    def __repr__(self) -> str:
        return "<Redactor>"

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        return _CREDENTIALS.sub(_HIDDEN, self._known.sub(_HIDDEN, text))

    def short(self, text: str) -> str:
        """Someone else's words for one of our messages: one line without control characters and secrets, at most 300 characters."""
        clean = "".join(character for character in " ".join(text.split()) if character.isprintable())
        shown = self(clean)
        return shown if len(shown) <= MESSAGE_LIMIT else shown[: MESSAGE_LIMIT - 3] + "..."


class _Said(msgspec.Struct):
    """What a provider said about an error: its words, and what else tells its kind."""

    message: str = ""
    kind: str = ""
    status: int | None = None


def client_failure(error: Failed, provider: str) -> GatewayError:
    """Our error for one of the HTTP client."""
    if isinstance(error, TimedOut):
        return UpstreamTimeout(f"The provider {provider!r} did not answer in time: {error}")
    return UpstreamError(f"The provider {provider!r} could not be reached or broke off: {error}")


def refusal(status: int, headers: Mapping[bytes, bytes], body: bytes, provider: str, redact: Redactor, now: float) -> GatewayError:
    """Our error for an answer whose status is not 200. `body`: what was read of it; `now`: seconds since 1970, for dates in Retry-After."""
    if 300 <= status < 400:
        return UpstreamError(f"The provider {provider!r} answered with a redirect (HTTP {status}), which is not followed.")
    error = _classified(status, _said(body), provider, redact)
    if status in (429, 503, 529) and (seconds := retry_after(headers, now)) is not None:
        error.retry_after = seconds
    return error


def stream_failure(error: object, provider: str, redact: Redactor) -> GatewayError:
    """Our error for an error object inside an answer that began with 200."""
    said = _said_by(error)
    status = said.status
    if status is None or not 400 <= status < 600:
        words = f"{said.kind} {said.message}"
        status = 400 if _TOO_LONG.search(words) else 429 if _NO_CREDIT.search(words) or _RATE.search(words) else 502
    return _classified(status, said, provider, redact)


def retry_after(headers: Mapping[bytes, bytes], now: float) -> int | None:
    """Whole seconds of a Retry-After in seconds or as a date, from 0 to 3600 and rounded up; None where there is none that makes sense."""
    value = headers.get(b"retry-after", b"").decode("latin-1").strip()
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{0,12})?", value):
        return min(ceil(float(value)), RETRY_LIMIT)
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
    if status in (400, 413, 422) and (status == 413 or _TOO_LONG.search(words)):
        return ContextLengthExceeded()
    if status == 402 or (status == 429 and _NO_CREDIT.search(words)):
        return InsufficientQuota(f"The quota or credit at the provider {provider!r} is used up {because}")
    if status == 429:
        return RateLimited(f"The provider {provider!r} limits the rate of requests {because}")
    if status == 408:
        return UpstreamTimeout(f"The provider {provider!r} did not answer in time {because}")
    if status in (401, 403):
        return UpstreamRefused(f"The provider {provider!r} refused the gateway's credential {because}")
    if status == 404:
        return UpstreamRefused(f"The provider {provider!r} does not know the model or the address {because}")
    if status == 409 or not 400 <= status < 500:
        return UpstreamError(f"The provider {provider!r} failed {because}")
    return UpstreamRefused(f"The provider {provider!r} refused the request {because}")


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
    return _Said(message, kind, code)
