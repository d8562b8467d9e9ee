"""Which tools a run may have, and the rule that decided."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.toolnames import GROUPS, TOOLS, known, matches
from mayros.core.keys import SessionKey
from mayros.core.policy import NO_RULE, SessionKind, Verdict, decide, kind_of, layers
from mayros.core.routing import Agent
from tests.helpers import settings

ALL = tuple(TOOLS)


def agent(tools: dict[str, Any] | None = None, own: dict[str, Any] | None = None) -> Agent:
    """The only agent of a configuration with these `tools` and these of its own."""
    return settings({"tools": tools or {}, "agents": {"list": [{"id": "main", "tools": own or {}}]}}).directory.agents["main"]


def verdicts(
    tools: dict[str, Any] | None = None, own: dict[str, Any] | None = None, model: str = "fake/one", kind: SessionKind = "session"
) -> dict[str, Verdict]:
    """What policy says of each tool that it knows."""
    provider, _, name = model.partition("/")
    return decide(agent(tools, own), provider, name, kind, ALL)


def allowed(
    tools: dict[str, Any] | None = None, own: dict[str, Any] | None = None, model: str = "fake/one", kind: SessionKind = "session"
) -> set[str]:
    """The names of those that may be had."""
    return {name for name, verdict in verdicts(tools, own, model, kind).items() if verdict.allowed}


EVERYTHING = set(ALL) - {"apply_patch"}


class LayerTests(SynchronousTestCase):
    """Each layer by itself, and their order."""

    def test_without_rules_everything_but_patches(self) -> None:
        """No rule forbids anything; `apply_patch` is off until it is enabled."""
        self.assertEqual(EVERYTHING, allowed())
        self.assertEqual(NO_RULE, verdicts()["read"].rule)
        self.assertEqual("tools.exec.applyPatch.enabled: it is not true", verdicts()["apply_patch"].rule)

    def test_profiles(self) -> None:
        """What each profile holds; `full` is no filter."""
        self.assertEqual({"session_status"}, allowed({"profile": "minimal"}))
        self.assertEqual(EVERYTHING, allowed({"profile": "full"}))
        self.assertEqual(
            {"message", "sessions_list", "sessions_history", "sessions_send", "session_status"},
            allowed({"profile": "messaging"}),
        )
        coding = allowed({"profile": "coding"})
        self.assertLessEqual({"read", "write", "edit", "exec", "process", "memory_get", "image"}, coding)
        self.assertFalse({"web_fetch", "browser", "cron", "gateway", "agents_list"} & coding)
        self.assertEqual("tools.profile coding: it is not in it", verdicts({"profile": "coding"})["cron"].rule)

    def test_an_agents_profile_replaces_the_general_one(self) -> None:
        """It may also have more."""
        self.assertIn("exec", allowed({"profile": "minimal"}, {"profile": "coding"}))
        self.assertEqual(EVERYTHING, allowed({"profile": "minimal"}, {"profile": "full"}))

    def test_also_allow(self) -> None:
        """It adds to the profile and to an `allow`; alone it takes nothing away."""
        self.assertEqual({"session_status", "web_fetch"}, allowed({"profile": "minimal", "alsoAllow": ["web_fetch"]}))
        self.assertEqual({"read", "exec"}, allowed({"allow": ["read"], "alsoAllow": ["exec"]}))
        self.assertEqual(EVERYTHING, allowed({"alsoAllow": ["read"]}))
        self.assertEqual({"session_status", "read"}, allowed({"profile": "minimal", "alsoAllow": ["web_fetch"]}, {"alsoAllow": ["read"]}))

    def test_deny_wins(self) -> None:
        """Over an `allow` of the same place, and of any other."""
        self.assertEqual({"read"}, allowed({"allow": ["read", "write"], "deny": ["write"]}))
        self.assertNotIn("exec", allowed({"deny": ["exec"]}, {"allow": ["exec"]}))
        self.assertNotIn("exec", allowed({"allow": ["exec"]}, {"deny": ["group:runtime"]}))
        self.assertEqual("agents.list[0].tools.deny: group:runtime", verdicts({}, {"deny": ["group:runtime"]})["exec"].rule)

    def test_names(self) -> None:
        """Case and blanks do not matter, older names are understood, `*` stands for anything anywhere."""
        self.assertEqual({"read"}, allowed({"allow": [" READ "]}))
        self.assertEqual({"exec"}, allowed({"allow": ["Bash"]}))
        self.assertEqual({"web_fetch", "web_search"}, allowed({"allow": ["web*"]}))
        self.assertEqual({"memory_get"}, allowed({"allow": ["*_GET"]}))
        self.assertEqual(
            {"sessions_history", "sessions_list", "sessions_send", "sessions_spawn"}, allowed({"allow": ["s*s_*"], "deny": ["session_*"]})
        )
        self.assertEqual(set(), allowed({"deny": ["**"]}))

    def test_by_provider(self) -> None:
        """An entry for a model comes before one for its provider; other providers are not touched."""
        tools = {"byProvider": {"Fake": {"deny": ["exec"]}, "fake/two": {"allow": ["read"]}}}
        self.assertEqual(EVERYTHING - {"exec"}, allowed(tools))
        self.assertEqual({"read"}, allowed(tools, model="fake/two"))
        self.assertEqual(EVERYTHING, allowed(tools, model="other/one"))
        self.assertEqual('tools.byProvider["Fake"].deny: exec', verdicts(tools)["exec"].rule)
        self.assertEqual({"session_status"}, allowed({"byProvider": {"fake": {"profile": "minimal"}}}))
        own = {"byProvider": {"fake": {"deny": ["read"]}}}
        self.assertEqual(EVERYTHING - {"exec", "read"}, allowed(tools, own))

    def test_the_first_layer_that_stops_a_tool_decides(self) -> None:
        """In the order of the layers."""
        both = {"profile": "minimal", "deny": ["exec"]}
        self.assertEqual("tools.profile minimal: it is not in it", verdicts(both, {"deny": ["exec"]})["exec"].rule)
        self.assertEqual("tools.deny: exec", verdicts({"deny": ["exec"]}, {"deny": ["exec"]})["exec"].rule)
        self.assertEqual("agents.list[0].tools.allow: read", verdicts({"allow": ["*"]}, {"allow": ["read"]})["read"].rule)

    def test_patches(self) -> None:
        """Where `exec` is allowed `apply_patch` is too: once it is enabled, for models of OpenAI, and only the listed ones if there is a list."""
        enabled = {"exec": {"applyPatch": {"enabled": True}}, "allow": ["exec"]}
        self.assertEqual({"exec", "apply_patch"}, allowed(enabled, model="openai/gpt-5"))
        self.assertEqual({"exec"}, allowed(enabled, model="fake/one"))
        self.assertEqual({"exec"}, allowed({**enabled, "deny": ["apply_patch"]}, model="openai/gpt-5"))
        chosen = {"exec": {"applyPatch": {"enabled": True, "allowModels": ["gpt-5", "openai/o9"]}}}
        self.assertIn("apply_patch", allowed(chosen, model="openai/GPT-5"))
        self.assertIn("apply_patch", allowed(chosen, model="openai/o9"))
        self.assertNotIn("apply_patch", allowed(chosen, model="openai/gpt-4"))
        self.assertIn("apply_patch", allowed({}, {"exec": {"applyPatch": {"enabled": True}}}, model="openai/gpt-5"))

    def test_sub_agents(self) -> None:
        """They never look after sessions or the gateway, whatever is allowed."""
        denied = {"gateway", "agents_list", "session_status", "cron", "memory_search", "memory_get", "sessions_send"}
        self.assertEqual(EVERYTHING - denied, allowed({"alsoAllow": ["*"]}, kind="subagent"))
        self.assertEqual(
            ["subagent", "session", "session"], [kind_of(SessionKey("main", rest)) for rest in ("Subagent:1", "main", "openai:subagent:")]
        )

    def test_groups_name_tools(self) -> None:
        """Every group but that of plug-ins holds tools there are; the one of all holds neither files nor commands."""
        for name, members in GROUPS.items():
            self.assertLessEqual(members, set(TOOLS), name)
        self.assertFalse(GROUPS["group:mayros"] & (GROUPS["group:fs"] | GROUPS["group:runtime"]))
        self.assertEqual(allowed({"allow": ["group:openclaw"]}), allowed({"allow": ["group:mayros"]}))

    def test_a_long_pattern_takes_no_time(self) -> None:
        """However many stars."""
        self.assertFalse(matches("a" * 2_000, "*a" * 60 + "*b"))
        self.assertFalse(known("*a" * 60 + "*b"))


NAME = st.sampled_from([*ALL, "group:fs", "group:runtime", "group:mayros", "*", "s*", "*_*", "READ", "bash", "unknown"])
NAMES = st.lists(NAME, max_size=4)
PROFILE = st.sampled_from([None, "minimal", "coding", "messaging", "full"])
LISTS = st.fixed_dictionaries({"profile": PROFILE, "allow": NAMES, "alsoAllow": NAMES, "deny": NAMES})
PLACE = st.builds(
    lambda lists, by: {**lists, "byProvider": by, "exec": {"applyPatch": {"enabled": True}}},
    LISTS,
    st.dictionaries(st.sampled_from(["openai", "openai/gpt-5", "fake"]), LISTS, max_size=2),
)
MODEL = "openai/gpt-5"


class PropertyTests(SynchronousTestCase):
    """What holds for every configuration."""

    @effort(max_examples=60, deadline=None)
    @given(PLACE, PLACE)
    def test_deny_always_wins(self, tools: dict[str, Any], own: dict[str, Any]) -> None:
        """A tool that any layer in force denies is never to be had."""
        found = allowed(tools, own, MODEL)
        denied = [*tools["deny"], *own["deny"]]
        for place in (tools, own):
            entry = place["byProvider"].get(MODEL) or place["byProvider"].get("openai")
            denied += entry["deny"] if entry else []
        for pattern in denied:
            self.assertFalse({name for name in found if matches(name, pattern)}, (pattern, found))

    @effort(max_examples=60, deadline=None)
    @given(PLACE, PLACE)
    def test_layers_only_narrow(self, tools: dict[str, Any], own: dict[str, Any]) -> None:
        """A tool that may be had passes each layer by itself; dropping the last layers never takes one away."""
        chain = list(layers(agent(tools, own), "openai", "gpt-5", "session"))
        found = allowed(tools, own, MODEL)
        passing = set(ALL)
        for layer in chain:
            after = {name for name in passing if (verdict := layer.judge(name)) is None or verdict.allowed}
            self.assertLessEqual(after, passing)
            passing = after
        self.assertEqual(found, passing)
        self.assertLessEqual(allowed(tools, own, MODEL, "subagent"), found)

    @effort(max_examples=40, deadline=None)
    @given(PLACE, PLACE, NAME)
    def test_one_more_deny_never_adds(self, tools: dict[str, Any], own: dict[str, Any], name: str) -> None:
        """In either place."""
        found = allowed(tools, own, MODEL)
        self.assertLessEqual(allowed({**tools, "deny": [*tools["deny"], name]}, own, MODEL), found)
        self.assertLessEqual(allowed(tools, {**own, "deny": [*own["deny"], name]}, MODEL), found)

    @effort(max_examples=40, deadline=None)
    @given(PLACE, PLACE)
    def test_every_tool_has_a_rule(self, tools: dict[str, Any], own: dict[str, Any]) -> None:
        """That a person can find in the configuration, and the verdict is a value that can be told."""
        for name, verdict in verdicts(tools, own, MODEL).items():
            self.assertTrue(verdict.rule, name)
            self.assertEqual(verdict, msgspec.convert(msgspec.to_builtins(verdict), Verdict))
