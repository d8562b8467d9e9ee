"""Server-sent events: the incremental decoder, and the ids of our own events. No I/O; imports nothing of ours.

The rules are WHATWG's ("Server-sent events", 9.2.6): lines end with LF, CR or CRLF, a blank line ends an event, a line that starts with a
colon is a comment, unknown fields are ignored, a byte order mark at the start is skipped. `id` and `retry` are of no use here and ignored.
The bytes of an event stay bytes: reading them as UTF-8 (with U+FFFD for what is invalid) is up to whoever reads the JSON in them.
"""

from __future__ import annotations

#: One event: its name (empty where none was given) and its data, lines joined by LF.
Event = tuple[bytes, bytes]

#: The most bytes one event, and so one line, may have.
EVENT_LIMIT = 1 << 20

_MARK = b"\xef\xbb\xbf"


class TooLong(ValueError):
    """One event of the stream is longer than the decoder's limit, in bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"One event of the stream is longer than {limit >> 20} MiB.")


class Decoder:
    """Takes a stream in pieces of any size and gives its events; the pieces' borders make no difference.

    The work is linear in the bytes, however small the pieces: what is unfinished is only looked at again once it is finished.
    """

    def __init__(self, limit: int = EVENT_LIMIT) -> None:
        self._limit = limit
        self._pending: list[bytes] = []  # an unfinished event; holds no blank line
        self._size = 0
        self._after_cr = False
        self._start: bytes | None = b""  # until it is known whether there is a byte order mark

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes, in order. Raises TooLong; the decoder is of no use after that."""
        if self._start is not None:
            data = self._start + data
            if len(data) < len(_MARK) and _MARK.startswith(data):
                self._start = data
                return []
            self._start = None
            data = data.removeprefix(_MARK)
        if self._after_cr or b"\r" in data:
            if not self._pending and not self._after_cr and len(data) <= self._limit and (whole := _whole(data)) is not None:
                return whole
            data = self._line_feeds(data)
        if self._pending:
            ends_here = data[:1] == b"\n" and self._pending[-1][-1:] == b"\n"
            if not ends_here and b"\n\n" not in data:
                return self._keep(data)
            self._pending.append(data)
            data = b"".join(self._pending)
            self._pending.clear()
            self._size = 0
        blocks = data.split(b"\n\n")
        rest = blocks.pop()
        if rest:
            self._keep(rest)
        events = []
        bounded = len(data) <= self._limit
        for block in blocks:
            if block[:6] == b"data: " and b"\n" not in block and (bounded or len(block) <= self._limit):
                events.append((b"", block[6:]))
            elif block[:7] == b"event: " and block.count(b"\n") == 1 and b"\ndata: " in block and (bounded or len(block) <= self._limit):
                name, _, data = block[7:].partition(b"\ndata: ")
                events.append((name, data))
            elif (event := self._fields(block)) is not None:
                events.append(event)
        return events

    def close(self) -> None:
        """The stream has ended. An event without its blank line is not an event."""
        self._pending.clear()
        self._size = 0

    def _keep(self, data: bytes) -> list[Event]:
        if data:
            self._pending.append(data)
            self._size += len(data)
            if self._size > self._limit + 1:  # + 1: the end of its last line, which is not part of an event
                raise TooLong(self._limit)
        return []

    def _line_feeds(self, data: bytes) -> bytes:
        """All line ends as LF. A CR at the end counts at once; the LF that may follow in the next piece is dropped there."""
        if not data:
            return data
        if self._after_cr and data[:1] == b"\n":
            data = data[1:]
        self._after_cr = data[-1:] == b"\r"
        # Split and joined: a third of the time of `replace` with two bytes.
        return b"\n".join(data.split(b"\r\n")).replace(b"\r", b"\n")

    def _fields(self, block: bytes) -> Event | None:
        """An event by the full rules, or None where there is no data."""
        if len(block) > self._limit:
            raise TooLong(self._limit)
        name = b""
        lines = []
        for line in block.split(b"\n"):
            field, _, value = line.partition(b":")
            if field == b"data":
                lines.append(value[1:] if value[:1] == b" " else value)
            elif field == b"event":
                name = value[1:] if value[:1] == b" " else value
        return (name, b"\n".join(lines)) if lines else None


def _whole(data: bytes) -> list[Event] | None:
    """The events of a read of nothing but whole ones of one line each, all ended by CRLF, as Google sends them; else None. Saves a copy."""
    if not data.endswith(b"\r\n\r\n"):
        return None
    events = []
    for block in data[:-4].split(b"\r\n\r\n"):
        if block[:6] != b"data: " or b"\n" in block or b"\r" in block:
            return None
        events.append((b"", block[6:]))
    return events


def numbered(events: bytes, stream: bytes, first: int) -> list[bytes]:
    """Each of some whole events (ended by blank lines, as we write them) with its id, `<stream>:<number>`; they are numbered from `first`."""
    return [b"id: %b:%d\n%b\n\n" % (stream, number, event) for number, event in enumerate(events.split(b"\n\n")[:-1], first)]
