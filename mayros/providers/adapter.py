"""What all adapters that speak HTTP have in common: connections, keys, refusals, and the loop from bytes to events.

A vendor's adapter is a subclass with a path, headers, a request builder and a decoder, all of them pure; nothing here knows a vendor. Imports
core, errors, events, net.http and, of providers, failures, reading and refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from typing import Any, Protocol, Self

from msgspec.structs import replace

from mayros.core.models import Credential, Provider
from mayros.core.ports import ModelRequest
from mayros.errors import UpstreamError
from mayros.events import Event
from mayros.net.http import Connection, Failed, Origin, header_lines, origin_for
from mayros.net.redact import Redactor
from mayros.providers.failures import BODY_LIMIT, Malformed, client_failure, refusal
from mayros.providers.reading import TEXT_LIMIT
from mayros.providers.refused import named_parameter
from mayros.wire.lift import lighten

#: How many parameters are dropped from one request, one after the other.
MOST_DROPS = 4

_RUN_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
#: How servers say that they do not know a parameter, as against one whose value they do not like.
_UNKNOWN = re.compile(
    rb"unsupported|not supported|does not support|unknown|unrecogni[sz]ed|unexpected|not permitted|not allowed|extra (?:fields|inputs)"
    rb"|no longer|deprecated|use '?max_completion_tokens",
    re.IGNORECASE,
)


class StreamDecoder(Protocol):
    """The answer of one model turn: bytes in, events out, no I/O. See ports.ModelProvider for the events and their order."""

    #: Nothing that follows matters: the end was seen, or an error.
    done: bool

    @property
    def complete(self) -> bool:
        """Whether the model said that it was through, so that a stream which breaks off now has lost nothing."""
        ...

    def feed(self, data: bytes) -> list[Event]:
        """The events of one read; at the end of the answer also the last ones. Raises nothing: an error is kept until `close`."""
        ...

    def close(self) -> list[Event]:
        """The stream has ended: the last events, unless `feed` gave them. Raises errors of mayros.errors."""
        ...

    def whole(self, body: bytes) -> list[Event]:
        """The events of an answer that is one JSON object, from a server that does not stream. Raises errors of mayros.errors."""
        ...


class HttpAdapter:
    """The adapter for one provider. `secrets`: more texts that must never be shown, besides the provider's own keys and headers."""

    def __init__(self, provider: Provider, origin: Origin, secrets: Iterable[str] = (), now: Callable[[], float] = time.time) -> None:
        self._provider, self._origin, self._now = provider, origin, now
        self._redact = Redactor([provider.key, *[one.key for one in provider.credentials], *provider.headers.values(), *secrets])
        self._written: dict[str | None, bytes] = {}
        #: By model: parameters that its server refuses.
        self._dropped: dict[str, frozenset[str]] = {}
        self._header_lines(None)  # raises for headers that cannot be sent

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._provider.id}>"

    @classmethod
    def connect(cls, provider: Provider, reactor: Any, secrets: Iterable[str] = (), environ: Mapping[str, str] | None = None) -> Self:
        """The adapter with connections of its own, through the proxy that `environ` names. Raises ConfigError for a URL, header, certificate file or
        proxy that cannot be used."""
        origin = origin_for(
            provider.base_url,
            {},
            reactor,
            connect_timeout=provider.limits.connect,
            first_byte_timeout=provider.limits.first_byte,
            idle_timeout=provider.limits.idle,
            max_connections=provider.max_connections,
            ca_path=provider.ca_path,
            environ=environ,
        )
        return cls(provider, origin, secrets)

    # What differs between the vendors.

    def path(self, request: ModelRequest) -> bytes:
        """After the base URL; may have a query of its own."""
        raise NotImplementedError

    def key_headers(self, key: str) -> Mapping[str, str]:
        """How the key is sent."""
        return {"Authorization": f"Bearer {key}"}

    def more_headers(self) -> Mapping[str, str]:
        """Further headers of every request; those of the configuration win."""
        return {}

    def body(self, request: ModelRequest, dropped: frozenset[str]) -> bytes | tuple[bytes, ...]:
        """The request in the vendor's form, without the parameters in `dropped`. Raises InvalidRequest for what it cannot say."""
        raise NotImplementedError

    def optional(self, request: ModelRequest) -> Iterable[str]:
        """Parameters that an answer may be had without (or under another name): a 400 that names one as unknown drops it, once and for the model."""
        return ()

    def instead(self, request: ModelRequest, body: bytes, dropped: frozenset[str]) -> str | None:
        """Another way to ask after a 400 with this body, as a mark that `body` finds in `dropped` from then on; None: there is none."""
        return None

    def decoder(self, request: ModelRequest) -> StreamDecoder:
        """A fresh one for the answer."""
        raise NotImplementedError

    # What does not.

    def close(self) -> None:
        """Close the connections that are not in use."""
        self._origin.close()

    async def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """See ports.ModelProvider. What the model's own server could not read is asked for once more, if nothing of it was told."""
        for last in (False, True):
            decoder = self.decoder(request)
            try:
                async with await self._open(request) as response:
                    kind = response.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
                    if kind in (b"text/event-stream", b""):
                        async for piece in response:
                            events = decoder.feed(piece)
                            if decoder.done and decoder.complete:
                                response.settle()
                            if events:
                                yield events
                            if decoder.done:
                                break
                    elif kind == b"application/json" or kind.endswith(b"+json"):
                        body = await response.read(TEXT_LIMIT)
                        yield decoder.whole(body)
                    else:
                        shown = self._redact.short(kind.decode("latin-1"))
                        raise UpstreamError(f"The provider {self._provider.id!r} answered with {shown} instead of a stream of events.")
            except Failed as error:
                if not decoder.complete:
                    raise client_failure(error, self._provider.id) from error
            try:
                events = decoder.close()
            except Malformed:
                if last:
                    raise
                continue
            if events:
                yield events
            return

    async def _open(self, request: ModelRequest) -> Connection:
        """The response, with status 200; any other is raised as what it means."""
        headers = self._header_lines(request.credential)
        if _RUN_ID.fullmatch(request.run_id):
            headers += f"X-Request-Id: {request.run_id}\r\n".encode("ascii")
        if request.trace is not None and self._provider.traceparent:
            headers += f"traceparent: {request.trace.header()}\r\n".encode("ascii")
        model, drops = request.model.id, 0
        path = self.path(request)
        light, lifted = lighten(request.messages)
        if light is not request.messages:
            request = replace(request, messages=light)
        while True:
            dropped = self._dropped.get(model, frozenset())
            response = await self._origin.post(path, lifted.around(self.body(request, dropped)), headers)
            if response.status == 200:
                return response
            async with response:
                try:
                    body = b"" if 300 <= response.status < 400 else await response.read(BODY_LIMIT)
                except Failed:
                    body = b""  # the status says enough
            drops += 1
            if response.status in (400, 422) and drops <= MOST_DROPS and (named := self._named(request, body, dropped)) is not None:
                self._dropped[model] = self._dropped.get(model, frozenset()) | {named}
                continue
            raise refusal(response.status, response.headers, body, self._provider.id, self._redact, self._now())

    def _named(self, request: ModelRequest, body: bytes, dropped: frozenset[str]) -> str | None:
        """The parameter that a refusal calls unknown, if we can do without it, or the mark of another way to ask."""
        mark = self.instead(request, body, dropped)
        if mark is not None and mark not in dropped:
            return mark
        return named_parameter(body, [name for name in self.optional(request) if name not in dropped]) if _UNKNOWN.search(body) else None

    def _header_lines(self, credential: Credential | None) -> bytes:
        key = self._provider.key if credential is None else credential.key
        written = self._written.get(key)
        if written is None:
            headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **self.more_headers()}
            if key and self._provider.auth_header:
                headers.update(self.key_headers(key.strip()))
            own = {name.lower() for name in self._provider.headers}
            headers = {**{name: value for name, value in headers.items() if name.lower() not in own}, **self._provider.headers}
            written = self._written[key] = header_lines(headers)
        return written
