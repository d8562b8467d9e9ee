"""The page that asked for this endpoint: each of its sentences about HTTP, as an example."""

from __future__ import annotations

import json
from typing import Any

from mayros.config.gateway import Endpoints
from mayros.config.schema import Config
from mayros.config.secret import resolve
from tests.helpers import TOKEN, Answer, Harness, HarnessCase, post, settings
from tests.test_ws import WRITE, agent_params, connect_params
from tests.test_ws_protocol import Doors, frame, upgrade

BODY: dict[str, Any] = {"model": "mayros", "messages": [{"role": "user", "content": "hi"}]}


def curl(body: dict[str, Any], *headers: str, token: str | None = "YOUR_TOKEN") -> bytes:
    """The request as the page's curl sends it."""
    return post(body, "User-Agent: curl/8.5.0", "Accept: */*", *headers, token=token)


class PageTests(HarnessCase):
    """One test a sentence; its docstring is the sentence."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway({"gateway": {"auth": {"token": "YOUR_TOKEN"}}})

    def ask(self, data: bytes, gateway: Harness | None = None, peer: str = "127.0.0.1") -> Answer:
        """Send it; the model says hello."""
        gateway = gateway or self.one
        asked = len(gateway.provider.requests)
        client = gateway.dial(data, peer)
        if len(gateway.provider.requests) > asked:
            gateway.provider.say("hel", "lo")
            gateway.provider.stop()
            gateway.settle(client)
        return client.answer()

    def agent_of(self, body: dict[str, Any], *headers: str) -> str:
        """The agent that answered."""
        answer = self.ask(curl(body, *headers))
        self.assertEqual(answer.status, 200, answer.body)
        return self.one.store.turns[-1][0].agent.id

    def session_of(self, body: dict[str, Any], *headers: str) -> str:
        """The session key of the turn."""
        self.agent_of(body, *headers)
        return str(self.one.store.turns[-1][0].session)

    def test_small_openai_compatible_endpoint(self) -> None:
        """ "Mayros's Gateway can serve a small OpenAI-compatible Chat Completions endpoint." """
        answer = self.ask(curl(BODY)).json
        self.assertEqual(
            (answer["object"], answer["choices"][0]["message"]), ("chat.completion", {"role": "assistant", "content": "hello", "refusal": None})
        )

    def test_disabled_by_default(self) -> None:
        """ "This endpoint is disabled by default. Enable it in config first." """
        self.assertFalse(Config().gateway.http.endpoints.chat_completions.enabled)
        self.assertEqual(Endpoints().chat_completions.enabled, False)

    def test_address(self) -> None:
        """ "POST /v1/chat/completions" """
        self.assertEqual(self.ask(curl(BODY)).status, 200)
        wrong = self.ask(curl(BODY).replace(b"POST", b"GET").replace(json.dumps(BODY).encode(), b"").replace(b"Content-Length", b"X"))
        self.assertEqual((wrong.status, wrong.headers["allow"]), (405, "POST, OPTIONS"))

    def test_a_normal_agent_run(self) -> None:
        """ "Requests are executed as a normal Gateway agent run (same codepath as mayros agent), so routing/permissions/config match
        your Gateway." """
        runs: list[str] = []
        self.one.runs.watch(lambda run, events: runs.append(run.turn.run_id))
        answer = self.ask(curl(BODY)).json
        self.assertEqual({f"chatcmpl-{run}" for run in runs}, {answer["id"]})
        self.assertEqual(self.one.store.turns[0][0].agent, self.one.settings.directory.agents["main"])

    def test_bearer_token(self) -> None:
        """ "Uses the Gateway auth configuration. Send a bearer token: Authorization: Bearer <token>" """
        self.assertEqual(self.ask(curl(BODY)).status, 200)
        for token in ("wrong", None):
            self.assertEqual(self.ask(curl(BODY, token=token)).status, 401)

    def test_mode_token(self) -> None:
        """ "When gateway.auth.mode="token", use gateway.auth.token (or MAYROS_GATEWAY_TOKEN)." """
        gateway = self.gateway({"gateway": {"auth": {"mode": "token", "token": "the-token"}}})
        self.assertEqual(self.ask(curl(BODY, token="the-token"), gateway).status, 200)
        config = settings({"gateway": {"auth": {"mode": "token", "token": None}}}).config
        self.assertEqual(resolve(config, {"MAYROS_GATEWAY_TOKEN": "a-long-enough-token"}, None).value, "a-long-enough-token")

    def test_mode_password(self) -> None:
        """ "When gateway.auth.mode="password", use gateway.auth.password (or MAYROS_GATEWAY_PASSWORD)." """
        gateway = self.gateway({"gateway": {"auth": {"mode": "password", "password": "the-password"}}})
        self.assertEqual(self.ask(curl(BODY, token="the-password"), gateway).status, 200)
        self.assertEqual(self.ask(curl(BODY, token=TOKEN), gateway).status, 401)
        config = settings({"gateway": {"auth": {"mode": "password", "token": None}}}).config
        self.assertEqual(resolve(config, {"MAYROS_GATEWAY_PASSWORD": "a-long-enough-one"}, None).value, "a-long-enough-one")

    def test_rate_limit(self) -> None:
        """ "If gateway.auth.rateLimit is configured and too many auth failures occur, the endpoint returns 429 with Retry-After." """
        gateway = self.gateway({"gateway": {"auth": {"rateLimit": {"maxAttempts": 2, "lockoutMs": 90_000}}}})
        statuses = [self.ask(curl(BODY, token="wrong"), gateway, peer="192.0.2.1").status for _ in range(2)]
        locked = self.ask(curl(BODY, token=TOKEN), gateway, peer="192.0.2.1")
        self.assertEqual((statuses, locked.status, locked.headers["retry-after"]), ([401, 401], 429, "90"))

    def test_agent_in_the_model_field(self) -> None:
        """ "No custom headers required: encode the agent id in the OpenAI model field": mayros:main, mayros:beta, agent:<agentId> (alias)."""
        for model, agent in (("mayros:main", "main"), ("mayros:beta", "beta"), ("agent:beta", "beta"), ("agent:main", "main")):
            self.assertEqual(self.agent_of({**BODY, "model": model}), agent)

    def test_agent_by_header(self) -> None:
        """ "Or target a specific Mayros agent by header: x-mayros-agent-id: <agentId> (default: main)" """
        self.assertEqual(self.agent_of(BODY, "x-mayros-agent-id: beta"), "beta")
        self.assertEqual(self.agent_of(BODY, "x-mayros-agent-id: main"), "main")
        self.assertEqual(self.agent_of(BODY), "main")

    def test_session_by_header(self) -> None:
        """ "x-mayros-session-key: <sessionKey> to fully control session routing." """
        self.assertEqual(self.session_of(BODY, "x-mayros-session-key: agent:beta:desk"), "agent:beta:desk")
        self.assertEqual(self.session_of(BODY, "x-mayros-session-key: desk"), "agent:main:desk")

    def test_enabling(self) -> None:
        """ "Set gateway.http.endpoints.chatCompletions.enabled to true" """
        gateway = self.gateway({"gateway": {"http": {"endpoints": {"chatCompletions": {"enabled": True}}}}})
        self.assertEqual(self.ask(curl(BODY, token=TOKEN), gateway).status, 200)

    def test_disabling(self) -> None:
        """ "Set gateway.http.endpoints.chatCompletions.enabled to false" """
        gateway = self.gateway({"gateway": {"http": {"endpoints": {"chatCompletions": {"enabled": False}}}}})
        answer = self.ask(curl(BODY, token=TOKEN), gateway)
        self.assertEqual((answer.status, answer.error["code"]), (404, "endpoint_disabled"))

    def test_stateless_by_default(self) -> None:
        """ "By default the endpoint is stateless per request (a new session key is generated each call)." """
        self.assertNotEqual(self.session_of(BODY), self.session_of(BODY))
        self.assertEqual(self.one.provider.seen, [{"role": "user", "content": "hi"}])

    def test_user_is_a_session(self) -> None:
        """ "If the request includes an OpenAI user string, the Gateway derives a stable session key from it, so repeated calls can share an
        agent session." """
        body = {**BODY, "user": "ann"}
        self.assertEqual(self.session_of(body), self.session_of(body))
        self.assertEqual([message["content"] for message in self.one.provider.seen], ["hi", "hello", "hi"])

    def test_streaming(self) -> None:
        """ "Set stream: true to receive Server-Sent Events (SSE)": text/event-stream, event lines `data: <json>`, `data: [DONE]` at the end."""
        answer = self.ask(curl({**BODY, "stream": True}))
        self.assertTrue(answer.headers["content-type"].startswith("text/event-stream"))
        lines = [line for line in answer.body.decode().split("\n") if line]
        self.assertEqual(lines.pop(), "data: [DONE]")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
        self.assertEqual("".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks), "hello")

    def test_example_not_streamed(self) -> None:
        """The page's first example: curl with Authorization, Content-Type and x-mayros-agent-id."""
        data = json.dumps(BODY).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:18789\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n"
            b"Authorization: Bearer YOUR_TOKEN\r\nContent-Type: application/json\r\nx-mayros-agent-id: main\r\n"
        )
        answer = self.ask(head + b"Content-Length: %d\r\n\r\n" % len(data) + data)
        self.assertEqual(answer.json["choices"][0]["message"]["content"], "hello")

    def test_example_streamed(self) -> None:
        """The page's second example: the same with `"stream": true`."""
        answer = self.ask(curl({"model": "mayros", "stream": True, "messages": [{"role": "user", "content": "hi"}]}, "x-mayros-agent-id: main"))
        self.assertTrue(answer.body.endswith(b"data: [DONE]\n\n"))

    def test_same_port(self) -> None:
        """ "Same port as the Gateway (WS + HTTP multiplex): http://<gateway-host>:<port>/v1/chat/completions" """
        doors = Doors(self)
        gateway = doors.world.harness
        socket = gateway.dial(upgrade(path="/v1/chat/completions"))
        for method, params in (("connect", connect_params(WRITE)), ("agent", agent_params())):
            socket.send(frame(json.dumps({"type": "req", "id": method, "method": method, "params": params}).encode()))
        http = gateway.dial(curl(BODY, token=TOKEN))
        self.assertIn(b'"status":"accepted"', socket.received)
        for client in (socket, http):
            gateway.provider.say("hello")
            gateway.provider.stop()
            gateway.settle(client)
        self.assertIn(b'"status":"ok"', socket.received)
        self.assertEqual(http.answer().status, 200)
