"""The configuration file as clients may see it: what it says, what is wrong with it, and no secret. Imports core, config and net. Blocks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from mayros.config.change import ConfigText, parsed
from mayros.config.load import load, refuse_unsupported
from mayros.config.show import effective, redact, redact_text, secrets_of
from mayros.config.source import read_file
from mayros.core.config_ports import ConfigIssue, ConfigView
from mayros.core.routing import Settings
from mayros.errors import ConfigError
from mayros.net.redact import Redactor

_ISSUE = re.compile(r"([A-Za-z$][\w$.\[\]\"/-]*): (.+)", re.DOTALL)


def view(settings: Settings, known: Callable[[str], str]) -> ConfigView:
    """See ConfigView. `known` hides the secrets that the program knows."""
    path = settings.config_path
    file = ConfigText(None, {})
    readable = False
    raw: dict[str, Any] = {}
    config: dict[str, Any] = {}
    issues, warnings = [], []
    try:
        file = ConfigText(read_file(path), {})
        if file.data is not None:
            file = parsed(path, file.data)
            readable = True
        loaded = load(path, settings.environ, state_dir=settings.state_dir, data=file.data or b"{}")
        refuse_unsupported(loaded.config, loaded.raw)
        raw, config = loaded.raw, effective(loaded.config)
        warnings = [issue_of(warning, path) for warning in loaded.warnings]
    except ConfigError as error:
        issues.append(issue_of(str(error), path))
    # The file may have been changed since the start: what it calls a secret now may stand elsewhere in it.
    own = Redactor((*secrets_of(raw), *secrets_of(file.tree)))

    def hide(text: str) -> str:
        return known(own(text))

    def told(found: Iterable[ConfigIssue]) -> tuple[ConfigIssue, ...]:
        return tuple(ConfigIssue(hide(issue.path), hide(issue.message)) for issue in found)

    return ConfigView(
        path=path,
        exists=file.data is not None,
        hash=file.hash,
        raw=_raw(file.data, hide) if readable and file.data is not None else None,
        parsed=redact(file.tree, hide),
        resolved=redact(raw, hide),
        config=redact(config, hide),
        valid=not issues,
        issues=told(issues),
        warnings=told(warnings),
    )


def _raw(data: bytes, hide: Callable[[str], str]) -> str | None:
    """The text with its secrets hidden; None where this cannot be done for certain."""
    try:
        return redact_text(data.decode("utf-8"), hide)
    except (ConfigError, ValueError):
        return None


def issue_of(text: str, path: str) -> ConfigIssue:
    """What an error or a warning about the file at `path` says, and about which key."""
    text = text.removeprefix(f"{path}: ")
    found = _ISSUE.fullmatch(text)
    return ConfigIssue(found[1], found[2]) if found is not None else ConfigIssue("", text)
