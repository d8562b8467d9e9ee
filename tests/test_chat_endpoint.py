"""POST /v1/chat/completions, rule by rule: who may ask, which agent and session answer, what the model sees, what comes back, what goes wrong."""

from __future__ import annotations

import json
from typing import Any
from weakref import ref

from twisted.internet.defer import Deferred

from mayros.core.workspace_ports import WorkspaceFile
from mayros.errors import InsufficientQuota, RateLimited, RunAborted, StorageUnavailable, UpstreamError, UpstreamRefused, UpstreamTimeout
from mayros.events import ModelAnswered, ReasoningDelta, TextDelta, TurnFinished, Usage
from tests.helpers import TOKEN, Answer, Client, Harness, HarnessCase, chat, head, post

RATE = {"maxAttempts": 3, "windowMs": 60_000, "lockoutMs": 300_000}
REMOTE = "192.0.2.1"


def auth(**settings: Any) -> dict[str, Any]:
    """Changes to `gateway.auth`."""
    return {"gateway": {"auth": settings}}


def conversation(*turns: tuple[str, str], **fields: Any) -> dict[str, Any]:
    """A request body with these (role, content) messages."""
    return {"model": "mayros", "messages": [{"role": role, "content": content} for role, content in turns], **fields}


class EndpointCase(HarnessCase):
    """Short ways to ask."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway()

    def ask(self, body: dict[str, Any], *lines: str, gateway: Harness | None = None, says: str = "ok", peer: str = "127.0.0.1", **how: Any) -> Answer:
        """A request on a connection of its own, answered at once, by the model where it gets so far."""
        gateway = gateway or self.one
        asked = len(gateway.provider.requests)
        client = gateway.dial(post(body, *lines, **how), peer)
        if len(gateway.provider.requests) > asked:
            gateway.provider.say(says)
            gateway.provider.stop()
            gateway.settle(client)
        return client.answer()

    def open(self, gateway: Harness | None = None, *lines: str, **fields: Any) -> Client:
        """A streamed request, not answered yet."""
        return (gateway or self.one).dial(post(chat(stream=True, **fields), *lines))

    def session(self, gateway: Harness | None = None) -> str:
        """The session key of the last recorded turn."""
        return str((gateway or self.one).store.turns[-1][0].session)


class SwitchTests(EndpointCase):
    """The endpoint itself."""

    def test_off_by_default(self) -> None:
        """Without its switch the answer is 404 with OpenAI's error body, right token or not, and names the switch."""
        gateway = self.gateway({"gateway": {"http": {"endpoints": {"chatCompletions": {"enabled": False}}}}})
        for token in (TOKEN, "wrong"):
            answer = self.ask(chat(), gateway=gateway, token=token)
            self.assertEqual((answer.status, answer.error["code"], answer.error["type"]), (404, "endpoint_disabled", "invalid_request_error"))
            self.assertIn("gateway.http.endpoints.chatCompletions.enabled", answer.error["message"])

    def test_tools(self) -> None:
        """Whether runs of this endpoint have the agent's tools is configured."""
        self.ask(chat())
        off = self.gateway({"gateway": {"http": {"endpoints": {"chatCompletions": {"tools": "none"}}}}})
        self.ask(chat(), gateway=off)
        self.assertEqual(["agent", "none"], [one.store.turns[-1][0].tools for one in (self.one, off)])

    def test_other_spellings_of_the_address(self) -> None:
        """One final slash, and the address without /v1, are the same endpoint."""
        for path in ("/v1/chat/completions/", "/chat/completions", "/chat/completions/", "/v1/chat/completions?x=1"):
            self.assertEqual(self.ask(chat(), path=path).status, 200, path)

    def test_every_answer_has_a_request_id(self) -> None:
        """The caller's, or a new one; also on streams and errors; it is in the access log."""
        self.assertEqual(self.ask(chat(), "X-Request-Id: mine").headers["x-request-id"], "mine")
        self.assertEqual(self.one.access[-1].request, "mine")
        self.assertEqual(self.ask(chat(stream=True), "X-Request-Id: mine").headers["x-request-id"], "mine")
        first, second = (self.ask({}).headers["x-request-id"] for _ in range(2))
        self.assertNotEqual(first, second)

    def test_the_access_log(self) -> None:
        """One line for each request: who, what, how it ended, how long; no secrets, no health checks."""
        client = self.open()
        self.one.advance(2, client)
        self.one.provider.stop()
        self.one.settle(client)
        self.one.dial(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        (line,) = self.one.access
        self.assertEqual((line.code, line.method, line.path, line.remote), (200, "POST", "/v1/chat/completions", "127.0.0.1"))
        self.assertEqual((line.ms, line.principal, line.run), (2000, "owner", self.one.store.turns[0][0].run_id))
        self.assertNotIn(TOKEN, repr(line))

    def test_health(self) -> None:
        """healthz is open and says nothing; readyz is 503 while the gateway cannot serve; / says what this is."""

        def get(path: str) -> Answer:
            return self.one.dial(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()).answer()

        self.assertEqual((get("/healthz").status, get("/readyz").json), (200, {"ready": True}))
        self.one.not_ready = "the store cannot be written"
        self.assertEqual((get("/readyz").status, get("/readyz").json), (503, {"ready": False}))
        self.assertEqual(get("/healthz").json, {"ok": True})
        self.assertIn(b"Mayros", get("/").body)
        self.assertNotIn(TOKEN.encode(), get("/").body)


class AuthTests(EndpointCase):
    """Who may ask."""

    def test_token(self) -> None:
        """In mode token, the token and nothing else."""
        self.assertEqual(self.ask(chat()).status, 200)
        for token in (None, "wrong", ""):
            answer = self.ask(chat(), token=token)
            self.assertEqual((answer.status, answer.error["code"]), (401, "invalid_api_key"))
            self.assertEqual(answer.headers["www-authenticate"], "Bearer")
            self.assertNotIn("retry-after", answer.headers)
        self.assertEqual(self.one.provider.requests[1:], [])

    def test_password(self) -> None:
        """In mode password, the password; the token is none."""
        gateway = self.gateway(auth(mode="password", password="a pass w\u00f6rd"))
        self.assertEqual(self.ask(chat(), gateway=gateway).status, 401)
        right = "Authorization: Bearer " + "a pass w\u00f6rd".encode().decode("latin-1")
        self.assertEqual(self.ask(chat(), right, gateway=gateway, token=None).status, 200)

    def test_none(self) -> None:
        """In mode none no credential is needed, but pages and names of others are refused."""
        gateway = self.gateway(auth(mode="none"))
        self.assertEqual(self.ask(chat(), gateway=gateway, token=None).status, 200)
        self.assertEqual(self.ask(chat(), "Origin: http://localhost:3000", gateway=gateway, token=None).status, 200)
        rebound = gateway.dial(post(chat(), token=None).replace(b"Host: 127.0.0.1", b"Host: evil.example")).answer()
        self.assertEqual((rebound.status, rebound.error["code"], rebound.error["type"]), (403, "host_not_allowed", "permission_error"))
        for line in ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site"):
            page = self.ask(chat(), line, gateway=gateway, token=None)
            self.assertEqual((page.status, page.error["code"]), (403, "origin_not_allowed"), line)

    def test_trusted_proxy(self) -> None:
        """In mode trusted-proxy the proxy names the user; nobody else may, and a bearer token helps nobody."""
        gateway = self.gateway(
            {
                "gateway": {
                    "trustedProxies": ["10.0.0.1"],
                    "auth": {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "X-User", "allowUsers": ["ann"]}},
                }
            }
        )

        def status(*lines: str, peer: str = "10.0.0.1") -> int:
            return self.ask(chat(), *lines, gateway=gateway, peer=peer, token=None).status

        self.assertEqual(status("X-User: ann"), 200)
        self.assertEqual(gateway.access[-1].principal, "user:ann")
        self.assertEqual(status("X-User: ann", peer="10.0.0.2"), 401)
        self.assertEqual(status("X-User: ann", peer="127.0.0.1"), 401)
        self.assertEqual(status(), 401)
        self.assertEqual(status("X-User: ann", "X-User: ann"), 401)
        self.assertEqual(status("X-User: bob"), 403)
        self.assertEqual(status("X-User: ann", "Origin: https://evil.example"), 403)
        self.assertEqual(self.ask(chat(), gateway=gateway, peer="192.0.2.5").status, 401)

    def test_lockout(self) -> None:
        """At the limit 429 with whole seconds, rounded up, and `x-should-retry: false`, even for the right secret; then all is forgotten."""
        gateway = self.gateway(auth(rateLimit=RATE))

        def ask(token: str | None, peer: str = REMOTE) -> Answer:
            return self.ask(chat(), gateway=gateway, token=token, peer=peer)

        self.assertEqual([ask("wrong").status for _ in range(3)], [401, 401, 401])
        gateway.advance(0.2)
        locked = ask(TOKEN)
        self.assertEqual((locked.status, locked.error["type"], locked.error["code"]), (429, "rate_limit_error", "too_many_auth_failures"))
        self.assertEqual((locked.headers["retry-after"], locked.headers["x-should-retry"]), ("300", "false"))
        gateway.advance(299.3)
        self.assertEqual((ask(None).status, ask(None).headers["retry-after"]), (429, "1"))
        self.assertEqual(ask(TOKEN, peer="192.0.2.2").status, 200)
        gateway.advance(0.5)
        self.assertEqual(ask(TOKEN).status, 200)

    def test_missing_credentials_do_not_count(self) -> None:
        """A probe without a credential is 401, as often as it likes."""
        gateway = self.gateway(auth(rateLimit=RATE))
        statuses = {self.ask(chat(), gateway=gateway, token=None, peer=REMOTE).status for _ in range(10)}
        self.assertEqual(statuses, {401})
        self.assertEqual(self.ask(chat(), gateway=gateway, peer=REMOTE).status, 200)

    def test_this_machine_is_exempt(self) -> None:
        """Direct local clients are not locked out; with a foreign page's Origin, or through a proxy, they are."""
        gateway = self.gateway(auth(rateLimit=RATE))
        self.assertEqual({self.ask(chat(), gateway=gateway, token="wrong").status for _ in range(10)}, {401})
        for line in ("Origin: https://evil.example", "X-Forwarded-For: 192.0.2.7"):
            other = self.gateway(auth(rateLimit=RATE))
            self.assertEqual([self.ask(chat(), line, gateway=other, token="wrong").status for _ in range(4)], [401, 401, 401, 429])

    def test_without_a_rate_limit_nobody_is_locked_out(self) -> None:
        """`gateway.auth.rateLimit` is off unless set."""
        self.assertEqual({self.ask(chat(), token="wrong", peer=REMOTE).status for _ in range(20)}, {401})

    def test_many_attackers_do_not_grow_the_memory(self) -> None:
        """Addresses are forgotten beyond a bound, and the right secret is served meanwhile."""
        gateway = self.gateway({"gateway": {"auth": {"rateLimit": RATE}}})
        limiter = gateway.limiter
        assert limiter is not None
        for number in range(20_000):
            limiter.failed(f"a{number}", 1.0)
        self.assertLessEqual(len(limiter), 16_384)
        self.assertEqual(self.ask(chat(), gateway=gateway, peer=REMOTE).status, 200)


class AgentTests(EndpointCase):
    """Which agent answers."""

    def agent(self, body: dict[str, Any], *lines: str, gateway: Harness | None = None) -> str:
        """The agent that a request got."""
        answer = self.ask(body, *lines, gateway=gateway)
        self.assertEqual(answer.status, 200, answer.body)
        self.assertEqual(answer.json["model"], body["model"])
        return (gateway or self.one).store.turns[-1][0].agent.id

    def test_by_model(self) -> None:
        """`mayros:<id>`, `mayros/<id>`, `agent:<id>`, in any case; the answer echoes the name as it was sent."""
        for model in ("mayros:beta", "mayros/beta", "agent:beta", "MAYROS:Beta", "Agent:BETA"):
            self.assertEqual(self.agent(chat(model=model)), "beta", model)

    def test_the_default_agent(self) -> None:
        """Plain names, and those that clients hard-code, mean the default agent."""
        for model in ("mayros", "mayros/default", "gpt-4o", "openai/gpt-5", "claude", "mayrosbeta"):
            self.assertEqual(self.agent(chat(model=model)), "main", model)
        gateway = self.gateway({"agents": {"list": [{"id": "main"}, {"id": "beta", "default": True}]}})
        self.assertEqual(self.agent(chat(), gateway=gateway), "beta")

    def test_no_model(self) -> None:
        """A request without a model is answered as `mayros`."""
        body = chat()
        del body["model"]
        self.assertEqual(self.ask(body).json["model"], "mayros")
        self.assertEqual(self.ask({**body, "model": None}).json["model"], "mayros")

    def test_the_header_wins(self) -> None:
        """x-mayros-agent-id, or its alias, over the model field, whatever that holds; blank is not given."""
        self.assertEqual(self.agent(chat(), "x-mayros-agent-id: beta"), "beta")
        self.assertEqual(self.agent(chat(), "X-Mayros-Agent: Beta"), "beta")
        self.assertEqual(self.agent(chat(model="mayros:main"), "x-mayros-agent-id: beta"), "beta")
        self.assertEqual(self.agent(chat(model="mayros:nobody"), "x-mayros-agent-id: beta"), "beta")
        self.assertEqual(self.agent(chat(), "x-mayros-agent-id: beta", "x-mayros-agent: main"), "beta")
        self.assertEqual(self.agent(chat(), "x-mayros-agent-id:  ", "x-mayros-agent: beta"), "beta")

    def test_an_agent_that_is_not_configured(self) -> None:
        """404 model_not_found, naming the ids that are; nothing runs."""
        for body, lines, param in (
            (chat(model="mayros:nobody"), (), "model"),
            (chat(model="agent:"), (), "model"),
            (chat(), ("x-mayros-agent-id: nobody",), "x-mayros-agent-id"),
            (chat(), ("x-mayros-agent: a/b",), "x-mayros-agent-id"),
        ):
            answer = self.ask(body, *lines)
            self.assertEqual((answer.status, answer.error["code"], answer.error["param"]), (404, "model_not_found", param))
            self.assertIn("beta, main", answer.error["message"])
        self.assertEqual(self.one.provider.requests, [])

    def test_an_agent_without_a_model(self) -> None:
        """503, and the message says what to set."""
        gateway = self.gateway({"agents": {"defaults": {"model": None}}})
        for stream in (False, True):
            answer = self.ask(chat(stream=stream), gateway=gateway)
            self.assertEqual((answer.status, answer.error["code"], answer.headers["retry-after"]), (503, "unavailable", "1"))
            self.assertIn("agents.defaults.model", answer.error["message"])


class SessionTests(EndpointCase):
    """Which session a request belongs to, and what of it the model sees."""

    def test_stateless(self) -> None:
        """Without `user` or key each request is a session of its own, and the caller's messages are the whole history."""
        keys = []
        for _ in range(2):
            self.ask(conversation(("user", "a"), ("assistant", "b"), ("user", "c")))
            self.assertEqual([message["content"] for message in self.one.provider.seen], ["a", "b", "c"])
            keys.append(self.session())
        self.assertNotEqual(*keys)
        self.assertRegex(keys[0], r"^agent:main:openai:[0-9a-f-]{24,36}$")
        self.assertTrue(self.one.store.turns[0][0].stateless)

    def test_user(self) -> None:
        """`user` names a stable session of the chosen agent, case kept, blanks trimmed."""
        self.ask(chat(user=" Ann Lee "))
        self.assertEqual(self.session(), "agent:main:openai-user:Ann Lee")
        self.ask(chat(user="Ann Lee", model="mayros:beta"))
        self.assertEqual(self.session(), "agent:beta:openai-user:Ann Lee")
        self.assertEqual(len(self.one.provider.seen), 1)
        self.ask(chat(user="   "))
        self.assertIn(":openai:", self.session())

    def test_session_keys(self) -> None:
        """A bare key belongs to the chosen agent; a full one names its agent; it wins over `user`."""
        for lines, body, key in (
            (("x-mayros-session-key: desk",), chat(), "agent:main:desk"),
            (("x-mayros-session-key: desk",), chat(model="mayros:beta"), "agent:beta:desk"),
            (("x-mayros-session-key: desk", "x-mayros-agent-id: beta"), chat(), "agent:beta:desk"),
            (("x-mayros-session-key: agent:beta:desk",), chat(), "agent:beta:desk"),
            (("x-mayros-session-key: agent:beta:desk",), chat(model="mayros:beta"), "agent:beta:desk"),
            (("x-mayros-session-key: AGENT:Beta:Desk",), chat(model="gpt-4o"), "agent:beta:Desk"),
            (("x-mayros-session-key: main",), chat(), "agent:main:main"),
            (("x-mayros-session-key: desk",), chat(user="ann"), "agent:main:desk"),
            (("x-mayros-session-key: \xc3\xa4",), chat(), "agent:main:\u00e4"),
        ):
            self.assertEqual(self.ask(body, *lines).status, 200, lines)
            self.assertEqual(self.session(), key)
        self.assertFalse(self.one.store.turns[-1][0].stateless)

    def test_session_keys_that_are_refused(self) -> None:
        """The gateway's own name spaces, control characters, over 512 bytes, another agent's: 400 naming the header."""
        for key in ("subagent:x", "cron:x", "acp:x", "agent:main:cron:x", "a\x01b", "x" * 513):
            answer = self.ask(chat(), f"x-mayros-session-key: {key}")
            self.assertEqual((answer.status, answer.error["param"]), (400, "x-mayros-session-key"), key)
        contradicting = self.ask(chat(model="mayros:main"), "x-mayros-session-key: agent:beta:desk")
        self.assertEqual(contradicting.status, 400)
        self.assertIn("beta", contradicting.error["message"])
        self.assertEqual(self.ask(chat(), "x-mayros-session-key: " + "x" * 512).status, 200)

    def test_the_transcript_is_the_history(self) -> None:
        """In a stable session the model sees each turn once, whether or not the caller repeats the conversation."""
        self.ask(chat("my name is Ann", user="u"), says="hello Ann")
        repeated = conversation(("user", "my name is Ann"), ("assistant", "hello Ann"), ("user", "who am I?"), user="u")
        self.ask(repeated, says="Ann")
        expected = [("user", "my name is Ann"), ("assistant", "hello Ann"), ("user", "who am I?")]
        self.assertEqual([(message["role"], message["content"]) for message in self.one.provider.seen], expected)
        self.ask(chat("sure?", user="u"))
        expected += [("assistant", "Ann"), ("user", "sure?")]
        self.assertEqual([(message["role"], message["content"]) for message in self.one.provider.seen], expected)

    def test_several_new_messages(self) -> None:
        """All that comes after the caller's last assistant message is new."""
        self.ask(conversation(("user", "old"), ("assistant", "said"), ("user", "one"), ("user", "two"), user="u"))
        self.assertEqual([message["content"] for message in self.one.provider.seen], ["one", "two"])

    def test_nothing_new(self) -> None:
        """A conversation that ends with the assistant brings nothing to a stable session: 400 naming messages."""
        body = conversation(("user", "a"), ("assistant", "b"))
        answer = self.ask({**body, "user": "u"})
        self.assertEqual((answer.status, answer.error["param"]), (400, "messages"))
        self.assertEqual(self.ask(body).status, 200)

    def test_system_messages(self) -> None:
        """System and developer texts of the whole request go to the system prompt at every turn, in order, and are never stored."""
        body = conversation(("system", "be brief"), ("user", "a"), ("assistant", "b"), ("developer", "no jokes"), ("user", "c"), user="u")
        self.ask(body)
        self.assertTrue(self.one.provider.requests[-1].system.endswith("\n\nbe brief\n\nno jokes"))
        self.assertEqual([message["role"] for message in self.one.provider.seen], ["user"])
        self.ask(chat("d", user="u"))
        self.assertNotIn("be brief", self.one.provider.requests[-1].system)
        self.assertEqual([message["role"] for message in self.one.provider.seen], ["user", "assistant", "user"])

    def test_the_workspace_is_in_the_prompt(self) -> None:
        """The agent's own files come before what the caller asks for."""
        self.one.workspace.texts = (WorkspaceFile("AGENTS.md", "/w/AGENTS.md", "Answer in rhymes."),)
        self.ask(conversation(("system", "be brief"), ("user", "a")))
        system = self.one.provider.requests[-1].system
        self.assertLess(system.index("Answer in rhymes."), system.index("be brief"))

    def test_real_turns_with_their_roles(self) -> None:
        """Earlier turns, tool calls and their results reach the model as they are, not pasted into one text."""
        call = {"id": "c1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
        self.ask(
            {
                "model": "mayros",
                "messages": [
                    {"role": "user", "content": "time?", "name": "ann"},
                    {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "reasoning_content": "hm"},
                    {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "noon"}]},
                    {"role": "assistant", "content": "noon"},
                    {"role": "user", "content": [{"type": "text", "text": "and"}, {"type": "input_text", "text": "now?"}]},
                ],
            }
        )
        self.assertEqual(
            self.one.provider.seen,
            [
                {"role": "user", "content": "time?", "name": "ann"},
                {"role": "assistant", "content": None, "tool_calls": [{**call}]},
                {"role": "tool", "content": "noon", "tool_call_id": "c1"},
                {"role": "assistant", "content": "noon"},
                {"role": "user", "content": "and\nnow?"},
            ],
        )

    def test_a_prompt_that_cannot_fit(self) -> None:
        """400 context_length_exceeded; in a stable session it says how to start a new one; nothing is recorded."""
        long = "word " * 20_000
        for body, advice in ((chat(long), "Send fewer"), (chat(long, user="u"), "Start a new session")):
            for stream in (False, True):
                answer = self.ask({**body, "stream": stream})
                self.assertEqual((answer.status, answer.error["code"], answer.error["param"]), (400, "context_length_exceeded", "messages"))
                self.assertIn(advice, answer.error["message"])
        self.assertEqual((self.one.store.turns, self.one.provider.requests), ([], []))


class ParameterTests(EndpointCase):
    """What is passed on, what is refused."""

    def test_sampling_is_passed_on(self) -> None:
        """Under OpenAI's names; `max_completion_tokens` wins over `max_tokens`; one stop text is a list of one."""
        asked = {"temperature": 0.5, "top_p": 0.9, "seed": 7, "frequency_penalty": 1, "presence_penalty": -1, "stop": "END"}
        self.ask(chat(**asked, max_tokens=5, max_completion_tokens=6, reasoning_effort="low"))
        sampling = self.one.provider.requests[-1].sampling
        self.assertEqual((sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens), (0.5, 0.9, 7, 6))
        self.assertEqual((sampling.frequency_penalty, sampling.presence_penalty, sampling.stop), (1, -1, ("END",)))
        self.assertEqual(sampling.reasoning_effort, "low")

    def test_what_this_version_does_not_offer(self) -> None:
        """400 unsupported_parameter, naming the field, before anything runs."""
        sound = {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]}
        for field, value in (
            ("functions", [{}]),
            ("function_call", "auto"),
            ("audio", {}),
            ("web_search_options", {}),
            ("moderation", {}),
            ("modalities", ["text", "audio"]),
        ):
            answer = self.ask(chat(**{field: value}))
            self.assertEqual((answer.status, answer.error["code"], answer.error["param"]), (400, "unsupported_parameter", field))
        answer = self.ask({"messages": [sound]})
        self.assertEqual((answer.error["code"], answer.error["param"]), ("unsupported_content_part", "messages[0].content[0].type"))
        self.assertEqual(self.one.provider.requests, [])

    def test_harmless_fields(self) -> None:
        """null means not given; unknown fields, and the harmless value of a known one, are accepted."""
        nothing = dict.fromkeys(("temperature", "stop", "user", "tools", "stream", "stream_options", "n", "logit_bias", "audio", "functions"))
        for fields in (
            nothing,
            {"tools": [], "tool_choice": "auto", "parallel_tool_calls": False, "response_format": {"type": "text"}, "n": 1, "logprobs": False},
            {"tool_choice": "none", "store": True, "modalities": ["text"], "service_tier": "auto", "top_k": 5, "chat_id": {"x": [1]}},
        ):
            self.assertEqual(self.ask(chat(**fields)).status, 200, fields)


class PlainAnswerTests(EndpointCase):
    """`stream` false: one chat.completion."""

    def test_routes_are_bound_once(self) -> None:
        """What Klein binds to the handlers lives as long as the site; it is not made anew for each request."""
        bound = ref(self.one.api.app)
        self.assertIsNotNone(bound())

    def test_field_by_field(self) -> None:
        """Everything that clients index is there; usage is what the model reported."""
        client = self.one.dial(post(chat(model="gpt-4o")))
        self.one.provider.say("Hel", "lo")
        self.one.provider.stop(usage=Usage(input=7, output=3, cache_read=2, cache_write=1, reasoning=1))
        self.one.settle(client)
        answer = client.answer()
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertEqual(answer.headers["cache-control"], "no-store")
        body = answer.json
        self.assertRegex(body.pop("id"), r"^chatcmpl-[0-9a-f]{24}$")
        self.assertGreater(body.pop("created"), 1_700_000_000)
        self.assertEqual(
            body,
            {
                "object": "chat.completion",
                "model": "gpt-4o",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": "Hello", "refusal": None}, "logprobs": None, "finish_reason": "stop"}
                ],
                "usage": {
                    "prompt_tokens": 10,
                    "completion_tokens": 3,
                    "total_tokens": 13,
                    "prompt_tokens_details": {"cached_tokens": 2},
                    "completion_tokens_details": {"reasoning_tokens": 1},
                },
            },
        )

    def test_finish_reasons(self) -> None:
        """The model's reason, mapped."""
        for reason in ("stop", "length", "content_filter"):
            client = self.one.dial(post(chat()))
            self.one.provider.say("x")
            self.one.provider.stop(reason)
            self.one.settle(client)
            self.assertEqual(client.answer().json["choices"][0]["finish_reason"], reason)

    def test_an_empty_answer(self) -> None:
        """Is an empty text, not null and not an invented sentence."""
        client = self.one.dial(post(chat()))
        self.one.provider.stop()
        self.one.settle(client)
        self.assertEqual(client.answer().json["choices"][0]["message"]["content"], "")

    def test_the_connection_is_kept(self) -> None:
        """Answers, and errors in the body, leave the connection open for the next request."""
        client = self.one.dial()
        for _ in range(3):
            client.send(post(chat()))
            self.one.provider.say("x")
            self.one.provider.stop()
            self.one.settle(client)
            self.assertEqual(client.answer().status, 200)
            client.send(post({}))
            self.assertEqual(client.answer().status, 400)
        self.assertFalse(client.lost)

    def test_reasoning_is_not_shown(self) -> None:
        """What the model thinks aloud is not part of its answer, plain or streamed."""
        for stream in (False, True):
            client = self.one.dial(post(chat(stream=stream)))
            self.one.provider.push([ReasoningDelta("secret thought"), TextDelta("42")])
            self.one.provider.stop()
            self.one.settle(client)
            self.assertNotIn(b"secret", client.received)
            self.assertIn(b"42", client.received)


class StreamTests(EndpointCase):
    """`stream` true: server-sent events."""

    def test_field_by_field(self) -> None:
        """Role chunk, content chunks, finish chunk, DONE; the same id, created and model in each."""
        client = self.open(model="gpt-4o")
        self.one.provider.say("Hel", "lo")
        self.one.provider.stop("length")
        self.one.settle(client)
        answer = client.answer()
        self.assertEqual(answer.status, 200)
        for name, value in (
            ("content-type", "text/event-stream; charset=utf-8"),
            ("cache-control", "no-store, no-transform"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
        ):
            self.assertEqual(answer.headers[name], value)
        blocks = answer.body.decode().split("\n\n")
        self.assertEqual(blocks.pop(), "")
        self.assertEqual(blocks.pop(), "data: [DONE]")
        self.assertTrue(all(block.startswith("data: ") and "\n" not in block for block in blocks))
        chunks = [json.loads(block[6:]) for block in blocks]
        same = {(chunk.pop("id"), chunk.pop("object"), chunk.pop("created"), chunk.pop("model")) for chunk in chunks}
        ((run, kind, created, model),) = same
        self.assertEqual((run, kind, model), (f"chatcmpl-{self.one.store.turns[0][0].run_id}", "chat.completion.chunk", "gpt-4o"))
        self.assertGreater(created, 1_700_000_000)
        deltas = ({"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {})
        expected = [{"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]} for delta in deltas]
        expected[-1]["choices"][0]["finish_reason"] = "length"
        self.assertEqual([json.loads(json.dumps(chunk)) for chunk in chunks[:-1]], expected[:-1])
        self.assertEqual(chunks[-1]["choices"][0]["delta"], {})
        self.assertEqual(chunks[-1]["choices"][0]["finish_reason"], "length")

    def test_the_usage_chunk(self) -> None:
        """With `include_usage` one more chunk, without choices, before DONE; never without being asked for."""
        client = self.open(stream_options={"include_usage": True})
        self.one.provider.stop(usage=Usage(input=7, output=3))
        self.one.settle(client)
        *_, usage, done = client.events()
        self.assertEqual(done, "[DONE]")
        chunk = json.loads(usage)
        self.assertEqual(chunk["choices"], [])
        self.assertEqual((chunk["usage"]["prompt_tokens"], chunk["usage"]["completion_tokens"], chunk["usage"]["total_tokens"]), (7, 3, 10))
        for options in (None, {"include_usage": False}, {"include_obfuscation": True}):
            client = self.open(stream_options=options)
            self.one.provider.stop()
            self.one.settle(client)
            self.assertNotIn(b'"usage"', client.received)

    def test_as_the_model_makes_them(self) -> None:
        """Text leaves when it comes; nothing is held back."""
        client = self.open()
        for number, text in enumerate("abc", 1):
            self.one.provider.say(text)
            self.one.settle(client)
            self.assertEqual(client.text(), "abc"[:number])

    def test_one_write_for_what_came_together(self) -> None:
        """One read of the provider is one write; finish chunk, usage, DONE and the end of the body are one write as well."""
        client = self.open(stream_options={"include_usage": True})
        writes: list[bytes] = []
        write = client.server.transport.write
        client.server.transport.write = lambda data: writes.append(data) or write(data)
        self.one.provider.say("a", "b", "c")
        self.one.settle(client)
        self.assertEqual(sum(b'"content":"a"' in data and b'"content":"c"' in data for data in writes), 1)
        del writes[:]
        self.one.provider.stop()
        self.one.settle(client)
        (last,) = [data for data in writes if b"finish_reason" in data]
        self.assertIn(b"data: [DONE]", last)
        self.assertIn(b'"usage"', last)

    def test_characters_are_never_split(self) -> None:
        """What is beyond ASCII arrives whole, in each chunk by itself."""
        client = self.open()
        self.one.provider.say("\U0001f600", "\u00e9\u4e2d", '"\n\\')
        self.one.settle(client)
        self.assertEqual(client.text(), '\U0001f600\u00e9\u4e2d"\n\\')

    def test_headers_wait_for_the_model(self) -> None:
        """Nothing is sent before its first sign of life; then the role chunk is."""
        client = self.open()
        self.assertEqual(client.received, b"")
        self.one.provider.answer()
        self.one.settle(client)
        self.assertEqual(len(client.events()), 1)

    def test_after_ten_seconds_of_silence_the_stream_starts(self) -> None:
        """Not before, and an error after that is an event."""
        client = self.open()
        self.one.advance(9, client)
        self.assertEqual(client.received, b"")
        self.one.advance(1, client)
        self.assertEqual(len(client.events()), 1)
        self.one.provider.fail(UpstreamError("gone"))
        self.one.settle(client)
        self.assertIn("upstream_error", client.events()[-1])

    def test_pings(self) -> None:
        """A comment line after 15 s of silence, and after each 15 s more; text puts it off."""
        client = self.open()
        self.one.provider.say("a")
        self.one.settle(client)
        self.one.advance(14, client)
        self.assertNotIn(b": ping", client.received)
        self.one.advance(1, client)
        self.assertEqual(client.received.count(b": ping\n\n"), 1)
        self.one.advance(14, client)
        self.one.provider.say("b")
        self.one.settle(client)
        self.one.advance(14, client)
        self.assertEqual(client.received.count(b": ping\n\n"), 1)
        self.one.advance(1, client)
        self.assertEqual(client.received.count(b": ping\n\n"), 2)
        self.assertEqual(client.text(), "ab")

    def test_done_means_committed(self) -> None:
        """Until the turn is on disk there is no finish chunk and no DONE; the plain answer waits too."""
        self.one.store.hold()
        stream, plain = self.open(), self.one.dial(post(chat()))
        self.one.provider.say("a")
        self.one.provider.stop()
        self.one.provider.say("b")
        self.one.provider.stop()
        self.one.settle(stream, plain)
        self.assertEqual((stream.text(), plain.received), ("a", b""))
        self.assertNotIn(b"[DONE]", stream.received)
        self.assertNotIn(b'"finish_reason":"stop"', stream.received)
        self.one.store.commit()
        self.one.settle(stream, plain)
        self.assertEqual(stream.events()[-1], "[DONE]")
        self.assertEqual(plain.answer().status, 200)

    def test_the_connection_is_kept(self) -> None:
        """After a stream the next request is served on the same connection."""
        client = self.open()
        for _ in range(2):
            self.one.provider.say("x")
            self.one.provider.stop()
            self.one.settle(client)
            self.assertEqual(client.answer().status, 200)
            client.send(post(chat(stream=True)))
        self.assertFalse(client.lost)


class FallbackTests(EndpointCase):
    """More than one model."""

    def setUp(self) -> None:
        super().setUp()
        self.two = self.gateway({"agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["fake/two"]}}}})

    def test_silent_before_the_first_delta(self) -> None:
        """The caller sees only the answer of the model that gave one."""
        for stream in (False, True):
            for error in (UpstreamError("x"), UpstreamTimeout("x"), RateLimited("x"), UpstreamError("y")):
                two = self.gateway({"agents": {"defaults": {"model": {"primary": "fake/one", "fallbacks": ["fake/two"]}}}})
                client = two.dial(post(chat(stream=stream)))
                two.provider.fail(error)
                two.provider.say("from two")
                two.provider.stop()
                two.settle(client)
                answer = client.answer()
                self.assertEqual(answer.status, 200)
                self.assertIn(b"from two", answer.body)
                self.assertNotIn(b"error", answer.body)
                self.assertEqual(two.provider.requests[-1].model.id, "two")
                self.assertEqual(two.store.turns[-1][1].model, "two")

    def test_also_after_the_head_is_sent(self) -> None:
        """The role chunk is no delta."""
        client = self.open(self.two)
        self.two.provider.answer()
        self.two.settle(client)
        self.two.provider.fail(UpstreamError("x"))
        self.two.provider.say("from two")
        self.two.provider.stop()
        self.two.settle(client)
        self.assertEqual((client.text(), client.events()[-1]), ("from two", "[DONE]"))
        self.assertEqual(client.received.count(b'"role":"assistant"'), 1)

    def test_never_after_a_delta(self) -> None:
        """What has been said cannot be taken back: an error event."""
        client = self.open(self.two)
        self.two.provider.say("half")
        self.two.provider.fail(UpstreamError("broken"))
        self.two.settle(client)
        self.assertEqual(len(self.two.provider.requests), 1)
        self.assertNotIn(b"[DONE]", client.received)

    def test_a_refusal_is_not_tried_elsewhere(self) -> None:
        """The next model would be asked the same."""
        client = self.two.dial(post(chat()))
        self.two.provider.fail(UpstreamRefused("no"))
        self.two.settle(client)
        self.assertEqual((client.answer().status, len(self.two.provider.requests)), (502, 1))


class ErrorTests(EndpointCase):
    """What goes wrong, before and after the first byte."""

    def test_before_the_first_byte(self) -> None:
        """A proper status, plain and streamed, with the error's own code; nothing was done, so nothing forbids a retry."""
        for error, status, code, kind in (
            (UpstreamError("x"), 502, "upstream_error", "api_error"),
            (UpstreamTimeout("x"), 504, "upstream_timeout", "api_error"),
            (RateLimited("x", retry_after=7), 429, "rate_limit_exceeded", "rate_limit_error"),
        ):
            for stream in (False, True):
                client = self.one.dial(post(chat(stream=stream)))
                self.one.provider.fail(error)
                self.one.settle(client)
                answer = client.answer()
                self.assertEqual((answer.status, answer.error["code"], answer.error["type"]), (status, code, kind))
                self.assertEqual(answer.headers["content-type"], "application/json")
                self.assertEqual(answer.headers.get("retry-after"), "7" if status == 429 else None)
                self.assertNotIn("x-should-retry", answer.headers)

    def test_quota(self) -> None:
        """A used-up quota does not come back by itself: `x-should-retry: false`."""
        client = self.one.dial(post(chat()))
        self.one.provider.fail(InsufficientQuota())
        self.one.settle(client)
        answer = client.answer()
        self.assertEqual((answer.status, answer.error["type"], answer.headers["x-should-retry"]), (429, "insufficient_quota", "false"))

    def test_after_text_a_plain_request_says_do_not_retry(self) -> None:
        """The run did something: the client must not repeat it by itself. The partial text is recorded."""
        client = self.one.dial(post(chat()))
        self.one.provider.say("half")
        self.one.provider.fail(UpstreamError("x"))
        self.one.settle(client)
        answer = client.answer()
        self.assertEqual((answer.status, answer.headers["x-should-retry"]), (502, "false"))
        result = self.one.store.turns[-1][1]
        self.assertEqual((result.outcome, result.text, result.error_code), ("error", "half", "upstream_error"))

    def test_in_a_stream(self) -> None:
        """An `error` event with OpenAI's error object; then a clean end without DONE; the connection is kept."""
        client = self.open()
        self.one.provider.say("half")
        self.one.provider.fail(UpstreamError("the provider broke off"))
        self.one.settle(client)
        answer = client.answer()
        event, _, data = answer.body.decode().split("\n\n")[-2].partition("\n")
        self.assertEqual(event, "event: error")
        error = json.loads(data.removeprefix("data: "))["error"]
        self.assertEqual(error, {"message": "the provider broke off", "type": "api_error", "param": None, "code": "upstream_error"})
        self.assertNotIn(b"[DONE]", answer.body)
        self.assertNotIn(b'"finish_reason":"stop"', answer.body)
        client.send(post({}))
        self.assertEqual(client.answer().status, 400)

    def test_a_defect(self) -> None:
        """500 without details, which are in the log; in a stream an error event."""
        for stream, spoken in ((False, False), (True, False), (True, True)):
            client = self.one.dial(post(chat(stream=stream)))
            if spoken:
                self.one.provider.say("half")
            self.one.provider.fail(ZeroDivisionError("inner secret"))
            self.one.settle(client)
            self.assertNotIn(b"inner secret", client.received)
            self.assertIn(b"internal_error", client.received)
            if not spoken:
                self.assertEqual(client.answer().status, 500)
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_the_store_fails(self) -> None:
        """Plain: 503 storage_unavailable with Retry-After. Streamed: an error event and no DONE. It recovers."""
        self.one.store.broken = True
        answer = self.ask(chat())
        self.assertEqual((answer.status, answer.error["code"], answer.headers["retry-after"]), (503, "storage_unavailable", "5"))
        self.assertEqual(answer.headers["x-should-retry"], "false")
        client = self.open()
        self.one.provider.say("text")
        self.one.provider.stop()
        self.one.settle(client)
        self.assertIn("storage_unavailable", client.events()[-1])
        self.assertNotIn(b"[DONE]", client.received)
        self.one.store.broken = False
        self.assertEqual(self.ask(chat()).status, 200)

    def test_the_history_cannot_be_read(self) -> None:
        """503 as well, before anything ran."""

        def unreadable(session: object) -> Deferred[Any]:
            failed: Deferred[Any] = Deferred()
            failed.errback(StorageUnavailable())
            return failed

        self.patch(self.one.store, "history", unreadable)
        answer = self.ask(chat(user="u"))
        self.assertEqual((answer.status, answer.error["code"]), (503, "storage_unavailable"))
        self.assertEqual(self.one.provider.requests, [])

    def test_the_time_limit(self) -> None:
        """504 run_timeout, not to be retried; in a stream an error event. Both are recorded."""
        gateway = self.gateway({"agents": {"defaults": {"timeoutSeconds": 30}}})
        plain, stream = gateway.dial(post(chat())), self.open(gateway)
        gateway.advance(30, plain, stream)
        gateway.settle(plain, stream)
        answer = plain.answer()
        self.assertEqual((answer.status, answer.error["code"], answer.headers["x-should-retry"]), (504, "run_timeout", "false"))
        self.assertIn("run_timeout", stream.events()[-1])
        self.assertEqual([result.outcome for _, result in gateway.store.turns], ["timeout", "timeout"])
        self.assertEqual(gateway.provider.closed, 2)

    def test_shutdown(self) -> None:
        """New requests are 503; after the grace live streams get `server_shutdown`, without DONE, and are recorded as aborted."""
        stream, plain = self.open(), self.one.dial(post(chat()))
        self.one.provider.say("half")
        self.one.settle(stream, plain)
        self.one.site.drain()
        self.one.runs.drain()
        late = self.ask(chat())
        self.assertEqual((late.status, late.headers["connection"], late.headers["retry-after"]), (503, "close", "2"))
        self.one.runs.abort_all()
        self.one.settle(stream, plain)
        self.assertIn("server_shutdown", stream.events()[-1])
        self.assertNotIn(b"[DONE]", stream.received)
        answer = plain.answer()
        self.assertEqual((answer.status, answer.error["code"]), (503, "server_shutdown"))
        self.assertEqual({result.outcome for _, result in self.one.store.turns}, {"aborted"})

    def test_draining_closes_what_is_idle(self) -> None:
        """Connections between requests go at once, others after their answer, which says so though it was asked before."""
        idle, busy, new = self.one.dial(head("GET", "/healthz") + b"\r\n"), self.one.dial(post(chat())), self.one.dial()
        self.one.site.drain()
        self.one.site.close_idle(new=False)
        self.one.settle(idle, busy, new)
        self.assertEqual((idle.lost, busy.lost, new.lost), (True, False, False))
        self.one.provider.stop()
        self.one.settle(busy)
        answer = busy.answer()
        self.assertEqual((answer.status, answer.headers["connection"], busy.lost), (200, "close", True))

    def test_aborted_by_somebody(self) -> None:
        """A run that is stopped from elsewhere is 422, which no client retries."""
        client = self.one.dial(post(chat()))
        (run_id,) = self.one.runs._live
        self.assertTrue(self.one.runs.abort(run_id, RunAborted()))
        self.one.settle(client)
        answer = client.answer()
        self.assertEqual((answer.status, answer.error["code"]), (422, "run_aborted"))


class QueueTests(EndpointCase):
    """Lanes, slots, the body budget."""

    def test_one_session_is_served_in_order(self) -> None:
        """The second request of a session waits for the first, and sees its turn."""
        first, second = (self.one.dial(post(chat(text, user="u"))) for text in ("one", "two"))
        self.assertEqual(len(self.one.provider.requests), 1)
        self.one.provider.say("uno")
        self.one.provider.stop()
        self.one.settle(first, second)
        self.assertEqual(first.answer().status, 200)
        self.assertEqual([message["content"] for message in self.one.provider.seen], ["one", "uno", "two"])
        self.one.provider.stop()
        self.one.settle(second)
        self.assertEqual(second.answer().status, 200)

    def test_sessions_do_not_wait_for_each_other(self) -> None:
        """Two users are answered side by side."""
        self.open(user="a")
        self.open(user="b")
        self.assertEqual(len(self.one.provider.requests), 2)

    def test_a_full_lane(self) -> None:
        """429 queue_full with Retry-After, at once; the others are served."""
        gateway = self.gateway({"gateway": {"limits": {"maxQueuedPerSession": 1}}})
        waiting = [gateway.dial(post(chat(user="u"))) for _ in range(2)]
        for stream in (False, True):
            answer = self.ask(chat(user="u", stream=stream), gateway=gateway)
            self.assertEqual((answer.status, answer.error["code"], answer.error["type"]), (429, "queue_full", "rate_limit_error"))
            self.assertEqual(answer.headers["retry-after"], "1")
        for client in waiting:
            gateway.provider.stop()
            gateway.settle(client)
            self.assertEqual(client.answer().status, 200)

    def test_too_many_runs(self) -> None:
        """Above `maxConcurrent` runs wait, above `maxQueuedRuns` they are refused."""
        gateway = self.gateway({"agents": {"defaults": {"maxConcurrent": 1}}, "gateway": {"limits": {"maxQueuedRuns": 1}}})
        first, second = gateway.dial(post(chat())), gateway.dial(post(chat()))
        self.assertEqual(len(gateway.provider.requests), 1)
        self.assertEqual(self.ask(chat(), gateway=gateway).error["code"], "queue_full")
        for client in (first, second):
            gateway.provider.stop()
            gateway.settle(client)
            self.assertEqual(client.answer().status, 200)

    def test_hundreds_that_wait_and_fail_at_once(self) -> None:
        """A long queue of requests that end as soon as their turn comes is worked off without recursion; nothing is lost of it."""
        gateway = self.gateway({"agents": {"defaults": {"maxConcurrent": 1}}, "gateway": {"limits": {"maxQueuedPerSession": 600}}})
        long = chat("word " * 20_000)
        first = gateway.dial(post(chat()))
        waiting = [gateway.dial(post(long)) for _ in range(300)] + [gateway.dial(post({**long, "user": "u"})) for _ in range(300)]
        gateway.provider.stop()
        gateway.settle(first, *waiting)
        self.assertEqual(first.answer().status, 200)
        self.assertEqual([client.answer().error["code"] for client in waiting], ["context_length_exceeded"] * 600)

    def test_watchers_hear_of_the_end_before_the_next_begins(self) -> None:
        """Runs of one session are serial for those who watch, too."""
        heard: list[tuple[str, str]] = []
        self.one.runs.watch(lambda run, events: heard.extend((bytes(run.turn.messages[0]).decode()[26:29], type(event).__name__) for event in events))
        clients = [self.one.dial(post(chat(text, user="u"))) for text in ("one", "two")]
        for client in clients:
            self.one.provider.stop()
            self.one.settle(client)
        self.assertEqual([name for _, name in heard].count("RunEnded"), 2)
        first_end = [name for _, name in heard].index("RunEnded")
        self.assertEqual([name for _, name in heard].index("RunStarted", 1), first_end + 1)

    def test_bodies_share_a_budget(self) -> None:
        """No room is 503, `Retry-After: 1`, `Connection: close`, the body unread; a share is kept until its run has ended."""
        body = post(chat("x" * 1000))
        size = len(body) - body.index(b"\r\n\r\n") - 4
        gateway = self.gateway({"gateway": {"limits": {"bodyBudget": size + 10}}})
        held = gateway.dial(body)
        self.assertEqual(gateway.bodies.free, 10)
        refused = gateway.dial(body[: body.index(b"\r\n\r\n") + 4])
        answer = refused.answer()
        self.assertEqual((answer.status, answer.error["code"]), (503, "unavailable"))
        self.assertEqual((answer.headers["retry-after"], answer.headers["connection"]), ("1", "close"))
        held.leave()
        self.assertEqual(gateway.bodies.free, 10)
        gateway.settle()
        self.assertEqual(gateway.bodies.free, size + 10)
        self.assertEqual(self.ask(chat("x" * 1000), gateway=gateway).status, 200)

    def test_a_chunked_body_takes_its_share_as_it_comes(self) -> None:
        """And is refused when there is none left."""
        gateway = self.gateway({"gateway": {"limits": {"bodyBudget": 1000}}})
        head = post(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        client = gateway.dial(head + b"258\r\n" + b" " * 600 + b"\r\n")
        self.assertEqual(gateway.bodies.free, 400)
        other = gateway.dial(head + b"258\r\n" + b" " * 600 + b"\r\n")
        self.assertEqual(other.answer().status, 503)
        self.assertEqual(gateway.bodies.free, 400)
        client.leave()
        self.assertEqual(gateway.bodies.free, 1000)


class LeavingTests(EndpointCase):
    """The client goes away, or is slow."""

    def test_in_a_stream(self) -> None:
        """The provider is closed within a second, the partial turn recorded as aborted, the budget and the lane free."""
        client = self.open(user="u")
        self.one.provider.say("half")
        self.one.settle(client)
        client.leave()
        self.one.settle()
        self.assertEqual(self.one.provider.closed, 1)
        turn, result = self.one.store.turns[0]
        self.assertEqual((result.outcome, result.text, result.error_code), ("aborted", "half", "run_aborted"))
        self.assertEqual(self.one.bodies.free, self.one.bodies.total)
        self.assertEqual((self.one.access[0].code, self.one.access[0].run), (499, turn.run_id))
        self.assertEqual(self.ask(chat(user="u")).status, 200)

    def test_during_the_commit(self) -> None:
        """Too late to cancel: the turn is ok, and its share of the budget comes back when it is on disk."""
        for stream in (False, True):
            self.one.store.hold()
            client = self.one.dial(post(chat(stream=stream)))
            self.one.provider.say("all")
            self.one.provider.stop()
            self.one.settle(client)
            client.leave()
            self.one.settle()
            self.assertLess(self.one.bodies.free, self.one.bodies.total)
            self.one.store.commit()
            self.one.settle()
            self.assertEqual(self.one.store.turns[-1][1].outcome, "ok")
            self.assertEqual(self.one.bodies.free, self.one.bodies.total)
            self.assertEqual(self.one.provider.closed, 0)

    def test_after_the_end(self) -> None:
        """Closing after DONE is no abort."""
        client = self.open()
        self.one.provider.say("all")
        self.one.provider.stop()
        self.one.settle(client)
        client.leave()
        self.assertEqual(
            [(line.code, result.outcome) for line, (_, result) in zip(self.one.access, self.one.store.turns, strict=True)], [(200, "ok")]
        )

    def test_a_slow_client_holds_the_model_back(self) -> None:
        """While its connection is paused nothing is taken from the provider; then it goes on where it was."""
        client = self.open()
        self.one.provider.say("a")
        self.one.settle(client)
        client.server.pauseProducing()
        for text in "bcd":
            self.one.provider.say(text)
        self.one.settle(client)
        self.assertEqual(self.one.provider.unread, 2)
        self.one.advance(60, client)
        self.assertNotIn(b": ping", client.received)
        client.server.resumeProducing()
        self.one.provider.stop()
        self.one.settle(client)
        self.assertEqual((client.text(), client.events()[-1]), ("abcd", "[DONE]"))

    def test_leaving_while_slow(self) -> None:
        """A paused client that goes is noticed like any other."""
        client = self.open()
        client.server.pauseProducing()
        self.one.provider.say("a")
        self.one.settle(client)
        client.leave()
        self.one.settle()
        self.assertEqual((self.one.provider.closed, self.one.store.turns[0][1].outcome), (1, "aborted"))

    def test_slow_at_the_end(self) -> None:
        """A stream whose client is slow when the model ends is completed and recorded when the client has caught up."""
        client = self.open()
        self.one.provider.say("a")
        self.one.settle(client)
        client.server.pauseProducing()
        self.one.provider.say("b")
        self.one.provider.stop()
        self.one.settle(client)
        self.assertEqual(self.one.store.turns, [])
        client.server.resumeProducing()
        self.one.settle(client)
        self.assertEqual(client.events()[-1], "[DONE]")
        self.assertEqual(self.one.store.turns[0][1].outcome, "ok")

    def test_the_end_is_not_taken(self) -> None:
        """A client that does not read the end of its stream is given the idle limit, and no more."""
        client = self.open()
        self.one.provider.say("a")
        self.one.settle(client)
        self.one.provider.stop()
        client.server.pauseProducing()
        self.one.settle(client)
        self.one.advance(59, client)
        self.assertFalse(client.lost)
        self.one.advance(1, client)
        self.assertTrue(client.lost)
        self.assertEqual(self.one.store.turns[0][1].outcome, "ok")

    def test_the_run_is_aborted_while_its_client_is_slow(self) -> None:
        """A pause does not keep a run from ending: the time limit holds."""
        gateway = self.gateway({"agents": {"defaults": {"timeoutSeconds": 30}}})
        client = self.open(gateway)
        gateway.provider.say("a")
        gateway.settle(client)
        client.server.pauseProducing()
        gateway.provider.say("b")
        gateway.settle(client)
        gateway.advance(30, client)
        gateway.settle(client)
        self.assertEqual(gateway.store.turns[0][1].outcome, "timeout")
        self.assertIn("run_timeout", client.events()[-1])


class SameRunTests(EndpointCase):
    """The door starts the same run as every other."""

    def test_watchers_see_it(self) -> None:
        """Whoever watches runs hears of this door's, from its start to its one end event."""
        heard: list[str] = []
        stop = self.one.runs.watch(lambda run, events: heard.extend(type(event).__name__ for event in events))
        self.ask(chat())
        stop()
        self.assertEqual(heard, ["RunStarted", "ModelAnswered", "TextDelta", "Usage", "TurnFinished", "RunEnded"])

    def test_the_record(self) -> None:
        """What is stored of a turn: the new messages, the outcome, the model, the usage, the caller's metadata."""
        self.ask(chat("hi", user="u", metadata={"ticket": "7"}), says="hello")
        turn, result = self.one.store.turns[0]
        self.assertEqual([json.loads(bytes(message)) for message in turn.messages], [{"role": "user", "content": "hi"}])
        self.assertEqual((turn.door, turn.metadata), ("chat", {"ticket": "7"}))
        self.assertEqual((result.outcome, result.text, result.finish_reason, result.model), ("ok", "hello", "stop", "one"))
        self.assertEqual(result.usage, Usage(input=7, output=3))

    def test_unused_events(self) -> None:
        """Batches with nothing for this door in them make no bytes."""
        client = self.open()
        self.one.provider.push([ModelAnswered("fake", "one")])
        self.one.settle(client)
        before = client.received
        self.one.provider.push([ReasoningDelta("hm")])
        self.one.provider.push([Usage(1, 1), TurnFinished("stop")])
        self.one.settle(client)
        self.assertEqual(client.received, before)
        self.one.provider.push(None)
        self.one.settle(client)
        self.assertEqual(client.events()[-1], "[DONE]")
