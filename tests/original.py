"""Writes state directories as the original gateway does, under the names of either program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: When the first message of each transcript was sent: 2026-02-20, 10:00:01 UTC.
BEGAN = 1_771_581_601_000
UPDATED = 1_771_760_000_000
USED = {"input": 10, "output": 5, "cacheRead": 100, "cacheWrite": 7, "totalTokens": 122, "cost": {"input": 0.1, "total": 0.25}}
CLAUDE = {"api": "anthropic-messages", "provider": "anthropic", "model": "claude-opus-4-6"}
_ABOUT = 'Conversation info (untrusted metadata):\n```json\n{\n  "message_id": "m1",\n  "sender": "cli"\n}\n```\n\n'
STAMP = "[Fri 2026-02-20 10:00 UTC] "


class Lines:
    """The lines of one transcript. Each entry follows the one before, unless `parent` names another; all give their ids."""

    def __init__(self, session_id: str, version: int = 3) -> None:
        self.all: list[str] = []
        self.leaf: str | None = None
        self.time = BEGAN
        self._write({"type": "session", "version": version, "id": session_id, "timestamp": "2026-02-20T10:00:00.000Z", "cwd": "/home/u"})

    def _write(self, entry: dict[str, Any]) -> None:
        self.all.append(json.dumps(entry, separators=(",", ":"), ensure_ascii=False))

    def add(self, kind: str, parent: str | None = "", **fields: Any) -> str:
        """One entry of any type."""
        own = f"{len(self.all):08x}"
        parent = self.leaf if parent == "" else parent
        self._write({"type": kind, "id": own, "parentId": parent, "timestamp": "2026-02-20T10:00:00.000Z", **fields})
        self.leaf = own
        return own

    def message(self, role: str, content: Any, parent: str | None = "", **fields: Any) -> str:
        """One message; a second after the one before."""
        message = {"role": role, "content": content, "timestamp": self.time, **fields}
        self.time += 1_000
        return self.add("message", parent, message=message)

    def user(self, text: str, parent: str | None = "", *more: dict[str, Any]) -> str:
        """What a user said, as `chat.send` has it written."""
        return self.message("user", [{"type": "text", "text": _ABOUT + STAMP + text}, *more], parent)

    def assistant(self, *parts: str | dict[str, Any], parent: str | None = "", **fields: Any) -> str:
        """What a model said; texts and parts."""
        content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
        usual = {**CLAUDE, "usage": USED, "stopReason": "toolUse" if any(part["type"] == "toolCall" for part in content) else "stop"}
        return self.message("assistant", content, parent, **(usual | fields))

    def result(self, call: str, text: str, **fields: Any) -> str:
        """The result of a tool."""
        content = [{"type": "text", "text": text}]
        return self.message("toolResult", content, toolCallId=call, toolName="read", details={"n": 1}, isError=False, **fields)

    @property
    def data(self) -> bytes:
        return "".join(line + "\n" for line in self.all).encode()


def call(id_: str, name: str = "read", **arguments: Any) -> dict[str, Any]:
    """A call in a message."""
    return {"type": "toolCall", "id": id_, "name": name, "arguments": arguments}


def thought(text: str, signature: str) -> dict[str, Any]:
    """Signed thinking in a message."""
    return {"type": "thinking", "thinking": text, "thinkingSignature": signature}


class Original:
    """A state directory. `name`: of the configuration file."""

    def __init__(self, folder: Path, name: str = "openclaw.json") -> None:
        self.folder, self._config = folder, folder / name
        self.index: dict[str, dict[str, Any]] = {}
        self.folder.mkdir(mode=0o700, parents=True)
        self.config({})

    def config(self, config: Any) -> None:
        """Its configuration: a tree, or a text."""
        self._config.write_text(config if isinstance(config, str) else json.dumps(config))
        self._config.chmod(0o600)

    def sessions(self, agent: str = "main") -> Path:
        """The folder of an agent's sessions."""
        path = self.folder / "agents" / agent / "sessions"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def session(self, key: str, lines: Lines | bytes | None, session_id: str, agent: str = "main", **entry: Any) -> Path:
        """A session with its transcript; None: without one."""
        folder = self.sessions(agent)
        path = folder / f"{session_id}.jsonl"
        if lines is not None:
            path.write_bytes(lines if isinstance(lines, bytes) else lines.data)
            path.chmod(0o600)
        usual = {
            "sessionId": session_id,
            "updatedAt": UPDATED,
            "sessionFile": str(path),
            "systemSent": True,
            "skillsSnapshot": {"prompt": "x", "skills": []},
            "deliveryContext": {"channel": "webchat"},
        }
        index = self.index.setdefault(agent, {})
        index[key] = {name: value for name, value in (usual | entry).items() if value is not ...}
        (folder / "sessions.json").write_text(json.dumps(index, indent=2))
        return path
