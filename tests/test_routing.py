"""Which agent and session a request means."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import AgentDefaults, AgentEntry, Agents, AuthProfile, Config, ModelAuth, ModelChoice, ModelEntry, Session
from mayros.core.models import Catalogue
from mayros.core.routing import Directory, Settings
from mayros.errors import AgentNotFound, InvalidRequest

MAIN, HELPER = AgentEntry(id="main"), AgentEntry(id="Research Desk")
SMOL = "local/smollm2-135m-instruct"


def directory(*agents: AgentEntry, session: Session | None = None, **defaults: object) -> Directory:
    """The agents of a configuration with these entries and defaults."""
    config = Config(agents=Agents(list=agents, defaults=AgentDefaults(**defaults)), session=session or Session())  # type: ignore[arg-type]
    return Directory(config, Catalogue(config.models, {}), "/state")


class AgentTests(SynchronousTestCase):
    """The agent that a model name or a header chooses."""

    def test_the_model_field(self) -> None:
        """Three prefixes name an agent, in any case; any other name is the default agent's."""
        here = directory(MAIN, HELPER)
        for model, expected in (
            ("mayros", "main"),
            ("mayros/default", "main"),
            ("MAYROS/Default", "main"),
            ("mayros:main", "main"),
            ("mayros:research-desk", "research-desk"),
            ("mayros/research-desk", "research-desk"),
            ("agent:research-desk", "research-desk"),
            ("Mayros:Research-Desk", "research-desk"),
            ("gpt-4o", "main"),
            ("openai/gpt-4o", "main"),
            ("mayros-large", "main"),
            ("", "main"),
        ):
            self.assertEqual(here.by_model(model).id, expected, model)

    def test_the_default_agent(self) -> None:
        """The one marked, else the first, else `main`."""
        self.assertEqual(directory().by_model("gpt-4o").id, "main")
        self.assertEqual(directory(HELPER, MAIN).by_model("gpt-4o").id, "research-desk")
        self.assertEqual(directory(MAIN, AgentEntry(id="chosen", default=True)).by_model("mayros").id, "chosen")

    def test_an_agent_may_be_called_default(self) -> None:
        """Then `mayros/default` is its name, also for its sessions."""
        here = directory(MAIN, AgentEntry(id="default"))
        self.assertEqual(here.by_model("mayros/default").id, "default")
        agent, key, _ = here.http_session(None, "mayros/default", "work", None)
        self.assertEqual((agent.id, str(key)), ("default", "agent:default:work"))

    def test_unknown_agents_are_404_and_the_known_ones_are_named(self) -> None:
        """Ids in requests are not normalised; what is no id at all is not repeated in the message."""
        here = directory(MAIN, HELPER)
        for model in (
            "mayros:nobody",
            "mayros/nobody",
            "agent:nobody",
            "mayros:",
            "mayros:../../etc",
            "agent:Research Desk",
            "mayros:main:x",
            "mayros:" + "a" * 10_000,
        ):
            error = self.assertRaises(AgentNotFound, here.by_model, model)
            self.assertEqual((error.status, error.code, error.param), (404, "model_not_found", "model"), model)
            self.assertIn("main, research-desk", error.message)
            self.assertNotIn("..", error.message)
            self.assertLess(len(error.message), 200)

    def test_the_agent_header(self) -> None:
        """The same look-up, with the header's own name in the error."""
        here = directory(MAIN, HELPER)
        self.assertEqual(here.agent("RESEARCH-desk", "x-mayros-agent-id").id, "research-desk")
        error = self.assertRaises(AgentNotFound, here.agent, "nobody", "x-mayros-agent-id")
        self.assertEqual(error.param, "x-mayros-agent-id")
        self.assertIn("'nobody'", error.message)


class SessionTests(SynchronousTestCase):
    """The session of an HTTP request."""

    def setUp(self) -> None:
        self.here = directory(MAIN, HELPER)

    def session(self, model: str = "mayros", header: str | None = None, key: str | None = None, user: str | None = None) -> tuple[str, bool]:
        """Session key and statelessness for a model, an agent header, a session key header and a `user`."""
        agent = None if header is None else self.here.agent(header)
        chosen, session, stateless = self.here.http_session(agent, model, key, user)
        self.assertEqual(session.agent_id, chosen.id)
        return str(session), stateless

    def test_session_key_header(self) -> None:
        """It wins over `user`; bare keys go to the agent that header or model chose, full keys choose theirs."""
        for model, header, key, expected in (
            ("mayros", None, "work", "agent:main:work"),
            ("gpt-4o", None, " Work ", "agent:main:Work"),
            ("mayros:research-desk", None, "work", "agent:research-desk:work"),
            ("gpt-4o", "research-desk", "work", "agent:research-desk:work"),
            ("mayros:main", "research-desk", "work", "agent:research-desk:work"),
            ("gpt-4o", None, "agent:research-desk:work", "agent:research-desk:work"),
            ("mayros/default", None, "agent:research-desk:work", "agent:research-desk:work"),
            ("mayros:research-desk", None, "agent:Research-Desk:work", "agent:research-desk:work"),
            ("mayros", None, "main", "agent:main:main"),
        ):
            self.assertEqual(self.session(model, header, key, "zoe"), (expected, False), (model, header, key))

    def test_contradictions_are_400(self) -> None:
        """A key of one agent and a choice of another cannot both be meant."""
        for model, header in (("gpt-4o", "main"), ("mayros:main", None), ("agent:main", None), ("mayros:research-desk", "main")):
            error = self.assertRaises(InvalidRequest, self.session, model, header, "agent:research-desk:work")
            self.assertEqual((error.status, error.param), (400, "x-mayros-session-key"), (model, header))

    def test_keys_that_no_request_may_use(self) -> None:
        """Reserved name spaces and malformed keys are 400, a key of an agent that is not there is 404."""
        for key in ("subagent:x", "CRON:x", "agent:main:acp:x", "agent:main", "a\x01b", "x" * 513):
            self.assertEqual(self.assertRaises(InvalidRequest, self.session, key=key).param, "x-mayros-session-key", key)
        error = self.assertRaises(AgentNotFound, self.session, key="agent:nobody:work")
        self.assertEqual((error.status, error.param), (404, "x-mayros-session-key"))

    def test_user(self) -> None:
        """A stable session for each user, trimmed, case kept; names that look like keys stay names."""
        for user, expected in (
            ("zoe", "agent:main:openai-user:zoe"),
            (" Zoe X ", "agent:main:openai-user:Zoe X"),
            ("a:b:c", "agent:main:openai-user:a:b:c"),
            ("agent:research-desk:x", "agent:main:openai-user:agent:research-desk:x"),
            ("subagent:x", "agent:main:openai-user:subagent:x"),
            ("main", "agent:main:openai-user:main"),
            ("../../x", "agent:main:openai-user:../../x"),
            ("🙂", "agent:main:openai-user:🙂"),
        ):
            self.assertEqual(self.session(user=user), (expected, False), user)
        self.assertEqual(self.session("mayros:research-desk", user="zoe"), ("agent:research-desk:openai-user:zoe", False))
        self.assertNotEqual(self.session(user="zoe"), self.session(user="Zoe"))

    def test_bad_users_are_400(self) -> None:
        """Over 512 bytes, or with control characters."""
        for user in ("x" * 513, "é" * 257, "a\nb", "a\x00"):
            self.assertEqual(self.assertRaises(InvalidRequest, self.session, user=user).param, "user")
        self.assertEqual(self.session(user="x" * 512)[1], False)

    def test_blank_is_not_given(self) -> None:
        """A blank key leaves the choice to `user`, a blank user to a fresh session."""
        self.assertEqual(self.session(key="  ", user="zoe"), ("agent:main:openai-user:zoe", False))
        for user in (None, "", "  ", "\n"):
            key, stateless = self.session(user=user)
            self.assertTrue(stateless)
            self.assertRegex(key, r"^agent:main:openai:[0-9a-f]{24}$")
        self.assertNotEqual(self.session(), self.session(), "each request has a session of its own")

    def test_main_session(self) -> None:
        """Its name is configurable and in lower case."""
        here = directory(MAIN, session=Session(main_key=" Home "))
        self.assertEqual(str(here.main_session("main")), "agent:main:home")
        self.assertEqual(str(here.http_session(None, "mayros", "main", None)[1]), "agent:main:home")


class AgentSettingsTests(SynchronousTestCase):
    """What an agent is made of."""

    def test_models(self) -> None:
        """Its own choice, else the defaults'; primary first; a reference to no known provider is left out and reported."""
        here = directory(
            AgentEntry(id="own", model=ModelChoice(primary="openai/gpt-x", fallbacks=("nowhere/y", SMOL))),
            AgentEntry(id="plain"),
            AgentEntry(id="text", model="openai/gpt-z"),
            model=SMOL,
        )
        refs = {agent.id: [model.ref for model in agent.models] for agent in here.agents.values()}
        self.assertEqual(refs, {"own": ["openai/gpt-x", SMOL], "plain": [SMOL], "text": ["openai/gpt-z"]})
        self.assertEqual(here.unknown_models, ["nowhere/y"])
        self.assertEqual(directory(MAIN).agents["main"].models, ())

    def test_aliases(self) -> None:
        """`agents.defaults.models` gives models short names, in any case, with their parameters; the agent's own come on top."""
        here = directory(
            AgentEntry(id="a", model="SMALL"),
            AgentEntry(id="b", model=ModelChoice(primary=SMOL), params={"top_p": 0.5}),
            models={SMOL: ModelEntry(alias="small", params={"temperature": 0.2, "top_p": 0.9})},
        )
        self.assertEqual([model.ref for model in here.agents["a"].models], [SMOL])
        self.assertEqual(here.agents["a"].params_for(SMOL), {"temperature": 0.2, "top_p": 0.9})
        self.assertEqual(here.agents["b"].params_for(SMOL), {"temperature": 0.2, "top_p": 0.5})
        self.assertEqual(here.agents["b"].params_for("openai/other"), {"top_p": 0.5})

    def test_parameters_that_make_no_sense(self) -> None:
        """They do not count; both names of the original do."""
        odd = {"temperature": "hot", "topP": True, "maxTokens": -4, "thinking": ["high"], "cacheRetention": "for ever", "transport": "sse"}
        here = directory(
            AgentEntry(id="a", model=SMOL, params=odd),
            AgentEntry(id="b", model=SMOL, params={"top_p": 1, "max_tokens": 9, "thinking": "max", "cacheRetention": "long"}),
        )
        self.assertEqual(here.agents["a"].params, {})
        self.assertEqual(here.agents["b"].params, {"top_p": 1, "max_tokens": 9, "thinking": "max", "cache_retention": "long"})

    def test_workspaces(self) -> None:
        """The default agent has the configured one, the others one of their own, so that no two share by accident."""
        here = directory(MAIN, AgentEntry(id="chosen", default=True), AgentEntry(id="own", workspace="/elsewhere"))
        self.assertEqual(
            {agent.id: agent.workspace for agent in here.agents.values()},
            {"main": "/state/workspace-main", "chosen": "/state/workspace", "own": "/elsewhere"},
        )
        self.assertEqual(directory(MAIN, workspace="/w").agents["main"].workspace, "/w")
        self.assertEqual(directory().agents["main"].workspace, "/state/workspace")

    def test_settings_warn_of_unknown_models_and_hide_the_environment(self) -> None:
        """Warnings of the reading are kept; the environment, with its keys, is never shown."""
        config = Config(agents=Agents(defaults=AgentDefaults(model="nowhere/x")))
        built = Settings.build(config, state_dir="/state", config_path="/c.json", environ={"OPENAI_API_KEY": "sk-1"}, now_ms=5, warnings=["w"])
        self.assertEqual(built.warnings[0], "w")
        self.assertIn("'nowhere/x'", built.warnings[1])
        auth = ModelAuth(profiles={"work": AuthProfile(provider="antropic", key="sk-2")})
        (warning,) = Settings.build(Config(auth=auth), state_dir="/state", config_path="/c.json", environ={}, now_ms=5).warnings
        self.assertEqual(warning, "auth.profiles.work.provider: there is no provider 'antropic', so nothing is asked with this key")
        self.assertEqual(built.catalogue.providers["openai"].key, "sk-1")
        self.assertNotIn("sk-1", repr(built))
