"""The HTTP door under hostile bytes: the rows H01 to H78 of the security notes that need no real socket.

Every case ends with the next connection being served and, in HarnessCase, with nothing left held.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.protocols.haproxy._wrapper import HAProxyWrappingFactory
from twisted.test import iosim

from tests.helpers import TOKEN, Answer, Client, Harness, HarnessCase, chat, head, post

#: Closed without an answer, at once or by the deadline.
CLOSED = 0
AUTH = f"Authorization: Bearer {TOKEN}\r\n".encode()
FIXED = settings(derandomize=bool(os.environ.get("CI")), database=None, deadline=None, max_examples=60)
RATE = {"gateway": {"auth": {"rateLimit": {"maxAttempts": 3, "windowMs": 60_000, "lockoutMs": 300_000}}}}


def request(line: str, *lines: str, host: bool = True) -> bytes:
    """A request without a body."""
    return "\r\n".join((line, *(("Host: 127.0.0.1",) if host else ()), *lines, "", "")).encode("latin-1")


def json_post(body: bytes, *lines: str) -> bytes:
    """A POST of raw JSON bytes."""
    return post(body, *lines)


def chunked(*pieces: bytes, lines: tuple[str, ...] = ()) -> bytes:
    """The head of a chunked POST, and `pieces` as they are."""
    return head("POST", "/v1/chat/completions", "Content-Type: application/json", "Transfer-Encoding: chunked", *lines) + b"\r\n" + b"".join(pieces)


def chunk(data: bytes) -> bytes:
    """One chunk."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def messages(*items: Any, **fields: Any) -> dict[str, Any]:
    """A request body with these messages."""
    return {"model": "mayros", "messages": list(items), **fields}


class HostileCase(HarnessCase):
    """What all cases share."""

    def setUp(self) -> None:
        super().setUp()
        self.one = self.gateway()

    def send(self, data: bytes, gateway: Harness | None = None, peer: str = "127.0.0.1") -> Client:
        """Send, and wait for an answer or the close; at most the deadline of 60 seconds and the 5 of lingering."""
        gateway = gateway or self.one
        client = gateway.dial(data, peer)
        for _ in range(66):
            if client.received or client.lost:
                break
            gateway.advance(1, client)
        return client

    def refused(self, data: bytes, *wanted: int, code: str | None = None, param: str | None = None, gateway: Harness | None = None) -> Answer | None:
        """The one answer, checked: its status is wanted, its body is the error object, nothing follows it, the next is served."""
        gateway = gateway or self.one
        client = self.send(data, gateway)
        answer = None
        if client.received:
            answer = client.answer()
            self.assertIn(answer.status, wanted, answer.body)
            self.assertEqual(set(answer.error), {"message", "type", "param", "code"})
            self.assertTrue(answer.error["message"])
            self.assert_common_headers(answer)
            if code is not None:
                self.assertEqual(answer.error["code"], code)
            if param is not None:
                self.assertEqual(answer.error["param"], param)
            if answer.headers.get("connection") == "close":
                gateway.advance(12, client)
                self.assertTrue(client.lost)
        else:
            self.assertIn(CLOSED, wanted, "closed without an answer")
            self.assertTrue(client.lost)
        self.assertEqual(client.received, b"", "something followed the answer")
        self.next_is_served(gateway)
        return answer

    def assert_common_headers(self, answer: Answer) -> None:
        """H75: what every answer carries, and what it does not give away."""
        self.assertEqual(answer.headers["server"], "mayros")
        self.assertEqual(answer.headers["x-content-type-options"], "nosniff")
        self.assertEqual(answer.headers["referrer-policy"], "no-referrer")
        self.assertEqual(answer.headers["content-type"], "application/json")
        self.assertRegex(answer.headers["x-request-id"], r"^[A-Za-z0-9._-]{1,128}$")
        self.assertNotIn("access-control-allow-origin", answer.headers)

    def next_is_served(self, gateway: Harness | None = None) -> None:
        """The next connection gets a whole answer from an agent."""
        self.assertEqual((gateway or self.one).serve().json["choices"][0]["message"]["content"], "ok")

    def all_refused(self, datas: list[bytes], *wanted: int, **more: Any) -> None:
        """Each of them."""
        for data in datas:
            self.refused(data, *wanted, **more)


class RequestLineTests(HostileCase):
    """Request line, target, version, method."""

    def test_h01_long_request_line(self) -> None:
        """H01: a request line of 20,000 bytes."""
        self.refused(request(f"GET /{'a' * 20_000} HTTP/1.1"), 414, 431, 400, CLOSED)

    def test_h08_versions(self) -> None:
        """H08: no version, one that does not exist, HTTP/2."""
        self.all_refused([b"GET /healthz\r\n\r\n", request("GET /healthz HTTP/1.2"), request("GET /healthz HTTP/2.0")], 400, 505, CLOSED)

    def test_h09_http_1_0(self) -> None:
        """H09: HTTP/1.0 needs no Host, is served, and closed."""
        client = self.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        self.assertEqual(client.answer().status, 200)
        self.assertTrue(client.lost)
        self.next_is_served()

    def test_h09_http_1_0_stream(self) -> None:
        """H09: a stream over HTTP/1.0 has no chunks; the close ends it."""
        client = self.one.dial(post(chat(stream=True)).replace(b"HTTP/1.1", b"HTTP/1.0"))
        self.one.provider.say("hi")
        self.one.provider.stop()
        self.one.settle(client)
        answer = client.answer()
        self.assertNotIn("transfer-encoding", answer.headers)
        self.assertTrue(answer.body.endswith(b"data: [DONE]\n\n"))
        self.assertTrue(client.lost)
        self.next_is_served()

    def test_h10_http_1_0_chunked(self) -> None:
        """H10: HTTP/1.0 knows no chunks."""
        self.refused(chunked(chunk(b"{}"), b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"), 400)

    def test_h11_methods(self) -> None:
        """H11: methods that nobody knows, also a very long one."""
        for method in ("get", "FOO", "A" * 5_000):
            answer = self.refused(request(f"{method} /healthz HTTP/1.1"), 405, 501, 400)
            self.assertIn("GET", answer.headers["allow"])

    def test_h12_malformed_methods(self) -> None:
        """H12: characters that no method has."""
        self.all_refused([request("GE\x00T /healthz HTTP/1.1"), request("G(T /healthz HTTP/1.1"), request(" GET / HTTP/1.1")], 400, CLOSED)

    def test_h13_absolute_form(self) -> None:
        """H13: a target with another host is not followed, served or redirected."""
        self.refused(request("GET http://evil/healthz HTTP/1.1"), 400, 404)

    def test_h14_h15_connect_and_options(self) -> None:
        """H14, H15: CONNECT is no proxy; `OPTIONS *` is harmless."""
        self.all_refused([request("CONNECT evil:443 HTTP/1.1"), request("OPTIONS * HTTP/1.1"), request("TRACE / HTTP/1.1")], 400, 404, 405)

    def test_h16_targets(self) -> None:
        """H16: a target with a blank, a NUL, a control character, a byte that is no ASCII."""
        self.all_refused([request(f"GET /{bad}x HTTP/1.1") for bad in (" ", "\x00", "\x01", "\xff")], 400, CLOSED)

    def test_h17_paths(self) -> None:
        """H17: other spellings of the route are other addresses: never served, redirected, or an error of ours."""
        paths = ("/v1/../v1/chat/completions", "/v1/%2e%2e/v1/chat/completions", "//v1//chat//completions", "/%00", "/%ff", "/v1/chat/completions//")
        for path in (*paths, "/v1/chat%2fcompletions", "/V1/chat/completions", "/v1/chat/completions;x", "/v1/chat/completions/x"):
            answer = self.refused(post(chat(), path=path), 404, 400, code="unknown_url")
            self.assertNotIn("location", answer.headers)
            self.refused(request(f"GET {path} HTTP/1.1"), 404, 400)

    def test_h73_unknown_path_is_bounded(self) -> None:
        """H73: an unknown address is a 404 that does not throw back what was sent in full."""
        answer = self.refused(request(f"GET /{'a' * 4_000} HTTP/1.1"), 404, code="unknown_url")
        self.assertLess(len(answer.body), 400)

    def test_h72_other_methods(self) -> None:
        """H72: the chat route takes POST only, and says so; a HEAD has no body."""
        for method in ("GET", "PUT", "PATCH", "DELETE", "TRACE"):
            answer = self.refused(head(method, "/v1/chat/completions") + b"\r\n", 405, code="method_not_allowed")
            self.assertEqual(answer.headers["allow"], "POST, OPTIONS")
        client = self.send(head("HEAD", "/v1/chat/completions") + b"\r\n" + request("GET /healthz HTTP/1.1"))
        first, _, rest = client.received.partition(b"\r\n\r\n")
        self.assertIn(b"405", first.split(b"\r\n")[0])
        self.assertEqual(Answer.parse(rest)[0].json, {"ok": True})
        self.next_is_served()

    def test_h77_empty_lines_first(self) -> None:
        """H77: one empty line before a request is forgiven, many are not."""
        client = self.send(b"\r\n" + request("GET /healthz HTTP/1.1"))
        self.assertEqual(client.answer().status, 200)
        self.refused(b"\r\n" * 3 + request("GET /healthz HTTP/1.1"), 400, CLOSED)
        self.refused(b"\r\n" * 50_000, 400, CLOSED)

    def test_h76_other_protocols(self) -> None:
        """H76: TLS, HTTP/2, SSH and noise end in 400 or a close, by the deadline at the latest."""
        tls = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2
        noise = bytes(value * 7 % 251 for value in range(1 << 20))
        for data in (tls, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"SSH-2.0-OpenSSH_9.9\r\n", noise, b"\x00" * (1 << 20)):
            self.refused(data, 400, CLOSED)

    def test_h20_bare_line_feeds(self) -> None:
        """H20: a request with bare line feeds is none; the deadline ends it."""
        self.refused(request("GET /healthz HTTP/1.1").replace(b"\r\n", b"\n"), 400, 408, CLOSED)


class HeaderTests(HostileCase):
    """Header lines."""

    def test_h02_long_header(self) -> None:
        """H02: one header of 20,000 bytes."""
        self.refused(request("GET /healthz HTTP/1.1", f"X-A: {'a' * 20_000}"), 431, 400, CLOSED)

    def test_h03_h04_many_headers(self) -> None:
        """H03, H04: 600 headers; 101; 40 of 1 KB."""
        self.refused(request("GET /healthz HTTP/1.1", *[f"X-{number}: 1" for number in range(600)]), 400, 431, CLOSED)
        self.refused(request("GET /healthz HTTP/1.1", *[f"X-{number}: 1" for number in range(101)]), 400, 431, CLOSED)
        self.refused(request("GET /healthz HTTP/1.1", *[f"X-{number}: {'a' * 1000}" for number in range(40)]), 400, 431, CLOSED)

    def test_h05_no_host(self) -> None:
        """H05: HTTP/1.1 needs a Host."""
        self.refused(request("GET /healthz HTTP/1.1", host=False), 400)

    def test_h06_h07_hosts(self) -> None:
        """H06, H07: exactly one, and well formed; also before a body."""
        self.refused(request("GET /healthz HTTP/1.1", "Host: 127.0.0.1"), 400)
        for host in ("a b/c", "a..b", "a" * 300, "", "[::1", "a:99999", "a\tb", "é"):
            self.refused(request("GET /healthz HTTP/1.1", f"Host: {host}", host=False), 400)
            self.refused(post(chat()).replace(b"Host: 127.0.0.1", f"Host: {host}".encode("latin-1")), 400)

    def test_h18_h19_h22_malformed_headers(self) -> None:
        """H18, H19, H22: NUL, bare CR, bare LF, blank before the colon, no colon, no name, a character that no name has."""
        bad = ("X: a\x00b", "X: a\rb", "X: a\nb", "X : a", "X", ": a", "X(In: a", "X\x00Y: a", "\x7f: a")
        for line in bad:
            self.refused(request("GET /healthz HTTP/1.1", line), 400, CLOSED)
            self.refused(request("GET /healthz HTTP/1.1", line, "X-Last: a"), 400, CLOSED)

    def test_h21_folded_header(self) -> None:
        """H21: a continuation line is joined or refused; it never becomes a header of its own."""
        client = self.send(head("POST", "/v1/chat/completions", "X-A: b", " Content-Length: 5") + b"\r\n")
        self.assertIn(client.answer().status, (400, 415))
        self.next_is_served()

    def test_h75_every_answer(self) -> None:
        """H75: no product version, nosniff, JSON, also on the answers that are no errors."""
        client = self.send(request("GET /healthz HTTP/1.1"))
        self.assert_common_headers(client.answer())
        self.assert_common_headers(self.one.serve())
        self.refused(b"nonsense\r\n\r\n", 400)

    def test_h68_no_header_injection(self) -> None:
        """H68: line ends in model, user and ids never reach the head of an answer."""
        evil = "x\r\nX-Evil: 1\r\n\r\n"
        client = self.one.dial(post(chat(model=evil)))
        self.one.provider.say("ok")
        self.one.provider.stop()
        self.one.settle(client)
        self.assertNotIn("x-evil", client.answer().headers)
        for body in (chat(user=evil), chat(model="mayros:" + evil)):
            answer = self.refused(post(body), 400, 404)
            self.assertNotIn("x-evil", answer.headers)
        stream = self.one.dial(post(chat(model=evil, stream=True)))
        self.one.provider.stop()
        self.one.settle(stream)
        self.assertNotIn("x-evil", stream.answer().headers)

    def test_h69_request_ids(self) -> None:
        """H69: a well-formed id is kept, any other is made fresh; two are none."""
        good, bad = ("abc-1._Z", "a" * 128), ("a" * 129, "a" * 10_000, "a b", "", "é")
        for sent in (*good, *bad):
            client = self.send(request("GET /healthz HTTP/1.1", f"X-Request-Id: {sent}"))
            given = client.answer().headers["x-request-id"]
            self.assertEqual(given == sent, sent in good, sent[:20])
            self.assertRegex(given, r"^[A-Za-z0-9._-]{1,128}$")
        client = self.send(request("GET /healthz HTTP/1.1", "X-Request-Id: a", "X-Request-Id: b"))
        self.assertNotIn(client.answer().headers["x-request-id"], ("a", "b"))
        answer = self.refused(head("POST", "/v1/chat/completions", "X-Request-Id: mine", token=None) + b"Content-Length: 5\r\n\r\n", 401)
        self.assertEqual(answer.headers["x-request-id"], "mine")

    def test_h50_content_types(self) -> None:
        """H50: a body that a page could send without asking first is refused."""
        for kind in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/jsonx", "json", "*/*"):
            self.refused(post(chat(), content_type=kind), 415, code="unsupported_media_type")
        self.refused(post(chat(), "Content-Type: application/json"), 415)

    def test_h51_charsets(self) -> None:
        """H51: UTF-8 only, however it is written."""
        self.refused(post(chat(), content_type="application/json; charset=utf-16"), 415, 400)
        for kind in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"', "application/json ;"):
            client = self.one.dial(post(chat(), content_type=kind))
            self.one.provider.stop()
            self.one.settle(client)
            self.assertEqual(client.answer().status, 200, kind)

    def test_h38_content_encoding(self) -> None:
        """H38: a compressed body is never inflated."""
        bomb = gzip.compress(b"\x00" * (10 << 20))
        for coding in ("gzip", "deflate", "br", "identity, gzip"):
            answer = self.refused(post(bomb, f"Content-Encoding: {coding}"), 415)
            self.assertEqual(answer.headers["accept-encoding"], "identity")
        client = self.one.dial(post(chat(), "Content-Encoding: identity"))
        self.one.provider.stop()
        self.one.settle(client)
        self.assertEqual(client.answer().status, 200)

    def test_h70_credentials(self) -> None:
        """H70: anything but one right Bearer is 401 with `WWW-Authenticate`; the scheme's case does not matter."""
        bad = (
            None,
            "Basic dXNlcjpwYXNz",
            "Bearer",
            "Bearer ",
            f"Bearer  {TOKEN}",
            f"Bearer {TOKEN}x",
            TOKEN,
            f"Token {TOKEN}",
            "Bearer " + "a" * 10_000,
        )
        for value in (*bad, "Bearer \xe9\xff", f"Bearer {TOKEN} x", f"Bearer\t{TOKEN}"):
            lines = (f"Authorization: {value}",) if value is not None else ()
            answer = self.refused(post(chat(), *lines, token=None), 401, code="invalid_api_key")
            self.assertEqual(answer.headers["www-authenticate"], "Bearer")
        self.refused(post(chat(), f"Authorization: Bearer {TOKEN}"), 401)
        for value in (f"bearer {TOKEN}", f"BEARER {TOKEN}"):
            client = self.one.dial(post(chat(), f"Authorization: {value}", token=None))
            self.one.provider.stop()
            self.one.settle(client)
            self.assertEqual(client.answer().status, 200)

    def test_h71_token_elsewhere(self) -> None:
        """H71: a token in the query or the body is no credential, and is not logged."""
        self.refused(post(chat(token=TOKEN), path=f"/v1/chat/completions?token={TOKEN}", token=None), 401)
        self.refused(request(f"GET /nothing?token={TOKEN} HTTP/1.1"), 404)
        self.assertNotIn(TOKEN, repr([(line.path, line.request, line.method) for line in self.one.access]))
        self.assertIn("/nothing", [line.path for line in self.one.access])

    def test_h74_foreign_pages(self) -> None:
        """H74: no CORS header for a page that is not listed, neither on its preflight nor on its POST."""
        client = self.send(
            request("OPTIONS /v1/chat/completions HTTP/1.1", "Origin: https://evil.example", "Access-Control-Request-Method: POST")
            + post(chat(), "Origin: https://evil.example")
        )
        self.one.provider.stop()
        self.one.settle(client)
        self.assertNotIn(b"access-control", client.received.lower())
        self.assertEqual(client.statuses(), [204, 200])

    def test_h74_options_has_no_body(self) -> None:
        """H74: a preflight needs no credential, so it gets no share of the body budget either."""
        self.refused(request("OPTIONS /v1/chat/completions HTTP/1.1", f"Content-Length: {200 << 20}"), 400)
        self.refused(request("OPTIONS /v1/chat/completions HTTP/1.1", "Transfer-Encoding: chunked"), 400)
        waiting = self.one.dial(request("OPTIONS /healthz HTTP/1.1", f"Content-Length: {self.one.bodies.total}"))
        self.assertEqual(self.one.bodies.free, self.one.bodies.total)
        self.assertEqual(waiting.statuses(), [400])

    def test_options_answer(self) -> None:
        """An OPTIONS is answered by what the route takes: 204 has neither body nor length."""
        client = self.send(request("OPTIONS /v1/chat/completions HTTP/1.1"))
        first = client.received.decode()
        self.assertTrue(first.startswith("HTTP/1.1 204 "), first)
        self.assertIn("\r\nAllow: POST, OPTIONS\r\n", first)
        self.assertNotIn("content-length", first.lower())
        self.assertNotIn("\r\ncontent-type:", first.lower())
        self.assertTrue(first.endswith("\r\n\r\n"))


class LengthTests(HostileCase):
    """Content-Length, Transfer-Encoding, Expect."""

    def raw(self, *lines: str, body: bytes = b"") -> bytes:
        """A POST with exactly these length headers."""
        return head("POST", "/v1/chat/completions", "Content-Type: application/json", *lines) + b"\r\n" + body

    def test_h23_two_framings(self) -> None:
        """H23: Content-Length and Transfer-Encoding together, in either order."""
        lines = ("Content-Length: 2", "Transfer-Encoding: chunked")
        self.all_refused([self.raw(*lines, body=b"{}"), self.raw(*reversed(lines), body=b"{}")], 400, CLOSED)

    def test_h24_two_lengths(self) -> None:
        """H24: two Content-Length, equal, different, or in one line."""
        for values in (("2", "2"), ("2", "3"), ("5, 5",)):
            self.refused(self.raw(*[f"Content-Length: {value}" for value in values], body=b"{}"), 400, CLOSED)

    def test_h25_lengths_that_are_none(self) -> None:
        """H25: signs, underscores, hexadecimal, nothing, other digits."""
        for value in ("-5", "+5", "1_0", "0x5", "", "5 ", "\xb2", "5.0", "1e2"):
            if value != "5 ":
                self.refused(self.raw(f"Content-Length: {value}", body=b"{}"), 400, CLOSED)

    def test_h26_absurd_length(self) -> None:
        """H26: 413 at once, nothing set aside."""
        self.refused(self.raw("Content-Length: 99999999999999999999"), 413, code="request_too_large")

    def test_h27_length_of_thousands_of_digits(self) -> None:
        """H27: refused without a traceback, as the last header and before others."""
        for more in ((), ("X-More: 1",)):
            self.refused(self.raw(f"Content-Length: {'9' * 5_000}", *more), 400, 413, CLOSED)

    def test_h28_transfer_encodings(self) -> None:
        """H28: no coding but one `chunked`."""
        for codings in (("gzip",), ("gzip, chunked",), ("xchunked",), ("chunked", "chunked"), ("chunked, chunked",), ("\x0bchunked",)):
            self.refused(self.raw(*[f"Transfer-Encoding: {coding}" for coding in codings], body=b"0\r\n\r\n"), 400, 501, CLOSED)

    def test_h29_identity(self) -> None:
        """H29: `identity` beside a length changes nothing."""
        client = self.one.dial(post(chat(), "Transfer-Encoding: identity"))
        self.one.provider.stop()
        self.one.settle(client)
        self.assertIn(client.answer().status, (200, 400, 501))
        self.next_is_served()

    def test_h30_h32_chunks(self) -> None:
        """H30, H32: chunk sizes that are none, a chunk that does not end, an extension of 20,000 bytes."""
        bad = (
            b"zz\r\n{}\r\n",
            b"-5\r\n{}",
            b"0x5\r\n{}",
            b"1_0\r\n{}",
            b"\r\n{}",
            b"2\r\n{}zz0\r\n\r\n",
            b"2;" + b"a" * 20_000 + b"\r\n{}\r\n0\r\n\r\n",
        )
        for data in bad:
            self.refused(chunked(data), 400, 413, 501, CLOSED)
            self.assertEqual(self.one.access[-2].code, 400)

    def test_h31_endless_chunk(self) -> None:
        """H31: a chunk of ffffffffffffffffffff bytes is refused by the limit or the deadline."""
        self.refused(chunked(b"ffffffffffffffffffff\r\n{}"), 400, 408, 413, CLOSED)

    def test_h33_endless_trailers(self) -> None:
        """H33: trailers are bounded."""
        client = self.one.dial(chunked(chunk(b"{}"), b"0\r\n"))
        for number in range(3_000):
            client.send(b"X-%d: %b\r\n" % (number, b"a" * 60))
            if client.lost:
                break
        self.assertTrue(client.lost)
        self.assertIn(client.statuses(), ([400], []))
        self.next_is_served()

    def test_h34_trailers_then_a_request(self) -> None:
        """H34: what follows 40 KB of trailers is the next request, not part of them."""
        trailers = b"".join(b"X-%d: %b\r\n" % (number, b"a" * 100) for number in range(400))
        client = self.send(chunked(chunk(b"{}"), b"0\r\n", trailers, b"\r\n", request("GET /healthz HTTP/1.1")))
        self.assertEqual(client.answer().error["param"], "messages")
        self.assertEqual(client.answer().json, {"ok": True})
        self.next_is_served()

    def test_h35_h37_body_over_the_limit(self) -> None:
        """H35, H37: by its Content-Length, before a byte of it: 413, no 100, nothing of the budget taken."""
        small = self.gateway({"gateway": {"http": {"maxBodyBytes": 1000}}})
        for more in ((), ("Expect: 100-continue",)):
            client = small.dial(self.raw("Content-Length: 1001", *more))
            self.assertTrue(client.received.startswith(b"HTTP/1.1 413 "))
            answer = client.answer()
            self.assertEqual(answer.headers["connection"], "close")
            self.assertEqual(answer.error["code"], "request_too_large")
            client.send(b"x" * 1001)
            small.advance(12, client)
            self.assertTrue(client.lost)
            self.assertEqual(client.received, b"")
        self.next_is_served(small)

    def test_h36_chunked_body_over_the_limit(self) -> None:
        """H36: 413 at the limit; what still comes is dropped, and malformed chunks after it get no second answer."""
        small = self.gateway({"gateway": {"http": {"maxBodyBytes": 1000}}})
        for after in (chunk(b"y" * 5_000) + b"0\r\n\r\n" + request("GET /healthz HTTP/1.1"), b"zz\r\n", b""):
            client = small.dial(chunked(chunk(b"x" * 600)))
            self.assertEqual(client.received, b"")
            client.send(chunk(b"x" * 600))
            self.assertEqual(client.answer().status, 413)
            self.assertEqual(small.bodies.free, small.bodies.total)
            client.send(after)
            small.advance(12, client)
            self.assertTrue(client.lost)
            self.assertEqual(client.received, b"")
        self.next_is_served(small)

    def test_h36_refused_connections_do_not_stay(self) -> None:
        """H36: whatever a body is refused for, also in the segment of its head, the connection is closed within five seconds."""
        small = self.gateway({"gateway": {"http": {"maxBodyBytes": 1000}}})
        for data in (
            chunked(chunk(b"x" * 1001)),
            chunked(b"zz\r\n"),
            self.raw("Content-Length: 1001", body=b"x"),
            self.raw("Transfer-Encoding: gzip"),
        ):
            client = small.dial(data)
            self.assertIn(client.answer().status, (400, 413))
            small.advance(5, client)
            self.assertTrue(client.lost)

    def test_expect_continue(self) -> None:
        """100 comes after the gate admitted the request, and never before a refusal."""
        body = json.dumps(chat()).encode()
        client = self.one.dial(self.raw(f"Content-Length: {len(body)}", "Expect: 100-continue"))
        self.assertEqual(client.received, b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(body)
        self.one.provider.stop()
        self.one.settle(client)
        self.assertEqual(client.answer().status, 200)
        wrong = head("POST", "/v1/chat/completions", "Content-Type: application/json", "Content-Length: 5", "Expect: 100-continue", token="wrong")
        self.assertTrue(self.one.dial(wrong + b"\r\n").received.startswith(b"HTTP/1.1 401 "))

    def test_a_get_with_a_body(self) -> None:
        """GET and HEAD take no body; nothing of it is taken for the next request."""
        self.refused(request("GET /healthz HTTP/1.1", "Content-Length: 24") + b"GET /evil HTTP/1.1\r\n\r\n..", 400)
        self.refused(request("GET /healthz HTTP/1.1", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400)

    def test_what_follows_a_refusal_is_never_served(self) -> None:
        """A body that was refused unread may look like a request; the connection ends instead."""
        smuggled = post(chat())
        data = (
            head("POST", "/v1/chat/completions", "Content-Type: text/plain", f"Content-Length: {len(smuggled) + 5}") + b"\r\n" + b"x" * 5 + smuggled
        )
        self.refused(data + post(chat()), 415)
        self.assertEqual(len(self.one.provider.requests), 1)  # the next connection's


class SlowTests(HostileCase):
    """Deadlines, counted from the start and not from the last byte, and limits on connections."""

    def trickle(self, client: Client, pieces: bytes, step: float = 2) -> float:
        """One byte every two seconds until the connection is closed; how long that took."""
        waited = 0.0
        for value in pieces:
            if client.lost:
                break
            client.send(bytes((value,)))
            self.one.advance(step, client)
            waited += step
        return waited

    def test_h39_slow_headers(self) -> None:
        """H39: a head that trickles in is given up after 60 s, whether or not its first line is complete."""
        client = self.one.dial(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
        self.assertLessEqual(self.trickle(client, b"a" * 100), 66)
        self.assertEqual(client.statuses(), [408])
        client = self.one.dial()
        self.assertLessEqual(self.trickle(client, request("GET /healthz HTTP/1.1", "X-A: " + "a" * 100)), 66)
        self.assertEqual(client.statuses(), [408])
        client = self.one.dial(b"GET /")
        self.assertLessEqual(self.trickle(client, b"a" * 100), 66)
        self.assertEqual(client.statuses(), [])
        self.next_is_served()

    def test_h40_slow_body(self) -> None:
        """H40: one byte every 2 s: 408 after 60 s, its share of the budget is back, the log says 408."""
        client = self.one.dial(head("POST", "/v1/chat/completions", "Content-Type: application/json", "Content-Length: 1000") + b"\r\n")
        self.assertEqual(self.one.bodies.total - self.one.bodies.free, 1000)
        self.assertLessEqual(self.trickle(client, b" " * 100), 66)
        answer = client.answer()
        self.assertEqual((answer.status, answer.error["code"]), (408, "request_timeout"))
        self.assertEqual(client.received, b"")
        self.assertTrue(client.lost)
        self.assertEqual(self.one.bodies.free, self.one.bodies.total)
        self.assertEqual([line.code for line in self.one.access], [408])
        self.next_is_served()

    def test_h41_silence(self) -> None:
        """H41: a connection that says nothing is closed after 60 s, and so is one between requests."""
        silent, idle = self.one.dial(), self.one.dial(request("GET /healthz HTTP/1.1"))
        self.assertEqual(idle.answer().status, 200)
        self.one.advance(59, silent, idle)
        self.assertFalse(silent.lost or idle.lost)
        self.one.advance(1, silent, idle)
        self.assertTrue(silent.lost and idle.lost)
        self.assertEqual((silent.received, idle.received), (b"", b""))
        self.next_is_served()

    def test_h41_a_client_that_does_not_close(self) -> None:
        """H41: a connection that hangs in closing is reset 5 s later."""
        silent = self.one.dial()
        aborted: list[bool] = []
        self.patch(silent.server.transport, "abortConnection", lambda: aborted.append(True))
        self.patch(silent.server.transport, "loseConnection", lambda: None)
        self.one.advance(60)
        self.assertEqual(aborted, [])
        self.one.advance(5)
        self.assertEqual(aborted, [True])
        silent.server.transport.disconnecting = True

    def test_an_answer_that_is_not_taken(self) -> None:
        """With `Connection: close` too, a client that does not take its answer holds the connection for 65 s at most."""
        for data in (request("GET /healthz HTTP/1.1", "Connection: close"), b"GET /healthz HTTP/1.0\r\n\r\n"):
            client = self.one.dial()
            aborted: list[bool] = []
            transport = client.server.transport
            transport.loseConnection = lambda: None
            transport.abortConnection = lambda aborted=aborted: aborted.append(True)
            client.send(data)
            self.assertEqual(client.answer().status, 200)
            self.one.advance(60)
            self.one.advance(5)
            self.assertEqual(aborted, [True])
            transport.disconnecting = True

    def test_h42_idle_connections(self) -> None:
        """H42, in memory: many idle connections do not keep a new one from being served, and are closed in time."""
        idle = [self.one.dial(request("GET /healthz HTTP/1.1")) for _ in range(200)]
        self.next_is_served()
        self.one.advance(60, *idle)
        self.assertTrue(all(client.lost for client in idle))
        self.assertEqual(self.one.connections.open, 0)

    def test_h43_connections_of_one_address(self) -> None:
        """H43: the one too many of a remote address gets 503 and is closed; others, and this machine, are served; a place comes free again."""
        gateway = self.gateway({"gateway": {"limits": {"maxConnectionsPerAddress": 3}}})
        held = [gateway.dial(peer="192.0.2.1") for _ in range(3)]
        excess = gateway.dial(request("GET /healthz HTTP/1.1"), peer="192.0.2.1")
        answer = excess.answer()
        self.assertEqual((answer.status, answer.error["code"], answer.headers["retry-after"]), (503, "unavailable", "1"))
        self.assert_common_headers(answer)
        self.assertTrue(excess.lost)
        self.assertEqual(excess.received, b"")
        self.assertEqual(gateway.dial(request("GET /healthz HTTP/1.1"), peer="192.0.2.2").statuses(), [200])
        local = [gateway.dial() for _ in range(10)]
        self.assertFalse(any(client.lost for client in local))
        held[0].leave()
        self.assertEqual(gateway.dial(request("GET /healthz HTTP/1.1"), peer="192.0.2.1").statuses(), [200])
        self.next_is_served(gateway)

    def test_h43_one_network_is_one_address(self) -> None:
        """H43: the addresses of one IPv6 /64 count together."""
        gateway = self.gateway({"gateway": {"limits": {"maxConnectionsPerAddress": 2}}})
        gateway.dial(peer="2001:db8::1")
        gateway.dial(peer="2001:db8::2")
        self.assertEqual(gateway.dial(peer="2001:db8::3").statuses(), [503])
        self.assertFalse(gateway.dial(peer="2001:db8:0:1::1").lost)

    def test_connections_in_all(self) -> None:
        """`maxConnections` holds for everybody together, loopback too."""
        gateway = self.gateway({"gateway": {"limits": {"maxConnections": 5}}})
        held = [gateway.dial(peer=f"192.0.2.{number}") for number in range(5)]
        self.assertEqual(gateway.dial().statuses(), [503])
        held[0].leave()
        self.next_is_served(gateway)

    def test_h45_pipelined(self) -> None:
        """H45: three POSTs in one segment are answered one after the other, in order."""
        client = self.one.dial(b"".join(post(chat(text)) for text in ("a", "b", "c")))
        for text in ("a", "b", "c"):
            self.assertEqual(self.one.provider.seen, [{"role": "user", "content": text}])
            self.one.provider.say(f"answer {text}")
            self.one.provider.stop()
            self.one.settle(client)
        texts = [client.answer().json["choices"][0]["message"]["content"] for _ in range(3)]
        self.assertEqual(texts, ["answer a", "answer b", "answer c"])
        self.next_is_served()

    def test_h45_hundreds_pipelined(self) -> None:
        """H45: a full segment of small requests neither recurses nor stalls."""
        client = self.one.dial(request("GET /healthz HTTP/1.1") * 1_000)
        self.assertEqual(client.statuses(), [200] * 1_000)
        self.next_is_served()

    def test_h46_pipelined_behind_a_stream(self) -> None:
        """H46: a request sent while a stream is under way is answered after it, never into it."""
        client = self.one.dial(post(chat(stream=True)))
        self.one.provider.say("hello")
        self.one.settle(client)
        client.send(request("GET /healthz HTTP/1.1"))
        self.one.provider.say(" again")
        self.one.settle(client)
        self.assertNotIn(b'{"ok":true}', client.received)
        self.one.provider.stop()
        self.one.settle(client)
        self.assertTrue(client.answer().body.endswith(b"data: [DONE]\n\n"))
        self.assertEqual(client.answer().json, {"ok": True})
        self.next_is_served()

    def test_h46_flood_behind_a_stream(self) -> None:
        """H46: what is sent ahead is bounded: beyond 16 KiB the connection is not read until its turn comes."""
        client = self.one.dial(post(chat(stream=True)))
        paused: list[bool] = []
        self.patch(client.server._networkProducer, "pauseProducing", lambda: paused.append(True))
        client.send(request("GET /healthz HTTP/1.1") * 100)
        self.assertEqual(paused, [])
        client.send(request("GET /healthz HTTP/1.1") * 400)
        self.assertEqual(paused, [True])
        self.one.provider.stop()
        self.one.settle(client)
        self.assertEqual(client.statuses(), [200] * 501)

    def test_h48_stalled_reader(self) -> None:
        """H48: a client that stops reading stops the model at once, and is cut off after 120 s; its turn is recorded as aborted."""
        client = self.one.dial(post(chat(stream=True)))
        self.one.provider.say("one")
        self.one.settle(client)
        client.server.pauseProducing()
        for _ in range(5):
            self.one.provider.say("more")
        self.one.settle(client)
        self.assertEqual(self.one.provider.unread, 4)
        self.one.advance(119, client)
        self.assertEqual(self.one.provider.unread, 4)
        self.assertFalse(client.lost)
        self.one.advance(1, client)
        self.one.settle(client)
        self.assertTrue(client.lost)
        self.assertEqual(self.one.provider.closed, 1)
        self.assertEqual(self.one.store.turns[-1][1].outcome, "aborted")
        self.one.provider._queue.clear()
        self.next_is_served()

    def test_h49_leaving_at_each_stage(self) -> None:
        """H49: in the head, in the body, before the first event, in the stream: no run is left, the upstream is closed, the lane is free."""
        whole = post(chat(user="u"))
        for cut in (10, 60, whole.index(b"\r\n\r\n") + 4, len(whole) - 5):
            self.one.dial(whole[:cut]).leave()
            self.assertEqual(self.one.provider.requests, [])
        for stream in (False, True):
            for spoken in (False, True):
                before = self.one.provider.closed
                client = self.one.dial(post(chat(user="u", stream=stream)))
                if spoken:
                    self.one.provider.say("part")
                    self.one.settle(client)
                client.leave()
                self.one.settle()
                self.assertEqual(self.one.provider.closed, before + 1)
                _, result = self.one.store.turns[-1]
                self.assertEqual((result.outcome, result.text), ("aborted", "part" if spoken else ""))
                self.assertEqual(self.one.access[-1].code, 499)
        self.assertEqual(self.one.serve(user="u").status, 200)

    def test_h49_leaving_in_the_queue(self) -> None:
        """H49: a request that waits for its session's lane leaves the queue with its client; nothing is recorded of it."""
        first = self.one.dial(post(chat("first", user="u")))
        second = self.one.dial(post(chat("second", user="u")))
        third = self.one.dial(post(chat("third", user="u")))
        second.leave()
        self.one.settle()
        for client in (first, third):
            self.one.provider.stop()
            self.one.settle(client)
            self.assertEqual(client.answer().status, 200)
        self.assertEqual([bytes(turn.messages[0]) for turn, _ in self.one.store.turns if b"second" in bytes(turn.messages[0])], [])


class BodyTests(HostileCase):
    """What the JSON holds."""

    def test_h52_no_object(self) -> None:
        """H52: nothing, nonsense, other types, junk after it."""
        for body in (b"", b" ", b"x", b"[]", b'"s"', b"null", b"5", json.dumps(chat()).encode() + b"x", b"{", b'{"messages"'):
            self.refused(json_post(body), 400)

    def test_h53_deep_nesting(self) -> None:
        """H53: 100,000 levels are refused, in a field of ours, in one that is ignored, and as the whole body; quickly."""
        began = time.perf_counter()
        deep_list, deep_object = b"[" * 100_000, b'{"a":' * 100_000
        closed_list = deep_list + b"]" * 100_000
        user = b'{"messages":[{"role":"user","content":"hi"}]'
        bodies = (deep_list, deep_object, closed_list, user + b',"zzz":' + closed_list + b"}", user + b',"tools":[{"a":' + closed_list + b"}]}")
        for body in (*bodies, user + b',"functions":' + closed_list + b"}", user + b',"prediction":{"a":' + b"[" * 70 + b"]" * 70 + b"}}"):
            self.refused(json_post(body), 400)
        self.assertLess(time.perf_counter() - began, 5)

    def test_h54_numbers(self) -> None:
        """H54: NaN, infinity, numbers beyond any type."""
        for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5_000, b"01", b"+1", b".5"):
            for field in (b"temperature", b"max_tokens", b"seed", b"n"):
                self.refused(json_post(b'{"messages":[{"role":"user","content":"hi"}],"%b":%b}' % (field, number)), 400)

    def test_h55_duplicate_keys(self) -> None:
        """H55: the last of two equal keys wins."""
        client = self.one.dial(
            json_post(b'{"messages":[{"role":"user","content":"one","content":"two"}],"messages":[{"role":"user","content":"three"}]}')
        )
        self.one.provider.stop()
        self.one.settle(client)
        self.assertEqual(client.answer().status, 200)
        self.assertEqual(self.one.provider.seen, [{"role": "user", "content": "three"}])

    def test_h56_h58_encodings(self) -> None:
        """H56, H58: bytes that are no UTF-8, UTF-16; a byte order mark is forgiven."""
        text = json.dumps(chat())
        for body in (b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}'):
            self.refused(json_post(body), 400)
        self.all_refused([json_post(text.encode(coding)) for coding in ("utf-16", "utf-16-le", "utf-32")], 400)
        client = self.one.dial(json_post(b"\xef\xbb\xbf" + text.encode()))
        self.one.provider.stop()
        self.one.settle(client)
        self.assertEqual(client.answer().status, 200)

    def test_h57_lone_surrogates(self) -> None:
        """H57: half a character is refused, wherever it stands."""
        for body in (
            rb'{"messages":[{"role":"user","content":"\ud800"}]}',
            rb'{"messages":[{"role":"user","content":"\udc00 x"}]}',
            rb'{"messages":[{"role":"user","content":"hi"}],"user":"\ud83d"}',
            rb'{"messages":[{"role":"user","content":"hi"}],"model":"\ud83dx"}',
            rb'{"messages":[{"role":"user","content":"hi"}],"metadata":{"\ud83d":"x"}}',
        ):
            self.refused(json_post(body), 400)

    def test_h59_control_characters(self) -> None:
        """H59: a raw control character is no JSON; an escaped NUL is text like any other."""
        self.refused(json_post(b'{"messages":[{"role":"user","content":"a\x01b"}]}'), 400)
        client = self.one.dial(json_post(rb'{"messages":[{"role":"user","content":"a\u0000b"}]}'))
        self.one.provider.stop()
        self.one.settle(client)
        self.assertEqual(client.answer().status, 200)
        self.assertEqual(self.one.provider.seen[0]["content"], "a\x00b")

    def test_h60_wrong_types(self) -> None:
        """H60: a field of the wrong type is named."""
        wrong: dict[str, tuple[Any, ...]] = {
            "model": (5, [], {}, True),
            "messages": (5, "x", {}, None),
            "stream": (1, "true", []),
            "user": (5, ["x"], {}),
            "temperature": ("1", True, []),
            "top_p": ("1", {}),
            "max_tokens": ("1", 1.5, True),
            "max_completion_tokens": ("1", 1.5),
            "n": ("1", 1.5),
            "stop": (5, {}),
            "seed": ("1", 1.5),
            "tools": (5, {}, "x"),
            "tool_choice": (5, []),
            "stream_options": (5, [], "x"),
            "response_format": (5, "text"),
            "logprobs": (1, "x"),
            "metadata": (5, []),
            "store": (1, "x"),
            "parallel_tool_calls": (1, "x"),
            "reasoning_effort": (5, "tremendous"),
            "frequency_penalty": ("1",),
            "presence_penalty": ("1",),
            "logit_bias": (5, []),
        }
        for field, values in wrong.items():
            for value in values:
                self.refused(post({**chat(), field: value}), 400, param=field)
        self.refused(post(chat(stream_options={"include_usage": 1})), 400, param="stream_options.include_usage")

    def test_h61_messages(self) -> None:
        """H61: no messages, none that is one, roles that are none, no word of the user."""
        for value in ([], {}, [1], [None], [[]], [{}], [{"content": "hi"}], [{"role": 5}], [{"role": None, "content": "x"}]):
            answer = self.refused(post({"messages": value}), 400)
            self.assertTrue(answer.error["param"].startswith("messages"), answer.error)
        self.refused(post({"model": "mayros"}), 400, param="messages")
        self.refused(post(messages({"role": "x", "content": "hi"})), 400, param="messages[0].role")
        self.refused(post(messages({"role": "system", "content": "hi"})), 400, param="messages")
        self.refused(post(messages({"role": "assistant", "content": "hi"})), 400, param="messages")

    def test_h62_contents(self) -> None:
        """H62: contents that are none are named."""
        for content in (5, [5], [{"type": "zzz"}], [{"type": "text"}], [{"text": "x"}], None, [], {}, [{"type": "text", "text": 5}], True):
            answer = self.refused(post(messages({"role": "user", "content": content})), 400)
            self.assertTrue(answer.error["param"].startswith("messages[0].content"), answer.error)

    def test_h63_ranges(self) -> None:
        """H63: numbers out of range are named."""
        ranges: dict[str, tuple[float, ...]] = {
            "n": (0, 2, -1, 10**9),
            "max_tokens": (0, -1, 10**30),
            "max_completion_tokens": (0, -1),
            "temperature": (99, -1, 2.01),
            "top_p": (-0.1, 1.1),
            "frequency_penalty": (-3, 3),
            "presence_penalty": (-3, 3),
            "seed": (10**30,),
            "top_logprobs": (-1, 21, 5),
        }
        for field, values in ranges.items():
            for value in values:
                self.refused(post(chat(**{field: value})), 400, param=field, code="invalid_value")

    def test_h64_large_requests(self) -> None:
        """H64: 10,000 messages, and one of 5 MB with brackets in it, are judged in well under a second; more are refused."""
        wide = self.gateway({"models": {"providers": {"fake": {"models": [{"id": "one", "contextWindow": 100_000_000}]}}}})
        many = messages(*[{"role": "user", "content": "hi"}] * 10_000)
        for body in (many, chat("x" * 5_000_000 + "{[" * 100)):
            began = time.perf_counter()
            client = wide.dial(post(body))
            wide.provider.stop()
            wide.settle(client)
            self.assertEqual(client.answer().status, 200)
            self.assertLess(time.perf_counter() - began, 2)
        self.refused(post(messages(*[{"role": "user", "content": "hi"}] * 10_001)), 400, param="messages", gateway=wide)

    def test_h65_session_keys(self) -> None:
        """H65: keys of the gateway's own name spaces, too long, malformed, or sent twice."""
        bad = (
            "a" * 513,
            "subagent:x",
            "cron:x",
            "acp:x",
            "agent:main:subagent:x",
            "AGENT:main:Cron:x",
            "agent:",
            "agent:main",
            "agent:main:",
            "agent::x",
        )
        for key in (*bad, "a\x7fb", "a\x1bb", "a\xc2\x85b", "\xff", "agent:../x:y"):
            answer = self.refused(post(chat(), f"x-mayros-session-key: {key}"), 400)
            self.assertEqual(answer.error["param"], "x-mayros-session-key")
        self.refused(post(chat(), "x-mayros-session-key: a", "x-mayros-session-key: b"), 400)
        self.refused(post(chat(), "x-mayros-session-key: agent:beta:x", "x-mayros-agent-id: main"), 400)
        self.refused(post(chat(model="mayros:main"), "x-mayros-session-key: agent:beta:x"), 400)
        self.refused(post(chat(), "x-mayros-session-key: agent:nobody:x"), 404)

    def test_h66_agent_ids(self) -> None:
        """H66: ids that are paths, or no ids, are nobody's."""
        bad = ("../../etc", "..%2f", "a/b", "a" * 10_000, "-x", "a b", "é", "nobody")
        for name in bad:
            self.refused(post(chat(), f"x-mayros-agent-id: {name}"), 404, 400)
            self.refused(post(chat(), f"x-mayros-agent: {name}"), 404, 400)
            for prefix in ("mayros:", "mayros/", "agent:"):
                answer = self.refused(post(chat(model=prefix + name)), 404, code="model_not_found", param="model")
                self.assertLess(len(answer.body), 1000)
        self.refused(post(chat(model="mayros:a\x00b")), 404)

    def test_h67_users(self) -> None:
        """H67: a user is one session of its own, never another's key; what cannot be a key is refused."""
        for user in ("../../x", "a:b:c", "\U0001f600", "agent:beta:main", "subagent:x", "Main", "main"):
            self.assertEqual(self.one.serve(user=user).status, 200)
            self.assertEqual(str(self.one.store.turns[-1][0].session), f"agent:main:openai-user:{user}")
        self.all_refused([post(chat(user=user)) for user in ("a\nb", "a" * 10_000, "a\x00", "a\u2028b")], 400, param="user")
        self.assertEqual(self.one.serve(user=" \n ").status, 200)
        self.assertTrue(self.one.store.turns[-1][0].stateless)


class AnyBytesTests(HostileCase):
    """Properties: how bytes are cut does not matter; whatever is damaged in them harms nobody."""

    REQUESTS = (
        request("GET /healthz HTTP/1.1")
        + post({"messages": []})
        + chunked(chunk(b'{"messages"'), chunk(b":[]}"), b"0\r\nX-Trailer: 1\r\n\r\n")
        + request("HEAD /nowhere HTTP/1.1").replace(b"HEAD", b"GET")
        + post({"messages": [5]}, "Expect: 100-continue")
        + request("OPTIONS / HTTP/1.1")
        + post({"messages": []}, token="wrong")
    )

    @FIXED
    @given(st.lists(st.integers(1, len(REQUESTS) - 1), max_size=12))
    def test_any_segments(self, cuts: list[int]) -> None:
        """The same answers, whatever the segments."""
        client = self.one.dial()
        start = 0
        for end in [*sorted(cuts), len(self.REQUESTS)]:
            client.send(self.REQUESTS[start:end])
            start = end
        self.assertEqual(client.statuses(), [200, 400, 400, 404, 400, 204, 401])
        self.assertEqual(self.one.leftovers(), {})

    @FIXED
    @given(st.lists(st.tuples(st.integers(0, len(REQUESTS) - 1), st.binary(max_size=3)), min_size=1, max_size=4))
    def test_any_damage(self, places: list[tuple[int, bytes]]) -> None:
        """Bytes changed, dropped or put in: answers or a close, nothing that is no answer, nothing left, no traceback."""
        data = self.REQUESTS
        for place, piece in places:
            data = data[:place] + piece + data[place + 1 :]
        client = self.one.dial(data)
        for _ in range(2):
            self.one.advance(61, client)
        self.one.advance(6, client)
        self.assertTrue(client.lost)
        client.statuses()
        self.assertEqual(self.one.leftovers(), {})


class ProxyProtocolTests(HostileCase):
    """A PROXY header is believed from a trusted proxy only."""

    def behind(self, gateway: Harness, peer: str, data: bytes) -> Client:
        """A connection through Twisted's `haproxy:` wrapper."""
        client, wrapper = Client(), HAProxyWrappingFactory(gateway.site).buildProtocol(IPv4Address("TCP", peer, 40_000))
        there = iosim.FakeTransport(wrapper, isServer=True, peerAddress=IPv4Address("TCP", peer, 40_000))
        client.pump = iosim.connect(wrapper, there, client, iosim.FakeTransport(client, isServer=False))
        gateway.clients.append(client)
        client.send(data)
        return client

    def test_from_a_trusted_proxy(self) -> None:
        """The client is whom the header names, never local: its failures are counted under its own address."""
        gateway = self.gateway({"gateway": {"trustedProxies": ["10.0.0.1"], **RATE["gateway"]}})
        client = self.behind(gateway, "10.0.0.1", b"PROXY TCP4 192.0.2.9 10.0.0.2 1 2\r\n" + post(chat(), token="wrong"))
        self.assertEqual(client.statuses(), [401])
        self.assertEqual(gateway.access[-1].remote, "192.0.2.9")
        self.next_is_served(gateway)

    def test_from_anybody_else(self) -> None:
        """A header from elsewhere is refused, and so is what hides behind loopback."""
        for peer in ("10.0.0.7", "127.0.0.1"):
            client = self.behind(self.one, peer, b"PROXY TCP4 192.0.2.9 10.0.0.2 1 2\r\n" + post(chat()))
            answer = client.answer()
            self.assertEqual((answer.status, answer.error["code"]), (403, "proxy_not_trusted"))
        self.next_is_served()

    def test_garbage_instead(self) -> None:
        """No PROXY header at all closes the connection."""
        client = self.behind(self.one, "10.0.0.7", request("GET /healthz HTTP/1.1"))
        self.assertTrue(client.lost)
        self.next_is_served()
