"""Devices without a network: what is signed, who is paired and how, what becomes of tokens. Also the fake of the store."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given, settings, strategies
from twisted.internet.defer import Deferred, succeed
from twisted.trial.unittest import SynchronousTestCase

from mayros.core import devices as devices_module
from mayros.core.audit_ports import AuditEntry
from mayros.core.auth import grants, lacking
from mayros.core.device_ports import DeviceRecord, DeviceToken, PairingRequest
from mayros.core.device_tokens import KEEP
from mayros.core.devices import MAX_REQUESTS, REQUEST_TTL_MS, Applicant, Decision, Devices
from mayros.core.identity import Signed, decode, device_id, encode, raw_key, verified
from mayros.errors import InvalidRequest, StorageUnavailable, Unavailable

READ, WRITE, ADMIN, PAIRING = "operator.read", "operator.write", "operator.admin", "operator.pairing"
Value = TypeVar("Value")


class FakeDeviceStore:
    """A store in memory. `hold` keeps writes waiting until `let_go`; `failing` refuses them."""

    def __init__(self) -> None:
        self.devices: dict[str, DeviceRecord] = {}
        self.tokens: dict[bytes, DeviceToken] = {}
        self.requests: dict[str, PairingRequest] = {}
        self.audit: list[AuditEntry] = []
        self.failing = self.hold = False
        self.writes = 0
        self._held: list[Deferred[None]] = []

    def _write(self, audit: AuditEntry | None = None) -> Deferred[None]:
        if self.failing:
            raise StorageUnavailable
        self.writes += 1
        if audit is not None:
            self.audit.append(audit)
        if not self.hold:
            return succeed(None)
        self._held.append(Deferred())
        return self._held[-1]

    def let_go(self) -> None:
        """What waits is on disk now."""
        self.hold, held = False, self._held
        self._held = []
        for one in held:
            one.callback(None)

    async def load(self) -> Any:
        await self._write()
        self.writes -= 1
        return list(self.devices.values()), list(self.tokens.values()), list(self.requests.values())

    async def save_device(self, record: DeviceRecord, audit: AuditEntry | None = None) -> None:
        await self._write(audit)
        self.devices[record.device_id] = record

    async def delete_device(self, device_id: str, audit: AuditEntry | None = None) -> None:
        await self._write(audit)
        self.devices.pop(device_id, None)
        self.tokens = {digest: token for digest, token in self.tokens.items() if token.device_id != device_id}
        self.requests = {key: request for key, request in self.requests.items() if request.device_id != device_id}

    async def save_token(self, token: DeviceToken, audit: AuditEntry | None = None) -> None:
        await self._write(audit)
        self.tokens[token.token_hash] = token

    async def delete_token(self, token_hash: bytes) -> None:
        await self._write()
        self.tokens.pop(token_hash, None)

    async def save_request(self, request: PairingRequest) -> None:
        await self._write()
        self.requests = {key: one for key, one in self.requests.items() if one.device_id != request.device_id}
        self.requests[request.request_id] = request

    async def delete_request(self, request_id: str, audit: AuditEntry | None = None) -> None:
        await self._write(audit)
        self.requests.pop(request_id, None)


class Key:
    """A device of the tests: its key pair, and signatures made with it."""

    def __init__(self, seed: int) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)
        self.public = self._private.public_key()
        self.raw = self.public.public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.id = hashlib.sha256(self.raw).hexdigest()
        self.text = encode(self.raw)
        self.pem = self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def sign(self, line: bytes) -> str:
        return encode(self._private.sign(line))


class IdentityTests(SynchronousTestCase):
    """Keys, ids and the signed line."""

    def test_a_real_signature(self) -> None:
        """A connect that was recorded on the wire (v2) verifies, and does not when anything in it is changed."""
        public = "cPS0tazONmjqJ01F8lEH4A4IVJ_QiSmEeW2MWL7YcBs"
        signature = "pHN76Xo35i_I6ySqlEjwqfjnw98DqC89v6kDUo-v404L5aBKS1DuTZhvh5h0qy8mKmC_vD5IqKMlBHPeofdIDA"
        raw = raw_key(public)
        assert raw is not None
        self.assertEqual("139549d4e7344c6cf15e6eab74dbb09ea4ea350f5edae04ee8812b948463c80e", device_id(raw))
        good: dict[str, Any] = {
            "device_id": device_id(raw),
            "client_id": "gateway-client",
            "client_mode": "backend",
            "role": "operator",
            "scopes": (READ, WRITE, ADMIN),
            "signed_at_ms": 1795423727529,
            "token": "t",
            "nonce": "8182325f-3c65-48d2-a4db-88a8a2779c7d",
        }
        self.assertTrue(verified(raw, signature, [Signed(**good).line("v3"), Signed(**good).line("v2")]))
        self.assertFalse(verified(raw, signature, [Signed(**good).line("v3"), Signed(**good).line("v1")]))
        for name, value in (
            ("role", "node"),
            ("scopes", (WRITE, READ, ADMIN)),
            ("signed_at_ms", 1),
            ("token", ""),
            ("nonce", "x"),
            ("client_id", "cli"),
        ):
            self.assertFalse(verified(raw, signature, [Signed(**{**good, name: value}).line("v2")]), name)

    def test_the_three_lines(self) -> None:
        """Fields and their order; platform and device family are trimmed and lower case in v3, and only there."""
        signed = Signed("id", "cli", "cli", "operator", (WRITE, READ), 17, "tök|en", "n-1", "  MacOS\ufeff ", "iPad PRO É")
        start = "id|cli|cli|operator|operator.write,operator.read|17|tök|en"
        self.assertEqual(f"v1|{start}", signed.line("v1").decode())
        self.assertEqual(f"v2|{start}|n-1", signed.line("v2").decode())
        self.assertEqual(f"v3|{start}|n-1|macos|ipad pro É", signed.line("v3").decode())
        self.assertEqual("v3|id|cli|cli|node||0||||", Signed("id", "cli", "cli", "node", (), 0, "").line("v3").decode())
        self.assertNotIn("secret", repr(Signed("id", "cli", "cli", "node", (), 0, "secret")))

    def test_forms_of_a_key(self) -> None:
        """base64url, base64 with padding, PEM; the id is the same."""
        key = Key(1)
        forms = (key.text, base64.b64encode(key.raw).decode(), base64.urlsafe_b64encode(key.raw).decode(), key.pem, f" {key.text}\n")
        for text in forms:
            self.assertEqual(key.raw, raw_key(text))
        self.assertEqual(43, len(key.text))

    def test_what_is_no_key(self) -> None:
        """Nothing, too much, garbage, other kinds of keys: none, and no exception."""
        other = generate_private_key(SECP256R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        for text in (
            "",
            "=",
            "A" * 10_240,
            "é" * 43,
            encode(b"x" * 31),
            encode(b"x" * 33),
            "BEGIN",
            "-----BEGIN PUBLIC KEY-----",
            other,
            "\ud800",
            "A" * 42 + "!",
        ):
            self.assertIsNone(raw_key(text), text[:60])

    def test_what_is_no_signature(self) -> None:
        """A flipped bit, another length, garbage, another key, a key that is no point of the curve."""
        key, line = Key(1), b"line"
        good = key.sign(line)
        self.assertTrue(verified(key.raw, good, [b"other", line]))
        self.assertTrue(verified(key.raw, base64.b64encode(decode(good) or b"").decode(), [line]))
        flipped = bytes([(decode(good) or b"")[0] ^ 1]) + (decode(good) or b"")[1:]
        for bad in ("", "?", good[:-2], good + "AAAA", "A" * 10_240, encode(flipped), Key(2).sign(line)):
            self.assertFalse(verified(key.raw, bad, [line]), bad[:90])
        self.assertFalse(verified(b"\xff" * 32, good, [line]))
        self.assertFalse(verified(key.raw, good, []))

    @settings(max_examples=60, deadline=None)
    @given(
        strategies.lists(strategies.text(max_size=8), max_size=3),
        strategies.text(max_size=12),
        strategies.text(max_size=12),
        strategies.integers(0, 2**63),
        strategies.sampled_from(("v1", "v2", "v3")),
    )
    def test_any_fields_can_be_signed(self, scopes: list[str], token: str, platform: str, when: int, version: Any) -> None:
        """Whatever clients put into the fields, the line is what they join, and verifies."""
        key = Key(3)
        signed = Signed(key.id, "cli", "cli", "operator", scopes, when, token, "n", platform, "")
        line = signed.line(version)
        parts = [version, key.id, "cli", "cli", "operator", ",".join(scopes), str(when), token, "n"]
        self.assertTrue(line.decode().startswith("|".join(parts[: 8 if version == "v1" else 9])))
        self.assertTrue(verified(key.raw, key.sign(line), [line]))
        self.assertFalse(verified(key.raw, key.sign(line), [line + b"x"]))

    @settings(max_examples=60, deadline=None)
    @given(strategies.text(max_size=80))
    def test_any_text_can_come_as_a_key(self, text: str) -> None:
        """A key or none, never an exception."""
        self.assertIn(len(raw_key(text) or bytes(32)), (32,))
        self.assertFalse(verified(Key(1).raw, text, [b"x"]))

    def test_scopes(self) -> None:
        """admin is everything, write is read, the rest is literal."""
        self.assertTrue(grants((ADMIN,), PAIRING))
        self.assertTrue(grants((WRITE,), READ))
        self.assertFalse(grants((READ, PAIRING), WRITE))
        self.assertIsNone(lacking((WRITE,), (READ, WRITE)))
        self.assertEqual(PAIRING, lacking((WRITE,), (READ, PAIRING)))


class Listener:
    """Writes down what is told."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def requested(self, request: PairingRequest) -> None:
        self.heard.append(("requested", request.device_id, request.scopes))

    def resolved(self, request_id: str, device_id: str, decision: Decision, now_ms: int) -> None:
        self.heard.append(("resolved", device_id, decision))

    def ended(self, device_id: str, role: str | None) -> None:
        self.heard.append(("ended", device_id, role))


def applicant(*scopes: str, device: str = "d1", role: str = "operator", **fields: Any) -> Applicant:
    """A device that asks."""
    return Applicant(device, "key", role, scopes, **fields)


class Register(SynchronousTestCase):
    """A register over a fake store."""

    def setUp(self) -> None:
        self.store, self.listener, self.now = FakeDeviceStore(), Listener(), 1_000_000
        self.devices = self.open()

    def open(self) -> Devices:
        """The register as after a restart."""
        devices = Devices(self.store, lambda: self.now)
        devices.audience = self.listener
        self.do(devices.ready())
        return devices

    def do(self, work: Coroutine[Any, Any, Value]) -> Value:
        """The result of something that need not wait."""
        return self.successResultOf(Deferred.fromCoroutine(work))

    def fails(self, work: Coroutine[Any, Any, Any], kind: type[Exception]) -> str:
        """The message of something that fails."""
        return str(self.failureResultOf(Deferred.fromCoroutine(work), kind).value)

    def issued(self, *scopes: str, device: str = "d1", role: str = "operator") -> str:
        """A new token."""
        grant = self.do(self.devices.issue(device, role, scopes))
        assert grant is not None
        return grant.token

    def good(self, token: str, *scopes: str, device: str = "d1", role: str = "operator") -> bool:
        """Whether a token is taken."""
        return self.devices.check_token(device, role, scopes, token) is not None


class PairingTests(Register):
    """From unknown to paired."""

    def test_paired_at_once(self) -> None:
        """On this machine a device is paired by asking, and stays so after a restart."""
        self.assertEqual("not-paired", self.devices.problem("d1", "operator", (READ,)))
        self.do(self.devices.pair(applicant(READ, WRITE, platform="linux", client_id="cli", client_mode="cli")))
        self.assertEqual([("resolved", "d1", "approved")], self.listener.heard)
        for devices in (self.devices, self.open()):
            self.assertIsNone(devices.problem("d1", "operator", (READ,)))
            self.assertEqual("scope-upgrade", devices.problem("d1", "operator", (ADMIN,)))
            self.assertEqual("role-upgrade", devices.problem("d1", "node", ()))
            (record,) = devices.paired()
            self.assertEqual((("operator",), (READ, WRITE), 1_000_000), (record.roles, record.scopes, record.approved_ms))

    def test_asked_and_approved(self) -> None:
        """One request for each device; it grows with what is asked for, and then all of it is approved."""
        first = self.do(self.devices.ask(applicant(READ, display_name="Phone")))
        self.now += 1000
        second = self.do(self.devices.ask(applicant(WRITE, role="node")))
        self.assertEqual(first.request_id, second.request_id)
        self.assertEqual((("operator", "node"), (READ, WRITE), "Phone"), (second.roles, second.scopes, second.display_name))
        self.assertEqual([("requested", "d1", (READ,))], self.listener.heard)
        self.assertEqual(1, len(self.store.requests))
        record = self.do(self.devices.approve(first.request_id))
        self.assertEqual((("operator", "node"), (READ, WRITE)), (record.roles, record.scopes))
        self.assertEqual(([], {}), (list(self.devices.pending()), self.store.requests))
        self.assertEqual(("resolved", "d1", "approved"), self.listener.heard[-1])
        self.assertEqual("unknown requestId", self.fails(self.devices.approve(first.request_id), InvalidRequest))

    def test_rejected(self) -> None:
        """Rejected is forgotten; the device may ask again, under another id."""
        first = self.do(self.devices.ask(applicant(READ)))
        self.assertEqual("d1", self.do(self.devices.reject(first.request_id)).device_id)
        self.assertEqual(("resolved", "d1", "rejected"), self.listener.heard[-1])
        self.assertEqual("unknown requestId", self.fails(self.devices.reject(first.request_id), InvalidRequest))
        self.assertNotEqual(first.request_id, self.do(self.devices.ask(applicant(READ))).request_id)

    def test_requests_expire(self) -> None:
        """After five minutes, also across a restart; a device that keeps asking keeps its request, with few writes."""
        first = self.do(self.devices.ask(applicant(READ)))
        self.do(self.devices.ask(applicant(READ, device="d2")))
        for _ in range(50):
            self.now += 6_000
            self.do(self.devices.ask(applicant(READ)))
        self.assertLess(self.store.writes, 10)
        self.now += REQUEST_TTL_MS - 60_000
        self.assertEqual([first.request_id], [request.request_id for request in self.devices.pending()])
        self.assertEqual(1, len(self.store.requests))
        self.now += 60_001
        self.assertEqual([], list(self.open().pending()))
        self.assertEqual("unknown requestId", self.fails(self.devices.approve(first.request_id), InvalidRequest))

    def test_requests_are_bounded(self) -> None:
        """When there are too many, who asked longest ago is forgotten."""
        for number in range(MAX_REQUESTS + 2):
            self.do(self.devices.ask(applicant(READ, device=f"d{number}")))
        kept = {request.device_id for request in self.devices.pending()}
        self.assertEqual(MAX_REQUESTS, len(kept))
        self.assertEqual(MAX_REQUESTS, len(self.store.requests))
        self.assertNotIn("d0", kept)
        self.assertIn(f"d{MAX_REQUESTS + 1}", kept)

    def test_an_upgrade_keeps_what_there_was(self) -> None:
        """More scopes are added; a request for another role is marked as one of a known device, and is not approved by the way."""
        self.do(self.devices.pair(applicant(READ)))
        request = self.do(self.devices.ask(applicant(ADMIN, role="node")))
        self.assertTrue(request.is_repair)
        self.do(self.devices.pair(applicant(WRITE)))
        self.assertEqual("role-upgrade", self.devices.problem("d1", "node", ()))
        self.assertEqual("scope-upgrade", self.devices.problem("d1", "operator", (ADMIN,)))
        self.assertEqual(1, len(self.devices.pending()))
        self.do(self.devices.pair(applicant(ADMIN)))
        self.assertEqual(1, len(self.devices.pending()))

    def test_devices_are_bounded(self) -> None:
        """When there are too many, a new one is refused until some are removed; those that are known may still change."""
        self.patch(devices_module, "MAX_DEVICES", 2)
        for name in ("d1", "d2"):
            self.do(self.devices.pair(applicant(READ, device=name)))
        self.assertIn("2 devices are paired already", self.fails(self.devices.pair(applicant(READ, device="d3")), Unavailable))
        self.do(self.devices.pair(applicant(WRITE)))
        self.do(self.devices.remove("d2"))
        self.do(self.devices.pair(applicant(READ, device="d3")))

    def test_names_are_cut(self) -> None:
        """What a device says of itself is bounded and printable."""
        request = self.do(self.devices.ask(applicant(READ, display_name="a\nb\x1b[31m" + "x" * 500, platform="\x00")))
        self.assertEqual("ab[31m", (request.display_name or "")[:6])
        self.assertLessEqual(len(request.display_name or ""), 128)
        self.assertIsNone(request.platform)

    def test_removed(self) -> None:
        """A removed device is unknown again, its tokens are void, its connections end."""
        self.do(self.devices.pair(applicant(READ)))
        token = self.issued(READ)
        self.do(self.devices.remove("d1"))
        self.assertEqual(("ended", "d1", None), self.listener.heard[-1])
        self.assertFalse(self.good(token))
        self.assertEqual(({}, {}), (self.store.devices, self.store.tokens))
        self.assertEqual("unknown deviceId", self.fails(self.devices.remove("d1"), InvalidRequest))
        self.do(self.devices.pair(applicant(READ)))
        self.assertFalse(self.good(token))

    def test_nobody_is_told_what_is_not_on_disk(self) -> None:
        """While the store cannot write nothing changes, and nothing is announced."""
        self.store.failing = True
        self.fails(self.devices.pair(applicant(READ)), StorageUnavailable)
        self.fails(self.devices.ask(applicant(READ)), StorageUnavailable)
        self.assertEqual(("not-paired", [], []), (self.devices.problem("d1", "operator", ()), list(self.devices.pending()), self.listener.heard))
        self.store.failing = False
        request = self.do(self.devices.ask(applicant(READ)))
        self.store.failing = True
        self.fails(self.devices.approve(request.request_id), StorageUnavailable)
        self.fails(self.devices.ask(applicant(WRITE)), StorageUnavailable)
        self.store.failing = False
        self.assertEqual("d1", self.do(self.devices.approve(request.request_id)).device_id)
        self.assertIsNone(self.devices.problem("d1", "operator", (READ,)))

    def test_told_when_it_is_on_disk(self) -> None:
        """Approval is announced and answered after the commit."""
        self.store.hold = True
        work = Deferred.fromCoroutine(self.devices.pair(applicant(READ)))
        self.assertNoResult(work)
        self.assertEqual([], self.listener.heard)
        self.store.let_go()
        self.successResultOf(work)
        self.assertEqual([("resolved", "d1", "approved")], self.listener.heard)

    def test_a_store_that_cannot_be_read_is_read_later(self) -> None:
        """Everybody who waits hears of the failure, the next one tries again."""
        self.store.hold = True
        devices = Devices(self.store, lambda: self.now)
        waiting = [Deferred.fromCoroutine(devices.ready()) for _ in range(2)]
        self.store.let_go()
        for one in waiting:
            self.successResultOf(one)
        devices = Devices(self.store, lambda: self.now)
        self.store.failing = True
        self.fails(devices.ready(), StorageUnavailable)
        self.store.failing = False
        self.do(devices.ready())


class TokenTests(Register):
    """From the first token to the last."""

    def setUp(self) -> None:
        super().setUp()
        self.do(self.devices.pair(applicant(READ, WRITE, PAIRING)))
        self.listener.heard.clear()

    def test_a_token_is_good_for_its_device_role_and_scopes(self) -> None:
        """And for nothing else; only its hash is kept."""
        token = self.issued(WRITE)
        self.assertEqual(43, len(token))
        self.assertTrue(self.good(token, WRITE))
        self.assertTrue(self.good(token, READ))
        self.assertTrue(self.good(token))
        self.assertFalse(self.good(token, PAIRING))
        self.assertFalse(self.good(token, role="node"))
        self.assertFalse(self.good(token, device="d2"))
        for wrong in ("", token[:-1], token + "A", "x" * 100_000, "\ud800"):
            self.assertFalse(self.good(wrong), wrong[:50])
        self.assertNotIn(token, repr(self.store.tokens))
        self.assertEqual([hashlib.sha256(token.encode()).digest()], list(self.store.tokens))

    def test_four_live_side_by_side(self) -> None:
        """A fifth ends the first, in memory and on disk, and so it is after a restart."""
        tokens = []
        for _ in range(KEEP + 2):
            self.now += 1
            tokens.append(self.issued(READ))
        for register in (self.devices, self.open()):
            self.devices = register
            self.assertEqual([False, False, True, True, True, True], [self.good(token, READ) for token in tokens])
        self.assertEqual(KEEP, len(self.store.tokens))

    def test_a_new_token_keeps_the_scopes_of_the_last(self) -> None:
        """A client that asks for less each time does not lose its device's rights."""
        self.issued(WRITE)
        self.assertTrue(self.good(self.issued(READ), WRITE))
        self.assertFalse(self.good(self.issued(READ), PAIRING))

    def test_rotate(self) -> None:
        """All tokens of the role end, the new one is good; scopes stay within what was approved."""
        old = [self.issued(READ), self.issued(WRITE)]
        grant = self.do(self.devices.rotate("d1", "operator", None))
        self.assertEqual([("ended", "d1", "operator")], self.listener.heard)
        self.assertEqual([False, False, True], [self.good(token, READ) for token in (*old, grant.token)])
        self.assertEqual(1, len(self.store.tokens))
        self.assertNotIn(grant.token, repr(grant))
        (token,) = self.devices.tokens(self.devices.paired()[0])
        self.assertEqual(self.now, token.rotated_ms)
        narrow = self.do(self.devices.rotate("d1", "operator", (READ,)))
        self.assertFalse(self.good(narrow.token, WRITE))
        self.assertEqual(
            "scopes exceed what the device is approved for: operator.admin",
            self.fails(self.devices.rotate("d1", "operator", (ADMIN,)), InvalidRequest),
        )
        for device, role in (("d2", "operator"), ("d1", "node")):
            self.assertEqual("unknown deviceId/role", self.fails(self.devices.rotate(device, role, None), InvalidRequest))

    def test_revoke(self) -> None:
        """All tokens of the role end, and what is left says when; the secret gives a new one."""
        self.assertEqual("unknown deviceId/role", self.fails(self.devices.revoke("d1", "operator"), InvalidRequest))
        self.assertEqual("unknown deviceId/role", self.fails(self.devices.revoke("d2", "operator"), InvalidRequest))
        tokens = []
        for _ in range(3):
            self.now += 1
            tokens.append(self.issued(READ))
        self.now += 1
        self.assertEqual(self.now, self.do(self.devices.revoke("d1", "operator")))
        self.assertEqual([("ended", "d1", "operator")], self.listener.heard)
        for register in (self.devices, self.open()):
            self.devices = register
            self.assertFalse(any(self.good(token) for token in tokens))
            (left,) = self.devices.tokens(self.devices.paired()[0])
            self.assertEqual(self.now, left.revoked_ms)
        self.assertTrue(self.good(self.issued(READ), READ))
        (left,) = self.devices.tokens(self.devices.paired()[0])
        self.assertIsNone(left.revoked_ms)
        self.assertEqual(1, len(self.store.tokens))

    def test_a_crash_in_a_revocation(self) -> None:
        """What was to be ended with the newest is not good after a restart, although it is still on disk."""
        tokens = []
        for _ in range(3):
            self.now += 1
            tokens.append(self.issued(READ))
        before = dict(self.store.tokens)
        self.do(self.devices.revoke("d1", "operator"))
        self.store.tokens = {**before, **self.store.tokens}
        self.devices = self.open()
        self.assertFalse(any(self.good(token) for token in tokens))
        self.assertEqual(1, len(self.store.tokens))

    def test_ended_while_one_is_made(self) -> None:
        """A token that was being written when all were ended is none."""
        self.issued(READ)
        for end in (self.devices.rotate("d1", "operator", None), self.devices.revoke("d1", "operator"), self.devices.remove("d1")):
            self.store.hold = True
            making = Deferred.fromCoroutine(self.devices.issue("d1", "operator", (READ,)))
            ending = Deferred.fromCoroutine(end)
            while self.store._held:
                self.store.let_go()
            self.assertIsNone(self.successResultOf(making))
            self.successResultOf(ending)
        self.assertIsNone(self.do(self.devices.issue("d1", "operator", (READ,))))

    def test_a_token_that_is_not_on_disk_is_none(self) -> None:
        """The device is not told of it, and those that it had stay good; a revocation that fails holds until the restart."""
        token = self.issued(READ)
        self.store.failing = True
        self.fails(self.devices.issue("d1", "operator", (READ,)), StorageUnavailable)
        self.assertTrue(self.good(token, READ))
        self.fails(self.devices.revoke("d1", "operator"), StorageUnavailable)
        self.assertFalse(self.good(token, READ))
        self.assertEqual([("ended", "d1", "operator")], self.listener.heard)

    def test_last_use(self) -> None:
        """The time of use is kept, on disk once a minute at most."""
        token = self.issued(READ)
        for _ in range(20):
            self.now += 10_000
            self.assertTrue(self.good(token, READ))
        (kept,) = self.store.tokens.values()
        self.assertLess(self.now - (kept.last_used_ms or 0), 60_000)
        self.assertLess(self.store.writes, 8)
        self.store.failing = True
        self.now += 60_000
        self.assertTrue(self.good(token, READ))
