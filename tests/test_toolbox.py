"""The registry after policy, the catalogue, and the tools about sessions and agents."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import msgspec
from click.testing import CliRunner
from twisted.internet.defer import Deferred
from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mayros.cli.main import main
from mayros.cli.place import Place
from mayros.core.keys import SessionKey
from mayros.core.models import Model
from mayros.core.ports import Principal, SessionSettings, ToolSpec, Turn
from mayros.core.routing import Settings
from mayros.core.session_ports import SessionRow
from mayros.core.tool_ports import Tool, ToolContext, ToolResult
from mayros.core.toolbox import NOT_HERE, LocalToolbox, catalogue
from mayros.errors import ToolFailed
from mayros.events import Usage
from mayros.net.statedir import StateDir
from mayros.runtime import Core
from mayros.tools.status import tools as status_tools
from tests.helpers import Harness, settings
from tests.test_ws import ADMIN, READ, World, ask

T = TypeVar("T")


class FakeTool:
    """A tool by name that does nothing."""

    read_only = True

    def __init__(self, name: str) -> None:
        self.spec = ToolSpec(name, f"It is {name}.", {"type": "object"})

    async def call(self, arguments: dict[str, Any], context: ToolContext) -> ToolResult:
        return ToolResult("")


def box(*names: str) -> LocalToolbox:
    """A toolbox with such tools."""
    tools: Sequence[Tool] = [FakeTool(name) for name in names]
    return LocalToolbox(tools)


def turn(known: Settings, agent_id: str = "main", rest: str = "main", **changes: Any) -> Turn:
    """A submission to an agent."""
    return Turn(
        run_id="r", agent=known.directory.agents[agent_id], session=SessionKey(agent_id, rest), stateless=False, messages=(), door="ws", **changes
    )


class OfferedTests(SynchronousTestCase):
    """LocalToolbox.offered and why_not."""

    def setUp(self) -> None:
        self.settings = settings({"tools": {"deny": ["write"]}, "agents": {"list": [{"id": "main"}, {"id": "beta", "tools": {"allow": ["exec"]}}]}})
        self.model: Model = self.settings.directory.agents["main"].models[0]
        self.box = box("zoo__look", "exec", "write", "read", "a__tool")

    def test_by_policy_and_in_order(self) -> None:
        """What policy allows, in the order of the prompt, unknown ones last by name."""
        self.assertEqual(["read", "exec", "a__tool", "zoo__look"], list(self.box.offered(turn(self.settings), self.model)))
        self.assertEqual(["exec"], list(self.box.offered(turn(self.settings, "beta"), self.model)))

    def test_nothing(self) -> None:
        """For a model that takes no tools, for a door that has none, and where none are registered."""
        deaf = msgspec.structs.replace(self.model, tools=False)
        self.assertEqual({}, dict(self.box.offered(turn(self.settings), deaf)))
        self.assertEqual({}, dict(self.box.offered(turn(self.settings, tools="none"), self.model)))
        self.assertEqual({}, dict(box().offered(turn(self.settings), self.model)))

    def test_the_same_again(self) -> None:
        """As long as the agent is the same object: a prompt made from it can be kept. A new configuration is seen at once."""
        first = self.box.offered(turn(self.settings), self.model)
        self.assertIs(first, self.box.offered(turn(self.settings, rest="other"), self.model))
        changed = settings({"tools": {"deny": ["read"]}, "agents": {"list": [{"id": "main"}]}})
        self.assertEqual(["write", "exec", "a__tool", "zoo__look"], list(self.box.offered(turn(changed), self.model)))

    def test_many_models_do_not_fill_the_memory(self) -> None:
        """Sessions may choose any model."""
        for number in range(1_000):
            self.box.offered(turn(self.settings), msgspec.structs.replace(self.model, id=f"m{number}"))
        self.assertLessEqual(len(self.box._kept), 256)

    def test_why_not(self) -> None:
        """The rule for a tool that exists; nothing for one that is offered, or does not exist."""
        asked = turn(self.settings)
        self.assertEqual("tools.deny: write", self.box.why_not(asked, self.model, "write"))
        self.assertIsNone(self.box.why_not(asked, self.model, "read"))
        self.assertIsNone(self.box.why_not(asked, self.model, "browser"))
        self.assertIsNone(self.box.why_not(asked, self.model, "WRITE"))
        self.assertIn("endpoint", self.box.why_not(turn(self.settings, tools="none"), self.model, "read") or "")
        deaf = msgspec.structs.replace(self.model, tools=False)
        self.assertIn("takes no tools", self.box.why_not(asked, deaf, "read") or "")


class CatalogueTests(SynchronousTestCase):
    """What a person is shown."""

    def test_every_known_tool_has_a_row(self) -> None:
        """With its group and description; names that this gateway does not have are known and never allowed."""
        known = settings()
        agent = known.directory.agents["main"]
        rows = {row.name: row for row in box("read", "my__tool").catalogue(agent, agent.models[0])}
        self.assertEqual((True, "fs", "It is read."), (rows["read"].verdict.allowed, rows["read"].group, rows["read"].description))
        self.assertEqual((False, NOT_HERE), (rows["browser"].verdict.allowed, rows["browser"].verdict.rule))
        self.assertEqual((False, NOT_HERE), (rows["exec"].verdict.allowed, rows["exec"].verdict.rule))
        self.assertEqual("plugins", rows["my__tool"].group)

    def test_without_a_gateway(self) -> None:
        """From the configuration alone: the tools of this version."""
        agent = settings().directory.agents["main"]
        here = {row.name for row in catalogue(None, agent, None) if row.verdict.rule != NOT_HERE}
        self.assertEqual({"read", "write", "edit", "apply_patch", "exec", "process", "session_status", "agents_list"}, here)

    def test_the_gateway_has_what_policy_says_it_has(self) -> None:
        """The tools that the daemon composes are those that lists without a gateway show, and each has a schema of an object."""
        folder = self.mktemp()
        core = Core(settings(state_dir=folder), StateDir.open(folder), MemoryReactorClock(), {})
        agent = settings().directory.agents["main"]
        here = [row.name for row in catalogue(None, agent, None) if row.verdict.rule != NOT_HERE]
        self.assertEqual(here, list(core.toolbox.names))
        for row in core.toolbox.catalogue(agent, agent.models[0]):
            self.assertTrue(row.description, row.name)


class Context:
    """A call's surroundings."""

    principal, call_id, images = Principal("owner", frozenset()), "c", False

    def __init__(self, turn: Turn) -> None:
        self.turn = turn

    def update(self, text: str) -> None:
        raise AssertionError("these tools have nothing to tell")

    async def waiting(self, answer: Awaitable[T]) -> T:
        return await answer


class StatusTests(SynchronousTestCase):
    """session_status and agents_list."""

    def setUp(self) -> None:
        changes = {
            "agents": {"defaults": {"userTimezone": "Europe/Berlin", "models": {"fake/one": {}, "fake/two": {"alias": "Second"}}}},
        }
        self.harness = Harness(self, changes)
        self.settings = self.harness.config.current
        self.status, self.agents = status_tools(self.harness.sessions, lambda: self.settings, lambda: 1_764_090_000_000)

    def call(self, tool: Tool, arguments: dict[str, Any] | None = None, **changes: Any) -> str:
        """What the call gives."""
        work = Deferred.fromCoroutine(tool.call(arguments or {}, Context(turn(self.settings, **changes))))  # type: ignore[arg-type]
        return self.successResultOf(work).text

    def refused(self, arguments: dict[str, Any], **changes: Any) -> str:
        """What the model is told instead."""
        work = Deferred.fromCoroutine(self.status.call(arguments, Context(turn(self.settings, **changes))))  # type: ignore[arg-type]
        return str(self.failureResultOf(work, ToolFailed).value)

    def test_the_card(self) -> None:
        """Session, the time where the user is, the model."""
        text = self.call(self.status)
        self.assertIn("Session: agent:main:main (agent main)", text)
        self.assertIn("Time: Tuesday, 2025-11-25 18:00 (Europe/Berlin)", text)
        self.assertIn("Model: fake/one", text)
        self.assertIn("first turn", text)

    def test_what_was_used(self) -> None:
        """Turns, tokens, and what they cost where the models have a price."""
        row = SessionRow(
            "agent:main:main", "main", "s", 0, 0, 3, False, SessionSettings(), 12_000, 500, last_usage=Usage(1_000, 50, cache_read=3_000),
            cache_read_tokens=9_000, cost_nano=21_050_000,
        )  # fmt: skip
        self.harness.store.rows[row.key] = row
        text = self.call(self.status)
        for line in ("Turns: 3", "Tokens: 12,000 in (9,000 from the cache), 500 out", "Cost: $0.0210", "Context: 4,050 of 8,192 tokens (49 %)"):
            self.assertIn(line, text.splitlines())
        self.harness.store.rows[row.key] = msgspec.structs.replace(row, cost_nano=0)
        self.assertNotIn("Cost", self.call(self.status))

    def test_the_model_is_set_and_cleared(self) -> None:
        """By name or alias; `default` is the agent's own again. It holds for the session that asks, and no other can be named."""
        self.assertIn("Model: fake/two, set for this session; the agent's own is fake/one", self.call(self.status, {"model": "second"}))
        row = self.successResultOf(Deferred.fromCoroutine(_awaited(self.harness.sessions.get("agent:main:main"))))
        self.assertEqual("fake/two", row.settings.model if row else None)
        self.assertIn("Model: fake/one", self.call(self.status, {"model": "DEFAULT", "sessionKey": "current"}))
        self.assertIn("Only this session", self.refused({"sessionKey": "agent:beta:main", "model": "second"}))

    def test_models_that_nobody_listed(self) -> None:
        """A model cannot choose one that a person did not: the answer names those there are."""
        text = self.refused({"model": "openai/most-expensive"})
        self.assertIn("second, fake/one, fake/two", text)

    def test_a_session_of_one_request(self) -> None:
        """Has no next run for which a model could be set."""
        asked = msgspec.structs.replace(turn(self.settings), stateless=True)
        work = Deferred.fromCoroutine(self.status.call({"model": "second"}, Context(asked)))  # type: ignore[arg-type]
        self.assertIn("ends with its only request", str(self.failureResultOf(work, ToolFailed).value))

    def test_agents(self) -> None:
        """An agent may only be asked for itself."""
        self.assertEqual(
            {"requester": "beta", "allowAny": False, "agents": [{"id": "beta", "configured": True}]},
            json.loads(self.call(self.agents, agent_id="beta")),
        )


async def _awaited(answer: Awaitable[T]) -> T:
    return await answer


class CatalogTests(SynchronousTestCase):
    """`tools.catalog` and `mayros tools list`."""

    def test_the_method(self) -> None:
        """Groups of tools, each with the verdict and its rule; an unknown agent is refused, and so is a client that may not read."""
        world = World(self, {"agents": {"list": [{"id": "main"}, {"id": "beta", "tools": {"deny": ["exec"]}}]}})
        world.gateway.toolbox = box("read", "exec", "zoo__look")
        session, link = world.connect(READ)
        payload = ask(session, link, "tools.catalog", {"agentId": "beta"})["payload"]
        self.assertEqual("beta", payload["agentId"])
        self.assertEqual(["minimal", "coding", "messaging", "full"], [one["id"] for one in payload["profiles"]])
        groups = {group["id"]: group for group in payload["groups"]}
        self.assertEqual(("Commands", "core"), (groups["runtime"]["label"], groups["runtime"]["source"]))
        shown = groups["runtime"]["tools"][0]
        expected = {"id": "exec", "label": "exec", "description": "It is exec.", "source": "core"}
        self.assertEqual({**expected, "allowed": False, "rule": "agents.list[1].tools.deny: exec"}, shown)
        self.assertEqual(["zoo__look"], [one["id"] for one in groups["plugins"]["tools"]])
        self.assertTrue(ask(session, link, "tools.catalog", {})["payload"]["groups"][0]["tools"][0]["allowed"])
        self.assertIn("unknown agent id", ask(session, link, "tools.catalog", {"agentId": "nobody"})["error"]["message"])
        self.assertIn("missing scope", ask(*world.connect(), "tools.catalog", {})["error"]["message"])
        self.assertTrue(ask(*world.connect(ADMIN), "tools.catalog", {})["ok"])

    def mayros(self, config: dict[str, Any], *arguments: str) -> Any:
        """Run a command with this configuration; its result."""
        home = self.mktemp()
        StateDir.open(home)
        with open(f"{home}/mayros.json", "w") as file:
            json.dump(config, file)
        return CliRunner().invoke(main, list(arguments), obj=Place({"HOME": home, "MAYROS_STATE_DIR": home}))

    def test_the_command(self) -> None:
        """Without a gateway: what the agent has; with --why every name with the rule."""
        config = {
            "tools": {"profile": "coding", "deny": ["write"]},
            "agents": {"list": [{"id": "main", "model": "openai/gpt-5"}, {"id": "quiet", "tools": {"deny": ["*"]}}]},
        }
        result = self.mayros(config, "tools", "list")
        self.assertEqual(["read", "edit", "exec", "process", "session_status"], [line.split()[0] for line in result.stdout.splitlines()[1:]])
        lines = self.mayros(config, "tools", "list", "--agent", "main", "--why").stdout.splitlines()
        self.assertRegex(lines[0], "tool +allowed +rule")
        self.assertTrue(any(line.split() == ["read", "yes", "tools.profile", "coding:", "group:fs"] for line in lines), lines)
        self.assertTrue(any(line.split() == ["write", "no", "tools.deny:", "write"] for line in lines), lines)
        self.assertTrue(any(line.split() == ["browser", "no", "this", "gateway", "does", "not", "have", "it"] for line in lines), lines)
        self.assertIn("Agent quiet has no tools", self.mayros(config, "tools", "list", "--agent", "quiet").stdout)
        shown = json.loads(self.mayros(config, "tools", "list", "--json").stdout)
        self.assertEqual(("main", "openai/gpt-5", "read"), (shown["agentId"], shown["model"], shown["tools"][0]["name"]))

    def test_a_model_that_takes_no_tools(self) -> None:
        """The embedded one: nothing, and why."""
        config = {"agents": {"defaults": {"model": "local/smollm2-135m-instruct"}}}
        self.assertIn("has no tools", self.mayros(config, "tools", "list").stdout)
        self.assertIn("takes no tools", self.mayros(config, "tools", "list", "--why").stdout)
        self.assertEqual(1, self.mayros(config, "tools", "list", "--model", "x/y").exit_code)

    def test_unknown_agent(self) -> None:
        """Refused, with those there are."""
        result = self.mayros({}, "tools", "list", "--agent", "nobody")
        self.assertEqual(1, result.exit_code)
        self.assertIn("Configured agents: main", result.output)
