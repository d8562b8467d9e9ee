"""Skills: folders with a SKILL.md that says when to use it. What its head says, where skills are looked for, and how the prompt lists them. Pure.

The head is YAML's plain part: `name: value` with plain, quoted, folded (`>`) or literal (`|`) texts, between two lines of `---`; what a value is made
of beyond that is not looked at. Source: agent-runtime facts, section 1.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

import msgspec

from mayros.core.workspace_ports import Skill

#: What a prompt lists at most.
MOST_LISTED, MOST_CHARS = 150, 30_000
MOST_NAME, MOST_DESCRIPTION = 64, 1_024
_KEY = re.compile(r"([A-Za-z][\w-]{0,63}):(?:[ \t]+(.*))?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NAME = re.compile(r"[\w][\w .:+-]{0,63}")
_INTRODUCTION = """\
## Skills

Before you answer, look through the descriptions below. Where one clearly fits, `read` its SKILL.md at its location and follow it; where several
fit, take the most specific. Never read more than one up front, and none where none fits. Paths in a SKILL.md are relative to its folder.
"""


class Head(msgspec.Struct, frozen=True):
    """What the head of a SKILL.md says. `needs` is its `metadata`, under this gateway's name or an older one; empty where there is none."""

    name: str
    description: str
    hidden: bool
    needs: Mapping[str, Any]


class Needs(msgspec.Struct, frozen=True, rename="camel"):
    """What a skill must find: `requires` of its metadata."""

    bins: tuple[str, ...] = ()
    any_bins: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    config: tuple[str, ...] = ()


class Gate(msgspec.Struct, frozen=True):
    """When a skill is listed; the part of `metadata` that matters here."""

    always: bool = False
    os: tuple[str, ...] = ()
    requires: Needs = Needs()


def folders(workspace: str, home: str, state_dir: str, extra: Sequence[str]) -> list[tuple[str, str]]:
    """Where skills are looked for, the first win over the later: `(root, path)`, nothing outside of `root` counts."""
    own = [(workspace, "skills"), (workspace, os.path.join(".agents", "skills"))]
    others = [os.path.join(home, ".agents", "skills"), os.path.join(state_dir, "skills")]
    others += [home + one[1:] if one == "~" or one.startswith("~/") else one for one in extra]
    return own + [(os.path.abspath(one), "") for one in others]


def head_of(text: str) -> Head | None:
    """The head of a SKILL.md; None where it has none, or no name and description."""
    fields = _fields(text)
    name, description = (_line(fields.get(key, "")) for key in ("name", "description"))
    if not _NAME.fullmatch(name[:MOST_NAME]) or not description:
        return None
    hidden = fields.get("disable-model-invocation", "").lower() == "true"
    return Head(name[:MOST_NAME], description[:MOST_DESCRIPTION], hidden, _metadata(fields.get("metadata", "")))


def _fields(text: str) -> dict[str, str]:
    lines = text.removeprefix("\ufeff").splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    fields: dict[str, str] = {}
    key, style = "", ""
    parts: list[str] = []
    for line in [*lines[1:], "---"]:
        found = _KEY.fullmatch(line.rstrip())
        if found is not None or line.rstrip() in ("---", "..."):
            if key:
                fields.setdefault(key, _value(parts, style))
            if found is None:
                break
            key, first = found[1], (found[2] or "").strip()
            style = first[:1] if re.fullmatch(r"[|>][0-9+-]{0,2}", first) else ""
            parts = [] if style else [first]
        elif not line.strip() or line[0] in " \t":
            parts.append(line.strip())
    return fields


def _value(parts: Sequence[str], style: str) -> str:
    """The text of a value from its lines."""
    text = ("\n" if style == "|" else " ").join(parts).strip()
    if style:
        return text
    if len(text) > 1 and text[0] == text[-1] == '"':
        try:
            return str(msgspec.json.decode(text, type=str))
        except msgspec.DecodeError:
            return text[1:-1]
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    return text if text.startswith(("{", "[")) else text.split(" #", 1)[0].rstrip()


def _metadata(text: str) -> Mapping[str, Any]:
    try:
        found = msgspec.json.decode(re.sub(r",\s*([}\]])", r"\1", text)) if text else {}
    except (msgspec.DecodeError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    inner = found.get("mayros", found.get("openclaw"))
    return inner if isinstance(inner, dict) else {}


def _line(text: str) -> str:
    return " ".join(_CONTROL.sub(" ", text).split())


def gate_of(head: Head) -> Gate | None:
    """What must hold for the skill to be listed; None where its metadata makes no sense."""
    try:
        return msgspec.convert(dict(head.needs), Gate)
    except msgspec.ValidationError:
        return None


def section(skills: Sequence[Skill], room_chars: int) -> str:
    """The prompt's list of skills within so many characters; empty where there are none, or no room for one."""
    room = min(room_chars, MOST_CHARS) - len(_INTRODUCTION) - 50
    lines = []
    for skill in skills[:MOST_LISTED]:
        line = "  <skill><name>{}</name><description>{}</description><location>{}</location></skill>".format(
            *(escape(_CONTROL.sub("", text), {'"': "&quot;"}) for text in (skill.name, skill.description, skill.path))
        )
        room -= len(line) + 1
        if room < 0:
            break
        lines.append(line)
    return "\n".join([_INTRODUCTION, "<available_skills>", *lines, "</available_skills>"]) if lines else ""
