"""The floor: the least that Twisted offers out of the box for the same job. `python -m bench.floor UPSTREAM_PORT LOG` prints its port.

A bare Resource passes each request to the upstream with `Agent`; a plain answer is read whole and passed on, of a stream each event is
parsed and written again. It checks no credential, keeps no session and stores nothing. What a sane user would set is set: a
persistent pool with room for all clients, and the access log in a file. Ends with its standard input.
"""

from __future__ import annotations

import json
import sys
from io import BytesIO
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.stdio import StandardIO
from twisted.internet.task import react
from twisted.python.failure import Failure
from twisted.web.client import Agent, FileBodyProducer, HTTPConnectionPool, PotentialDataLoss, ResponseDone, readBody
from twisted.web.http_headers import Headers
from twisted.web.iweb import IResponse
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Request, Site


class Events(Protocol):
    """Parses the upstream's events and writes each to the client."""

    def __init__(self, request: Request) -> None:
        self.request, self.rest = request, b""
        self.ended: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            payload = event.removeprefix(b"data: ")
            if payload != b"[DONE]":
                payload = json.dumps(json.loads(payload)).encode()
            self.request.write(b"data: " + payload + b"\n\n")

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if reason.check(ResponseDone, PotentialDataLoss):
            self.ended.callback(None)
        else:
            self.ended.errback(reason)


class Floor(Resource):
    """POST to anything: the same to the upstream, its answer back."""

    isLeaf = True

    def __init__(self, agent: Agent, url: bytes) -> None:
        super().__init__()
        self.agent, self.url = agent, url
        self.headers = Headers({b"content-type": [b"application/json"], b"authorization": [b"Bearer x"]})

    def render_POST(self, request: Request) -> int:
        body = request.content.read()
        stream = json.loads(body).get("stream") is True
        asked = self.agent.request(b"POST", self.url, self.headers, FileBodyProducer(BytesIO(body)))
        asked.addCallback(self._stream if stream else self._plain, request)
        asked.addCallbacks(lambda _: request.finish(), self._failed, errbackArgs=(request,))
        gone: Deferred[None] = request.notifyFinish()
        gone.addErrback(lambda _: asked.cancel())
        return NOT_DONE_YET

    def _plain(self, response: IResponse, request: Request) -> Deferred[None]:
        request.setResponseCode(response.code)
        request.setHeader(b"content-type", b"application/json")
        read: Deferred[Any] = readBody(response)
        return read.addCallback(request.write)

    def _stream(self, response: IResponse, request: Request) -> Deferred[None]:
        request.setResponseCode(response.code)
        request.setHeader(b"content-type", b"text/event-stream; charset=utf-8")
        events = Events(request)
        response.deliverBody(events)
        return events.ended

    @staticmethod
    def _failed(failure: Failure, request: Request) -> None:
        print(failure.getTraceback(), file=sys.stderr, flush=True)
        if request.channel is not None:
            request.loseConnection()


class Leash(Protocol):
    """Ends the process when whoever started it is gone."""

    def __init__(self) -> None:
        self.cut: Deferred[None] = Deferred()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.cut.callback(None)


def serve(reactor: Any, upstream_port: str, log_path: str) -> Deferred[None]:
    """Listen on a loopback port and print it."""
    pool = HTTPConnectionPool(reactor, persistent=True)
    pool.maxPersistentPerHost = 4096
    url = f"http://127.0.0.1:{int(upstream_port)}/v1/chat/completions".encode()
    site = Site(Floor(Agent(reactor, pool=pool), url), logPath=log_path)
    port = reactor.listenTCP(0, site, backlog=4096, interface="127.0.0.1")
    print(port.getHost().port, flush=True)
    leash = Leash()
    StandardIO(leash, reactor=reactor)
    return leash.cut


if __name__ == "__main__":
    react(serve, sys.argv[1:])
