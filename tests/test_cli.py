"""The command line, in memory: click's runner, temporary HOME and state directory, and a gateway that is a coroutine."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mayros.cli.agent import final_text
from mayros.cli.main import main
from mayros.cli.place import Place
from mayros.core.models import EMBEDDED
from mayros.errors import StartError
from mayros.net.statedir import StateDir
from mayros.ws.conversation import CallFailed

FINAL = {"runId": "r", "status": "ok", "summary": "completed", "result": {"payloads": [{"text": "Hello there", "mediaUrl": None}], "meta": {}}}


class FakeGateway:
    """Stands for ws.client.connect: keeps what it was asked, sends `says` as the reply's deltas, ends each request in `final` or raises it.

    `finals` gives methods answers of their own.
    """

    def __init__(self, final: Any = FINAL, says: tuple[str, ...] = ()) -> None:
        self.final, self.says = final, says
        self.finals: dict[str, Any] = {}
        self.calls: list[dict[str, Any]] = []
        self.hello: dict[str, Any] = {
            "type": "hello-ok",
            "protocol": 4,
            "snapshot": {"stateDir": "/srv/state", "sessionDefaults": {"mainKey": "main"}},
        }

    async def connect(self, reactor: object, url: str, **how: Any) -> FakeConnection:
        """A connection; `calls` has what it was made with beside what is asked of it."""
        if isinstance(self.final, OSError | CallFailed):
            raise self.final
        return FakeConnection(self, {"url": url, **how})

    def methods(self) -> list[tuple[str, Any]]:
        """What was asked."""
        return [(call["method"], call["params"]) for call in self.calls]


class FakeConnection:
    """One of its connections."""

    def __init__(self, gateway: FakeGateway, how: dict[str, Any]) -> None:
        self._gateway, self._how = gateway, how
        self.hello = gateway.hello

    async def __aenter__(self) -> FakeConnection:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def request(self, method: str, params: Any = None, *, timeout: float | None = None, expect_final: bool = False) -> Any:
        """One call of a method."""
        gateway, heard = self._gateway, self._how["on_event"]
        gateway.calls.append({**self._how, "method": method, "params": params, "timeout": timeout, "expect_final": expect_final})
        if method == "agent":
            run = {"runId": params.get("idempotencyKey"), "sessionKey": "agent:main:told"}
            for delta in gateway.says:
                heard("agent", {**run, "stream": "assistant", "data": {"text": "cumulative", "delta": delta}})
                heard("agent", {"runId": "somebody else's", "stream": "assistant", "data": {"delta": "NOT THIS"}})
                heard("tick", {"ts": 1})
        final = gateway.finals.get(method, gateway.final)
        if isinstance(final, Deferred):
            return await final
        if isinstance(final, BaseException):
            raise final
        return final


class CommandLine(SynchronousTestCase):
    """What all tests here share: a home of their own."""

    def setUp(self) -> None:
        self.home = Path(self.mktemp()).absolute()
        self.home.mkdir(mode=0o700)
        self.state = self.home / "state"
        self.environ = {"HOME": str(self.home), "MAYROS_STATE_DIR": str(self.state), "PATH": os.environ["PATH"]}
        self.gateway = FakeGateway()
        self.addCleanup(os.umask, os.umask(0o022))

    @property
    def config(self) -> Path:
        return self.state / "mayros.json"

    def mayros(self, *args: str, **environ: str) -> Result:
        """Run a command; nothing but SystemExit may come out of it."""
        place = Place({**self.environ, **environ}, connects=lambda: self.gateway.connect, drive=self.drive)
        result = CliRunner().invoke(main, args, obj=place)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def interrupted(self, *args: str) -> Result:
        """Run a command, and press Ctrl-C when it waits."""

        def drive(run: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
            work = Deferred.fromCoroutine(run(Clock()))
            self.assertNoResult(work)
            work.cancel()
            self.failureResultOf(work, CancelledError)
            raise KeyboardInterrupt

        return CliRunner().invoke(main, args, obj=Place(self.environ, connects=lambda: self.gateway.connect, drive=drive))

    def drive(self, run: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Run a coroutine that never waits, as the reactor would; its failure is raised."""
        return self.successResultOf(Deferred.fromCoroutine(catching(run(Clock()))))()

    def assertRefused(self, result: Result, status: int, *words: str) -> None:
        """One line on standard error with these words, and that status."""
        self.assertEqual(result.exit_code, status, result.output)
        lines = result.stderr.splitlines()
        self.assertEqual(len(lines), 1, result.stderr)
        self.assertTrue(lines[0].startswith("error: "), lines[0])
        for word in words:
            self.assertIn(word, lines[0])

    def write(self, config: dict[str, Any] | str) -> None:
        """Put a configuration in place."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        self.config.touch(mode=0o600)
        self.config.write_text(config if isinstance(config, str) else json.dumps(config))


async def catching(work: Coroutine[Any, Any, Any]) -> Callable[[], Any]:
    """The result or the failure of a coroutine, to be given or raised later, outside of Deferreds."""
    try:
        value = await work
    except BaseException as failure:  # noqa: BLE001 - raised by the caller
        error = failure

        def fail() -> Any:
            raise error

        return fail
    return lambda: value


class SetupTests(CommandLine):
    """`mayros setup`."""

    def test_first_time(self) -> None:
        """A fresh home gets a configuration that starts: mode, token, the endpoint switched on, the embedded model, a workspace."""
        result = self.mayros("setup")
        self.assertEqual(result.exit_code, 0, result.output)
        written = json.loads(self.mayros("config", "get").stdout)
        self.assertEqual(written["gateway"]["mode"], "local")
        self.assertIs(written["gateway"]["http"]["endpoints"]["chatCompletions"]["enabled"], True)
        self.assertEqual(self.mayros("config", "get", "agents.defaults.model.primary").stdout.strip(), EMBEDDED)
        self.assertGreaterEqual(len(self.mayros("gateway", "token").stdout.strip()), 43)
        self.assertTrue((self.state / "workspace" / "AGENTS.md").read_text())
        self.assertEqual(self.mayros("config", "validate", "--strict").exit_code, 0)

    def test_says_what_it_did_without_the_secret(self) -> None:
        """A few lines name the files; the token is not among them."""
        result = self.mayros("setup")
        self.assertIn(str(self.config), result.stdout)
        self.assertIn(EMBEDDED, result.stdout)
        self.assertNotIn(self.mayros("gateway", "token").stdout.strip(), result.output)
        self.assertLess(len(result.stdout.splitlines()), 8)

    def test_modes(self) -> None:
        """Nobody else may read what setup writes."""
        self.mayros("setup")
        for path in (self.state, *self.state.rglob("*")):
            mode = stat.S_IMODE(path.stat().st_mode)
            self.assertEqual(mode & 0o077, 0, f"{path} {mode:o}")

    def test_twice(self) -> None:
        """The second time changes nothing and says so."""
        self.mayros("setup")
        before = {path: path.read_bytes() for path in self.state.rglob("*") if path.is_file()}
        result = self.mayros("setup", OPENAI_API_KEY="sk-a-key-that-came-later")
        self.assertEqual(result.exit_code, 0)
        self.assertIn("kept as it is", result.stdout)
        self.assertEqual({path: path.read_bytes() for path in self.state.rglob("*") if path.is_file()}, before)

    def test_keeps_the_users_files(self) -> None:
        """A configuration and a workspace file that were there before stay byte for byte."""
        text = "{ gateway: { mode: 'local', auth: { token: 'mine-and-only-mine' } }, /* my own */ }"
        self.write(text)
        workspace = self.state / "workspace"
        workspace.mkdir()
        (workspace / "AGENTS.md").write_text("my own rules")
        self.assertEqual(self.mayros("setup").exit_code, 0)
        self.assertEqual(self.config.read_text(), text)
        self.assertEqual((workspace / "AGENTS.md").read_text(), "my own rules")
        self.assertEqual(self.mayros("gateway", "token").stdout, "mine-and-only-mine\n")

    def test_vendor_key(self) -> None:
        """A vendor's key in the environment makes its model the primary one; the embedded one stands behind it. The key is not written."""
        result = self.mayros("setup", MISTRAL_API_KEY="a-secret-key-for-tests")
        self.assertIn("MISTRAL_API_KEY", result.stdout)
        model = json.loads(self.mayros("config", "get", "agents.defaults.model").stdout)
        self.assertEqual(model, {"primary": "mistral/mistral-small-latest", "fallbacks": [EMBEDDED]})
        self.assertNotIn("a-secret-key-for-tests", self.config.read_text() + result.output)

    def test_keeps_the_token_in_use(self) -> None:
        """A token that clients know already, of an earlier start or from the environment, is the one that is written."""
        made = StateDir.open(str(self.state)).make_token()
        self.assertEqual(self.mayros("setup").exit_code, 0)
        self.assertEqual(self.mayros("gateway", "token").stdout, made + "\n")
        self.config.unlink()
        (self.state / "gateway-token").unlink()
        self.mayros("setup", MAYROS_GATEWAY_TOKEN="the-token-of-the-environment")
        self.assertEqual(self.mayros("gateway", "token").stdout, "the-token-of-the-environment\n")

    def test_says_what_comes_next(self) -> None:
        """Without the embedded model its installation is named as the next step; with another primary model it is not."""
        self.assertIn("mayros models install smollm2", self.mayros("setup").stdout.splitlines()[-1])
        self.config.unlink()
        self.assertNotIn("models install", self.mayros("setup", OPENAI_API_KEY="a-secret-key-for-tests").stdout.splitlines()[-1])

    def test_foreign_directory(self) -> None:
        """The state directory of another program is recognised; nothing is written into it."""
        (self.state / "agents" / "main" / "sessions").mkdir(parents=True)
        (self.state / "agents" / "main" / "sessions" / "sessions.json").write_text("{}")
        before = sorted(self.state.rglob("*"))
        self.assertRefused(self.mayros("setup"), 1, str(self.state), "another program", "Nothing was written")
        self.assertRefused(self.mayros("models", "install", "smollm2"), 1, "another program")
        self.assertEqual(sorted(self.state.rglob("*")), before)

    def test_broken_configuration(self) -> None:
        """A configuration that cannot be read is reported and left alone."""
        self.write("{ gateway: ")
        self.assertRefused(self.mayros("setup"), 78, str(self.config))
        self.assertEqual(self.config.read_text(), "{ gateway: ")


class ConfigTests(CommandLine):
    """`mayros config`."""

    def test_defaults(self) -> None:
        """A key that the file does not set is shown with the value in force, also when there is no file."""
        self.assertEqual(self.mayros("config", "get", "gateway.port").stdout, "18789\n")
        self.assertEqual(self.mayros("config", "get", "gateway.http.endpoints.chatCompletions.enabled").stdout, "false\n")
        self.assertEqual(json.loads(self.mayros("config", "get", "gateway.shutdown", "--json").stdout), {"graceMs": 20000})

    def test_from_the_file(self) -> None:
        """A value of the file, with an index into a list."""
        self.write({"gateway": {"port": 4444}, "agents": {"list": [{"id": "main"}, {"id": "beta"}]}})
        self.assertEqual(self.mayros("config", "get", "gateway.port").stdout, "4444\n")
        self.assertEqual(self.mayros("config", "get", "agents.list[1].id").stdout, "beta\n")
        self.assertEqual(self.mayros("config", "get", "agents.list[1].id", "--json").stdout, '"beta"\n')

    def test_unknown_key(self) -> None:
        """A key that does not exist is an error."""
        self.assertRefused(self.mayros("config", "get", "gateway.prot"), 1, "gateway.prot")

    def test_redaction(self) -> None:
        """No secret is shown: not in the whole, not by its path, not as JSON."""
        secrets = ["tok-0123456789abcdef0123456789abcdef", "sk-abcdefghijklmnopqrstuvwxyz0123456789"]
        self.write({"gateway": {"auth": {"token": secrets[0]}}, "models": {"providers": {"openai": {"apiKey": secrets[1]}}}})
        paths = ((), ("gateway",), ("gateway.auth.token",), ("models.providers.openai.apiKey", "--json"), ("models.providers",))
        for path in paths:
            result = self.mayros("config", "get", *path)
            self.assertEqual(result.exit_code, 0, result.output)
            for secret in secrets:
                self.assertNotIn(secret, result.output)

    def test_path(self) -> None:
        """The file's place follows the environment."""
        self.assertEqual(self.mayros("config", "path").stdout.strip(), str(self.config))
        other = str(self.home / "elsewhere.json")
        self.assertEqual(self.mayros("config", "path", MAYROS_CONFIG_PATH=other).stdout.strip(), other)

    def test_validate(self) -> None:
        """A warning passes, and is an error with --strict; an unknown key below gateway.auth never passes."""
        self.write({"gateway": {"mode": "local", "colour": "blue"}})
        result = self.mayros("config", "validate")
        self.assertEqual(result.exit_code, 0, result.output)
        self.assertIn("warning: ", result.stderr)
        self.assertRefused(self.mayros("config", "validate", "--strict"), 78, "gateway.colour")
        self.write({"gateway": {"auth": {"tokne": "x"}}})
        self.assertRefused(self.mayros("config", "validate"), 78, "gateway.auth.tokne")

    def test_validate_models(self) -> None:
        """What would not be asked as it stands there: a model of nobody, parameters that make no sense."""
        models = {"openai/gpt-5-mini": {"params": {"temperature": "hot", "thinking": "very", "transport": "sse"}}}
        self.write({"gateway": {"mode": "local"}, "agents": {"defaults": {"model": "nowhere/x", "models": models}}})
        result = self.mayros("config", "validate")
        path = 'agents.defaults.models["openai/gpt-5-mini"].params'
        for words in (
            "agents: unknown model 'nowhere/x'",
            f"{path}.temperature: must be a number from 0 to 2; ignored",
            f"{path}.thinking: must be one of off, minimal, low, medium, high, xhigh; ignored",
            f"{path}.transport: has no effect here; known are temperature, topP, maxTokens, thinking, cacheRetention",
            "is valid, with 4 warning(s)",
        ):
            self.assertIn(words, result.output)

    def test_validate_without_a_file(self) -> None:
        """Where there is no file the user is told how to get one."""
        self.assertRefused(self.mayros("config", "validate"), 1, "mayros setup")


class AgentTests(CommandLine):
    """`mayros agent` against a gateway that is a coroutine."""

    def setUp(self) -> None:
        super().setUp()
        self.write({"gateway": {"mode": "local", "port": 4444, "auth": {"token": "a-token-of-the-file"}}})

    def test_streams(self) -> None:
        """The reply's text is printed as it comes, other runs' is not, and the line is ended."""
        self.gateway.says = ("Hello", " there")
        result = self.mayros("agent", "--message", "hi")
        self.assertEqual((result.exit_code, result.stdout, result.stderr), (0, "Hello there\n", ""))

    def test_what_the_events_left_out(self) -> None:
        """Text that only the final answer holds is printed too."""
        self.gateway.says = ("Hello",)
        self.assertEqual(self.mayros("agent", "-m", "hi").stdout, "Hello there\n")
        self.gateway.says = ()
        self.assertEqual(self.mayros("agent", "-m", "hi").stdout, "Hello there\n")

    def test_json(self) -> None:
        """With --json the final payload is the only output."""
        self.gateway.says = ("Hello", " there")
        self.assertEqual(json.loads(self.mayros("agent", "--message", "hi", "--json").stdout), FINAL)

    def test_what_is_asked(self) -> None:
        """Agent, session and time limit reach the method; the secret is the configured one, at the configured port."""
        self.mayros("agent", "--message", "hi", "--agent", "beta", "--session-key", "work", "--timeout", "30")
        self.mayros("agent", "--message", "again")
        first, second = self.gateway.calls
        self.assertEqual((first["url"], first["token"], first["password"]), ("ws://127.0.0.1:4444/", "a-token-of-the-file", None))
        self.assertEqual((first["method"], first["expect_final"]), ("agent", True))
        params = dict(first["params"])
        self.assertNotEqual(params.pop("idempotencyKey"), second["params"]["idempotencyKey"])
        self.assertEqual(params, {"message": "hi", "agentId": "beta", "sessionKey": "work", "timeout": 30})
        self.assertGreater(first["timeout"], 30)

    def test_port_of_the_environment(self) -> None:
        """MAYROS_GATEWAY_PORT wins over the file, as it does for the daemon; nonsense there is refused."""
        self.mayros("agent", "--message", "hi", MAYROS_GATEWAY_PORT="5555")
        self.assertEqual(self.gateway.calls[0]["url"], "ws://127.0.0.1:5555/")
        self.assertRefused(self.mayros("agent", "--message", "hi", MAYROS_GATEWAY_PORT="many"), 1, "MAYROS_GATEWAY_PORT")

    def test_url_gets_no_stored_secret(self) -> None:
        """A gateway named on the command line never gets the secret of the configuration."""
        self.mayros("agent", "--message", "hi", "--url", "ws://gateway.example:1")
        self.mayros("agent", "--message", "hi", "--url", "ws://gateway.example:1", MAYROS_GATEWAY_TOKEN="from-the-environment")
        file = self.home / "token"
        file.write_text("from-the-file\n")
        self.mayros("agent", "--message", "hi", "--url", "ws://gateway.example:1", "--token-file", str(file))
        self.assertEqual([call["token"] for call in self.gateway.calls], [None, "from-the-environment", "from-the-file"])
        self.assertEqual({call["url"] for call in self.gateway.calls}, {"ws://gateway.example:1"})

    def test_remote_mode(self) -> None:
        """In mode remote the configured gateway and its own token are meant."""
        self.write({"gateway": {"mode": "remote", "auth": {"token": "local"}, "remote": {"url": "wss://far.example", "token": "far"}}})
        self.mayros("agent", "--message", "hi")
        self.assertEqual((self.gateway.calls[0]["url"], self.gateway.calls[0]["token"]), ("wss://far.example", "far"))

    def test_password_mode(self) -> None:
        """Where the gateway wants a password, that is what is sent."""
        self.write({"gateway": {"auth": {"password": "open sesame"}}})
        self.mayros("agent", "--message", "hi")
        self.assertEqual((self.gateway.calls[0]["token"], self.gateway.calls[0]["password"]), (None, "open sesame"))

    def test_bad_url(self) -> None:
        """An address that is no WebSocket URL, or holds a password, is wrong usage and is not repeated."""
        for url in ("http://127.0.0.1:1", "ws://", "ws://me:secret-word@host", "ws://[::1", "gateway"):
            result = self.mayros("agent", "--message", "hi", "--url", url)
            self.assertRefused(result, 2, "ws://")
            self.assertNotIn("secret-word", result.output)
        self.assertEqual(self.gateway.calls, [])

    def test_failure(self) -> None:
        """A run that fails after some text: the text's line is ended, the error is one line, the status 1."""
        self.gateway.says = ("Hel",)
        self.gateway.final = StartError("cannot go on with the\n run", 1)
        result = self.mayros("agent", "--message", "hi")
        self.assertRefused(result, 1, "cannot go on with the run")
        self.assertEqual(result.stdout, "Hel\n")

    def test_failure_as_json(self) -> None:
        """With --json the payload that came with a failure is printed too, for the partial answer is in it."""
        self.gateway.finals["agent"] = CallFailed("UNAVAILABLE", "The run reached its time limit.", payload={"status": "timeout"})
        result = self.mayros("agent", "--message", "hi", "--json")
        self.assertRefused(result, 1, "time limit")
        self.assertEqual(json.loads(result.stdout), {"status": "timeout"})

    def test_interrupted(self) -> None:
        """Ctrl-C aborts the run at the gateway, in the session that the run's events told, and ends with 130 and no traceback."""
        self.gateway.says = ("Hel",)
        self.gateway.finals = {"agent": Deferred(), "chat.abort": {"ok": True, "aborted": True}}
        result = self.interrupted("agent", "--message", "hi")
        self.assertEqual((result.exit_code, result.stderr.strip()), (130, ""))
        run, abort = self.gateway.methods()
        self.assertEqual(abort, ("chat.abort", {"sessionKey": "agent:main:told", "runId": run[1]["idempotencyKey"]}))

    def test_interrupted_before_any_event(self) -> None:
        """Then the session is the one that was asked for, or the main one of the agent."""
        self.gateway.finals = {"chat.abort": {"ok": True}}
        for options, session in ((("--session-key", "work"), "work"), (("--agent", "beta"), "agent:beta:main"), ((), "main")):
            self.gateway.finals["agent"] = Deferred()
            self.interrupted("agent", "--message", "hi", *options)
            self.assertEqual(self.gateway.calls[-1]["params"]["sessionKey"], session)

    def test_interrupted_without_an_answer(self) -> None:
        """Where the run cannot be aborted, that is said."""
        self.gateway.finals = {"agent": Deferred(), "chat.abort": CallFailed("UNAVAILABLE", "The gateway gave no answer within 3 s.")}
        result = self.interrupted("agent", "--message", "hi")
        self.assertEqual(result.exit_code, 130)
        self.assertIn("may go on", result.stderr)

    def test_usage(self) -> None:
        """Wrong usage is status 2 and one line."""
        self.assertRefused(self.mayros("agent"), 2, "--message")
        self.assertRefused(self.mayros("agent", "--message", "  "), 2, "--message")
        self.assertRefused(self.mayros("agent", "--message", "hi", "--token", "x", "--token-file", __file__), 2, "--token")
        self.assertRefused(self.mayros("agent", "--message", "hi", "--local", "--url", "ws://a"), 2, "--local")
        self.assertRefused(self.mayros("agent", "--message", "hi", "--timeout", "0"), 2, "--timeout")
        self.assertRefused(self.mayros("agnet"), 2, "agnet")

    def test_unexpected_payloads(self) -> None:
        """A final payload of another shape holds no text, and is no reason to fall over."""
        for payload in (None, [], {"result": None}, {"result": {"payloads": "x"}}, {"result": {"payloads": [1, {"text": 2}]}}):
            self.assertEqual(final_text(payload), "")


class LocalTests(CommandLine):
    """`mayros agent --local`, as far as it goes without a model."""

    def test_a_gateway_is_running(self) -> None:
        """While a gateway holds the state directory, the user is told to leave out --local."""
        self.mayros("setup")
        holder = StateDir.open(str(self.state))
        holder.lock()
        self.addCleanup(holder.unlock)
        self.assertRefused(self.mayros("agent", "--message", "hi", "--local"), 1, str(os.getpid()), "leave out --local")


class GatewayTests(CommandLine):
    """`mayros gateway`."""

    def test_healthy(self) -> None:
        """A gateway that says ok is healthy."""
        self.gateway.final = {"ok": True, "ts": 1}
        result = self.mayros("gateway", "health")
        self.assertEqual((result.exit_code, self.gateway.calls[0]["method"]), (0, "health"))
        self.assertIn("ws://127.0.0.1:18789/", result.stdout)
        self.assertEqual(json.loads(self.mayros("gateway", "health", "--json").stdout), {"ok": True, "ts": 1})

    def test_unreachable(self) -> None:
        """A gateway that cannot be reached, or says that it is not well, is status 1."""
        self.gateway.final = ConnectionRefusedError(111, "Connection refused")
        self.assertRefused(self.mayros("gateway", "health"), 1, "Connection refused")
        self.gateway.final = {"ok": False}
        self.assertRefused(self.mayros("gateway", "health"), 1, "not healthy")

    def test_token_order(self) -> None:
        """The token is the one that the daemon takes: the file's, else the environment's, else the state directory's."""
        self.assertRefused(self.mayros("gateway", "token"), 1, "mayros setup")
        made = StateDir.open(str(self.state)).make_token()
        self.assertEqual(self.mayros("gateway", "token").stdout, made + "\n")
        self.assertEqual(self.mayros("gateway", "token", MAYROS_GATEWAY_TOKEN="of-the-environment").stdout, "of-the-environment\n")
        self.write({"gateway": {"auth": {"token": "of-the-file-itself"}}})
        self.assertEqual(self.mayros("gateway", "token", MAYROS_GATEWAY_TOKEN="of-the-environment").stdout, "of-the-file-itself\n")

    def test_no_token_in_mode_none(self) -> None:
        """Without authentication there is nothing to print."""
        self.write({"gateway": {"auth": {"mode": "none"}}})
        self.assertRefused(self.mayros("gateway", "token"), 1, "none")

    def test_run_takes_the_plugins_options(self) -> None:
        """A bad option of `gateway run` is wrong usage, as it is for twistd."""
        self.assertRefused(self.mayros("gateway", "run", "--port", "many"), 2, "port")


class ModelsTests(CommandLine):
    """`mayros models`."""

    def test_list(self) -> None:
        """The agents' models come first, with whether each can be used."""
        self.mayros("setup", GROQ_API_KEY="a-secret-key-for-tests")
        rows = json.loads(self.mayros("models", "list", "--json").stdout)
        self.assertEqual([row["ref"] for row in rows[:2]], ["groq/llama-3.3-70b-versatile", EMBEDDED])
        self.assertEqual(rows[0]["agents"], ["main"])
        self.assertIn("GROQ_API_KEY", rows[0]["state"])
        self.assertIn("mayros models install smollm2", rows[1]["state"])
        result = self.mayros("models", "list", GROQ_API_KEY="a-secret-key-for-tests")
        self.assertRegex(result.stdout, r"groq/llama-3.3-70b-versatile .* ready .* agents: main|groq/llama-3.3-70b-versatile .* ready  agents: main")
        self.assertNotIn("a-secret-key-for-tests", result.output)

    def test_unknown_name(self) -> None:
        """Only what can be installed is taken."""
        self.assertRefused(self.mayros("models", "install", "gpt-7"), 2, "smollm2")


class DriveTests(CommandLine):
    """The loop that runs a command's coroutine, in a real process."""

    def start(self, body: str) -> subprocess.Popen[str]:
        """A process that drives `work`, a coroutine function with this body."""
        code = (
            "from twisted.internet.defer import Deferred\n"
            "from mayros.cli.loop import drive\n"
            f"async def work(reactor):\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
            "try:\n    print('gave', drive(work))\n"
            "except BaseException as failure:\n    print('raised', type(failure).__name__, failure)\n"
        )
        environ = {**self.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        return subprocess.Popen([sys.executable, "-u", "-c", code], env=environ, cwd=self.home, stdout=subprocess.PIPE, text=True)

    def test_result_and_failure(self) -> None:
        """What the coroutine gives or raises comes out."""
        self.assertEqual(self.start("return 7").communicate(timeout=30)[0], "gave 7\n")
        self.assertEqual(self.start("raise OSError('no')").communicate(timeout=30)[0], "raised OSError no\n")

    def test_interrupt(self) -> None:
        """A signal cancels the coroutine, which may still clean up, and ends in KeyboardInterrupt."""
        process = self.start("""
            try:
                print("waiting")
                await Deferred()
            finally:
                print("cleaned up")
        """)
        self.addCleanup(process.communicate)
        assert process.stdout is not None
        self.assertEqual(process.stdout.readline(), "waiting\n")
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.stdout.read(), "cleaned up\nraised KeyboardInterrupt \n")


class StartTests(CommandLine):
    """What the entry point loads."""

    def test_version(self) -> None:
        """`mayros --version` names the program and its version."""
        result = self.mayros("--version")
        self.assertEqual(result.exit_code, 0)
        self.assertRegex(result.stdout, r"^mayros, version \d+\.\d+\.\d+")

    def test_help(self) -> None:
        """`mayros --help` lists the commands; without a command the help is wrong usage."""
        listed = self.mayros("--help").stdout
        for command in ("agent", "agents", "config", "devices", "gateway", "models", "sessions", "setup"):
            self.assertIn(f"  {command}", listed)
        self.assertEqual(self.mayros().exit_code, 2)

    def test_quick(self) -> None:
        """Looking at the configuration loads neither Twisted's reactor nor the store, rich or a web framework."""
        code = (
            "import sys\n"
            "from mayros.cli.main import main\n"
            "try:\n    main(['config', 'get', 'gateway.port'])\n"
            "except SystemExit:\n    pass\n"
            "print(*sorted({'twisted.internet.reactor', 'sqlalchemy', 'rich', 'klein', 'autobahn', 'alembic'} & set(sys.modules)))\n"
        )
        environ = {**self.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        done = subprocess.run([sys.executable, "-c", code], env=environ, cwd=self.home, capture_output=True, text=True, timeout=60, check=True)
        self.assertEqual(done.stdout, "18789\n\n", done.stderr)
