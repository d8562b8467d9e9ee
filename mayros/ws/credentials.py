"""What a connecting client proves: the shared secret, and a device's key. Each finding is a Refused, raised or handed back. Imports core and wire.

Whether a wrong secret is counted is decided when the client is told, so that a device's token sent in the place of the secret counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NoReturn

from mayros.config.gateway import AuthMode
from mayros.core.address import Address
from mayros.core.auth import DEVICE_TOKEN, SHARED_SECRET
from mayros.core.identity import MAX_SKEW_MS, Signed, Version, device_id, encode, raw_key, verified
from mayros.core.limits import retry_after
from mayros.core.ports import Principal
from mayros.core.token_ports import PREFIX, Held
from mayros.errors import Unauthorized
from mayros.wire.frames import Client, Connect, Device, ErrorShape
from mayros.ws.context import Judge

#: `proxied`: a trusted proxy names the user. `none`: it would have to, and does not.
#: `held`: it is the token of a person or program; `over`: it was.
What = Literal["open", "proxied", "right", "wrong", "missing", "locked", "none", "held", "over"]


class Refused(Exception):
    """The client is refused: the error it is answered with, and the code its socket closes with (the reason is the error's message)."""

    def __init__(self, error: ErrorShape, close_code: int = 1008) -> None:
        super().__init__(error.message)
        self.error, self.close_code = error, close_code


def refused(message: str, detail: str | None = None, *, code: str = "INVALID_REQUEST", close_code: int = 1008, **details: object) -> Refused:
    """A refusal; `detail` becomes `details.code`."""
    if detail is not None:
        details = {"code": detail, **details}
    return Refused(ErrorShape(code, message, details or None), close_code)


class Secrets:
    """The shared secret and the device tokens of one `connect`, against what the gateway knows. `now` is monotonic seconds.

    `user`: what Judge.proxied has said of the upgrade.
    """

    def __init__(self, judge: Judge, params: Connect, address: Address, now: float, user: Principal | Unauthorized | None = None) -> None:
        self._judge, self._address, self._now, self._client, self._user = judge, address, now, params.client, user
        auth = params.auth
        self.mode: AuthMode = judge.mode
        self.token = (auth.token if auth is not None else None) or None
        self._password = (auth.password if auth is not None else None) or None
        self._device_token = (auth.device_token if auth is not None else None) or None
        #: The token of a person or program that was sent: it alone decides then.
        self.held: Held | None = None
        self._problem: str | None = None
        self.shared: What = self._find()

    @property
    def given(self) -> bool:
        """Whether the client sent a secret at all."""
        return self.token is not None or self._password is not None

    @property
    def device_tokens(self) -> Iterator[str]:
        """What may be a device token."""
        if self._device_token is not None:
            yield self._device_token
        if self.token is not None and not (self.mode == "token" and self.shared == "right"):
            yield self.token

    def _find(self) -> What:
        own = self.token is not None and self.token.startswith(PREFIX)
        if not own and self.mode == "none":
            return "open"
        if not own and self.mode == "trusted-proxy":
            return "proxied" if isinstance(self._user, Principal) else "none"
        if self._judge.lockout(self._address, self._now, SHARED_SECRET) > 0:
            return "locked"
        if own and self.token is not None and not self._judge.matches(self.token):
            try:
                self.held = self._judge.held(self.token)
            except Unauthorized as over:
                self._problem = over.message
                return "over"
            if self.held is not None:
                return "held"
            if self.mode in ("none", "trusted-proxy"):
                return "wrong"
        presented = self.token if self.mode == "token" else self._password
        if presented is None:
            return "missing"
        return "right" if self._judge.matches(presented) else "wrong"

    def user_scopes(self, role: str) -> frozenset[str]:
        """What the user whom a trusted proxy names may ask for. Raises Refused: a user is no node."""
        if not isinstance(self._user, Principal) or role != "operator":
            self.refuse()
        return self._user.scopes

    def _count_wrong(self) -> None:
        # Also where something else is refused: otherwise one could guess the secret there for nothing.
        if self.shared == "wrong":
            self._judge.count(self._address, self._now, False, SHARED_SECRET)

    def let_in(self) -> None:
        """The client comes in by the shared secret."""
        if self.shared == "right":
            self._judge.count(self._address, self._now, True, SHARED_SECRET)

    def refuse(self) -> NoReturn:
        """Say what is wrong with the shared secret, and count it."""
        if self.shared == "locked":
            self._refuse_locked(SHARED_SECRET)
        self._count_wrong()
        if self._problem is not None:
            raise _unauthorized(f"unauthorized: {self._problem}", "AUTH_TOKEN_MISMATCH", "update_auth_credentials")
        if self.shared not in ("wrong", "missing"):
            why = self._user.message if isinstance(self._user, Unauthorized) else None
            raise _unauthorized("unauthorized", "AUTH_UNAUTHORIZED", "review_auth_configuration", why)
        problem = "mismatch" if self.shared == "wrong" else "missing"
        step = "update_auth_credentials" if self.shared == "wrong" else "update_auth_configuration"
        kind = self.mode if self.mode == "password" else "token"
        message = f"unauthorized: gateway {kind} {problem} ({_hint(kind, self._client)})"
        raise _unauthorized(message, f"AUTH_{kind}_{problem}".upper(), step)

    def check_device_lock(self) -> None:
        """Raises Refused while wrong device tokens came too often from this address."""
        if self._judge.lockout(self._address, self._now, DEVICE_TOKEN) > 0:
            self._count_wrong()
            self._refuse_locked(DEVICE_TOKEN)

    def count_device_token(self, right: bool) -> None:
        """A device token was right, or none of what was sent is one."""
        self._judge.count(self._address, self._now, right, DEVICE_TOKEN)

    def refuse_device_token(self) -> NoReturn:
        """No device token of this device, and no right secret either: both count."""
        self.count_device_token(False)
        if self.shared == "locked":
            self._refuse_locked(SHARED_SECRET)
        self._count_wrong()
        message = "unauthorized: device token mismatch (rotate/reissue device token)"
        raise _unauthorized(message, "AUTH_DEVICE_TOKEN_MISMATCH", "update_auth_credentials")

    def _refuse_locked(self, what: str) -> NoReturn:
        left_ms = retry_after(self._judge.lockout(self._address, self._now, what)) * 1000
        message = "unauthorized: too many failed authentication attempts (retry later)"
        details = {"code": "AUTH_RATE_LIMITED", "canRetryWithDeviceToken": False, "recommendedNextStep": "wait_then_retry"}
        raise Refused(ErrorShape("INVALID_REQUEST", message, details, retryable=True, retry_after_ms=left_ms))


def _unauthorized(message: str, detail: str, step: str, why: str | None = None) -> Refused:
    reason = {} if why is None else {"reason": why}
    return Refused(ErrorShape("INVALID_REQUEST", message, {"code": detail, "canRetryWithDeviceToken": False, "recommendedNextStep": step, **reason}))


def _hint(mode: str, client: Client) -> str:
    """What to do about it, in the words that each kind of client shows to its user."""
    if client.mode == "cli":
        return f"set gateway.remote.{mode} to match gateway.auth.{mode}"
    if client.mode == "webchat" or client.id == "webchat-ui" or control_ui(client.id):
        return (
            "enter the password in Control UI settings" if mode == "password" else "open the dashboard URL and paste the token in Control UI settings"
        )
    return f"provide gateway auth {mode}"


def control_ui(client_id: str) -> bool:
    """Whether this is the gateway's own page, under either name."""
    return client_id in ("mayros-control-ui", "openclaw-control-ui")


def prove(params: Connect, device: Device, role: str, challenge: str, local: bool, now_ms: int) -> str:
    """The public key (base64url) of a device that proves to hold it. Raises Refused.

    `challenge` is the nonce of this connection. `local`: a direct client on this machine, which may do without.
    """
    raw = raw_key(device.public_key)
    if raw is None:
        raise refused("device public key invalid", "DEVICE_AUTH_PUBLIC_KEY_INVALID")
    if device_id(raw) != device.id:
        raise refused("device identity mismatch", "DEVICE_AUTH_DEVICE_ID_MISMATCH")
    if abs(now_ms - device.signed_at) > MAX_SKEW_MS:
        raise refused("device signature expired", "DEVICE_AUTH_SIGNATURE_EXPIRED")
    if device.nonce is None and not local:
        raise refused("device nonce required", "DEVICE_AUTH_NONCE_REQUIRED")
    if device.nonce is not None and device.nonce != challenge:
        raise refused("device nonce mismatch", "DEVICE_AUTH_NONCE_MISMATCH")
    if not verified(raw, device.signature, _lines(params, device, role)):
        raise refused("device signature invalid", "DEVICE_AUTH_SIGNATURE_INVALID")
    return encode(raw)


def _lines(params: Connect, device: Device, role: str) -> Iterator[bytes]:
    """What the device may have signed. Clients that send only a device token sign that, or nothing, in the place of the token."""
    auth, client = params.auth, params.client
    versions: tuple[Version, ...] = ("v3", "v2") if device.nonce is not None else ("v1",)
    tokens = [auth.token or "" if auth is not None else ""]
    if auth is not None and not auth.token and auth.device_token:
        tokens.append(auth.device_token)
    for token in tokens:
        signed = Signed(
            device.id,
            client.id,
            client.mode,
            role,
            params.scopes,
            device.signed_at,
            token,
            device.nonce or "",
            client.platform,
            client.device_family or "",
        )
        for version in versions:
            yield signed.line(version)
