"""Who asks: a credential becomes a Principal, or an error that says what is missing. Pure; time is passed in.

One shared secret makes the owner (modes `token` and `password`); behind a trusted proxy the proxy names the user; mode `none` trusts whoever
reaches this machine itself, and therefore looks at Host and Origin. In every mode there may be tokens of single persons and programs besides
(core/api_tokens.py). Imports mayros.config, mayros.core and mayros.errors.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from hashlib import sha256
from hmac import compare_digest

import msgspec

from mayros.config.gateway import Auth, AuthMode, RateLimit
from mayros.core.address import Address, AddressRules, Headers
from mayros.core.keys import check_text
from mayros.core.limits import FailureLimiter, retry_after
from mayros.core.ports import Principal
from mayros.core.token_ports import PREFIX, Finder, Held
from mayros.errors import ConfigError, Forbidden, InvalidRequest, TooManyAuthFailures, Unauthorized, bare

#: What failures are counted apart for: the shared secret, and the tokens of devices.
SHARED_SECRET, DEVICE_TOKEN = "shared-secret", "device-token"
OPERATOR_SCOPES = frozenset(f"operator.{name}" for name in ("read", "write", "admin", "approvals", "pairing"))
#: What a user behind a trusted proxy may do: talk to agents and read, not administer the gateway.
PROXY_SCOPES = frozenset(("operator.read", "operator.write"))
OWNER = Principal("owner", OPERATOR_SCOPES)
_PREFIX = PREFIX.encode()
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


def renewed_limiter(limiter: FailureLimiter | None, rate_limit: RateLimit | None) -> FailureLimiter | None:
    """The limiter for another `gateway.auth.rateLimit`, which remembers what the old one did: a change is no way out of a lockout."""
    if limiter is None or rate_limit is None:
        return make_limiter(rate_limit)
    limiter.max_attempts = rate_limit.max_attempts
    limiter.window_seconds, limiter.lockout_seconds = rate_limit.window_ms / 1000, rate_limit.lockout_ms / 1000
    return limiter


class Authenticator:
    """Judges credentials at both doors. One per configuration; the limiter is handed on when the configuration changes.

    `mode` is the resolved one and `secret` the token or password; `tokens` knows those of single persons and programs. ConfigError when the mode
    cannot work with what is there.
    """

    def __init__(
        self, mode: AuthMode, secret: str | None, auth: Auth, rules: AddressRules, limiter: FailureLimiter | None, tokens: Finder | None = None
    ) -> None:
        shared = mode in ("token", "password")
        if shared and not (secret or "").strip():
            raise ConfigError(f'gateway.auth.mode is "{mode}", but there is no {mode}: set gateway.auth.{mode}.')
        self.mode: AuthMode = mode
        #: Wrong credentials by their kind.
        self.wrong: dict[str, int] = {}
        #: Hears of each lockout: whose, and of which kind of credential.
        self.locked: Callable[[Address, str], None] = lambda address, what: None
        self._rules, self._tokens = rules, tokens
        self._limiter = limiter if mode != "none" else None
        self._exempt = auth.rate_limit is None or auth.rate_limit.exempt_loopback
        self._digest = secret_digest(secret or "") if shared else b""
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

        Raises Unauthorized (401), TooManyAuthFailures (429, `retry_after` set) or Forbidden (403).
        """
        lines = headers(b"authorization") or ()
        value = lines[0] if lines else b""
        bearer = value[7:] if len(lines) == 1 and value[:7].lower() == b"bearer " else None
        if self.mode in ("none", "trusted-proxy") and (bearer is None or not bearer.startswith(_PREFIX)):
            # Here other credentials than a token mean nothing; whoever shows a token is judged by it alone.
            return self._ambient(headers, address)
        self._refuse_locked(address, now)
        if not lines:
            raise Unauthorized
        if bearer is not None:
            digest = sha256(bearer).digest()
            # The length is no secret; the digests hide where two values differ.
            if self._digest and compare_digest(digest, self._digest):
                self.count(address, now, right=True)
                return OWNER
            if (held := self._found(digest)) is not None:
                return held.principal
        self.count(address, now, right=False)
        raise Unauthorized

    def _ambient(self, headers: Headers, address: Address) -> Principal:
        """Who asks where the connection itself is the credential."""
        if self.mode == "trusted-proxy":
            principal = self._from_proxy(headers, address)
        elif self._rules.host_ok(headers):
            principal = OWNER
        else:
            raise Forbidden("The Host header does not name this gateway. List the name in gateway.allowedHosts.", code="host_not_allowed")
        self._refuse_foreign_page(headers, address)
        return _narrowed(principal, headers)

    def _found(self, digest: bytes) -> Held | None:
        """The token whose secret has this digest, which is used hereby. Failures are not forgotten for it: it says nothing about who tries others.

        Raises Unauthorized for one that is over: whoever has it is not guessing.
        """
        if self._tokens is None or (held := self._tokens.find(digest)) is None:
            return None
        if (problem := self._tokens.problem(held)) is not None:
            raise Unauthorized(problem)
        self._tokens.used(held)
        return held

    def held(self, presented: str) -> Held | None:
        """The token of a person or program whose secret this is; None: it is none of them. Not counted. Raises Unauthorized for one that is over."""
        return self._found(secret_digest(presented))

    def proxied(self, headers: Headers, address: Address) -> Principal | Unauthorized | None:
        """The user that a trusted proxy names in a WebSocket upgrade, or why there is none; None in the other modes. Origin is judged elsewhere.

        Raises Forbidden for a user who may not use the gateway.
        """
        if self.mode != "trusted-proxy":
            return None
        try:
            return self._from_proxy(headers, address)
        except Unauthorized as error:
            return bare(error)

    def matches(self, presented: str) -> bool:
        """Whether this is the shared secret. Not counted: whoever asks looks at `lockout` before, and calls `count` when the client is told."""
        return bool(self._digest) and compare_digest(secret_digest(presented), self._digest)

    def lockout(self, address: Address, now: float, what: str = SHARED_SECRET) -> float:
        """Seconds for which this client is locked out; 0 when it is not. Failures of `what` are counted apart."""
        limiter = self._limiter
        if limiter is None or (address.exempt and self._exempt):
            return 0.0
        return limiter.check(_key(address, what), now)

    def count(self, address: Address, now: float, right: bool, what: str = SHARED_SECRET) -> None:
        """A credential was right, which forgets the client's failures, or wrong."""
        if not right:
            self.wrong[what] = self.wrong.get(what, 0) + 1
        limiter = self._limiter
        if limiter is None or (address.exempt and self._exempt):
            return
        if right:
            limiter.succeeded(_key(address, what))
        elif limiter.failed(_key(address, what), now):
            self.locked(address, what)

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


def _narrowed(principal: Principal, headers: Headers) -> Principal:
    """The same, with no more scopes than the request declares in `x-mayros-scopes`, a list with commas; it never gives any."""
    lines = headers(b"x-mayros-scopes")
    if lines is None:
        return principal
    declared = {name.strip() for line in lines for name in line.decode("latin-1").split(",")}
    return msgspec.structs.replace(principal, scopes=frozenset(name for name in declared & OPERATOR_SCOPES if grants(principal.scopes, name)))


def _key(address: Address, what: str) -> str:
    return address.limiter_key if what == SHARED_SECRET else f"{what} {address.limiter_key}"


def secret_digest(secret: str) -> bytes:
    """What is kept of a secret, and compared: its SHA-256. What a client sends may hold halves of surrogate pairs."""
    return sha256(secret.encode("utf-8", "surrogatepass")).digest()
