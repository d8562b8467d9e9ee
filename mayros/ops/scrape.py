"""A listener for the metrics alone, without a secret: whoever reaches it may read them. Imports config and ops.listen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, UNIXServerEndpoint
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.web.http import HTTPChannel
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from mayros.config.listen import place
from mayros.ops.listen import BACKLOG, Listeners

#: A client that neither asks nor reads is let go.
IDLE_SECONDS = 60


class _Channel(HTTPChannel):
    maxHeaders = 100


class _Request(Request):
    defaultContentType = None


class Page(Resource):
    """The answer to `GET /metrics`, and to nothing else."""

    isLeaf = True

    def __init__(self, text: Callable[[], bytes], content_type: bytes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._text, self._content_type = text, content_type

    def render_GET(self, request: Request) -> bytes:
        """See Resource.render."""
        request.setHeader(b"server", b"mayros")
        request.setHeader(b"x-content-type-options", b"nosniff")
        if request.path != b"/metrics":
            request.setResponseCode(404)
            request.setHeader(b"content-type", b"text/plain; charset=utf-8")
            return b"GET /metrics\n"
        request.setHeader(b"content-type", self._content_type)
        request.setHeader(b"cache-control", b"no-store")
        return self._text()


class Scraped(Site):
    """The server; bodies and log files are none of its business."""

    noisy = False
    requestFactory = _Request
    protocol = _Channel  # type: ignore[assignment]

    def __init__(self, page: Resource, reactor: Any) -> None:
        super().__init__(page, timeout=IDLE_SECONDS, reactor=reactor, parsePOSTFormSubmission=False)  # type: ignore[no-untyped-call]

    def startFactory(self) -> None:
        """No log file of Twisted's."""

    def stopFactory(self) -> None:
        """Nothing was opened."""

    def log(self, request: Request) -> None:  # type: ignore[override]
        """Scrapes are not logged."""


def serve(listen: str, text: Callable[[], bytes], content_type: bytes, reactor: Any) -> Listeners:
    """Open `gateway.metrics.listen`. Raises StartError."""
    where = place(listen)
    endpoint: IStreamServerEndpoint
    if isinstance(where, str):
        # With a lock file, so that what a gateway left that was killed is taken over.
        endpoint = UNIXServerEndpoint(reactor, where, backlog=BACKLOG, mode=0o600, wantPID=True)
    else:
        kind = TCP6ServerEndpoint if ":" in where[0] else TCP4ServerEndpoint
        endpoint = kind(reactor, where[1], backlog=BACKLOG, interface=where[0])
    listeners = Listeners()
    listeners.open(endpoint, Scraped(Page(text, content_type), reactor), f"gateway.metrics.listen {listen}")
    return listeners
