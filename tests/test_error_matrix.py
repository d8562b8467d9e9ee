"""Every way in which a request of the OpenAI door can fail, made to happen: status, type, code, param, when to come back, and whether an SDK would.

One function makes each failure; its decorator says what the client must see. The SDK that judges is openai's own.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import httpx2
import openai
from twisted.internet.defer import Deferred

from mayros.core.api_tokens import Wanted
from mayros.errors import InsufficientQuota, RateLimited, RunAborted, UpstreamError, UpstreamRefused, UpstreamTimeout
from mayros.events import TextDelta, TurnFinished, Usage
from tests.helpers import TOKEN, Answer, Client, FakeTool, Harness, HarnessCase, chat, head, post

INVALID, LIMIT, UPSTREAM = "invalid_request_error", "rate_limit_error", "api_error"
Way = Callable[["MatrixCase"], Answer]
WAYS: list[tuple[Way, dict[str, Any]]] = []


@cache
def sdk() -> openai.OpenAI:
    """The client; it is never connected."""
    return openai.OpenAI(api_key="x", base_url="http://127.0.0.1:1/v1")


def seen(status: int, kind: str, code: str | None, **more: Any) -> Callable[[Way], Way]:
    """What the client sees. `after`: Retry-After in seconds; `again`: x-should-retry; `retried`: whether the SDK repeats it."""

    def take(way: Way) -> Way:
        WAYS.append((way, {"status": status, "type": kind, "code": code, "param": None, "after": None, "again": None, "retried": False, **more}))
        return way

    return take


class MatrixCase(HarnessCase):
    """Short ways to fail. Each way below is a test of this class."""

    def use(self, changes: dict[str, Any] | None = None, *tools: Any) -> Harness:
        """The gateway of this test."""
        self.one = Harness(self, changes, tools=tools)
        self.gateways.append(self.one)
        return self.one

    def ask(self, body: Any, *lines: str, changes: dict[str, Any] | None = None, peer: str = "127.0.0.1", **how: Any) -> Answer:
        """A request that fails by itself."""
        return self.use(changes).dial(post(body, *lines, **how), peer).answer()

    def get(self, method: str, path: str) -> Answer:
        """A request without a body."""
        return self.use().dial(head(method, path) + b"\r\n").answer()

    def run_fails(self, error: Exception, *texts: str, stream: bool = False, tools: tuple[Any, ...] = ()) -> Answer:
        """The model fails, after it has said something."""
        one = self.use(None, *tools)
        client = one.dial(post(chat(stream=stream)))
        if tools:
            one.provider.call(("look", {}))
        if texts:
            one.provider.say(*texts)
        one.provider.fail(error)
        one.settle(client)
        return client.answer()

    def token(self, **wanted: Any) -> str:
        """The secret of a token that this gateway has made."""
        made = self.one.api_tokens.create(Wanted("ann", **wanted), self.one.settings.directory.agents)
        return self.successResultOf(Deferred.fromCoroutine(made))[0]

    def waiting(self, changes: dict[str, Any] | None = None, **fields: Any) -> Client:
        """A run that is asked and has not answered."""
        return self.use(changes).dial(post(chat(**fields)))


@seen(400, INVALID, None)
def bad_json(case: MatrixCase) -> Answer:
    """The body is no JSON."""
    return case.ask(b'{"messages": [')


@seen(400, INVALID, None)
def no_object(case: MatrixCase) -> Answer:
    """The body is JSON, but no object."""
    return case.ask([])


@seen(400, INVALID, None, param="temperature")
def wrong_type(case: MatrixCase) -> Answer:
    """A field has the wrong type."""
    return case.ask(chat(temperature="warm"))


@seen(400, INVALID, "invalid_value", param="temperature")
def out_of_range(case: MatrixCase) -> Answer:
    """A field is out of range."""
    return case.ask(chat(temperature=3))


@seen(400, INVALID, "unsupported_parameter", param="audio")
def unsupported(case: MatrixCase) -> Answer:
    """A field asks for what there is not."""
    return case.ask(chat(audio={"voice": "x"}))


@seen(400, INVALID, None, param="messages")
def no_user_message(case: MatrixCase) -> Answer:
    """Nobody asks anything."""
    return case.ask({"messages": [{"role": "system", "content": "x"}]})


@seen(400, INVALID, None, param="x-mayros-session-key")
def bad_header(case: MatrixCase) -> Answer:
    """A header that cannot be used is named too."""
    return case.ask(chat(), "x-mayros-session-key: cron:x")


@seen(400, INVALID, "context_length_exceeded", param="messages")
def context_too_long(case: MatrixCase) -> Answer:
    """The conversation does not fit into the model's window."""
    return case.ask(chat("word " * 20_000))


@seen(401, INVALID, "invalid_api_key")
def no_credential(case: MatrixCase) -> Answer:
    """Nobody says who he is."""
    return case.ask(chat(), token=None)


@seen(401, INVALID, "invalid_api_key")
def wrong_credential(case: MatrixCase) -> Answer:
    """Somebody says it wrong."""
    return case.ask(chat(), token="wrong")


@seen(403, "permission_error", "missing_scope", param="x-mayros-model")
def scope_missing(case: MatrixCase) -> Answer:
    """A user asks for what only an administrator may have."""
    gateway = {"trustedProxies": ["10.0.0.1"], "auth": {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "X-User"}}}
    return case.ask(chat(), "X-User: ann", "x-mayros-model: fake/two", changes={"gateway": gateway}, peer="10.0.0.1")


@seen(403, "permission_error", "missing_scope")
def agent_not_allowed(case: MatrixCase) -> Answer:
    """A token that is for other agents."""
    case.use()
    return case.one.dial(post(chat(model="mayros/main"), token=case.token(agents=("beta",)))).answer()


@seen(403, "permission_error", "missing_scope")
def endpoint_not_allowed(case: MatrixCase) -> Answer:
    """A token that is for other endpoints."""
    case.use()
    return case.one.dial(post(chat(), token=case.token(endpoints=("models",)))).answer()


@seen(429, LIMIT, "rate_limit_exceeded", after="any", retried=True)
def token_too_fast(case: MatrixCase) -> Answer:
    """A token that has asked as often as it may in a minute."""
    case.use()
    secret = case.token(rpm=1)
    case.one.dial(post(chat(), token=secret))
    return case.one.dial(post(chat(), token=secret)).answer()


@seen(403, "permission_error", "origin_not_allowed")
def foreign_page(case: MatrixCase) -> Answer:
    """In mode none a page of somebody else's wants to borrow the connection."""
    return case.ask(chat(), "Origin: https://evil.example", changes={"gateway": {"auth": {"mode": "none"}}}, token=None)


@seen(404, INVALID, "model_not_found", param="model")
def unknown_agent(case: MatrixCase) -> Answer:
    """No agent of that name."""
    return case.ask(chat(model="mayros/nobody"))


@seen(404, INVALID, "model_not_found", param="x-mayros-model")
def unknown_model(case: MatrixCase) -> Answer:
    """No provider of that name."""
    return case.ask(chat(), "x-mayros-model: nobody/x")


@seen(404, INVALID, "unknown_url")
def unknown_address(case: MatrixCase) -> Answer:
    """Nothing there."""
    return case.get("GET", "/v1/engines")


@seen(404, INVALID, "endpoint_disabled")
def switched_off(case: MatrixCase) -> Answer:
    """Nothing there any more."""
    return case.ask(chat(), changes={"gateway": {"http": {"endpoints": {"chatCompletions": {"enabled": False}}}}})


@seen(405, INVALID, "method_not_allowed", allow="POST, OPTIONS")
def wrong_method(case: MatrixCase) -> Answer:
    """An address that takes other methods."""
    return case.get("DELETE", "/v1/chat/completions")


@seen(413, INVALID, "request_too_large")
def too_large(case: MatrixCase) -> Answer:
    """More than a body may have."""
    return case.ask(chat("x" * 2_000), changes={"gateway": {"http": {"maxBodyBytes": 1_000}}})


@seen(415, INVALID, "unsupported_media_type")
def no_json_type(case: MatrixCase) -> Answer:
    """A body that says to be something else."""
    return case.ask(chat(), content_type="text/plain")


@seen(408, INVALID, "request_timeout", retried=True)
def slow_body(case: MatrixCase) -> Answer:
    """A body that does not come."""
    client = case.use().dial(post(chat())[:-5])
    case.one.advance(61, client)
    return client.answer()


@seen(422, INVALID, "idempotency_key_reused")
def key_reused(case: MatrixCase) -> Answer:
    """The same key with another body: 409 would be repeated."""
    case.waiting()
    case.one.dial(post(chat("one"), "Idempotency-Key: k"))
    return case.one.dial(post(chat("two"), "Idempotency-Key: k")).answer()


@seen(400, INVALID, None, param="Idempotency-Key")
def bad_key(case: MatrixCase) -> Answer:
    """A key that is none."""
    return case.ask(chat(), "Idempotency-Key: a b")


@seen(400, INVALID, None, param="Last-Event-ID")
def unknown_event(case: MatrixCase) -> Answer:
    """A stream cannot be resumed behind an event that it does not have."""
    return case.ask(chat(stream=True), "Idempotency-Key: k", "Last-Event-ID: other:5")


@seen(429, LIMIT, "too_many_auth_failures", after="60", again="false")
def locked_out(case: MatrixCase) -> Answer:
    """Wrong too often. A client that slept as long as it is told would stand still for a minute, so it is told not to."""
    one = case.use({"gateway": {"auth": {"rateLimit": {"maxAttempts": 1, "lockoutMs": 60_000}}}})
    one.dial(post(chat(), token="wrong"), "192.0.2.1").answer()
    return one.dial(post(chat()), "192.0.2.1").answer()


@seen(429, LIMIT, "queue_full", after="1", retried=True)
def full_queue(case: MatrixCase) -> Answer:
    """Too many wait for the same session."""
    case.waiting({"gateway": {"limits": {"maxQueuedPerSession": 1}}}, user="ann")
    case.one.dial(post(chat(user="ann")))
    return case.one.dial(post(chat(user="ann"))).answer()


@seen(429, LIMIT, "rate_limit_exceeded", after="7", retried=True)
def provider_rate_limit(case: MatrixCase) -> Answer:
    """The provider's limit, with what it says of when it ends."""
    return case.run_fails(RateLimited(retry_after=7))


@seen(429, "insufficient_quota", "insufficient_quota", after="30", again="false")
def provider_quota(case: MatrixCase) -> Answer:
    """The provider's quota: it does not come back by itself."""
    return case.run_fails(InsufficientQuota(retry_after=30))


@seen(429, LIMIT, "budget_exceeded", after="any", again="false")
def budget(case: MatrixCase) -> Answer:
    """The operator's own limit for a day is reached."""
    one = case.use({"limits": {"dayTokens": 100}})
    client = one.dial(post(chat()))
    one.provider.say("x")
    one.provider.stop(usage=Usage(60, 40))
    one.settle(client)
    return one.dial(post(chat())).answer()


@seen(500, "server_error", "internal_error", retried=True)
def defect(case: MatrixCase) -> Answer:
    """A defect of ours, before anything was done."""
    answer = case.run_fails(ZeroDivisionError("inner secret"))
    case.assertEqual(len(case.flushLoggedErrors(ZeroDivisionError)), 1)
    case.assertNotIn(b"secret", answer.body)
    return answer


@seen(500, "server_error", "internal_error", again="false")
def defect_after_a_tool(case: MatrixCase) -> Answer:
    """A defect after a tool has run: the same again might do the same twice."""
    answer = case.run_fails(ZeroDivisionError(), tools=(FakeTool(answer="found"),))
    case.assertEqual(len(case.flushLoggedErrors(ZeroDivisionError)), 1)
    return answer


@seen(502, UPSTREAM, "upstream_error", retried=True)
def provider_fails(case: MatrixCase) -> Answer:
    """The provider cannot be reached, or makes no sense."""
    return case.run_fails(UpstreamError())


@seen(502, UPSTREAM, "upstream_error", again="false")
def provider_fails_late(case: MatrixCase) -> Answer:
    """After text: a repetition is a second run."""
    return case.run_fails(UpstreamError(), "half")


@seen(502, UPSTREAM, "upstream_error", again="false")
def provider_refuses(case: MatrixCase) -> Answer:
    """The provider does not take the request: it will not the next time either."""
    return case.run_fails(UpstreamRefused())


@seen(502, UPSTREAM, "upstream_error", retried=True)
def provider_fails_before_a_stream(case: MatrixCase) -> Answer:
    """A stream whose head has not been sent is a proper status as well."""
    return case.run_fails(UpstreamError(), stream=True)


@seen(502, UPSTREAM, "tool_choice_unsatisfied", again="false")
def choice_ignored(case: MatrixCase) -> Answer:
    """The model does not call what it must."""
    tool = {"type": "function", "function": {"name": "weather"}}
    client = case.waiting(tools=[tool], tool_choice="required")
    case.one.provider.say("It rains.")
    case.one.provider.stop()
    case.one.settle(client)
    return client.answer()


@seen(502, UPSTREAM, "response_format_unsatisfied", again="false")
def form_ignored(case: MatrixCase) -> Answer:
    """The model's answer has another form than it must have."""
    schema = {"type": "object", "properties": {"rain": {"type": "boolean"}}, "required": ["rain"]}
    client = case.waiting(response_format={"type": "json_schema", "json_schema": {"name": "weather", "schema": schema}})
    case.one.provider.say("It rains.")
    case.one.provider.stop()
    case.one.settle(client)
    return client.answer()


@seen(503, UPSTREAM, "unavailable", after="2", retried=True)
def draining(case: MatrixCase) -> Answer:
    """The gateway stops."""
    case.use().runs.drain()
    return case.one.dial(post(chat())).answer()


@seen(503, UPSTREAM, "unavailable", after="1", retried=True)
def no_model(case: MatrixCase) -> Answer:
    """The agent has none."""
    return case.ask(chat(), changes={"agents": {"defaults": {"model": None}}})


@seen(503, UPSTREAM, "unavailable", after="1", retried=True)
def no_room(case: MatrixCase) -> Answer:
    """All bodies together may have so much."""
    case.waiting({"gateway": {"limits": {"bodyBudget": 3_000}, "http": {"maxBodyBytes": 3_000}}})
    return case.one.dial(post(chat("x" * 2_920))).answer()


@seen(503, UPSTREAM, "unavailable", after="1", retried=True)
def too_many_connections(case: MatrixCase) -> Answer:
    """All connections of one address may be so many."""
    one = case.use({"gateway": {"limits": {"maxConnectionsPerAddress": 1}}})
    one.dial(peer="192.0.2.1")
    return one.dial(peer="192.0.2.1").answer()


@seen(503, UPSTREAM, "storage_unavailable", after="5", retried=True)
def store_fails(case: MatrixCase) -> Answer:
    """The store takes nothing, and the model has said nothing."""
    client = case.waiting()
    case.one.store.broken = True
    case.one.provider.stop()
    case.one.settle(client)
    return client.answer()


@seen(503, UPSTREAM, "storage_unavailable", after="5", again="false")
def store_fails_late(case: MatrixCase) -> Answer:
    """The store takes nothing of what the model has said."""
    client = case.waiting()
    case.one.store.broken = True
    case.one.provider.say("text")
    case.one.provider.stop()
    case.one.settle(client)
    return client.answer()


@seen(422, INVALID, "run_aborted", again="false")
def aborted(case: MatrixCase) -> Answer:
    """Somebody else ends the run (tests/test_answer_headers.py has the ways)."""
    client = case.waiting()
    case.one.runs.abort(next(iter(case.one.runs._live)), RunAborted())
    case.one.settle(client)
    return client.answer()


@seen(422, INVALID, "loop_detected", again="false")
def loop(case: MatrixCase) -> Answer:
    """The model does the same over and over."""
    client = case.use(None, FakeTool(answer="the same")).dial(post(chat()))
    for _ in range(60):
        if client.received:
            break
        case.one.provider.call(("look", {"path": "a"}))
        case.one.settle(client)
    return client.answer()


@seen(504, UPSTREAM, "upstream_timeout", retried=True)
def provider_timeout(case: MatrixCase) -> Answer:
    """The provider says nothing for too long."""
    return case.run_fails(UpstreamTimeout())


@seen(504, UPSTREAM, "run_timeout", again="false")
def run_timeout(case: MatrixCase) -> Answer:
    """The run takes too long."""
    client = case.waiting({"agents": {"defaults": {"timeoutSeconds": 30}}})
    case.one.advance(30, client)
    case.one.settle(client)
    return client.answer()


@seen(503, UPSTREAM, "server_shutdown", after="2", retried=True)
def shutdown(case: MatrixCase) -> Answer:
    """The gateway ends a run that has said nothing."""
    client = case.waiting()
    case.one.runs.abort_all()
    case.one.settle(client)
    return client.answer()


class ErrorMatrix(MatrixCase):
    """One test for each way."""

    def check(self, way: Way, wanted: dict[str, Any]) -> None:
        """Make it happen, and look at it as a client does."""
        answer = way(self)
        error = answer.error
        self.assertEqual((answer.status, error["type"], error["code"]), (wanted["status"], wanted["type"], wanted["code"]), error)
        self.assertEqual((set(error), error["param"]), ({"message", "type", "param", "code"}, wanted["param"]), error)
        self.assertGreater(len(error["message"]), 10)
        self.assertNotIn(TOKEN, error["message"])
        self.assertEqual(answer.headers["content-type"], "application/json")
        after = answer.headers.get("retry-after")
        self.assertTrue(after == wanted["after"] or (wanted["after"] == "any" and after is not None and after.isdecimal()), after)
        self.assertEqual(answer.headers.get("x-should-retry"), wanted["again"])
        self.assertEqual(answer.headers.get("allow"), wanted.get("allow"))
        self.assertEqual(answer.headers.get("www-authenticate"), "Bearer" if answer.status == 401 else None)
        response = httpx2.Response(
            answer.status, headers=answer.headers, content=answer.body, request=httpx2.Request("POST", "http://127.0.0.1:1/v1/chat/completions")
        )
        self.assertEqual(sdk()._should_retry(response), wanted["retried"])
        raised = sdk()._make_status_error_from_response(response)
        self.assertEqual((raised.status_code, raised.type, raised.code, raised.param), (answer.status, error["type"], error["code"], error["param"]))
        self.assertEqual(raised.request_id, answer.headers["x-request-id"])


def _test(way: Way, wanted: dict[str, Any]) -> Callable[[ErrorMatrix], None]:
    def test(self: ErrorMatrix) -> None:
        self.check(way, wanted)

    test.__doc__ = way.__doc__
    return test


for _way, _wanted in WAYS:
    setattr(ErrorMatrix, f"test_{_way.__name__}", _test(_way, _wanted))


class InAStream(MatrixCase):
    """Failures after the first byte: an event named `error` with the same object, the end of the stream, and no DONE."""

    def test_each(self) -> None:
        """Of the model, of the run, of the gateway."""

        def fail(error: Exception) -> Callable[[Client], None]:
            return lambda client: self.one.provider.fail(error)

        def broken(client: Client) -> None:
            self.one.store.broken = True
            self.one.provider.push([TurnFinished("stop")])
            self.one.provider.push(None)

        for happens, kind, code in (
            (fail(UpstreamError()), UPSTREAM, "upstream_error"),
            (fail(RateLimited()), LIMIT, "rate_limit_exceeded"),
            (fail(UpstreamTimeout()), UPSTREAM, "upstream_timeout"),
            (lambda client: self.one.runs.abort_all(), UPSTREAM, "server_shutdown"),
            (lambda client: self.one.runs.abort(next(iter(self.one.runs._live)), RunAborted()), INVALID, "run_aborted"),
            (lambda client: self.one.advance(30, client), UPSTREAM, "run_timeout"),
            (broken, UPSTREAM, "storage_unavailable"),
        ):
            client = self.waiting({"agents": {"defaults": {"timeoutSeconds": 30}}}, stream=True)
            self.one.provider.push([TextDelta("half")])
            self.one.settle(client)
            happens(client)
            self.one.settle(client)
            self.one.settle(client)
            with self.subTest(code=code):
                answer = client.answer()
                self.assertEqual(answer.status, 200)
                self.assertTrue(answer.body.endswith(b"\n\n"))
                *_, last = answer.body.decode().removesuffix("\n\n").split("\n\n")
                name, _, data = last.partition("\n")
                self.assertEqual(name, "event: error")
                error = json.loads(data.removeprefix("data: "))["error"]
                self.assertEqual((error["type"], error["code"], set(error)), (kind, code, {"message", "type", "param", "code"}))
                self.assertNotIn(b"[DONE]", answer.body)
