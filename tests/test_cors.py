"""Browser clients: pages of the origins that are configured may call, and read, the HTTP door; nobody else is told anything."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from mayros.errors import UpstreamError
from mayros.web.cors import EXPOSED, MAX_ASKED, MAX_NAMES, Cors
from tests.helpers import Answer, Harness, HarnessCase, chat, head, post

PAGE = "https://chat.example.com"
ORIGIN = f"Origin: {PAGE}"


def cors(*origins: str, **gateway: Any) -> dict[str, Any]:
    """Changes that list these origins."""
    return {"gateway": {"http": {"cors": {"allowedOrigins": origins or [PAGE]}}, **gateway}}


def allowed(answer: Answer) -> dict[str, str]:
    """The CORS headers of an answer, by the end of their names."""
    return {name.removeprefix("access-control-"): value for name, value in answer.headers.items() if name.startswith("access-control-")}


class PreflightTests(HarnessCase):
    """OPTIONS, which a browser sends before the request itself, without a credential."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway(cors())

    def preflight(self, *lines: str, path: str = "/v1/chat/completions", origin: str = ORIGIN, gateway: Harness | None = None) -> Answer:
        """Ask for a POST from a page."""
        return (gateway or self.one).dial(head("OPTIONS", path, origin, "Access-Control-Request-Method: POST", *lines, token=None) + b"\r\n").answer()

    def test_allowed(self) -> None:
        """204 before any credential: origin, methods, the headers asked for, ten minutes; different for each origin."""
        answer = self.preflight("Access-Control-Request-Headers: authorization,content-type, X-Stainless-Lang")
        self.assertEqual((answer.status, answer.body, answer.headers["vary"], answer.headers["allow"]), (204, b"", "Origin", "POST, OPTIONS"))
        self.assertEqual(
            allowed(answer),
            {
                "allow-origin": PAGE,
                "allow-methods": "POST, OPTIONS",
                "allow-headers": "authorization, content-type, x-stainless-lang",
                "max-age": "600",
                "expose-headers": ", ".join(EXPOSED),
            },
        )

    def test_by_address(self) -> None:
        """Each address says what it takes; one that is not there says so, to the page too; a switched off one is no secret."""
        self.assertEqual(allowed(self.preflight(path="/v1/models/mayros%2Fmain"))["allow-methods"], "GET, HEAD, OPTIONS")
        self.assertEqual(allowed(self.preflight(path="/openapi.json"))["allow-methods"], "GET, HEAD, OPTIONS")
        missing = self.preflight(path="/nowhere")
        self.assertEqual((missing.status, missing.error["code"], allowed(missing)["allow-origin"]), (404, "unknown_url", PAGE))
        off = self.gateway(cors(http={"cors": {"allowedOrigins": [PAGE]}, "endpoints": {"chatCompletions": {"enabled": False}}}))
        self.assertEqual(self.preflight(gateway=off).status, 204)

    def test_no_page_or_no_question(self) -> None:
        """Without Origin, or without a method that is asked for, OPTIONS is what it always was."""
        plain = self.one.dial(head("OPTIONS", "/v1/chat/completions", token=None) + b"\r\n").answer()
        self.assertEqual((plain.status, plain.headers["allow"], plain.headers["vary"], allowed(plain)), (204, "POST, OPTIONS", "Origin", {}))
        page = self.one.dial(head("OPTIONS", "/v1/chat/completions", ORIGIN, token=None) + b"\r\n").answer()
        self.assertEqual((page.status, set(allowed(page))), (204, {"allow-origin", "expose-headers"}))

    def test_other_origins(self) -> None:
        """An origin that is not listed exactly gets no CORS header: neither its neighbours, nor two at once, nor `null`."""
        for origin in (
            "https://evil.example",
            "http://chat.example.com",
            PAGE + ":8443",
            PAGE + ".evil.example",
            "https://a.chat.example.com",
            "null",
            "*",
        ):
            answer = self.preflight(origin=f"Origin: {origin}")
            self.assertEqual((answer.status, allowed(answer), answer.headers["vary"]), (204, {}, "Origin"), origin)
        self.assertEqual(allowed(self.preflight(ORIGIN)), {})

    def test_case_does_not_matter(self) -> None:
        """Browsers write origins in small letters; a configuration may not."""
        other = self.gateway(cors("HTTPS://Chat.Example.com/"))
        self.assertEqual(allowed(self.preflight(gateway=other))["allow-origin"], PAGE)

    def test_off_by_default(self) -> None:
        """Without the list there is no CORS header and no Vary, whatever a page sends."""
        answer = self.preflight(gateway=self.gateway())
        self.assertEqual((answer.status, allowed(answer), "vary" in answer.headers), (204, {}, False))

    def test_in_mode_none(self) -> None:
        """Where the connection is the credential, the preflight of a foreign page is answered without CORS headers, and its request refused."""
        gateway = self.gateway(cors(auth={"mode": "none"}))
        self.assertEqual(allowed(self.preflight(origin="Origin: https://evil.example", gateway=gateway)), {})
        refused = gateway.dial(post(chat(), "Origin: https://evil.example", token=None)).answer()
        self.assertEqual((refused.status, refused.error["code"], allowed(refused)), (403, "origin_not_allowed", {}))
        self.assertEqual(allowed(gateway.serve(ORIGIN))["allow-origin"], PAGE)


class AskedHeadersTests(SynchronousTestCase):
    """Which header names are given back."""

    def asked(self, *lines: bytes) -> str:
        """The value of Allow-Headers."""
        headers = {b"origin": [PAGE.encode()], b"access-control-request-method": [b"POST"], b"access-control-request-headers": list(lines)}
        found = [line.partition(b": ")[2] for line in Cors([PAGE]).preflight(headers.get, "POST") if line.startswith(b"Access-Control-Allow-Headers")]
        return b"".join(found).decode()

    def test_sane_names(self) -> None:
        """Names are names: what is none, or could end the header line, is left out; so is what only a proxy says."""
        self.assertEqual(self.asked(b"a", b"B , c"), "a, b, c")
        self.assertEqual(self.asked(b"good, b\rad, b:ad, b ad, \xff, , *, x-ok"), "good, *, x-ok")
        self.assertEqual(self.asked(b"x-forwarded-for,x-real-ip,forwarded,authorization"), "authorization")
        self.assertEqual(self.asked(b"x" * 65), "")

    def test_bounds(self) -> None:
        """So many names, and a list so long, and no more."""
        self.assertEqual(self.asked(b",".join(b"x%d" % number for number in range(500))).count("x"), MAX_NAMES)
        self.assertEqual(self.asked(b"a," * MAX_ASKED), "")


class AnswerTests(HarnessCase):
    """The requests themselves."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway(cors())

    def readable(self, answer: Answer) -> None:
        """A page can read it, and our headers of it."""
        self.assertEqual(allowed(answer), {"allow-origin": PAGE, "expose-headers": ", ".join(EXPOSED)})
        self.assertEqual(answer.headers["vary"], "Origin")

    def test_plain_and_streamed(self) -> None:
        """Both can be read."""
        for stream in (False, True):
            self.readable(self.one.serve(ORIGIN, stream=stream))

    def test_errors(self) -> None:
        """An error can be read, wherever it is found: at the gate, with the body on its way, in the handler, in the run."""
        wrong = post(chat(), ORIGIN, token="wrong")
        for data in (
            wrong,
            wrong[:-10],
            post(b"x", ORIGIN),
            head("GET", "/nowhere", ORIGIN) + b"\r\n",
            head("DELETE", "/v1/models", ORIGIN) + b"\r\n",
        ):
            answer = self.one.dial(data).answer()
            self.assertGreaterEqual(answer.status, 400)
            self.readable(answer)
        client = self.one.dial(post(chat(stream=True), ORIGIN))
        self.one.provider.fail(UpstreamError())
        self.one.settle(client)
        answer = client.answer()
        self.assertEqual(answer.status, 502)
        self.readable(answer)

    def test_lockouts(self) -> None:
        """The page can tell its user for how long."""
        gateway = self.gateway(cors(auth={"rateLimit": {"maxAttempts": 1}}))
        for _ in range(2):
            answer = gateway.dial(post(chat(), ORIGIN, token="wrong"), "192.0.2.1").answer()
        self.assertEqual((answer.status, "retry-after" in EXPOSED), (429, True))
        self.readable(answer)

    def test_a_body_that_never_comes(self) -> None:
        """Also the answer that the clock writes."""
        client = self.one.dial(post(chat(), ORIGIN)[:-5])
        self.one.advance(61, client)
        answer = client.answer()
        self.assertEqual(answer.status, 408)
        self.readable(answer)

    def test_others_are_served_as_ever(self) -> None:
        """With the right token the answer comes, whoever asked; a browser does not show it to that page."""
        answer = self.one.serve("Origin: https://evil.example")
        self.assertEqual((answer.status, allowed(answer), answer.headers["vary"]), (200, {}, "Origin"))
        self.assertEqual(self.one.serve().headers["vary"], "Origin")
