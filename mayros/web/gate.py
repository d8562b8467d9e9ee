"""The gate: whether a request may come in, judged at the end of its headers, before a byte of its body is kept. Pure.

In order: is it well formed, is there such a route, does it take the method, is it enabled, who asks, may he, would its body be taken, and has he
asked too often. Imports core, config and errors. Source: security notes, sections 2, 3 and 4a.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from mayros.core.address import Address, AddressRules, Headers
from mayros.core.auth import Authenticator, grants
from mayros.core.ports import Principal
from mayros.core.quota import Quotas, quota_headers
from mayros.core.routing import Settings
from mayros.errors import (
    EndpointDisabled,
    Forbidden,
    GatewayError,
    InvalidRequest,
    MethodNotAllowed,
    RequestTooLarge,
    UnknownUrl,
    UnsupportedMediaType,
)
from mayros.web.cors import Cors


class Route(msgspec.Struct, frozen=True):
    """What the gate must know of one address. `open` ones need no credential; `enabled` None: always.

    `endpoint` is what tokens are narrowed to (core/api_tokens.py), `scope` what its caller must have.
    """

    methods: tuple[bytes, ...]
    open: bool = False
    enabled: Callable[[Settings], bool] | None = None
    switch: str = ""
    endpoint: str = ""
    scope: str = "operator.write"

    @property
    def allow(self) -> str:
        """Value of the `Allow` header."""
        return ", ".join(method.decode() for method in (*self.methods, b"OPTIONS"))


class Head(msgspec.Struct, frozen=True):
    """Request line and headers. `length`: of the body in bytes; None: chunked, not known."""

    method: bytes
    path: bytes
    version: bytes
    headers: Headers
    length: int | None


class Admit(msgspec.Struct, frozen=True):
    """The request may come in; `principal` None: the route is open, or the WebSocket door judges by itself. `lines`: headers of its answer."""

    principal: Principal | None
    max_body: int
    upgrade: bool = False
    lines: tuple[bytes, ...] = ()


class UnsupportedVersion(GatewayError):
    """Only HTTP/1.1 and HTTP/1.0 are spoken here."""

    status, type, code, frame_code = 505, "invalid_request_error", "unsupported_version", "INVALID_REQUEST"


def route_of(routes: Mapping[bytes, Route], path: bytes) -> Route | None:
    """The route of a path without a final slash. A key that ends in `/*` stands for all that is below it."""
    route = routes.get(path)
    if route is None:
        base, rest = split_path(path)
        route = routes.get(base + b"*") if rest else None
    return route


def split_path(path: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the slash behind the resource's name: `/v1/models/` and `mayros/main`."""
    cut = path.find(b"/", 4 if path.startswith(b"/v1/") else 1) + 1
    return path[:cut], path[cut:]


METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"CONNECT", b"TRACE"})
_JSON = b"application/json"
_CHARSETS = (b"", b"charset=utf-8", b'charset="utf-8"')


class Gate:
    """Judges by one configuration; `routes` is keyed by path without a final slash. `quotas` None: nobody has a limit."""

    def __init__(
        self, settings: Settings, rules: AddressRules, authenticator: Authenticator, routes: Mapping[bytes, Route], quotas: Quotas | None = None
    ) -> None:
        self._settings, self._rules, self._authenticator, self._routes, self._quotas = settings, rules, authenticator, routes, quotas
        self._max_body = settings.config.gateway.http.max_body_bytes
        self.cors = Cors(settings.config.gateway.http.cors.allowed_origins)

    @property
    def rules(self) -> AddressRules:
        """How a client's address is found."""
        return self._rules

    def check(self, head: Head, address: Address, now: float) -> Admit:
        """Admit the request, or raise what refuses it. `now` is monotonic seconds."""
        headers, length = head.headers, head.length
        self._well_formed(head)
        upgrade = headers(b"upgrade")
        if upgrade and any(line.strip().lower() == b"websocket" for line in upgrade):
            return self._upgrade(head)
        path = head.path
        if len(path) > 1 and path[-1:] == b"/":
            path = path[:-1]
        route = route_of(self._routes, path)
        if route is None:
            raise UnknownUrl(f"There is nothing at {head.path[:80].decode('latin-1')!r}. The chat endpoint is POST /v1/chat/completions.")
        if head.method == b"OPTIONS":
            return Admit(None, 0) if length == 0 else self._no_body()
        if head.method not in route.methods:
            raise MethodNotAllowed(route.allow)
        if route.enabled is not None and not route.enabled(self._settings):
            raise EndpointDisabled(f"This endpoint is disabled. Set {route.switch}: true in the gateway's configuration.")
        principal = None if route.open else self._authenticator.http(headers, address, now)
        if principal is not None:
            _allowed(route, principal)
        if head.method != b"POST":
            return Admit(principal, 0, lines=self._limits(principal, now, False)) if length == 0 else self._no_body()
        self._content(headers)
        if length is not None and length > self._max_body:
            raise RequestTooLarge(f"The body has {length if length < 10**15 else 'too many'} bytes; this gateway takes {self._max_body}.")
        return Admit(principal, self._max_body, lines=self._limits(principal, now, True))

    def _limits(self, principal: Principal | None, now: float, counts: bool) -> tuple[bytes, ...]:
        """What the caller is told of its limits; `counts`: the request is one of those that are limited. Raises TooManyRequests."""
        if principal is None or self._quotas is None:
            return ()
        quota = self._quotas.take(principal, now) if counts else self._quotas.look(principal, now)
        return () if quota is None else tuple(f"{name}: {value}".encode("ascii") for name, value in quota_headers(quota))

    def _well_formed(self, head: Head) -> None:
        http11 = head.version == b"HTTP/1.1"
        if not http11 and head.version != b"HTTP/1.0":
            raise UnsupportedVersion
        if not self._rules.valid_host_header(head.headers, http11):
            raise InvalidRequest("Send exactly one valid Host header.")
        if not http11 and head.headers(b"transfer-encoding"):
            raise InvalidRequest("HTTP/1.0 has no transfer encodings.")
        if head.method not in METHODS:
            raise MethodNotAllowed("GET, HEAD, POST, OPTIONS")

    def _upgrade(self, head: Head) -> Admit:
        if head.method != b"GET" or head.version != b"HTTP/1.1":
            raise InvalidRequest("A WebSocket upgrade is a GET of HTTP/1.1.")
        if head.length != 0:
            raise InvalidRequest("A WebSocket upgrade has no body.")
        return Admit(None, 0, upgrade=True)

    @staticmethod
    def _no_body() -> Admit:
        raise InvalidRequest("This request takes no body.")

    @staticmethod
    def _content(headers: Headers) -> None:
        types = headers(b"content-type") or ()
        kind, _, charset = (types[0] if len(types) == 1 else b"").partition(b";")
        if kind.strip().lower() != _JSON or charset.strip().lower() not in _CHARSETS:
            raise UnsupportedMediaType
        encodings = headers(b"content-encoding")
        if encodings and any(line.strip().lower() not in (b"", b"identity") for line in encodings):
            raise UnsupportedMediaType("Send the body without a content encoding; it is never inflated.")


def _allowed(route: Route, principal: Principal) -> None:
    """Raise Forbidden where a token is not for this endpoint, or lacks its scope."""
    if principal.endpoints is not None and route.endpoint not in principal.endpoints:
        raise Forbidden(f"This token may not use this endpoint. Its endpoints: {', '.join(sorted(principal.endpoints))}.")
    if not grants(principal.scopes, route.scope):
        raise Forbidden(f"missing scope: {route.scope}")


def forbidden_proxy() -> Forbidden:
    """The error of a PROXY header from somebody who is no trusted proxy."""
    return Forbidden("A PROXY header came from an address that is not in gateway.trustedProxies.", code="proxy_not_trusted")
