"""Fingerprints, certificates that are made, files that are judged, and the certificate of a running gateway."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import LogLevel, capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.load import load
from mayros.config.tls import TlsFiles, handed_over, own_trust, tls_files
from mayros.errors import ConfigError
from mayros.net.certificates import (
    Trust,
    WrongCertificate,
    check_fingerprint,
    fingerprint_of_file,
    parse_fingerprint,
    pem_blocks,
    tls_problem,
    with_colons,
)
from mayros.net.tls import Unusable, serve
from mayros.net.x509 import about, checked_name, self_signed
from mayros.ops.certificates import Certificates
from mayros.ops.reload import POLL_SECONDS, Reloader
from tests.certs import Authority, Pair, pair
from tests.test_reload import ReloadCase

NOW = datetime.datetime.now(datetime.UTC)
HEX = "0123456789abcdef" * 4


class FingerprintTests(SynchronousTestCase):
    """By which a certificate is known again."""

    @given(st.binary(min_size=32, max_size=32), st.booleans(), st.booleans())
    def test_ways_to_write_one(self, digest: bytes, upper: bool, colons: bool) -> None:
        """Capitals, small letters, colons or none, what openssl prints before it: all the same."""
        digits = digest.hex()
        text = with_colons(digits) if colons else digits
        text = text.upper() if upper else text.lower()
        for before in ("", "sha256:", "SHA-256:", "SHA256 Fingerprint=", "  "):
            self.assertEqual(digits, parse_fingerprint(before + text))

    def test_what_is_none(self) -> None:
        """Another length (SHA-1), other characters, colons elsewhere."""
        for text in ("", HEX[:40], HEX + "00", "g" + HEX[1:], "0:" + HEX, HEX.replace("a", "a:"), "md5:" + HEX, f"{HEX}\n{HEX}"):
            self.assertRaises(ValueError, parse_fingerprint, text)

    def test_a_file(self) -> None:
        """The first certificate of a file is the server's own; openssl's fingerprint is ours."""
        folder = Path(self.mktemp())
        one, two = pair(folder, name="one-"), pair(folder, name="two-")
        both = folder / "both.pem"
        both.write_bytes(b"Subject: somebody\n" + one.certificate.read_bytes() + two.certificate.read_bytes())
        self.assertEqual(one.fingerprint, fingerprint_of_file(str(both)))
        self.assertEqual(2, len(pem_blocks(both.read_bytes())))
        self.assertEqual(one.fingerprint, about(both.read_bytes()).fingerprint)
        for text in (b"", b"junk", one.key.read_bytes(), b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n"):
            both.write_bytes(text)
            self.assertRaises(ValueError, fingerprint_of_file, str(both))
        self.assertRaises(OSError, fingerprint_of_file, str(folder / "none"))

    def test_another_certificate(self) -> None:
        """The error names both fingerprints, or that there was none."""
        check_fingerprint("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", b"")
        error = self.assertRaises(WrongCertificate, check_fingerprint, HEX, b"")
        for digits in (HEX, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"):
            self.assertIn(with_colons(digits), str(error))
        self.assertIn("no certificate", str(self.assertRaises(WrongCertificate, check_fingerprint, HEX, None)))

    def test_why_a_handshake_failed(self) -> None:
        """OpenSSL's list becomes words; what is no failure of TLS is none."""
        self.assertEqual("TLS: certificate verify failed", tls_problem(Exception([("SSL routines", "", "certificate verify failed")])))
        self.assertEqual("TLS: the certificate is for another host", tls_problem(Exception([object()])))
        self.assertEqual("TLS: the handshake failed", tls_problem(Exception([])))
        for error in (None, Exception(), ConnectionResetError(104, "reset"), Exception("text")):
            self.assertIsNone(tls_problem(error))


class SelfSignedTests(SynchronousTestCase):
    """What `mayros gateway cert` makes."""

    def test_what_it_says(self) -> None:
        """ECDSA P-256, for these hosts and days, a server's, no authority."""
        key, pem = self_signed(["gw.example", "127.0.0.1", "::1", "gw.example"], 397, NOW)
        made, private = x509.load_pem_x509_certificate(pem), serialization.load_pem_private_key(key, None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self.assertEqual("secp256r1", private.curve.name)
        self.assertEqual(private.public_key(), made.public_key())
        told = about(pem)
        self.assertEqual(("gw.example", "127.0.0.1", "::1"), told.names)
        self.assertEqual(datetime.timedelta(days=397, hours=1), made.not_valid_after_utc - made.not_valid_before_utc)
        self.assertFalse(made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca)
        self.assertNotEqual(about(self_signed(["gw.example"], 1, NOW)[1]).fingerprint, told.fingerprint)
        self.assertEqual(
            ("Mayros Gateway",), tuple(one.value for one in x509.load_pem_x509_certificate(self_signed(["a" * 63 + ".example"], 1, NOW)[1]).subject)
        )

    def test_names_of_hosts(self) -> None:
        """Names, wildcards, addresses, other alphabets; nothing that could be a URL or another field."""
        good = {
            "GW.Example.": "gw.example",
            "*.example.com": "*.example.com",
            "[::1]": "::1",
            "::0001": "::1",
            "bücher.example": "xn--bcher-kva.example",
        }
        for text, name in good.items():
            self.assertEqual(name, checked_name(text))
        for text in ("", "a b", "https://gw", "gw:443", "*", "a.*.b", "-a", "a" * 64, "x." * 130 + "x", "a\0b", "..", "ü" * 70):
            self.assertRaises(ValueError, checked_name, text)


class ServeTests(SynchronousTestCase):
    """The files, as a start judges them."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.pair = pair(self.folder)

    def refused(self, which: str, *words: str, pair: Pair | None = None, **more: Any) -> None:
        """They cannot be used because of that file, which is named together with the reason."""
        chosen = pair or self.pair
        error = self.assertRaises(Unusable, serve, str(chosen.certificate), str(chosen.key), **more)
        self.assertEqual(which, error.which)
        for word in words:
            self.assertIn(word, f"{error.path}: {error}")

    def test_good(self) -> None:
        """A pair, a chain, both in one file."""
        self.assertEqual(self.pair.fingerprint, serve(str(self.pair.certificate), str(self.pair.key)).about.fingerprint)
        chain = Authority(self.folder).sign("gw", server=True)
        self.assertEqual(chain.fingerprint, serve(str(chain.certificate), str(chain.key)).about.fingerprint)
        self.pair.key.write_bytes(self.pair.key.read_bytes() + self.pair.certificate.read_bytes())
        serve(str(self.pair.key), str(self.pair.key))

    def test_a_key_that_others_read(self) -> None:
        """Is refused for each bit, and said how to mend it. Where a service manager hands files over, its group's bits are not others."""
        for mode in (0o640, 0o604, 0o620, 0o644):
            self.pair.key.chmod(mode)
            self.refused("key", str(self.pair.key), f"mode {mode:o}", "chmod 600")
        self.pair.key.chmod(0o440)
        serve(str(self.pair.certificate), str(self.pair.key), handed=str(self.folder))
        self.refused("key", "mode 440", handed=str(self.folder / "elsewhere"))
        self.pair.key.chmod(0o444)
        self.refused("key", "mode 444", handed=str(self.folder))

    def test_what_is_no_key(self) -> None:
        """Another one's key, a locked one, junk, a missing one, a FIFO."""
        other = pair(self.folder, name="other-")
        self.refused("key", str(other.key), str(self.pair.certificate), "not the key of", pair=Pair(self.pair.certificate, other.key))
        private = serialization.load_pem_private_key(self.pair.key.read_bytes(), None)
        locked = serialization.BestAvailableEncryption(b"words")
        self.pair.key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked))
        self.refused("key", "passphrase")
        self.pair.key.write_bytes(b"junk")
        self.refused("key", "no key in PEM")
        self.pair.key.write_bytes(b"x" * (2 << 20))
        self.refused("key", "larger than")
        self.pair.key.unlink()
        self.refused("key", "No such file")
        os.mkfifo(self.pair.key, 0o600)
        self.refused("key", "not a regular file")

    def test_what_is_no_certificate(self) -> None:
        """Junk, a broken one, a missing one; the same of the authority's."""
        broken = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
        path = self.folder / "bad.pem"
        for data, word in ((b"junk", "no certificate in PEM"), (broken, "cannot be read"), (None, "No such file")):
            path.unlink(missing_ok=True)
            if data is not None:
                path.write_bytes(data)
            self.refused("certificate", word, pair=Pair(path, self.pair.key))
            self.refused("ca", word, ca=str(path))


class WhereTests(SynchronousTestCase):
    """Where the files are."""

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.folder.mkdir()
        (self.folder / "mayros.json").touch()

    def tls(self, text: str) -> Any:
        loaded = load(str(self.folder / "mayros.json"), {"HOME": "/home/x"}, state_dir=str(self.folder), data=text.encode())
        return loaded.config.gateway, loaded.warnings

    def test_paths(self) -> None:
        """Relative ones are below the state directory; without any it is the pair of `mayros gateway cert`."""
        state = str(self.folder)
        gateway, _ = self.tls('{gateway: {tls: {enabled: true, certPath: "a.pem", keyPath: "/k.pem", caPath: "ca/c.pem"}}}')
        self.assertEqual(TlsFiles(f"{state}/a.pem", "/k.pem", f"{state}/ca/c.pem"), tls_files(gateway.tls, state))
        gateway, _ = self.tls("{gateway: {tls: {enabled: true}}}")
        self.assertEqual(TlsFiles(f"{state}/tls/cert.pem", f"{state}/tls/key.pem", made=True), tls_files(gateway.tls, state))
        self.assertEqual("/run/c", handed_over({"CREDENTIALS_DIRECTORY": "/run/c/"}))
        self.assertIsNone(handed_over({"CREDENTIALS_DIRECTORY": "run"}))

    def test_what_makes_no_sense(self) -> None:
        """Is an error that names the key: half a pair, blank paths, a fingerprint that is none or that nothing can have."""
        for text, path in (
            ('tls: {enabled: true, certPath: "c"}', "gateway.tls.keyPath"),
            ('tls: {enabled: true, keyPath: "k"}', "gateway.tls.certPath"),
            ('tls: {enabled: true, certPath: " ", keyPath: "k"}', "gateway.tls.certPath"),
            ('tls: {enabled: true, caPath: "a\\u0000"}', "gateway.tls.caPath"),
            ('remote: {tlsFingerprint: "ab"}', "gateway.remote.tlsFingerprint"),
            (f'remote: {{url: "ws://gw", tlsFingerprint: "{HEX}"}}', "gateway.remote.tlsFingerprint"),
        ):
            error = self.assertRaises(ConfigError, self.tls, f"{{gateway: {{{text}}}}}")
            self.assertIn(f": {path}: ", str(error))
        for name in ("certPath", "keyPath", "caPath"):
            self.assertEqual(
                [f"gateway.tls.{name}: has no effect while gateway.tls.enabled is not true"], self.tls(f'{{gateway: {{tls: {{{name}: "c"}}}}}}')[1]
            )
        self.tls(f'{{gateway: {{remote: {{url: "wss://gw", tlsFingerprint: "{with_colons(HEX)}"}}}}}}')

    def test_whom_commands_trust(self) -> None:
        """The certificate of the file, and with caPath they show it too; a file that cannot be read is named, with what to do."""
        gateway, _ = self.tls('{gateway: {tls: {enabled: true, caPath: "ca.pem"}}}')
        error = self.assertRaises(ConfigError, own_trust, gateway.tls, str(self.folder))
        self.assertIn("tls/cert.pem: No such file or directory (run `mayros gateway cert`)", str(error))
        made = pair(self.folder / "tls")
        self.assertEqual(Trust(made.fingerprint, (str(made.certificate), str(made.key))), own_trust(gateway.tls, str(self.folder)))
        self.assertEqual(Trust(made.fingerprint), own_trust(self.tls("{gateway: {tls: {enabled: true}}}")[0].tls, str(self.folder)))
        self.assertIsNone(own_trust(self.tls("{}")[0].tls, str(self.folder)))


class CertificatesTests(SynchronousTestCase):
    """The certificate of a running gateway."""

    now_ms = int(NOW.timestamp() * 1000)

    def setUp(self) -> None:
        self.folder = Path(self.mktemp()).absolute()
        self.pair = pair(self.folder)
        self.asked = 0

    def start(self, **more: Any) -> Certificates:
        return Certificates(TlsFiles(str(self.pair.certificate), str(self.pair.key), **more), self.in_thread, lambda: self.now_ms)

    def in_thread(self, function: Any, *args: Any) -> Deferred[Any]:
        self.asked += 1
        return maybeDeferred(function, *args)

    def test_renewed(self) -> None:
        """New files are loaded once they have stayed as they are from one look to the next, and once; what is connected keeps its own."""
        certificates = self.start()
        before, kept = certificates.current, certificates.serverConnectionForTLS(None)  # type: ignore[arg-type]
        for _ in range(3):
            certificates.look()
        self.assertEqual(0, self.asked)
        pair(self.folder)
        certificates.look()
        self.assertEqual((0, before), (self.asked, certificates.current))
        with capturedLogs() as said:
            certificates.look()
        self.assertEqual((1, self.pair.fingerprint), (self.asked, certificates.current.about.fingerprint))
        self.assertIn(with_colons(self.pair.fingerprint), said[0]["fingerprint"])
        for _ in range(3):
            certificates.look()
        self.assertEqual(1, self.asked)
        fresh = certificates.serverConnectionForTLS(None)  # type: ignore[arg-type]
        self.assertIsNot(kept.get_context(), fresh.get_context())

    def test_half_of_a_renewal(self) -> None:
        """A key without its certificate changes nothing and is told of; with the certificate all is well."""
        certificates, other = self.start(), pair(self.folder, name="other-")
        before = certificates.current.about
        other.key.replace(self.pair.key)
        with capturedLogs() as said:
            certificates.look()
            certificates.look()
        self.assertEqual(before, certificates.current.about)
        self.assertIn(f"gateway.tls.keyPath: {self.pair.key}: it is not the key of", certificates.current.problem)
        self.assertEqual([LogLevel.error], [event["log_level"] for event in said])
        for _ in range(3):
            certificates.look()
        self.assertEqual(1, self.asked)
        other.certificate.replace(self.pair.certificate)
        certificates.look()
        certificates.look()
        self.assertEqual((self.pair.fingerprint, None), (certificates.current.about.fingerprint, certificates.current.problem))

    def test_gone_and_back(self) -> None:
        """A file that is missing for a while is no end."""
        certificates = self.start()
        aside = self.pair.key.rename(self.folder / "aside")
        certificates.reload()
        self.assertIn("No such file", certificates.current.problem or "")
        aside.rename(self.pair.key)
        certificates.look()
        certificates.look()
        self.assertIsNone(certificates.current.problem)

    def test_mended_in_place(self) -> None:
        """What an error told to do is noticed too, although the content and its time are the same: chmod."""
        certificates = self.start()
        self.pair.key.chmod(0o644)
        certificates.look()
        certificates.look()
        self.assertIn("chmod 600", certificates.current.problem or "")
        self.pair.key.chmod(0o600)
        certificates.look()
        certificates.look()
        self.assertIsNone(certificates.current.problem)

    def test_one_at_a_time(self) -> None:
        """While the files are read, they are not read again."""
        certificates = self.start()
        waiting: Deferred[Any] = Deferred()
        self.patch(certificates, "_in_thread", lambda *_: waiting)
        certificates.reload()
        certificates.reload()
        self.assertEqual(0, self.asked)
        waiting.errback(OSError("broken"))
        self.assertEqual(1, len(self.flushLoggedErrors(OSError)))
        self.patch(certificates, "_in_thread", self.in_thread)
        certificates.reload()
        self.assertEqual(1, self.asked)

    def test_a_bad_start(self) -> None:
        """Raises, with the key path and what to do; the pair of `mayros gateway cert` with that command."""
        self.pair.key.chmod(0o644)
        self.assertIn("gateway.tls.keyPath: ", str(self.assertRaises(ConfigError, self.start)))
        self.pair.certificate.unlink()
        error = self.assertRaises(ConfigError, self.start, made=True)
        self.assertEqual((78, True), (error.status, str(error).endswith("No such file or directory (run `mayros gateway cert`)")))
        self.assertNotIn("gateway cert", str(self.assertRaises(ConfigError, self.start)))

    def test_not_valid_now(self) -> None:
        """An expired one is shown and warned about; clients judge it."""
        for offset, words in ((31 * 86_400_000, "has expired"), (-86_400_000, "is not valid yet")):
            self.now_ms = CertificatesTests.now_ms + offset
            with capturedLogs() as said:
                self.start()
            self.assertEqual([words], [event["when"] for event in said])


class Looked:
    """Stands for the certificates of a gateway."""

    def __init__(self) -> None:
        self.looks = self.reloads = 0

    def look(self) -> None:
        self.looks += 1

    def reload(self) -> None:
        self.reloads += 1


class AlongTests(ReloadCase):
    """Certificates are looked at with the configuration."""

    def begin(self, mode: str) -> Looked:
        certificates = Looked()
        self.start(mode=mode)
        self.reloader.stop()
        self.reloader = Reloader(self.control, self.clock, certificates=certificates)
        self.reloader.start()
        return certificates

    def test_in_each_mode(self) -> None:
        """Twice a second, and with SIGHUP; `off` is about the configuration alone."""
        for mode in ("hot", "off"):
            certificates = self.begin(mode)
            for _ in range(4):
                self.clock.advance(POLL_SECONDS)
            self.assertEqual((4, 0), (certificates.looks, certificates.reloads))
            self.reloader.hangup()
            self.assertEqual(1, certificates.reloads)
            for _ in range(50):
                self.reloader.hangup()
            self.wait(3)
            self.assertEqual(2, certificates.reloads)
            self.reloader.stop()
