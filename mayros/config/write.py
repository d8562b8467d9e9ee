"""Writing the first configuration file. Imports source and net.files."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import msgspec

from mayros.config.source import literal
from mayros.net.files import create

_TEXT = """\
// The configuration of Mayros Gateway: JSON5, so comments and trailing commas are welcome. Every key is in docs/configuration.md.
// This file holds a secret: keep it readable by you alone.
{
  "gateway": {
    // The gateway runs on this machine; it does not start without this line.
    "mode": "local",
    // Other programs reach it at http://127.0.0.1:18789. "lan" opens it to the network.
    "port": 18789,
    "bind": "loopback",
    // What clients send as "Authorization: Bearer <token>". Where it is not here, the service manager or the state directory has it.
    "auth": @auth@,
    "http": {
      "endpoints": {
        // POST /v1/chat/completions, for OpenAI clients.
        "chatCompletions": { "enabled": true },
      },
    },
  },
  "agents": {
    "defaults": {
      // "provider/model"; the fallbacks are tried in order when the primary model cannot be reached.
      // Keys of providers come from the environment or from the .env beside this file, such as OPENAI_API_KEY.
      "model": { "primary": @model@, "fallbacks": @fallbacks@ },
      // Where the agent's own files are (AGENTS.md and others).
      "workspace": @workspace@,
    },
  },
}
"""


def initial(path: str, *, token: str | None, model: str, fallbacks: Sequence[str], workspace: str) -> None:
    """Write a small commented `mayros.json`, mode 0600, into a directory that is made (0700) where it is missing.

    `token` None: it is kept elsewhere.

    `model` and `fallbacks` are `provider/model` references, `workspace` a path. Raises FileExistsError where there is a file already: it is
    never overwritten.
    """
    auth = {"mode": "token"} if token is None else {"mode": "token", "token": token}
    values = {"auth": auth, "model": model, "fallbacks": list(fallbacks), "workspace": workspace}
    shown = {name: literal(msgspec.json.encode(value).decode()) for name, value in values.items()}
    text = re.sub("@([a-z]+)@", lambda place: shown[place[1]], _TEXT)
    os.makedirs(os.path.dirname(os.path.abspath(path)), 0o700, exist_ok=True)
    create(path, text.encode(), 0o600)
