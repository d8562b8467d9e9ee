"""The service manager: what it is told, its watchdog, and the sockets that it passes on."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from unittest import SkipTest

from twisted.internet import reactor
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from websockets.sync.client import connect

import mayros
from mayros.errors import StartError
from mayros.ops.listen import Listeners
from mayros.ops.systemd import RESTART_SECONDS, Heartbeat, Passed, close_on_exec, scrub
from mayros.ops.systemd import Manager as Told
from tests.activation import HeldDaemon, Manager
from tests.daemon import Upstream, python_path, read_until
from tests.test_process import HELLO, Frames, wait_for

PID = 4242
GET = b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


class EnvironmentTests(SynchronousTestCase):
    """What the environment says about the manager."""

    def test_nobody(self) -> None:
        """A process that was started by hand, or by something else than systemd, tells nobody and is not watched."""
        for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "@"}):
            told = Told.of(environ, PID)
            self.assertEqual((told.address, told.watchdog_seconds, told.sockets), ("", None, ()), environ)
            self.assertFalse(told.tell("READY=1"))

    def test_watchdog(self) -> None:
        """In seconds; only where it is meant for this process."""
        for usec, pid, expected in (
            ("30000000", str(PID), 30.0),
            ("30000000", None, 30.0),
            ("30000000", "1", None),
            ("0", str(PID), None),
            ("-5", str(PID), None),
            ("soon", str(PID), None),
        ):
            environ = {"WATCHDOG_USEC": usec, **({"WATCHDOG_PID": pid} if pid else {})}
            self.assertEqual(Told.of(environ, PID).watchdog_seconds, expected, environ)

    def test_sockets(self) -> None:
        """From descriptor 3 on, with the names of their units; only where they are meant for this process, and not without end."""
        names = "http:http:unix"
        three = (Passed(3, "http"), Passed(4, "http"), Passed(5, "unix"))
        for environ, expected in (
            ({"LISTEN_FDS": "3", "LISTEN_PID": str(PID), "LISTEN_FDNAMES": names}, three),
            ({"LISTEN_FDS": "3", "LISTEN_PID": "1", "LISTEN_FDNAMES": names}, ()),
            ({"LISTEN_FDS": "3", "LISTEN_FDNAMES": names}, ()),
            ({"LISTEN_FDS": "1", "LISTEN_PID": str(PID)}, (Passed(3, ""),)),
            ({"LISTEN_FDS": "many", "LISTEN_PID": str(PID)}, ()),
            ({"LISTEN_FDNAMES": names}, three),  # Twisted has taken the others away
        ):
            self.assertEqual(Told.of(environ, PID).sockets, expected, environ)
        self.assertEqual(len(Told.of({"LISTEN_FDS": "999999", "LISTEN_PID": str(PID)}, PID).sockets), 64)

    def test_the_pause_before_a_restart(self) -> None:
        """Is that of our units."""
        for unit in ("mayros-gateway.service", "mayros-gateway.user.service"):
            self.assertIn(f"\nRestartSec={RESTART_SECONDS:g}\n", (Path(mayros.__file__).parent / "systemd" / unit).read_text())

    def test_children_hear_nothing_of_it(self) -> None:
        """The variables go, all else stays."""
        environ = dict.fromkeys(("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "CREDENTIALS_DIRECTORY"), "x")
        environ["PATH"] = "/bin"
        scrub(environ)
        self.assertEqual(environ, {"PATH": "/bin"})

    def test_children_get_no_socket(self) -> None:
        """A passed descriptor is closed where another program begins."""
        with socket.socket() as one:
            os.set_inheritable(one.fileno(), True)
            close_on_exec((Passed(one.fileno(), "http"),))
            self.assertTrue(fcntl.fcntl(one.fileno(), fcntl.F_GETFD) & fcntl.FD_CLOEXEC)


class TellTests(SynchronousTestCase):
    """The messages, at sockets with a path and without one."""

    def both(self) -> list[Manager]:
        managers = [Manager(), Manager(abstract=True)]
        for manager in managers:
            self.addCleanup(manager.close)
        return managers

    def test_words(self) -> None:
        """Ready, what goes on, a reload with the time of the clock that never jumps, and the end with the time that it may take."""
        for manager in self.both():
            told = Told(manager.address)
            told.ready("2 live runs")
            self.assertEqual(manager.hear(), {"READY": "1", "STATUS": "2 live runs"})
            again = told.again_seconds
            self.assertGreater(again, RESTART_SECONDS)
            told.ready("and again")  # after a reload: it did not take longer to start
            self.assertEqual((manager.hear() or {})["STATUS"], "and again")
            self.assertEqual(told.again_seconds, again)
            told.status("a\nb " + "x" * 500)
            said = manager.hear()
            assert said is not None
            self.assertEqual((said["STATUS"][:5], len(said["STATUS"]), list(said)), ("a b x", 200, ["STATUS"]))
            told.reloading()
            said = manager.hear()
            assert said is not None
            self.assertEqual(said["RELOADING"], "1")
            self.assertAlmostEqual(int(said["MONOTONIC_USEC"]) / 1e6, time.clock_gettime(time.CLOCK_MONOTONIC), -1)
            told.stopping("bye", 25.5)
            self.assertEqual(manager.hear(), {"STOPPING": "1", "STATUS": "bye", "EXTEND_TIMEOUT_USEC": "25500000"})

    def test_a_manager_that_is_gone(self) -> None:
        """Or does not read: nothing waits and nothing is raised."""
        deaf, gone = self.both()
        for _ in range(5_000):
            if not Told(deaf.address).tell("WATCHDOG=1"):
                break
        else:
            self.fail("its queue never was full")
        gone.close()
        self.assertFalse(Told(gone.address).tell("READY=1"))


class HeartbeatTests(SynchronousTestCase):
    """What is said while the gateway runs, by a clock."""

    def setUp(self) -> None:
        self.manager, self.clock = Manager(), Clock()
        self.addCleanup(self.manager.close)
        self.stalled, self.status = 0.0, "idle"
        self.heartbeat = Heartbeat(Told(self.manager.address, 30.0), self.clock, lambda: self.stalled, lambda: self.status)
        self.heartbeat.start()

    def heard(self, seconds: float) -> list[str]:
        """The first field of each message of so much time."""
        self.clock.pump([1.0] * int(seconds))
        said = []
        while (message := self.manager.hear()) is not None:
            said.append(next(iter(message)))
        return said

    def test_start(self) -> None:
        """Ready, and at once the first beat."""
        self.assertEqual(self.heard(0), ["READY", "WATCHDOG"])

    def test_the_watchdog_is_told_twice_in_its_time(self) -> None:
        """As long as the writer comes back."""
        self.heard(0)
        self.assertEqual(self.heard(60), ["WATCHDOG"] * 4)

    def test_a_writer_that_is_stuck(self) -> None:
        """One that is away for long silences it, until it comes back."""
        self.heard(0)
        self.stalled = 14.9
        self.assertEqual(self.heard(15), ["WATCHDOG"])
        self.stalled = 15.0
        self.assertEqual(self.heard(60), [])
        self.stalled = 0.0
        self.assertEqual(self.heard(15), ["WATCHDOG"])

    def test_what_goes_on(self) -> None:
        """Is said again when it is something else, every ten seconds at most; not any more while the gateway stops."""
        self.heard(0)
        self.assertNotIn("STATUS", self.heard(30))
        self.status = "busy"
        self.assertEqual(self.heard(30).count("STATUS"), 1)
        self.heartbeat.quiet()
        self.status = "idle"
        self.assertEqual(self.heard(30), ["WATCHDOG"] * 2)
        self.heartbeat.stop()
        self.assertEqual((self.heard(60), self.clock.getDelayedCalls()), ([], []))

    def test_without_a_manager(self) -> None:
        """No timer at all."""
        clock = Clock()
        heartbeat = Heartbeat(Told(), clock, lambda: 0.0, lambda: "idle")
        heartbeat.start()
        self.assertEqual(clock.getDelayedCalls(), [])
        heartbeat.stop()


class AdoptTests(TestCase):
    """Sockets that somebody else opened."""

    def setUp(self) -> None:
        self.listeners = Listeners()
        self.addCleanup(self.listeners.close)

    def passed(self, one: socket.socket) -> Passed:
        """As systemd passes it: a descriptor of our own for the same socket."""
        self.addCleanup(one.close)
        return Passed(os.dup(one.fileno()), "http")

    def test_tcp_and_unix(self) -> None:
        """Both are listened on; closing ours leaves theirs open, with whoever connects meanwhile."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        tcp, unix = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_UNIX)
        unix.bind(f"{folder}/s")
        os.chmod(f"{folder}/s", 0o640)
        unix.listen()
        passed = [self.passed(tcp), self.passed(unix)]
        self.listeners.adopt(reactor, Factory(), passed)
        port = tcp.getsockname()[1]
        self.assertEqual((self.listeners.urls, self.listeners.tcp_ports), ([f"http://127.0.0.1:{port}", f"unix:{folder}/s"], {port}))
        self.assertEqual((stat.S_IMODE(os.stat(f"{folder}/s").st_mode), held(tcp), held(unix)), (0o640, 2, 2))  # theirs and ours

        def closed(_: Any) -> None:
            with socket.create_connection(("127.0.0.1", port), 5) as waiting, socket.socket(socket.AF_UNIX) as other:
                other.connect(f"{folder}/s")
                accepted, _address = tcp.accept()
                self.assertEqual(accepted.getpeername(), waiting.getsockname())
                accepted.close()

        return self.listeners.close().addCallback(closed)  # type: ignore[return-value]

    def test_what_cannot_be_listened_on(self) -> None:
        """Status 78 with a sentence: a datagram socket, one that does not listen, no socket, nothing at all."""
        read, write = os.pipe()
        self.addCleanup(os.close, read)
        self.addCleanup(os.close, write)
        for fd in (self.passed(socket.socket(type=socket.SOCK_DGRAM)).fd, self.passed(socket.socket()).fd, read, 9_999):
            error = self.assertRaises(StartError, self.listeners.adopt, reactor, Factory(), [Passed(fd, "http")])
            self.assertEqual(error.status, 78)
            self.assertIn("the socket http of the service manager", str(error))

    def test_a_socket_for_everybody(self) -> None:
        """systemd makes unix sockets that every user can connect to, unless the unit says another: not without authentication."""
        folder = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, folder)
        for number, (mode, fine) in enumerate(((0o666, False), (0o660, True))):
            unix = socket.socket(socket.AF_UNIX)
            unix.bind(f"{folder}/{number}")
            os.chmod(f"{folder}/{number}", mode)
            unix.listen()
            listeners = Listeners()
            listeners.adopt(reactor, Factory(), [self.passed(unix)])
            self.addCleanup(listeners.close)
            listeners.judge("token")
            if fine:
                listeners.judge("none")
            else:
                self.assertRaises(StartError, listeners.judge, "none")


def held(one: socket.socket) -> int:
    """How many descriptors of this process are this socket."""
    inode, count = os.fstat(one.fileno()).st_ino, 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.stat(f"/proc/self/fd/{name}").st_ino == inode
    return count


class ProcessTests(SynchronousTestCase):
    """A real gateway under a launcher that stands for systemd."""

    timeout = 90

    def setUp(self) -> None:
        self.upstream = Upstream()
        self.addCleanup(self.upstream.close)

    def daemon(self, **changes: Any) -> HeldDaemon:
        daemon = HeldDaemon(Path(self.mktemp()), self.upstream, changes)
        self.addCleanup(daemon.close)
        return daemon

    def test_a_life(self) -> None:
        """READY when it serves, on the socket that was passed and on no other; the watchdog; STOPPING before the drain; status 0. twistd as well."""
        for cli in (True, False):
            daemon = self.daemon()
            daemon.more = {"WATCHDOG_USEC": "600000"}
            daemon.start(cli=cli)
            self.assertEqual(daemon.manager.messages[-1]["STATUS"], "0 live runs, 0 HTTP and 0 WebSocket connections, 0 sessions")
            self.assertEqual(daemon.request("POST", "/v1/chat/completions", HELLO)[0], 200)
            self.assertIn(f"listening on http://127.0.0.1:{daemon.port}\n", daemon.log.read_text())
            self.assertIn("the service manager holds the port", daemon.log.read_text())
            for _ in range(3):
                daemon.manager.wait("WATCHDOG", 5)
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGTERM)
            self.assertIn("they may take 2 s", daemon.manager.wait("STOPPING")["STATUS"])
            self.assertEqual(daemon.process.wait(20), 0 if cli else -signal.SIGTERM)

    def test_over_a_restart(self) -> None:
        """Who connects while nobody is there waits, and is answered by the next process; who was accepted before is served by the old one."""
        daemon = self.daemon(shutdown={"graceMs": 10_000})
        daemon.start()
        self.upstream.hold()
        stream = daemon.stream(HELLO)
        self.addCleanup(stream.close)
        seen = read_until(stream, b'"one"')
        early = socket.create_connection(("127.0.0.1", daemon.port), timeout=20)
        self.addCleanup(early.close)
        old = daemon.process
        assert old is not None
        wait_for(lambda: len(os.listdir(f"/proc/{old.pid}/fd")) > 0)
        daemon.request("GET", "/healthz")  # `early` was accepted before this
        old.send_signal(signal.SIGTERM)
        daemon.manager.wait("STOPPING")
        late = socket.create_connection(("127.0.0.1", daemon.port), timeout=20)
        self.addCleanup(late.close)
        late.sendall(GET)
        early.sendall(GET + GET)
        answers = read_until(early, b"nothing more")
        self.assertEqual((answers.count(b"200 OK"), answers.count(b"503 "), answers.count(b"Connection: close")), (1, 0, 1))
        self.upstream.go()
        seen += read_until(stream, b"0\r\n\r\n")
        self.assertIn(b"[DONE]", seen)
        self.assertEqual(old.wait(20), 0)
        daemon.start()
        self.assertIn(b"200 OK", read_until(late, b"true"))

    def test_websocket_clients_hear_of_it(self) -> None:
        """`shutdown`, no new run, the live one to its end, then 1012."""
        daemon = self.daemon(shutdown={"graceMs": 10_000})
        daemon.start()
        with connect(f"ws://127.0.0.1:{daemon.port}/") as client:
            frames = Frames(client)
            frames.connect()
            self.upstream.hold()
            frames.call("agent", {"message": "live", "idempotencyKey": "live-1"})
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGTERM)
            self.assertEqual(frames.event("shutdown")["reason"], "service restart")
            refused = frames.call("agent", {"message": "late", "idempotencyKey": "late-1"}, failed=True)
            self.assertEqual((refused["error"]["code"], refused["error"].get("retryable")), ("UNAVAILABLE", True))
            self.upstream.go()
            self.assertEqual(frames.answer()["status"], "ok")
            self.assertEqual(daemon.process.wait(20), 0)
            with self.assertRaises(Exception):
                while True:
                    client.recv(timeout=5)
            self.assertEqual(client.protocol.close_rcvd.code if client.protocol.close_rcvd else None, 1012)

    def test_commands_inherit_nothing(self) -> None:
        """No variable of the manager, no descriptor beside the three, no ignored signal."""
        daemon = self.daemon()
        daemon.config["tools"] = {"exec": {"security": "full", "ask": "off"}}
        daemon.more = {"WATCHDOG_USEC": "60000000", "CREDENTIALS_DIRECTORY": str(daemon.folder), "EXAMPLE_TOKEN": "not for children"}
        daemon.start()
        self.upstream.script = [[("exec", {"command": "env; ls /proc/$$/fd; grep SigIgn /proc/$$/status"})], "done"]
        status, body = daemon.request("POST", "/v1/chat/completions", HELLO)
        self.assertEqual(status, 200, body)
        results = [message["content"] for message in self.upstream.asked[-1]["messages"] if message["role"] == "tool"]
        said = json.dumps(results)
        self.assertIn("PATH=", said)
        for name in ("NOTIFY_SOCKET", "LISTEN_", "WATCHDOG_", "CREDENTIALS_DIRECTORY", "EXAMPLE_TOKEN"):
            self.assertNotIn(name, said)
        self.assertRegex(said, r"\\n0\\n1\\n2\\n(10\\n|255\\n)?(3\\n)?SigIgn:\\t[0-9a-f]{8}[08]0{7}")  # above 31 are the C library's own

    def test_no_process_of_the_same_user_can_look_into_it(self) -> None:
        """What it was started with, secrets included, stays in /proc: that belongs to root, and a command of an agent does not get it."""
        if os.getuid() != 0 or shutil.which("setpriv") is None:
            raise SkipTest("only root can run it as another user")
        script = (
            "import os, subprocess, sys\nfrom mayros.net.hidden import hide\nhidden = sys.argv[1] == '1' and hide()\n"
            "look = subprocess.run(['cat', f'/proc/{os.getpid()}/environ'], capture_output=True)\n"
            "print(hidden, b'EXAMPLE' in look.stdout, os.stat('/proc/self/environ').st_uid, len(os.listdir('/proc/self/fd')) > 2)"
        )
        said = []
        for hidden in ("0", "1"):
            nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", sys.executable, "-c", script, hidden]
            done = subprocess.run(nobody, env={"EXAMPLE": "1", **python_path()}, cwd="/", capture_output=True, text=True, timeout=20, check=False)
            if "Permission denied" in done.stderr or "No module named" in done.stderr:
                raise SkipTest("another user cannot run this Python")
            said.append(done.stdout.split())
        self.assertEqual(said, [["False", "True", "65534", "True"], ["True", "False", "0", "True"]], done.stderr)

    def test_children_that_may_not_yield_the_processor(self) -> None:
        """The unit's filter of system calls forbids nice(2); the processes of the embedded model and of PDF files run all the same."""
        for module in ("mayros.providers.llama_child", "mayros.net.pdf_child"):
            script = (
                f"import os\nfrom {module} import isolate\ndef refuse(by):\n    raise PermissionError(1, 'Operation not permitted')\n"
                "os.nice = refuse\nisolate(os.getppid())\nprint('it lives')"
            )
            argv = [sys.executable, "-c", script]
            done = subprocess.run(argv, env=os.environ | python_path(), capture_output=True, text=True, timeout=20, check=False)
            self.assertEqual(done.stdout, "it lives\n", done.stderr)

    def test_bad_configuration(self) -> None:
        """Status 78, which the unit does not retry; the manager never hears READY."""
        daemon = self.daemon(auth={"mode": "none"})
        wide = socket.create_server(("0.0.0.0", 0))
        self.addCleanup(wide.close)
        daemon.sockets = {"http": wide}
        self.assertEqual(daemon.spawn().wait(20), 78)
        self.assertIsNone(daemon.manager.hear())
        self.assertIn("0.0.0.0", daemon.log.read_text())

    def test_a_third_signal(self) -> None:
        """Ends it where it stands."""
        daemon = self.daemon(shutdown={"graceMs": 60_000})
        daemon.start()
        self.upstream.hold()
        stream = daemon.stream(HELLO)
        self.addCleanup(stream.close)
        read_until(stream, b'"one"')
        process, pause = daemon.process, threading.Event()
        assert process is not None
        process.send_signal(signal.SIGTERM)
        daemon.manager.wait("STOPPING")
        for _ in range(100):
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGTERM)
            pause.wait(0.001)
        self.assertIn(process.wait(5), (0, 128 + signal.SIGTERM))
