"""The certificate that the gateway's own port shows, loaded again when its files change. Imports config and net.tls; loaded only where TLS is on.

New connections get the newest certificate; what is connected goes on with its own. A certificate that cannot be used changes nothing: the one of
before stays, and why is in the log and in `status`. `gateway.reload.mode` is about the configuration: certificates are taken up in each mode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from OpenSSL.SSL import Connection
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IProtocolFactory
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mayros.config.stamps import Stamp, stamps
from mayros.config.tls import MAKE, TlsFiles, unusable
from mayros.errors import ConfigError
from mayros.net.certificates import with_colons
from mayros.net.tls import Served, Unusable, serve
from mayros.net.x509 import About

log = Logger()

_KEYS = {"certificate": "certPath", "key": "keyPath", "ca": "caPath"}


class Certificate(msgspec.Struct, frozen=True):
    """What is shown, and `problem`: why the files as they are now are not."""

    about: About
    problem: str | None = None


def load(files: TlsFiles, handed: str | None) -> Served:
    """Read and judge the files. Blocks. Raises ConfigError, which names the key path, the file and what to do. `handed`: see net.tls.serve."""
    try:
        return serve(files.certificate, files.key, files.ca, handed=handed)
    except Unusable as failure:
        key, made = _KEYS[failure.which], files.made and failure.which != "ca"
        raise ConfigError(unusable(f"gateway.tls.{key}", failure.path, failure.error, made)) from None


@implementer(IOpenSSLServerConnectionCreator)
class Certificates:
    """See the module. Loads the files, which blocks: for the start. `in_thread` runs a function off the reactor. Raises ConfigError."""

    def __init__(self, files: TlsFiles, in_thread: Callable[..., Deferred[Any]], now_ms: Callable[[], int], handed: str | None = None) -> None:
        self._files, self._in_thread, self._now_ms, self._handed = files, in_thread, now_ms, handed
        #: As they were when they were read last, well or not; and as they were found since.
        self._known: Mapping[str, Stamp] = stamps(files.all, access=True)
        self._found = self._known
        self._served = load(files, handed)
        self._problem: str | None = None
        self._loading = False
        self._warn()

    @property
    def current(self) -> Certificate:
        """What is shown to new connections."""
        return Certificate(self._served.about, self._problem)

    def wrap(self, factory: IProtocolFactory, reactor: Any) -> TLSMemoryBIOFactory:
        """The factory, spoken to through TLS."""
        return TLSMemoryBIOFactory(self, False, factory, reactor)

    def serverConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> Connection:
        """See IOpenSSLServerConnectionCreator."""
        return Connection(self._served.context, None)

    def look(self) -> None:
        """Load what has changed, once two looks in a row have found the same. Called twice a second; costs a stat for each file."""
        now = stamps(self._known, access=True)
        if now != self._known and now == self._found:
            self.reload()
        self._found = now

    def reload(self) -> None:
        """Load the files, whether they have changed or not."""
        if self._loading:
            return
        self._loading = True
        self._known = stamps(self._known, access=True)
        self._in_thread(load, self._files, self._handed).addCallbacks(self._take, self._refuse).addErrback(self._broken).addBoth(self._over)

    def _take(self, served: Served) -> None:
        before, self._served, self._problem = self._served.about, served, None
        if before != served.about:
            log.info("new connections get another certificate: {fingerprint}", fingerprint=with_colons(served.about.fingerprint))
        self._warn()

    def _refuse(self, failure: Failure) -> None:
        failure.trap(ConfigError)
        self._problem = str(failure.value)
        log.error("{problem}; the certificate of before stays in use", problem=self._problem)

    def _broken(self, failure: Failure) -> None:
        log.failure("the certificate could not be loaded again", failure=failure)

    def _over(self, _: object) -> None:
        self._loading = False

    def _warn(self) -> None:
        about, now = self._served.about, self._now_ms()
        if not about.begins_ms <= now < about.ends_ms:
            when = "has expired" if now >= about.ends_ms else "is not valid yet"
            how = f": run `{MAKE} --force`" if self._files.made else ""
            log.warn("the certificate {path} {when}, so clients will refuse it{how}", path=self._files.certificate, when=when, how=how)
