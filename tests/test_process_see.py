"""What an operator sees of a real gateway: metrics on a listener of their own, log files, the journal, `mayros status` and `mayros logs`."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path

from twisted.trial.unittest import TestCase

from tests.daemon import Quick, Upstream, free_port
from tests.test_metrics import samples

ID = "4bf92f3577b34da6a3ce929d0e0e4736"


class InJournal(Quick):
    """Its output is the journal, as far as it can tell."""

    @property
    def environ(self) -> dict[str, str]:
        self.log.touch()
        found = self.log.stat()
        return super().environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}


class SeeTests(TestCase):
    """One gateway."""

    def setUp(self) -> None:
        self.upstream = Upstream()
        self.addCleanup(self.upstream.close)
        self.scraped = free_port()
        self.daemon = InJournal(Path(self.mktemp()), self.upstream, {"metrics": {"enabled": True, "listen": f"127.0.0.1:{self.scraped}"}})
        self.addCleanup(self.daemon.kill)

    def scrape(self, path: str = "/metrics") -> bytes:
        """Without a secret."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.scraped}{path}", timeout=10) as answer:
            found: bytes = answer.read()
            return found

    def lines(self, name: str) -> list[dict[str, object]]:
        """A log file of today."""
        (path,) = (self.daemon.state / "logs").glob(f"{name}-*.log")
        return [json.loads(line) for line in path.read_text().splitlines()]

    def test_all_of_it(self) -> None:
        """A request is in the metrics and in the access log; the gateway's own lines are in its log file, and in its output as the journal wants
        them; `status` is one screen; after the stop the log can still be read."""
        self.daemon.start()
        body = {"model": "mayros", "messages": [{"role": "user", "content": "hi"}]}
        status, _ = self.daemon.request("POST", "/v1/chat/completions", body, traceparent=f"00-{ID}-00f067aa0ba902b7-01")
        self.assertEqual(status, 200)
        found = samples(self.scrape())
        self.assertEqual(found['mayros_runs_total{door="chat",outcome="ok"}'], 1)
        self.assertEqual(found['mayros_http_requests_total{route="/v1/chat/completions",method="POST",code="200"}'], 1)
        self.assertEqual(found['mayros_provider_requests_total{provider="mock",model="m",outcome="ok"}'], 1)
        self.assertGreater(found["mayros_store_commit_duration_seconds_count"], 0)
        self.assertGreater(found["process_resident_memory_bytes"], 10 << 20)
        with self.assertRaises(urllib.error.HTTPError):
            self.scrape("/")
        self.assertEqual(self.daemon.request("GET", "/metrics")[0], 404)

        status_screen = self.daemon.mayros("status", seconds=30)
        self.assertEqual(status_screen.returncode, 0, status_screen.stderr)
        self.assertIn("ready", status_screen.stdout.splitlines()[0])
        log = self.daemon.mayros("logs", seconds=30)
        self.assertIn("listening on http://127.0.0.1", log.stdout)
        self.assertEqual(self.daemon.stop() in (0, -15), True)
        self.assertTrue(any("metrics on http://127.0.0.1" in str(line["message"]) for line in self.lines("mayros")))
        (asked,) = [line for line in self.lines("access") if line["path"] == "/v1/chat/completions"]
        self.assertEqual((asked["code"], asked["trace"], asked["principal"]), (200, ID, "owner"))
        self.assertIn("run", asked)
        self.assertIn("<6>mayros.service: listening on http://127.0.0.1", self.daemon.log.read_text())
        read = self.daemon.mayros("logs", "--limit", "5", seconds=30)
        self.assertIn("its log file", read.stderr)
        self.assertIn("stopping", read.stdout)
