"""The section `gateway` of `mayros.json` as frozen structs: names, types, defaults. Imports section."""

from __future__ import annotations

from typing import Literal, get_args

from mayros.config.section import Bytes, Milliseconds, Section


class RateLimit(Section, frozen=True):
    """`gateway.auth.rateLimit`: failures per client address before a lockout."""

    max_attempts: int = 10
    window_ms: Milliseconds = Milliseconds(60_000)
    lockout_ms: Milliseconds = Milliseconds(300_000)
    exempt_loopback: bool = True


class TrustedProxy(Section, frozen=True):
    """`gateway.auth.trustedProxy`: who the proxy says the user is."""

    user_header: str = ""
    required_headers: tuple[str, ...] = ()
    allow_users: tuple[str, ...] = ()
    allow_loopback: bool = False


AuthMode = Literal["none", "token", "password", "trusted-proxy"]


class Auth(Section, frozen=True):
    """`gateway.auth`. `mode` unset: `password` where one is given, else `token`. `secret()` of core.auth resolves the rest."""

    mode: AuthMode | None = None
    token: str | None = None
    password: str | None = None
    rate_limit: RateLimit | None = None
    trusted_proxy: TrustedProxy = TrustedProxy()
    local_scopes: bool = True

    def __repr__(self) -> str:
        return f"<Auth {self.mode}>"


class Tls(Section, frozen=True):
    """`gateway.tls`: the gateway's own port. Without `cert_path` and `key_path` it is the pair of `mayros gateway cert`; with `ca_path` clients need
    a certificate too. Where the files are: config/tls.py."""

    enabled: bool = False
    cert_path: str | None = None
    key_path: str | None = None
    ca_path: str | None = None
    hsts: bool = False


ImageType = Literal["image/jpeg", "image/png", "image/gif", "image/webp", "image/heic", "image/heif"]
FileType = Literal["text/plain", "text/markdown", "text/html", "text/csv", "application/json", "application/pdf"]


class ImageInput(Section, frozen=True):
    """`gateway.http.endpoints.*.images`: images in messages. `url_allowlist`: hosts, `*.` and a domain for all below it; empty: any public one."""

    allow_url: bool = False
    url_allowlist: tuple[str, ...] = ()
    allowed_mimes: tuple[ImageType, ...] = get_args(ImageType)
    max_bytes: Bytes = Bytes(10 << 20)
    max_redirects: int = 3
    timeout_ms: Milliseconds = Milliseconds(10_000)


class PdfInput(Section, frozen=True):
    """`gateway.http.endpoints.*.files.pdf`."""

    max_pages: int = 4


class FileInput(Section, frozen=True):
    """`gateway.http.endpoints.*.files`: files in messages, of which the model gets the text."""

    allowed_mimes: tuple[FileType, ...] = get_args(FileType)
    max_bytes: Bytes = Bytes(5 << 20)
    max_chars: int = 60_000
    pdf: PdfInput = PdfInput()


class Endpoint(Section, frozen=True):
    """One endpoint of the HTTP door. `max_url_parts`: how many images of a request are fetched."""

    enabled: bool = False
    tools: Literal["agent", "none"] = "agent"
    images: ImageInput = ImageInput()
    files: FileInput = FileInput()
    max_url_parts: int = 8


class Endpoints(Section, frozen=True):
    """`gateway.http.endpoints`."""

    chat_completions: Endpoint = Endpoint()
    responses: Endpoint = Endpoint()


class Cors(Section, frozen=True):
    """`gateway.http.cors`."""

    allowed_origins: tuple[str, ...] = ()


class Http(Section, frozen=True):
    """`gateway.http`."""

    endpoints: Endpoints = Endpoints()
    cors: Cors = Cors()
    max_body_bytes: Bytes = Bytes(32 << 20)


class Limits(Section, frozen=True):
    """`gateway.limits`. `max_connections` None: the open-file limit less a reserve and what runs need."""

    max_connections: int | None = None
    max_connections_per_address: int = 256
    max_queued_per_session: int = 32
    max_queued_runs: int = 1024
    body_budget: Bytes = Bytes(256 << 20)
    send_budget: Bytes = Bytes(256 << 20)
    header_timeout_ms: Milliseconds = Milliseconds(60_000)
    body_timeout_ms: Milliseconds = Milliseconds(60_000)


class ControlUi(Section, frozen=True):
    """`gateway.controlUi`: here only the origins that browser WebSocket clients may come from."""

    enabled: bool = True
    base_path: str = "/"
    allowed_origins: tuple[str, ...] = ()


class Shutdown(Section, frozen=True):
    """`gateway.shutdown`: how long live runs may finish after SIGTERM."""

    grace_ms: Milliseconds = Milliseconds(20_000)


class Reload(Section, frozen=True):
    """`gateway.reload`: what a change of the file, or SIGHUP, does. `debounce_ms`: how long a file must stay as it is before it is read."""

    mode: Literal["off", "hot", "restart", "hybrid"] = "hybrid"
    debounce_ms: Milliseconds = Milliseconds(300)


class Remote(Section, frozen=True):
    """`gateway.remote`: where the CLI finds another gateway. `tls_fingerprint`: of the one certificate that it trusts there."""

    url: str | None = None
    token: str | None = None
    password: str | None = None
    tls_fingerprint: str | None = None

    def __repr__(self) -> str:
        return f"<Remote {self.url}>"


class Metrics(Section, frozen=True):
    """`gateway.metrics`: the route `/metrics` on the gateway's port, or with `listen` (`HOST:PORT`, or `unix:/path`) on a listener of its own."""

    enabled: bool = False
    listen: str | None = None


class Gateway(Section, frozen=True):
    """`gateway`: the daemon."""

    mode: Literal["local", "remote"] | None = None
    port: int = 18789
    bind: Literal["loopback", "lan", "tailnet", "auto", "custom"] = "loopback"
    custom_bind_host: str | None = None
    auth: Auth = Auth()
    trusted_proxies: tuple[str, ...] = ()
    allow_real_ip_fallback: bool = False
    allowed_hosts: tuple[str, ...] = ()
    tls: Tls = Tls()
    http: Http = Http()
    limits: Limits = Limits()
    control_ui: ControlUi = ControlUi()
    shutdown: Shutdown = Shutdown()
    reload: Reload = Reload()
    metrics: Metrics = Metrics()
    remote: Remote = Remote()
