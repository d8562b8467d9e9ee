"""Ids and session keys: one grammar for both doors. Pure; raises errors of mayros.errors.

A session key is `agent:<agent id>:<rest>`; the agent id is lower case, the rest is kept as it was sent. Bare keys belong to the chosen
agent, `main` (and the configured main key) is the agent's main session.
"""

from __future__ import annotations

import os
import re

import msgspec

from mayros.errors import InvalidRequest

AGENT_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}", re.IGNORECASE | re.ASCII)
MAX_KEY_BYTES = 512
#: Session name spaces that belong to the gateway itself; no request may enter them by header.
RESERVED = ("subagent:", "cron:", "acp:")
#: Lone surrogates too: they are no characters, and no store can encode them.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def normalise_agent_id(text: str) -> str:
    """An agent id as the configuration means it: `My Agent!` is `my-agent`, empty is `main`."""
    text = text.strip()
    if AGENT_ID.fullmatch(text):
        return text.lower()
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).lstrip("-_")[:64].rstrip("-") or "main"


def valid_agent_id(text: str) -> bool:
    """Whether a request's agent id is one as it stands; requests are not normalised."""
    return AGENT_ID.fullmatch(text) is not None


_fresh: list[str] = []


def new_id() -> str:
    """24 hexadecimal digits from the system's random source: run ids, request ids, session ids.

    Drawn 128 at a time: each request needs several, and asking the system costs more than all else about them.
    """
    if not _fresh:
        block = os.urandom(12 * 128).hex()
        _fresh.extend(block[start : start + 24] for start in range(0, len(block), 24))
    return _fresh.pop()


def check_text(text: str, param: str, limit: int = MAX_KEY_BYTES) -> str:
    """`text` if it has at most `limit` UTF-8 bytes and no control characters; else InvalidRequest naming `param`."""
    if _CONTROL.search(text):
        raise InvalidRequest(f"{param} must not contain control characters.", param=param)
    if len(text.encode()) > limit:
        raise InvalidRequest(f"{param} must be at most {limit} bytes long.", param=param)
    return text


def refuse_reserved(rest: str, param: str) -> None:
    """Raise InvalidRequest, naming `param`, where the rest of a session key is in a name space of the gateway's own."""
    if rest.casefold().startswith(RESERVED):
        raise InvalidRequest(f"{param} must not be in the name spaces {', '.join(RESERVED)}: they are the gateway's own.", param=param)


class SessionKey(msgspec.Struct, frozen=True, gc=False):
    """`agent:<agent_id>:<rest>`; `str()` is the canonical text."""

    agent_id: str
    rest: str

    def __str__(self) -> str:
        return f"agent:{self.agent_id}:{self.rest}"

    @classmethod
    def parse(cls, text: str, agent_id: str | None, default_agent: str, main_key: str = "main", *, param: str, reserved: bool = False) -> SessionKey:
        """The key that `text` names.

        `agent_id` is the agent chosen by other means or None; a key that names another one is refused. `reserved` admits the gateway's own
        name spaces. Raises InvalidRequest naming `param`.
        """
        text = check_text(text, param).strip()
        if text[:6].lower() == "agent:":
            named, _, rest = text[6:].partition(":")
            if not rest or not valid_agent_id(named):
                raise InvalidRequest(f"{param} is malformed: write agent:<agent id>:<key>.", param=param)
            named = named.lower()
            if agent_id is not None and named != agent_id:
                raise InvalidRequest(f'{param} belongs to agent "{named}", but the request chose agent "{agent_id}".', param=param)
        else:
            named, rest = agent_id or default_agent, text
        rest = rest.strip()
        if not rest:
            raise InvalidRequest(f"{param} must not be empty.", param=param)
        lowered = rest.lower()
        if lowered in ("main", main_key.lower()):
            rest = main_key
        elif not reserved:
            refuse_reserved(rest, param)
        return cls(named, rest)
