"""Which commands an agent may run: layers of settings, and the list of allowed programs. Pure but for the store behind a port.

Each layer (the configuration, what is stored, what the session and the call ask for) is judged by itself, and the strictest verdict holds: so
no layer can make another one looser. Imports mayros.config and mayros.core.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal, NamedTuple

import msgspec
from twisted.logger import Logger

from mayros.core.audit import Act, done
from mayros.core.device_tokens import aside
from mayros.core.exec_ports import AllowedExec, ExecAsk, ExecPolicy, ExecRulesStore, ExecSecurity
from mayros.core.once import Once
from mayros.errors import InvalidRequest

log = Logger()

#: Keys of stored policies: what holds for all agents, and for those that have none of their own.
DEFAULTS, ANY_AGENT = "", "*"
MAX_ENTRIES, MAX_POLICIES, MAX_PATTERN = 1_000, 500, 4_096
_SHOWN_COMMAND = 1_000
#: Programs that run whatever their arguments say: a list that has them allows everything, so they only get there by hand.
_RUNNERS = re.compile(
    r"(?:apt|apt-get|ash|at|awk|bash|batch|bun|busybox|bwrap|bundle|c\+\+|cargo|cc|chroot|chrt|clang|clang\+\+|cmake|composer|conda|cron|crontab|csh|dash|dc"
    r"|deno|dnf|doas|docker|dotnet|dpkg|ed|eatmydata|emacs|env|ex|expect|fakeroot|fd|fdfind|find|firejail|fish|flock|gawk|gcc|g\+\+|gdb|gem|git|go|gradle"
    r"|guile|irb|ionice|java|jshell|kotlin|ksh|ld-linux.*|less|linux32|linux64|ltrace|lua|make|man|mawk|more|mvn|mysql|nano|nc|ncat|netcat|nice|ninja|node"
    r"|nodejs|nohup|npm|npx|nsenter|ocaml|octave|openssl|parallel|perf|perl|php|pip|pipx|pkexec|pnpm|podman|poetry|prlimit|psql|pwsh|python|r|rake|rbash"
    r"|rpm|rscript|rsync|ruby|run-parts|runuser|rustc|rustup|scala|scp|screen|script|sed|setarch|setpriv|setsid|sftp|sh|sg|socat|split|sqlite|ssh"
    r"|start-stop-daemon|stdbuf|strace|su|sudo|swift|systemctl|systemd-run|tar|taskset|tclsh|tcsh|time|timeout|tmux|toybox|trickle|unshare|unzip|uv|uvx"
    r"|valgrind|vi|view|vim|nvim|watch|wget|xargs|yarn|yash|yum|zip|zsh)[0-9.-]*",
    re.IGNORECASE,
)

Verdict = Literal["allow", "ask", "refuse"]
_VERDICTS: Sequence[Verdict] = ("allow", "ask", "refuse")
_FALLBACKS: Sequence[ExecSecurity] = ("full", "allowlist", "deny")


class Layer(NamedTuple):
    """One reading of the rules."""

    security: ExecSecurity
    ask: ExecAsk


def verdict(layer: Layer, listed: bool) -> Verdict:
    """What one layer says. `listed`: the command was understood, and everything that it starts is on the list or a safe binary."""
    if layer.security == "deny":
        return "refuse"
    if layer.ask == "always":
        return "ask"
    if layer.security == "full" or listed:
        return "allow"
    return "ask" if layer.ask == "on-miss" else "refuse"


def strictest(layers: Iterable[Layer], listed: bool) -> Verdict:
    """What all of them say together: nothing that one of them refuses."""
    return max((verdict(layer, listed) for layer in layers), key=_VERDICTS.index)


def stricter_fallback(configured: ExecSecurity, stored: ExecSecurity | None) -> ExecSecurity:
    """What holds where nobody answers."""
    return configured if stored is None else max(configured, stored, key=_FALLBACKS.index)


def runs_its_arguments(path: str) -> bool:
    """Whether a program is a shell, an interpreter, or another one that starts what it is told to."""
    return _RUNNERS.fullmatch(path.rpartition("/")[2]) is not None


def matches(pattern: str, path: str) -> bool:
    """Whether a glob matches a path: `*` and `?` within a name, `**` as a whole name for any number of them; case counts.

    Takes time in proportion to both lengths: after a mismatch only the last `**` is extended.
    """
    names, wanted = path.split("/"), pattern.replace("[", "[[]").split("/")
    at = position = 0
    back: tuple[int, int] | None = None
    while position < len(names):
        if at < len(wanted) and wanted[at] == "**":
            back = at, position
            at += 1
        elif at < len(wanted) and fnmatchcase(names[position], wanted[at]):
            at, position = at + 1, position + 1
        elif back is not None:
            back = back[0], back[1] + 1
            at, position = back[0] + 1, back[1]
        else:
            return False
    return all(rest == "**" for rest in wanted[at:])


class ExecRules:
    """What is stored: policies by agent, and the lists. Await `ready` first.

    `now_ms` is the wall clock in epoch milliseconds; `resolve` gives the real path of a pattern that is no glob; `home` is what `~` stands for;
    `place` names the store, for people.
    """

    def __init__(
        self, store: ExecRulesStore, now_ms: Callable[[], int], resolve: Callable[[str], str] = str, home: str = "~", place: str = ""
    ) -> None:
        self._store, self._now_ms, self._resolve, self._home = store, now_ms, resolve, home
        self.place = place
        #: Hides secrets in the commands that are kept.
        self.redact: Callable[[str], str] = str
        #: Whether a program, by its real path, can be changed by no agent and nothing that one runs. Nothing is, unless somebody can tell.
        self.fixed: Callable[[str], bool] = lambda path: False
        self._policies: Mapping[str, ExecPolicy] = {}
        self._entries: dict[str, AllowedExec] = {}
        # By entry: the patterns that are compared, as written and as resolved.
        self._patterns: dict[str, tuple[str, ...]] = {}
        self._read = Once(self._load)

    async def ready(self) -> None:
        """Read the store, once. Raises StorageUnavailable; the next call tries again."""
        await self._read.done()

    async def _load(self) -> None:
        entries, policies = await self._store.load()
        self._take(entries, policies)

    def _take(self, entries: Iterable[AllowedExec], policies: Mapping[str, ExecPolicy]) -> None:
        self._entries = {entry.id: entry for entry in entries}
        self._policies = dict(policies)
        self._patterns = {entry.id: self._compared(entry.pattern) for entry in self._entries.values()}

    def _compared(self, pattern: str) -> tuple[str, ...]:
        full = self._home + pattern[1:] if pattern.startswith("~/") else pattern
        if "*" in full or "?" in full:
            return (full,)
        return tuple(dict.fromkeys((full, self._resolve(full))))

    # What there is

    @property
    def entries(self) -> Sequence[AllowedExec]:
        """All lists, in the order in which they were written."""
        return tuple(self._entries.values())

    @property
    def policies(self) -> Mapping[str, ExecPolicy]:
        """By agent id; DEFAULTS and ANY_AGENT among them."""
        return self._policies

    @property
    def hash(self) -> str:
        """Changes with every change that a person makes, not with use. Hexadecimal SHA-256."""
        content = (sorted(self._policies.items()), [(entry.id, entry.agent_id, entry.pattern) for entry in self._entries.values()])
        return hashlib.sha256(msgspec.json.encode(content)).hexdigest()

    def policy(self, agent_id: str) -> ExecPolicy:
        """What holds for an agent: its own, else that for any, else the defaults, each setting by itself."""
        merged = ExecPolicy()
        for key in (DEFAULTS, ANY_AGENT, agent_id):
            stored = self._policies.get(key)
            if stored is not None:
                given = {name: value for name, value in msgspec.structs.asdict(stored).items() if value is not None}
                merged = msgspec.structs.replace(merged, **given)
        return merged

    def find(self, agent_id: str, paths: Sequence[str]) -> Sequence[AllowedExec] | None:
        """The entries that allow these real paths, or None where one of them is not allowed."""
        found = [self._find(agent_id, path) for path in paths]
        return None if None in found else [entry for entry in found if entry is not None]

    def _find(self, agent_id: str, path: str) -> AllowedExec | None:
        for entry in self._entries.values():
            if entry.agent_id in (agent_id, ANY_AGENT) and any(matches(pattern, path) for pattern in self._patterns[entry.id]):
                return entry
        return None

    def lasting(self, paths: Sequence[str]) -> Sequence[str]:
        """Those that "always" may put on a list: not what runs its arguments, nor what may be another program tomorrow."""
        return [path for path in dict.fromkeys(paths) if not (runs_its_arguments(path) or "*" in path or "?" in path) and self.fixed(path)]

    # What changes

    def used(self, entries: Sequence[AllowedExec], paths: Sequence[str], command: str) -> None:
        """Write down that these entries allowed a command; nobody waits for that."""
        for entry, path in zip(entries, paths, strict=True):
            used = msgspec.structs.replace(entry, last_used_ms=self._now_ms(), last_command=self.redact(command)[:_SHOWN_COMMAND], last_resolved=path)
            self._entries[entry.id] = used
            aside(self._store.save(used), "the use of an allowed program")

    async def allow(self, agent_id: str, path: str, command: str) -> None:
        """Put a program on an agent's list, unless it is there. Raises StorageUnavailable, and InvalidRequest when the lists are full."""
        if self._find(agent_id, path) is not None:
            return
        if len(self._entries) >= MAX_ENTRIES:
            raise InvalidRequest(f"the lists of allowed programs are full: at most {MAX_ENTRIES} entries")
        entry = AllowedExec(str(uuid.uuid4()), agent_id, path, self._now_ms(), self.redact(command)[:_SHOWN_COMMAND], path)
        self._entries[entry.id], self._patterns[entry.id] = entry, self._compared(entry.pattern)
        try:
            await self._store.save(entry)
        except BaseException:
            self._entries.pop(entry.id, None)
            raise

    async def forget(self, agent_id: str) -> None:
        """Drop the list and the policy of an agent that is no more: another one that gets its id starts anew. Raises StorageUnavailable."""
        await self.ready()
        entries = [entry for entry in self._entries.values() if entry.agent_id != agent_id]
        policies = {name: policy for name, policy in self._policies.items() if name != agent_id}
        if (len(entries), len(policies)) != (len(self._entries), len(self._policies)):
            await self.replace(entries, policies)

    async def replace(self, entries: Sequence[AllowedExec], policies: Mapping[str, ExecPolicy], act: Act | None = None) -> None:
        """All of it anew, with the row of the act. An entry without an id gets one; when an entry was last used stays known.

        Raises InvalidRequest, StorageUnavailable.
        """
        if len(entries) > MAX_ENTRIES or len(policies) > MAX_POLICIES:
            raise InvalidRequest(f"at most {MAX_ENTRIES} patterns and {MAX_POLICIES} agents can be kept")
        wanted: dict[str, AllowedExec] = {}
        for entry in entries:
            check_pattern(entry.pattern)
            named = msgspec.structs.replace(entry, id=entry.id or str(uuid.uuid4()))
            if named.id in wanted:
                raise InvalidRequest(f"two allowlist entries have the id {named.id[:100]}")
            wanted[named.id] = _newer(named, self._entries.get(named.id))
        before = self._entries, self._policies
        self._take(wanted.values(), policies)
        mine = self._entries
        try:
            await self._store.replace(tuple(wanted.values()), policies, done(act))
        except BaseException:
            if self._entries is mine:
                self._take(before[0].values(), before[1])
            raise


def check_pattern(pattern: str) -> None:
    """A pattern names a place: a bare name would be whatever PATH has first. Raises InvalidRequest."""
    if not pattern.startswith(("/", "~/")) or "\0" in pattern or len(pattern) > MAX_PATTERN:
        raise InvalidRequest(f"an allowlist pattern must be an absolute path, or begin with ~/ (at most {MAX_PATTERN} characters): {pattern[:100]}")


def _newer(entry: AllowedExec, known: AllowedExec | None) -> AllowedExec:
    if known is None or known.pattern != entry.pattern or (known.last_used_ms or 0) <= (entry.last_used_ms or 0):
        return entry
    return msgspec.structs.replace(entry, last_used_ms=known.last_used_ms, last_command=known.last_command, last_resolved=known.last_resolved)
