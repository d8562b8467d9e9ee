"""TLS as the server: the files of certificate, key and authority, judged and made into a context. Loads OpenSSL; imports its sibling modules.

The context is what Twisted's CertificateOptions makes: TLS 1.2 or newer, its ciphers, no session tickets. HTTP/1.1 is the only protocol on offer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Literal, NamedTuple

from OpenSSL import SSL, crypto
from twisted.internet.ssl import Certificate, CertificateOptions, trustRootFromCertificates

from mayros.net.certificates import PEM_BYTES, pem_blocks
from mayros.net.files import read_bounded
from mayros.net.x509 import About, about

PROTOCOLS = [b"http/1.1"]
#: Which file it is about.
Which = Literal["certificate", "key", "ca"]


class Unusable(Exception):
    """A file cannot be used. `error` says why, as the system does or in half a sentence; `path` is the file's."""

    def __init__(self, which: Which, path: str, error: OSError | ValueError) -> None:
        super().__init__(str(error))
        self.which, self.path, self.error = which, path, error


class Served(NamedTuple):
    """A certificate that can be shown: the context that shows it, and what it says."""

    context: SSL.Context
    about: About


def serve(certificate: str, key: str, ca: str | None = None, *, handed: str | None = None) -> Served:
    """Read and judge the files. Blocks. Raises Unusable.

    The certificate's file holds the server's own first, then those that lead to its authority. Nobody but its owner may read the key, unless it is
    in the folder `handed`, which a service manager has made. With `ca`, a client must show a certificate of one of these authorities, or the
    server's own: whoever has its key is no stranger.
    """
    chain = _certificates("certificate", certificate)
    private = _key(key, handed)
    trusted = None if ca is None else _certificates("ca", ca)
    try:
        options = CertificateOptions(
            privateKey=private,
            certificate=chain[0].original,
            extraCertChain=[one.original for one in chain[1:]],
            trustRoot=None if trusted is None else trustRootFromCertificates(trusted),
            acceptableProtocols=PROTOCOLS,
        )
        context: SSL.Context = options.getContext()
        said = about(chain[0].dumpPEM())
    except (SSL.Error, crypto.Error) as error:
        if "mismatch" in str(error):
            raise Unusable("key", key, ValueError(f"it is not the key of the certificate {certificate}")) from None
        raise Unusable("certificate", certificate, ValueError(f"OpenSSL does not take it ({_reason(error)})")) from None
    except ValueError as error:
        raise Unusable("certificate", certificate, error) from None
    if trusted is not None:
        context.set_verify(context.get_verify_mode(), _or_its_own(chain[0].dump(crypto.FILETYPE_ASN1)))
    return Served(context, said)


def _certificates(which: Which, path: str) -> list[Certificate]:
    try:
        blocks = pem_blocks(read_bounded(path, PEM_BYTES))
        if not blocks:
            raise ValueError("it holds no certificate in PEM")
        return [Certificate.loadPEM(block) for block in blocks]
    except (OSError, ValueError) as error:
        raise Unusable(which, path, error) from None
    except crypto.Error:
        raise Unusable(which, path, ValueError("it holds a certificate that cannot be read")) from None


def _key(path: str, handed: str | None) -> crypto.PKey:
    try:
        data = read_bounded(path, PEM_BYTES)
        mode = stat.S_IMODE(os.stat(path).st_mode)
        # What a service manager hands over is shared by an access list, which the group's bits then stand for.
        open_to = 0o007 if handed is not None and os.path.dirname(os.path.abspath(path)) == handed else 0o077
        if mode & open_to:
            raise ValueError(f"other users may read it (mode {mode:o}): chmod 600 it, and make a new key if they could")
        # Without the words for a locked key, OpenSSL would ask for them at the terminal.
        return crypto.load_privatekey(crypto.FILETYPE_PEM, data, _no_words)
    except (OSError, ValueError) as error:
        raise Unusable("key", path, error) from None
    except crypto.Error:
        raise Unusable("key", path, ValueError("it holds no key in PEM that can be read without a passphrase")) from None


def _no_words(*_: object) -> bytes:
    return b""


def _or_its_own(own: bytes) -> Callable[[SSL.Connection, crypto.X509, int, int, int], bool]:
    """Judges certificates of clients: what OpenSSL takes, and this one, whatever it says of it. That the client has its key is shown anyway."""

    def judge(connection: SSL.Connection, certificate: crypto.X509, error: int, depth: int, good: int) -> bool:
        return bool(good) or (depth == 0 and crypto.dump_certificate(crypto.FILETYPE_ASN1, certificate) == own)

    return judge


def _reason(error: Exception) -> str:
    reasons = error.args[0] if error.args else ()
    return ", ".join(str(reason[-1]) for reason in reasons) if isinstance(reasons, list) and reasons else type(error).__name__
