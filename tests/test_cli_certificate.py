"""`mayros gateway cert`, and whose certificate commands trust."""

from __future__ import annotations

import json
import os
import socket
import ssl
import stat
import tarfile
import threading
from pathlib import Path
from typing import Any

from click.testing import Result

from mayros.cli.host import Host
from mayros.cli.place import Place, target
from mayros.cli.status import screen
from mayros.net.certificates import Trust, WrongCertificate, fingerprint_of_file, with_colons
from mayros.net.tls import serve
from mayros.net.x509 import about
from mayros.ops.checks import files, machine
from mayros.ws.conversation import CallFailed
from tests.certs import Authority, Pair, pair
from tests.test_cli import CommandLine
from tests.test_cli_gateway import GatewayCase
from tests.test_cli_service import ServiceCase
from tests.test_doctor import CheckCase

PIN = "0123456789abcdef" * 4
DAY_MS = 86_400_000


class CertTests(CommandLine):
    """Making one."""

    def good(self, *args: str) -> str:
        result: Result = self.mayros("gateway", "cert", *args)
        self.assertEqual(0, result.exit_code, result.output)
        return result.stdout

    def mode(self, path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    def test_made(self) -> None:
        """In the state directory, which may be new: the key is the owner's alone, the gateway takes both, and the output says all that follows."""
        said = self.good("--host", "gw.example", "--host", "192.0.2.7")
        folder = self.state / "tls"
        certificate, key = folder / "cert.pem", folder / "key.pem"
        self.assertEqual((0o644, 0o600, 0o700), (self.mode(certificate), self.mode(key), self.mode(folder)))
        told = serve(str(certificate), str(key)).about
        self.assertEqual("gw.example", told.names[0])
        self.assertLessEqual({"192.0.2.7", "localhost", "127.0.0.1", "::1"}, set(told.names))
        self.assertAlmostEqual(397 * DAY_MS + 3_600_000, told.ends_ms - told.begins_ms, delta=2_000)
        for words in (str(certificate), str(key), with_colons(told.fingerprint), f"--tls-fingerprint {told.fingerprint}", "wss://gw.example:18789/"):
            self.assertIn(words, said)
        self.assertIn("mayros config set gateway.tls.enabled true", said)
        self.assertNotIn("certPath", said)
        self.assertEqual(0, self.mayros("setup").exit_code)  # it is still a state directory of ours
        # The name of a machine may lead to an address that a gateway on loopback does not listen on.
        self.assertIn("https://localhost:18789/healthz", self.good("--force"))
        self.write({"gateway": {"mode": "local", "bind": "lan"}})
        self.assertIn(f"https://{about(certificate.read_bytes()).names[0]}:18789/healthz", self.good("--show"))

    def test_never_over_another(self) -> None:
        """Not without --force, also where there is but half of one; with it the modes are the right ones again."""
        self.good("--days", "10")
        folder = self.state / "tls"
        before = fingerprint_of_file(str(folder / "cert.pem"))
        self.assertRefused(self.mayros("gateway", "cert"), 1, "cert.pem and ", "key.pem exist: --force")
        self.assertEqual(before, fingerprint_of_file(str(folder / "cert.pem")))
        (folder / "key.pem").chmod(0o644)
        self.good("--force")
        self.assertEqual(0o600, self.mode(folder / "key.pem"))
        self.assertNotEqual(before, serve(str(folder / "cert.pem"), str(folder / "key.pem")).about.fingerprint)
        (folder / "cert.pem").unlink()
        self.assertRefused(self.mayros("gateway", "cert"), 1, "key.pem exists: --force")
        self.assertEqual(["key.pem"], os.listdir(folder))

    def test_links(self) -> None:
        """What a link leads to (certbot's files, anybody's) is not written over, nor a key put there."""
        made = pair(self.home / "elsewhere")
        folder = self.state / "tls"
        folder.mkdir(parents=True)
        (folder / "cert.pem").symlink_to(made.certificate)
        (folder / "key.pem").symlink_to(self.home / "dangling")
        before = made.certificate.read_bytes()
        for force in ((), ("--force",)):
            self.assertRefused(self.mayros("gateway", "cert", *force), 1, "is a link to", str(made.certificate))
        self.assertEqual(before, made.certificate.read_bytes())
        self.assertFalse((self.home / "dangling").exists())

    def test_elsewhere(self) -> None:
        """--out says how the configuration names it."""
        said = self.good("--out", str(self.home / "a folder"))
        self.assertIn(f"mayros config set gateway.tls.keyPath '{self.home}/a folder/key.pem'", said)
        self.assertFalse(self.state.exists())

    def test_bad_names(self) -> None:
        """Are wrong usage, and nothing is written."""
        for name in ("https://gw", "gw:1", "", "a b", "-x"):
            self.assertRefused(self.mayros("gateway", "cert", "--host", name), 2, "--host")
        self.assertRefused(self.mayros("gateway", "cert", *(f"--host=h{n}" for n in range(101))), 2, "at most 100")
        self.assertEqual(2, self.mayros("gateway", "cert", "--days", "0").exit_code)
        self.assertFalse(self.state.exists())

    def test_another_programs_directory(self) -> None:
        """Nothing is written there."""
        self.state.mkdir()
        (self.state / "openclaw.json").touch()
        self.assertRefused(self.mayros("gateway", "cert"), 1, "Nothing was written")
        self.assertEqual(["openclaw.json"], os.listdir(self.state))

    def test_show(self) -> None:
        """The one that the configuration means, without making any; one that cannot be read is said with what to do."""
        self.assertRefused(self.mayros("gateway", "cert", "--show"), 1, "run `mayros gateway cert`")
        for more in (("--force",), ("--days", "5")):
            self.assertRefused(self.mayros("gateway", "cert", "--show", *more), 2, "--show")
        made = pair(self.home / "elsewhere")
        self.write({"gateway": {"tls": {"enabled": True, "certPath": str(made.certificate), "keyPath": str(made.key)}}})
        self.assertIn("takes up a new one by itself", self.good("--show"))
        told = json.loads(self.good("--show", "--json"))
        self.assertEqual((str(made.certificate), made.fingerprint), (told["certificate"], told["fingerprint"]))
        self.assertEqual(about(made.certificate.read_bytes()).ends_ms, told["expiresAtMs"])
        made.certificate.write_text("nothing")
        self.assertRefused(self.mayros("gateway", "cert", "--show"), 1, "no certificate in PEM")


class TrustTests(GatewayCase):
    """Whose certificate a command trusts, before it sends anything."""

    def put(self, **gateway: Any) -> None:
        self.write({"gateway": {"mode": "local", "port": 4444, "auth": {"token": "a-token-of-the-file"}, **gateway}})

    def trusted(self, *args: str) -> tuple[str, Trust | None]:
        """Where a command connects, and whom it trusts there."""
        self.gateway.final = {"ok": True}
        self.good("gateway", "health", *args)
        call = self.gateway.calls[-1]
        return call["url"], call.get("trust")

    def test_the_own_gateway(self) -> None:
        """With TLS: wss, and the certificate of the configured file, which is shown too where clients need one. Without: as ever."""
        self.assertEqual(("ws://127.0.0.1:4444/", None), self.trusted())
        made = pair(self.state / "tls")
        self.put(tls={"enabled": True})
        self.assertEqual(("wss://127.0.0.1:4444/", Trust(made.fingerprint)), self.trusted())
        self.assertEqual(("wss://127.0.0.1:4444/", Trust(PIN)), self.trusted("--tls-fingerprint", with_colons(PIN)))
        self.put(tls={"enabled": True, "caPath": "ca.pem"})
        self.assertEqual(Trust(made.fingerprint, (str(made.certificate), str(made.key))), self.trusted()[1])
        made.certificate.unlink()
        self.assertRefused(self.mayros("gateway", "health"), 78, "gateway.tls.certPath", "run `mayros gateway cert`")

    def test_gateways_elsewhere(self) -> None:
        """The option, else what gateway.remote says of that very gateway; else the system's authorities."""
        self.put(remote={"url": "wss://gw.example:8443/", "tlsFingerprint": f"SHA256:{PIN}"})
        for url, trust in (
            ("wss://gw.example:8443", Trust(PIN)),
            ("wss://GW.example:8443/", Trust(PIN)),
            ("wss://gw.example/", None),
            ("wss://other.example:8443/", None),
            ("ws://gw.example:8443/", None),
            ("unix:/run/gw.sock", None),
        ):
            self.assertEqual((url, trust), self.trusted("--url", url))
        self.assertEqual(Trust("ab" * 32), self.trusted("--url", "wss://gw.example:8443", "--tls-fingerprint", "AB" * 32)[1])
        self.put(mode="remote", remote={"url": "wss://gw.example/", "token": "t" * 20, "tlsFingerprint": PIN})
        self.assertEqual(("wss://gw.example/", Trust(PIN)), self.trusted())
        self.put(remote={"tlsFingerprint": PIN})
        self.assertEqual(Trust(PIN), self.trusted("--url", "wss://any.example")[1])

    def test_wrong_usage(self) -> None:
        """What is no fingerprint, and one for a URL without TLS: nothing is connected."""
        for args in (("--tls-fingerprint", "ab"), ("--tls-fingerprint", PIN, "--url", "ws://gw"), ("--tls-fingerprint", PIN)):
            self.assertRefused(self.mayros("gateway", "health", *args), 2, "fingerprint")
        self.assertEqual([], self.gateway.calls)

    def test_hints(self) -> None:
        """What to do stands behind the reason."""
        for reason, word in (
            ("it shows X; expected was Y", "--tls-fingerprint"),
            ("TLS: certificate verify failed", "--tls-fingerprint"),
            ("TLS: tlsv13 alert certificate required", "gateway.tls.caPath"),
            ("TLS: wrong version number", "gateway.tls"),
        ):
            self.gateway.final = CallFailed("UNAVAILABLE", f"Cannot speak to a gateway at wss://gw/: {reason}")
            self.assertRefused(self.mayros("gateway", "health", "--url", "wss://gw"), 1, reason, word)
        self.gateway.final = CallFailed("UNAVAILABLE", "The gateway closed the connection (1006): x.")
        self.assertRefused(self.mayros("gateway", "health", "--url", "ws://gw"), 1, "wss://")
        self.assertRefused(self.mayros("gateway", "health"), 1, "gateway.tls")

    def test_no_secret_shows(self) -> None:
        """In the repr of a target."""
        self.put(mode="remote", remote={"url": "wss://gw.example/", "token": "a-long-secret", "tlsFingerprint": PIN})
        self.assertEqual("<Target wss://gw.example/>", repr(target(Place(self.environ), None)))


class ScreenTests(CommandLine):
    """`mayros status`."""

    def line(self, tls: Any) -> list[str]:
        return [line for line in screen({"gateway": {"doors": {"tls": tls}}}, "wss://gw/") if line.startswith("certificate")]

    def test_the_certificate(self) -> None:
        """How long it is valid, and that new files cannot be used; no line without TLS."""
        self.assertEqual([], self.line(None))
        self.assertRegex(self.line({"expiresAtMs": 4_000_000_000_000})[0], r"valid for \d+d")
        self.assertIn("EXPIRED", self.line({"expiresAtMs": 1})[0])
        bad = self.line({"expiresAtMs": 1, "error": "gateway.tls.keyPath: \x1b[31m/k: no"})[0]
        self.assertIn("CANNOT BE LOADED AGAIN: gateway.tls.keyPath: [31m/k: no", bad)
        for strange in ({"expiresAtMs": "x"}, {"error": ["a"]}, [], 5):
            self.line(strange)


class ProbeTests(ServiceCase):
    """`mayros gateway status` of a gateway with TLS."""

    def test_https(self) -> None:
        """It is looked at over TLS, by its own certificate; without one the reason is told."""
        trusts: list[Any] = []
        self.machine.get = lambda host, port, path, trust: (trusts.append(trust), 200)[1]  # type: ignore[method-assign]
        self.write({"gateway": {"mode": "local", "tls": {"enabled": True}}})
        found = json.loads(self.mayros("gateway", "status", "--user", "--json").stdout)
        self.assertIn("run `mayros gateway cert`", found["probe"]["why"])
        made = pair(self.state / "tls")
        found = json.loads(self.mayros("gateway", "status", "--user", "--json").stdout)
        self.assertEqual((True, "https://127.0.0.1:18789/readyz"), (found["probe"]["ready"], found["probe"]["url"]))
        self.assertEqual([Trust(made.fingerprint)], trusts)
        # One that is installed is not looked at in the clear because its certificate cannot be read.
        self.assertEqual(0, self.mayros("gateway", "install", "--user").exit_code)
        self.machine.shows = {"ActiveState": "active"}
        made.certificate.unlink()
        found = json.loads(self.mayros("gateway", "status", "--user", "--json").stdout)
        self.assertEqual((False, None), (found["probe"]["ready"], found["probe"]["url"]))
        self.assertIn("run `mayros gateway cert`", found["probe"]["why"])
        self.assertEqual(1, len(trusts))


class Server:
    """Speaks TLS with one client, in a thread; `heard` is what it was told."""

    def __init__(self, made: Pair, ca: Path | None = None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(made.certificate, made.key)
        if ca is not None:
            context.load_verify_locations(ca)
            context.verify_mode = ssl.CERT_REQUIRED
        self._context, self.heard = context, b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._listener:
            raw, _ = self._listener.accept()
            try:
                with self._context.wrap_socket(raw, server_side=True) as connection:
                    self.heard = connection.recv(4096)
                    if self.heard:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            except OSError:
                raw.close()

    def end(self) -> bytes:
        self._thread.join(10)
        return self.heard


class LookTests(CommandLine):
    """A look at a port over TLS, on a real socket."""

    def test_get(self) -> None:
        """The right certificate is asked; a wrong one hears nothing. What there is to show is shown where clients need one."""
        made, authority = pair(self.home), Authority(self.home)
        host, shown = Host(booted=False), authority.sign("client")
        server = Server(made, authority.path)
        trust = Trust(made.fingerprint, (str(shown.certificate), str(shown.key)))
        self.assertEqual(200, host.get("127.0.0.1", server.port, "/readyz", trust))
        self.assertTrue(server.end().startswith(b"GET /readyz HTTP/1.1\r\n"))
        server = Server(made)
        error = self.assertRaises(WrongCertificate, host.get, "127.0.0.1", server.port, "/readyz", Trust(PIN))
        self.assertIn(with_colons(made.fingerprint), str(error))
        self.assertEqual(b"", server.end())


class ChecksTests(CheckCase):
    """What the doctor finds."""

    def test_the_usual_place(self) -> None:
        """The pair of `mayros gateway cert` is looked at where nothing else is named."""
        tls: dict[str, Any] = {"gateway": {"tls": {"enabled": True}}}
        self.assertFinds(files.certificate_valid, "tls.certificate-unusable", "critical", "mayros gateway cert", changes=tls)
        made = pair(self.state / "tls", days=20)
        self.assertFine(files.certificate_valid)
        self.assertFine(files.tls_key_private)
        other = pair(self.state / "other").key.rename(self.state / "other.pem")
        self.assertFinds(
            files.certificate_valid,
            "tls.certificate-unusable",
            "critical",
            "it is not the key of",
            changes={"gateway": {"tls": {"enabled": True, "certPath": str(made.certificate), "keyPath": str(other)}}},
        )
        self.put(tls)
        made.key.chmod(0o640)
        self.assertFine(files.certificate_valid)
        self.assertFinds(files.tls_key_private, "tls.key-readable-by-others", "critical", str(made.key))
        self.mended(files.tls_key_private, made.key, 0o600)
        pair(self.state / "tls", days=5)
        self.assertFinds(files.certificate_valid, "tls.certificate-expires", "warn", "mayros gateway cert --force")

    def test_the_port(self) -> None:
        """Is looked at over TLS."""
        self.put({"gateway": {"tls": {"enabled": True}}})
        made = pair(self.state / "tls")
        asked: list[Any] = []
        self.machine.get = lambda *args: (asked.append(args), 200)[1]  # type: ignore[method-assign]
        self.patch(machine, "_lock", lambda subject: (True, "7"))
        self.assertFine(machine.port_answers)
        self.assertEqual([("127.0.0.1", 18789, "/healthz", Trust(made.fingerprint))], asked)

    def test_another_certificate(self) -> None:
        """Is what the log knows of."""
        self.put({"gateway": {"tls": {"enabled": True}}})
        pair(self.state / "tls")

        def get(host: str, port: int, path: str, trust: Trust | None) -> int:
            raise WrongCertificate("it shows X; expected was Y")

        self.machine.get = get  # type: ignore[method-assign]
        self.patch(machine, "_lock", lambda subject: (True, "7"))
        self.assertFinds(machine.port_answers, "gateway.silent", "warn", "expected was Y", "mayros logs")

    def test_a_backup(self) -> None:
        """Has the pair in it; files elsewhere are named."""
        self.put({"gateway": {"tls": {"enabled": True, "caPath": str(self.home / "ca.pem")}}})
        pair(self.state / "tls")
        result = self.mayros("backup", str(self.home / "b.tar.gz"), "--json")
        self.assertEqual(0, result.exit_code, result.output)
        self.assertIn(f"of gateway.tls, {self.home}/ca.pem", json.loads(result.stdout)["leftOut"])
        with tarfile.open(self.home / "b.tar.gz") as archive:
            self.assertLessEqual({"state/tls/cert.pem", "state/tls/key.pem"}, set(archive.getnames()))
