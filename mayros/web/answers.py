"""What the answers of runs have in common, whoever gives them. Imports core.ports, errors and web.request."""

from __future__ import annotations

from mayros.core.ports import RunResult
from mayros.errors import GatewayError
from mayros.web.request import GatewayRequest

_EVENT_STREAM = b"text/event-stream; charset=utf-8"


def say_model(request: GatewayRequest, result: RunResult) -> None:
    """The model that answered, in the head of the answer, where it has not been sent."""
    if result.provider is not None and result.model is not None:
        request.answered(result.provider, result.model)


def stream_headers(request: GatewayRequest) -> None:
    """The head of an event stream."""
    put = request.responseHeaders.setRawHeaders
    put(b"Content-Type", [_EVENT_STREAM])
    put(b"Cache-Control", [b"no-store, no-transform"])
    put(b"X-Accel-Buffering", [b"no"])


def final_error(error: Exception | None, spoken: bool) -> GatewayError:
    """The error of an ended run; a client must not retry by itself what has already done something."""
    if not isinstance(error, GatewayError):
        return GatewayError(should_retry=False if spoken else None)
    if spoken and error.should_retry is None:
        error.should_retry = False
    return error
