"""Frames of the Gateway WebSocket protocol, versions 3 and 4: bytes to values and back. No I/O and no state.

    client -> gateway   {"type":"req", "id", "method", "params"?}
    gateway -> client   {"type":"res", "id", "ok", "payload"?, "error"?}         one id may be answered twice (`agent`)
                        {"type":"event", "event", "payload"?, "seq"?, "stateVersion"?}

Unknown keys are ignored in frames and in `connect`, and refused by name in the parameters of methods. What is wrong with a frame is said in
the words that clients of this protocol know (those of a JSON schema validator). Imports wire.words and mayros.errors.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Annotated, Literal, TypeVar

import msgspec

from mayros.errors import GatewayError, InvalidRequest
from mayros.wire.words import describe

PROTOCOL_MIN, PROTOCOL_MAX = 3, 4
#: Largest message after and before `hello-ok`, and most bytes that may wait for one client.
MAX_PAYLOAD, MAX_FIRST_PAYLOAD, MAX_BUFFERED = 26_214_400, 65_536, 52_428_800
TICK_MS = 30_000
#: Nesting of a frame; strings and containers in it (looked at only when it has more than MAX_DEPTH brackets).
MAX_DEPTH, MAX_TOKENS = 64, 200_000
#: Most bytes of one parameter that is not a single text.
MAX_STRUCTURE = 1 << 20
#: Longest request id, in characters: ids are kept while their requests run.
MAX_ID = 1024
_SHOWN_NAMES, _SHOWN_CHARS = 8, 64

Text = Annotated[str, msgspec.Meta(min_length=1)]
Count = Annotated[int, msgspec.Meta(ge=0)]


class NotJson(Exception):
    """The frame is no JSON, not UTF-8, or nested too deeply."""


class NotARequest(Exception):
    """The frame is JSON but no request. `id` is what to answer to: the frame's own where it has a usable one, else "invalid"."""

    def __init__(self, id: str | float | None, message: str) -> None:
        super().__init__(message)
        self.id = id
        self.message = f"invalid request frame: {message}"


class Request(msgspec.Struct, frozen=True):
    """One request; `params` is undecoded JSON."""

    type: Literal["req"]
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID)]
    method: Text
    params: msgspec.Raw = msgspec.Raw(b"{}")


class ErrorShape(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """The error of a response. `code` is one of INVALID_REQUEST, UNAVAILABLE, NOT_PAIRED and, on protocol 4, FORBIDDEN."""

    code: str
    message: str
    details: Mapping[str, object] | None = None
    retryable: bool | None = None
    retry_after_ms: int | None = None


class Client(msgspec.Struct, frozen=True, rename="camel"):
    """Who a client says it is."""

    id: Text
    version: Text
    platform: Text
    mode: Literal["webchat", "cli", "ui", "backend", "node", "probe", "test", "worker"]
    display_name: Text | None = None
    device_family: Text | None = None
    model_identifier: Text | None = None
    instance_id: Text | None = None


class Device(msgspec.Struct, frozen=True, rename="camel"):
    """A client's device identity."""

    id: Text
    public_key: Text
    signature: Text
    signed_at: Count
    nonce: Text | None = None


class ConnectAuth(msgspec.Struct, frozen=True, rename="camel"):
    """The shared secret, under the name that fits the gateway's mode; a device's token as `token`, or by newer clients as `device_token`."""

    token: str | None = None
    password: str | None = None
    device_token: str | None = None

    def __repr__(self) -> str:
        return "<ConnectAuth>"


Version = Annotated[int, msgspec.Meta(ge=1)]


class Connect(msgspec.Struct, frozen=True, rename="camel"):
    """Parameters of `connect`; unknown keys are ignored."""

    min_protocol: Version
    max_protocol: Version
    client: Client
    caps: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    permissions: dict[str, bool] = {}
    path_env: str | None = None
    role: str = "operator"
    scopes: tuple[str, ...] = ()
    device: Device | None = None
    auth: ConnectAuth | None = None
    locale: str | None = None
    user_agent: str | None = None


_encode = msgspec.json.Encoder().encode
_request = msgspec.json.Decoder(Request).decode
_connect = msgspec.json.Decoder(Connect).decode
_parts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# A string that never ends is taken whole, so that no text costs more than one pass.
_TOKEN = re.compile(rb'"(?>[^"\\]*(?:\\.[^"\\]*)*)"?|[\[{]|[\]}]', re.DOTALL)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def _too_deep(payload: bytes) -> bool:
    """Whether the text is nested deeper than MAX_DEPTH, or has so many parts that nobody needs to find out."""
    if payload.count(b"[") + payload.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for number, found in enumerate(_TOKEN.finditer(payload)):
        first = payload[found.start()]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        if depth > MAX_DEPTH or number > MAX_TOKENS:
            return True
    return False


def parse_request(payload: bytes, binary: bool = False) -> Request:
    """The request of a message. Raises NotJson or NotARequest. The text of a `binary` message is checked for UTF-8 here."""
    try:
        if binary:
            str(payload, "utf-8")
        if _too_deep(payload):
            raise NotJson
        return _request(payload)
    except msgspec.ValidationError:
        pass
    except _UNREADABLE:
        raise NotJson from None
    try:
        value = msgspec.json.decode(payload)
    except _UNREADABLE:
        raise NotJson from None
    raise _not_a_request(value)


def _not_a_request(value: object) -> NotARequest:
    if not isinstance(value, dict):
        return NotARequest("invalid", "must be object")
    problems = [f"must have required property '{name}'" for name in ("type", "id", "method") if name not in value]
    if value.get("type", "req") != "req":
        problems.append("at /type: must be equal to constant")
    for name, longest in (("id", MAX_ID), ("method", MAX_PAYLOAD)):
        text = value.get(name, "-")
        if not isinstance(text, str):
            problems.append(f"at /{name}: must be string")
        elif not text:
            problems.append(f"at /{name}: must NOT have fewer than 1 characters")
        elif len(text) > longest:
            problems.append(f"at /{name}: must NOT have more than {longest} characters")
    own = value.get("id", "invalid")
    usable = own is None or isinstance(own, int | float) or (isinstance(own, str) and len(own) <= MAX_ID)
    return NotARequest(own if usable else "invalid", "; ".join(problems))


def parse_connect(params: msgspec.Raw) -> Connect:
    """The parameters of `connect`; InvalidRequest names everything that is missing, or the first wrong type."""
    try:
        return _connect(params)
    except msgspec.ValidationError as error:
        problems = _missing(params) or [describe(error)]
        raise InvalidRequest(f"invalid connect params: {'; '.join(problems)}") from None
    except _UNREADABLE:
        raise InvalidRequest("invalid connect params: is not valid JSON") from None


def _missing(params: msgspec.Raw) -> list[str]:
    """What `connect` has to have and has not, also in the objects in it."""
    problems: list[str] = []
    given: Mapping[str, msgspec.Raw] = {"": params}
    for name, kind in (("", Connect), ("client", Client), ("device", Device)):
        if name not in given:
            continue
        try:
            parts = _parts(given[name])
        except msgspec.ValidationError:  # no object, which is told instead
            continue
        where = f"at /{name}: " if name else ""
        problems += [f"{where}must have required property '{key}'" for key in _fields(kind)[1] if key not in parts]
        if not name:
            given = parts
    return problems


Params = TypeVar("Params", bound=msgspec.Struct)


@lru_cache
def _fields(kind: type[msgspec.Struct]) -> tuple[frozenset[str], tuple[str, ...]]:
    """Names of all fields, and of the required ones, as they are on the wire."""
    fields = msgspec.structs.fields(kind)
    return frozenset(field.encode_name for field in fields), tuple(field.encode_name for field in fields if field.required)


def parse_params(kind: type[Params], params: msgspec.Raw, method: str, large: Collection[str] = ()) -> Params:
    """The strict parameters of a method. InvalidRequest names everything that is missing or unknown, or the first wrong type.

    `large` parameters may have more than MAX_STRUCTURE bytes: their types make sure that nothing but texts is kept of them.
    """
    known, required = _fields(kind)
    try:
        parts = {} if bytes(params) == b"null" else _parts(params)
        problems = [f"must have required property '{name}'" for name in required if name not in parts]
        unknown = [name[:_SHOWN_CHARS] for name in parts if name not in known][:_SHOWN_NAMES]
        problems += [f"at root: unexpected property '{name}'" for name in unknown]
        # Only one long text is cheap to read; a million small values would hold everybody up.
        problems += [
            f"at /{name}: is too large"
            for name, part in parts.items()
            if len(part) > MAX_STRUCTURE and bytes(part)[:1] != b'"' and name in known and name not in large
        ]
        if not problems:
            return msgspec.json.decode(params, type=kind)
    except msgspec.ValidationError as error:
        problems = [describe(error)]
    except _UNREADABLE:
        problems = ["is not valid JSON"]
    raise InvalidRequest(f"invalid {method} params: {'; '.join(problems)}")


def canonical(params: msgspec.Raw, without: str = "") -> bytes:
    """The same JSON with keys in order and no blanks, for a digest. `params` must have been parsed before; the parameter `without` is left out."""
    if without and without in (parts := _parts(params)):
        params = msgspec.Raw(_encode({name: part for name, part in parts.items() if name != without}))
    return msgspec.json.encode(msgspec.json.decode(params), order="sorted")


def error_shape(error: GatewayError) -> ErrorShape:
    """An error of ours as clients of this protocol see it."""
    retry = error.retry_after
    return ErrorShape(
        code=error.frame_code,
        message=error.message,
        details={"code": error.code} if error.code else None,
        retryable=True if retry is not None else None,
        retry_after_ms=retry * 1000 if retry is not None else None,
    )


def response(id: str, payload: object) -> bytes:
    """`ok: true`."""
    return b'{"type":"res","id":%b,"ok":true,"payload":%b}' % (_encode(id), _encode(payload))


def failure(id: str | float | None, error: ErrorShape, payload: object = msgspec.UNSET) -> bytes:
    """`ok: false`; a failed run carries a payload as well."""
    extra = b"" if payload is msgspec.UNSET else b',"payload":' + _encode(payload)
    return b'{"type":"res","id":%b,"ok":false%b,"error":%b}' % (_encode(id), extra, _encode(error))


def event_head(event: str, payload: bytes) -> bytes:
    """An event without its end, which is `}`, or what differs from client to client and then `}`. `payload` is JSON."""
    return b'{"type":"event","event":"%b","payload":%b' % (event.encode(), payload)


def event(event: str, payload: object) -> bytes:
    """An event for one client, without a sequence number."""
    return event_head(event, _encode(payload)) + b"}"


def frame_head(length: int) -> bytes:
    """The head of an unmasked WebSocket text frame of `length` bytes (RFC 6455, 5.2)."""
    if length < 126:
        return bytes((0x81, length))
    if length < 0x10000:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    return b"\x81\x7f" + length.to_bytes(8, "big")


def text_frame(*parts: bytes) -> bytes:
    """A whole unmasked WebSocket text frame of a message in parts."""
    return b"".join((frame_head(sum(map(len, parts))), *parts))
