"""Who asks: a credential becomes a Principal, or an error that says what is missing. Pure; time is passed in.

One shared secret makes the owner (modes `token` and `password`); behind a trusted proxy the proxy names the user; mode `none` trusts whoever
reaches this machine itself, and therefore looks at Host and Origin. Imports mayros.config, mayros.core and mayros.errors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from hashlib import sha256
from hmac import compare_digest

from mayros.config.schema import Auth, AuthMode, RateLimit
from mayros.core.address import Address, AddressRules, Headers
from mayros.core.keys import check_text
from mayros.core.limits import FailureLimiter, retry_after
from mayros.core.ports import Principal
from mayros.errors import ConfigError, Forbidden, InvalidRequest, TooManyAuthFailures, Unauthorized

#: What failures are counted apart for: the shared secret, and the tokens of devices.
SHARED_SECRET, DEVICE_TOKEN = "shared-secret", "device-token"
OPERATOR_SCOPES = frozenset(f"operator.{name}" for name in ("read", "write", "admin", "approvals", "pairing"))
#: What a user behind a trusted proxy may do: talk to agents and read, not administer the gateway.
PROXY_SCOPES = frozenset(("operator.read", "operator.write"))
OWNER = Principal("owner", OPERATOR_SCOPES)
#: Longest user name that a proxy may send, in bytes.
MAX_USER = 256


def grants(have: Collection[str], scope: str) -> bool:
    """Whether these scopes give that one: literally, by `operator.admin`, or read by write."""
    return scope in have or "operator.admin" in have or (scope == "operator.read" and "operator.write" in have)


def lacking(have: Collection[str], need: Iterable[str]) -> str | None:
    """The first of `need` that `have` does not give; None when nothing is missing."""
    return next((scope for scope in need if not grants(have, scope)), None)


def make_limiter(rate_limit: RateLimit | None) -> FailureLimiter | None:
    """The limiter that `gateway.auth.rateLimit` asks for; None when it is not set. ConfigError for a value below 1."""
    if rate_limit is None:
        return None
    return FailureLimiter(rate_limit.max_attempts, rate_limit.window_ms / 1000, rate_limit.lockout_ms / 1000)


class Authenticator:
    """Judges credentials at both doors. One per configuration; the limiter is handed on when the configuration changes.

    `mode` is the resolved one and `secret` the token or password. ConfigError when the mode cannot work with what is there.
    """

    def __init__(self, mode: AuthMode, secret: str | None, auth: Auth, rules: AddressRules, limiter: FailureLimiter | None) -> None:
        shared = mode in ("token", "password")
        if shared and not (secret or "").strip():
            raise ConfigError(f'gateway.auth.mode is "{mode}", but there is no {mode}: set gateway.auth.{mode}.')
        self.mode: AuthMode = mode
        self._rules = rules
        self._limiter = limiter if shared else None
        self._exempt = auth.rate_limit is None or auth.rate_limit.exempt_loopback
        self._digest = _digest(secret or "") if shared else b""
        self._proxy = auth.trusted_proxy
        self._user_header = auth.trusted_proxy.user_header.strip().lower().encode("latin-1", "replace")
        self._required = tuple(name.strip().lower().encode("latin-1", "replace") for name in auth.trusted_proxy.required_headers)
        if mode == "trusted-proxy" and not self._user_header:
            raise ConfigError('gateway.auth.mode is "trusted-proxy", but gateway.auth.trustedProxy.userHeader is not set.')
        if mode == "trusted-proxy" and not rules.has_proxies:
            raise ConfigError('gateway.auth.mode is "trusted-proxy", but gateway.trustedProxies is empty.')

    def __repr__(self) -> str:
        return f"<Authenticator {self.mode}>"

    def http(self, headers: Headers, address: Address, now: float) -> Principal:
        """Who sent a request with these headers. `now` is monotonic seconds.

        Raises Unauthorized (401), TooManyAuthFailures (429, `retry_after` set) or Forbidden (403). In the modes `none` and `trusted-proxy` this is
        also what judges a WebSocket upgrade.
        """
        if self.mode == "none":
            if not self._rules.host_ok(headers):
                raise Forbidden("The Host header does not name this gateway. List the name in gateway.allowedHosts.", code="host_not_allowed")
            self._refuse_foreign_page(headers, address)
            return OWNER
        if self.mode == "trusted-proxy":
            principal = self._from_proxy(headers, address)
            self._refuse_foreign_page(headers, address)
            return principal
        self._refuse_locked(address, now)
        lines = headers(b"authorization")
        if not lines:
            raise Unauthorized
        value = lines[0]
        # The length is no secret; the digests hide where two values differ.
        if len(lines) == 1 and value[:7].lower() == b"bearer " and compare_digest(sha256(value[7:]).digest(), self._digest):
            self.count(address, now, right=True)
            return OWNER
        self.count(address, now, right=False)
        raise Unauthorized

    def matches(self, presented: str) -> bool:
        """Whether this is the shared secret. Not counted: whoever asks looks at `lockout` before, and calls `count` when the client is told."""
        return bool(self._digest) and compare_digest(_digest(presented), self._digest)

    def lockout(self, address: Address, now: float, what: str = SHARED_SECRET) -> float:
        """Seconds for which this client is locked out; 0 when it is not. Failures of `what` are counted apart."""
        limiter = self._limiter
        if limiter is None or (address.exempt and self._exempt):
            return 0.0
        return limiter.check(_key(address, what), now)

    def count(self, address: Address, now: float, right: bool, what: str = SHARED_SECRET) -> None:
        """A credential was right, which forgets the client's failures, or wrong."""
        limiter = self._limiter
        if limiter is None or (address.exempt and self._exempt):
            return
        if right:
            limiter.succeeded(_key(address, what))
        else:
            limiter.failed(_key(address, what), now)

    def _refuse_locked(self, address: Address, now: float) -> None:
        left = self.lockout(address, now)
        if left > 0:
            raise TooManyAuthFailures(retry_after=retry_after(left))

    def _refuse_foreign_page(self, headers: Headers, address: Address) -> None:
        """Where the connection itself is the credential, a page of another site must not borrow it."""
        origins = headers(b"origin") or ()
        if len(origins) > 1:
            raise Forbidden("More than one Origin header.", code="origin_not_allowed")
        origin = origins[0].decode("latin-1") if origins else None
        listed = self._rules.cors_origins
        if origin is not None and self._rules.origin_listed(origin, listed):
            return
        cross = any(b"cross-site" in line.lower() for line in headers(b"sec-fetch-site") or ())
        if cross or (origin is not None and not self._rules.origin_ok(origin, headers, address, listed)):
            raise Forbidden("Pages of this origin may not call the gateway. List it in gateway.http.cors.allowedOrigins.", code="origin_not_allowed")

    def _from_proxy(self, headers: Headers, address: Address) -> Principal:
        proxy = self._proxy
        if not address.trusted_peer:
            raise Unauthorized("Only a trusted proxy may speak for users here.")
        if self._rules.is_loopback(address.peer) and not proxy.allow_loopback:
            raise Unauthorized("A proxy on this machine may speak for users only with gateway.auth.trustedProxy.allowLoopback.")
        for name in self._required:
            if not any(line.strip() for line in headers(name) or ()):
                raise Unauthorized("The proxy did not send every required header.")
        lines = headers(self._user_header) or ()
        try:
            user = check_text(lines[0].decode("utf-8").strip(), "user", MAX_USER) if len(lines) == 1 else ""
        except (UnicodeDecodeError, InvalidRequest):
            raise Unauthorized("The proxy sent a user name that cannot be used.") from None
        if not user:
            raise Unauthorized("The proxy did not name exactly one user.")
        if proxy.allow_users and user not in proxy.allow_users:
            raise Forbidden("This user may not use the gateway.", code="user_not_allowed")
        return Principal(f"user:{user}", PROXY_SCOPES)


def _key(address: Address, what: str) -> str:
    return address.limiter_key if what == SHARED_SECRET else f"{what} {address.limiter_key}"


def _digest(secret: str) -> bytes:
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
