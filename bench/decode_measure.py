"""What each adapter's decoder costs: in this process, without a server. CPU time for a delta, from bytes to events."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from bench.measure import Effort, Failures, Row, own
from bench.rig import Rig
from bench.upstream import stream_at_once
from bench.vendors import stream
from bench.wire import chunks
from mayros.events import TextDelta
from mayros.net.redact import Redactor
from mayros.providers.adapter import StreamDecoder
from mayros.providers.anthropic_decoder import AnthropicDecoder
from mayros.providers.chat_decoder import ChatDecoder
from mayros.providers.google_decoder import GoogleDecoder
from mayros.providers.responses_decoder import ResponsesDecoder

TOKENS, REPEATS = 2_000, 5
_MADE: dict[str, tuple[bytes, Callable[[], StreamDecoder]]] = {
    "openai-completions": (stream_at_once(TOKENS), lambda: ChatDecoder("mock", "m", Redactor(()), tools=True, think_tags=True)),
    "anthropic-messages": (stream("anthropic", TOKENS), lambda: AnthropicDecoder("mock", "m", Redactor(()), tools=True)),
    "openai-responses": (stream("responses", TOKENS), lambda: ResponsesDecoder("mock", "m", Redactor(()), tools=True)),
    "google-generative-ai": (stream("google", TOKENS), lambda: GoogleDecoder("mock", "m", Redactor(()), tools=True)),
}


def decoding(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """Streams of 2,000 deltas, each event a read of its own, as from a slow model; the median of a round counts."""
    rows = []
    for api, (answer, make) in _MADE.items():
        reads = list(chunks(answer.partition(b"\r\n\r\n")[2]))

        def once(reads: list[bytes] = reads, make: Callable[[], StreamDecoder] = make) -> float:
            decoder, deltas = make(), 0
            began = time.process_time()
            for read in reads:
                deltas += sum(type(event) is TextDelta for event in decoder.feed(read))
            decoder.close()
            spent = time.process_time() - began
            assert deltas == TOKENS, deltas
            return spent / deltas * 1e6

        values = [statistics.median(once() for _ in range(REPEATS)) for _ in range(effort.rounds)]
        rows.append(own(f"decoding {api}: CPU of a delta, us", values, "{:.1f}", 15))
    return rows


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"decoding": decoding}
