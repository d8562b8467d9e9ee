"""TLS as a client that knows the server's certificate by its fingerprint, and asks no authority about it. Loads OpenSSL.

The fingerprint is compared in the handshake, before a byte of the client's own has left: a server with another certificate hears nothing. Imports
net.certificates, net.files and errors.
"""

from __future__ import annotations

from OpenSSL import SSL, crypto
from OpenSSL.SSL import VERIFY_FAIL_IF_NO_PEER_CERT, VERIFY_PEER, Connection
from twisted.internet.abstract import isIPAddress, isIPv6Address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import CertificateOptions
from twisted.logger import Logger
from twisted.protocols.tls import TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from mayros.errors import ConfigError
from mayros.net.certificates import PEM_BYTES, Trust, WrongCertificate, check_fingerprint, parse_fingerprint, pem_blocks
from mayros.net.files import read_bounded

log = Logger()


@implementer(IOpenSSLClientConnectionCreator)
class Pinned:
    """For `wrapClientTLS`. Raises ConfigError where what is to be shown to the server cannot be read, ValueError for a bad fingerprint or host."""

    def __init__(self, trust: Trust, host: str) -> None:
        self._context: SSL.Context = CertificateOptions().getContext() if trust.shown is None else _showing(*trust.shown)
        self._fingerprint = parse_fingerprint(trust.fingerprint)
        #: An address is no server name.
        self._name = None if isIPAddress(host) or isIPv6Address(host) else host.encode("idna")

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> Connection:
        """See IOpenSSLClientConnectionCreator."""
        connection = Connection(self._context, None)
        if self._name is not None:
            connection.set_tlsext_host_name(self._name)
        connection.set_verify(VERIFY_PEER | VERIFY_FAIL_IF_NO_PEER_CERT, _Judge(self._fingerprint, tlsProtocol))
        return connection


class _Judge:
    """Called by OpenSSL for each certificate of the chain, and for each thing that is wrong with one. Only the server's own counts."""

    def __init__(self, fingerprint: str, protocol: TLSMemoryBIOProtocol) -> None:
        self._fingerprint = fingerprint
        self._protocol: TLSMemoryBIOProtocol | None = protocol

    def __call__(self, connection: Connection, certificate: crypto.X509, error: int, depth: int, good: int) -> bool:
        if depth:
            return True
        try:
            check_fingerprint(self._fingerprint, crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate))
        except WrongCertificate:
            protocol, self._protocol = self._protocol, None
            if protocol is not None:
                protocol.failVerification(Failure())
            return False
        except Exception:  # noqa: BLE001  OpenSSL would swallow it
            log.failure("while looking at a server's certificate")
            return False
        return True


def _showing(certificate: str, key: str) -> SSL.Context:
    """What a client needs that shows a certificate. Raises ConfigError."""
    path = certificate
    try:
        blocks = pem_blocks(read_bounded(certificate, PEM_BYTES))
        shown = crypto.load_certificate(crypto.FILETYPE_PEM, blocks[0] if blocks else b"")
        path = key
        private = crypto.load_privatekey(crypto.FILETYPE_PEM, read_bounded(key, PEM_BYTES), b"")
        context: SSL.Context = CertificateOptions(privateKey=private, certificate=shown).getContext()
    except OSError as error:
        raise ConfigError(f"{path}, to show to the gateway: {error.strerror}") from None
    except (SSL.Error, crypto.Error, TypeError, ValueError):
        raise ConfigError(f"{path}, to show to the gateway: it cannot be read as PEM, or is not the key of {certificate}") from None
    return context
