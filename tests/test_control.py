"""The configuration file in force: reading it for clients, changing it, and what a change that fails leaves behind."""

from __future__ import annotations

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import ConnectionDone
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.load import load
from mayros.core.config_ports import Merge, NotInFile, Whole
from mayros.core.routing import Settings
from mayros.errors import ConfigError, InvalidRequest, StorageUnavailable, Unavailable
from mayros.ops.control import MAX_WAITING, STALE, ConfigFile

FILE = """\
// The workshop's gateway; the old token was: "token": "old-secret-1234", and http://bob:hunter22@proxy/
{
  gateway: { mode: "local", auth: { token: "${SECRET}" } }, // not for clients
  agents: {
    defaults: { model: "fake/one" },
    list: [
      { id: "main" }, // the first
    ],
  },
  models: { providers: { fake: { baseUrl: "http://127.0.0.1:1/v1", apiKey: "sk-0123456789", models: [{ id: "one" }, { id: "two" }] } } },
}
"""


class Threads:
    """Runs what belongs into a thread at once, or when the test says so."""

    def __init__(self) -> None:
        self.held: list[Deferred[None]] | None = None

    def __call__(self, function: Any, *args: Any) -> Deferred[Any]:
        if self.held is None:
            return maybeDeferred(function, *args)
        go: Deferred[None] = Deferred()
        self.held.append(go)
        return go.addCallback(lambda _: function(*args))

    def hold(self) -> None:
        self.held = []

    def go(self) -> None:
        """Let everything pass until nothing waits."""
        while self.held:
            self.held.pop(0).callback(None)


class ControlCase(SynchronousTestCase):
    """A configuration file in a folder of its own."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp())
        self.folder.mkdir()
        self.path = self.folder / "mayros.json"
        self.threads = Threads()
        self.refuse: ConfigError | None = None

    def control(self, text: str | None = FILE, **files: str) -> ConfigFile:
        """The control of a gateway that was started with these files; `base_json` is base.json."""
        for name, content in files.items():
            (self.folder / name.replace("_", ".")).write_text(content)
        if text is not None:
            self.path.write_text(text)
            self.path.chmod(0o640)
        environ = {"SECRET": "from-the-environment", "HOME": str(self.folder)}
        loaded = load(str(self.path), environ, state_dir=str(self.folder))
        settings = Settings.build(
            loaded.config, state_dir=str(self.folder), config_path=str(self.path), environ=loaded.environ, now_ms=1, warnings=loaded.warnings
        )
        return ConfigFile(settings, self.threads, lambda: 2, self.accept)

    def accept(self, settings: Settings) -> None:
        if self.refuse is not None:
            raise self.refuse

    def error(self, deferred: Any) -> Exception:
        """What a write fails with; the file and the settings are as they were."""
        return self.failureResultOf(deferred).value


def add_agent(tree: dict[str, Any]) -> None:
    tree["agents"]["list"].append({"id": "beta", "name": "Beta"})


class WriteTests(ControlCase):
    """Changing the file."""

    def test_a_new_agent(self) -> None:
        """The file keeps its remarks, references and mode; the agent is there at once; whoever listens is told."""
        control, told = self.control(), []
        stop = control.changed(told.append)
        before = control.current
        applied = self.successResultOf(control.write(add_agent))
        text = self.path.read_text()
        self.assertEqual(FILE.replace("// the first\n", '// the first\n      {\n        id: "beta",\n        name: "Beta"\n      },\n'), text)
        self.assertEqual(0o640, self.path.stat().st_mode & 0o777)
        self.assertEqual((sha256(text.encode()).hexdigest(), ("agents.list",), ()), (applied.hash, applied.hot, applied.restart))
        self.assertEqual(["main", "beta"], list(control.current.directory.agents))
        self.assertEqual([control.current], told)
        self.assertEqual(["main"], list(before.directory.agents))
        stop()
        self.successResultOf(control.write(lambda tree: tree["agents"]["list"].pop()))
        self.assertEqual((FILE, 1), (self.path.read_text(), len(told)))

    def test_what_waits_for_a_restart(self) -> None:
        """The port is in the file and not in force, and told of as long as it waits."""
        control = self.control()

        def edit(tree: dict[str, Any]) -> None:
            tree["gateway"]["port"] = 1234
            tree["agents"]["defaults"].update(maxConcurrent=7, timeoutSeconds=5)

        applied = self.successResultOf(control.write(edit))
        self.assertEqual({"agents.defaults.timeoutSeconds", "agents.defaults.maxConcurrent"}, set(applied.hot))
        self.assertEqual((("gateway.port",), ("gateway.port",)), (applied.restart, control.state.restart))
        config = control.current.config
        self.assertEqual((18789, 7, 5), (config.gateway.port, config.agents.defaults.max_concurrent, config.agents.defaults.timeout_seconds))
        self.assertEqual(("gateway.port",), self.successResultOf(control.write(add_agent)).restart)

    def test_a_whole_file(self) -> None:
        """A text takes the place of the file; what was hidden from its sender is what it was, and its own remarks stay."""
        control = self.control()
        shown = self.successResultOf(Deferred.fromCoroutine(control.view()))
        text = "// new\n" + shown.raw.replace("// the first", "// the only one")
        applied = self.successResultOf(control.write(Whole(text), shown.hash))
        written = self.path.read_text()
        self.assertTrue(written.startswith("// new\n"))
        for part in ("// the only one", '"${SECRET}"', '"sk-0123456789"'):
            self.assertIn(part, written)
        self.assertEqual(((), sha256(written.encode()).hexdigest()), (applied.hot, applied.hash))
        self.assertEqual(STALE, str(self.error(control.write(Whole("{}"), shown.hash))))

    def test_a_merge_patch(self) -> None:
        """Agents are merged by their ids, null takes a key away, remarks stay."""
        control = self.control()
        patch = (
            '{agents: {defaults: {model: null}, list: [{id: "main", name: "Mine"}, {id: "beta"}]}, '
            'models: {providers: {fake: {apiKey: "__MAYROS_REDACTED__"}}}}'
        )
        applied = self.successResultOf(control.write(Merge(patch)))
        self.assertEqual({"agents.defaults.model", "agents.list"}, set(applied.hot))
        self.assertEqual(["main", "beta"], list(control.current.directory.agents))
        self.assertIn("// the first", self.path.read_text())
        self.assertIn("sk-0123456789", self.path.read_text())

    def test_texts_that_are_refused(self) -> None:
        """File and settings stay; the error says where, and quotes no secret."""
        control = self.control()
        for change, words in (
            (Whole("{ oops"), "not valid JSON5"),
            (Whole("[1]"), "one object"),
            (Whole('{gateway: {port: "x"}}'), "gateway.port"),
            (Whole('{gateway: {auth: {password: "__MAYROS_REDACTED__"}}}'), "gateway.auth.password"),
            (Merge("5"), "one object"),
            (Merge('{gateway: {auth: {tokn: "my-own-secret"}}}'), "gateway.auth.tokn"),
            (Merge('{agents: {list: [{id: "\udc00"}]}}'), "half a surrogate pair"),
            (Merge('{$include: "x.json"}'), "$include"),
        ):
            error = self.error(control.write(change))
            self.assertIsInstance(error, InvalidRequest)
            self.assertIn(words, str(error))
            self.assertNotIn("my-own-secret", str(error))
            self.assertEqual(FILE, self.path.read_text())

    def test_the_first_file(self) -> None:
        """Where there is none, one is made, for its owner alone."""
        control = self.control(None)
        empty = self.successResultOf(Deferred.fromCoroutine(control.source()))
        self.assertEqual((None, sha256(b"").hexdigest()), (empty.text, empty.hash))
        self.successResultOf(control.write(lambda tree: tree.update(agents={"list": [{"id": "a"}]}), empty.hash))
        self.assertEqual({"agents": {"list": [{"id": "a"}]}}, json.loads(self.path.read_text()))
        self.assertEqual(0o600, self.path.stat().st_mode & 0o777)

    def test_nothing_to_change(self) -> None:
        """The file is not touched."""
        control = self.control()
        stamp = self.path.stat().st_mtime_ns
        applied = self.successResultOf(control.write(lambda tree: None))
        self.assertEqual((stamp, ()), (self.path.stat().st_mtime_ns, applied.hot))

    def test_the_base_hash(self) -> None:
        """Who has read another file must read again."""
        control = self.control()
        hash = self.successResultOf(Deferred.fromCoroutine(control.source())).hash
        self.assertEqual(sha256(FILE.encode()).hexdigest(), hash)
        after = self.successResultOf(control.write(add_agent, hash)).hash
        error = self.error(control.write(lambda tree: tree.clear(), hash))
        self.assertIsInstance(error, InvalidRequest)
        self.assertEqual(STALE, str(error))
        self.successResultOf(control.write(lambda tree: tree["agents"]["list"].pop(), after))

    def test_an_editor_comes_between(self) -> None:
        """What somebody saved while a write was under way is not overwritten."""
        control = self.control()

        def edit(tree: dict[str, Any]) -> None:
            add_agent(tree)
            self.path.write_text(FILE + "// saved meanwhile\n")

        self.assertEqual(STALE, str(self.error(control.write(edit))))
        self.assertTrue(self.path.read_text().endswith("meanwhile\n"))
        self.successResultOf(control.write(add_agent))
        self.assertTrue(self.path.read_text().endswith("meanwhile\n"))

    def test_changes_that_are_refused(self) -> None:
        """Whatever is wrong, file and settings stay, and the next write works."""

        def explode(tree: dict[str, Any]) -> None:
            add_agent(tree)
            raise ConnectionDone

        def elsewhere(tree: dict[str, Any]) -> None:
            raise NotInFile("agents", "list")

        cases: list[tuple[Any, type[Exception], str]] = [
            (lambda tree: tree["agents"].update(list=5), InvalidRequest, "agents.list: Expected array"),
            (lambda tree: tree["agents"]["list"].append({"id": "MAIN"}), InvalidRequest, "agent main is configured twice"),
            (lambda tree: tree["gateway"].update(bind="tailnet"), InvalidRequest, "gateway.bind: this version cannot do that"),
            (lambda tree: tree["gateway"]["auth"].update(tokn="x"), InvalidRequest, "gateway.auth.tokn: unknown key"),
            (lambda tree: tree["agents"]["list"][0].update(name="${NOBODY}"), InvalidRequest, "NOBODY is missing or empty"),
            (lambda tree: tree["agents"]["list"][0].update(name="\udc00"), InvalidRequest, "half a surrogate pair"),
            (lambda tree: tree.update({"$include": "other.json"}), InvalidRequest, "$include is not changed by programs"),
            (lambda tree: tree["agents"]["list"][0].update(name="x" * (6 << 20)), InvalidRequest, "larger than 5 MB"),
            (explode, ConnectionDone, ""),
            (elsewhere, InvalidRequest, "the file was changed since"),
        ]
        control = self.control()
        settings = control.current
        for edit, kind, words in cases:
            error = self.error(control.write(edit))
            self.assertIsInstance(error, kind)
            self.assertIn(words, str(error))
            self.assertNotIn("from-the-environment", str(error))
            self.assertEqual(FILE, self.path.read_text())
            self.assertIs(settings, control.current)
        self.refuse = ConfigError("models.providers.fake.baseUrl is not set")
        self.assertIn("baseUrl is not set", str(self.error(control.write(add_agent))))
        self.refuse = None
        self.successResultOf(control.write(add_agent))
        self.assertEqual(["mayros.json"], os.listdir(self.folder))

    def test_a_file_that_cannot_be_written(self) -> None:
        """An error that may be tried again, and nothing is left behind."""
        control = self.control()

        def edit(tree: dict[str, Any]) -> None:
            add_agent(tree)
            self.patch(os, "replace", self.broken)

        error = self.error(control.write(edit))
        self.assertIsInstance(error, StorageUnavailable)
        self.assertIn("No space left", str(error))
        self.assertEqual((FILE, ["mayros.json"]), (self.path.read_text(), os.listdir(self.folder)))

    @staticmethod
    def broken(*args: object) -> None:
        raise OSError(28, "No space left on device")

    def test_a_file_that_cannot_be_read(self) -> None:
        """Said with its line, and not replaced by something that can."""
        control = self.control()
        self.path.write_text("{\n  agents: oops\n}")
        error = self.error(control.write(add_agent))
        self.assertIn("invalid config: ", str(error))
        self.assertIn("mayros.json:", str(error))
        self.assertEqual("{\n  agents: oops\n}", self.path.read_text())

    def test_included_files(self) -> None:
        """What comes from one is refused by its name; what the file says itself can be changed."""
        text = '{ $include: "base.json", gateway: { mode: "local" }, agents: { $include: ["list.json"], defaults: { userTimezone: "UTC" } } }'
        control = self.control(text, base_json='{"logging": {"level": "warn"}}', list_json='{"list": [{"id": "work"}]}')
        for edit in (
            lambda tree: tree["agents"].update(list=[{"id": "x"}]),
            lambda tree: tree["agents"].setdefault("list", []),
            self.nowhere,
        ):
            self.assertIn("agents.list comes from list.json, which", str(self.error(control.write(edit))))
        self.assertIn("logging.level comes from base.json", str(self.error(control.write(lambda tree: tree.update(logging={"level": "info"})))))
        self.assertEqual(text, self.path.read_text())
        self.successResultOf(control.write(lambda tree: tree["agents"]["defaults"].update(userTimezone="Europe/Berlin")))
        self.assertEqual(text.replace("UTC", "Europe/Berlin"), self.path.read_text())
        self.assertEqual(["work"], list(control.current.directory.agents))

    @staticmethod
    def nowhere(tree: dict[str, Any]) -> None:
        raise NotInFile("agents", "list")


class QueueTests(ControlCase):
    """Many writes at once."""

    def test_one_at_a_time_in_order(self) -> None:
        """Each sees what the one before it wrote; none is lost."""
        control = self.control()
        self.threads.hold()
        writes = [control.write(lambda tree, number=number: tree["agents"]["list"].append({"id": f"a{number}"})) for number in range(5)]
        self.assertNoResult(writes[0])
        self.threads.go()
        for write in writes:
            self.successResultOf(write)
        self.assertEqual(["main", *(f"a{number}" for number in range(5))], list(control.current.directory.agents))

    def test_whoever_leaves_only_stops_waiting(self) -> None:
        """What was asked for is done; a failure that nobody waits for any more stops nothing."""
        control = self.control()
        self.threads.hold()
        left = control.write(add_agent)
        wrong = control.write(lambda tree: tree.update(agents=5))
        last = control.write(lambda tree: tree["agents"]["list"].append({"id": "c"}))
        for write in (left, wrong):
            write.cancel()
            self.assertIsInstance(self.error(write), CancelledError)
        self.threads.go()
        self.successResultOf(last)
        self.assertEqual(["main", "beta", "c"], list(control.current.directory.agents))

    def test_the_queue_is_bounded(self) -> None:
        """More than can be are refused at once, and may be tried again."""
        control = self.control()
        self.threads.hold()
        writes = [control.write(lambda tree: None) for _ in range(MAX_WAITING + 1)]
        self.assertIsInstance(self.error(control.write(add_agent)), Unavailable)
        self.threads.go()
        for write in writes:
            self.successResultOf(write)

    def test_a_listener_that_fails(self) -> None:
        """Is logged; the others are told, and the write is done."""
        control, told = self.control(), []
        control.changed(lambda settings: 1 / 0)
        control.changed(told.append)
        self.successResultOf(control.write(add_agent))
        self.assertEqual(1, len(told))
        self.assertEqual(1, len(self.flushLoggedErrors(ZeroDivisionError)))


class ViewTests(ControlCase):
    """The file as clients see it."""

    def view(self, control: ConfigFile) -> Any:
        return self.successResultOf(Deferred.fromCoroutine(control.view()))

    def test_no_secret_is_in_it(self) -> None:
        """Not in values, not in the text, not in remarks; the rest of the text is there."""
        view = self.view(self.control())
        shown = repr(view)
        for secret in ("from-the-environment", "sk-0123456789", "old-secret-1234", "hunter22"):
            self.assertNotIn(secret, shown)
        self.assertEqual("__MAYROS_REDACTED__", view.parsed["gateway"]["auth"]["token"])
        self.assertEqual("__MAYROS_REDACTED__", view.resolved["models"]["providers"]["fake"]["apiKey"])
        self.assertEqual(18789, view.config["gateway"]["port"])
        self.assertIn('{ mode: "local", auth: { token: "__MAYROS_REDACTED__" } }, // not for clients', view.raw)
        self.assertEqual((True, True, sha256(FILE.encode()).hexdigest(), ()), (view.exists, view.valid, view.hash, view.issues))

    def test_secrets_in_unusual_places(self) -> None:
        """A key that stands twice, numbers, lists, a password in a URL, an environment for others."""
        text = """{ "gateway": { "auth": { "password": "first-one", 'pass\\u0077ord': 'second-one' } },
          hooks: { token: 123456789, tokens: ["kept"] }, mcp: { servers: { x: { env: { A: ["deep-value"] },
          url: "https://u:pw-in-url@host/" } } } }"""
        view = self.view(self.control(text))
        for secret in ("first-one", "second-one", "123456789", "deep-value", "pw-in-url"):
            self.assertNotIn(secret, repr(view))
        self.assertIn('["kept"]', view.raw)

    def test_warnings(self) -> None:
        """With their key paths."""
        view = self.view(self.control("{ channels: {}, gateway: { prot: 1 } }"))
        self.assertEqual({"channels", "gateway.prot"}, {warning.path for warning in view.warnings})

    def test_a_file_that_is_not_valid(self) -> None:
        """What is wrong and where; what it says is shown as far as it can be read, and never a secret."""
        control = self.control()
        self.path.write_text('{ gateway: { port: "x", auth: { token: "my-secret-token" } } }')
        view = self.view(control)
        self.assertEqual((False, ["gateway.port"]), (view.valid, [issue.path for issue in view.issues]))
        self.assertIn('port: "x"', view.raw)
        self.assertNotIn("my-secret-token", repr(view))
        self.path.write_text('{ gateway: { auth: { token: "my-secret-token" ')
        view = self.view(control)
        self.assertEqual((False, True, None, {}), (view.valid, view.exists, view.raw, view.config))
        self.assertNotIn("my-secret-token", repr(view))

    def test_no_file(self) -> None:
        """An empty configuration, with all defaults."""
        view = self.view(self.control(None))
        self.assertEqual((False, True, None, {}), (view.exists, view.valid, view.raw, view.parsed))
        self.assertEqual(18789, view.config["gateway"]["port"])
