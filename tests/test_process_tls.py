"""Real gateways with TLS: both doors, the commands, a renewal under load, what keeps one from starting, and sockets of a service manager."""

from __future__ import annotations

import http.client
import re
import shutil
import signal
import socket
import ssl
import tempfile
import threading
from pathlib import Path
from typing import Any

import openai
from websockets.sync.client import connect

from mayros.net.certificates import fingerprint, fingerprint_of_file, with_colons
from mayros.net.x509 import about
from tests.activation import HeldDaemon
from tests.certs import Authority, pair
from tests.daemon import TOKEN, Daemon, read_until
from tests.test_process import HELLO, Frames, ProcessCase, wait_for


class Secure(Daemon):
    """A gateway that is asked over TLS; any certificate is taken, and `seen` is the fingerprint of the last one."""

    seen = ""

    def context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context

    @property
    def certificate(self) -> Path:
        return self.state / "tls" / "cert.pem"

    def spawn(self, *options: str, cli: bool = False) -> Any:
        if not self.certificate.exists():
            self.state.mkdir(mode=0o700)
            pair(self.certificate.parent)
        return super().spawn(*options, cli=cli)

    def _connect(self) -> http.client.HTTPConnection:
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=10, context=self.context())
        connection.connect()
        self.seen = fingerprint(connection.sock.getpeercert(binary_form=True))
        return connection


class SecureHeld(Secure, HeldDaemon):
    """The same behind a port that a launcher holds."""


class ServeTests(ProcessCase):
    """`gateway.tls.enabled` and nothing else: the pair of `mayros gateway cert`."""

    def setUp(self) -> None:
        super().setUp()
        self.gateway = Secure(Path(self.mktemp()), self.upstream, {"tls": {"enabled": True}, "metrics": {"enabled": True}})
        self.addCleanup(self.gateway.kill)

    def run_mayros(self, status: int, *arguments: str) -> str:
        """What a command says that ends with this status."""
        done = self.gateway.mayros(*arguments)
        self.assertEqual(status, done.returncode, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def test_clients_and_commands(self) -> None:
        """The stock OpenAI client and a WebSocket client trust the file, with their host names checked; commands find their own gateway; a
        fingerprint is enough for others, a wrong one and an authority that nobody knows are refused."""
        gateway = self.gateway
        gateway.start()
        self.assertIn(f"https://127.0.0.1:{gateway.port}", gateway.log.read_text())
        trusting = ssl.create_default_context(cafile=str(gateway.certificate))
        trusting.verify_flags |= ssl.VERIFY_X509_STRICT
        client = openai.OpenAI(
            base_url=f"https://localhost:{gateway.port}/v1", api_key=TOKEN, max_retries=0, http_client=openai.DefaultHttpxClient(verify=trusting)
        )
        self.addCleanup(client.close)
        for _ in range(2):
            stream = client.chat.completions.create(model="mayros", messages=[{"role": "user", "content": "hi"}], stream=True)
            self.assertEqual("one two three", "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices))
        with connect(f"wss://localhost:{gateway.port}/", ssl=trusting) as socket_client:
            frames = Frames(socket_client)
            frames.connect("operator.admin", "operator.read", "operator.write")
            tls = frames.call("status", {})["gateway"]["doors"]["tls"]
            self.assertEqual((fingerprint_of_file(str(gateway.certificate)), "localhost" in tls["names"]), (tls["fingerprint"], True))
            # What a restart could not work with is refused while there is somebody to tell.
            changed = {"set": {"gateway.tls.certPath": "none.pem", "gateway.tls.keyPath": "none.key"}}
            refused = frames.call("config.change", changed, failed=True)
            self.assertIn("gateway.tls.certPath: ", refused["error"]["message"])
            frames.call("agent", {"message": "hi", "idempotencyKey": "one"})
            self.assertEqual("ok", frames.answer()["status"])
        ends = about(gateway.certificate.read_bytes()).ends_ms / 1000
        found = re.search(rb"\nmayros_tls_certificate_expiry_timestamp_seconds (.*)\n", gateway.request("GET", "/metrics")[1])
        self.assertEqual(ends, float(found[1]) if found else None)
        self.assertIn("certificate  valid for", self.run_mayros(0, "status"))
        (gateway.folder / "mayros.json").chmod(0o600)
        self.assertNotIn("gateway.silent", self.run_mayros(0, "doctor"))
        url = ("gateway", "health", "--url", f"wss://127.0.0.1:{gateway.port}")
        pin = with_colons(fingerprint_of_file(str(gateway.certificate)))
        self.assertIn("healthy", self.run_mayros(0, *url, "--tls-fingerprint", pin, "--token-file", self.token_file()))
        self.assertIn("certificate verify failed", self.run_mayros(1, *url))
        wrong = self.run_mayros(1, *url, "--tls-fingerprint", "ab" * 32, "--token-file", self.token_file())
        self.assertIn(pin, wrong)
        self.assertIn("AB:AB:AB", wrong)
        self.assertEqual(-signal.SIGTERM, gateway.stop())
        self.assertNotIn("Traceback", gateway.log.read_text())

    def token_file(self) -> str:
        path = self.gateway.folder / "token"
        path.write_text(TOKEN)
        return str(path)

    def test_renewal_under_load(self) -> None:
        """Again and again while clients ask: no request fails, each new certificate is shown soon, and a connection
        that is kept goes on."""
        gateway = self.gateway
        gateway.start()
        kept = http.client.HTTPSConnection("127.0.0.1", gateway.port, timeout=10, context=gateway.context())
        self.addCleanup(kept.close)
        failed: list[Any] = []
        answered: list[str] = []
        stopped = threading.Event()

        def ask() -> None:
            asker = Secure(gateway.folder, changes=None)
            asker.port = gateway.port
            while not stopped.is_set():
                try:
                    status, body = asker.request("POST", "/v1/chat/completions", HELLO)
                    answered.append(asker.seen)
                    if status != 200 or b"one two three" not in body:
                        failed.append((status, body))
                except OSError as error:
                    failed.append(error)

        threads = [threading.Thread(target=ask, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        self.addCleanup(stopped.set)
        for _ in range(3):
            wanted = pair(gateway.certificate.parent).fingerprint
            wait_for(lambda wanted=wanted: answered[-1:] == [wanted])
            kept.request("GET", "/healthz")
            self.assertEqual(200, self.read(kept))
        stopped.set()
        for thread in threads:
            thread.join(20)
        self.assertEqual(([], 4), (failed, len(set(answered))))

    @staticmethod
    def read(connection: http.client.HTTPSConnection) -> int:
        response = connection.getresponse()
        response.read()
        return response.status


class RefusedTests(ProcessCase):
    """What a gateway does not start with: status 78, and one line that names the key path and what to do."""

    def assertRefused(self, gateway: Daemon, *words: str, cli: bool = False) -> None:
        code, said = gateway.refused(cli=cli)
        self.assertEqual((78, 1, False), (code, said.count("\n"), "Traceback" in said), said)
        for word in words:
            self.assertIn(word, said)

    def test_refused(self) -> None:
        """No certificate yet; a key that others read; another one's key."""
        gateway = self.daemon(tls={"enabled": True})
        folder = gateway.state / "tls"
        self.assertRefused(gateway, "gateway.tls.certPath", "run `mayros gateway cert`", cli=True)
        made = pair(folder)
        made.key.chmod(0o640)
        self.assertRefused(gateway, "gateway.tls.keyPath", str(made.key), "chmod 600")
        pair(folder, name="other-").key.replace(made.key)
        self.assertRefused(gateway, "gateway.tls.keyPath", str(made.key), str(made.certificate))


class HeldTests(ProcessCase):
    """Sockets of a service manager, and certificates of clients."""

    def test_handed_over(self) -> None:
        """TCP speaks TLS and wants a certificate of a client; what comes by a unix socket does not. Commands on this machine show the gateway's own.
        A renewal that went wrong is told to the manager, with SIGHUP at once, and changes nothing."""
        folder = Path(self.mktemp()).absolute()
        authority = Authority(folder / "ca")
        gateway = SecureHeld(folder, self.upstream, {"tls": {"enabled": True, "caPath": str(authority.path), "hsts": True}})
        self.addCleanup(gateway.close)
        short = tempfile.mkdtemp()  # short: the path of a unix socket has at most 107 bytes
        self.addCleanup(shutil.rmtree, short)
        unix = socket.socket(socket.AF_UNIX)
        unix.bind(f"{short}/s")
        unix.listen(8)
        gateway.sockets["unix"] = unix
        gateway.config["gateway"]["port"] = gateway.port
        gateway.start()
        with self.assertRaises(OSError):
            gateway.request("GET", "/healthz")
        shown = authority.sign("client")
        context = gateway.context()
        context.load_cert_chain(shown.certificate, shown.key)
        gateway.context = lambda: context  # type: ignore[method-assign]
        self.assertEqual(200, gateway.request("POST", "/v1/chat/completions", HELLO)[0])
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{short}/s")
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            answer = read_until(client, b"true")
        self.assertIn(b"200 OK", answer)
        self.assertNotIn(b"Strict-Transport-Security", answer)
        own = gateway.mayros("gateway", "health")
        self.assertEqual((0, ""), (own.returncode, own.stderr))
        stranger = gateway.mayros("gateway", "health", "--url", f"wss://127.0.0.1:{gateway.port}", "--tls-fingerprint", gateway.seen)
        self.assertEqual((1, True), (stranger.returncode, "gateway.tls.caPath" in stranger.stderr), stranger.stderr)
        before = gateway.seen
        gateway.certificate.write_text("half a cert")
        assert gateway.process is not None
        gateway.process.send_signal(signal.SIGHUP)
        wait_for(lambda: "the certificate of before stays in use" in gateway.log.read_text())
        self.assertEqual((200, before), (gateway.request("GET", "/healthz")[0], gateway.seen))
        gateway.process.send_signal(signal.SIGHUP)
        while "the certificate cannot be used: gateway.tls.certPath" not in (told := gateway.manager.wait("STATUS"))["STATUS"]:
            self.assertNotIn("Traceback", str(told))
        self.assertNotIn("Traceback", gateway.log.read_text())
