"""The HTTP routes. Klein holds them all; those without parameters are called by name, past its URL matching (docs/decisions/0002).

Handlers answer by `reply` or a stream and return None; they raise errors of mayros.errors. Imports core, wire and config.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, cast

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET
from werkzeug.exceptions import BadHost, HTTPException

from mayros.core.config_ports import ConfigControl
from mayros.core.keys import AGENT_ID, new_id
from mayros.core.limits import Budget
from mayros.core.ports import Principal, Run, RunResult, Runs, Sampling, Turn
from mayros.errors import AgentNotFound, GatewayError, InvalidRequest, UnknownUrl
from mayros.web.gate import Route
from mayros.web.request import GatewayRequest, failed, forget, reply
from mayros.web.sse import EventStream, Ticker
from mayros.wire.chat import ChatRequest, Stream, completion, decode_request

CHAT_SWITCH = "gateway.http.endpoints.chatCompletions.enabled"
_EVENT_STREAM = b"text/event-stream; charset=utf-8"
ABOUT = (
    b"Mayros Gateway\n\nOpenAI-compatible chat completions: POST /v1/chat/completions\nWebSocket clients: connect to this address\n"
    b"Health: GET /healthz, GET /readyz\n"
)

#: What the gate must know of each route below.
ROUTES: Mapping[bytes, Route] = {
    b"/": Route((b"GET", b"HEAD"), open=True),
    b"/healthz": Route((b"GET", b"HEAD"), open=True),
    b"/readyz": Route((b"GET", b"HEAD"), open=True),
    **dict.fromkeys(
        (b"/v1/chat/completions", b"/chat/completions"),
        Route((b"POST",), enabled=lambda settings: settings.config.gateway.http.endpoints.chat_completions.enabled, switch=CHAT_SWITCH),
    ),
}


class Api:
    """The routes and what they need. `ready` gives None, or why the gateway cannot serve."""

    app = Klein()
    # Set before the routes are added: no redirects, ever.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False

    def __init__(self, settings: ConfigControl, runs: Runs, bodies: Budget, ticker: Ticker, ready: Callable[[], str | None]) -> None:
        self._settings, self._runs, self._bodies, self._ticker, self._ready = settings, runs, bodies, ticker, ready

    @app.route("/", methods=["GET"])
    def about(self, request: GatewayRequest) -> None:
        """What this is."""
        reply(request, ABOUT, content_type=b"text/plain; charset=utf-8")

    @app.route("/healthz", methods=["GET"])
    def healthz(self, request: GatewayRequest) -> None:
        """The process answers."""
        reply(request, b'{"ok":true}')

    @app.route("/readyz", methods=["GET"])
    def readyz(self, request: GatewayRequest) -> None:
        """The gateway can take work; why not is in its log and in `status`, not here."""
        ready = self._ready() is None
        reply(request, b'{"ready":true}' if ready else b'{"ready":false}', 200 if ready else 503)

    @app.route("/chat/completions", methods=["POST"])
    @app.route("/v1/chat/completions", methods=["POST"])
    async def chat(self, request: GatewayRequest) -> None:
        """OpenAI chat completions: one run of an agent."""
        asked = decode_request(request.body)
        request.body = b""
        turn = self._turn(request, asked)
        request.run_id = turn.run_id
        created = int(time.time())
        principal = request.principal
        if principal is None:
            raise InvalidRequest("This route needs a credential.")
        if asked.stream:
            await self._streamed(request, asked, turn, principal, created)
        else:
            run = self._runs.submit(turn, principal)
            result = await self._end_of(run, request)
            if result.outcome != "ok":
                raise _final(run.error, bool(result.text))
            reply(request, completion(turn.run_id, created, asked.model, result.text, result.finish_reason, result.usage))

    async def _streamed(self, request: GatewayRequest, asked: ChatRequest, turn: Turn, principal: Principal, created: int) -> None:
        stream = EventStream(request, Stream(turn.run_id, created, asked.model), self._ticker, stream_headers)
        try:
            run = self._runs.submit(turn, principal, stream)
            result = await self._end_of(run, request)
        except BaseException:
            stream.abandon()
            raise
        if result.outcome == "ok":
            stream.finish(result, asked.include_usage)
        elif stream.started:
            stream.fail(_final(run.error, True))
        else:
            stream.abandon()
            raise _final(run.error, bool(result.text))

    async def _end_of(self, run: Run, request: GatewayRequest) -> RunResult:
        """Wait for a run; when the client leaves, the run loses its owner, and keeps its part of the body budget until it has ended."""
        try:
            return await run.ended()
        except CancelledError:
            share = request.take_share()
            run.ended().addCallback(lambda _: self._bodies.give(share))
            run.lost()
            raise

    def _turn(self, request: GatewayRequest, asked: ChatRequest) -> Turn:
        settings = self._settings.current
        directory = settings.directory
        get = request.header
        agent = None
        named = _one(get(b"x-mayros-agent-id"), "x-mayros-agent-id") or _one(get(b"x-mayros-agent"), "x-mayros-agent")
        if named is not None:
            if not AGENT_ID.fullmatch(named):
                raise AgentNotFound(
                    f"x-mayros-agent-id is not an agent id. Configured agents: {', '.join(sorted(directory.agents))}.", param="x-mayros-agent-id"
                )
            agent = directory.agent(named, "x-mayros-agent-id")
        key = _one(get(b"x-mayros-session-key"), "x-mayros-session-key")
        agent, session, stateless = directory.http_session(agent, asked.model, key, asked.user)
        messages = asked.messages
        if not stateless:
            messages = messages[asked.new_from :]
            if not messages:
                raise InvalidRequest(
                    "There is nothing new after the last assistant message: this session keeps its own history and takes what follows it.",
                    param="messages",
                )
        return Turn(
            run_id=new_id(),
            agent=agent,
            session=session,
            stateless=stateless,
            messages=messages,
            door="chat",
            extra_system=asked.system,
            sampling=Sampling(**asked.sampling) if asked.sampling else _NOTHING_ASKED,
            timeout_seconds=agent.timeout_seconds,
            metadata=asked.metadata,
            tools=settings.config.gateway.http.endpoints.chat_completions.tools,
        )


_NOTHING_ASKED = Sampling()


def stream_headers(request: GatewayRequest) -> None:
    """The head of an event stream."""
    request.common_headers()
    put = request.responseHeaders.setRawHeaders
    put(b"Content-Type", [_EVENT_STREAM])
    put(b"Cache-Control", [b"no-store, no-transform"])
    put(b"X-Accel-Buffering", [b"no"])


def _one(lines: Any, name: str) -> str | None:
    """The value of a header that may come once; blank is not given."""
    if not lines:
        return None
    if len(lines) > 1:
        raise InvalidRequest(f"{name} may be sent once.", param=name)
    try:
        text: str = lines[0].decode().strip()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} must be UTF-8.", param=name) from None
    return text or None


def _final(error: Exception | None, spoken: bool) -> GatewayError:
    """The error of an ended run; a client must not retry by itself what has already done something."""
    if not isinstance(error, GatewayError):
        return GatewayError(should_retry=False if spoken else None)
    if spoken and error.should_retry is None:
        error.should_retry = False
    return error


class Root(Resource):
    """The root of the URL space: upgrades to the WebSocket door, all else to the routes."""

    isLeaf = True

    def __init__(self, api: Api, control: Resource) -> None:
        super().__init__()
        self._api, self._control = api, control
        self._klein = api.app.resource()
        self._fixed = {
            (method.encode(), rule.rule.encode()): rule.endpoint
            for rule in Api.app.url_map.iter_rules()
            if not rule.arguments
            for method in rule.methods or ()
        }

    def render(self, request: GatewayRequest) -> Any:
        """See Resource.render; refused requests never get here."""
        if request.upgrade:
            return self._control.render(request)
        path = request.path
        if len(path) > 1 and path[-1:] == b"/":
            path = path[:-1]
        if request.method == b"OPTIONS":
            request.setResponseCode(204)
            request.common_headers()
            request.setHeader(b"Allow", ROUTES[path].allow.encode())
            request.finish()
            return NOT_DONE_YET
        endpoint = self._fixed.get((request.method, path))
        if endpoint is None:
            try:
                return self._klein.render(request)
            except BadHost:
                failed(request, Failure(InvalidRequest("Send exactly one valid Host header.")))
                return NOT_DONE_YET
        task = cast("Deferred[Any] | None", self._api.app.execute_endpoint(endpoint, request))
        if task is not None:
            request.task = task
            task.addErrback(self._failed, request)
        return NOT_DONE_YET

    @staticmethod
    def _failed(failure: Failure, request: GatewayRequest) -> None:
        if failure.check(CancelledError):
            forget(failure)
        else:
            failed(request, failure)


@Api.app.handle_errors(HTTPException)  # type: ignore[arg-type]
def _not_routed(self: Api, request: GatewayRequest, failure: Failure) -> None:
    failed(request, Failure(UnknownUrl("There is nothing at this address.")))


@Api.app.handle_errors(Exception)  # type: ignore[arg-type]
def _unexpected(self: Api, request: GatewayRequest, failure: Failure) -> None:
    failed(request, failure)
