"""What a run says while it lives. Frozen values; lists of them travel through provider, agent, run, owner and watchers.

A list holds what one read of the provider's socket brought, and leaves in one write. Imports nothing of ours.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Outcome = Literal["ok", "error", "aborted", "timeout"]
FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]


class Event(msgspec.Struct, frozen=True, gc=False):
    """Root of all events; dispatch by `type(event) is ...`."""


class Usage(Event, frozen=True, gc=False):
    """Tokens as the provider reported them; disjoint counts: `input` without cached ones, `output` with reasoning."""

    input: int = 0
    output: int = 0
    cache_read: int = 0
    cache_write: int = 0
    reasoning: int = 0

    def plus(self, other: Usage) -> Usage:
        """The sum over several model calls of one run."""
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cache_read + other.cache_read,
            self.cache_write + other.cache_write,
            self.reasoning + other.reasoning,
        )


class RunStarted(Event, frozen=True, gc=False):
    """The run has its lane and its slot and begins."""

    run_id: str
    session_key: str
    agent_id: str
    started_at_ms: int


class ModelAnswered(Event, frozen=True, gc=False):
    """The provider's first sign of life: from here on no other model is tried once text has followed."""

    provider: str
    model: str


class TextDelta(Event, frozen=True, gc=False):
    """More of the answer's text; whole characters."""

    text: str


class ReasoningDelta(Event, frozen=True, gc=False):
    """More of the model's reasoning, where it shows it."""

    text: str


class ToolCallDelta(Event, frozen=True, gc=False):
    """A part of a tool call that the model is writing. `index` tells the calls of one model turn apart; id and name come in its first part."""

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
