"""The methods `chat.*`: sending, stop words and slash commands, history, aborting, injecting."""

from __future__ import annotations

from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.keys import SessionKey
from mayros.core.session_ports import EntryMeta
from mayros.errors import Unavailable
from mayros.messages import Function, Message, ToolCall, pack
from mayros.ws.methods import commands
from mayros.ws.methods.chat import clean
from tests.helpers import SlowIdempotency
from tests.test_ws import ADMIN, READ, WRITE, World, agent_params, ask, tell

MAIN = "agent:main:main"


def send_params(message: str = "hello", **changes: Any) -> dict[str, Any]:
    """Good parameters of chat.send, changed."""
    return {"sessionKey": "main", "message": message, "idempotencyKey": "k-1", **changes}


class Base(SynchronousTestCase):
    """One client that may read and write."""

    def setUp(self) -> None:
        self.use(None)

    def use(self, changes: dict[str, Any] | None) -> None:
        self.world = World(self, changes)
        self.session, self.link = self.world.connect(READ, WRITE)
        self.admin, self.admin_link = self.world.connect(ADMIN)
        self.store = self.world.harness.store

    def send(self, message: str = "hello", **changes: Any) -> Any:
        """The answer of one chat.send; its events are in `self.events`."""
        tell(self.session, "chat.send", send_params(message, **changes))
        frames = self.link.take()
        self.events = [frame for frame in frames if frame["type"] == "event"]
        return next(frame for frame in frames if frame["type"] == "res")

    def settle(self, seconds: float = 0) -> None:
        """Let the reactor turn."""
        self.world.clock.advance(seconds)
        self.world.clock.advance(0)

    def chats(self) -> list[Any]:
        """The chat events since the last look."""
        return [frame["payload"] for frame in self.link.events("chat")]

    def administer(self, method: str, params: Any) -> Any:
        """One request of an administrator."""
        return ask(self.admin, self.admin_link, method, params)

    def answer_with(self, text: str) -> None:
        """The model says this and stops."""
        self.world.provider.say(text)
        self.world.provider.stop()
        self.settle()


class SendTests(Base):
    """A message to the agent."""

    def test_started_then_events(self) -> None:
        """Answered once, before its first event; what becomes of it is told in events under the same run id."""
        tell(self.session, "chat.send", send_params("hey"), id="s")
        self.answer_with("word")
        frames = self.link.take()
        self.assertEqual({"type": "res", "id": "s", "ok": True, "payload": {"runId": "k-1", "status": "started"}}, frames[0])
        self.assertEqual(1, sum(frame["type"] == "res" for frame in frames))
        chats = [frame["payload"] for frame in frames if frame.get("event") == "chat"]
        self.assertEqual("final", chats[-1]["state"])
        self.assertEqual({("k-1", MAIN)}, {(chat["runId"], chat["sessionKey"]) for chat in chats})
        self.assertEqual([{"type": "text", "text": "word"}], chats[-1]["message"]["content"])
        turn, _ = self.store.turns[-1]
        self.assertEqual((MAIN, "ws", 600.0), (str(turn.session), turn.door, turn.timeout_seconds))

    def test_the_text_is_cleaned(self) -> None:
        """Normal form C, no control characters but tab and line ends; NUL is refused."""
        self.send("cafe\u0301\x07\tone\r\ntwo\x7f")
        self.assertEqual("caf\u00e9\tone\r\ntwo", self.world.provider.seen[-1]["content"])
        self.assertEqual("message must not contain null bytes", self.send("a\x00b", idempotencyKey="k-2")["error"]["message"])
        self.assertEqual("x", clean("x"))

    def test_refused(self) -> None:
        """Each by its name, before anything starts."""
        for change, words in (
            ({"message": " \n"}, "message or attachment required"),
            ({"message": 5}, "at /message: must be string"),
            ({"sessionKey": ""}, "at /sessionKey: must NOT have fewer than 1 characters"),
            ({"sessionKey": "agent:main"}, "sessionKey is malformed"),
            ({"sessionKey": "x" * 600}, "at most 512 bytes"),
            ({"sessionKey": "agent:nobody:main"}, 'unknown agent id "nobody"'),
            ({"idempotencyKey": "no blanks"}, "at /idempotencyKey: "),
            ({"attachments": [{"content": "eA"}]}, "attachment attachment-1: invalid base64 content"),
            ({"thinking": "deeply"}, "invalid thinking (use off|minimal|low|medium|high|xhigh)"),
            ({"timeoutMs": -1}, "at /timeoutMs: must be >= 0"),
            ({"bad": 1}, "at root: unexpected property 'bad'"),
        ):
            error = self.send(**change)["error"]
            self.assertEqual("INVALID_REQUEST", error["code"])
            self.assertIn(words, error["message"])
        self.assertEqual({}, self.world.harness.idempotency.kept)

    def test_thinking_and_time_limit(self) -> None:
        """For this message only; the limit is in milliseconds, 0 is the longest."""
        self.send(thinking="High", timeoutMs=1500, deliver=True, attachments=[])
        self.answer_with("x")
        turn, _ = self.store.turns[-1]
        self.assertEqual(("high", 1.5), (turn.sampling.reasoning_effort, turn.timeout_seconds))
        self.send(thinking="off", timeoutMs=0, idempotencyKey="k-2")
        self.answer_with("x")
        turn, _ = self.store.turns[-1]
        self.assertEqual(("none", 86_400.0), (turn.sampling.reasoning_effort, turn.timeout_seconds))

    def test_repeats(self) -> None:
        """From any connection: in flight while it runs, then how it ended; never a second run."""
        other, link = self.world.connect(WRITE)
        self.send()
        self.assertEqual({"runId": "k-1", "status": "in_flight"}, ask(other, link, "chat.send", send_params())["payload"])
        self.answer_with("once")
        self.keep_answer()
        self.assertEqual({"runId": "k-1", "status": "ok"}, ask(other, link, "chat.send", send_params())["payload"])
        self.assertEqual(1, len(self.world.provider.requests))
        error = ask(other, link, "chat.send", send_params("other words"))["error"]
        self.assertEqual({"code": "idempotency_key_reused"}, error["details"])

    def keep_answer(self) -> None:
        """What the store does together with the turn."""
        kept = self.world.harness.idempotency.kept
        digest, run_id, _ = kept["ws:chat:owner", "k-1"]
        kept["ws:chat:owner", "k-1"] = (digest, run_id, self.store.turns[-1][1])

    def test_a_repeat_of_what_failed(self) -> None:
        """The error again, with its payload."""
        self.send()
        self.world.provider.fail(Unavailable("The model is on fire."))
        self.settle()
        self.keep_answer()
        answer = self.send()
        self.assertEqual(("UNAVAILABLE", "The model is on fire."), (answer["error"]["code"], answer["error"]["message"]))
        self.assertEqual({"runId": "k-1", "status": "error", "summary": "The model is on fire.", "outcome": "error"}, answer["payload"])

    def test_a_busy_session(self) -> None:
        """A second message waits in the lane and is answered under its own run id, with its own text."""
        self.send("first")
        self.assertEqual("started", self.send("second", idempotencyKey="k-2")["payload"]["status"])
        self.answer_with("one")
        self.answer_with("two")
        finals = {chat["runId"]: chat["message"]["content"][0]["text"] for chat in self.chats() if chat["state"] == "final"}
        self.assertEqual({"k-1": "one", "k-2": "two"}, finals)

    def test_refused_before_it_began(self) -> None:
        """The gateway stops: an error instead of `started`, and the key is free."""
        self.world.harness.runs.drain()
        error = self.send()["error"]
        self.assertEqual(("UNAVAILABLE", True), (error["code"], error["retryable"]))
        self.assertEqual({}, self.world.harness.idempotency.kept)

    def test_send_policy(self) -> None:
        """A session may be closed for messages; its key is not used up."""
        self.administer("sessions.patch", {"key": "main", "sendPolicy": "deny"})
        self.assertEqual("send blocked by session policy", self.send()["error"]["message"])
        self.administer("sessions.patch", {"key": "main", "sendPolicy": None})
        self.assertEqual("started", self.send()["payload"]["status"])

    def test_scopes(self) -> None:
        """Sending and aborting need write, history read, injecting admin."""
        session, link = self.world.connect(READ)
        for method, missing in (("chat.send", WRITE), ("chat.abort", WRITE), ("chat.inject", ADMIN)):
            self.assertEqual(f"missing scope: {missing}", ask(session, link, method, {})["error"]["message"])
        self.assertTrue(ask(session, link, "chat.history", {"sessionKey": "main"})["ok"])
        session, link = self.world.connect()
        self.assertEqual(f"missing scope: {READ}", ask(session, link, "chat.history", {})["error"]["message"])


class AbortTests(Base):
    """Stopping what runs."""

    def test_by_session(self) -> None:
        """The one that thinks and those that wait, of `agent` too; the key need not be spelled as it was sent."""
        self.send()
        tell(self.session, "agent", agent_params(idempotencyKey="k-2"), id="a")
        self.world.provider.say("half")
        self.settle()
        self.link.take()
        answer = ask(self.session, self.link, "chat.abort", {"sessionKey": MAIN})
        self.assertEqual({"ok": True, "aborted": True, "runIds": ["k-1", "k-2"]}, answer["payload"])
        self.settle()
        frames = self.link.take()
        ends = {f["payload"]["runId"]: f["payload"]["data"] for f in frames if f.get("event") == "agent" and f["payload"]["stream"] == "lifecycle"}
        self.assertEqual({"k-1": True, "k-2": True}, {run_id: data["aborted"] for run_id, data in ends.items()})
        chats = {frame["payload"]["runId"]: frame["payload"] for frame in frames if frame.get("event") == "chat"}
        self.assertEqual(("aborted", "rpc"), (chats["k-1"]["state"], chats["k-1"]["stopReason"]))
        self.assertEqual("half", chats["k-1"]["message"]["content"][0]["text"])
        self.assertEqual(1, len(self.world.provider.requests), "the one that waited never began")

    def test_by_run(self) -> None:
        """One of several; the others go on."""
        self.send()
        self.send(idempotencyKey="k-2")
        answer = ask(self.session, self.link, "chat.abort", {"sessionKey": "main", "runId": "k-2"})
        self.assertEqual(["k-2"], answer["payload"]["runIds"])
        self.settle()
        self.assertIsNotNone(self.world.harness.runs.get("k-1"))
        self.assertIsNone(self.world.harness.runs.get("k-2"))

    def test_nothing_to_abort(self) -> None:
        """An unknown run, an idle session, a run of another session."""
        for params in ({"sessionKey": "main"}, {"sessionKey": "main", "runId": "nobody"}):
            self.assertEqual({"ok": True, "aborted": False, "runIds": []}, ask(self.session, self.link, "chat.abort", params)["payload"])
        self.send()
        error = ask(self.session, self.link, "chat.abort", {"sessionKey": "other", "runId": "k-1"})["error"]
        self.assertEqual(("INVALID_REQUEST", "runId does not match sessionKey"), (error["code"], error["message"]))

    def test_stop_words(self) -> None:
        """A message that is only such a word aborts and is answered like chat.abort; inside a sentence it is a word."""
        for word in ("/stop", "STOP", " esc ", "abort", "wait", "exit", "interrupt"):
            self.send("go on", idempotencyKey=f"run-{word.strip('/ ')}")
            answer = self.send(word, idempotencyKey=f"stop-{word.strip('/ ')}")
            self.assertEqual({"ok": True, "aborted": True, "runIds": [f"run-{word.strip('/ ')}"]}, answer["payload"])
            self.settle()
            self.assertEqual(["stop"], [chat["stopReason"] for chat in self.chats() if chat["state"] == "aborted"])
        self.assertEqual("started", self.send("wait a moment", idempotencyKey="k-9")["payload"]["status"])

    def test_a_committing_run_is_not_aborted(self) -> None:
        """Its turn is already on the way to the disk."""
        self.store.hold()
        self.send()
        self.answer_with("done")
        self.assertIs(False, ask(self.session, self.link, "chat.abort", {"sessionKey": "main"})["payload"]["aborted"])
        self.store.commit()
        self.assertEqual("ok", self.store.turns[-1][1].outcome)


class CommandTests(Base):
    """What no model answers."""

    def final(self) -> str:
        """The text of the command's one chat event, sent with its answer."""
        (chat,) = [event["payload"] for event in self.events if event["event"] == "chat" and event["payload"]["runId"] == "k-1"]
        self.assertEqual((MAIN, "final"), (chat["sessionKey"], chat["state"]))
        text: str = chat["message"]["content"][0]["text"]
        return text

    def test_which_messages_are_commands(self) -> None:
        """A slash and a word, alone or before blanks or a colon; a path is none."""
        self.assertEqual(("new", "do it"), commands.parse(" /New do it\n"))
        self.assertEqual(("think", "high"), commands.parse("/think: high"))
        for text in ("new", "/usr/bin is full", "/ x", "//", "a /new", "/2 things"):
            self.assertIsNone(commands.parse(text), text)

    def test_help_and_status(self) -> None:
        """Started, then a final with the reply, which is in the transcript afterwards."""
        self.assertEqual("started", self.send("/help")["payload"]["status"])
        self.assertIn("/status", self.final())
        answer = self.send("/status", idempotencyKey="k-2")
        self.assertTrue(answer["ok"])
        (told,) = [event["payload"]["message"]["content"][0]["text"] for event in self.events if event["event"] == "chat"]
        for words in ("Session: agent:main:main", "Model: fake/one", "8,192 tokens", "Runs: 0"):
            self.assertIn(words, told)
        history = ask(self.session, self.link, "chat.history", {"sessionKey": "main"})["payload"]["messages"]
        self.assertEqual(["assistant", "assistant"], [message["role"] for message in history])
        self.assertEqual(("mayros", "gateway-injected"), (history[0]["provider"], history[0]["model"]))
        self.assertEqual([], self.world.provider.requests)

    def test_commands_that_are_not_there_yet(self) -> None:
        """A reply that says so, not a run."""
        self.send("/model fake/two")
        self.assertEqual("The command /model is not available yet. /help lists those that are.", self.final())

    def test_new(self) -> None:
        """A new session id, the old messages gone from the prompt, and a short reply instead of a run."""
        self.send("hello", idempotencyKey="k-0")
        self.answer_with("hi")
        old = self.store.rows[MAIN].session_id
        self.send("/new")
        self.assertEqual("New session started.", self.final())
        self.assertNotEqual(old, self.store.rows[MAIN].session_id)
        self.assertEqual(1, len(self.world.provider.requests))

    def test_new_with_a_message(self) -> None:
        """What follows is the first message of the new session, under the same run id."""
        self.send("hello", idempotencyKey="k-0")
        self.answer_with("hi")
        self.link.take()
        self.assertEqual({"runId": "k-1", "status": "started"}, self.send("/reset do  this")["payload"])
        self.assertEqual([{"role": "user", "content": "do  this"}], self.world.provider.seen)
        self.answer_with("done")
        self.assertEqual([("k-1", "final")], [(chat["runId"], chat["state"]) for chat in self.chats() if chat["state"] == "final"])

    def test_new_while_something_runs(self) -> None:
        """It is aborted first, and recorded in the session that it belongs to."""
        self.send("hello", idempotencyKey="k-0")
        self.world.provider.say("half")
        self.settle()
        self.link.take()
        self.assertEqual("started", self.send("/new")["payload"]["status"])
        self.settle()
        states = {chat["runId"]: chat["state"] for chat in self.chats()}
        self.assertEqual({"k-0": "aborted", "k-1": "final"}, states)
        self.assertEqual("aborted", self.store.turns[-1][1].outcome)
        self.assertEqual(1, len(self.store.entries[MAIN]), "the reply alone")

    def test_what_follows_a_reset_at_once(self) -> None:
        """Messages that were sent behind it without waiting belong to the new session, in their order."""
        self.send("hello", idempotencyKey="k-0")
        for number, text in enumerate(("/new", "one", "two"), 1):
            tell(self.session, "chat.send", send_params(text, idempotencyKey=f"k-{number}"))
        self.settle()
        self.settle()
        for answer in ("first", "second"):
            self.answer_with(answer)
        self.assertEqual(["k-0", "k-2", "k-3"], [result.run_id for _, result in self.store.turns])
        self.assertEqual(["aborted", "ok", "ok"], [result.outcome for _, result in self.store.turns])
        self.assertEqual(["New session started.", "one", "first", "two"], [message["content"] for message in self.world.provider.seen])
        self.assertEqual({}, self.world.gateway.starting)

    def test_a_session_that_stays_active(self) -> None:
        """After 15 seconds the command fails in an event; its key is free again."""
        self.send("hello", idempotencyKey="k-0")
        self.store.hold()
        self.answer_with("slow disk")
        self.link.take()
        self.assertEqual("started", self.send("/new")["payload"]["status"])
        self.settle(15)
        (chat,) = [chat for chat in self.chats() if chat["runId"] == "k-1"]
        self.assertEqual(("error", f"Session {MAIN} is still active; try again in a moment."), (chat["state"], chat["errorMessage"]))
        self.assertNotIn(("ws:chat:owner", "k-1"), self.world.harness.idempotency.kept)
        self.store.commit()
        self.assertEqual("started", self.send("/new")["payload"]["status"])
        self.assertEqual("New session started.", self.final())

    def test_a_command_is_done_once(self) -> None:
        """A repeat of its key is answered from the first."""
        self.send("/new")
        first = self.store.rows[MAIN].session_id
        self.assertEqual({"runId": "k-1", "status": "ok"}, self.send("/new")["payload"])
        self.assertEqual(([], first), (self.events, self.store.rows[MAIN].session_id))

    def test_answered_at_once_in_a_busy_session(self) -> None:
        """The reply does not wait for the run; it goes into the transcript after it."""
        self.send("hello", idempotencyKey="k-0")
        self.send("/status")
        self.assertIn("Runs: 1", self.final())
        self.assertNotIn(MAIN, self.store.entries)
        self.answer_with("hi")
        self.assertEqual(["k-0", "k-0", "k-1"], [entry.run_id for entry in self.store.entries[MAIN]])

    def test_the_client_leaves(self) -> None:
        """The command is done all the same."""
        keys = self.world.gateway.idempotency = SlowIdempotency()
        tell(self.session, "chat.send", send_params("/new"))
        self.session.closed()
        keys.go()
        self.assertEqual("s-new-1", self.store.rows[MAIN].session_id)

    def test_the_store_fails(self) -> None:
        """After `started`, an event says so; nothing is left of the key."""
        self.world.harness.sessions.broken = True
        self.assertEqual("UNAVAILABLE", self.send("/help")["error"]["code"])
        self.assertEqual({}, self.world.harness.idempotency.kept)


class HistoryTests(Base):
    """What was said."""

    def history(self, **params: Any) -> Any:
        return ask(self.session, self.link, "chat.history", {"sessionKey": "main", **params})["payload"]

    def put(self, message: Message | msgspec.Raw, meta: EntryMeta | None = None) -> None:
        """One entry of the main session, as the store has it."""
        if MAIN not in self.store.rows:
            self.successResultOf(Deferred.fromCoroutine(self.world.harness.sessions.patch(SessionKey("main", "main"), {})))
        self.store.add(MAIN, message if isinstance(message, msgspec.Raw) else pack(message), "r", 5, meta)

    def test_the_shape(self) -> None:
        """The words of transcripts, oldest first; the key as it was sent."""
        self.send("hello there")
        self.answer_with("word")
        self.link.take()
        payload = self.history()
        self.assertEqual(("main", f"s-{MAIN}", "off"), (payload["sessionKey"], payload["sessionId"], payload["thinkingLevel"]))
        user, assistant = payload["messages"]
        self.assertEqual({"role": "user", "content": [{"type": "text", "text": "hello there"}], "timestamp": 1_000_000}, user)
        self.assertEqual(
            {
                "role": "assistant", "content": [{"type": "text", "text": "word"}], "api": "openai-completions", "provider": "fake",
                "model": "one", "stopReason": "stop", "timestamp": 1_000_000,
            },
            assistant,
        )  # fmt: skip

    def test_an_unknown_session(self) -> None:
        """No messages, no error, also for an agent that is not there any more."""
        for key in ("nothing", "agent:gone:main"):
            self.assertEqual({"sessionKey": key, "messages": [], "thinkingLevel": "off"}, self.history(sessionKey=key))

    def test_settings_are_told(self) -> None:
        """What the session has set."""
        self.administer("sessions.patch", {"key": "main", "thinkingLevel": "high", "verboseLevel": "full"})
        payload = self.history()
        self.assertEqual(("high", "full"), (payload["thinkingLevel"], payload["verboseLevel"]))

    def test_limits(self) -> None:
        """The newest ones; 1 to 1,000."""
        for number in range(5):
            self.put(Message("user", f"m{number}"))
        texts = [message["content"][0]["text"] for message in self.history(limit=2)["messages"]]
        self.assertEqual(["m3", "m4"], texts)
        for limit in (0, 1001, "5"):
            error = ask(self.session, self.link, "chat.history", {"sessionKey": "main", "limit": limit})["error"]
            self.assertIn("invalid chat.history params: at /limit: must be", error["message"])

    def test_how_turns_ended(self) -> None:
        """Aborted and failed ones say so; a tool's call and its answer have the transcript's names."""
        self.put(Message("assistant", "half"), EntryMeta(outcome="aborted"))
        self.put(Message("assistant", ""), EntryMeta(outcome="error", error_code="upstream_timeout"))
        self.put(Message("assistant", None, tool_calls=(ToolCall("c1", Function("ls", "{}")),)), EntryMeta(outcome="ok", finish_reason="tool_calls"))
        self.put(Message("tool", "files", tool_call_id="c1"))
        aborted, failed, call, result = self.history()["messages"]
        self.assertEqual(("aborted", {"aborted": True, "runId": "r"}), (aborted["stopReason"], aborted["mayrosAbort"]))
        self.assertEqual(("error", []), (failed["stopReason"], failed["content"]))
        self.assertIn("did not answer in time", failed["errorMessage"])
        self.assertEqual(([{"type": "toolCall", "id": "c1", "name": "ls", "arguments": "{}"}], "toolUse"), (call["content"], call["stopReason"]))
        self.assertEqual(("toolResult", "c1"), (result["role"], result["toolCallId"]))

    def test_long_texts_are_cut(self) -> None:
        """At 12,000 characters, with a mark."""
        self.put(Message("user", "x" * 12_000))
        self.put(Message("user", "y" * 12_001))
        whole, cut = (message["content"][0]["text"] for message in self.history()["messages"])
        self.assertEqual(("x" * 12_000, "y" * 12_000 + "\n...(truncated)..."), (whole, cut))

    def test_large_messages_give_way(self) -> None:
        """More than 128 KiB, or no message at all: a marker in its place."""
        self.put(Message("assistant", None, tool_calls=tuple(ToolCall(f"c{n}", Function("f", "z" * 12_000)) for n in range(20))))
        self.put(msgspec.Raw(b'{"role":"king"}'))
        large, damaged = self.history()["messages"]
        self.assertEqual("[chat.history omitted: message too large]", large["content"][0]["text"])
        self.assertEqual({"truncated": True, "reason": "oversized"}, large["__mayros"])
        self.assertEqual("unreadable", damaged["__mayros"]["reason"])

    def test_the_whole_is_bounded(self) -> None:
        """6 MiB: the oldest are left out."""
        for _ in range(600):
            self.put(Message("user", "x" * 12_000))
        messages = self.history(limit=1000)["messages"]
        one = len(msgspec.json.encode(messages[0])) + 1
        self.assertEqual(6 * 1024 * 1024 // one, len(messages))


class InjectTests(Base):
    """A message that no model wrote."""

    def test_it_is_kept_and_told(self) -> None:
        """In the transcript and as a final event, with its label; the next prompt has it."""
        self.send()
        self.answer_with("hi")
        self.link.take()
        payload = self.administer("chat.inject", {"sessionKey": "main", "message": "by hand", "label": "note"})["payload"]
        (chat,) = self.chats()
        self.assertEqual((f"inject-{payload['messageId']}", 0, "final", MAIN), tuple(chat[k] for k in ("runId", "seq", "state", "sessionKey")))
        self.assertEqual("[note]\n\nby hand", chat["message"]["content"][0]["text"])
        newest = ask(self.session, self.link, "chat.history", {"sessionKey": "main", "limit": 1})["payload"]["messages"][0]
        self.assertEqual(("assistant", "gateway-injected", "openai-responses"), (newest["role"], newest["model"], newest["api"]))
        self.send(idempotencyKey="k-2")
        self.assertEqual("[note]\n\nby hand", self.world.provider.seen[-2]["content"])

    def test_refused(self) -> None:
        """Only into a session that is there, and not while it thinks for long."""
        for params, words in (
            ({"sessionKey": "nothing", "message": "x"}, "session not found"),
            ({"sessionKey": "main", "message": ""}, "must NOT have fewer than 1 characters"),
            ({"sessionKey": "main", "message": "x", "label": "l" * 101}, "must NOT have more than 100 characters"),
        ):
            self.assertIn(words, self.administer("chat.inject", params)["error"]["message"])
        self.send()
        tell(self.admin, "chat.inject", {"sessionKey": "main", "message": "x"})
        self.admin_link.take()
        self.settle(15)
        (error,) = [frame["error"] for frame in self.admin_link.take() if frame["type"] == "res"]
        self.assertEqual(("UNAVAILABLE", True), (error["code"], error["retryable"]))
        self.assertIn("is still active", error["message"])
        self.assertIsNotNone(self.world.harness.runs.get("k-1"), "nothing was aborted for it")
