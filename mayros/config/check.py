"""What types cannot say about a configuration: ranges, addresses, names, and keys that need each other. Pure.

Imports its sibling modules, net.certificates and errors.
"""

from __future__ import annotations

import ipaddress
import math
import re
from urllib.parse import urlsplit

import msgspec

from mayros.config.check_inputs import check_inputs
from mayros.config.check_tools import check_tools
from mayros.config.gateway import Auth, Gateway, Tls
from mayros.config.listen import place
from mayros.config.params import THINKING, problems
from mayros.config.schema import Config, ProviderEntry, Session, Timeouts
from mayros.config.source import ascii_json, join
from mayros.errors import ConfigError
from mayros.net.certificates import parse_fingerprint

REDACTED = "__MAYROS_REDACTED__"
#: A log file holds at least so much before it is set aside.
LEAST_LOG_BYTES = 64 << 10
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_HEADER_VALUE = re.compile(r"[\x20-\x7e\x80-\xff\t]{0,8192}")
#: Headers that the client of the providers sets itself; a second one would make the request ambiguous.
_FRAMING = frozenset({"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "keep-alive"})
_HOST_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9])?)*\.?", re.IGNORECASE)
_AGENT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.IGNORECASE | re.ASCII)
_SQLITE = re.compile(r"sqlite(\+pysqlite)?://")


class Checker:
    """Checks one configuration; `name` is the file for messages."""

    def __init__(self, name: str, warnings: list[str]) -> None:
        self.name = name
        self.warnings = warnings

    def check(self, config: Config) -> Config:
        """The configuration, without a `session.store` of the original's. Raises ConfigError naming the key path."""
        self._gateway(config.gateway)
        self._auth(config.gateway.auth, config.gateway)
        self._agents(config)
        check_tools(config, self.fail, self.warnings)
        for provider_id, entry in config.models.providers.items():
            self._provider(join("models.providers", provider_id), provider_id, entry)
        self._timeouts("models.timeouts", config.models.timeouts)
        self._at_least(LEAST_LOG_BYTES, logging__maxFileBytes=config.logging.max_file_bytes)
        return msgspec.structs.replace(config, session=self._session(config.session))

    def fail(self, path: str, text: str) -> ConfigError:
        """The error for a key."""
        return ConfigError(f"{self.name}: {path}: {text}")

    def _at_least(self, least: int, **values: int | None) -> None:
        """Each value, named by its path with `__` for the dots, must not be below `least` (nor absurd)."""
        for name, value in values.items():
            if value is not None and not least <= value <= 1 << 53:
                raise self.fail(name.replace("__", "."), f"must be at least {least}" if value < least else "is too large")

    def _gateway(self, gateway: Gateway) -> None:
        check_inputs(gateway.http.endpoints, self.fail)
        if not 0 <= gateway.port <= 65535:
            raise self.fail("gateway.port", "must be a port number from 0 to 65535")
        if gateway.bind == "custom":
            if not gateway.custom_bind_host:
                raise self.fail("gateway.customBindHost", "must be set for gateway.bind custom")
            if self._address(gateway.custom_bind_host) is None:
                raise self.fail("gateway.customBindHost", "must be an IPv4 or IPv6 address")
        elif gateway.custom_bind_host:
            self.warnings.append(f"gateway.customBindHost: has no effect while gateway.bind is {gateway.bind}")
        for number, text in enumerate(gateway.trusted_proxies):
            self._proxy(f"gateway.trustedProxies[{number}]", text)
        for number, text in enumerate(gateway.allowed_hosts):
            bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
            if self._address(bare) is None and not _HOST_NAME.fullmatch(bare):
                raise self.fail(f"gateway.allowedHosts[{number}]", "must be a host name or an address, without a port")
        limits, http = gateway.limits, gateway.http
        self._at_least(
            1,
            gateway__limits__maxConnections=limits.max_connections,
            gateway__limits__maxConnectionsPerAddress=limits.max_connections_per_address,
            gateway__limits__maxQueuedPerSession=limits.max_queued_per_session,
            gateway__limits__maxQueuedRuns=limits.max_queued_runs,
            gateway__limits__bodyBudget=limits.body_budget,
            gateway__limits__sendBudget=limits.send_budget,
            gateway__limits__headerTimeoutMs=limits.header_timeout_ms,
            gateway__limits__bodyTimeoutMs=limits.body_timeout_ms,
            gateway__http__maxBodyBytes=http.max_body_bytes,
        )
        if limits.body_budget < http.max_body_bytes:
            raise self.fail("gateway.limits.bodyBudget", "must not be smaller than gateway.http.maxBodyBytes")
        for number, text in enumerate(http.cors.allowed_origins):
            self._origin(f"gateway.http.cors.allowedOrigins[{number}]", text)
        for number, text in enumerate(gateway.control_ui.allowed_origins):
            if text != "null":
                self._origin(f"gateway.controlUi.allowedOrigins[{number}]", text)
        self._tls(gateway.tls)
        if gateway.metrics.listen is not None:
            try:
                place(gateway.metrics.listen)
            except ValueError as error:
                raise self.fail("gateway.metrics.listen", str(error)) from None
        remote = gateway.remote
        if remote.url is not None:
            self._url("gateway.remote.url", remote.url, ("ws", "wss"))
        if remote.tls_fingerprint is not None:
            try:
                parse_fingerprint(remote.tls_fingerprint)
            except ValueError as error:
                raise self.fail("gateway.remote.tlsFingerprint", str(error)) from None
            if remote.url is not None and not remote.url.lower().startswith("wss:"):
                raise self.fail("gateway.remote.tlsFingerprint", "needs a wss:// URL in gateway.remote.url: without TLS there is no certificate")
        self._secret("gateway.remote.token", gateway.remote.token)
        self._secret("gateway.remote.password", gateway.remote.password)

    def _tls(self, tls: Tls) -> None:
        paths = {"certPath": tls.cert_path, "keyPath": tls.key_path, "caPath": tls.ca_path}
        for name, path in paths.items():
            if path is not None and (not path.strip() or "\0" in path):
                raise self.fail(f"gateway.tls.{name}", "must be a path")
        if not tls.enabled:
            given = [name for name, path in paths.items() if path is not None] + ["hsts"] * tls.hsts
            self.warnings += [f"gateway.tls.{name}: has no effect while gateway.tls.enabled is not true" for name in given[:1]]
        elif (tls.cert_path is None) != (tls.key_path is None):
            missing = "keyPath" if tls.key_path is None else "certPath"
            raise self.fail(f"gateway.tls.{missing}", "certPath and keyPath go together; without both, the pair of `mayros gateway cert` is used")

    def _auth(self, auth: Auth, gateway: Gateway) -> None:
        self._secret("gateway.auth.token", auth.token)
        self._secret("gateway.auth.password", auth.password)
        if auth.rate_limit is not None:
            self._at_least(
                1,
                gateway__auth__rateLimit__maxAttempts=auth.rate_limit.max_attempts,
                gateway__auth__rateLimit__windowMs=auth.rate_limit.window_ms,
                gateway__auth__rateLimit__lockoutMs=auth.rate_limit.lockout_ms,
            )
        proxy = auth.trusted_proxy
        if proxy.user_header and not _HEADER_NAME.fullmatch(proxy.user_header):
            raise self.fail("gateway.auth.trustedProxy.userHeader", "must be the name of a header")
        for number, text in enumerate(proxy.required_headers):
            if not _HEADER_NAME.fullmatch(text):
                raise self.fail(f"gateway.auth.trustedProxy.requiredHeaders[{number}]", "must be the name of a header")
        for number, text in enumerate(proxy.allow_users):
            if not text.strip() or not text.isprintable():
                raise self.fail(f"gateway.auth.trustedProxy.allowUsers[{number}]", "must not be blank or hold control characters")
        if auth.mode == "trusted-proxy":
            if not gateway.trusted_proxies:
                raise self.fail("gateway.trustedProxies", "must list the proxy for gateway.auth.mode trusted-proxy")
            if not proxy.user_header:
                raise self.fail("gateway.auth.trustedProxy.userHeader", "must be set for gateway.auth.mode trusted-proxy")

    def _agents(self, config: Config) -> None:
        defaults = config.agents.defaults
        self._at_least(
            1,
            agents__defaults__timeoutSeconds=defaults.timeout_seconds,
            agents__defaults__maxConcurrent=defaults.max_concurrent,
            agents__defaults__contextTokens=defaults.context_tokens,
        )
        self._at_least(
            0,
            agents__defaults__bootstrapMaxChars=defaults.bootstrap_max_chars,
            agents__defaults__bootstrapTotalMaxChars=defaults.bootstrap_total_max_chars,
        )
        if defaults.thinking_default is not None and defaults.thinking_default not in THINKING:
            self.warnings.append(f"agents.defaults.thinkingDefault: must be one of {', '.join(THINKING)}; ignored")
        self.warnings += problems(config.agents)
        for path, limits in (("limits", config.limits), *((f"agents.list[{n}].limits", entry.limits) for n, entry in enumerate(config.agents.list))):
            for name, value in (("runTokens", limits.run_tokens), ("dayTokens", limits.day_tokens)):
                if value is not None and not 1 <= value <= 1 << 53:
                    raise self.fail(f"{path}.{name}", "must be at least 1" if value < 1 else "is too large")
            for name, money in (("runCost", limits.run_cost), ("dayCost", limits.day_cost)):
                if money is not None and not 0 < money <= 1e9:
                    raise self.fail(f"{path}.{name}", "must be above 0, in US dollars")
        if defaults.timeout_seconds > 3650 * 86_400:
            raise self.fail("agents.defaults.timeoutSeconds", "is too large")
        taken: dict[str, int] = {}
        for number, entry in enumerate(config.agents.list):
            agent_id = normalise_agent_id(entry.id)
            if agent_id in taken:
                raise self.fail(f"agents.list[{number}].id", f"agent {agent_id} is configured twice (also agents.list[{taken[agent_id]}])")
            taken[agent_id] = number
        marked = [number for number, entry in enumerate(config.agents.list) if entry.default]
        for number in marked[1:]:
            self.warnings.append(f"agents.list[{number}].default: ignored, agents.list[{marked[0]}] is the default agent already")
        places = [("agents.defaults.workspace", defaults.workspace)]
        places += [(f"agents.list[{number}].workspace", entry.workspace) for number, entry in enumerate(config.agents.list)]
        for path, workspace in places:
            if workspace is not None and (not workspace.strip() or "\0" in workspace):
                raise self.fail(path, "must be a path")

    def _session(self, session: Session) -> Session:
        self._at_least(1, session__stateless__ttl=session.stateless.ttl, session__stateless__maxEntries=session.stateless.max_entries)
        if not session.main_key.isprintable() or len(session.main_key.encode()) > 256:
            raise self.fail("session.mainKey", "must be at most 256 bytes without control characters")
        if session.scope == "global":
            self.warnings.append("session.scope: global is not implemented by this version; every session key is a session of its own")
        store = session.store
        if store is None:
            return session
        scheme = store.partition(":")[0]
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*:.*", store, re.DOTALL):
            # The original keeps a JSON file per agent here.
            self.warnings.append("session.store: a path is not a database URL, ignored; sessions are kept in the state directory")
            return msgspec.structs.replace(session, store=None)
        if _SQLITE.match(store):
            database = urlsplit(store).path.lstrip("/")
            if not database or database.startswith(":memory:"):
                raise self.fail("session.store", "must name a file: sessions in memory would not survive a restart")
        elif scheme != "postgresql+psycopg" or "://" not in store:
            raise self.fail("session.store", f"must be a sqlite:/// or postgresql+psycopg:// URL, not {ascii_json(scheme)}")
        return session

    def _provider(self, path: str, provider_id: str, entry: ProviderEntry) -> None:
        if not provider_id.strip() or "/" in provider_id or not provider_id.isprintable():
            raise self.fail(path, "the id of a provider must not be blank or hold a slash or control characters")
        if entry.base_url is not None:
            self._url(f"{path}.baseUrl", entry.base_url, ("http", "https"))
        self._secret(f"{path}.apiKey", entry.api_key)
        for name, value in entry.headers.items():
            place = join(f"{path}.headers", name)
            if not _HEADER_NAME.fullmatch(name):
                raise self.fail(place, "not a header's name")
            if name.lower() in _FRAMING:
                raise self.fail(place, "this header is set by the gateway itself")
            if not _HEADER_VALUE.fullmatch(value) or value == REDACTED:
                raise self.fail(place, "not a header's value: no line breaks or other control characters, Latin-1 only, at most 8192 long")
        if entry.max_connections is not None and entry.max_connections < 1:
            raise self.fail(f"{path}.maxConnections", "must be at least 1")
        self._timeouts(f"{path}.timeouts", entry.timeouts)
        ids: set[str] = set()
        for number, model in enumerate(entry.models):
            place = f"{path}.models[{number}]"
            if not model.id.strip() or not model.id.isprintable():
                raise self.fail(f"{place}.id", "must not be blank or hold control characters")
            if model.id in ids:
                raise self.fail(f"{place}.id", f"{ascii_json(model.id)} is listed twice")
            ids.add(model.id)
            for name, count in (("contextWindow", model.context_window), ("maxTokens", model.max_tokens)):
                if not 1 <= count <= 1 << 53:
                    raise self.fail(f"{place}.{name}", "must be at least 1" if count < 1 else "is too large")
            prices = (model.cost.input, model.cost.output, model.cost.cache_read, model.cost.cache_write)
            if not all(math.isfinite(price) and price >= 0 for price in prices):
                raise self.fail(f"{place}.cost", "no price may be negative")

    def _timeouts(self, path: str, timeouts: Timeouts) -> None:
        for name, value in (("connectMs", timeouts.connect_ms), ("firstByteMs", timeouts.first_byte_ms), ("idleMs", timeouts.idle_ms)):
            if value is not None and value < 1:
                raise self.fail(f"{path}.{name}", "must be at least 1")

    def _secret(self, path: str, value: str | None) -> None:
        if value is not None and (problem := secret_problem(value)) is not None:
            raise self.fail(path, problem)

    def _proxy(self, path: str, text: str) -> None:
        try:
            network = ipaddress.ip_network(text.strip(), strict=False)
        except ValueError:
            network = None
        if network is None or "%" in text:
            raise self.fail(path, "must be an IPv4 or IPv6 address or a CIDR block such as 10.0.0.0/8")
        if network.prefixlen == 0:
            raise self.fail(path, "must not be /0: every client would be believed about its own address")

    @staticmethod
    def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        try:
            return ipaddress.ip_address(text)
        except ValueError:
            return None

    def _origin(self, path: str, text: str) -> None:
        wanted = "must be an exact origin as a browser sends it, such as https://chat.example.com"
        if "*" in text:
            raise self.fail(path, f"{wanted}; patterns are not allowed")
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise self.fail(path, wanted) from None
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://(\[[0-9a-fA-F:.]+\]|[^\s/?#@:\[\]\\]+)(:[0-9]{1,5})?/?", text, re.IGNORECASE) or not text.isascii():
            raise self.fail(path, wanted)
        default = {"http": 80, "https": 443}.get(parts.scheme)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        exact = f"{parts.scheme}://{host}" + (f":{port}" if port is not None and port != default else "")
        if text != exact:
            raise self.fail(path, f"{wanted}; this one would be {exact}")

    def _url(self, path: str, text: str, schemes: tuple[str, ...]) -> None:
        wanted = f"must be a URL that begins with {' or '.join(scheme + '://' for scheme in schemes)}"
        try:
            parts = urlsplit(text)
            good = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            good = False
        if not good or not text.isascii() or not text.isprintable() or " " in text or "\\" in text:
            raise self.fail(path, wanted)
        if "@" in parts.netloc:
            raise self.fail(path, "must not hold a user name or a password")
        if parts.fragment or parts.query:
            raise self.fail(path, "must not have a query or a fragment")


def secret_problem(value: str) -> str | None:
    """Why a text cannot be a token, a password or a key; None where it can. The answer never holds the text."""
    if not value.strip():
        return "must not be blank"
    if value.strip() in ("undefined", "null", "None"):
        return "is what a script writes when it has no value"
    if REDACTED in value:
        return f"holds {REDACTED}, which stands for a value that was hidden"
    if not value.isprintable():
        return "must not hold line breaks or other control characters"
    return None


def normalise_agent_id(text: str) -> str:
    """The rule of core.keys.normalise_agent_id, which this module may not import; a test holds the two together."""
    text = text.strip()
    if _AGENT_ID.fullmatch(text):
        return text.lower()
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).lstrip("-_")[:64].rstrip("-") or "main"
