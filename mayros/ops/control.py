"""The configuration in force, and the one way to change its file or read it again. Implements core.config_ports.ConfigControl. Imports core, config.

A write reads the file, lets the caller change its tree, makes the smallest change of the text, reads the result as a start would, and only then
replaces the file. Reading and writing happen in a thread, one after the other. What is hot (config/reloadable.py) is in force at once; the rest waits
for a restart, and is told of as long as it waits. A file that cannot be used changes nothing.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from hashlib import sha256
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail
from twisted.logger import Logger
from twisted.python.failure import Failure

from mayros.config.change import STALE, ConfigText, compose, merged, paths, read_text, store, where, whole
from mayros.config.load import Loaded, load, refuse_unsupported
from mayros.config.reloadable import WITH_MODE, differing, in_force
from mayros.config.schema import Config
from mayros.config.secret import AuthSecret
from mayros.config.source import read_file
from mayros.config.stamps import Stamp, stamp
from mayros.core.config_ports import Applied, Change, ConfigSource, ConfigState, ConfigView, InvalidConfig, Merge, NotInFile, Whole
from mayros.core.routing import Settings
from mayros.errors import ConfigError, InvalidRequest, StartError, Unavailable
from mayros.ops.view import issue_of, view

log = Logger()

#: Writes that wait for their turn; more are refused.
MAX_WAITING = 64
#: The whole configuration, as a key path to be held.
EVERYTHING = frozenset(("",))

#: How a key of a provider is told of that changed in a file of its own.
_KEYS = "auth.profiles (keys)"

#: The secret of a configuration with this environment; None: nobody asks for one. Blocks; raises StartError.
FindSecret = Callable[[Config, Mapping[str, str]], AuthSecret | None]


class ConfigFile:
    """See core.config_ports.ConfigControl.

    `in_thread` runs a function off the reactor. `accept` sees what is about to be in force and raises ConfigError where it cannot be. `redact` hides
    the secrets that the program knows; it and `find_secret` are called in threads.
    """

    def __init__(
        self,
        settings: Settings,
        in_thread: Callable[..., Deferred[Any]],
        now_ms: Callable[[], int],
        accept: Callable[[Settings], None] = lambda settings: None,
        redact: Callable[[str], str] = str,
        find_secret: FindSecret = lambda config, environ: None,
    ) -> None:
        self.current = settings
        #: What the files were when they were read last, well or not.
        self.files: Mapping[str, Stamp] = settings.files or {settings.config_path: None}
        self.state = ConfigState(settings.loaded_at_ms)
        #: Hears of each reading that could be used.
        self.applied: Callable[[Applied], None] = lambda applied: None
        #: Hears of each reading of a file that somebody else has changed: what is another, or the error.
        self.reread: Callable[[Applied | InvalidConfig], None] = lambda found: None
        self._path = settings.config_path
        self._in_thread, self._now_ms, self._accept, self._redact, self._find_secret = in_thread, now_ms, accept, redact, find_secret
        self._callbacks: list[Callable[[Settings], None]] = []
        self._waiting: deque[tuple[Callable[[], Coroutine[Any, Any, Applied]], Deferred[Applied]]] = deque()
        self._working = False

    async def source(self) -> ConfigSource:
        """See ConfigControl."""
        try:
            data: bytes | None = await self._in_thread(read_file, self._path)
        except ConfigError as error:
            raise InvalidRequest(str(error)) from None
        return ConfigSource(self._path, None if data is None else data.decode("utf-8", "replace"), sha256(data or b"").hexdigest())

    async def view(self) -> ConfigView:
        """See ConfigControl."""
        shown: ConfigView = await self._in_thread(view, self.current, self._redact)
        return shown

    def write(self, change: Change, base_hash: str | None = None) -> Deferred[Applied]:
        """See ConfigControl."""
        return self._queue(lambda: self._write(change, base_hash))

    def reload(self, *, hold: bool = False) -> Deferred[Applied]:
        """See ConfigControl."""
        return self._queue(lambda: self._reload(hold))

    def changed(self, callback: Callable[[Settings], None]) -> Callable[[], None]:
        """See ConfigControl."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    # One after the other.

    def _queue(self, work: Callable[[], Coroutine[Any, Any, Applied]]) -> Deferred[Applied]:
        if len(self._waiting) >= MAX_WAITING:
            return fail(Unavailable("Too many changes of the configuration are waiting. Try again shortly."))
        # The canceller does nothing: what was asked for is done, whoever still waits for the answer.
        answer: Deferred[Applied] = Deferred(lambda _: None)
        self._waiting.append((work, answer))
        if not self._working:
            self._working = True
            Deferred.fromCoroutine(self._work()).addErrback(lambda failure: log.failure("changing the configuration", failure=failure))
        return answer

    async def _work(self) -> None:
        try:
            while self._waiting:
                work, answer = self._waiting.popleft()
                outcome: Applied | Failure
                try:
                    outcome = await work()
                except Exception:  # noqa: BLE001  whatever it is, it is the answer
                    outcome = Failure()
                if not answer.called:
                    answer.callback(outcome)
                elif isinstance(outcome, Failure) and not outcome.check(InvalidRequest):
                    log.failure("a change of the configuration failed after its client had left", failure=outcome)
        finally:
            self._working = False

    async def _write(self, change: Change, base_hash: str | None) -> Applied:
        from mayros.config.edit import same  # loaded by the first change

        old, stamps = self.current, dict[str, Stamp]()
        text = change.text if isinstance(change, Whole) else None
        try:
            file: ConfigText = await self._in_thread(read_text, self._path)
            if base_hash is not None and base_hash != file.hash:
                raise InvalidRequest(STALE)
            tree = await self._changed(change, file)
            try:
                if text is None and same(tree, file.tree):
                    return Applied(file.hash, restart=self.state.restart)
            except UnicodeEncodeError:
                raise InvalidRequest("half a surrogate pair is not a character") from None
            data, loaded = await self._in_thread(compose, self._path, old.environ, old.state_dir, file, tree, text, stamps)
            new, restart = self._judge(loaded, await self._in_thread(self._find_secret, loaded.config, old.environ))
            changed = await self._in_thread(paths, file.tree, tree)
            stamps[self._path] = await self._in_thread(_stored, self._path, file.data, data)
        except StartError as error:
            raise self._invalid(error) from None
        self.files = stamps
        return msgspec.structs.replace(self._take(new, restart, sha256(data).hexdigest()), changed=changed)

    async def _changed(self, change: Change, file: ConfigText) -> dict[str, Any]:
        """The tree that the file shall have."""
        tree: dict[str, Any]
        if isinstance(change, Whole):
            tree = await self._in_thread(whole, self._path, change.text, file.tree)
        elif isinstance(change, Merge):
            tree = await self._in_thread(merged, change.text, file.tree)
        else:
            tree = copy.deepcopy(file.tree)
            try:
                change(tree)
            except NotInFile as error:
                raise InvalidRequest(await self._in_thread(where, self._path, file.tree, error.keys)) from None
        return tree

    async def _reload(self, hold: bool) -> Applied:
        old, stamps = self.current, dict[str, Stamp]()
        try:
            loaded, secret = await self._in_thread(self._read, old, stamps)
            new, restart = self._judge(loaded, secret, EVERYTHING if hold else frozenset())
        except StartError as error:
            self._count("failed", problem=self._redact(str(error)), problem_at_ms=self._now_ms())
            log.error("{problem}; the configuration of before stays in force", problem=self.state.problem)
            invalid = self._invalid(error)
            self.reread(invalid)
            raise invalid from None
        finally:
            self.files = stamps
        for warning in loaded.warnings:
            if warning not in old.warnings:
                log.warn("{text}", text=warning)
        waited = self.state.restart
        applied = self._take(new, restart)
        changed = (*applied.hot, *(path for path in restart if path not in waited))
        if changed:
            applied = msgspec.structs.replace(applied, changed=changed)
            self.reread(applied)
        return applied

    def _read(self, old: Settings, stamps: dict[str, Stamp]) -> tuple[Loaded, AuthSecret | None]:
        """In a thread: the file as a start would read it."""
        loaded = load(self._path, old.environ, state_dir=old.state_dir, stamps=stamps)
        if not loaded.exists and old.files.get(self._path) is not None:
            raise ConfigError(f"{self._path} is gone")
        refuse_unsupported(loaded.config, loaded.raw)
        return loaded, self._find_secret(loaded.config, old.environ)

    def _judge(self, loaded: Loaded, secret: AuthSecret | None, held: frozenset[str] = frozenset()) -> tuple[Settings, tuple[str, ...]]:
        """What would be in force with this reading, and the paths of what would not. Raises ConfigError."""
        old = self.current
        self._build(loaded.config, loaded, secret)
        running = old.secret
        if running is not None and secret is not None and (secret.mode != running.mode or (secret.value is None and running.value is not None)):
            # Another way in is another start: what belongs to the old one stays together.
            held, secret = held | WITH_MODE, running
        config = in_force(old.config, loaded.config, held)
        if held == EVERYTHING:
            new = old
        else:
            new = self._build(config, loaded, secret)
            self._accept(new)
        waiting = [*differing(config, loaded.config), *differing(old.variables or {}, loaded.raw.get("env") or {}, "env")]
        if new is old and dict(old.keys) != dict(loaded.keys):
            waiting.append(_KEYS)
        return new, tuple(waiting)

    def _build(self, config: Config, loaded: Loaded, secret: AuthSecret | None) -> Settings:
        old = self.current
        return Settings.build(
            config,
            state_dir=old.state_dir,
            config_path=self._path,
            environ=old.environ,
            now_ms=self._now_ms(),
            warnings=loaded.warnings,
            keys=loaded.keys,
            files=loaded.stamps,
            variables=old.variables,
            secret=secret,
        )

    def _take(self, new: Settings, restart: tuple[str, ...], hash: str = "") -> Applied:
        """Put it in force."""
        old = self.current
        hot = tuple(differing(old.config, new.config))
        if dict(old.keys) != dict(new.keys):
            hot += (_KEYS,)
        if old.secret != new.secret and not any(path.startswith("gateway.auth.") for path in hot):
            hot += ("gateway.auth (secret)",)
        told = restart != self.state.restart
        loaded_at_ms = (new if hot else old).loaded_at_ms
        self._count("ok" if hot or told else "unchanged", loaded_at_ms=loaded_at_ms, restart=restart, problem=None, problem_at_ms=None)
        if hot:
            self.current = new
            for callback in tuple(self._callbacks):
                with log.failuresHandled("while telling of a new configuration"):
                    callback(new)
        applied = Applied(hash, hot, restart)
        self.applied(applied)
        if hot or told:
            log.info("{path} was changed: {hot} in force, {restart} after a restart", path=self._path, hot=_listed(hot), restart=_listed(restart))
        return applied

    def _count(self, outcome: str, **changes: Any) -> None:
        before = self.state.reloads
        self.state = msgspec.structs.replace(self.state, reloads={**before, outcome: before.get(outcome, 0) + 1}, **changes)

    def _invalid(self, error: StartError) -> InvalidConfig:
        text = self._redact(str(error))
        return InvalidConfig(f"invalid config: {text}", issue_of(text, self._path))


def _stored(path: str, before: bytes | None, after: bytes) -> Stamp:
    """In a thread: replace the file, and give its stamp; None where somebody else has replaced it since. Raises what `store` does."""
    store(path, before, after)
    taken = stamp(path)
    return taken if read_file(path) == after else None


def _listed(paths: Sequence[str]) -> str:
    return ", ".join(paths) or "nothing"
