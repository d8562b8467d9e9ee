"""The methods agents.*, agents.files.* and models.list, over a real configuration file and real workspaces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
from twisted.internet.defer import Deferred
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.approvals import Question
from mayros.core.exec_ports import AllowedExec, ExecPolicy
from mayros.core.routing import Settings
from mayros.storage.agent_files import MAX_FILE
from tests.helpers import BASE, merged
from tests.test_ws import ADMIN, READ, WRITE, World, ask, tell

REMARK = "// Ask Ada before changing this.\n"


def unlisted(world: World) -> None:
    """Let the gateway be one that was started with a file that lists no agents."""
    current, replace = world.gateway.config.current, msgspec.structs.replace
    config = replace(current.config, agents=replace(current.config.agents, list=()))
    world.gateway.config.current = Settings.build(config, state_dir=current.state_dir, config_path=current.config_path, environ={}, now_ms=1)


class AgentsCase(SynchronousTestCase):
    """A gateway with a state directory; `ask` is an administrator's."""

    def world_with(self, changes: dict[str, Any] | None = None, text: str | None = None) -> None:
        self.state = Path(self.mktemp()).absolute()
        self.home = self.state / "home"
        self.home.mkdir(parents=True)
        self.file = self.state / "mayros.json"
        self.file.write_text(text or REMARK + json.dumps(merged(BASE, changes or {}), indent=2))
        self.world = World(self, changes, str(self.state))
        self.session, self.link = self.world.connect(ADMIN)
        self.other = Path(self.mktemp()).absolute()

    def setUp(self) -> None:
        self.world_with()

    def ask(self, method: str, **params: Any) -> Any:
        """The payload of an answer."""
        answer = ask(self.session, self.link, method, params)
        self.assertTrue(answer["ok"], answer)
        return answer["payload"]

    def refused(self, method: str, **params: Any) -> str:
        """The message of a refusal; the file and the agents are as they were."""
        before, agents = self.file.read_text(), self.ask("agents.list")
        error = ask(self.session, self.link, method, params)["error"]
        self.assertEqual("INVALID_REQUEST", error["code"], error)
        self.assertEqual((before, agents), (self.file.read_text(), self.ask("agents.list")))
        return error["message"]

    def listed(self) -> Any:
        return self.ask("agents.list")["agents"]

    def entries(self) -> Any:
        """`agents.list` of the file, which must still begin with its remark."""
        head, _, rest = self.file.read_text().partition("\n")
        self.assertEqual(REMARK, head + "\n")
        return json.loads(rest)["agents"]["list"]


class AgentTests(AgentsCase):
    """Listing and changing agents."""

    def test_list(self) -> None:
        """Exactly the keys of the protocol; identity only where there is one."""
        self.world_with(
            {"agents": {"list": [{"id": "main", "name": "Main"}, {"id": "Ops Team", "identity": {"emoji": "x", "avatar": "https://a/b.png"}}]}}
        )
        self.assertEqual(
            {
                "defaultId": "main",
                "mainKey": "main",
                "scope": "per-sender",
                "agents": [
                    {"id": "main", "name": "Main"},
                    {"id": "ops-team", "identity": {"emoji": "x", "avatar": "https://a/b.png", "avatarUrl": "https://a/b.png"}},
                ],
            },
            self.ask("agents.list"),
        )

    def test_scopes(self) -> None:
        """Reading for readers, changing for administrators."""
        session, link = self.world.connect(READ, WRITE)
        self.assertTrue(ask(session, link, "agents.list")["ok"])
        self.assertTrue(ask(session, link, "agents.files.list", {"agentId": "main"})["ok"])
        for method in ("agents.create", "agents.update", "agents.delete", "agents.files.set"):
            self.assertEqual("missing scope: operator.admin", ask(session, link, method, {})["error"]["message"])

    def test_create(self) -> None:
        """The agent is there at once, with a workspace and starter files that say who it is; the file keeps its remarks."""
        made = self.ask("agents.create", name="Night Shift", workspace=f" {self.other}/../night/ ", emoji="🦉")
        night = self.other.parent / "night"
        self.assertEqual({"ok": True, "agentId": "night-shift", "name": "Night Shift", "workspace": str(night)}, made)
        self.assertEqual({"id": "night-shift", "name": "Night Shift", "identity": {"emoji": "🦉"}, "workspace": str(night)}, self.entries()[-1])
        self.assertEqual({"id": "night-shift", "name": "Night Shift", "identity": {"emoji": "🦉"}}, self.listed()[-1])
        self.assertEqual("# Identity\n\nName: Night Shift\nEmoji: 🦉\n", (night / "IDENTITY.md").read_text())
        self.assertTrue((night / "AGENTS.md").exists())
        self.assertEqual(0o700, night.stat().st_mode & 0o777)
        tell(self.session, "agent", {"message": "hi", "idempotencyKey": "k", "agentId": "night-shift"})
        self.world.provider.say("Hu hu")
        self.world.provider.stop()
        self.assertEqual("ok", self.link.take()[-1]["payload"]["status"])

    def test_create_twice(self) -> None:
        """The second finds the first, also when both were sent at once."""
        for number in range(2):
            tell(self.session, "agents.create", {"name": "Twin", "workspace": str(self.other)}, id=str(number))
        first, second = [frame for frame in self.link.take() if frame["type"] == "res"]
        self.assertTrue(first["ok"])
        self.assertEqual('agent "twin" already exists', second["error"]["message"])

    def test_create_beside_the_agent_that_nobody_listed(self) -> None:
        """It stays, and stays the default."""
        self.world_with(text=REMARK + '{"agents": {"defaults": {"model": "fake/one"}}}')
        unlisted(self.world)
        self.ask("agents.create", name="Extra", workspace=str(self.other))
        self.assertEqual(["main", "extra"], [entry["id"] for entry in self.entries()])
        self.assertEqual("main", self.ask("agents.list")["defaultId"])

    def test_an_existing_folder_keeps_its_files(self) -> None:
        """Nothing in it is overwritten."""
        self.other.mkdir()
        (self.other / "SOUL.md").write_text("mine")
        self.ask("agents.create", name="Old", workspace=str(self.other))
        self.assertEqual(["SOUL.md"], [path.name for path in self.other.iterdir()])

    def test_texts_are_not_references(self) -> None:
        """`${NAME}` in a name is a name."""
        self.ask("agents.create", name="The ${HOME} one", workspace=str(self.other))
        self.assertEqual("The $${HOME} one", self.entries()[-1]["name"])
        self.assertEqual("The ${HOME} one", self.listed()[-1]["name"])

    def test_create_refused(self) -> None:
        """Each by name, and nothing is written."""
        for params, words in (
            ({"name": "main"}, '"main" is reserved'),
            ({"name": " !!! "}, '"main" is reserved'),
            ({"name": "BETA"}, 'agent "beta" already exists'),
            ({"name": "  "}, "name must not be blank"),
            ({"name": "a\nb"}, "name must not contain control characters"),
            ({"name": "x" * 300}, "name must be at most 256 bytes"),
            ({"emoji": "x" * 300}, "emoji must be at most 256 bytes"),
            ({"workspace": "relative/path"}, "workspace must be an absolute path"),
            ({"workspace": "/tmp/a\x00b"}, "workspace must be an absolute path"),
            ({"workspace": "/"}, "must not be the home directory"),
            ({"workspace": "~"}, "must not be the home directory"),
            ({"workspace": "~/.."}, "must not be the home directory"),
            ({"workspace": str(self.state)}, "must not be the home directory"),
            ({"workspace": str(self.state / "agents")}, "must not be in the state directory"),
            ({"workspace": str(self.state / "workspace" / ".." / "logs")}, "must not be in the state directory"),
            ({"workspace": str(self.file)}, "must not be in the state directory"),
            ({"name": None}, "at /name: must be string"),
            ({"colour": "red"}, "unexpected property 'colour'"),
        ):
            self.assertIn(words, self.refused("agents.create", **{"name": "New", "workspace": str(self.other), **params}))
        self.assertIn("must have required property 'workspace'", self.refused("agents.create", name="New"))
        link = self.other.parent / "link"
        link.symlink_to(self.state)
        self.assertIn("must not be the home directory", self.refused("agents.create", name="New", workspace=str(link)))
        self.other.write_text("a file")
        self.assertIn("workspace cannot be used", self.refused("agents.create", name="New", workspace=str(self.other / "x")))

    def test_workspaces_in_the_state_directory(self) -> None:
        """Under the names that are for them."""
        for name in ("workspace-a", "workspaces/b"):
            self.ask("agents.create", name=name, workspace=str(self.state / name))

    def test_update(self) -> None:
        """What is sent changes, everything else stays."""
        self.assertEqual({"ok": True, "agentId": "beta"}, self.ask("agents.update", agentId="beta", name="B", model="fake/two", avatar="b.png"))
        self.assertEqual({"id": "beta", "name": "B", "model": "fake/two", "identity": {"avatar": "b.png"}}, self.entries()[1])
        self.assertEqual(["fake/two"], [model.ref for model in self.world.gateway.config.current.directory.agents["beta"].models])
        self.ask("agents.update", agentId="beta", workspace=str(self.other))
        self.assertTrue((self.other / "AGENTS.md").exists())
        self.assertEqual(("B", str(self.other)), (self.entries()[1]["name"], self.entries()[1]["workspace"]))

    def test_update_keeps_fallbacks(self) -> None:
        """A new model is the primary one."""
        self.world_with({"agents": {"list": [{"id": "main", "model": {"primary": "fake/one", "fallbacks": ["fake/two"]}}]}})
        self.ask("agents.update", agentId="main", model="fake/two")
        self.assertEqual({"primary": "fake/two", "fallbacks": ["fake/two"]}, self.entries()[0]["model"])

    def test_update_the_agent_that_nobody_listed(self) -> None:
        """Then it is listed."""
        self.world_with(text=REMARK + '{"agents": {"defaults": {"model": "fake/one"}}}')
        unlisted(self.world)
        self.ask("agents.update", agentId="main", name="Me")
        self.assertEqual([{"id": "main", "name": "Me"}], self.entries())

    def test_update_refused(self) -> None:
        """Unknown agents, models and keys."""
        for params, words in (
            ({"agentId": "nobody"}, "unknown agent id"),
            ({"agentId": "no body"}, "unknown agent id"),
            ({"agentId": "beta", "model": "nowhere/x"}, "unknown model: nowhere/x"),
            ({"agentId": "beta", "name": ""}, "at /name: must NOT have fewer than 1 characters"),
            ({"agentId": "beta", "workspace": "/"}, "must not be the home directory"),
            ({"agentId": "beta", "emoji": "x"}, "unexpected property 'emoji'"),
        ):
            self.assertIn(words, self.refused("agents.update", **params))

    def test_delete(self) -> None:
        """The agent and its bindings go; its workspace is moved aside, and stays on request."""
        self.ask("agents.create", name="gone", workspace=str(self.other))
        text = self.file.read_text()
        self.file.write_text(text.rstrip()[:-1] + ', "bindings": [{"agentId": "Gone"}, {"agentId": "beta"}]}')
        self.assertEqual({"ok": True, "agentId": "gone", "removedBindings": 1}, self.ask("agents.delete", agentId="gone"))
        self.assertEqual(["main", "beta"], [row["id"] for row in self.listed()])
        aside = self.other.with_name(f"{self.other.name}.deleted.1000000")
        self.assertEqual((False, True), (self.other.exists(), (aside / "AGENTS.md").exists()))
        self.ask("agents.create", name="gone", workspace=str(self.other))
        self.ask("agents.delete", agentId="gone", deleteFiles=False)
        self.assertTrue((self.other / "AGENTS.md").exists())

    def test_rules_for_commands_go_with_their_agent(self) -> None:
        """A new agent with the same id starts anew, and what the old one asked is denied; the rules and questions of others stay."""
        rules = self.world.exec_rules
        kept = {"main": ExecPolicy(ask="always"), "gone": ExecPolicy(security="full")}
        entries = [AllowedExec("1", "gone", "/usr/bin/git"), AllowedExec("2", "main", "/usr/bin/git"), AllowedExec("3", "*", "/usr/bin/ls")]
        self.ask("agents.create", name="gone", workspace=str(self.other))
        self.successResultOf(Deferred.fromCoroutine(rules.replace(entries, kept)))
        asked, other = (self.world.approvals.ask(Question("ls", agent_id=agent_id)) for agent_id in ("gone", "main"))
        self.ask("agents.delete", agentId="gone")
        self.assertEqual(("deny", None), (asked.decision, other.decision))
        self.assertEqual((["2", "3"], ["main"]), (list(self.world.rules_store.entries), list(self.world.rules_store.policies)))
        self.ask("agents.create", name="gone", workspace=str(self.other))
        self.assertIsNone(rules.find("gone", ["/usr/bin/git"]))
        self.assertIsNone(rules.policy("gone").security)

    def test_rules_that_cannot_be_removed(self) -> None:
        """Keep the agent where they cannot even be read; else one is told of them, and the agent is gone all the same."""
        self.ask("agents.create", name="gone", workspace=str(self.other))
        rules = self.world.exec_rules
        self.world.rules_store.broken = True
        self.assertEqual("UNAVAILABLE", ask(self.session, self.link, "agents.delete", {"agentId": "gone"})["error"]["code"])
        self.assertIn("gone", [row["id"] for row in self.listed()])
        self.world.rules_store.broken = False
        self.successResultOf(Deferred.fromCoroutine(rules.ready()))
        self.successResultOf(Deferred.fromCoroutine(rules.replace([AllowedExec("1", "gone", "/usr/bin/git")], {})))
        self.world.rules_store.broken = True
        error = ask(self.session, self.link, "agents.delete", {"agentId": "gone"})["error"]
        self.assertEqual(("UNAVAILABLE", True), (error["code"], "rules for commands are still kept" in error["message"]))
        self.assertNotIn("gone", [row["id"] for row in self.listed()])

    def test_a_shared_workspace_stays(self) -> None:
        """Another agent works in it, or in a part of it."""
        for name, workspace in (("one", self.other), ("two", self.other / "sub")):
            self.ask("agents.create", name=name, workspace=str(workspace))
        self.ask("agents.delete", agentId="one")
        self.assertTrue(self.other.exists())

    def test_a_workspace_that_must_stay(self) -> None:
        """The agent goes, the home directory does not, whatever the file said."""
        self.world_with({"agents": {"list": [{"id": "main"}, {"id": "beta", "workspace": str(self.state / "home")}]}})
        self.ask("agents.update", agentId="beta", name="B")
        self.assertEqual(0, self.ask("agents.delete", agentId="beta")["removedBindings"])
        self.assertTrue(self.home.exists())

    def test_delete_refused(self) -> None:
        """The main agent, and unknown ones."""
        self.assertEqual('"main" cannot be deleted', self.refused("agents.delete", agentId="main"))
        self.assertEqual("unknown agent id", self.refused("agents.delete", agentId="nobody"))

    def test_agents_of_an_included_file(self) -> None:
        """Are refused by the name of the file."""
        self.file.write_text('{"agents": {"$include": "agents.json"}}')
        (self.state / "agents.json").write_text(json.dumps({"list": [{"id": "main"}, {"id": "beta"}]}))
        for method, params in (
            ("agents.update", {"agentId": "beta", "name": "B"}),
            ("agents.delete", {"agentId": "beta"}),
            ("agents.create", {"name": "New", "workspace": str(self.other)}),
        ):
            self.assertIn("agents.list comes from agents.json", self.refused(method, **params))

    def test_models(self) -> None:
        """Listed ones, and one that only an agent names."""
        self.world_with({"agents": {"list": [{"id": "main", "model": "fake/unlisted"}]}})
        rows = {row["id"]: row for row in self.ask("models.list")["models"]}
        self.assertLessEqual({"one", "two", "unlisted", "smollm2-135m-instruct"}, set(rows))
        self.assertEqual({"id": "one", "name": "one", "provider": "fake", "contextWindow": 8192, "reasoning": False, "input": ["text"]}, rows["one"])
        self.assertIn("unexpected property 'x'", self.refused("models.list", x=1))


class FileTests(AgentsCase):
    """The files of a workspace."""

    def setUp(self) -> None:
        super().setUp()
        self.ask("agents.create", name="ops", workspace=str(self.other))

    def test_list(self) -> None:
        """All names with a meaning, MEMORY.md under the name in use."""
        answer = self.ask("agents.files.list", agentId="ops")
        self.assertEqual(("ops", str(self.other)), (answer["agentId"], answer["workspace"]))
        files = {file["name"]: file for file in answer["files"]}
        self.assertEqual({"name": "SOUL.md", "path": f"{self.other}/SOUL.md", "missing": True}, files["SOUL.md"])
        self.assertEqual({"name", "path", "missing", "size", "updatedAtMs"}, set(files["AGENTS.md"]))
        self.assertEqual((self.other / "AGENTS.md").stat().st_size, files["AGENTS.md"]["size"])
        self.assertIn("MEMORY.md", files)
        (self.other / "memory.md").write_text("x")
        names = [file["name"] for file in self.ask("agents.files.list", agentId="ops")["files"]]
        self.assertEqual((True, False), ("memory.md" in names, "MEMORY.md" in names))

    def test_set_and_get(self) -> None:
        """What was set is read back; the file is its owner's alone."""
        answer = self.ask("agents.files.set", agentId="OPS", name="SOUL.md", content="Kind. ü\n")
        self.assertEqual({"ok", "agentId", "workspace", "file"}, set(answer))
        got = self.ask("agents.files.get", agentId="ops", name="SOUL.md")
        self.assertEqual({"agentId", "workspace", "file"}, set(got))
        self.assertEqual(answer["file"], got["file"])
        self.assertEqual(("Kind. ü\n", 9, False), (got["file"]["content"], got["file"]["size"], got["file"]["missing"]))
        path = self.other / "SOUL.md"
        self.assertEqual(("Kind. ü\n", 0o600), (path.read_text(), path.stat().st_mode & 0o777))
        self.assertFalse([name for name in self.other.iterdir() if name.name.endswith(".tmp")])

    def test_a_missing_file(self) -> None:
        """Is no error."""
        file = self.ask("agents.files.get", agentId="ops", name="HOPE.md")["file"]
        self.assertEqual({"name": "HOPE.md", "path": f"{self.other}/HOPE.md", "missing": True}, file)

    def test_a_workspace_that_is_gone(self) -> None:
        """Everything is missing; the first file makes it anew."""
        self.other.rename(self.other.with_name("elsewhere"))
        self.assertTrue(all(file["missing"] for file in self.ask("agents.files.list", agentId="ops")["files"]))
        self.ask("agents.files.set", agentId="ops", name="AGENTS.md", content="")
        self.assertEqual("", self.ask("agents.files.get", agentId="ops", name="AGENTS.md")["file"]["content"])

    def test_names_and_agents(self) -> None:
        """Only the files with a meaning, only of agents there are."""
        for name in ("secret.txt", "../mayros.json", "agents.md", "AGENTS.md\n", "/etc/passwd"):
            for method in ("agents.files.get", "agents.files.set"):
                extra = {"content": "x"} if method.endswith("set") else {}
                message = self.refused(method, agentId="ops", name=name, **extra)
                self.assertTrue(message.startswith('unsupported file "'), message)
        self.assertEqual('unsupported file "secret.txt"', self.refused("agents.files.get", agentId="ops", name="secret.txt"))
        self.assertEqual("unknown agent id", self.refused("agents.files.list", agentId="nobody"))
        self.assertEqual("unknown agent id", self.refused("agents.files.set", agentId="nobody", name="AGENTS.md", content=""))
        self.assertIn("required property 'content'", self.refused("agents.files.set", agentId="ops", name="AGENTS.md"))

    def test_sizes(self) -> None:
        """1 MiB, in bytes, both ways; a larger one does not replace what is there."""
        self.ask("agents.files.set", agentId="ops", name="USER.md", content="x" * MAX_FILE)
        self.assertIn("file too large", self.refused("agents.files.set", agentId="ops", name="USER.md", content="ü" * MAX_FILE))
        self.assertIn("must NOT have more than", self.refused("agents.files.set", agentId="ops", name="USER.md", content="x" * (MAX_FILE + 1)))
        self.assertEqual(MAX_FILE, (self.other / "USER.md").stat().st_size)
        (self.other / "USER.md").write_text("x" * (MAX_FILE + 1))
        self.assertIn("is larger than", self.refused("agents.files.get", agentId="ops", name="USER.md"))

    def test_symlinks(self) -> None:
        """One that leads out is neither read nor written through; one inside is followed and stays."""
        outside = self.other.parent / "outside.md"
        outside.write_text("secret")
        (self.other / "SOUL.md").symlink_to(outside)
        for method, extra in (("agents.files.get", {}), ("agents.files.set", {"content": "x"})):
            self.assertIn("symlink that leaves the workspace", self.refused(method, agentId="ops", name="SOUL.md", **extra))
        files = {file["name"]: file["missing"] for file in self.ask("agents.files.list", agentId="ops")["files"]}
        self.assertTrue(files["SOUL.md"])
        self.assertEqual("secret", outside.read_text())
        (self.other / "notes").mkdir()
        (self.other / "notes" / "hope.md").write_text("old")
        (self.other / "HOPE.md").symlink_to("notes/hope.md")
        self.ask("agents.files.set", agentId="ops", name="HOPE.md", content="new")
        self.assertTrue((self.other / "HOPE.md").is_symlink())
        self.assertEqual("new", self.ask("agents.files.get", agentId="ops", name="HOPE.md")["file"]["content"])

    def test_what_is_no_file(self) -> None:
        """A folder in its place is refused, not hung upon."""
        (self.other / "HOPE.md").mkdir()
        for method, extra in (("agents.files.get", {}), ("agents.files.set", {"content": "x"})):
            self.assertIn("not a regular file", self.refused(method, agentId="ops", name="HOPE.md", **extra))
