"""A recorded conversation on protocol 3, played again: the same requests in the same order, and answers and events of the same shapes.

`data/ws-protocol3-trace.txt` is what another gateway of this protocol said to a client with a device (`>>` the client, `<<` the gateway; cut in
places, which `... 4 more` marks). A shape is keys and types, all the way down; of errors code and text are compared as well. Each difference is
listed in DIFFERENCES with its reason, and one that is listed but is not there fails the test too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mayros.ops.health import Health
from mayros.storage.overview import Overview
from mayros.ws.methods.table import METHODS
from tests.helpers import TOKEN
from tests.test_ws import World
from tests.test_ws_logs import log_of

TRACE = Path(__file__).with_name("data") / "ws-protocol3-trace.txt"
#: What the trace asks for and this gateway does not offer yet; the answer is then `unknown method`.
NOT_YET: set[str] = set()
#: What the recorded gateway did not have.
NEWER = {"tools.catalog"}
#: What this version of the gateway has to offer, in the trace or not.
OFFERED = {
    "": "health status agent system-presence last-heartbeat",
    "agent.": "wait identity.get",
    "chat.": "send history abort inject",
    "sessions.": "list preview resolve patch reset delete",
    "logs.": "tail",
    "models.": "list",
    "agents.": "list create update delete files.list files.get files.set",
    "config.": "get schema set patch apply change",
    "device.": "pair.list pair.approve pair.reject pair.remove token.rotate token.revoke",
}
_HEALTH = r"(connect/payload/snapshot/health|event health/payload|health/payload)"
_TOKENS = r"/(cacheRead|cacheWrite)"
#: A pattern of paths (the method or the kind of event first), and why it is so.
DIFFERENCES: dict[str, str] = {
    r"agent/payload/result/meta/agentMeta/usage" + _TOKENS + ": more": "all four counts are told",
    r"agent/payload/result/meta/stopReason: more": "why the model stopped",
    r"config\.get/payload/(raw|parsed|resolved|config): more": "cut from the recording",
    r"connect/payload/canvasHostUrl: missing": "there is no canvas host",
    _HEALTH + r"/(channels|channelOrder|channelLabels): more": "as documented, empty; the recorded gateway had no channel and left them out",
    _HEALTH + r"/agents\[\]/heartbeat/(prompt: more|everyMs: null, not number)": "there are no heartbeats yet",
    _HEALTH + r"/(agents\[\]/)?sessions/recent: empty": "clients without any scope see it: sessions are counted, and not named",
    r"status/payload/heartbeat/agents\[\]/everyMs: null, not number": "there are no heartbeats yet",
    r"status/payload/config: more": "how the last reading of the configuration went",
    r"status/payload/gateway: more": "how the gateway as a whole is",
    r"status/payload/channelSummary: more": "as documented, empty; cut from the recording",
    r"status/payload/sessions/(byAgent\[\]/)?recent\[\]" + _TOKENS + ": more": "all four counts are told",
    r"status/payload/sessions/(byAgent\[\]/)?recent\[\]/systemSent: more": "told of every session",
    r"sessions\.list/payload/sessions\[\]" + _TOKENS + ": more": "all four counts are told",
    r"sessions\.list/payload/sessions\[\]/(chatType|systemSent): more": "told of every session; there only of those of the WebSocket door",
    r"sessions\.patch/payload/entry" + _TOKENS + ": more": "all four counts are told",
    r"sessions\.patch/payload/entry/(deliveryContext|lastChannel|origin): missing": "there are no channels",
    r"sessions\.patch/payload/entry/sessionFile: missing": "transcripts are in the store, not in files",
    r"sessions\.patch/payload/resolved: more": "as documented; cut from the recording",
    r"sessions\.reset/payload/entry/(chatType|modelProvider): more": "an entry has the same keys after a reset as after a patch",
    r"sessions\.reset/payload/entry/(lastChannel|origin): missing": "there are no channels",
    r"event agent lifecycle end/payload/data/(outcome|startedAt): more": "how the run ended, and when it began",
    r"event agent lifecycle end/payload/data/(aborted|error): more": "of an aborted run, for which the recorded gateway sent no such event",
    r"event chat delta/payload/deltaText: more": "what is new, as on protocol 4",
    r"event health/seq: missing": "a new connection's own health event has no number; the recorded gateway sent it to everybody",
}


def kind_of(value: object) -> str:
    """The JSON type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    return {str: "string", dict: "object", list: "array"}[type(value)]


def differences(recorded: Any, own: Any, path: str) -> Iterator[str]:
    """Where two values have other keys or types. Of lists, each own element is compared with all recorded ones together."""
    if kind_of(recorded) != kind_of(own):
        yield f"{path}: {kind_of(own)}, not {kind_of(recorded)}"
    elif isinstance(recorded, dict):
        yield from _keys([recorded], own, path)
    elif isinstance(recorded, list):
        examples = [item for item in recorded if not (isinstance(item, str) and item.startswith("..."))]
        if examples and not own:
            yield f"{path}: empty"
        for item in own if examples else ():
            if isinstance(item, dict) and all(isinstance(example, dict) for example in examples):
                yield from _keys(examples, item, f"{path}[]")
            elif kind_of(item) not in set(map(kind_of, examples)):
                yield f"{path}[]: {kind_of(item)}"


def _keys(examples: list[dict[str, Any]], own: dict[str, Any], path: str) -> Iterator[str]:
    """A key that all examples have must be there, and none that no example has."""
    for name in dict.fromkeys(name for example in examples for name in example):
        having = [example[name] for example in examples if name in example]
        if name in own:
            found = [list(differences(value, own[name], f"{path}/{name}")) for value in having]
            yield from min(found, key=len)
        elif len(having) == len(examples):
            yield f"{path}/{name}: missing"
    for name in own:
        if not any(name in example for example in examples):
            yield f"{path}/{name}: more"


def kind_of_event(frame: dict[str, Any]) -> str:
    """What an event is about: two of one kind have one shape."""
    payload = frame["payload"]
    detail = {"agent": lambda: f" {payload['stream']} {payload['data'].get('phase', '')}".rstrip(), "chat": lambda: f" {payload['state']}"}
    return "event " + frame["event"] + detail.get(frame["event"], lambda: "")()


def recording() -> list[tuple[bool, dict[str, Any]]]:
    """The trace: whether the client speaks, and the frame."""
    lines = TRACE.read_text(encoding="utf-8").splitlines()
    return [(line.startswith(">>"), json.loads(line[3:])) for line in lines if line]


class Player:
    """A client that says what the recorded one said. `frames` is everything that it heard."""

    def __init__(self, test: SynchronousTestCase) -> None:
        self.world = World(test, {"agents": {"list": [{"id": "main"}]}})
        # As in the recording there is one session already, of the other door.
        self.world.harness.serve(text="word")
        health = Health(lambda: self.world.harness.settings, self.overview, self.world.clock, self.world.now_ms)
        self.world.gateway.health = health.payload
        self.world.gateway.tail = log_of("one", "two", "three")
        test.successResultOf(Deferred.fromCoroutine(health.refresh()))
        self.session, self.link = self.world.dial()
        self.frames: list[dict[str, Any]] = []

    def play(self, requests: list[dict[str, Any]]) -> None:
        """All of it. A run speaks when everybody who waits for it has asked."""
        for request, after in zip(requests, [*requests[1:], {"method": ""}], strict=True):
            self.listen()
            if request["method"] == "connect":
                request = {**request, "params": self.signed(request["params"])}
            if request["method"] == "chat.abort":
                self.hang(request["params"]["sessionKey"])
            self.say(request)
            if after["method"] != "agent.wait":
                self.speak()
        self.listen()

    def overview(self) -> Deferred[Overview]:
        """The sessions there are, for `health`."""
        rows = [row for row in self.world.harness.store.rows.values() if row.agent_id == "main"]
        return succeed({"main": len(rows)})

    def say(self, request: dict[str, Any]) -> None:
        """Send one request."""
        self.session.received(json.dumps(request).encode(), False)
        self.listen()

    def listen(self) -> None:
        """Hear what was sent."""
        self.world.clock.advance(0)
        self.frames += self.link.take()

    def hang(self, session_key: str) -> None:
        """The recorded gateway aborted a run that had ended; here one that goes on is needed."""
        params = {"sessionKey": session_key, "message": "a long story", "idempotencyKey": "not-in-the-trace"}
        self.say({"type": "req", "id": "not-in-the-trace", "method": "chat.send", "params": params})

    def speak(self) -> None:
        """The model answers those that ask it: eight words, in three pieces."""
        harness = self.world.harness
        while harness.runs.live():
            for texts in (["word"], [" word"], [" word"] * 6):
                harness.provider.say(*texts)
                self.world.clock.advance(0.2)
            harness.provider.stop()
            self.listen()
        # The store keeps the answer of a key together with its turn.
        results = {turn.run_id: result for turn, result in harness.store.turns}
        for key, (digest, run_id, answer) in harness.idempotency.kept.items():
            harness.idempotency.kept[key] = (digest, run_id, answer or results.get(run_id))

    def signed(self, params: dict[str, Any]) -> dict[str, Any]:
        """The same parameters with the secret, nonce and time of this gateway, signed as v2 by a key of our own."""
        (challenge,) = [frame["payload"] for frame in self.frames if frame.get("event") == "connect.challenge"]
        key = Ed25519PrivateKey.generate()
        raw = key.public_key().public_bytes_raw()
        device = {"id": hashlib.sha256(raw).hexdigest(), "publicKey": _text(raw), "signedAt": challenge["ts"], "nonce": challenge["nonce"]}
        client, scopes = params["client"], ",".join(params["scopes"])
        fields = ("v2", device["id"], client["id"], client["mode"], params["role"], scopes, challenge["ts"], TOKEN, challenge["nonce"])
        signature = _text(key.sign("|".join(map(str, fields)).encode()))
        return {**params, "auth": {"token": TOKEN}, "device": {**device, "signature": signature}}

    def answers(self, request_id: str) -> list[dict[str, Any]]:
        """The responses to one request."""
        return [frame for frame in self.frames if frame["type"] == "res" and frame["id"] == request_id]


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


class TraceTests(SynchronousTestCase):
    """The conversation."""

    def setUp(self) -> None:
        self.recorded = recording()
        self.requests = [frame for asks, frame in self.recorded if asks]
        self.player = Player(self)
        self.player.play(self.requests)

    def found(self) -> Iterator[str]:
        """All differences, with the method or the kind of event before the path."""
        heard = [frame for asks, frame in self.recorded if not asks]
        for request in self.requests:
            method = request["method"]
            recorded = [frame for frame in heard if frame["type"] == "res" and frame["id"] == request["id"]]
            own = self.player.answers(request["id"])
            if method in NOT_YET:
                self.assertEqual(f"unknown method: {method}", own[0]["error"]["message"])
                continue
            if method in NEWER:
                self.assertTrue(own[0]["ok"])
                continue
            self.assertEqual(len(recorded), len(own), f"{method}: {own}")
            for theirs, ours in zip(recorded, own, strict=True):
                yield from differences(theirs, ours, method)
                if "error" in theirs:
                    self.assertEqual(theirs["error"], {name: ours["error"][name] for name in ("code", "message")})
        for kind in dict.fromkeys(kind_of_event(frame) for frame in heard if frame["type"] == "event"):
            recorded, own = (
                [frame for frame in frames if frame["type"] == "event" and kind_of_event(frame) == kind] for frames in (heard, self.player.frames)
            )
            if not own:
                yield f"{kind}: missing"
            for frame in own:
                yield from _keys(recorded, frame, kind)

    def test_shapes(self) -> None:
        """The recorded answers and events have the shapes of ours, but for what is listed."""
        found = set(self.found())
        unlisted = sorted(one for one in found if not any(re.fullmatch(pattern, one) for pattern in DIFFERENCES))
        unseen = sorted(pattern for pattern in DIFFERENCES if not any(re.fullmatch(pattern, one) for one in found))
        self.assertEqual(([], []), (unlisted, unseen), "\n".join(("", "not listed:", *unlisted, "listed, but not there:", *unseen)))

    def test_every_method_is_offered(self) -> None:
        """What this version promises, and what the trace asks for, is answered and advertised."""
        hello = self.player.answers(self.requests[0]["id"])[0]["payload"]
        self.assertEqual([], [prefix + name for prefix, names in OFFERED.items() for name in names.split() if prefix + name not in METHODS])
        self.assertEqual(sorted(METHODS), sorted(hello["features"]["methods"]))
        asked = {request["method"] for request in self.requests} - {"connect", "nosuch.method"} - NOT_YET
        self.assertEqual([], sorted(asked - set(METHODS)))
        self.assertEqual([], sorted(NOT_YET & set(METHODS)))

    def test_the_story(self) -> None:
        """What was said: both runs answered with the model's words, the history holds them, the last run was aborted."""
        by_method = {request["method"]: self.player.answers(request["id"]) for request in self.requests}
        words = " ".join(["word"] * 8)
        self.assertEqual(words, by_method["agent"][-1]["payload"]["result"]["payloads"][0]["text"])
        self.assertEqual("ok", by_method["agent.wait"][0]["payload"]["status"])
        history = by_method["chat.history"][0]["payload"]["messages"]
        self.assertEqual(["hello there", words, "again", words, "hey", words], [message["content"][0]["text"] for message in history])
        self.assertEqual(["not-in-the-trace"], by_method["chat.abort"][0]["payload"]["runIds"])
        self.assertEqual("agent:main:main", by_method["sessions.resolve"][0]["payload"]["key"])
