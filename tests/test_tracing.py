"""W3C trace context: what a `traceparent` says, where it is logged, and who is told."""

from __future__ import annotations

from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.tracing import Trace, parse
from mayros.providers.openai_chat import OpenAIChat
from tests.helpers import Harness, HarnessCase, chat, post
from tests.test_openai_chat import WithServer, provider, request

ID, PART = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class ParseTests(SynchronousTestCase):
    """`traceparent`, version 00 and what is known of later ones."""

    def test_good(self) -> None:
        """The id and the flags that are known; bit 1 says that the id is random."""
        for text, flags in (("00-{}-{}-01", "01"), ("00-{}-{}-03", "03"), ("00-{}-{}-00", "00"), ("cc-{}-{}-09-more", "01"), (" 00-{}-{}-01 ", "01")):
            self.assertEqual(parse(text.format(ID, PART).encode()), Trace(ID, flags), text)

    def test_bad(self) -> None:
        """Says nothing, and is no error."""
        for text in (
            *("", "x", f"00-{ID}-{PART}", f"00-{ID}-{PART}-1", f"00-{ID}-{PART}-01-more", f"ff-{ID}-{PART}-01", f"00-{ID.upper()}-{PART}-01"),
            *(f"00-{'0' * 32}-{PART}-01", f"00-{ID}-{'0' * 16}-01", f"00-{ID}x-{PART}-01", f"00-{ID}-{PART}-01\n", "00-" * 10_000),
        ):
            self.assertIsNone(parse(text.encode()), text[:100])

    def test_one_further_on(self) -> None:
        """The same whole, another part each time."""
        made = {Trace(ID, "01").header() for _ in range(10)}
        self.assertEqual(len(made), 10)
        for text in made:
            self.assertRegex(text, rf"^00-{ID}-[0-9a-f]{{16}}-01$")


class DoorTests(HarnessCase):
    """Through the gateway."""

    def test_it_is_logged_and_goes_with_the_request(self) -> None:
        """The access log has the id; the provider's adapter gets it. Two headers, or a bad one, are none."""
        gateway: Harness = self.gateway()
        gateway.serve("x")
        answers = []
        for lines in ((f"traceparent: 00-{ID}-{PART}-01",), (f"traceparent: 00-{ID}-{PART}-01",) * 2, ("traceparent: nonsense",), ()):
            client = gateway.dial(post(chat(), *lines))
            gateway.provider.say("ok")
            gateway.provider.stop()
            gateway.settle(client)
            answers.append(client.answer().status)
        self.assertEqual(answers, [200] * 4)
        self.assertEqual([line.trace for line in gateway.access[-4:]], [ID, None, None, None])
        self.assertEqual([request.trace for request in gateway.provider.requests[-4:]], [Trace(ID, "01"), None, None, None])


class ProviderTests(WithServer):
    """What providers are told."""

    def sent(self, told: bool) -> bytes:
        self.make(OpenAIChat, provider(traceparent=told))
        self.ask(replace(request(self.of), trace=Trace(ID, "01")))
        return self.server.wires[-1].request.partition(b"\r\n\r\n")[0]  # type: ignore[no-any-return]

    def test_those_that_are_allowed_to_know_are_told(self) -> None:
        """With an id of the part that is new; by default nobody is."""
        self.assertRegex(self.sent(True).decode(), rf"\r\ntraceparent: 00-{ID}-(?!{PART})[0-9a-f]{{16}}-01")
        self.assertNotIn(b"traceparent", self.sent(False))
