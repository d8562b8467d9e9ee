"""When the configuration is read again, and what follows. Real files; time is a clock."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.load import load
from mayros.config.schema import Config
from mayros.config.secret import AuthSecret, resolve
from mayros.core.config_ports import InvalidConfig
from mayros.core.routing import Settings
from mayros.ops.control import ConfigFile
from mayros.ops.reload import POLL_SECONDS, RESTART_SECONDS, SIGNAL_SECONDS, Reloader
from tests.test_control import Threads

FILE = '{{gateway: {{mode: "local", port: {port}, reload: {{mode: "{mode}"}}, auth: {{token: "{token}"}}}}, agents: {{list: [{{id: "{agent}"}}]}}}}'


class ReloadCase(SynchronousTestCase):
    """A gateway's configuration in a folder of its own, and what is asked of it."""

    supervised = True

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        self.path = self.folder / "mayros.json"
        self.clock = Clock()
        self.restarts: list[str] = []
        self.told: list[bool] = []
        self.threads = Threads()
        self.serial = 0

    def write(self, text: str | None = None, path: Path | None = None, **values: Any) -> None:
        """Save the file as editors do, by another that takes its place; times differ, however fast the test is."""
        known = {"port": 1, "mode": "hot", "token": "first-token", "agent": "main"}
        target = path or self.path
        beside = target.with_suffix(".tmp")
        beside.write_text(text if text is not None else FILE.format(**{**known, **values}))
        self.serial += 1
        os.utime(beside, ns=(self.serial, self.serial))
        beside.replace(target)

    def start(self, **values: Any) -> None:
        """The gateway starts with the file as it is."""
        if values or not self.path.exists():
            self.write(**values)
        environ = {"HOME": str(self.folder)}
        loaded = load(str(self.path), environ, state_dir=str(self.folder))
        settings = Settings.build(
            loaded.config,
            state_dir=str(self.folder),
            config_path=str(self.path),
            environ=loaded.environ,
            now_ms=1,
            keys=loaded.keys,
            files=loaded.stamps,
            variables=loaded.raw.get("env"),
            secret=self.secret(loaded.config, loaded.environ),
        )
        self.control = ConfigFile(settings, self.threads, lambda: 2, find_secret=self.secret)
        self.reloader = Reloader(self.control, self.clock, self.restart, self.told.append)
        self.reloader.start()
        self.addCleanup(self.reloader.stop)

    @staticmethod
    def secret(config: Config, environ: Any) -> AuthSecret:
        return resolve(config, environ, None)

    def restart(self, why: str) -> bool:
        self.restarts.append(why)
        return self.supervised

    def wait(self, seconds: float = 2.0) -> None:
        """Time passes, in small steps."""
        for _ in range(round(seconds / 0.1)):
            self.clock.advance(0.1)

    @property
    def agents(self) -> list[str]:
        return list(self.control.current.directory.agents)

    def reads(self) -> int:
        """How often the configuration was read again."""
        return sum(self.control.state.reloads.values())


class PollTests(ReloadCase):
    """Changes of files."""

    def test_a_saved_file_is_in_force(self) -> None:
        """Once it has stayed as it is for the debounce time, and it is read once."""
        self.start()
        self.wait()
        self.assertEqual(0, self.reads())
        self.write(agent="work")
        self.clock.advance(POLL_SECONDS)
        self.assertEqual(["main"], self.agents)
        self.clock.advance(0.3)
        self.assertEqual(["work"], self.agents)
        self.wait()
        self.assertEqual((1, [True, False]), (self.reads(), self.told))

    def test_a_file_that_is_still_being_written(self) -> None:
        """Is left alone until it is quiet."""
        self.start()
        for number in range(20):
            self.write("{" if number < 19 else None, agent="work")
            self.clock.advance(0.2)
        self.assertEqual(0, self.reads())
        self.wait()
        self.assertEqual((["work"], {"ok": 1}), (self.agents, self.control.state.reloads))

    def test_ways_to_save(self) -> None:
        """In place, by renaming, by a link that leads elsewhere, by deleting and making anew."""
        self.path.symlink_to(self.folder / "one" / "mayros.json")
        for name in ("one", "two"):
            (self.folder / name).mkdir()
            self.write(path=self.folder / name / "mayros.json", agent=name)
        self.start()
        self.assertEqual(["one"], self.agents)
        self.path.unlink()
        self.path.symlink_to(self.folder / "two" / "mayros.json")
        self.wait()
        self.assertEqual(["two"], self.agents)
        self.path.unlink()
        self.wait()
        self.assertEqual((["two"], None), (self.agents, self.control.state.problem))
        self.write(agent="three")
        self.wait()
        self.assertEqual(["three"], self.agents)
        self.path.write_text(FILE.format(port=1, mode="hot", token="first-token", agent="fourth"))
        self.wait()
        self.assertEqual(["fourth"], self.agents)

    def test_nothing_new(self) -> None:
        """A file that says the same is read, and nothing follows."""
        self.start()
        before = self.control.current
        self.write()
        self.wait()
        self.assertEqual({"unchanged": 1}, self.control.state.reloads)
        self.assertIs(before, self.control.current)

    def test_included_files_and_keys(self) -> None:
        """Are watched too; a key that was replaced is used."""
        (self.folder / "key").write_text("sk-first\n")
        (self.folder / "key").chmod(0o600)
        text = (
            '{$include: "base.json", gateway: {mode: "local", auth: {token: "first-token"}, reload: {mode: "hot"}}, '
            'auth: {profiles: {mine: {provider: "openai", keyFile: "key"}}}}'
        )
        self.write('{agents: {list: [{id: "one"}]}}', self.folder / "base.json")
        self.write(text)
        self.start()
        self.write('{agents: {list: [{id: "two"}]}}', self.folder / "base.json")
        self.wait()
        self.assertEqual(["two"], self.agents)
        self.assertEqual("sk-first", self.control.current.catalogue.providers["openai"].key)
        self.write("sk-second\n", self.folder / "key")
        self.wait()
        self.assertEqual("sk-second", self.control.current.catalogue.providers["openai"].key)

    def test_a_file_that_cannot_be_used(self) -> None:
        """The last good one stays; it is said once, and over when the file is good again, also where an included one was missing."""
        self.start()
        for text, words in (
            ("{ oops", "not valid JSON5"),
            ("", "the file is empty"),
            ('{gateway: {port: "x"}}', "gateway.port"),
            ('{$include: "b.json"}', "b.json"),
        ):
            self.write(text)
            self.wait(3)
            self.assertEqual((["main"], 2), (self.agents, self.control.state.problem_at_ms))
            self.assertIn(words, self.control.state.problem or "")
        self.assertEqual({"failed": 4}, self.control.state.reloads)
        self.write(FILE.format(port=1, mode="hot", token="first-token", agent="included"), self.folder / "b.json")
        self.wait()
        self.assertEqual((["included"], None), (self.agents, self.control.state.problem))

    def test_own_changes_are_not_read_again(self) -> None:
        """What the gateway itself has written is in force already."""
        self.start()
        self.successResultOf(self.control.write(lambda tree: tree["agents"]["list"].append({"id": "two"})))
        self.wait()
        self.assertEqual((["main", "two"], {"ok": 1}), (self.agents, self.control.state.reloads))


class SignalTests(ReloadCase):
    """SIGHUP."""

    def test_at_once(self) -> None:
        """Without waiting for the poll, and although no file has another time."""
        self.start()
        self.write(agent="work")
        self.reloader.hangup()
        self.assertEqual(["work"], self.agents)

    def test_a_hundred(self) -> None:
        """In one second are two readings at most."""
        self.start()
        self.threads.hold()
        for _ in range(100):
            self.reloader.hangup()
            self.clock.advance(0.01)
            self.threads.go()
        self.wait(SIGNAL_SECONDS * 3)
        self.threads.go()
        self.assertEqual(2, self.reads())

    def test_a_bad_file_is_told_to_the_service_manager_too(self) -> None:
        """A reading always ends, also where nothing can be read."""
        self.start()
        self.write("{ oops")
        self.reloader.hangup()
        self.assertEqual([True, False], self.told)
        self.assertIn("not valid JSON5", self.control.state.problem or "")


class ModeTests(ReloadCase):
    """`gateway.reload.mode`."""

    def test_off(self) -> None:
        """Nothing is read, and that is said once; programs still change things."""
        self.start(mode="off")
        self.write(mode="hot", agent="work")
        self.wait()
        self.reloader.hangup()
        self.assertEqual((["main"], 0), (self.agents, self.reads()))
        self.successResultOf(self.control.write(lambda tree: tree["agents"]["list"].append({"id": "two"})))
        self.assertEqual(["work", "two"], self.agents)

    def test_hot(self) -> None:
        """What can be is in force, the rest waits, and is remembered until it is taken back."""
        self.start()
        self.write(agent="work", port=2)
        self.wait()
        self.assertEqual(
            (["work"], 1, ("gateway.port",), []), (self.agents, self.control.current.config.gateway.port, self.control.state.restart, self.restarts)
        )
        self.write(agent="work", port=1)
        self.wait()
        self.assertEqual((), self.control.state.restart)

    def test_hybrid(self) -> None:
        """What can be is in force, and for the rest the gateway restarts, once; not for what is hot."""
        self.start(mode="hybrid")
        self.write(mode="hybrid", agent="work")
        self.wait()
        self.assertEqual((["work"], []), (self.agents, self.restarts))
        self.write(mode="hybrid", agent="other", port=2)
        self.wait(4)
        self.assertEqual((["other"], ["the configuration has changed: gateway.port"]), (self.agents, self.restarts))
        self.write(mode="hybrid", agent="third", port=2)
        self.wait(4)
        self.assertEqual((["third"], 1), (self.agents, len(self.restarts)))

    def test_hybrid_after_a_change_by_a_program(self) -> None:
        """The same, a moment later, so that the program has its answer."""
        self.start(mode="hybrid")
        applied = self.successResultOf(self.control.write(lambda tree: tree["gateway"].update(port=2)))
        self.assertEqual((("gateway.port",), []), (applied.restart, self.restarts))
        self.clock.advance(RESTART_SECONDS)
        self.assertEqual(1, len(self.restarts))

    def test_a_program_that_says_when(self) -> None:
        """There is one restart, at that time."""
        self.start(mode="hybrid")
        self.successResultOf(self.control.write(lambda tree: tree["gateway"].update(port=2)))
        self.reloader.restart_after(5.0, "config.apply")
        self.wait(4)
        self.assertEqual([], self.restarts)
        self.wait(4)
        self.assertEqual(["config.apply"], self.restarts)

    def test_hybrid_without_anybody_to_start_it_again(self) -> None:
        """It goes on."""
        self.supervised = False
        self.start(mode="hybrid")
        self.write(mode="hybrid", port=2)
        self.wait(4)
        self.assertEqual((1, ("gateway.port",)), (len(self.restarts), self.control.state.restart))

    def test_restart(self) -> None:
        """For any change, if it could start with it."""
        self.start(mode="restart")
        self.write("{ oops")
        self.wait(4)
        self.assertEqual([], self.restarts)
        self.write(mode="restart", agent="work")
        self.wait(4)
        self.assertEqual((["main"], ["the configuration has changed: agents.list"]), (self.agents, self.restarts))


class HeldTests(ReloadCase):
    """Changes that wait together."""

    def test_another_way_in(self) -> None:
        """What goes with `gateway.auth.mode` waits with it; the rest of the file does not."""
        self.start()
        text = (
            '{gateway: {mode: "local", port: 1, reload: {mode: "hot"}, trustedProxies: ["10.0.0.1"], '
            'auth: {mode: "trusted-proxy", trustedProxy: {userHeader: "x-user"}}}, agents: {list: [{id: "work"}]}}'
        )
        self.write(text)
        self.wait()
        current = self.control.current
        waits = {"gateway.auth.mode", "gateway.auth.token", "gateway.auth.trustedProxy.userHeader", "gateway.trustedProxies"}
        self.assertEqual(waits, set(self.control.state.restart))
        self.assertEqual(
            (["work"], "first-token", ()), (self.agents, current.secret and current.secret.value, current.config.gateway.trusted_proxies)
        )

    def test_a_secret_that_is_gone(self) -> None:
        """The one of before goes on: a gateway does not run without."""
        self.start()
        self.write('{gateway: {mode: "local", port: 1, reload: {mode: "hot"}}, agents: {list: [{id: "work"}]}}')
        self.wait()
        self.assertEqual((["work"], ("gateway.auth.token",)), (self.agents, self.control.state.restart))

    def test_another_secret(self) -> None:
        """Is in force, and found by the rules of a start."""
        self.start()
        self.write(token="second-token")
        self.wait()
        secret = self.control.current.secret
        self.assertEqual(("second-token", ()), (secret and secret.value, self.control.state.restart))

    def test_the_environment_of_the_file(self) -> None:
        """Was read at the start, so another one waits."""
        self.start()
        self.write(
            FILE.format(port=1, mode="hot", token="${SECRET_OF_MINE}", agent="main").replace(
                "{gateway", '{env: {SECRET_OF_MINE: "abc-defg"}, gateway', 1
            )
        )
        self.wait()
        self.assertEqual(("env.SECRET_OF_MINE",), self.control.state.restart)

    def test_what_cannot_be_accepted(self) -> None:
        """Is a file that cannot be used."""
        self.start()
        self.write('{gateway: {mode: "local", bind: "tailnet"}}')
        error = self.failureResultOf(self.control.reload(), InvalidConfig).value
        self.assertEqual("gateway.bind", error.issue.path)
