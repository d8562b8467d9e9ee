"""What the configuration says of images and files in requests: sizes, counts and names that make sense. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable

from mayros.config.gateway import Endpoint, Endpoints
from mayros.errors import ConfigError

_HOST = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*\.?|[0-9A-Fa-f]*:[0-9A-Fa-f:.]+")


def check_inputs(endpoints: Endpoints, fail: Callable[[str, str], ConfigError]) -> None:
    """Raise what `fail` makes of the first key with a value that cannot be used, and why."""
    _check("gateway.http.endpoints.chatCompletions", endpoints.chat_completions, fail)
    _check("gateway.http.endpoints.responses", endpoints.responses, fail)


def _check(path: str, endpoint: Endpoint, fail: Callable[[str, str], ConfigError]) -> None:
    images, files = endpoint.images, endpoint.files
    for name, value, least, most in (
        ("images.maxBytes", images.max_bytes, 1, 14 << 20),
        ("images.maxRedirects", images.max_redirects, 0, 10),
        ("images.timeoutMs", images.timeout_ms, 1, 120_000),
        ("maxUrlParts", endpoint.max_url_parts, 0, 8),
        ("files.maxBytes", files.max_bytes, 1, 64 << 20),
        ("files.maxChars", files.max_chars, 1, 10_000_000),
        ("files.pdf.maxPages", files.pdf.max_pages, 1, 1000),
    ):
        if not least <= value <= most:
            raise fail(f"{path}.{name}", f"must be from {least} to {most}")
    for number, host in enumerate(images.url_allowlist):
        if not _HOST.fullmatch(host):
            raise fail(f"{path}.images.urlAllowlist[{number}]", "must be the name of a host, or *. and a domain, without scheme, port and path")
