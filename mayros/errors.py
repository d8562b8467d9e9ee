"""Every error that a client, an operator or a log can see. Imports nothing of ours.

One root, `GatewayError`; handlers raise, each door translates once. A class says what both doors need: the HTTP `status`, the `type` and
`code` of OpenAI's error object, and the `frame_code` of a WebSocket error. The docstring is the message when none is given, so it is
written for the person who reads it. No message may hold a secret.
"""

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class GatewayError(Exception):
    """The gateway failed inside; its log has the details under the request id."""

    status = 500
    type = "server_error"
    code: str | None = "internal_error"
    frame_code = "UNAVAILABLE"
    #: Whether another model may be tried instead (as long as nothing has reached the client).
    fallback = False
    #: Of a model's failure: its kind (core/failover.py), for what is asked next and for how long its key rests.
    kind: str | None = None
    #: Whole seconds for `Retry-After`; None sends no such header.
    retry_after: int | None = None
    #: Value of `x-should-retry`; None leaves the decision to the client.
    should_retry: bool | None = None

    def __init__(
        self,
        message: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        should_retry: bool | None = None,
    ) -> None:
        super().__init__(message if message is not None else " ".join((type(self).__doc__ or "").split()))
        self.param = param
        if code is not None:
            self.code = code
        if retry_after is not None:
            self.retry_after = retry_after
        if should_retry is not None:
            self.should_retry = should_retry

    @property
    def message(self) -> str:
        """The sentence for the client."""
        return str(self.args[0])


class InvalidRequest(GatewayError):
    """The request is not valid."""

    status, type, frame_code = 400, "invalid_request_error", "INVALID_REQUEST"
    code: str | None = None


class UnsupportedParameter(InvalidRequest):
    """The request asks for something that this gateway does not offer."""

    code = "unsupported_parameter"


class InvalidValue(InvalidRequest):
    """A field of the request has a value that is out of range."""

    code = "invalid_value"


class ContextLengthExceeded(InvalidRequest):
    """The conversation does not fit into the model's context window. Start a new session, or send less text."""

    code, kind = "context_length_exceeded", "overflow"


class Unauthorized(GatewayError):
    """Missing or wrong credential: send `Authorization: Bearer` with the gateway's token or password."""

    status, type, code, frame_code = 401, "invalid_request_error", "invalid_api_key", "INVALID_REQUEST"


class Forbidden(GatewayError):
    """This caller may not do that."""

    status, type, code, frame_code = 403, "permission_error", "missing_scope", "INVALID_REQUEST"


class AgentNotFound(GatewayError):
    """No agent of that name is configured."""

    status, type, code, frame_code = 404, "invalid_request_error", "model_not_found", "INVALID_REQUEST"


class UnknownUrl(GatewayError):
    """There is nothing at this address."""

    status, type, code, frame_code = 404, "invalid_request_error", "unknown_url", "INVALID_REQUEST"


class EndpointDisabled(GatewayError):
    """This endpoint is disabled. Enable it in the gateway's configuration."""

    status, type, code, frame_code = 404, "invalid_request_error", "endpoint_disabled", "INVALID_REQUEST"


class MethodNotAllowed(GatewayError):
    """This address does not take that method."""

    status, type, code, frame_code = 405, "invalid_request_error", "method_not_allowed", "INVALID_REQUEST"

    def __init__(self, allow: str) -> None:
        super().__init__(f"This address takes {allow} only.")
        #: Value of the `Allow` header.
        self.allow = allow


class RequestTimeout(GatewayError):
    """The request did not arrive in time."""

    status, type, code, frame_code = 408, "invalid_request_error", "request_timeout", "INVALID_REQUEST"


class RequestTooLarge(GatewayError):
    """The request body is larger than this gateway takes."""

    status, type, code, frame_code = 413, "invalid_request_error", "request_too_large", "INVALID_REQUEST"


class UnsupportedMediaType(GatewayError):
    """Send the body as `Content-Type: application/json`, without a content encoding."""

    status, type, code, frame_code = 415, "invalid_request_error", "unsupported_media_type", "INVALID_REQUEST"


class RunAborted(GatewayError):
    """The run was aborted."""

    status, type, code, should_retry = 422, "invalid_request_error", "run_aborted", False


class LoopDetected(GatewayError):
    """The model called the same tools again and again without progress, so the run was ended. Ask in another way."""

    status, type, code, should_retry = 422, "invalid_request_error", "loop_detected", False


class TooManyRounds(GatewayError):
    """The run used up its rounds of tool calls and was ended. Ask it to go on, or for less at a time."""

    status, type, code, should_retry = 422, "invalid_request_error", "too_many_rounds", False


class IdempotencyConflict(GatewayError):
    """This idempotency key was used before with a different request."""

    status, type, code, frame_code = 422, "invalid_request_error", "idempotency_key_reused", "INVALID_REQUEST"


class StreamNotKept(GatewayError):
    """The stream is not kept from there on."""

    status, type, code, frame_code = 422, "invalid_request_error", "stream_not_kept", "INVALID_REQUEST"


class TooManyAuthFailures(GatewayError):
    """Too many failed authentication attempts. Try again later."""

    status, type, code, frame_code, should_retry = 429, "rate_limit_error", "too_many_auth_failures", "INVALID_REQUEST", False


class QueueFull(GatewayError):
    """Too many runs are waiting. Try again shortly."""

    status, type, code, retry_after = 429, "rate_limit_error", "queue_full", 1


class BudgetExceeded(GatewayError):
    """Today's limit on spending is reached. It begins anew at midnight, UTC."""

    status, type, code, should_retry = 429, "rate_limit_error", "budget_exceeded", False


class RateLimited(GatewayError):
    """The model's provider limits the rate of requests. Try again later."""

    status, type, code, fallback, kind = 429, "rate_limit_error", "rate_limit_exceeded", True, "rate_limit"


class InsufficientQuota(GatewayError):
    """The quota or credit at the model's provider is used up."""

    status, type, code, fallback, should_retry, kind = 429, "insufficient_quota", "insufficient_quota", True, False, "billing"


class UpstreamError(GatewayError):
    """The model's provider could not be reached or gave an answer that makes no sense."""

    status, type, code, fallback, kind = 502, "api_error", "upstream_error", True, "server"


class UpstreamRefused(UpstreamError):
    """The model's provider refused the request."""

    fallback, should_retry, kind = False, False, "refused"


class ToolChoiceIgnored(GatewayError):
    """The model did not call the function that tool_choice demands."""

    status, type, code, should_retry = 502, "api_error", "tool_choice_unsatisfied", False


class FormatUnsatisfied(GatewayError):
    """The model's answer does not fit response_format."""

    status, type, code, should_retry = 502, "api_error", "response_format_unsatisfied", False


class Unavailable(GatewayError):
    """The gateway cannot take this now. Try again shortly."""

    status, type, code, retry_after = 503, "api_error", "unavailable", 1


class Stopping(Unavailable):
    """The gateway is stopping. Try again shortly."""

    retry_after = 2


class StorageUnavailable(GatewayError):
    """The store cannot be written at the moment; the answer was not recorded."""

    status, type, code, retry_after = 503, "api_error", "storage_unavailable", 5


class ServerShutdown(GatewayError):
    """The gateway is stopping. The partial answer was recorded as aborted."""

    status, type, code, retry_after = 503, "api_error", "server_shutdown", 2


class UpstreamTimeout(GatewayError):
    """The model's provider did not answer in time."""

    status, type, code, fallback, kind = 504, "api_error", "upstream_timeout", True, "timeout"


class RunTimeout(GatewayError):
    """The run reached its time limit."""

    status, type, code, should_retry = 504, "api_error", "run_timeout", False


class ToolFailed(Exception):
    """A tool could not do what was asked; the text tells the model what to do instead."""


class InputFailed(Exception):
    """What a request brought or named could not be used; the text says why, in words that follow a colon."""


class StartError(Exception):
    """The process cannot start: one line for the operator, and the exit status.

    Status 1 is for what may pass by itself (port in use, state directory locked), 78 (EX_CONFIG) for what needs a hand.
    """

    def __init__(self, message: str, status: int = 78) -> None:
        super().__init__(message)
        self.status = status


class ConfigError(StartError):
    """The configuration cannot be used. The message names the file and the key path."""


def bare(error: E) -> E:
    """The error without the frames that it and its causes went through.

    For whoever keeps an error, or ends its way. The frames know whom they worked for (a run, a request with its body), and when one of these knows
    the error they keep each other until the collector looks, which it does seldom.
    """
    one: BaseException | None = error
    while one is not None:
        following = one.__cause__ or one.__context__
        one.__traceback__ = one.__context__ = None
        one = following
    return error


def class_of(code: str) -> type[GatewayError]:
    """The class of an error by its code, as it is recorded of a run; `invalid_request` is that of one without a code."""
    if code == "invalid_request":
        return InvalidRequest
    if not _classes:
        for kind in list(globals().values()):
            if isinstance(kind, type) and issubclass(kind, GatewayError) and kind.code:
                _classes.setdefault(kind.code, kind)  # the most general one comes first
    return _classes.get(code, GatewayError)


_classes: dict[str, type[GatewayError]] = {}
