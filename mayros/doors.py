"""Who may come in at both doors, and how much at a time, by the configuration in force. Imports core, config, web and ws.

The doors themselves (site and conversations) live as long as the process; what they judge by is made anew when the configuration changes. Requests
and sockets that are in stay, but those that came in by a secret, or by the word of a proxy, which has changed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from twisted.logger import Logger
from twisted.web.server import Request

from mayros.core.address import Address, AddressRules
from mayros.core.auth import Authenticator, make_limiter, renewed_limiter
from mayros.core.limits import FailureLimiter
from mayros.core.quota import Quotas
from mayros.core.routing import Settings
from mayros.core.token_ports import Finder
from mayros.web.app import ROUTES
from mayros.web.gate import Gate
from mayros.web.site import GatewaySite
from mayros.wire.frames import MAX_BUFFERED
from mayros.ws.context import Gateway as Conversations

log = Logger()


class Doors:
    """`settings` have their secret. `connections` gives how many clients may be connected where the configuration does not say."""

    def __init__(self, settings: Settings, tokens: Finder, quotas: Quotas, connections: Callable[[Settings], int]) -> None:
        self._settings, self._tokens, self._quotas, self._connections = settings, tokens, quotas, connections
        #: Wrong credentials since the start, by their kind (core/auth.py).
        self.wrong: dict[str, int] = {}
        #: See core.auth.Authenticator.
        self.locked: Callable[[Address, str], None] = lambda address, what: None
        self._limiter = make_limiter(settings.config.gateway.auth.rate_limit)
        self._hosts: Sequence[str] = ()
        self._site: GatewaySite | None = None
        self._conversations: Conversations | None = None
        self._judge()

    @property
    def limiter(self) -> FailureLimiter | None:
        """Who counts the failures of each client; None: nobody."""
        return self._limiter

    @property
    def max_connections(self) -> int:
        """How many clients may be connected."""
        return self._settings.config.gateway.limits.max_connections or self._connections(self._settings)

    def opened(self, hosts: Sequence[str], site: GatewaySite, conversations: Conversations) -> None:
        """These addresses are really listened on, and these are the doors."""
        self._hosts, self._site, self._conversations = hosts, site, conversations
        self._judge()

    def check(self, settings: Settings) -> None:
        """Raise ConfigError where `use` could not."""
        self._authenticator_for(settings, AddressRules.build(settings.config.gateway, self._hosts))

    def use(self, settings: Settings) -> None:
        """These settings are in force from now on."""
        before, self._settings = self._settings, settings
        old, new = before.config.gateway, settings.config.gateway
        if new.auth.rate_limit != old.auth.rate_limit:
            self._limiter = renewed_limiter(self._limiter, new.auth.rate_limit)
        self._judge()
        site, conversations = self._site, self._conversations
        if site is None or conversations is None:
            return
        limits = new.limits
        site.limit(limits.body_timeout_ms / 1000, limits.header_timeout_ms / 1000)
        site.bodies.total = limits.body_budget
        site.connections.total, site.connections.per_key = self.max_connections, limits.max_connections_per_address
        conversations.budget.limit(limits.send_budget, MAX_BUFFERED)
        if before.secret != settings.secret:
            conversations.let_in.end("secret")
        if (old.auth.trusted_proxy, old.trusted_proxies) != (new.auth.trusted_proxy, new.trusted_proxies):
            conversations.let_in.end("proxy")

    def origin_ok(self, request: Request, address: Address) -> bool:
        """Whether the page that an upgrade comes from may talk to us; asked where there is exactly one Origin."""
        gateway, headers = self._settings.config.gateway, request.requestHeaders.getRawHeaders
        listed = (*gateway.control_ui.allowed_origins, *gateway.http.cors.allowed_origins)
        return self._rules.origin_ok((headers(b"origin") or [b""])[0].decode("latin-1"), headers, address, listed)

    def _judge(self) -> None:
        """Make the judges of both doors anew."""
        self._rules = AddressRules.build(self._settings.config.gateway, self._hosts, lambda text: log.warn("{text}", text=text))
        self.authenticator = self._authenticator_for(self._settings, self._rules)
        self.gate = Gate(self._settings, self._rules, self.authenticator, ROUTES, self._quotas)
        if self._site is not None and self._conversations is not None:
            self._site.gate, self._conversations.authenticator = self.gate, self.authenticator

    def _authenticator_for(self, settings: Settings, rules: AddressRules) -> Authenticator:
        secret = settings.secret
        assert secret is not None
        authenticator = Authenticator(secret.mode, secret.value, settings.config.gateway.auth, rules, self._limiter, self._tokens)
        authenticator.wrong = self.wrong
        authenticator.locked = lambda address, what: self.locked(address, what)
        return authenticator
