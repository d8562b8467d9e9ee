"""`mayros completion`: what is offered, what is never offered, and how bash takes it."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
import shutil
import sqlite3
import subprocess
import sys
import time

from twisted.trial.unittest import SkipTest

from mayros.cli.completion import MARK, VARIABLE, Bash, source
from mayros.cli.host import Host
from mayros.cli.main import main
from mayros.cli.place import Place
from mayros.storage.engine import default_url
from mayros.storage.migrate import open_engine
from tests.daemon import python_path
from tests.test_cli import CommandLine

#: Each would do or mean something in one of the shells, or confuse how the words travel there.
HOSTILE = (
    "$(touch hit)", "`touch hit`", "a;touch hit", "a|touch hit", "a&touch hit", "a>hit", "'a", '"a', "a b", "a\tb", "a\nplain,touch hit", "a\x1b[31m",
    "*", "a?", "[a]", "{a,b}", "~root", "!!", "-rf", "--yes", "=ls", "%1", "a\\", "a,b", "#a", "^a", "ä", "\u202ea", "a\u00a0b", "", "x" * 300,
)  # fmt: skip


class Stored(CommandLine):
    """A state directory with a store."""

    def store(self, *keys: str) -> None:
        """A store with these conversations, the last one the newest."""
        self.state.mkdir(mode=0o700, exist_ok=True)
        open_engine(default_url(str(self.state))).dispose()
        with contextlib.closing(sqlite3.connect(self.state / "mayros.db")) as connection, connection:
            for number, key in enumerate(keys):
                connection.execute(
                    "INSERT INTO sessions (key, agent_id, session_id, stateless, created_ms, updated_ms, turns, input_tokens, output_tokens)"
                    " VALUES (?, 'main', ?, ?, 1, ?, 1, 0, 0)",
                    (key, f"s{number}", key.startswith("once"), number),
                )


class Offered(Stored):
    """The words at the cursor, without a shell."""

    def offered(self, *args: str) -> list[str]:
        """What fits the last of these words."""
        place = Place(self.environ, host=Host(root=str(self.home / "root")))
        found = Bash(main, {"obj": place}, "mayros", VARIABLE).get_completions(list(args[:-1]), args[-1])
        return [item.value for item in found]

    def test_commands_and_options(self) -> None:
        """Names of commands, of their options, and choices."""
        self.assertEqual(self.offered("comp"), ["completion"])
        self.assertLessEqual({"add", "list", "remove", "set"}, set(self.offered("agents", "")))
        self.assertIn("--keep-files", self.offered("agents", "remove", "x", "--k"))
        self.assertEqual(self.offered("usage", "--by", "m"), ["model"])
        self.assertEqual(self.offered("completion", ""), ["bash", "zsh", "fish"])

    def test_agents(self) -> None:
        """By the ids that they have in the gateway; without a configuration there is one."""
        self.assertEqual(self.offered("agents", "set", ""), ["main"])
        self.write({"agents": {"list": [{"id": "Ann Lee"}, {"id": "bob"}, {"name": "no id"}, 5, {"id": ["x"]}]}})
        self.assertEqual(self.offered("agents", "remove", ""), ["ann-lee", "bob"])
        self.assertEqual(self.offered("agent", "--agent=b"), ["bob"])
        self.assertEqual(self.offered("sessions", "list", "--agent", "a"), ["ann-lee"])

    def test_models(self) -> None:
        """The built-in ones and the configuration's, where that does not replace them."""
        self.assertIn("local/smollm2-135m-instruct", self.offered("models", "set", "local/"))
        mine = {"mock": {"models": [{"id": "one"}, {"id": "two:free"}, {"id": 3}]}, "odd": "x"}
        self.write({"models": {"providers": mine}})
        self.assertEqual(self.offered("models", "set", "x", "--fallback", "mock/"), ["mock/one", "mock/two:free", "mock/3"])
        self.assertTrue(self.offered("models", "test", "mock/one", "anthropic/"))
        self.assertEqual(self.offered("setup", "--provider", "mo"), ["moonshot", "mock"])
        self.write({"models": {"providers": mine, "mode": "replace"}})
        self.assertEqual(self.offered("agents", "add", "x", "--model", "anthropic/"), [])

    def test_configuration_paths(self) -> None:
        """A level at a time, so that a Tab does not show hundreds; names that the user gave are the file's."""
        self.write({"models": {"providers": {"mock": {}, "with.dot": {}}}})
        self.assertEqual([word for word in self.offered("config", "get", "") if "." in word], [])
        self.assertEqual(self.offered("config", "set", "gateway.http.e")[:2], ["gateway.http.endpoints", "gateway.http.endpoints.chatCompletions"])
        self.assertLessEqual({"gateway", "gateway.port", "gateway.auth"}, set(self.offered("config", "unset", "gat")))
        self.assertNotIn("gateway.auth.mode", self.offered("config", "get", "gat"))
        self.assertIn("gateway.auth.rateLimit.windowMs", self.offered("config", "get", "gateway.auth.rateLimit."))
        self.assertLessEqual({"models.providers.mock", "models.providers.mock.baseUrl"}, set(self.offered("config", "get", "models.providers.")))
        self.assertEqual(self.offered("config", "get", "nonsense.a.b"), [])

    def test_sessions(self) -> None:
        """The newest conversation first; what bash has as words of its own before a colon is left out."""
        self.assertEqual(self.offered("sessions", "show", ""), [])
        self.store("agent:main:old", "once:upon", "agent:main:work", "agent:beta:main")
        self.assertEqual(self.offered("export", ""), ["agent:beta:main", "agent:main:work", "agent:main:old"])
        self.assertEqual(self.offered("sessions", "delete", "agent:m"), ["agent:main:work", "agent:main:old"])
        self.assertEqual(os.listdir(self.state), ["mayros.db"])
        with contextlib.closing(sqlite3.connect(self.state / "mayros.db")) as gateway, gateway:
            gateway.execute("UPDATE sessions SET key = 'agent:main:new' WHERE key = 'agent:main:old'")
            gateway.commit()
            self.assertEqual(self.offered("sessions", "show", "agent:main:n"), ["agent:main:new"])
        self.assertEqual(os.listdir(self.state), ["mayros.db"])
        self.write({"session": {"store": f"sqlite:///{self.home}/elsewhere.db"}})
        self.assertEqual(self.offered("sessions", "show", ""), [])
        (self.state / "mayros.db").rename(self.home / "elsewhere.db")
        self.assertEqual(len(self.offered("agent", "--session-key", "")), 3)
        self.write({"session": {"store": "postgresql+psycopg://db/x"}})
        self.assertEqual(self.offered("sessions", "show", ""), [])

    def test_instances(self) -> None:
        """Those of this user and of the system."""
        self.assertEqual(self.offered("gateway", "stop", "--instance", ""), [])
        for folder, name in ((self.home / ".config/systemd/user", "mine"), (self.home / "root/etc/systemd/system", "theirs")):
            folder.mkdir(parents=True)
            for unit in (f"mayros-gateway@{name}.socket", "mayros-gateway.socket", "mayros-gateway@.service", "other@x.socket"):
                (folder / unit).touch()
        self.assertEqual(self.offered("gateway", "stop", "--instance", ""), ["mine", "theirs"])

    def test_hostile_names(self) -> None:
        """Nothing is offered that is more than a word to any shell, wherever it comes from; the harmless names beside them are."""
        self.write(
            {
                "agents": {"list": [{"id": name} for name in (*HOSTILE, "good")]},
                "models": {
                    "mode": "replace",
                    "providers": {"p": {"models": [{"id": name} for name in (*HOSTILE, "good")]}} | {name: {} for name in HOSTILE},
                },
            }
        )
        self.store(*(f"agent:main:{name}" for name in (*HOSTILE, "good")), *HOSTILE)
        folder = self.home / ".config/systemd/user"
        folder.mkdir(parents=True)
        for name in ("$(touch hit)", "a b", "good"):
            (folder / f"mayros-gateway@{name}.socket").touch()
        asked = (
            *(("agents", "set", ""), ("models", "set", ""), ("sessions", "show", ""), ("config", "get", "models.providers.")),
            *(("gateway", "stop", "--instance", ""), ("setup", "--provider", "")),
        )
        for words in asked:
            offered = self.offered(*words)
            self.assertTrue(offered, words)
            for word in offered:
                self.assertRegex(word, r"\A[A-Za-z0-9_/.:@+][A-Za-z0-9_/.:@+=%-]*\Z")
        self.assertIn("p/good", self.offered("models", "set", ""))
        self.assertIn("agent:main:good", self.offered("sessions", "show", ""))

    def test_what_cannot_be_read(self) -> None:
        """Offers nothing, without a word: a broken file, one that would block, another kind of tree, a damaged store."""
        self.state.mkdir()
        (self.state / "mayros.db").write_bytes(b"no database" * 1000)
        self.assertEqual(self.offered("sessions", "show", ""), [])
        for text in (
            "{ oops",
            "[]",
            '{"agents": 5, "models": {"providers": []}}',
            '{"agents": {"list": {"id": 1}}, "models": 7, "session": []}',
            "[" * 100_000,
        ):
            self.write(text)
            self.assertEqual(self.offered("agents", "set", ""), ["main"])
            self.assertTrue(self.offered("models", "set", ""))
            self.assertTrue(self.offered("config", "get", "gateway."))
        self.config.unlink()
        os.mkfifo(self.config)
        self.assertEqual(self.offered("agents", "set", ""), ["main"])


class CommandTests(CommandLine):
    """The command itself."""

    PLACES = {"bash": ".local/share/bash-completion/completions/mayros", "zsh": ".zfunc/_mayros", "fish": ".config/fish/completions/mayros.fish"}

    def test_printed(self) -> None:
        """Each shell's script, which names the command, the variable, and us."""
        for shell, word in (
            ("bash", "complete -o nosort -F _mayros_completion mayros"),
            ("zsh", "compdef"),
            ("fish", "complete --no-files --command mayros"),
        ):
            result = self.mayros("completion", shell)
            self.assertEqual((result.exit_code, result.stderr), (0, ""))
            for part in (word, MARK, f"{VARIABLE}={shell}_complete"):
                self.assertIn(part, result.stdout)
        self.assertTrue(self.mayros("completion", "zsh").stdout.startswith("#compdef mayros\n"))
        self.assertNotEqual(self.mayros("completion", "tcsh").exit_code, 0)

    def test_their_own_shells_can_read_them(self) -> None:
        """Where they are installed."""
        for shell in ("bash", "zsh", "fish"):
            if shutil.which(shell):
                done = subprocess.run([shell, "-n"], input=source(main, shell), capture_output=True, text=True, timeout=10, check=False)
                self.assertEqual((done.returncode, done.stderr), (0, ""), shell)

    def test_installed(self) -> None:
        """Where the shell looks, readable for all; written anew by a second time, and told what is left to do."""
        for shell, place in self.PLACES.items():
            for _ in range(2):
                result = self.mayros("completion", shell, "--install")
                self.assertEqual(result.exit_code, 0, result.output)
                self.assertEqual((self.home / place).read_text(), source(main, shell))
                self.assertEqual((self.home / place).stat().st_mode & 0o777, 0o644)
                self.assertIn(str(self.home / place), result.stdout)
                (self.home / place).write_text(f"{source(main, shell)}# older\n")
        self.assertIn("fpath=(~/.zfunc $fpath)", self.mayros("completion", "zsh", "--install").stdout)

    def test_other_folders(self) -> None:
        """Those of the XDG variables, where they are absolute."""
        data = self.home / "data"
        self.mayros("completion", "bash", "--install", XDG_DATA_HOME=str(data))
        self.assertTrue((data / "bash-completion/completions/mayros").is_file())
        self.mayros("completion", "fish", "--install", XDG_CONFIG_HOME="relative")
        self.assertTrue((self.home / self.PLACES["fish"]).is_file())

    def test_kept(self) -> None:
        """A file that somebody else put there, and a link that leads nowhere."""
        for shell, place in self.PLACES.items():
            file = self.home / place
            file.parent.mkdir(parents=True)
            file.write_text("# my own\n")
            self.assertRefused(self.mayros("completion", shell, "--install"), 1, place, "kept")
            self.assertEqual(file.read_text(), "# my own\n")
            file.unlink()
            file.symlink_to(self.home / "nowhere")
            self.assertRefused(self.mayros("completion", shell, "--install"), 1, place)
            self.assertFalse((self.home / "nowhere").exists())


class ShellCase(Stored):
    """A `mayros` on the PATH of real processes."""

    def setUp(self) -> None:
        super().setUp()
        programs = self.home / "bin"
        programs.mkdir()
        program = programs / "mayros"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -c "from mayros.cli.main import main; main()" "$@"\n')
        program.chmod(0o755)
        self.environ |= python_path() | {"PATH": f"{programs}:{os.environ['PATH']}", "INPUTRC": "/dev/null", "TERM": "dumb", "LC_ALL": "C.UTF-8"}

    def tab(self, line: str, instruction: str = "bash_complete") -> subprocess.CompletedProcess[str]:
        """What a Tab behind this line is answered."""
        environ = self.environ | {VARIABLE: instruction, "_MAYROS_LINE": line, "_MAYROS_BREAKS": " :="}
        return subprocess.run(["mayros"], env=environ, cwd=self.home, capture_output=True, text=True, timeout=20, check=False)


class AnswerTests(ShellCase):
    """What the scripts are answered."""

    def test_a_tab(self) -> None:
        """A line for each word, and one that has the shell look for files."""
        self.assertEqual(self.tab("mayros agents s").stdout, "plain,set\n")
        self.assertEqual(self.tab("mayros config set x --value-file a").stdout, "file,a\n")

    def test_nothing_is_said_when_it_fails(self) -> None:
        """Not on standard error either: the reader is in the middle of a line."""
        for instruction in ("bash_complete_more", "csh_complete", "bash_", "zsh_complete", "nonsense"):
            done = self.tab("mayros ", instruction)
            self.assertEqual((done.returncode, done.stdout, done.stderr), (1, "", ""), instruction)

    def test_little_is_loaded(self) -> None:
        """What takes longest to load is not, or a Tab would be felt."""
        self.store("agent:main:work")
        self.write({"agents": {"list": [{"id": "work"}]}})
        heavy = {"twisted.internet", "sqlalchemy", "autobahn", "cryptography", "rich", "json5", "mayros.ws.client", "mayros.storage.tables"}
        code = f"import atexit, sys; atexit.register(lambda: print(sorted({heavy} & set(sys.modules)))); from mayros.cli.main import main; main()"
        for line in ("mayros ", "mayros agents set w", "mayros sessions show agent:main:w", "mayros config get ga", "mayros models set l"):
            environ = self.environ | {VARIABLE: "bash_complete", "_MAYROS_LINE": line, "_MAYROS_BREAKS": " :="}
            done = subprocess.run([sys.executable, "-c", code], env=environ, cwd=self.home, capture_output=True, text=True, timeout=20, check=False)
            *words, loaded = done.stdout.splitlines()
            self.assertTrue(words, line)
            self.assertEqual(loaded, "[]", line)

    def test_it_takes_a_second_at_most(self) -> None:
        """Also where the file is one that takes long to read: JSON5 of the rarer kind."""
        self.write("{" + ",".join(f"k{number}: 0x{number:x}" for number in range(12_000)) + "}")
        done = self.tab("mayros agents set ")
        self.assertEqual((done.returncode, done.stdout, done.stderr), (1, "", ""))
        self.write("{k: 0x1}")  # it is read where there is less of it
        self.assertEqual(self.tab("mayros agents set ").stdout, "plain,main\n")


class BashTests(ShellCase):
    """Bash with a terminal, and keys that are pressed."""

    def setUp(self) -> None:
        super().setUp()
        if not shutil.which("bash"):
            raise SkipTest("there is no bash")

    def press(self, *lines: str) -> list[str]:
        """The line that each becomes with a Tab behind it. Ctrl-G is made to print it."""
        script = self.home / "script"
        script.write_text(source(main, "bash") + 'bind -x \'"\\C-g": printf "<%s>" "$READLINE_LINE"\'\nPS1=\nprintf \'<ready>\'\n')
        keyboard, terminal = pty.openpty()
        bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"],
            env=self.environ, cwd=self.home, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        self.addCleanup(os.close, keyboard)
        self.addCleanup(bash.wait, 10)
        self.addCleanup(bash.kill)
        self.until(keyboard, f". {script}\r", "<ready>")
        return [self.until(keyboard, f"\x15{line}\t\x07", f"<({re.escape(line[:9])}.*?)>") for line in lines]

    def until(self, keyboard: int, keys: str, pattern: str) -> str:
        """Press keys, and give what the terminal shows that is like this: its first group, or all of it."""
        os.write(keyboard, keys.encode())
        shown, deadline = "", time.monotonic() + 20
        while (found := re.search(pattern, shown)) is None:
            ready, _, _ = select.select([keyboard], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"the terminal shows {shown!r}")
            shown += os.read(keyboard, 4096).decode("utf-8", "replace")
        return found[1] if found.groups() else found[0]

    def test_keys(self) -> None:
        """Commands, options, values with and without colons, quoted words, the middle of a line, files."""
        self.write({"agents": {"list": [{"id": "beta"}]}})
        self.store("agent:main:work")
        (self.home / "my file").touch()
        pressed = {
            "mayros compl": "mayros completion ",
            "mayros agents set be": "mayros agents set beta ",
            "mayros agent --agent=b": "mayros agent --agent=beta ",
            "mayros sessions show agent:main:w": "mayros sessions show agent:main:work ",
            "mayros sessions show a": "mayros sessions show agent:main:work ",
            "mayros sessions show 'agent:main:w": "mayros sessions show 'agent:main:work' ",
            "mayros config get gateway.po": "mayros config get gateway.port ",
            "FOO=1 mayros models set local/": "FOO=1 mayros models set local/smollm2-135m-instruct ",
            "true; mayros agents set b": "true; mayros agents set beta ",
            "mayros config set a --value-file my": "mayros config set a --value-file my\\ file ",
        }
        self.assertEqual(self.press(*pressed), list(pressed.values()))

    def test_hostile_names(self) -> None:
        """They are not put on the line, and running a Tab runs nothing."""
        names = [f"x{name}" for name in HOSTILE]
        self.write(
            {"models": {"mode": "replace", "providers": {"p": {"models": [{"id": name} for name in names]}, **{name: {} for name in HOSTILE}}}}
        )
        self.store(*names)
        lines = [
            "mayros sessions show x$",
            "mayros models set p/x`",
            "mayros models set p/x$(",
            "mayros sessions show 'x\"",
            "mayros config get models.providers.$(t",
        ]
        self.assertEqual(self.press(*lines), lines)
        self.assertEqual(sorted(path.name for path in self.home.iterdir()), ["bin", "script", "state"])
