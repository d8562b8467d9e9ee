"""What a run says while it lives. Frozen values; lists of them travel through provider, agent, run, owner and watchers.

A list holds what one read of the provider's socket brought, and leaves in one write. Imports nothing of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Outcome = Literal["ok", "error", "aborted", "timeout"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Event(msgspec.Struct, frozen=True, gc=False):
    """Root of all events; dispatch by `type(event) is ...`."""


class Usage(Event, frozen=True, gc=False):
    """Tokens as the provider reported them; disjoint counts: `input` without cached ones, `output` with reasoning (`reasoning` of it).

    `cost_nano`: what they cost at the model's listed prices, in US dollars / 10^9; the loop fills it in, providers leave it 0.
    """

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0
    cost_nano: int = 0

    def plus(self, other: Usage) -> Usage:
        """The sum over several model calls of one run."""
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cache_read + other.cache_read,
            self.cache_write + other.cache_write,
            self.reasoning + other.reasoning,
            self.cost_nano + other.cost_nano,
        )


class RunStarted(Event, frozen=True, gc=False):
    """The run has its lane and its slot and begins."""

    run_id: str
    session_key: str
    agent_id: str
    started_at_ms: int


class ModelFailed(Event, frozen=True, gc=False):
    """A model, or a key of its provider, could not answer, and another try follows: what failed, as which kind of failure, and what is tried next.

    `credential` names the key and is none. `kind` is a word of core/failover.py, or why it was not asked (core/course.py). `provider`, `model`: what
    failed; `next_*`: what is tried now.
    """

    provider: str
    model: str
    credential: str
    kind: str
    error: str
    next_provider: str
    next_model: str
    next_credential: str


class ModelAnswered(Event, frozen=True, gc=False):
    """The provider's first sign of life: from here on no other model is tried once text has followed."""

    provider: str
    model: str


class TextDelta(Event, frozen=True, gc=False):
    """More of the answer's text; whole characters. `logprobs`: how likely its tokens were, a JSON array as OpenAI writes it, where that was asked."""

    text: str
    logprobs: bytes | None = None


def one_array(arrays: Sequence[bytes]) -> bytes:
    """JSON arrays, none of them empty, as one."""
    return arrays[0] if len(arrays) == 1 else b"[%b]" % b",".join([array[1:-1] for array in arrays])


class ReasoningDelta(Event, frozen=True, gc=False):
    """More of the model's reasoning, where it shows it."""

    text: str


class ToolCallDelta(Event, frozen=True, gc=False):
    """A part of a tool call that the model is writing. `index` tells the calls of one model turn apart; id and name come in its first part."""

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class CallerCallDelta(Event, frozen=True, gc=False):
    """A part of a call of one of the caller's own tools, for the caller. `index` counts these calls from 0 within the model turn.

    `id` and `name` are set in the first part of a call, and in no other.
    """

    index: int
    arguments: str
    id: str | None = None
    name: str | None = None


class ToolStarted(Event, frozen=True, gc=False):
    """A tool of the gateway begins. `arguments` is JSON text, secrets redacted."""

    call_id: str
    name: str
    arguments: str


class ToolUpdate(Event, frozen=True, gc=False):
    """What a tool that is still working has put out so far; at most a few in a second."""

    call_id: str
    name: str
    text: str


class ToolFinished(Event, frozen=True, gc=False):
    """A tool has ended. `text` is what the model gets: bounded, secrets redacted."""

    call_id: str
    name: str
    is_error: bool
    text: str


class ProviderState(Event, frozen=True, gc=False):
    """What the vendor wants to have back with this model turn, unchanged, in the next request to the same model: signed reasoning, say.

    Before TurnFinished, at most once in a model turn, only where it has tool calls. `state` is a JSON object of at most 1 MiB, whose form is the
    adapter's own; the loop keeps it with the assistant message (messages.ProviderState) and never looks into it.
    """

    state: bytes


class TurnFinished(Event, frozen=True, gc=False):
    """One model turn is complete: why it stopped. `raw` is the provider's own word."""

    reason: FinishReason
    raw: str | None = None


class RunEnded(Event, frozen=True, gc=False):
    """The last event of every run, sent after the turn was committed. `error` is set unless `outcome` is "ok"."""

    outcome: Outcome
    finish_reason: FinishReason | None
    usage: Usage
    ended_at_ms: int
    error: Exception | None = None
