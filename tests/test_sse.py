"""The decoder of server-sent events."""

from __future__ import annotations

import itertools
import os

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.wire.sse import Decoder, Event, TooLong, numbered

settings.register_profile("sse", derandomize="CI" in os.environ, deadline=None, database=None)
SETTINGS = settings.get_profile("sse")

#: Pieces of streams that put lines, ends of lines and fields next to each other in every way.
ATOMS = st.sampled_from(
    [b"data", b"data:", b"data: ", b"event: ", b"id: 1", b"retry: 5", b": comment", b"x", b" ", b":", b"{}", b"[DONE]", b"\xc3\xa9", b"\xff", b"\x00"]
    + [b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n", b"\r\r"] * 2
    + [b"\xef\xbb\xbf", b"\xef"]
)
STREAMS = st.lists(ATOMS, max_size=40).map(b"".join)


def decode(*pieces: bytes, limit: int = 1 << 20) -> list[Event]:
    """All events of a stream that comes in these pieces."""
    decoder = Decoder(limit)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    decoder.close()
    return events


def naive(stream: bytes) -> list[Event]:
    """The standard's algorithm, line by line, as it stands there."""
    stream = stream.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    events, data, name = [], b"", b""
    for line in stream.split(b"\n")[:-1]:  # the last one has no end
        if line == b"":
            if data:
                events.append((name, data[:-1]))
            data, name = b"", b""
        elif not line.startswith(b":"):
            field, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if field == b"data":
                data += value + b"\n"
            elif field == b"event":
                name = value
    return events


class Rules(SynchronousTestCase):
    """What the standard says, by example."""

    def test_one_data_line_is_an_event(self) -> None:
        """The usual stream of a model: one data line for each event."""
        self.assertEqual(decode(b"data: {}\n\ndata: [DONE]\n\n"), [(b"", b"{}"), (b"", b"[DONE]")])

    def test_fields(self) -> None:
        """Spaces, names, comments, several lines of data and unknown fields."""
        for stream, events in {
            b"data:x\n\n": [(b"", b"x")],
            b"data:  x\n\n": [(b"", b" x")],
            b"data\n\n": [(b"", b"")],
            b"data:\ndata\n\n": [(b"", b"\n")],
            b"data: a\ndata: b\n\n": [(b"", b"a\nb")],
            b"event: error\ndata: x\n\n": [(b"error", b"x")],
            b"event:  a\ndata:  x\n\n": [(b" a", b" x")],
            b"event: a\ndata:x\n\n": [(b"a", b"x")],
            b"event: data: a\ndata: x\n\n": [(b"data: a", b"x")],
            b"event: a\nevent: b\ndata: x\n\n": [(b"b", b"x")],
            b"event: a\n\ndata: x\n\n": [(b"", b"x")],
            b": ping\n\n": [],
            b": ping\ndata: x\nid: 7\nretry: 1\nwhatever: y\n\n": [(b"", b"x")],
            b"database: x\n\n": [],
            b" data: x\n\n": [],
            b"\n\n\n\n\ndata: x\n\n\n\ndata: y\n\n": [(b"", b"x"), (b"", b"y")],
        }.items():
            self.assertEqual(decode(stream), events, stream)

    def test_line_ends(self) -> None:
        """LF, CR and CRLF end a line, also mixed, and also in the middle of a CRLF between two pieces."""
        for stream in (b"data: a\n\ndata: b\n\n", b"data: a\r\rdata: b\r\r", b"data: a\r\n\r\ndata: b\r\n\r\n", b"data: a\r\n\ndata: b\r\r\n"):
            for pieces in ([stream], [bytes([byte]) for byte in stream]):
                self.assertEqual(decode(*pieces), [(b"", b"a"), (b"", b"b")], pieces)

    def test_a_carriage_return_counts_at_once(self) -> None:
        """An event that ends with CR does not wait for the byte after it."""
        decoder = Decoder()
        self.assertEqual(decoder.feed(b"data: a\r\n\r"), [(b"", b"a")])
        self.assertEqual(decoder.feed(b"\ndata: b\r\n\r\n"), [(b"", b"b")])

    def test_byte_order_mark(self) -> None:
        """A mark at the start is skipped, one later is not."""
        self.assertEqual(decode(b"\xef", b"\xbb", b"\xbfdata: a\n\n"), [(b"", b"a")])
        self.assertEqual(decode(b"data: \xef\xbb\xbfa\n\n"), [(b"", b"\xef\xbb\xbfa")])
        self.assertEqual(decode(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n"), [])

    def test_an_unfinished_event_is_none(self) -> None:
        """What has no blank line after it was cut off."""
        self.assertEqual(decode(b"data: a\n\ndata: b\n"), [(b"", b"a")])


class Bounds(SynchronousTestCase):
    """A stream without ends stays small (U09)."""

    def test_a_line_without_end(self) -> None:
        """Ten megabytes in one line are refused when the first one is full, in whatever pieces they come."""
        for size in (1000, 65_536, 10 << 20):
            decoder = Decoder()
            fed = 0
            with self.assertRaises(TooLong):
                while fed < 10 << 20:
                    fed += size
                    decoder.feed(b"x" * size)
            self.assertLess(fed, (1 << 20) + size + 2)

    def test_an_event_of_many_lines(self) -> None:
        """The bound is on the event, not only on its lines."""
        decoder = Decoder(100)
        with self.assertRaises(TooLong):
            for _ in range(20):
                decoder.feed(b"data: x\n")

    def test_the_bound_is_exact(self) -> None:
        """An event of just that size passes and one byte more does not, whatever the pieces."""
        fits, over = b"data: " + b"x" * 94 + b"\n\n", b"data: " + b"x" * 95 + b"\n\n"
        for cut in (0, 1, 50, 100, 101, 102):
            self.assertEqual(decode(fits[:cut], fits[cut:], limit=100), [(b"", b"x" * 94)])
            self.assertRaises(TooLong, decode, over[:cut], over[cut:], limit=100)

    def test_many_events_in_one_piece(self) -> None:
        """A large read full of small events is no large event."""
        self.assertEqual(len(decode(b"data: x\n\n" * 1000, limit=100)), 1000)


class Properties(SynchronousTestCase):
    """Whatever the stream and however it is cut."""

    @given(STREAMS, st.lists(st.integers(0, 200), max_size=8))
    @settings(SETTINGS, max_examples=120)
    def test_any_cut_gives_the_same_events(self, stream: bytes, cuts: list[int]) -> None:
        """Pieces of any size, empty ones too, give what the whole stream gives, and that is what the standard's algorithm gives."""
        borders = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
        pieces = [stream[start:end] for start, end in itertools.pairwise(borders)]
        self.assertEqual(decode(*pieces), naive(stream))
        self.assertEqual(decode(stream), naive(stream))

    @given(STREAMS)
    @settings(SETTINGS, max_examples=60)
    def test_byte_by_byte(self, stream: bytes) -> None:
        """The worst cut of all."""
        self.assertEqual(decode(*(bytes([byte]) for byte in stream)), naive(stream))


class Ids(SynchronousTestCase):
    """The ids of our own events."""

    def test_numbered(self) -> None:
        """Each event gets its own, counted on; what it says is not changed, and readers that know no ids read the same."""
        events = b'data: {"a":"\\n"}\n\nevent: error\ndata: x\n\n'
        with_ids = numbered(events, b"run", 9)
        self.assertEqual(with_ids, [b'id: run:9\ndata: {"a":"\\n"}\n\n', b"id: run:10\nevent: error\ndata: x\n\n"])
        self.assertEqual(decode(b"".join(with_ids)), decode(events))
        self.assertEqual(numbered(b"", b"run", 1), [])
