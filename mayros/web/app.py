"""The HTTP routes. Klein holds them; they are called by name, past its URL matching (docs/decisions/0002).

Handlers answer by `reply` or a stream and return None; they raise errors of mayros.errors. Imports core, wire and config.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

from klein import Klein
from twisted.internet.defer import CancelledError, Deferred
from twisted.python.failure import Failure
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET

from mayros.core.claim_ports import Idempotency
from mayros.core.config_ports import ConfigControl
from mayros.core.limits import Budget
from mayros.core.ports import Principal, Run, RunResult, Runs, Turn
from mayros.core.routing import Settings
from mayros.errors import Unauthorized
from mayros.web.answers import final_error, say_model, stream_headers
from mayros.web.gate import Route, route_of, split_path
from mayros.web.inputs import Inputs
from mayros.web.models import find, listed
from mayros.web.request import GatewayRequest, failed, forget, reply
from mayros.web.sse import EventStream, Ticker
from mayros.web.turns import turn_of
from mayros.wire.chat import ChatRequest
from mayros.wire.chat_answers import Stream, completion
from mayros.wire.models import model_list, one_model

if TYPE_CHECKING:
    from mayros.web.keyed import Keyed

#: Prometheus' text format.
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
CHAT_SWITCH = "gateway.http.endpoints.chatCompletions.enabled"
ABOUT = (
    b"Mayros Gateway\n\nOpenAI-compatible chat completions: POST /v1/chat/completions\nWebSocket clients: connect to this address\n"
    b"Models: GET /v1/models\nThis interface as OpenAPI: GET /openapi.json\nHealth: GET /healthz, GET /readyz\n"
)


def _any_endpoint(settings: Settings) -> bool:
    endpoints = settings.config.gateway.http.endpoints
    return endpoints.chat_completions.enabled or endpoints.responses.enabled


def _metrics_here(settings: Settings) -> bool:
    metrics = settings.config.gateway.metrics
    return metrics.enabled and metrics.listen is None


#: What the gate must know of each route below.
ROUTES: Mapping[bytes, Route] = {
    b"/": Route((b"GET", b"HEAD"), open=True),
    b"/healthz": Route((b"GET", b"HEAD"), open=True),
    b"/readyz": Route((b"GET", b"HEAD"), open=True),
    b"/openapi.json": Route((b"GET", b"HEAD"), open=True),
    **dict.fromkeys(
        (b"/v1/chat/completions", b"/chat/completions"),
        Route(
            (b"POST",), enabled=lambda settings: settings.config.gateway.http.endpoints.chat_completions.enabled, switch=CHAT_SWITCH, endpoint="chat"
        ),
    ),
    b"/metrics": Route((b"GET", b"HEAD"), enabled=_metrics_here, switch="gateway.metrics.enabled", endpoint="metrics", scope="operator.read"),
    **dict.fromkeys(
        (b"/v1/models", b"/models", b"/v1/models/*", b"/models/*"),
        Route((b"GET", b"HEAD"), enabled=_any_endpoint, switch=CHAT_SWITCH, endpoint="models", scope="operator.read"),
    ),
}


class Api:
    """The routes and what they need. `ready` gives None, or why the gateway cannot serve."""

    app = Klein()
    # Set before the routes are added: no redirects, ever.
    app.url_map.strict_slashes = False
    app.url_map.merge_slashes = False

    def __init__(
        self, settings: ConfigControl, runs: Runs, bodies: Budget, ticker: Ticker, ready: Callable[[], str | None], inputs: Inputs, keys: Idempotency
    ) -> None:
        self._settings, self._runs, self._bodies, self._ticker, self._ready, self._inputs = settings, runs, bodies, ticker, ready, inputs
        self._keys = keys
        #: What is measured, as text for Prometheus, where it is.
        self.metrics: Callable[[], bytes] = bytes
        self._keyed: Keyed | None = None

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

    @app.route("/openapi.json", methods=["GET"])
    def openapi(self, request: GatewayRequest) -> None:
        """This interface, for programs."""
        from mayros.web.openapi import document  # few ask for it

        reply(request, document())

    @app.route("/metrics", methods=["GET"])
    def measured(self, request: GatewayRequest) -> None:
        """What is measured, for Prometheus."""
        reply(request, self.metrics(), content_type=METRICS_TYPE)

    @app.route("/models", methods=["GET"])
    @app.route("/v1/models", methods=["GET"])
    def models(self, request: GatewayRequest) -> None:
        """The agents, as OpenAI lists models."""
        reply(request, model_list(listed(self._settings.current, _asker(request)).values()))

    @app.route("/models/<path:model>", methods=["GET"])
    @app.route("/v1/models/<path:model>", methods=["GET"])
    def model(self, request: GatewayRequest, model: bytes) -> None:
        """One of them."""
        reply(request, one_model(find(self._settings.current, _asker(request), model)))

    @property
    def keyed(self) -> Keyed:
        """Chat requests with an idempotency key."""
        if self._keyed is None:
            from mayros.web.keyed import Keyed  # few send one

            self._keyed = Keyed(self._settings, self._runs, self._keys, self._inputs, self._bodies, self._ticker)
        return self._keyed

    def forget(self) -> None:
        """Nobody will come back for the streams of runs that have ended."""
        if self._keyed is not None:
            self._keyed.streams.close()

    @app.route("/chat/completions", methods=["POST"])
    @app.route("/v1/chat/completions", methods=["POST"])
    async def chat(self, request: GatewayRequest) -> None:
        """OpenAI chat completions: one run of an agent."""
        settings, principal, header = self._settings.current, _asker(request), request.header
        if header(b"idempotency-key") is not None or header(b"last-event-id") is not None:
            await self.keyed.chat(request, principal)
            return
        endpoint = settings.config.gateway.http.endpoints.chat_completions
        body, request.body = request.body, b""
        asked = await self._inputs.read(body, endpoint)
        del body
        turn = await self._inputs.complete(turn_of(header, asked, settings, principal, request.trace), asked, endpoint, request.take)
        request.of_run(turn.run_id, turn.agent.id, str(turn.session))
        created = int(time.time())
        if asked.stream:
            await self._streamed(request, asked, turn, principal, created)
        else:
            run = self._runs.submit(turn, principal)
            result = await self._end_of(run, request)
            say_model(request, result)
            if result.outcome != "ok":
                raise final_error(run.error, bool(result.text))
            reply(request, completion(turn.run_id, created, asked.model, result.text, result.finish_reason, result.usage, result.calls, run.logprobs))

    async def _streamed(self, request: GatewayRequest, asked: ChatRequest, turn: Turn, principal: Principal, created: int) -> None:
        stream = EventStream(request, Stream(turn.run_id, created, asked.model), self._ticker, stream_headers)
        try:
            run = self._runs.submit(turn, principal, stream)
            result = await self._end_of(run, request)
        except BaseException:
            stream.abandon()
            raise
        say_model(request, result)
        if result.outcome == "ok":
            stream.finish(result, asked.include_usage)
        elif stream.started:
            stream.fail(final_error(run.error, True))
        else:
            stream.abandon()
            raise final_error(run.error, bool(result.text))

    async def _end_of(self, run: Run, request: GatewayRequest) -> RunResult:
        """Wait for a run; when the client leaves, the run loses its owner, and keeps its part of the body budget until it has ended."""
        try:
            return await run.ended()
        except CancelledError:
            share = request.take_share()
            run.ended().addCallback(lambda _: self._bodies.give(share))
            run.lost()
            raise


def _asker(request: GatewayRequest) -> Principal:
    """Who asks, on routes that are not open."""
    if request.principal is None:
        raise Unauthorized
    return request.principal


class Root(Resource):
    """The root of the URL space: upgrades to the WebSocket door, all else to the routes."""

    isLeaf = True

    def __init__(self, api: Api, control: Resource) -> None:
        super().__init__()
        self._control = control
        # Klein keeps what `api.app` gives by a weak reference only, and makes it anew, with a map of its own, for each request where nobody holds it.
        self._app = api.app
        # What stands before a parameter, which is always at the end, is the key; the gate's table has `*` there.
        self._endpoints = {
            (method.encode(), rule.rule.partition("<")[0].encode()): rule.endpoint
            for rule in Api.app.url_map.iter_rules()
            for method in rule.methods or ()
        }

    def render(self, request: GatewayRequest) -> Any:
        """See Resource.render; refused requests, and addresses that are none of the gate's, never get here."""
        if request.upgrade:
            return self._control.render(request)
        path = request.path
        if len(path) > 1 and path[-1:] == b"/":
            path = path[:-1]
        if request.method == b"OPTIONS":
            self._options(request, path)
            return NOT_DONE_YET
        endpoint = self._endpoints.get((request.method, path))
        if endpoint is None:
            base, rest = split_path(path)
            answer = self._app.execute_endpoint(self._endpoints[request.method, base], request, rest)
        else:
            answer = self._app.execute_endpoint(endpoint, request)
        task = cast("Deferred[Any] | None", answer)
        if task is not None:
            request.task = task
            task.addErrback(self._failed, request)
        return NOT_DONE_YET

    @staticmethod
    def _options(request: GatewayRequest, path: bytes) -> None:
        """What an address takes, also for pages of other origins that may ask."""
        route = route_of(ROUTES, path)
        assert route is not None
        request.lines += request.channel.site.gate.cors.preflight(request.header, route.allow)
        request.setResponseCode(204)
        request.setHeader(b"Allow", route.allow.encode())
        request.finish()

    @staticmethod
    def _failed(failure: Failure, request: GatewayRequest) -> None:
        if failure.check(CancelledError):
            forget(failure)
        else:
            failed(request, failure)
