"""Tokens against a real gateway process: made by the command line with and without it, used by stock clients, and known after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.test_process import ProcessCase


class TokenTests(ProcessCase):
    """From the first command to the last."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway = self.daemon()

    def mayros(self, *args: str) -> str:
        """What a command that succeeds prints."""
        done = self.gateway.mayros(*args, seconds=30)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.strip()

    def client(self, secret: str) -> openai.OpenAI:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.gateway.port}/v1", api_key=secret, max_retries=0)
        self.addCleanup(client.close)
        return client

    def say(self, client: openai.OpenAI, **more: Any) -> str | None:
        made = client.chat.completions.create(model="mayros", messages=[{"role": "user", "content": "hi"}], **more)
        return made.choices[0].message.content

    def test_life(self) -> None:
        """Made while the gateway runs, used, limited, used up over a restart; made while it is down, used, revoked with its socket."""
        self.gateway.start()
        first = self.mayros("tokens", "create", "ann", "--tokens-per-day", "2000", "--rpm", "600")
        ann = self.client(first)
        self.assertEqual(self.say(ann, user="u"), "one two three")
        told = ann.chat.completions.with_raw_response.create(model="mayros", messages=[{"role": "user", "content": "hi"}]).headers
        self.assertEqual((told["x-ratelimit-limit-tokens"], told["x-ratelimit-remaining-tokens"]), ("2000", "1992"))
        self.assertEqual(next(model.id for model in ann.models.list()), "mayros")
        used = json.loads(self.mayros("usage", "--by", "principal", "--json"))["rows"]
        self.assertEqual([(row["principal"], row["runs"], row["totalTokens"]) for row in used], [("token:ann", 2, 16)])
        self.gateway.stop()

        second = self.mayros("tokens", "create", "bob")
        self.assertEqual([one["name"] for one in json.loads(self.mayros("tokens", "list", "--json"))["tokens"]], ["ann", "bob"])
        self.gateway.start()
        told = ann.chat.completions.with_raw_response.create(model="mayros", messages=[{"role": "user", "content": "hi"}]).headers
        self.assertEqual(told["x-ratelimit-remaining-tokens"], "1984")
        bob = self.client(second)
        self.assertEqual(self.say(bob), "one two three")
        with connect(f"ws://127.0.0.1:{self.gateway.port}/") as socket:
            self.assertEqual(self.hello(socket, second)["auth"]["scopes"], ["operator.read", "operator.write"])
            self.mayros("tokens", "revoke", "bob")
            with self.assertRaises(ConnectionClosed) as closed:
                while True:
                    socket.recv(timeout=10)
            self.assertEqual(closed.exception.rcvd and closed.exception.rcvd.code, 1008)
        with self.assertRaises(openai.AuthenticationError):
            self.say(bob)
        third = self.mayros("tokens", "rotate", "ann")
        with self.assertRaises(openai.AuthenticationError):
            self.say(ann)
        self.assertEqual(self.say(self.client(third)), "one two three")
        kept = Path(self.mktemp())
        kept.write_text(third)
        own = ("--token-file", str(kept.resolve()))
        # The command line as ann's: with her token it has her sessions, and no others.
        self.assertEqual(self.mayros("agent", "--message", "hi", "--session-key", "work", *own), "one two three")
        listed = json.loads(self.mayros("sessions", "list", "--json", *own))["sessions"]
        self.assertEqual(
            {row["key"].rpartition(":")[0] for row in listed},
            {"agent:main:token:ann", "agent:main:token:ann:openai", "agent:main:token:ann:openai-user"},
        )
        self.assertIn("agent:main:token:ann:work", [row["key"] for row in listed])
        logged = b"".join(path.read_bytes() for path in self.gateway.folder.rglob("*") if path.is_file())
        self.assertEqual([secret for secret in (first, second, third) if secret.encode() in logged], [])

    def hello(self, socket: Any, secret: str) -> Any:
        json.loads(socket.recv(timeout=10))
        params = {
            "minProtocol": 3, "maxProtocol": 4, "client": {"id": "webchat", "version": "1", "platform": "web", "mode": "webchat"},
            "role": "operator", "scopes": ["operator.read", "operator.write", "operator.admin"], "auth": {"token": secret},
        }  # fmt: skip
        socket.send(json.dumps({"type": "req", "id": "1", "method": "connect", "params": params}))
        return json.loads(socket.recv(timeout=10))["payload"]
