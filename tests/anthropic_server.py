"""A server in a test that refuses what Anthropic refuses: it looks at a request, and answers nothing."""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from mayros.providers.anthropic import generation

_TOP = {
    *("model", "max_tokens", "stream", "system", "messages", "tools", "tool_choice", "thinking", "output_config"),
    *("temperature", "top_p", "stop_sequences"),
}
_BLOCKS: dict[str, tuple[set[str], set[str]]] = {  # needed, and possible
    "text": ({"text"}, {"cache_control"}),
    "image": ({"source"}, {"cache_control"}),
    "thinking": ({"thinking", "signature"}, set()),
    "redacted_thinking": ({"data"}, set()),
    "tool_use": ({"id", "name", "input"}, {"cache_control"}),
    "tool_result": ({"tool_use_id"}, {"content", "is_error", "cache_control"}),
}
_ROLES = {"user": {"text", "image", "tool_result"}, "assistant": {"text", "thinking", "redacted_thinking", "tool_use"}}
_THINKING = ("thinking", "redacted_thinking")


class Refused(Exception):
    """A 400; the text is its message."""


def need(fine: object, why: str) -> None:
    """Refuse."""
    if not fine:
        raise Refused(why)


class Strict:
    """Checks requests. `thoughts`: the blocks of thinking that it gave out; `refuses`: what this one refuses, and with which words."""

    def __init__(self, refuses: tuple[str, str] | None = None) -> None:
        self.thoughts: list[dict[str, Any]] = []
        self.body: dict[str, Any] = {}
        self.refuses, self.refusals = refuses, 0

    def check(self, request: bytes) -> None:
        """Raise Refused for what the vendor would refuse."""
        head, _, body = request.partition(b"\r\n\r\n")
        need(b"anthropic-version: 2023-06-01" in head, "anthropic-version: header is required")
        self.body = parsed = json.loads(body)
        if self.refuses is not None and self._has(parsed, self.refuses[0], body):
            self.refusals += 1
            raise Refused(self.refuses[1])
        need(set(parsed) <= _TOP, f"{set(parsed) - _TOP}: Extra inputs are not permitted")
        need(type(parsed.get("max_tokens")) is int and parsed["max_tokens"] > 0, "max_tokens: Field required")
        self._thinking(parsed)
        for tool in parsed.get("tools", ()):
            need(set(tool) <= {"name", "description", "input_schema"}, "tools: Extra inputs are not permitted")
            need(tool["input_schema"].get("type") == "object", "input_schema.type: Field required")
            need(not {"oneOf", "anyOf", "allOf"} & set(tool["input_schema"]), "input_schema does not support oneOf, allOf, or anyOf at the top level")
        self._messages(parsed)
        need(body.count(b'"cache_control"') <= 4, "A maximum of 4 blocks with cache_control may be provided")

    @staticmethod
    def _has(parsed: dict[str, Any], what: str, body: bytes) -> bool:
        thinking = parsed.get("thinking", {})
        kinds = {"budget": thinking.get("type") == "enabled", "adaptive": thinking.get("type") == "adaptive"}
        return kinds[what] if what in kinds else f'"{what}"'.encode() in body

    def _thinking(self, parsed: dict[str, Any]) -> None:
        thinking, made = parsed.get("thinking"), generation(parsed["model"]) or (0, 0)
        old = self.refuses is None and made < (4, 6)
        if thinking is None:
            return
        need(not {"temperature", "top_p"} & set(parsed), "`temperature` may only be set to 1 when thinking is enabled")
        if thinking["type"] == "enabled":
            need(self.refuses is not None or made < (4, 7), "thinking.type.enabled is not supported")
            need(1024 <= thinking["budget_tokens"] < parsed["max_tokens"], "budget_tokens must be at least 1024 and less than max_tokens")
        else:
            need(not old, "adaptive thinking is not supported on this model")
            need("budget_tokens" not in thinking, "budget_tokens: Extra inputs are not permitted")

    def _messages(self, parsed: dict[str, Any]) -> None:
        turns = parsed["messages"]
        need(turns and turns[0]["role"] == "user", "messages: first message must use the user role")
        need(turns[-1]["role"] == "user", "This model does not support assistant message prefill")
        open_calls: list[str] = []
        for at, turn in enumerate(turns):
            need(set(turn) == {"role", "content"} and turn["content"], f"messages.{at}: Extra inputs are not permitted")
            need(at == 0 or turn["role"] != turns[at - 1]["role"], "roles must alternate")
            for block in turn["content"]:
                self._block(block, turn["role"], at)
            results = [block.get("tool_use_id") for block in turn["content"]]
            count = len(open_calls)
            need(
                sorted(results[:count], key=str) == sorted(open_calls),
                f"messages.{at}: tool_use ids were found without tool_result blocks immediately after",
            )
            need(not any(results[count:]), f"messages.{at}: unexpected tool_use_id found in tool_result blocks")
            open_calls = [block["id"] for block in turn["content"] if block["type"] == "tool_use"]
            need(len(set(open_calls)) == len(open_calls), "tool_use ids must be unique")
        uses = [block for turn in turns for block in turn["content"] if block["type"] == "tool_use"]
        need(not uses or parsed.get("tools"), "Requests which include tool_use or tool_result blocks must define tools.")
        self._order(parsed, turns)

    def _order(self, parsed: dict[str, Any], turns: list[dict[str, Any]]) -> None:
        """With a budget, the turn of the calls that are answered now begins with thinking; and what was thought comes back unchanged."""
        back = [block for turn in turns for block in turn["content"] if block["type"] in _THINKING]
        need(all(block in self.thoughts for block in back), "Invalid `signature` in `thinking` block")
        first = len(turns) - 1
        while first > 0 and turns[first]["content"][0]["type"] == "tool_result":
            first -= 2
        if (parsed.get("thinking") or {}).get("type") == "enabled" and first + 1 < len(turns):
            kind = turns[first + 1]["content"][0]["type"]
            need(
                kind in _THINKING, f"Expected `thinking` or `redacted_thinking`, but found `{kind}`. A final `assistant` message must start with one"
            )

    @staticmethod
    def _block(block: dict[str, Any], role: str, at: int) -> None:
        kind = block.get("type")
        need(kind in _ROLES[role], f"messages.{at}: {kind} is not allowed here")
        needed, possible = _BLOCKS[kind]
        names = set(block) - {"type"}
        need(needed <= names <= needed | possible, f"messages.{at}.{kind}: {names ^ needed}: Extra inputs are not permitted")
        if kind == "text":
            need(block["text"].strip(), "text content blocks must contain non-whitespace text")
        elif kind == "tool_use":
            need(re.fullmatch("[a-zA-Z0-9_-]{1,64}", block["id"]), "tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
            need(isinstance(block["input"], dict), "tool_use.input: Input should be a valid dictionary")
        elif kind == "image":
            need(block["source"]["media_type"] in ("image/png", "image/jpeg", "image/gif", "image/webp"), "media_type")
            base64.b64decode(block["source"]["data"], validate=True)
        elif kind == "tool_result" and isinstance(block.get("content"), list):
            for inner in block["content"]:
                need(inner["type"] in ("text", "image"), "tool_result.content")
                Strict._block(inner, "user", at)
