"""Retries and resuming with real processes and sockets: a cut connection, a kill, a stop, and the stock client."""

from __future__ import annotations

import json
import signal
import socket
from typing import Any

import openai

from tests.daemon import TOKEN, Daemon, read_until
from tests.test_process import HELLO, ProcessCase, rows, wait_for


class RetryTests(ProcessCase):
    """One gateway, one key."""

    KEY = "Idempotency-Key: a-key"
    STREAM = {**HELLO, "user": "retry", "stream": True}

    def ask(self, daemon: Daemon, body: dict[str, Any], *lines: str) -> socket.socket:
        """Send a request with more header lines; the socket, to be read by the test."""
        data = json.dumps(body).encode()
        head = (
            "POST /v1/chat/completions HTTP/1.1", "Host: 127.0.0.1", f"Authorization: Bearer {TOKEN}", "Content-Type: application/json",
            f"Content-Length: {len(data)}", *lines,
        )  # fmt: skip
        connection = socket.create_connection(("127.0.0.1", daemon.port), timeout=10)
        self.addCleanup(connection.close)
        connection.sendall("\r\n".join(head).encode() + b"\r\n\r\n" + data)
        return connection

    def test_a_connection_that_breaks(self) -> None:
        """The run goes on, the stream is resumed behind the last event that came, and its turn is recorded once."""
        daemon = self.daemon()
        daemon.start()
        self.upstream.hold()
        connection = self.ask(daemon, self.STREAM, self.KEY)
        seen = read_until(connection, b'"one"')
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()  # a reset
        ids = [line.removeprefix(b"id: ").decode() for line in seen.split(b"\n") if line.startswith(b"id: ")]
        again = self.ask(daemon, self.STREAM, self.KEY, f"Last-Event-ID: {ids[-1]}")
        self.upstream.go()
        rest = read_until(again, b"0\r\n\r\n")
        self.assertIn(b"Idempotent-Replayed: true", rest)
        texts = [json.loads(line[6:])["choices"][0]["delta"].get("content") for line in rest.split(b"\n") if line.startswith(b"data: {")]
        self.assertEqual("".join(text or "" for text in texts), " two three")
        self.assertIn(b"data: [DONE]", rest)
        self.assertFalse(self.upstream.closed.is_set())
        daemon.stop()
        self.assertEqual((len(self.upstream.asked), rows(daemon, "select count(*) from entries")), (1, [(2,)]))

    def test_kill_9(self) -> None:
        """A run that was live answers as stopped, one that had ended with its answer; neither is run again."""
        daemon = self.daemon()
        daemon.start()
        done = self.ask(daemon, HELLO, "Idempotency-Key: done", "Connection: close")
        first = read_until(done, b"never")
        self.upstream.hold()
        seen = read_until(self.ask(daemon, self.STREAM, self.KEY), b'"one"')
        daemon.kill()
        self.upstream.go()
        daemon.start()
        for _ in range(2):
            answer = read_until(self.ask(daemon, self.STREAM, self.KEY, "Connection: close"), b"never")
            self.assertTrue(
                answer.startswith(b"HTTP/1.1 503 ") and b'"code":"server_shutdown"' in answer and b"X-Should-Retry: false" in answer, answer
            )
            again = read_until(self.ask(daemon, HELLO, "Idempotency-Key: done", "Connection: close"), b"never")
            self.assertEqual(again.partition(b"\r\n\r\n")[2], first.partition(b"\r\n\r\n")[2])
        event = next(line.removeprefix(b"id: ") for line in seen.split(b"\n") if line.startswith(b"id: ")).decode()
        resumed = read_until(self.ask(daemon, self.STREAM, self.KEY, f"Last-Event-ID: {event}"), b'"server_shutdown"')
        self.assertTrue(resumed.startswith(b"HTTP/1.1 503 "), resumed)
        other = read_until(self.ask(daemon, {**HELLO, "n": 1}, "Idempotency-Key: done", "Connection: close"), b"never")
        self.assertTrue(other.startswith(b"HTTP/1.1 422 "), other)
        self.assertEqual(len(self.upstream.asked), 2)

    def test_sigterm_waits_for_a_run_whose_client_is_gone(self) -> None:
        """It counts as live, is recorded, and its answer is there after the next start."""
        daemon = self.daemon(shutdown={"graceMs": 10_000})
        daemon.start()
        self.upstream.hold()
        connection = self.ask(daemon, self.STREAM, self.KEY)
        read_until(connection, b'"one"')
        connection.close()
        wait_for(lambda: '"code":499' in "".join(path.read_text() for path in (daemon.state / "logs").iterdir()))
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "stopping: 1 runs are live" in daemon.log.read_text())
        self.upstream.go()
        self.assertEqual(daemon.process.wait(8), -signal.SIGTERM)
        daemon.start()
        answer = read_until(self.ask(daemon, self.STREAM, self.KEY), b"0\r\n\r\n")
        self.assertIn(b'{"content":"one two three"}', answer)
        self.assertEqual(len(self.upstream.asked), 1)

    def test_the_stock_client(self) -> None:
        """OpenAI's client with the header as an extra one: streams with ids are streams to it, and a repeat is the same answer."""
        daemon = self.daemon()
        daemon.start()
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{daemon.port}/v1", api_key=TOKEN, max_retries=0)
        self.addCleanup(client.close)
        messages: Any = [{"role": "user", "content": "hi"}]
        texts = []
        for _ in range(2):
            stream = client.chat.completions.create(model="mayros", messages=messages, stream=True, extra_headers={"Idempotency-Key": "s"})
            texts.append("".join(chunk.choices[0].delta.content or "" for chunk in stream))
        answers = [client.chat.completions.create(model="mayros", messages=messages, extra_headers={"Idempotency-Key": "p"}) for _ in range(2)]
        self.assertEqual(texts, ["one two three"] * 2)
        self.assertEqual(answers[0], answers[1])
        with self.assertRaises(openai.UnprocessableEntityError):
            client.chat.completions.create(model="other", messages=messages, extra_headers={"Idempotency-Key": "p"})
        self.assertEqual(len(self.upstream.asked), 2)
