"""The configuration: mayros/config/. Each test reads a real file in a temporary folder, as the gateway does."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path
from typing import Any

import json5
import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.check import normalise_agent_id
from mayros.config.known import LATER, decode
from mayros.config.load import Loaded, config_path, load, lookup, redact, refuse_unsupported, state_dir
from mayros.config.schema import Config
from mayros.config.secret import resolve, take_environment
from mayros.config.section import Bytes, Milliseconds
from mayros.config.source import parse
from mayros.config.write import initial
from mayros.core import keys
from mayros.errors import ConfigError

DOCS = Path(__file__).parent.parent / "docs" / "configuration.md"


class Files(SynchronousTestCase):
    """A folder with a `mayros.json`."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir(parents=True)
        self.path = self.folder / "mayros.json"
        self.environ: dict[str, str] = {"HOME": str(self.folder)}

    def load(self, content: Any = None, *, cwd: Path | None = None, strict: bool = False, **files: Any) -> Loaded:
        """Read a main file of this content (a tree or a text), beside further files given by their name without `.json`."""
        if content is not None:
            files["mayros"] = content
        for name, text in files.items():
            (self.folder / f"{name}.json").write_text(text if isinstance(text, str) else json.dumps(text))
        return load(str(self.path), self.environ, state_dir=str(self.folder), cwd=str(cwd) if cwd else None, strict=strict)

    def refused(self, content: Any, *words: str, **more: Any) -> str:
        """Reading fails with status 78 and one line that names the file and holds the words."""
        error = self.assertRaises(ConfigError, self.load, content, **more)
        self.assertEqual(error.status, 78)
        for word in (str(self.folder), *words):
            self.assertIn(word, str(error))
        self.assertNotIn("\n", str(error))
        return str(error)


class ReadTests(Files):
    """From bytes to a tree."""

    def test_missing(self) -> None:
        """A missing file is an empty configuration."""
        loaded = self.load()
        self.assertFalse(loaded.exists)
        self.assertEqual((loaded.config, loaded.raw, loaded.files, loaded.warnings), (Config(), {}, [], []))

    def test_json5(self) -> None:
        """Comments, bare keys, single quotes, trailing commas, hexadecimal numbers, a byte order mark."""
        loaded = self.load("\ufeff// hi\n{ gateway: { port: 0x1F90, /* c */ 'bind': 'lan', auth: { token: 'it\\'s', }, }, }\n")
        gateway = loaded.config.gateway
        self.assertEqual((gateway.port, gateway.bind, gateway.auth.token), (8080, "lan", "it's"))
        self.assertEqual(loaded.files, [str(self.path)])
        self.assertEqual(loaded.warnings, [])

    def test_everyday_json5_needs_no_package(self) -> None:
        """What people write every day is read without the slow package."""
        self.assertRaises(ImportError, self._without_json5, "{ port: 0x10 }")
        self._without_json5("{ // a\n gateway: { 'port': 1, list: [1, 2,], }, /* b */ }")

    def _without_json5(self, text: str) -> None:
        kept = sys.modules["json5"]
        self.addCleanup(sys.modules.__setitem__, "json5", kept)
        sys.modules["json5"] = None  # type: ignore[assignment]
        parse(text.encode(), "f")

    def test_line(self) -> None:
        """A file that cannot be read names the line, and quotes nothing of it."""
        said = self.refused('{\n "gateway": {\n  "auth": { "token" "s3cret" }\n } }', f"{self.path}:3")
        self.assertNotIn("s3cret", said)
        self.refused("{ gateway: ", f"{self.path}:1")
        self.refused("", "empty")
        self.refused("[1]", "one object")
        self.path.write_bytes(b'{\n"a": "\xff"}')
        self.refused(None, ":2: not UTF-8")

    def test_not_json(self) -> None:
        """What only half passes for JSON5 is refused: doubled commas, a comma alone, two values, numbers that are none."""
        for text in ("{a: 1,, }", "[,]", "{,}", '{"a": 1} {"b": 2}', "{a: 1 2}", "{a: 01}", "{a: b}", "{a}", "{a: NaN}", "{a: 1e999}"):
            self.refused(text)
        self.refused(r'{"a": "\ud800"}', "surrogate")

    def test_bounds(self) -> None:
        """Depth and size have an end, in JSON and in JSON5, and so has what is no regular file."""
        self.assertEqual(self.load('{"channels":' * 1 + "[" * 62 + "]" * 62 + "}").warnings, ["channels: not implemented by this version, ignored"])
        for text in ('{"a":' * 65 + "1" + "}" * 65, "[" * 100_000, "{a:" * 70 + "0x1" + "}" * 70):
            self.refused(text, "nested deeper than 64")
        self.refused('{"a": "' + "x" * (5 << 20) + '"}', "larger than")
        self.refused('{"a": // b\n "' + "x" * (300 << 10) + '",\n b: 0x1}', "rarer parts", f"{self.path}:3")
        self.path.unlink()
        os.mkfifo(self.path)
        self.refused(None, "regular file")

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(st.lists(st.sampled_from(["{", "}", "[", "]", ",", ":", "a", "true", "'b'", '"c"', " ", "//d\n", "/*e*/", "1", "-2.5", "0"]), max_size=14))
    def test_same_as_json5(self, parts: list[str]) -> None:
        """The quick reading never accepts what json5 refuses, and never reads it differently."""
        text = "".join(parts)
        try:
            tree = parse(text.encode(), "f")
        except ConfigError:
            self.assertRaises(ValueError, json5.loads, text)
        else:
            self.assertEqual(tree, json5.loads(text))

    @settings(derandomize=True, max_examples=60, deadline=None)
    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
            lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text("ab$_", min_size=1, max_size=3), below, max_size=3),
            max_leaves=8,
        )
    )
    def test_loose_writing(self, tree: Any) -> None:
        """A tree written with bare keys, comments and trailing commas is read back as it was."""

        def write(value: Any) -> str:
            if isinstance(value, dict):
                return "{ // {[\n" + "".join(f"{key} /*:*/ : {write(item)} , " for key, item in value.items()) + "}"
            if isinstance(value, list):
                return "[" + "".join(f"{write(item)},\n" for item in value) + "/* ] */]"
            return json.dumps(value)

        self.assertEqual(parse(write(tree).encode(), "f"), tree)


class IncludeTests(Files):
    """`$include`."""

    def test_one(self) -> None:
        """An included file takes the place of the object; keys beside `$include` win over it, at every depth."""
        loaded = self.load(
            {"gateway": {"$include": "./gate.json", "auth": {"token": "mine"}}},
            gate={"port": 1234, "auth": {"mode": "token", "token": "theirs"}},
        )
        self.assertEqual(loaded.config.gateway.port, 1234)
        self.assertEqual((loaded.config.gateway.auth.mode, loaded.config.gateway.auth.token), ("token", "mine"))
        self.assertEqual(loaded.files, [str(self.path), str(self.folder / "gate.json")])

    def test_list(self) -> None:
        """Several are merged in order: later ones win, lists are joined."""
        loaded = self.load(
            {"agents": {"$include": ["a.json", "b.json"]}},
            a={"defaults": {"timeoutSeconds": 1, "workspace": "/a"}, "list": [{"id": "one"}]},
            b={"defaults": {"timeoutSeconds": 2}, "list": [{"id": "two"}]},
        )
        agents = loaded.config.agents
        self.assertEqual((agents.defaults.timeout_seconds, agents.defaults.workspace), (2, "/a"))
        self.assertEqual([agent.id for agent in agents.list], ["one", "two"])

    def test_nested(self) -> None:
        """Paths are relative to the file that includes; ten levels are allowed, eleven are not."""
        (self.folder / "d").mkdir()
        (self.folder / "d" / "x.json").write_text('{"$include": "y.json"}')
        (self.folder / "d" / "y.json").write_text('{"port": 5}')
        self.assertEqual(self.load({"gateway": {"$include": "d/x.json"}}).config.gateway.port, 5)
        chain = {f"c{n}": {"$include": f"c{n + 1}.json"} for n in range(1, 11)}
        self.load({"gateway": {"$include": "c1.json"}}, **{**chain, "c10": {"port": 6}})
        self.refused({"gateway": {"$include": "c1.json"}}, "c10.json: gateway.$include: more than 10 levels", **chain, c11={})

    def test_refused(self) -> None:
        """Cycles, missing and broken files, files outside the folder (by name or by link) and odd values name the place."""
        include = {"gateway": {"$include": "a.json"}}
        self.refused(include, "gateway.$include", "a.json", "No such file")
        self.refused(include, "includes itself", a={"$include": "b.json"}, b={"$include": "a.json"})
        self.refused({"$include": "mayros.json"}, "includes itself")
        self.refused(include, "a.json:2", a="{\n ]")
        for outside in ("../x.json", "/etc/passwd", "a/../../x.json"):
            self.refused({"$include": outside}, "outside")
        (self.folder / "link.json").symlink_to("/etc/passwd")
        self.refused({"$include": "link.json"}, "outside")
        for odd in (5, [], [5], "", "a\0b", {"x": 1}):
            self.refused({"$include": odd}, "$include")
        self.refused({"gateway": {"$include": "a.json", "port": 1}}, "must hold an object", a=[1])

    def test_amplification(self) -> None:
        """Files that include each other many times over come to an end."""
        files = {f"f{n}": {"channels": [{"$include": f"f{n + 1}.json"}] * 20} for n in range(5)}
        self.refused({"$include": "f0.json"}, "1000 files", **files, f5={})


class EnvironmentTests(Files):
    """`${NAME}`, `env` and `.env`."""

    def test_substitution(self) -> None:
        """A name stands for its value anywhere in a text; a doubled dollar is itself; other shapes are left alone."""
        self.environ |= {"T": "tok", "H_1": "h"}
        loaded = self.load({"gateway": {"auth": {"token": "a-${T}-${T}"}}, "agents": {"list": [{"id": "x", "systemPrompt": "$${T} ${t} $T ${H_1}"}]}})
        self.assertEqual(loaded.config.gateway.auth.token, "a-tok-tok")
        self.assertEqual(loaded.config.agents.list[0].system_prompt, "${T} ${t} $T h")

    def test_missing(self) -> None:
        """A missing or empty variable is an error that names the key path and the variable."""
        self.environ["EMPTY"] = ""
        for name in ("NONE", "EMPTY"):
            self.refused({"agents": {"list": [{"id": "a", "name": f"${{{name}}}"}]}}, "agents.list[0].name", name)

    def test_order(self) -> None:
        """The process wins over `.env` in the working directory, that over the state directory's, that over `env` in the file."""
        here = self.folder / "cwd"
        here.mkdir()
        self.environ["A"] = "process"
        (here / ".env").write_text("A=cwd\nB=cwd\n")
        (self.folder / ".env").write_text("A=state\nB=state\nC=state\n")
        loaded = self.load({"env": {"A": "f", "B": "f", "C": "f", "D": "f", "vars": {"E": "${C}!"}}}, cwd=here)
        self.assertEqual([loaded.environ[name] for name in "ABCDE"], ["process", "cwd", "state", "f", "state!"])
        self.assertEqual(loaded.warnings, [])
        self.assertNotIn("B", os.environ)

    def test_dotenv_syntax(self) -> None:
        """Quotes, `export`, comments; what is no assignment is warned about by its line, without its text."""
        (self.folder / ".env").write_text(
            "# c\nexport A = 'x # y' # z\nB=\"a\\nb\\\"c\"\nC=p#q # r\nD=\n\nE=a b\noops s3cret\nF='open\nOPENAI_API_KEY=sk-1\n"
        )
        loaded = self.load({})
        self.assertEqual(
            {name: loaded.environ.get(name) for name in "ABCDEF"},
            {"A": "x # y", "B": 'a\nb"c', "C": "p#q", "D": "", "E": "a b", "F": None},
        )
        self.assertEqual(loaded.environ["OPENAI_API_KEY"], "sk-1")
        self.assertEqual([re.findall(r"\.env:(\d+):", warning) for warning in loaded.warnings], [["8"], ["9"]])
        self.assertNotIn("s3cret", "".join(loaded.warnings))

    def test_working_directory_is_not_trusted(self) -> None:
        """A `.env` that lies about decides nothing about the gateway, its traffic or its trust; the state directory's may."""
        here = self.folder / "cwd"
        here.mkdir()
        names = ["MAYROS_GATEWAY_TOKEN", "https_proxy", "ALL_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS", "LD_PRELOAD"]
        text = "".join(f"{name}=evil\n" for name in names)
        (here / ".env").write_text(text + "GITHUB_USER=me\n")
        loaded = self.load({}, cwd=here)
        self.assertEqual(set(loaded.environ) - set(self.environ), {"GITHUB_USER"})
        self.assertEqual(len(loaded.warnings), len(names))
        (self.folder / ".env").write_text(text)
        self.assertEqual(self.load({}).environ["MAYROS_GATEWAY_TOKEN"], "evil")

    def test_bad_env(self) -> None:
        """`env` takes texts under names of variables; one that comes too late is warned about."""
        self.refused({"env": {"A": 5}}, "env.A")
        self.refused({"env": {"vars": {"a b": "x"}}}, 'env.vars["a b"]')
        self.refused({"env": []}, "env: must be an object")
        loaded = self.load({"env": {"MAYROS_STATE_DIR": "/x", "shellEnv": {"enabled": True}}})
        self.assertEqual(len(loaded.warnings), 2)
        self.assertNotIn("MAYROS_STATE_DIR", loaded.environ)

    def test_unreadable_dotenv(self) -> None:
        """A `.env` that is no file or no text is warned about."""
        (self.folder / ".env").mkdir()
        self.assertEqual(len(self.load({}).warnings), 1)
        (self.folder / ".env").rmdir()
        (self.folder / ".env").write_bytes(b"A=\xff")
        self.assertIn("not UTF-8", self.load({}).warnings[0])


class KeyTests(Files):
    """Known keys, later ones and unknown ones."""

    def test_unknown(self) -> None:
        """A misspelt key is ignored with a warning that names the nearest one; strict reading refuses it."""
        self.assertEqual(self.load({"gateway": {"prot": 1}}).warnings, ["gateway.prot: unknown key, ignored; the nearest known key is gateway.port"])
        self.refused({"gateway": {"prot": 1}}, "gateway.prot", "gateway.port", strict=True)
        self.assertEqual(len(self.load({"zzzz": 1, "agents": {"list": [{"id": "a", "zz": 1}]}}).warnings), 2)

    def test_protecting(self) -> None:
        """Where a slip would cost a protection, an unknown key is an error, with the nearest known one."""
        for tree, wrong, right in (
            ({"gateway": {"auth": {"tokn": "x"}}}, "gateway.auth.tokn", "gateway.auth.token"),
            ({"gateway": {"auth": {"rateLimit": {"max_attempts": 1}}}}, "gateway.auth.rateLimit.max_attempts", "gateway.auth.rateLimit.maxAttempts"),
            ({"gateway": {"auth": {"allowTailscale": True}}}, "gateway.auth.allowTailscale", "gateway.auth.allow"),
            ({"gateway": {"auth": {"zzz": True}}}, "gateway.auth.zzz", "gateway.auth."),
            ({"gateway": {"tls": {"enable": True}}}, "gateway.tls.enable", "gateway.tls.enabled"),
            ({"tools": {"denny": ["exec"]}}, "tools.denny", "tools.deny"),
            ({"tools": {"exec": {"securty": "deny"}}}, "tools.exec.securty", "tools.exec.security"),
            ({"agents": {"list": [{"id": "a", "tools": {"alow": []}}]}}, "agents.list[0].tools.alow", "agents.list[0].tools.allow"),
        ):
            if right == "gateway.auth.allow":
                right = "the nearest known key is gateway.auth."
            self.refused(tree, wrong + ": unknown key", right)

    def test_later(self) -> None:
        """Each section of the original that is not implemented gives one warning, however much is in it and however often it comes."""
        loaded = self.load(
            {
                "$schema": "x",
                "channels": {"telegram": {"botToken": "x"}, "discord": {}},
                "browser": {},
                "session": {"maintenance": {"mode": "enforce"}, "reset": {"mode": "daily"}},
                "gateway": {"push": {"mode": "hot"}, "nodes": {}},
                "tools": {"profile": "coding", "deny": ["exec"], "fs": {"workspaceOnly": True}, "web": {"fetch": {"enabled": False}}},
                "agents": {"list": [{"id": "a", "tools": {"deny": ["*"]}, "subagents": {}}, {"id": "b", "tools": {}, "subagents": {}}]},
            },
            strict=True,
        )
        names = ["channels", "browser", "session.maintenance", "session.reset", "gateway.push", "gateway.nodes", "tools.web"]
        names += ["agents.list[].subagents"]
        self.assertEqual(sorted(warning.partition(":")[0] for warning in loaded.warnings), sorted(names))

    def test_wrong_type(self) -> None:
        """A value of a wrong type is named by its path in the file, also below names and indices, and what it may be."""
        for tree, *words in (
            ({"gateway": {"port": "80"}}, "gateway.port", "int"),
            ({"gateway": {"auth": {"mode": "tokn"}}}, "gateway.auth.mode", "none, token, password, trusted-proxy"),
            ({"gateway": {"bind": {"x": 1}}}, "gateway.bind", "loopback"),
            ({"gateway": []}, "gateway: Expected object"),
            ({"agents": {"list": [{"id": "a"}, {"id": 5}]}}, "agents.list[1].id"),
            ({"agents": {"list": [{}]}}, "agents.list[0]", "id"),
            ({"agents": {"defaults": {"model": {"primary": 5}}}}, "agents.defaults.model.primary"),
            ({"agents": {"defaults": {"models": {"a/b": {"alias": 5}}}}}, 'agents.defaults.models["a/b"].alias'),
            (
                {"models": {"providers": {"my-one": {"models": [{"id": "x", "contextWindow": True}]}}}},
                "models.providers.my-one.models[0].contextWindow",
            ),
        ):
            self.refused(tree, *words)

    def test_durations_and_sizes(self) -> None:
        """Milliseconds and bytes are numbers, or texts with a unit; anything else is refused with an example."""
        for text, expected in (("1500", 1500), ("250ms", 250), ("30s", 30_000), (" 1.5 h ", 5_400_000), ("2D", 172_800_000), (7, 7)):
            self.assertEqual(self.load({"gateway": {"shutdown": {"graceMs": text}}}).config.gateway.shutdown.grace_ms, expected)
        for text, expected in (("32mb", 32 << 20), ("1 GB", 1 << 30), ("10", 10), ("0.5kb", 512)):
            self.assertEqual(self.load({"gateway": {"limits": {"sendBudget": text}}}).config.gateway.limits.send_budget, max(expected, 1))
        for wrong in ("", "s", "5 weeks", "-1s", -1, True, 1.5, "9" * 30, "4000d", "1e3", None, "٣s"):
            self.refused({"gateway": {"shutdown": {"graceMs": wrong}}}, "gateway.shutdown.graceMs", "30s" if wrong is not None else "")

    def test_log_levels_of_the_original(self) -> None:
        """Levels that the original has and this gateway has not become the nearest one."""
        loaded = self.load({"logging": {"level": "trace"}})
        self.assertEqual((loaded.config.logging.level, len(loaded.warnings)), ("debug", 1))
        self.refused({"logging": {"level": "loud"}}, "logging.level")
        loaded = self.load({"logging": {"consoleLevel": "silent", "maxFileBytes": "1mb"}})
        self.assertEqual((loaded.config.logging.console_level, len(loaded.warnings)), ("error", 1))
        self.refused({"logging": {"maxFileBytes": 1000}}, "logging.maxFileBytes", "at least")

    def test_where_metrics_are(self) -> None:
        """A place to listen is told of at the start, not by the first scrape."""
        loaded = self.load({"gateway": {"metrics": {"enabled": True, "listen": "[::1]:9464"}}})
        self.assertEqual((loaded.config.gateway.metrics.listen, loaded.warnings), ("[::1]:9464", []))
        self.refused({"gateway": {"metrics": {"listen": "9464"}}}, "gateway.metrics.listen", "127.0.0.1:9464")


class ValueTests(Files):
    """Values beyond their types."""

    def auth(self, **auth: Any) -> dict[str, Any]:
        """A configuration with this `gateway.auth`."""
        return {"gateway": {"auth": auth}}

    def test_secrets(self) -> None:
        """Blank secrets, what scripts leave in place of one, hidden ones and ones that no header can carry are refused, unseen."""
        for key in ("token", "password"):
            for wrong in ("", "  ", "undefined", "null", "__MAYROS_REDACTED__", "s3cr\net", "s3cr\0et"):
                self.assertNotIn("s3cr", self.refused(self.auth(**{key: wrong}), f"gateway.auth.{key}"))
        self.refused({"models": {"providers": {"x": {"apiKey": "a\r\nb"}}}}, "models.providers.x.apiKey")

    def test_rate_limit(self) -> None:
        """All three values are at least one; an empty object means the defaults."""
        for key in ("maxAttempts", "windowMs", "lockoutMs"):
            self.refused(self.auth(rateLimit={key: 0}), f"gateway.auth.rateLimit.{key}")
        limit = self.load(self.auth(rateLimit={})).config.gateway.auth.rate_limit
        assert limit is not None
        self.assertEqual((limit.max_attempts, limit.window_ms, limit.lockout_ms), (10, 60_000, 300_000))

    def test_trusted_proxies(self) -> None:
        """A8: addresses and blocks of both families; anything else and everything at once is refused."""
        good = ["10.0.0.1", "10.0.0.0/8", "10.1.2.3/8", "::1", "fd00::/8", "2001:db8::1/64"]
        self.assertEqual(self.load({"gateway": {"trustedProxies": good}}).config.gateway.trusted_proxies, tuple(good))
        for wrong in ("0.0.0.0/0", "::/0", "10.0.0.1/0", "proxy.example.com", "10.0.0", "10.0.0.0/33", "", "*", "fe80::1%eth0", "1"):
            self.refused({"gateway": {"trustedProxies": ["10.0.0.1", wrong]}}, "gateway.trustedProxies[1]")

    def test_trusted_proxy_mode(self) -> None:
        """The mode needs a proxy and the header's name."""
        mode = {"mode": "trusted-proxy", "trustedProxy": {"userHeader": "x-user", "requiredHeaders": ["x-a"], "allowUsers": ["me"]}}
        self.load({"gateway": {"auth": mode, "trustedProxies": ["10.0.0.1"]}})
        self.refused({"gateway": {"auth": mode}}, "gateway.trustedProxies")
        self.refused({"gateway": {"auth": {"mode": "trusted-proxy"}, "trustedProxies": ["10.0.0.1"]}}, "userHeader")
        self.refused(self.auth(trustedProxy={"userHeader": "x user"}), "userHeader")
        self.refused(self.auth(trustedProxy={"requiredHeaders": ["a:b"]}), "requiredHeaders[0]")
        self.refused(self.auth(trustedProxy={"allowUsers": [" "]}), "allowUsers[0]")

    def test_addresses(self) -> None:
        """Port, bind and host names."""
        self.assertEqual(self.load({"gateway": {"port": 0}}).config.gateway.port, 0)
        for port in (-1, 65536):
            self.refused({"gateway": {"port": port}}, "gateway.port")
        self.refused({"gateway": {"bind": "custom"}}, "gateway.customBindHost")
        self.refused({"gateway": {"bind": "custom", "customBindHost": "my.host"}}, "gateway.customBindHost")
        self.assertEqual(self.load({"gateway": {"bind": "custom", "customBindHost": "::1"}}).warnings, [])
        self.assertEqual(len(self.load({"gateway": {"customBindHost": "10.0.0.1"}}).warnings), 1)
        self.load({"gateway": {"allowedHosts": ["box.lan", "localhost", "10.0.0.1", "[fd00::1]", "a_b"]}})
        for wrong in ("*", "*.lan", "", "a b", "http://a", "box:80", "a..b", "a" * 64, "-a"):
            self.refused({"gateway": {"allowedHosts": [wrong]}}, "gateway.allowedHosts[0]")

    def test_origins(self) -> None:
        """Origins are exact, as browsers send them; the error says how it would be written. `null` only for WebSocket clients."""
        good = ["https://a.example.com", "http://localhost:5173", "http://[::1]:80" + "80", "chrome-extension://abcdef"]
        self.load({"gateway": {"http": {"cors": {"allowedOrigins": good}}, "controlUi": {"allowedOrigins": [*good, "null"]}}})
        for wrong in (
            "*",
            "https://*.example.com",
            "example.com",
            "https://",
            "https://a/b",
            "https://u@a",
            "https://a b",
            "null",
            "http://a:99999",
            "",
        ):
            self.refused({"gateway": {"http": {"cors": {"allowedOrigins": [wrong]}}}}, "gateway.http.cors.allowedOrigins[0]", "exact origin")
        for wrong, right in (("https://a/", "https://a"), ("HTTPS://A.com", "https://a.com"), ("https://a:443", "https://a")):
            self.refused({"gateway": {"controlUi": {"allowedOrigins": [wrong]}}}, f"would be {right}")

    def test_limits(self) -> None:
        """Limits and time-outs are positive; a body that may be sent must fit into the budget."""
        for key in (
            "maxConnections",
            "maxConnectionsPerAddress",
            "maxQueuedPerSession",
            "maxQueuedRuns",
            "sendBudget",
            "headerTimeoutMs",
            "bodyTimeoutMs",
        ):
            self.refused({"gateway": {"limits": {key: 0}}}, f"gateway.limits.{key}")
        self.refused({"gateway": {"http": {"maxBodyBytes": 0}}}, "gateway.http.maxBodyBytes")
        self.refused({"gateway": {"limits": {"bodyBudget": "1mb"}}}, "gateway.limits.bodyBudget", "maxBodyBytes")
        self.refused({"models": {"timeouts": {"idleMs": 0}}}, "models.timeouts.idleMs")
        self.refused({"models": {"providers": {"x": {"timeouts": {"connectMs": 0}}}}}, "models.providers.x.timeouts.connectMs")
        self.refused({"agents": {"defaults": {"timeoutSeconds": 0}}}, "agents.defaults.timeoutSeconds")
        self.refused({"agents": {"defaults": {"maxConcurrent": 10**30}}}, "agents.defaults.maxConcurrent")
        self.refused({"session": {"stateless": {"ttl": 0}}}, "session.stateless.ttl")
        self.assertEqual(self.load({"gateway": {"shutdown": {"graceMs": 0}}}).config.gateway.shutdown.grace_ms, 0)

    def test_store(self) -> None:
        """SQLite files and psycopg; other URLs are refused without showing them; a path of the original's is ignored with a warning."""
        for good in ("sqlite:////var/lib/x.db", "sqlite:///x.db", "postgresql+psycopg://u:p@h/db"):
            self.assertEqual(self.load({"session": {"store": good}}).config.session.store, good)
        for wrong in ("mysql://u:s3cret@h/d", "postgresql://u:s3cret@h/d", "sqlite+aiosqlite:///x", "sqlite://", "sqlite:///:memory:", "sqlite:x"):
            self.assertNotIn("s3cret", self.refused({"session": {"store": wrong}}, "session.store"))
        self.assertEqual(len(self.load({"session": {"scope": "global"}}).warnings), 1)
        loaded = self.load({"session": {"store": "~/.mayros/agents/{agentId}/sessions.json"}})
        self.assertIsNone(loaded.config.session.store)
        self.assertEqual(len(loaded.warnings), 1)

    def test_providers(self) -> None:
        """Addresses without credentials, headers that cannot break a request, models that make sense."""

        def provider(**entry: Any) -> dict[str, Any]:
            return {"models": {"providers": {"x": entry}}}

        self.assertEqual(self.load(provider(baseUrl="http://127.0.0.1:8000/v1", headers={"X-Title": "café"}, models=[{"id": "m"}])).warnings, [])
        for url in ("ftp://a", "a.com", "http://", "http://u:s3cret@a", "http://a b", "http://a/#f", "http://a:99999", "http://a/?k=v", "file:///x"):
            self.assertNotIn("s3cret", self.refused(provider(baseUrl=url), "models.providers.x.baseUrl"))
        for name, value in (
            ("a b", "x"),
            ("", "x"),
            ("x", "s3cret\r\nEvil: 1"),
            ("x", "s3cret\0"),
            ("x", "☃"),
            ("Content-Length", "5"),
            ("host", "x"),
        ):
            self.assertNotIn("s3cret", self.refused(provider(headers={name: value}), "models.providers.x.headers"))
        self.refused(provider(maxConnections=0), "models.providers.x.maxConnections")
        self.refused(provider(models=[{"id": "m"}, {"id": "m"}]), "models.providers.x.models[1].id")
        self.refused(provider(models=[{"id": "m", "contextWindow": 0}]), "models.providers.x.models[0].contextWindow")
        self.refused(provider(models=[{"id": "m", "cost": {"input": -1}}]), "models.providers.x.models[0].cost")
        self.refused({"models": {"providers": {"a/b": {}}}}, 'models.providers["a/b"]')
        self.assertEqual(self.load(provider(api="anthropic-messages")).warnings, [])

    def test_agents(self) -> None:
        """Two agents whose ids mean the same are refused; a second default agent is ignored with a warning."""
        self.refused({"agents": {"list": [{"id": "My Agent"}, {"id": "my-agent "}]}}, "agents.list[1].id", "my-agent")
        self.assertEqual(len(self.load({"agents": {"list": [{"id": "a", "default": True}, {"id": "b", "default": True}]}}).warnings), 1)
        self.refused({"agents": {"list": [{"id": "a", "workspace": " "}]}}, "agents.list[0].workspace")

    def test_remote(self) -> None:
        """The address of another gateway is a WebSocket URL without credentials."""
        self.load({"gateway": {"remote": {"url": "wss://gw.example.com", "token": "t"}}})
        for wrong in ("http://a", "wss://u:p@a", "a"):
            self.refused({"gateway": {"remote": {"url": wrong}}}, "gateway.remote.url")

    @settings(derandomize=True, max_examples=100, deadline=None)
    @given(st.text(max_size=80))
    def test_agent_ids(self, text: str) -> None:
        """An agent id means the same here and where requests are routed."""
        self.assertEqual(normalise_agent_id(text), keys.normalise_agent_id(text))


class RefuseTests(Files):
    """Protections that cannot be given yet."""

    def test_refused(self) -> None:
        """Each key that asks for one keeps the gateway from starting, and is named."""
        for tree, path in (
            ({"gateway": {"bind": "tailnet"}}, "gateway.bind"),
            ({"gateway": {"bind": "auto"}}, "gateway.bind"),
            ({"gateway": {"http": {"securityHeaders": {"strictTransportSecurity": "max-age=1"}}}}, "gateway.http.securityHeaders"),
            ({"agents": {"defaults": {"limits": {"runTokens": 5}}}}, "agents.defaults.limits"),
            ({"session": {"sendPolicy": {"default": "deny"}}}, "session.sendPolicy"),
            ({"session": {"sendPolicy": {"default": "allow", "rules": [{"action": "deny", "match": {"channel": "x"}}]}}}, "session.sendPolicy"),
            ({"logging": {"redactPatterns": ["x"]}}, "logging.redactPatterns"),
            ({"tools": {"exec": {"host": "sandbox"}}}, "tools.exec.host"),
            ({"agents": {"list": [{"id": "a", "tools": {"exec": {"host": "node"}}}]}}, "agents.list[0].tools.exec.host"),
            ({"agents": {"defaults": {"sandbox": {"mode": "non-main"}}}}, "agents.defaults.sandbox.mode"),
            ({"agents": {"list": [{"id": "a", "sandbox": {"mode": "all"}}]}}, "agents.list[0].sandbox.mode"),
        ):
            loaded = self.load(tree)
            error = self.assertRaises(ConfigError, refuse_unsupported, loaded.config, loaded.raw)
            self.assertEqual(error.status, 78)
            self.assertTrue(str(error).startswith(path + ":"), str(error))

    def test_allowed(self) -> None:
        """The same keys where they ask for nothing do not stand in the way."""
        loaded = self.load(
            {
                "gateway": {
                    "tls": {"enabled": True},
                    "remote": {"tlsFingerprint": "ab" * 32},
                    "http": {"securityHeaders": {"strictTransportSecurity": False}},
                },
                "limits": {"dayCost": 5},
                "session": {"sendPolicy": {"default": "allow", "rules": []}},
                "logging": {"redactPatterns": [], "redactSensitive": "tools"},
                "tools": {"deny": ["*"], "exec": {"host": "gateway"}},
                "agents": {"list": [{"id": "a", "limits": {"runTokens": 5}, "tools": {"deny": ["exec"]}, "sandbox": {"mode": "off"}}]},
            }
        )
        refuse_unsupported(loaded.config, loaded.raw)


class ToolTests(Files):
    """`tools`, an agent's `tools`, and `skills`."""

    def test_an_allow_of_unknown_names_only(self) -> None:
        """It could be taken for all or for none: an error, wherever it stands; a pattern and a name of the original's are known."""
        self.refused({"tools": {"allow": ["reed"]}}, "tools.allow", "reed")
        self.refused({"agents": {"list": [{"id": "a", "tools": {"allow": ["x*", "y"]}}]}}, "agents.list[0].tools.allow")
        self.refused({"tools": {"byProvider": {"openai/gpt-5": {"allow": ["nope"]}}}}, 'tools.byProvider["openai/gpt-5"].allow')
        for allow in (["*_fetch"], ["Browser"], ["bash"], ["group:plugins"], [], ["*"]):
            self.assertEqual(self.load({"tools": {"allow": allow}}).warnings, [])

    def test_names_that_are_no_tools(self) -> None:
        """One among others is warned about, with the nearest; a group that does not exist is refused."""
        warnings = self.load({"tools": {"allow": ["read", "exek"], "deny": ["wirte"], "alsoAllow": ["my__tool"]}}).warnings
        self.assertEqual(
            warnings,
            [
                'tools.allow[1]: no tool is called "exek"; the nearest is exec',
                'tools.alsoAllow[0]: no tool is called "my__tool"',
                'tools.deny[0]: no tool is called "wirte"; the nearest is write',
            ],
        )
        self.refused({"tools": {"deny": ["group:runtme"]}}, "tools.deny[0]", "group:runtime")
        for wrong in ("", " ", "a\nb", "x" * 201):
            self.refused({"tools": {"deny": [wrong]}}, "tools.deny[0]")

    def test_settings_of_tools(self) -> None:
        """Words, ranges and paths."""
        for changes, path in (
            ({"security": "ful"}, "security"),
            ({"ask": "never"}, "ask"),
            ({"timeoutSec": 0}, "timeoutSec"),
            ({"pathPrepend": ["bin"]}, "pathPrepend[0]"),
            ({"pathPrepend": ["/a:/b"]}, "pathPrepend[0]"),
            ({"safeBins": ["/bin/jq"]}, "safeBins[0]"),
            ({"applyPatch": {"enable": True}}, "applyPatch.enable"),
        ):
            self.refused({"tools": {"exec": changes}}, f"tools.exec.{path}")
            self.refused({"agents": {"list": [{"id": "a", "tools": {"exec": changes}}]}}, f"agents.list[0].tools.exec.{path}")
        self.refused({"skills": {"load": {"extraDirs": [" "]}}}, "skills.load.extraDirs[0]")
        self.refused({"tools": {"fs": {"workspaceOnyl": False}}}, "tools.fs.workspaceOnyl", "workspaceOnly")

    def test_defaults(self) -> None:
        """Careful ones: the workspace only, commands on a list, a person asked."""
        tools = self.load({}).config.tools
        self.assertEqual((tools.fs.workspace_only, tools.loop_detection.enabled, tools.exec.apply_patch.enabled), (True, True, False))
        self.assertEqual((tools.exec.security, tools.exec.ask, tools.exec.ask_fallback), ("allowlist", "on-miss", "deny"))


class SecretTests(Files):
    """Which secret opens the gateway."""

    def resolve(self, auth: dict[str, Any] | None = None, state: str | None = None, **environ: str) -> tuple[str, str | None]:
        """Mode and value for this `gateway.auth`, state token and environment."""
        loaded = self.load({"gateway": {"auth": auth or {}}})
        secret = resolve(loaded.config, environ, state)
        if secret.value is not None:
            self.assertNotIn(secret.value, repr(secret))
        return secret.mode, secret.value

    def test_order(self) -> None:
        """The service manager's credential, the file, the environment, the state directory."""
        (self.folder / "gateway-token").write_text("from-systemd\n")
        places = {"MAYROS_GATEWAY_TOKEN": "from-env", "CREDENTIALS_DIRECTORY": str(self.folder)}
        self.assertEqual(self.resolve({"token": "from-file"}, "from-state", **places), ("token", "from-systemd"))
        del places["CREDENTIALS_DIRECTORY"]
        self.assertEqual(self.resolve({"token": "from-file"}, "from-state", **places), ("token", "from-file"))
        self.assertEqual(self.resolve({}, "from-state", **places), ("token", "from-env"))
        self.assertEqual(self.resolve({}, "from-state", MAYROS_GATEWAY_TOKEN=" "), ("token", "from-state"))
        self.assertEqual(self.resolve(), ("token", None))

    def test_mode(self) -> None:
        """Without a mode, a password that is given means `password`, else `token`; a given mode stands."""
        self.assertEqual(self.resolve({"password": "second-one", "token": "first-one"}), ("password", "second-one"))
        self.assertEqual(self.resolve({}, MAYROS_GATEWAY_PASSWORD="second-one"), ("password", "second-one"))
        self.assertEqual(self.resolve({"mode": "token", "password": "second-one", "token": "first-one"}), ("token", "first-one"))
        self.assertEqual(self.resolve({"mode": "none", "token": "first-one"}, "third-one"), ("none", None))
        self.assertRaises(ConfigError, self.resolve, {"mode": "password"})

    def test_broken_credential(self) -> None:
        """A credential that is there and cannot be used is an error, never a reason to take another; a relative folder is not looked at."""
        file = self.folder / "gateway-token"
        for content in (b"", b"null\n", b"\xff", b"x" * 5000, b"a\nb"):
            file.write_bytes(content)
            error = self.assertRaises(ConfigError, self.resolve, {"token": "first-one"}, CREDENTIALS_DIRECTORY=str(self.folder))
            self.assertIn(str(file), str(error))
        self.assertEqual(self.resolve({"token": "first-one"}, CREDENTIALS_DIRECTORY="."), ("token", "first-one"))
        self.assertIn("MAYROS_GATEWAY_TOKEN", str(self.assertRaises(ConfigError, self.resolve, {}, MAYROS_GATEWAY_TOKEN="undefined")))

    def test_take_environment(self) -> None:
        """The private copy has everything; what is named like a secret leaves the live environment."""
        secrets = ["MAYROS_GATEWAY_TOKEN", "MAYROS_GATEWAY_PASSWORD", "OPENAI_API_KEY", "GH_TOKEN", "A_SECRET", "AWS_SECRET_ACCESS_KEY", "TOKEN"]
        harmless = ["PATH", "CREDENTIALS_DIRECTORY", "MAYROS_GATEWAY_PORT", "TOKENIZERS_PARALLELISM", "KEYBOARD"]
        live = dict.fromkeys([*secrets, *harmless], "x")
        taken = take_environment(live)
        self.assertEqual(sorted(taken), sorted([*secrets, *harmless]))
        self.assertEqual(sorted(live), sorted(harmless))


class ShowTests(Files):
    """Places, look-ups and hiding."""

    def test_places(self) -> None:
        """State directory and file by the environment, else in the home directory."""
        self.assertEqual(state_dir({"HOME": "/h"}), "/h/.mayros")
        self.assertEqual(config_path({"HOME": "/h"}), "/h/.mayros/mayros.json")
        self.assertEqual(config_path({"HOME": "/h", "MAYROS_STATE_DIR": "~/s"}), "/h/s/mayros.json")
        self.assertEqual(config_path({"HOME": "/h", "MAYROS_CONFIG_PATH": "/etc/m.json", "MAYROS_STATE_DIR": " "}), "/etc/m.json")

    def test_lookup(self) -> None:
        """A path finds its value; what is not set, and what is no path, is a KeyError."""
        tree = {"a": {"b": [{"c": 1}, 2]}, "m": {"x/y.z": {"k": None}}}
        self.assertEqual(lookup(tree, "a.b[0].c"), 1)
        self.assertEqual(lookup(tree, "a.b[1]"), 2)
        self.assertIsNone(lookup(tree, 'm["x/y.z"].k'))
        for wrong in ("a.x", "a.b[2]", "a.b[x]", "a..b", ".a", "a.", "a.b.c", "a[0]", "a b", 'm["x', "a.b[0].c.d"):
            self.assertRaises(KeyError, lookup, tree, wrong)

    def test_redact(self) -> None:
        """Secrets by key, everything in headers and `env`, and passwords in URLs are hidden; counts and switches are not."""
        hidden = "__MAYROS_REDACTED__"
        shown = redact(
            {
                "gateway": {"auth": {"token": "s", "password": "s", "mode": "token", "trustedProxy": {"userHeader": "x"}}},
                "models": {"providers": {"x": {"apiKey": "s", "headers": {"X-Any": "s"}, "models": [{"maxTokens": 5, "id": "m"}]}}},
                "agents": {"defaults": {"contextTokens": 5}},
                "env": {"vars": {"A": "s"}},
                "hooks": {"token": None, "allowRequestSessionKey": False},
                "channels": {"t": {"botToken": ["s", 5]}},
                "session": {"store": "postgresql+psycopg://me:s@db:5432/x"},
            }
        )
        self.assertEqual(
            shown,
            {
                "gateway": {"auth": {"token": hidden, "password": hidden, "mode": "token", "trustedProxy": {"userHeader": "x"}}},
                "models": {"providers": {"x": {"apiKey": hidden, "headers": {"X-Any": hidden}, "models": [{"maxTokens": 5, "id": "m"}]}}},
                "agents": {"defaults": {"contextTokens": 5}},
                "env": {"vars": {"A": hidden}},
                "hooks": {"token": None, "allowRequestSessionKey": False},
                "channels": {"t": {"botToken": [hidden, hidden]}},
                "session": {"store": f"postgresql+psycopg://{hidden}@db:5432/x"},
            },
        )

    def test_repr(self) -> None:
        """What was loaded does not show itself in a log."""
        self.environ["OPENAI_API_KEY"] = "s3cret"
        loaded = self.load({"gateway": {"auth": {"token": "s3cret"}}})
        self.assertNotIn("s3cret", repr(loaded) + repr(loaded.config))


class WriteTests(Files):
    """The first configuration file."""

    def write(self, **more: Any) -> None:
        """Write it with values that need care."""
        values: dict[str, Any] = {"token": 'a"b@model@${HOME}', "model": "x/y", "fallbacks": ["local/z"], "workspace": "/w/@token@/é"}
        initial(str(self.path), **{**values, **more})

    def test_written(self) -> None:
        """It is private, explains itself, is read back as it was meant, even strictly and quickly, and passes the guards."""
        self.write()
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
        self.assertIn("// ", self.path.read_text())
        loaded = self.load(strict=True)
        refuse_unsupported(loaded.config, loaded.raw)
        gateway, defaults = loaded.config.gateway, loaded.config.agents.defaults
        self.assertEqual((gateway.mode, gateway.auth.mode, gateway.auth.token), ("local", "token", 'a"b@model@${HOME}'))
        self.assertTrue(gateway.http.endpoints.chat_completions.enabled)
        self.assertEqual(defaults.model, msgspec.convert({"primary": "x/y", "fallbacks": ["local/z"]}, type(defaults.model)))
        self.assertEqual(defaults.workspace, "/w/@token@/é")
        self.assertEqual(loaded.warnings, [])

    def test_not_overwritten(self) -> None:
        """A file that is there stays as it is."""
        self.path.write_text("{}")
        self.assertRaises(FileExistsError, self.write)
        self.assertEqual(self.path.read_text(), "{}")

    def test_new_folder(self) -> None:
        """The folder is made, for its owner alone."""
        self.addCleanup(os.umask, os.umask(0o022))
        self.path = self.folder / "new" / "mayros.json"
        self.write()
        self.assertEqual(stat.S_IMODE(self.path.parent.stat().st_mode), 0o700)


def schema_keys(kind: Any = Config, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Every key of the schema by its generic path (`[]` for an index, `<>` for a name), with its type and default; sections are left out."""
    found: dict[str, tuple[Any, Any]] = {}
    for field in msgspec.structs.fields(kind):
        path = prefix + field.encode_name
        parts = [field.type, *getattr(field.type, "__args__", ())]
        below = [part for part in parts if isinstance(part, type) and issubclass(part, msgspec.Struct)]
        origin = getattr(field.type, "__origin__", None)
        if below:
            suffix = "[]" if origin is tuple else ".<>" if origin is dict else ""
            found |= schema_keys(below[0], path + suffix + ".")
        else:
            default = field.default if field.default is not msgspec.NODEFAULT else getattr(field, "default_factory", None)
            found[path] = (field.type, default)
    return found


class DocumentTests(SynchronousTestCase):
    """docs/configuration.md."""

    def setUp(self) -> None:
        self.text = DOCS.read_text()
        rows = re.findall(r"^\| `([^`]+)` \| (.+?) \| (.+?) \| .+ \|$", self.text, re.MULTILINE)
        self.rows = {re.sub(r"<[a-z]+>", "<>", key): default for key, _, default in rows}

    def test_complete(self) -> None:
        """Every key of the schema has its row, and every row is a key of the schema."""
        self.assertEqual(set(schema_keys()) - set(self.rows), set())
        self.assertEqual(set(self.rows) - set(schema_keys()), set())

    def test_defaults(self) -> None:
        """The default in a row is the one in force."""
        for key, (kind, default) in schema_keys().items():
            shown = self.rows[key].strip("`")
            with_unit = next((unit for unit in (Milliseconds, Bytes) if kind is unit), None)
            if with_unit is not None:
                section, name = ("shutdown", "graceMs") if with_unit is Milliseconds else ("limits", "sendBudget")
                config = decode({"gateway": {section: {name: shown}}}, "docs").gateway
                self.assertEqual(config.shutdown.grace_ms if with_unit is Milliseconds else config.limits.send_budget, default, key)
            elif self.rows[key].startswith("`"):
                try:
                    value = json.loads(shown)
                except ValueError:
                    value = shown
                expected = default() if callable(default) else default
                self.assertEqual(value, list(expected) if isinstance(expected, tuple) else expected, key)
            else:
                self.assertIn(default, (None, "", msgspec.NODEFAULT), key)

    def test_later(self) -> None:
        """Every key that is known and not implemented is named."""
        for path in LATER:
            key = path.rpartition(".")[2]
            self.assertTrue(re.search(rf"`[^`]*\b{key}`", self.text), path)
