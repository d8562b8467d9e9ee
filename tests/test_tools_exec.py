"""The tools exec and process with real processes: what a model is told, and that nothing is left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList, ensureDeferred
from twisted.trial.unittest import SynchronousTestCase, TestCase

from mayros.config.schema import ToolsExec
from mayros.core.exec_ports import ExecRequest
from mayros.core.keys import SessionKey
from mayros.core.ports import Principal, Turn
from mayros.core.routing import Agent
from mayros.core.tool_ports import ToolResult
from mayros.errors import ToolFailed
from mayros.net import marks
from mayros.net.redact import Redactor
from mayros.net.spawn import Spawner
from mayros.tools import keys
from mayros.tools.exec import tools
from mayros.tools.output import Output
from tests.helpers import SECRET


class Context:
    """A run's side of a call."""

    def __init__(self, workspace: str, agent_id: str = "main", **settings: Any) -> None:
        agent = Agent(agent_id, None, None, workspace, (), "", {}, 60.0, 1, 1, None, None, exec=ToolsExec(**settings))
        self.turn = Turn("run", agent, SessionKey(agent_id, "main"), False, (), "ws")
        self.principal = Principal("owner", frozenset())
        self.call_id, self.images = "call", False
        self.updates: list[str] = []
        self.told: Deferred[None] = Deferred()

    def update(self, text: str) -> None:
        self.updates.append(text)
        if not self.told.called:
            self.told.callback(None)

    async def waiting(self, answer: Any) -> Any:
        return await answer


class Allowed:
    """Allows what it is asked, or says why not."""

    def __init__(self) -> None:
        self.asked: list[ExecRequest] = []
        self.why_not: str | None = None
        self.then = lambda: None

    async def allow(self, request: ExecRequest, context: Any) -> None:
        self.asked.append(request)
        if self.why_not is not None:
            raise ToolFailed(self.why_not)
        self.then()


class ExecCase(TestCase):
    """A workspace and the two tools; at the end nothing that was started is running."""

    timeout = 20

    def setUp(self) -> None:
        self.state = os.path.realpath(self.mktemp())
        self.workspace = os.path.join(self.state, "workspace")
        os.makedirs(self.workspace)
        environ = {**os.environ, "OPENAI_API_KEY": "sk-secret"}
        self.spawner = Spawner(reactor, environ, self.state)
        self.permission = Allowed()
        self.exec, self.process = tools(self.spawner, reactor, self.permission, Redactor([SECRET]))
        self.context = Context(self.workspace)
        self.addCleanup(self.spawner.stop)

    def call(self, command: str, context: Context | None = None, **arguments: Any) -> Deferred[ToolResult]:
        return ensureDeferred(self.exec.call({"command": command, **arguments}, context or self.context))

    async def text(self, command: str, **arguments: Any) -> str:
        return (await self.call(command, **arguments)).text

    async def start(self, command: str, **arguments: Any) -> dict[str, Any]:
        return json.loads(await self.text(command, background=True, **arguments))

    async def look(self, action: str, session: str | None = None, **arguments: Any) -> str:
        arguments = {"action": action, **({} if session is None else {"sessionId": session}), **arguments}
        return (await ensureDeferred(self.process.call(arguments, self.context))).text

    async def refused(self, words: str, what: Any) -> None:
        with self.assertRaises(ToolFailed) as caught:
            await what
        self.assertIn(words, str(caught.exception))

    async def left(self) -> int:
        """Processes of this gateway that are alive."""
        return await self.spawner.marks.look(self.spawner.marks.instance)

    def wrote(self, name: str) -> str:
        with open(os.path.join(self.workspace, name)) as file:
            return file.read()


def alive(pid: str) -> bool:
    """Whether a process is, and is no zombie."""
    try:
        with open(f"/proc/{int(pid)}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class RunTests(ExecCase):
    """A command that ends by itself."""

    async def test_output_of_both_streams_in_order_and_the_exit_code(self) -> None:
        """Standard error comes with the output; an exit code that is not zero is told, and is no error of the tool."""
        result = await self.call("echo one; echo two >&2; echo thrée; exit 3")
        self.assertEqual(result, ToolResult("one\ntwo\nthrée\n(exit code 3)"))
        self.assertEqual(await self.text("true"), "(no output)")
        self.assertEqual(await self.text("kill -9 $$"), "(no output)\n(the command was ended by signal 9)")

    async def test_the_folder_is_inside_of_the_workspace(self) -> None:
        """By its real path; a link out of it does not help."""
        os.makedirs(os.path.join(self.workspace, "a b"))
        os.symlink("/", os.path.join(self.workspace, "out"))
        self.assertEqual(await self.text("pwd"), self.workspace)
        self.assertEqual(await self.text("pwd", workdir="a b"), os.path.join(self.workspace, "a b"))
        for outside in ("..", "/", "out", "a b/../.."):
            await self.refused("inside the workspace", self.call("pwd", workdir=outside))
        await self.refused("There is no folder", self.call("pwd", workdir="missing"))

    async def test_no_secret_of_the_gateway_is_in_the_environment(self) -> None:
        """Allowed names only, and what the call sets."""
        seen = dict(line.split("=", 1) for line in (await self.text("env", env={"GREETING": "hi"})).splitlines())
        allowed = {"HOME", "LANG", "LC_ALL", "LC_CTYPE", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER", "PWD", "OLDPWD", "SHLVL", "_"}
        self.assertLessEqual(set(seen), allowed | {"GREETING", marks.VARIABLE})
        self.assertEqual(seen["GREETING"], "hi")
        for name in (
            "LD_PRELOAD",
            "PATH",
            "path",
            "PYTHONPATH",
            "PYTHONSTARTUP",
            "BASH_ENV",
            "NODE_OPTIONS",
            "GIT_SSH",
            "IFS",
            "BASH_FUNC_x%%",
            "a=b",
            "",
        ):
            await self.refused("environment variable", self.call("env", env={name: "x"}))

    async def test_input_is_empty_and_there_is_no_terminal(self) -> None:
        """What waits for input gets its end at once."""
        self.assertEqual(await self.text("cat; test -t 0 || test -t 1 || echo none; (: < /dev/tty) 2> /dev/null || echo no tty"), "none\nno tty")

    async def test_it_leads_a_session_and_a_group(self) -> None:
        """With pipes and in a terminal; there, escape sequences are taken out."""
        ids = await self.text("ps -o pid=,pgid=,sid= -p $$")
        self.assertEqual(len(set(ids.split())), 1)
        shown = await self.text("test -t 1 && printf '\\033[31mred\\033[0m\\n'; ps -o pid=,pgid=,sid= -p $$", pty=True)
        first, second = shown.split("\n")
        self.assertEqual((first, len(set(second.split()))), ("red", 1))

    async def test_it_gives_way_to_the_gateway(self) -> None:
        """Commands and what they start run at a lower priority than the gateway, and their ends are dealt with one in a turn of the reactor."""
        wanted = str(os.nice(0) + 5)
        self.assertEqual(await self.text("nice; sh -c nice"), f"{wanted}\n{wanted}")
        if os.path.exists("/proc/self/autogroup") and os.geteuid() == 0:  # the kernel lets others change one in 100 ms only
            self.assertIn("nice 5", await self.text("cat /proc/self/autogroup"))

        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            ticking[0] = reactor.callLater(0, turn)

        ticking = [reactor.callLater(0, turn)]
        ended: list[int] = []
        calls = [self.call("true").addCallback(lambda _: ended.append(turns)) for _ in range(12)]
        await DeferredList(calls, fireOnOneErrback=True)
        ticking[0].cancel()
        self.assertEqual(len(set(ended)), 12, ended)

    async def test_a_system_without_the_small_programs(self) -> None:
        """Neither setsid(1) nor setpriv(1): it leads its session all the same."""
        spawner = Spawner(reactor, os.environ, self.state, which=lambda name: None)
        result = await tools(spawner, reactor, self.permission, Redactor())[0].call({"command": "ps -o pid=,pgid=,sid= -p $$"}, self.context)
        self.assertEqual(len(set(result.text.split())), 1)

    async def test_a_flood_is_drained_and_cut_in_the_middle(self) -> None:
        """All of it is read, the command ends by itself, and what is left out is counted."""
        result = await self.text("echo begin; head -c 3000000 /dev/zero | tr '\\0' x; echo; echo end")
        self.assertTrue(result.startswith("begin\nxxx"))
        self.assertTrue(result.endswith("xxx\nend"))
        self.assertIn(f"[... {3_000_000 + 11 - 200_000} bytes left out ...]", result)

    async def test_what_it_leaves_running_is_ended(self) -> None:
        """In its group with its output held open, and as a daemon in a session of its own. The answer does not wait for them."""
        began = time.monotonic()
        result = await self.text("sleep 1000 & echo $! > a; echo ready")
        self.assertEqual(result, "ready\n(processes that it left behind were ended; run it with background to keep them)")
        await self.text("setsid sh -c 'echo $$ > b; exec sleep 1000' > /dev/null 2>&1 < /dev/null & while ! test -s b; do :; done")
        self.assertLess(time.monotonic() - began, 2)
        self.assertEqual([alive(self.wrote(name)) for name in "ab"], [False, False])

    async def test_a_daemon_without_an_environment_is_ended(self) -> None:
        """It left the group and the session, its parent is gone, and so is the variable: its limits still say whose it is. So in a terminal."""
        daemon = "(env -i setsid /bin/sh -c 'echo $$ > NAME; exec /bin/sleep 1000' > /dev/null 2>&1 < /dev/null &); while ! test -s NAME; do :; done"
        for name, pty in (("a", False), ("b", True)):
            self.assertIn("ended", await self.text(daemon.replace("NAME", name), pty=pty))
            self.assertFalse(alive(self.wrote(name)))
        kept = await self.start(daemon.replace("NAME", "c"))
        self.assertIn("exited with code 0", await self.look("poll", kept["sessionId"], timeout=5_000))
        self.assertTrue(alive(self.wrote("c")))
        await self.text("true")  # the end of another command does not touch it
        self.assertTrue(alive(self.wrote("c")))
        await self.spawner.stop()
        self.assertFalse(alive(self.wrote("c")))

    async def test_the_time_limit_ends_the_whole_group(self) -> None:
        """The answer says so, with what there was."""
        result = await self.call("echo started; (sleep 1000 & echo $! > a; wait) | cat", timeout=1)
        self.assertEqual((result.is_error, result.text.split("\n")[0], alive(self.wrote("a"))), (True, "started", False))
        self.assertIn("time limit", result.text)
        self.assertEqual(await self.left(), 0)

    async def test_a_secret_that_comes_in_pieces(self) -> None:
        """T15: no poll shows half of it, nor does the log, nor the list, where commands are cut."""
        os.mkfifo(os.path.join(self.workspace, "pipe"))
        halves = SECRET[:14], SECRET[14:]
        for name, half in zip(("first", "second"), halves, strict=True):
            with open(os.path.join(self.workspace, name), "w") as file:
                file.write(half)
        session = (await self.start(f"printf 'one '; cat first; read x < pipe; cat second; echo ' two'; : {'x' * 110} {SECRET}"))["sessionId"]
        self.assertEqual(await self.look("poll", session, timeout=5_000), "one\n\nStill running.")
        with open(os.path.join(self.workspace, "pipe"), "w") as pipe:
            pipe.write("go\n")
        said = ""
        while "exited" not in said:
            said += await self.look("poll", session, timeout=5_000)
        self.assertIn("***", said)
        self.assertEqual(await self.look("log", session), "one *** two")
        said += await self.look("list")
        self.assertFalse([half for half in halves if half in said])

    async def test_watchers_are_told_what_there_is_so_far(self) -> None:
        """While the command runs."""
        running = self.call("echo working; read x < pipe", yieldMs=120_000)
        os.mkfifo(os.path.join(self.workspace, "pipe"))
        await self.context.told
        self.assertEqual(self.context.updates, ["working\n"])
        running.cancel()
        await self.assertFailure(running, CancelledError)


class PermissionTests(ExecCase):
    """What the port is asked."""

    async def test_it_is_asked_for_exactly_what_would_run(self) -> None:
        """With the real folder, the call's variables and the programs that must be on the list."""
        await self.text("echo x | cut -f1", env={"LANG": "C"}, security="allowlist", ask="always")
        request = self.permission.asked[0]
        self.assertEqual((request.command, request.cwd, request.env), ("echo x | cut -f1", self.workspace, (("LANG", "C"),)))
        self.assertEqual((request.agent_id, request.session, request.security, request.ask), ("main", "agent:main:main", "allowlist", "always"))
        self.assertEqual((request.analysed, [os.path.basename(path) for path in request.resolved]), (True, ["echo"]))
        await self.text("echo $(id)")
        await self.text("echo x", env={"CC": "./evil"})
        self.assertEqual([(one.analysed, one.resolved) for one in self.permission.asked[1:]], [(False, ()), (False, ())])

    async def test_denied_nothing_is_started(self) -> None:
        """The model is told why."""
        self.permission.why_not = "No."
        await self.refused("No.", self.call("echo x > made"))
        self.assertEqual(os.listdir(self.workspace), [])

    async def test_what_was_allowed_is_what_runs(self) -> None:
        """A folder or a program that was changed while somebody was asked is not what was allowed."""
        folder, program = os.path.join(self.workspace, "folder"), os.path.join(self.workspace, "program")
        inner = os.path.join(self.workspace, "inner")
        os.makedirs(inner)

        def swap(link: str, target: str) -> None:
            os.unlink(link)
            os.symlink(target, link)

        for command, link, first, second in (("pwd", folder, inner, self.workspace), ("./program x", program, "/bin/echo", "/bin/sh")):
            os.symlink(first, link)
            self.permission.then = lambda link=link, second=second: swap(link, second)
            arguments = {"workdir": "folder"} if link == folder else {}
            await self.refused("not what it was", self.call(command, **arguments))

    async def test_what_cannot_run_here_is_refused(self) -> None:
        """Other hosts, elevated commands, and text that is none; before anybody is asked."""
        for arguments in ({"host": "node"}, {"host": "sandbox"}, {"elevated": True}, {"node": "x"}, {"env": {"A": "\ud800"}}, {"workdir": "\ud800"}):
            await self.refused("", self.call("echo x", **arguments))
        for command in ("", " ", "a\0b", "\ud800", "x" * 100_001):
            await self.refused("", self.call(command))
        await self.refused("do not fit", self.call("echo x", pty="yes"))
        self.assertEqual(self.permission.asked, [])


class CancelTests(ExecCase):
    """A run that is cancelled leaves no process after a second."""

    async def test_everything_is_gone_after_a_second(self) -> None:
        """What ignores SIGTERM, a pipeline with grandchildren, and daemons that ignore it too, one without an environment."""
        stubborn = "trap '' TERM; echo $$ > NAME; while :; do sleep 0.1; done"
        commands = {
            "a": stubborn.replace("NAME", "a"),
            "b": "sh -c 'sleep 1000 & echo $! > b; wait' | cat | cat",
            "c": f"setsid sh -c '{stubborn.replace(chr(39), chr(34)).replace('NAME', 'c')}' > /dev/null 2>&1 & sleep 1000",
            "d": f"env -i setsid sh -c '{stubborn.replace(chr(39), chr(34)).replace('NAME', 'd')}' > /dev/null 2>&1 & sleep 1000",
        }
        running = [self.call(command) for command in commands.values()]
        while not all(os.path.exists(os.path.join(self.workspace, name)) and self.wrote(name) for name in commands):
            await marks.pause(reactor, 0.005)
        began = time.monotonic()
        gone = [command.gone() for command in self.spawner.live]
        for one in running:
            one.cancel()
            await self.assertFailure(one, CancelledError)
        for one in gone:
            await one
        self.assertLess(time.monotonic() - began, 1.1)
        self.assertEqual(([alive(self.wrote(name)) for name in commands], await self.left()), ([False] * 4, 0))

    async def test_who_is_dead_is_not_waited_for(self) -> None:
        """A zombie that its parent does not reap, as orphans are in a container without an init, is not counted as left."""
        mark = self.spawner.marks.new()
        child = subprocess.Popen(["/bin/sh", "-c", f"ulimit -w {marks.limit(mark)} || ulimit -x {marks.limit(mark)}; kill -STOP $$"], env={})
        self.addCleanup(child.wait)
        while not await self.spawner.marks.look(mark):
            await marks.pause(reactor, 0.01)
        child.kill()
        while alive(str(child.pid)):
            await marks.pause(reactor, 0.01)
        self.assertEqual(await self.spawner.marks.look(mark), 0)

    async def test_cancelled_while_somebody_is_asked_nothing_is_started(self) -> None:
        """The question is what is cancelled."""
        asked: Deferred[None] = Deferred()

        async def allow(request: ExecRequest, context: Any) -> None:
            await asked

        self.permission.allow = allow  # type: ignore[method-assign]
        running = self.call("echo x > made")
        running.cancel()
        await self.assertFailure(running, CancelledError)
        self.assertEqual((os.listdir(self.workspace), self.spawner.live), ([], set()))

    async def test_the_stop_of_the_gateway_ends_background_commands(self) -> None:
        """Also what one of them left when it had ended itself; and nothing new starts."""
        await self.start("sleep 1000")
        ended = await self.start("sleep 1000 > /dev/null 2>&1 & echo $! > a")
        self.assertIn("exited with code 0", await self.look("poll", ended["sessionId"], timeout=5_000))
        self.assertTrue(alive(self.wrote("a")))
        await self.spawner.stop()
        self.assertEqual((await self.left(), alive(self.wrote("a"))), (0, False))
        await self.refused("stopping", self.call("echo x"))


class BackgroundTests(ExecCase):
    """Commands that go on in the background, and the tool process."""

    async def test_a_command_goes_on_in_the_background_and_is_polled(self) -> None:
        """The first answer has what it needs to be found again; then each poll gives what is new."""
        os.mkfifo(os.path.join(self.workspace, "pipe"))
        first = json.loads(await self.text("echo one; read x < pipe; echo $x; exit 4", yieldMs=200))
        self.assertEqual((first["status"], first["tail"], sorted(first)), ("running", "one\n", ["pid", "sessionId", "status", "tail"]))
        session = first["sessionId"]
        rows = json.loads(await self.look("list"))
        self.assertEqual([(row["sessionId"], row["status"], row["pid"]) for row in rows], [(session, "running", first["pid"])])
        self.assertEqual(await self.look("poll", session), "(no new output)\n\nStill running.")
        await self.refused("still running", self.look("clear", session))
        await self.refused("input of this command is closed", self.look("write", session, data="x"))
        polled = ensureDeferred(self.look("poll", session, timeout=10_000))
        with open(os.path.join(self.workspace, "pipe"), "w") as pipe:
            pipe.write("two\n")
        self.assertEqual((await polled).split("\n")[0], "two")
        while "exited" not in (last := await self.look("poll", session, timeout=10_000)):
            pass
        self.assertEqual(last, "(no new output)\n\nThe command exited with code 4.")
        self.assertEqual(await self.look("log", session), "one\ntwo")
        self.assertEqual(await self.look("log", session, offset=1, limit=1), "two\n\n[lines 1 to 1 of 2]")
        self.assertEqual(await self.look("clear", session), "Forgotten.")
        await self.refused("There is no session", self.look("poll", session))

    async def test_what_is_written_reaches_it(self) -> None:
        """write, submit and the end of its input, on a pipe."""
        session = (await self.start("cat; echo end"))["sessionId"]
        await self.look("write", session, data="a")
        await self.look("submit", session)
        await self.look("send-keys", session, literal="b", keys=["Enter"], hex=["63"])
        await self.look("write", session, data="\n", eof=True)
        while "exited" not in await self.look("poll", session, timeout=10_000):
            pass
        self.assertEqual(await self.look("log", session), "a\nb\nc\nend")
        await self.refused("nothing can be written", self.look("write", session, data="x"))

    async def test_keys_in_a_terminal(self) -> None:
        """A line by submit, and C-c interrupts."""
        session = (await self.start("trap 'echo stopped; exit 7' INT; read x; echo got $x; while :; do sleep 0.05; done", pty=True))["sessionId"]
        await self.look("submit", session, data="hello")
        while "got hello" not in await self.look("poll", session, timeout=10_000):
            pass
        await self.refused("no key", self.look("send-keys", session, keys=["Sideways"]))
        await self.refused("no byte", self.look("send-keys", session, hex=["1ff"]))
        await self.look("send-keys", session, keys=["C-c"])
        while "exited" not in (last := await self.look("poll", session, timeout=10_000)):
            pass
        self.assertIn("code 7", last)

    async def test_kill_and_remove_end_all_of_it(self) -> None:
        """Also what an ended command left running in the background, which may stay until then."""
        one = (await self.start("sleep 1000 | sleep 1000"))["sessionId"]
        self.assertIn("ended", await self.look("kill", one))
        self.assertEqual(await self.look("poll", one), "(no new output)\n\nThe command killed.")
        two = (await self.start("sleep 1000 & echo $! > a; echo up"))["sessionId"]
        while "exited" not in await self.look("poll", two, timeout=10_000):
            pass
        self.assertTrue(alive(self.wrote("a")))
        self.assertIn("Removed", await self.look("remove", two))
        self.assertEqual((alive(self.wrote("a")), await self.left()), (False, 0))
        self.assertEqual([row["sessionId"] for row in json.loads(await self.look("list"))], [one])

    async def test_agents_do_not_see_each_other(self) -> None:
        """Another agent's command is none at all."""
        session = (await self.start("sleep 1000"))["sessionId"]
        other = Context(self.workspace, "other")
        self.assertEqual((await ensureDeferred(self.process.call({"action": "list"}, other))).text, "[]")
        for action in ("poll", "log", "kill", "write"):
            await self.refused("There is no session", ensureDeferred(self.process.call({"action": action, "sessionId": session}, other)))
        await self.look("kill", session)


class SweepTests(ExecCase):
    """After a gateway was killed."""

    async def test_the_next_start_ends_what_was_left(self) -> None:
        """Of this state directory only; and a command hears of its gateway's death by itself."""
        gateway = (
            "import os, sys\nfrom twisted.internet import reactor\nfrom mayros.net.spawn import Spawner, environment\n"
            "for state, line in zip(sys.argv[1::2], sys.argv[2::2]):\n"
            "    Spawner(reactor, os.environ, state).start(line, '/', environment(os.environ, {}), lambda data: None, timeout=99)\n"
            "reactor.run()\n"
        )
        daemon = "setsid sh -c 'trap \"\" TERM; echo $$ > %s; while :; do sleep 0.1; done' > /dev/null 2>&1 & wait"
        names = [os.path.join(self.workspace, name) for name in ("left", "others", "child", "bare")]
        other = self.state + "-other"
        started = [self.state, daemon % names[0], other, daemon % names[1], self.state, f"echo $$ > {names[2]}; exec sleep 1000"]
        started += [self.state, daemon.replace("setsid", "env -i setsid") % names[3]]
        child = subprocess.Popen([sys.executable, "-c", gateway, *started], cwd=os.path.dirname(PACKAGE))
        self.addCleanup(child.wait)
        self.addCleanup(child.kill)
        while not all(os.path.exists(name) and self.wrote(name) for name in names):
            await marks.pause(reactor, 0.01)
        child.kill()
        child.wait()
        left, others, direct, bare = (self.wrote(name) for name in names)
        self.addCleanup(os.kill, int(others), signal.SIGKILL)
        self.assertEqual((alive(left), alive(others), alive(bare)), (True, True, True))
        self.assertGreaterEqual(await ensureDeferred(self.spawner.sweep(grace=0.1)), 1)
        self.assertEqual((alive(left), alive(others), alive(direct), alive(bare)), (False, True, False, False))
        self.assertEqual(await ensureDeferred(self.spawner.sweep(grace=0.1)), 0)


PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(keys.__file__)))


class ChainTests(ExecCase):
    """Processes that are gone before they can be signalled."""

    #: Each starts the next one and ends, and writes when that was.
    CHAIN = (
        "import os, time\nend = time.monotonic() + 15\nwhile time.monotonic() < end:\n    if os.fork():\n        os._exit(0)\n"
        "    with open('beat', 'w') as file:\n        file.write(str(time.monotonic()))\n    time.sleep(0.003)\n"
    )

    async def goes_on(self) -> bool:
        """Whether there is another one still."""
        Path(self.workspace, "beat").write_text("")
        await marks.pause(reactor, 0.3)
        return self.wrote("beat") != ""

    async def test_a_chain_is_ended(self) -> None:
        """By its group, which it has for itself; in the group of the command, and in another one."""
        Path(self.workspace, "chain").write_text(self.CHAIN)
        for start in ("", "setsid "):
            session = (await self.start(f"{start}{sys.executable} -IS chain; sleep 100"))["sessionId"]
            while not await self.goes_on():
                pass
            await self.look("kill", session)
            while self.spawner.live:
                await marks.pause(reactor, 0.02)
            self.assertFalse(await self.goes_on(), start)

    async def test_others_in_its_group_are_let_be(self) -> None:
        """A group with a process in it that is not marked is not signalled as a whole."""
        Path(self.workspace, "chain").write_text(self.CHAIN)
        env = {**os.environ, marks.VARIABLE: self.spawner.marks.new()}
        shell = ["sh", "-c", 'env MAYROS_EXEC_ID="$0" "$1" -IS chain & exec sleep 100', env.pop(marks.VARIABLE), sys.executable]
        bystander = subprocess.Popen(shell, cwd=self.workspace, env=env, start_new_session=True)
        self.addCleanup(bystander.wait)
        self.addCleanup(os.killpg, bystander.pid, signal.SIGKILL)
        while not await self.goes_on():
            pass
        await self.spawner.marks.clear(self.spawner.marks.instance, 0.1)
        self.assertIsNone(bystander.poll())


class OutputTests(SynchronousTestCase):
    """The text of what a command writes."""

    def collect(self, *pieces: bytes, head: int = 100, tail: int = 100, secrets: Sequence[str] = ()) -> Output:
        output = Output(Redactor(secrets), head, tail)
        for piece in pieces:
            output.add(piece)
        output.end()
        return output

    def test_characters_and_sequences_may_come_in_pieces(self) -> None:
        """Whatever the cuts, the text is the same."""
        data = "é\x1b[1;31mréd\x1b[0m \x1b]0;title\x07x\x1b]8;;u\x1b\\y\x1b(B\r\nline\x08\x00\x9b\n\x1b".encode()
        for cut in range(len(data)):
            self.assertEqual(self.collect(data[:cut], data[cut:]).text(), "éréd xy\nline\n", cut)
        self.assertEqual(self.collect(*(bytes([byte]) for byte in data)).text(), "éréd xy\nline\n")

    def test_head_and_tail_are_kept_on_character_borders(self) -> None:
        """What is between is counted in bytes."""
        output = self.collect("äb".encode() * 5_000, b"end", head=3, tail=5)
        self.assertEqual(output.text(), f"äbä\n[... {15_003 - 5 - 6} bytes left out ...]\näbend")
        self.assertEqual(output.last(4), "bend")

    def test_reading_on_from_a_position(self) -> None:
        """What is new, and how much of it is lost."""
        output = Output(Redactor(), 4, 4)
        output.add(b"abc")
        self.assertEqual(output.since(0), ("abc", 0))
        output.add(b"defghijklmn")
        self.assertEqual((output.since(3), output.since(6), output.since(12)), (("dklmn", 6), ("klmn", 4), ("mn", 0)))

    def test_secrets_are_hidden_wherever_the_text_is_cut(self) -> None:
        """Between two pieces, where the head ends and where the tail begins; of what is forgotten nothing is looked at, and nothing is shown."""
        key = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASC\n" * 30 + "-----END PRIVATE KEY-----\n"
        for secret in (SECRET, key):
            for size in (7, 4_096, 65_536):
                for start in (0, 90, 100_500, 500_000):
                    data = (secret + "y" * 300_000).encode()
                    pieces = [data[at : at + size] for at in range(0, len(data), size)][:3_000]
                    output = self.collect(b"x" * start, *pieces, head=100, tail=100_000, secrets=[SECRET])
                    shown = output.text() + output.last(50_000) + output.since(0)[0]
                    self.assertFalse([part for part in ("secret-that", "nobody", "MIIE", "BEGIN") if part in shown], (secret, size, start))
        flood = self.collect(*[b"line\n" * 10_000] * 200, SECRET.encode(), b" end", secrets=[SECRET])
        self.assertEqual((flood.position, flood.dropped, flood.last(7)), (10_000_007, 10_000_007 - 200, "*** end"))

    def test_a_secret_that_has_begun(self) -> None:
        """It is not shown before it is known to be one or none; a prompt is."""
        output = Output(Redactor([SECRET]), 100, 100)
        output.add(f"Your name? {SECRET[:9]}".encode())
        self.assertEqual((output.text(), output.last(50), output.position), ("Your name? ", "Your name? ", 11))
        output.add(f"{SECRET[9:]} and {SECRET[:9]}".encode())
        self.assertEqual(output.since(11), ("*** and ", 0))
        output.end()
        self.assertEqual(output.since(19), (SECRET[:9], 0))

    def test_hostile_sequences_cost_nothing(self) -> None:
        """Beginnings without an end take time and memory in proportion."""
        began = time.monotonic()
        output = self.collect(*[b"\x1b]" * 30_000, b"\x1b[" * 30_000, b"\x1b]" + b"x" * 60_000, b"\xc2" * 60_000], head=10, tail=10)
        self.assertLess(time.monotonic() - began, 1.0)
        self.assertLess(len(output.text()), 100)


class KeyTests(SynchronousTestCase):
    """What keys send."""

    def test_names(self) -> None:
        """Named keys, control and meta, single characters; others are none."""
        shown = [keys.encode(name) for name in ("Enter", "up", "F1", "F12", "C-c", "C-[", "M-x", "M-Left", "é", "x")]
        self.assertEqual(shown, ["\r", "\x1b[A", "\x1bOP", "\x1b[24~", "\x03", "\x1b", "\x1bx", "\x1b\x1b[D", "é", "x"])
        self.assertEqual([keys.encode(name) for name in ("", "F13", "C-", "M-", "Sideways", "C-xx")], [None] * 6)

    def test_pasted_text_cannot_end_its_bracket(self) -> None:
        """The end is taken out."""
        self.assertEqual(keys.paste("a\x1b[201~b"), "\x1b[200~ab\x1b[201~")
