"""What the checks of `mayros doctor` look at, and what they find. Imports config, core and net.certificates.

For commands: the daemon never loads this. A check is a function of a Subject that gives findings, none where all is well. It looks and changes
nothing; what can be mended without a decision is in the finding's `repair`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Any, Literal, Protocol

import msgspec

from mayros.config.gateway import Gateway
from mayros.config.load import Loaded
from mayros.config.schema import Config
from mayros.config.secret import AuthSecret
from mayros.config.source import value_at
from mayros.core.routing import Settings
from mayros.net.certificates import Trust

#: `critical`: somebody may do what he must not, or nothing works. `warn`: likely to go wrong. `info`: worth knowing.
Level = Literal["critical", "warn", "info"]
LEVELS: tuple[Level, ...] = ("critical", "warn", "info")


class Finding(msgspec.Struct, frozen=True):
    """One thing that is not as it should be. `id` is stable; no text holds a secret.

    `text` says what is, `remedy` what to do. `repair` does it, and gives a sentence about what it did; raises OSError.
    """

    id: str
    level: Level
    text: str
    remedy: str
    repair: Callable[[], str] | None = None


class Ran(Protocol):
    """A program that has ended."""

    @property
    def status(self) -> int: ...

    @property
    def out(self) -> str: ...


class Machine(Protocol):
    """The machine, as far as checks look at it."""

    uid: int
    booted: bool

    def run(self, argv: Sequence[str], /) -> Ran:
        """Run a program of the system; status 127 where there is none."""
        ...

    def get(self, host: str, port: int, path: str, trust: Trust | None, /) -> int:
        """The status of a GET, over TLS with `trust`. Raises OSError."""
        ...

    def taken(self, host: str, port: int) -> bool:
        """Whether somebody listens there; without connecting, which would wake a socket of systemd."""
        ...

    def free_bytes(self, path: str) -> int:
        """What this user can still write to the file system of a path. Raises OSError."""
        ...


class Installed(msgspec.Struct, frozen=True):
    """The service of systemd that runs the gateway. `outdated`: units that an installation would write anew."""

    unit: str
    system: bool
    outdated: tuple[str, ...] = ()
    starts: bool = True
    #: Whether the user's services go on after the last logout; None: it does not matter.
    lingers: bool | None = None


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway to look at. `trouble`: why its configuration cannot be read; `loaded` and all that follows from it are None then."""

    config_path: str
    state_dir: str
    home: str
    now_ms: int
    machine: Machine
    trouble: str | None = None
    loaded: Loaded | None = None
    settings: Settings | None = None
    secret: AuthSecret | None = None
    #: The tree of the file as it is written, before variables are put in.
    written: Any = None
    #: The URL of the store, and its file where it is one of SQLite.
    store_url: str = ""
    store: str | None = None
    port: int = 0
    service: Installed | None = None
    #: Whether the embedded model is there; None: nobody looked.
    embedded: bool | None = None

    @property
    def config(self) -> Config:
        """The configuration; only for checks that run where there is one."""
        assert self.loaded is not None
        return self.loaded.config

    @property
    def gateway(self) -> Gateway:
        """Its section for the daemon."""
        return self.config.gateway

    def said(self, *keys: str) -> Any:
        """A value of the file, also of a key that this version does not implement; None where it is not set."""
        assert self.loaded is not None
        return value_at(self.loaded.raw, *keys)

    @property
    def open_to_others(self) -> bool:
        """Whether it listens on more than loopback."""
        gateway = self.gateway
        return gateway.bind != "loopback" and (gateway.bind != "custom" or not is_loopback(gateway.custom_bind_host or ""))


def is_loopback(address: str) -> bool:
    """Whether a text is a loopback address."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


Check = Callable[[Subject], Iterable[Finding]]
