"""CORS: which pages of other origins a browser lets read our answers. Off unless `gateway.http.cors.allowedOrigins` lists some. Pure.

Only exact origins, never `*`, and never credentials of the browser's own: a page sends its token itself. What a page may not read it may still have
sent; what is refused because of its origin is refused in core/auth.py. Imports core.address. Source: openai-compat facts, section 7.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mayros.core.address import FORWARDING, Headers

#: Seconds for which a browser may keep the answer to a preflight.
MAX_AGE = 600
#: How many header names a preflight may ask for, and how long its list may be, in bytes; what is beyond is not allowed.
MAX_NAMES, MAX_ASKED = 64, 4096
#: Our headers that a page may read, besides those that browsers always show.
EXPOSED = (
    "x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "openai-processing-ms", "idempotent-replayed",
    "x-mayros-session-key", "x-mayros-run-id", "x-mayros-agent-id", "x-mayros-model",
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
)  # fmt: skip

_NAME = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_VARY = b"Vary: Origin"
_NONE: tuple[bytes, ...] = ()


class Cors:
    """The pages of one configuration."""

    def __init__(self, allowed_origins: Sequence[str]) -> None:
        self._allowed = frozenset(origin.strip().lower().rstrip("/").encode() for origin in allowed_origins) - {b""}
        self._exposed = b"Access-Control-Expose-Headers: " + ", ".join(EXPOSED).encode()

    def lines(self, origins: Sequence[bytes] | None) -> tuple[bytes, ...]:
        """The header lines of any answer, errors and streams too, to a request with these Origin headers."""
        if not self._allowed:
            return _NONE
        if not origins or len(origins) != 1 or origins[0].lower() not in self._allowed:
            return (_VARY,)
        return (_VARY, b"Access-Control-Allow-Origin: " + origins[0], self._exposed)

    def preflight(self, headers: Headers, methods: str) -> tuple[bytes, ...]:
        """What the answer to an OPTIONS request has besides `lines`: what a page of a listed origin may send to an address with these methods."""
        if not headers(b"access-control-request-method") or len(self.lines(headers(b"origin"))) < 2:
            return _NONE
        lines = [b"Access-Control-Allow-Methods: " + methods.encode(), b"Access-Control-Max-Age: %d" % MAX_AGE]
        if names := _asked(headers(b"access-control-request-headers")):
            lines.append(b"Access-Control-Allow-Headers: " + b", ".join(names))
        return tuple(lines)


def _asked(lines: Sequence[bytes] | None) -> list[bytes]:
    """The names that are asked for: well formed, and none that only a proxy may send."""
    asked = b",".join(lines or ())
    names = [name.strip().lower() for name in asked.split(b",", MAX_NAMES)[:MAX_NAMES]] if len(asked) <= MAX_ASKED else []
    return [name for name in names if _NAME.fullmatch(name) and name not in FORWARDING]
