"""What types cannot say about `tools` and `skills`: names of tools, paths, ranges. Pure; imports schema, source, toolnames and errors.

A policy that names nothing there is would not do what its writer meant: an `allow` of unknown names only is an error, since it could be taken for
"all" or for "none"; so is an unknown group. A single unknown name is warned about.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence

from mayros.config.schema import AgentExec, AgentTools, Config, ProviderPolicy, Tools, ToolsExec
from mayros.config.source import ascii_json, join
from mayros.config.toolnames import GROUPS, TOOLS, known, plain
from mayros.errors import ConfigError


def check_tools(config: Config, fail: Callable[[str, str], ConfigError], warnings: list[str]) -> None:
    """Check all policies and the settings of the tools. Raises what `fail` makes of a key path and a text; adds to `warnings`."""
    _exec("tools.exec", config.tools.exec, fail)
    for number, agent in enumerate(config.agents.list):
        _exec(f"agents.list[{number}].tools.exec", agent.tools.exec, fail)
    for path, policy in _policies(config):
        for word, names in (("allow", policy.allow), ("alsoAllow", policy.also_allow), ("deny", policy.deny)):
            _names(f"{path}.{word}", names, fail, warnings)
        if policy.allow and not any(map(known, policy.allow)):
            raise fail(f"{path}.allow", f"names no tool that there is: {', '.join(map(ascii_json, policy.allow[:5]))}")
    for number, folder in enumerate(config.skills.load.extra_dirs):
        if not folder.strip() or "\0" in folder:
            raise fail(f"skills.load.extraDirs[{number}]", "must be a path")


def _policies(config: Config) -> Iterator[tuple[str, Tools | AgentTools | ProviderPolicy]]:
    places: list[tuple[str, Tools | AgentTools]] = [("tools", config.tools)]
    places += [(f"agents.list[{number}].tools", agent.tools) for number, agent in enumerate(config.agents.list)]
    for path, tools in places:
        yield path, tools
        for key, policy in tools.by_provider.items():
            yield join(f"{path}.byProvider", key), policy


def _names(path: str, names: Sequence[str], fail: Callable[[str, str], ConfigError], warnings: list[str]) -> None:
    for number, name in enumerate(names):
        place = f"{path}[{number}]"
        if not name.strip() or len(name) > 200 or not name.isprintable():
            raise fail(place, "must be the name of a tool, a pattern with * or a group: at most 200 characters")
        if known(name):
            continue
        group = plain(name).startswith("group:")
        near = difflib.get_close_matches(plain(name), GROUPS if group else TOOLS, 1)
        hint = f"; the nearest is {near[0]}" if near else ""
        if group:
            raise fail(place, f"there is no group {ascii_json(name)}{hint}")
        warnings.append(f"{place}: no tool is called {ascii_json(name)}{hint}")


def _exec(path: str, settings: ToolsExec | AgentExec, fail: Callable[[str, str], ConfigError]) -> None:
    if settings.timeout_sec is not None and not 1 <= settings.timeout_sec <= 7 * 86_400:
        raise fail(f"{path}.timeoutSec", "must be from 1 to 604800 seconds")
    for number, folder in enumerate(settings.path_prepend or ()):
        if not folder.startswith("/") or ":" in folder or not folder.isprintable():
            raise fail(f"{path}.pathPrepend[{number}]", "must be an absolute path without a colon")
    for number, name in enumerate(settings.safe_bins or ()):
        if not name or "/" in name or not name.isprintable() or " " in name:
            raise fail(f"{path}.safeBins[{number}]", "must be the name of a program, without a path")
