"""OpenAI's error object, which every refusal of the HTTP door has as its body. No I/O; imports errors.

Source: openai-compat facts, section 2.
"""

from __future__ import annotations

import msgspec

from mayros.errors import GatewayError

_encode = msgspec.json.Encoder().encode


class _ErrorBody(msgspec.Struct, gc=False):
    message: str
    type: str
    param: str | None
    code: str | None


def error_body(error: GatewayError) -> bytes:
    """`{"error": {...}}` for an error, plain or as the data of an error event."""
    return _encode({"error": _ErrorBody(error.message, error.type, error.param, error.code)})
