"""Which keys are in force as soon as they are changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args, get_origin

import msgspec
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.reloadable import HOT, RESTART, differing, in_force, is_hot
from mayros.config.schema import Config


def keys(kind: Any = Config, path: str = "") -> Iterator[str]:
    """The path of every key of the schema; what is in lists, or under names of one's own, counts as one."""
    struct = next((one for one in (kind, *get_args(kind)) if isinstance(one, type) and issubclass(one, msgspec.Struct)), None)
    if struct is None or get_origin(kind) in (dict, tuple):
        yield path
        return
    for field in msgspec.structs.fields(struct):
        yield from keys(field.type, f"{path}.{field.encode_name}" if path else field.encode_name)


def config(**tree: Any) -> Config:
    return msgspec.convert(tree, Config, dec_hook=lambda kind, value: kind(value))


class ClassTests(SynchronousTestCase):
    """The table."""

    def test_each_key_is_in_it_once(self) -> None:
        """By itself or by one of the sections that it is in, and never as both."""
        for key in keys():
            parts = key.split(".")
            entries = [".".join(parts[:number]) for number in range(1, len(parts) + 1) if ".".join(parts[:number]) in HOT | RESTART]
            self.assertEqual(1, len(entries), f"{key}: classify it in config/reloadable.py; now {entries}")
        self.assertEqual(frozenset(), HOT & RESTART)

    def test_nothing_is_in_it_that_is_no_key(self) -> None:
        """Each entry is a key or a section."""
        known = {".".join(key.split(".")[:number]) for key in keys() for number in range(1, len(key.split(".")) + 1)}
        self.assertEqual(frozenset(), (HOT | RESTART) - known)

    def test_what_needs_a_restart(self) -> None:
        """Ports, the way in, the store; whatever is not known."""
        for path in ("gateway.port", "gateway.bind", "gateway.auth.mode", "gateway.tls.certPath", "session.store", "gateway", "no.such.key", ""):
            self.assertFalse(is_hot(path), path)
        for path in ("agents", "agents.list", "models.providers.x.apiKey", "gateway.auth.token", "gateway.limits.bodyBudget", "session.mainKey"):
            self.assertTrue(is_hot(path), path)


class MergeTests(SynchronousTestCase):
    """What is in force of another configuration."""

    running = config(gateway={"port": 1, "auth": {"token": "a", "mode": "token"}, "http": {"maxBodyBytes": 5}}, session={"mainKey": "x"})

    def test_hot_and_restart_side_by_side(self) -> None:
        """Each key goes its own way, also within one section."""
        wanted = config(
            gateway={"port": 2, "auth": {"token": "b", "mode": "none"}, "http": {"maxBodyBytes": 6}},
            session={"mainKey": "y", "store": "sqlite:////x"},
            agents={"list": [{"id": "a"}]},
        )
        merged = in_force(self.running, wanted)
        self.assertEqual({"gateway.port", "gateway.auth.mode", "session.store"}, set(differing(merged, wanted)))
        hot = {"gateway.auth.token", "gateway.http.maxBodyBytes", "session.mainKey", "agents.list"}
        self.assertEqual(hot, set(differing(self.running, merged)))

    def test_what_is_held(self) -> None:
        """A section can be made to wait as a whole, and so can everything."""
        wanted = config(gateway={"port": 1, "auth": {"token": "b"}, "http": {"maxBodyBytes": 6}})
        merged = in_force(self.running, wanted, frozenset(("gateway.auth",)))
        self.assertEqual(("a", 6), (merged.gateway.auth.token, merged.gateway.http.max_body_bytes))
        self.assertEqual(self.running, in_force(self.running, wanted, frozenset(("",))))
