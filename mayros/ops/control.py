"""The configuration in force, and the one way to change its file. Implements core.ports.ConfigControl. Imports core, config, net and ops.logs.

A write reads the file, lets the caller change its tree, makes the smallest change of the text, reads the result as a start would, and only then
replaces the file. Reading and writing happen in a thread, one write at a time. `agents` is in force at once; everything else waits for a restart.
"""

from __future__ import annotations

import copy
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import sha256
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.config.edit import rewrite, same
from mayros.config.load import Loaded, load, refuse_unsupported
from mayros.config.schema import Config
from mayros.config.show import effective, redact, redact_text, secrets_of
from mayros.config.source import MAX_FILE, Reader, join, parse, read_file
from mayros.core.config_ports import Applied, ConfigIssue, ConfigSource, ConfigView, NotInFile
from mayros.core.routing import Settings
from mayros.errors import ConfigError, InvalidRequest, StorageUnavailable, Unavailable
from mayros.net.files import write_atomic
from mayros.ops.logs import Redactor

log = Logger()

#: Writes that wait for their turn; more are refused.
MAX_WAITING = 64
STALE = "config changed since last load; re-run config.get and retry"
_NOTHING = object()
_ISSUE = re.compile(r"([A-Za-z$][\w$.\[\]\"/-]*): (.+)", re.DOTALL)

Edit = Callable[[dict[str, Any]], None]


class _File(msgspec.Struct, frozen=True):
    """The file as one reading found it; `data` None: there is none."""

    data: bytes | None
    tree: dict[str, Any]

    @property
    def hash(self) -> str:
        return sha256(self.data or b"").hexdigest()


class ConfigFile:
    """See core.ports.ConfigControl.

    `in_thread` runs a function off the reactor. `accept` sees what is about to be in force and raises ConfigError where it cannot be.
    """

    def __init__(
        self,
        settings: Settings,
        in_thread: Callable[..., Deferred[Any]],
        now_ms: Callable[[], int],
        accept: Callable[[Settings], None] = lambda settings: None,
    ) -> None:
        self.current = settings
        self._path = settings.config_path
        self._in_thread, self._now_ms, self._accept = in_thread, now_ms, accept
        self._callbacks: list[Callable[[Settings], None]] = []
        self._waiting: deque[tuple[Edit, str | None, Deferred[Applied]]] = deque()
        self._writing = False

    async def source(self) -> ConfigSource:
        """See ConfigControl."""
        try:
            data: bytes | None = await self._in_thread(read_file, self._path)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
        return ConfigSource(self._path, None if data is None else data.decode("utf-8", "replace"), sha256(data or b"").hexdigest())

    async def view(self) -> ConfigView:
        """See ConfigControl."""
        shown: ConfigView = await self._in_thread(_view, self.current)
        return shown

    def write(self, edit: Edit, base_hash: str | None = None) -> Deferred[Applied]:
        """See ConfigControl."""
        if len(self._waiting) >= MAX_WAITING:
            return fail(Unavailable("Too many changes of the configuration are waiting. Try again shortly."))
        # The canceller does nothing: what was asked for is done, whoever still waits for the answer.
        answer: Deferred[Applied] = Deferred(lambda _: None)
        self._waiting.append((edit, base_hash, answer))
        if not self._writing:
            self._writing = True
            Deferred.fromCoroutine(self._work()).addErrback(lambda failure: log.failure("writing the configuration", failure=failure))
        return answer

    def changed(self, callback: Callable[[Settings], None]) -> Callable[[], None]:
        """See ConfigControl."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    async def _work(self) -> None:
        try:
            while self._waiting:
                edit, base_hash, answer = self._waiting.popleft()
                outcome: Applied | Failure
                try:
                    outcome = await self._write(edit, base_hash)
                except Exception:  # noqa: BLE001  whatever it is, it is the answer
                    outcome = Failure()
                if not answer.called:
                    answer.callback(outcome)
                elif isinstance(outcome, Failure) and not outcome.check(InvalidRequest):
                    log.failure("a change of the configuration failed after its client had left", failure=outcome)
        finally:
            self._writing = False

    async def _write(self, edit: Edit, base_hash: str | None) -> Applied:
        old = self.current
        try:
            file: _File = await self._in_thread(_read, self._path)
            if base_hash is not None and base_hash != file.hash:
                raise InvalidRequest(STALE)
            tree = copy.deepcopy(file.tree)
            try:
                edit(tree)
            except NotInFile as error:
                raise InvalidRequest(await self._in_thread(_where, self._path, file.tree, error.keys)) from None
            try:
                if same(tree, file.tree):
                    return Applied(file.hash)
            except UnicodeEncodeError:
                raise InvalidRequest("half a surrogate pair is not a character") from None
            data, loaded = await self._in_thread(_compose, old, file, tree)
            new, restart = self._judge(old, loaded)
            await self._in_thread(_store, self._path, file.data, data)
        except ConfigError as error:
            raise InvalidRequest(f"invalid config: {error}") from None
        self.current = new
        for callback in tuple(self._callbacks):
            with log.failuresHandled("while telling of a new configuration"):
                callback(new)
        hot = tuple(_differing(old.config, new.config))
        log.info("{path} was changed: {hot} in force, {restart} after a restart", path=self._path, hot=_listed(hot), restart=_listed(restart))
        return Applied(sha256(data).hexdigest(), hot, restart)

    def _judge(self, old: Settings, loaded: Loaded) -> tuple[Settings, tuple[str, ...]]:
        """What would be in force after a write, and the paths of what would not. Raises ConfigError."""
        self._build(loaded.config, loaded)
        agents, replace = loaded.config.agents, msgspec.structs.replace
        # The slots for runs are made at the start.
        slots = old.config.agents.defaults.max_concurrent
        config = replace(old.config, agents=replace(agents, defaults=replace(agents.defaults, max_concurrent=slots)))
        new = self._build(config, loaded)
        self._accept(new)
        return new, tuple(_differing(config, loaded.config))

    def _build(self, config: Config, loaded: Loaded) -> Settings:
        old = self.current
        return Settings.build(
            config,
            state_dir=old.state_dir,
            config_path=self._path,
            environ=old.environ,
            now_ms=self._now_ms(),
            warnings=loaded.warnings,
        )


def _differing(old: Any, new: Any, path: str = "") -> Iterator[str]:
    """The key paths at which two configurations differ; a list counts as one value."""
    if isinstance(old, msgspec.Struct) and type(old) is type(new):
        for name, shown in zip(old.__struct_fields__, old.__struct_encode_fields__, strict=True):
            yield from _differing(getattr(old, name), getattr(new, name), join(path, shown))
    elif isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differing(old.get(key), new.get(key), join(path, key))
    elif old != new:
        yield path


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths) or "nothing"


# The rest runs in a thread.


def _read(path: str) -> _File:
    data = read_file(path)
    return _File(None, {}) if data is None else _parsed(path, data)


def _parsed(path: str, data: bytes) -> _File:
    tree = parse(data, path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the file must hold one object")
    return _File(data, tree)


def _compose(settings: Settings, file: _File, tree: dict[str, Any]) -> tuple[bytes, Loaded]:
    """The new bytes, and what a start would read in them. Raises ConfigError."""
    path = settings.config_path
    reader = Reader(path)
    for keys in _changed(file.tree, tree, ()):
        if "$include" in keys:
            raise ConfigError(f"{path}: $include is not changed by programs; edit the file by hand")
        if (included := reader.source_of(file.tree, keys)) is not None:
            raise ConfigError(f"{'.'.join(keys)} comes from {included}, which {path} includes; change it there")
    text = "{}\n" if file.data is None else file.data.decode("utf-8")
    data = rewrite(text, tree, path).encode()
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path}: the file would be larger than {MAX_FILE >> 20} MB")
    loaded = load(path, settings.environ, state_dir=settings.state_dir, data=data)
    refuse_unsupported(loaded.config, loaded.raw)
    return data, loaded


def _changed(before: Any, after: Any, keys: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The keys of each value that is another, new or gone; a list counts as one value."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in {**before, **after}:
            was, becomes = before.get(key, _NOTHING), after.get(key, _NOTHING)
            if was is _NOTHING and isinstance(becomes, dict) and becomes:
                was = {}
            elif becomes is _NOTHING and isinstance(was, dict) and was:
                becomes = {}
            yield from _changed(was, becomes, (*keys, key))
    elif before is _NOTHING or after is _NOTHING or not same(before, after):
        yield keys


def _where(path: str, tree: dict[str, Any], keys: tuple[str, ...]) -> str:
    """Why a value cannot be changed in the file."""
    included = Reader(path).source_of(tree, keys)
    if included is None:
        return f"{'.'.join(keys)} in {path} is not what the gateway read: the file was changed since it was started"
    return f"{'.'.join(keys)} comes from {included}, which {path} includes; change it there"


def _store(path: str, before: bytes | None, after: bytes) -> None:
    if read_file(path) != before:
        raise InvalidRequest(STALE)
    try:
        write_atomic(path, after)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise StorageUnavailable(f"{path} cannot be written: {reason}") from None


def _view(settings: Settings) -> ConfigView:
    path = settings.config_path
    file = _File(None, {})
    raw: str | None = None
    resolved: dict[str, Any] = {}
    config: dict[str, Any] = {}
    issues, warnings = [], []
    try:
        file = _File(read_file(path), {})
        if file.data is not None:
            file = _parsed(path, file.data)
            raw = _raw(file, ())
        loaded = load(path, settings.environ, state_dir=settings.state_dir, data=file.data or b"{}")
        refuse_unsupported(loaded.config, loaded.raw)
        resolved, config = redact(loaded.raw), redact(effective(loaded.config))
        warnings = [_issue(warning, path) for warning in loaded.warnings]
        raw = _raw(file, secrets_of(loaded.raw))
    except ConfigError as error:
        issues.append(_issue(str(error), path))
    return ConfigView(
        path=path,
        exists=file.data is not None,
        hash=file.hash,
        raw=raw,
        parsed=redact(file.tree),
        resolved=resolved,
        config=config,
        valid=not issues,
        issues=tuple(issues),
        warnings=tuple(warnings),
    )


def _raw(file: _File, secrets: Iterable[str]) -> str | None:
    """The text with its secrets hidden; None where this cannot be done for certain."""
    if file.data is None:
        return None
    try:
        return redact_text(file.data.decode("utf-8"), Redactor((*secrets, *secrets_of(file.tree))))
    except (ConfigError, ValueError):
        return None


def _issue(text: str, path: str) -> ConfigIssue:
    text = text.removeprefix(f"{path}: ")
    found = _ISSUE.fullmatch(text)
    return ConfigIssue(found[1], found[2]) if found is not None else ConfigIssue("", text)
