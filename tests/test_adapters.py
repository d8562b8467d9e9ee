"""The adapters of providers whose configuration changes while runs go on."""

from __future__ import annotations

from typing import Any

from twisted.internet.testing import MemoryReactorClock
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.routing import Settings
from mayros.errors import ConfigError
from mayros.providers.adapter import HttpAdapter
from mayros.providers.adapters import MOST_OLD, Adapters
from tests.helpers import settings


def configured(url: str = "http://127.0.0.1:1/v1", key: str = "sk-one", **more: Any) -> Settings:
    """BASE, whose provider has this address and key."""
    return settings({"models": {"providers": {"fake": {"baseUrl": url, "apiKey": key, **more}}}})


class AdapterTests(SynchronousTestCase):
    """`Adapters.use`."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.adapters = Adapters(configured(), "/nonexistent", self.reactor)

    def provider_of(self, settings: Settings) -> Any:
        return settings.catalogue.providers["fake"]

    def test_what_did_not_change(self) -> None:
        """Keeps its adapter and its connections."""
        before = self.adapters.get("fake")
        self.adapters.use(configured())
        self.assertIs(before, self.adapters.get("fake"))

    def test_another_key_or_address(self) -> None:
        """New requests go there; those of runs that began before go where they went, with the key that belongs there."""
        old = configured()
        first = self.adapters.of(self.provider_of(old))
        new = configured("http://127.0.0.1:2/v1", "sk-two")
        self.adapters.use(new)
        second = self.adapters.of(self.provider_of(new))
        self.assertIsNot(first, second)
        self.assertIs(first, self.adapters.of(self.provider_of(old)))
        self.assertIs(second, self.adapters.of(self.provider_of(configured("http://127.0.0.1:2/v1", "sk-two"))))
        assert isinstance(first, HttpAdapter)
        assert isinstance(second, HttpAdapter)
        self.assertEqual(("sk-one", "sk-two"), (first._provider.key, second._provider.key))

    def test_a_provider_that_is_gone(self) -> None:
        """Is still there for runs that began with it."""
        old = self.provider_of(configured())
        first = self.adapters.of(old)
        self.adapters.use(
            settings(
                {
                    "models": {"mode": "merge", "providers": {"other": {"baseUrl": "http://127.0.0.1:3/v1"}}},
                    "agents": {"defaults": {"model": "other/x"}},
                }
            )
        )
        self.assertIs(first, self.adapters.of(old))

    def test_old_ones_are_not_kept_for_ever(self) -> None:
        """However often somebody changes the configuration; one that comes late is made again."""
        first = self.adapters.of(self.provider_of(configured()))
        for number in range(3 * MOST_OLD):
            self.adapters.use(configured(key=f"sk-{number}"))
            self.adapters.of(self.provider_of(configured(key=f"sk-{number}")))
        self.assertLessEqual(len(self.adapters._old), MOST_OLD)
        again = self.adapters.of(self.provider_of(configured()))
        self.assertIsNot(first, again)
        assert isinstance(again, HttpAdapter)
        self.assertEqual("sk-one", again._provider.key)

    def test_what_cannot_be_used(self) -> None:
        """Is refused before it is in force."""
        before = self.adapters.get("fake")
        self.assertRaises(ConfigError, self.adapters.check, configured("ftp://x"))
        self.assertRaises(ConfigError, self.adapters.check, configured(caPath="/nonexistent/ca.pem", url="https://127.0.0.1/v1"))
        self.adapters.check(configured("http://127.0.0.1:9/v1"))
        self.assertIs(before, self.adapters.get("fake"))
