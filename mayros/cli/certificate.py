"""`mayros gateway cert`: a certificate that is signed by itself, for a gateway that speaks TLS without an authority. Imports config and net.x509."""

from __future__ import annotations

import datetime
import os
import shlex
import socket
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from mayros.cli.acts import note, now_ms
from mayros.cli.place import Place, here, port
from mayros.cli.show import clean, print_json

if TYPE_CHECKING:
    from mayros.config.load import Loaded
    from mayros.config.tls import TlsFiles
    from mayros.net.x509 import About

#: The longest that browsers take.
DAYS = 397
#: Names and addresses of one certificate.
MOST_NAMES = 100


@click.command("cert")
@click.option("--host", "hosts", metavar="NAME", multiple=True, help="A name or an address by which clients reach it; may be given several times.")
@click.option("--days", type=click.IntRange(1, 3650), default=DAYS, show_default=True, metavar="N", help="How long it is valid.")
@click.option("--out", metavar="DIR", type=click.Path(file_okay=False), help="Where cert.pem and key.pem are written: tls in the state directory.")
@click.option("--force", is_flag=True, help="Replace a certificate and a key that are there.")
@click.option("--show", is_flag=True, help="Make nothing: tell of the certificate that the gateway shows.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def cert(ctx: click.Context, hosts: tuple[str, ...], days: int, out: str | None, force: bool, show: bool, as_json: bool) -> None:
    """Make a certificate for the gateway that no authority vouches for, and say how to switch it on and how clients trust it.

    It is for localhost, 127.0.0.1, ::1, the name of this machine, the address of gateway.customBindHost, and each --host. Clients know it by its
    fingerprint, or by the file. A gateway that uses the file already takes up a new one within a second.
    """
    from mayros.config.tls import tls_files

    place = here(ctx)
    loaded = place.load()
    if show:
        if hosts or out is not None or force or ctx.get_parameter_source("days") is not ParameterSource.DEFAULT:
            raise click.UsageError("--show makes nothing: leave the other options out")
        files = tls_files(loaded.config.gateway.tls, place.state_dir)
    else:
        files = _made(place, loaded, hosts, days, out, force)
    told = _about(files)
    if not show:
        note(place, "gateway.cert", files.certificate, fingerprint=told.fingerprint)
    if as_json:
        print_json(
            {
                "certificate": files.certificate,
                "key": files.key,
                "fingerprint": told.fingerprint,
                "beginsAtMs": told.begins_ms,
                "expiresAtMs": told.ends_ms,
                "names": list(told.names),
            }
        )
    else:
        _tell(place, loaded, files, told)


def _made(place: Place, loaded: Loaded, hosts: tuple[str, ...], days: int, out: str | None, force: bool) -> TlsFiles:
    """Write a pair, and say where it is."""
    from mayros.config.tls import CERTIFICATE, FOLDER, KEY, TlsFiles
    from mayros.net.files import create, write_atomic
    from mayros.net.statedir import StateDir, recognise_foreign
    from mayros.net.x509 import self_signed

    names = _names(loaded, hosts)
    os.umask(0o077)
    if out is None:
        foreign = recognise_foreign(place.state_dir)
        if foreign:
            raise click.ClickException(f"{foreign} Nothing was written.")
        StateDir.open(place.state_dir)
    folder = os.path.abspath(out) if out is not None else os.path.join(place.state_dir, FOLDER)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    files = TlsFiles(os.path.join(folder, CERTIFICATE), os.path.join(folder, KEY), made=out is None)
    there = [path for path in (files.certificate, files.key) if os.path.lexists(path)]
    for path in there:
        if os.path.islink(path):
            raise click.ClickException(f"{path} is a link to {os.path.realpath(path)}, which may be another program's: remove the link first")
    if there and not force:
        raise click.ClickException(f"{' and '.join(there)} exist{'s' if len(there) == 1 else ''}: --force replaces, --show tells of what is there")
    key, certificate = self_signed(names, days, datetime.datetime.now(datetime.UTC))
    try:
        for path, data, mode in ((files.key, key, 0o600), (files.certificate, certificate, 0o644)):
            if force:
                write_atomic(path, data, mode, keep=False)
            else:
                create(path, data, mode)
    except (FileExistsError, ValueError) as error:
        raise click.ClickException(f"{error}" if isinstance(error, ValueError) else f"{error.filename} exists: --force replaces it") from None
    return files


def _names(loaded: Loaded, hosts: tuple[str, ...]) -> list[str]:
    """The hosts that the certificate is for, the most telling one first."""
    from mayros.net.x509 import checked_name

    names = []
    for host in hosts:
        try:
            names.append(checked_name(host))
        except ValueError as error:
            raise click.UsageError(f"--host {clean(host)!r} {error}") from None
    if len(names) > MOST_NAMES:
        raise click.UsageError(f"a certificate has at most {MOST_NAMES} names")
    gateway = loaded.config.gateway
    for own in (socket.gethostname(), gateway.custom_bind_host if gateway.bind == "custom" else None, "localhost", "127.0.0.1", "::1"):
        try:
            names.append(checked_name(own or ""))
        except ValueError:
            continue  # a machine may be called anything
    # Every address is no address that a client could connect to.
    return [name for name in dict.fromkeys(names) if name not in ("0.0.0.0", "::")]  # noqa: S104  compared, not bound


def _about(files: TlsFiles) -> About:
    from mayros.config.tls import unusable
    from mayros.net.certificates import PEM_BYTES
    from mayros.net.files import read_bounded
    from mayros.net.x509 import about

    try:
        return about(read_bounded(files.certificate, PEM_BYTES))
    except (OSError, ValueError) as error:
        raise click.ClickException(unusable("gateway.tls.certPath", files.certificate, error, files.made)) from None


def _day(ms: int) -> str:
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")


def _tell(place: Place, loaded: Loaded, files: TlsFiles, told: About) -> None:
    from mayros.config.tls import tls_files
    from mayros.net.certificates import with_colons

    gateway = loaded.config.gateway
    for name, value in (
        ("Certificate", files.certificate),
        ("Key", files.key),
        ("Fingerprint", with_colons(told.fingerprint)),
        ("Names", ", ".join(told.names) or "none"),
        ("Valid until", f"{_day(told.ends_ms)}{' (has expired)' if told.ends_ms <= now_ms() else ''}"),
    ):
        click.echo(f"{name + ':':<12} {clean(value)}")
    used = gateway.tls.enabled and tls_files(gateway.tls, place.state_dir).certificate == files.certificate
    if used:
        click.echo("\nThe gateway shows it (gateway.tls), and takes up a new one by itself.")
    else:
        click.echo("\nSwitch it on, and restart the gateway:")
        if not files.made:
            for name, value in (("certPath", files.certificate), ("keyPath", files.key)):
                click.echo(f"  mayros config set gateway.tls.{name} {shlex.quote(clean(value))}")
        click.echo("  mayros config set gateway.tls.enabled true\n  mayros gateway restart")
    own = socket.gethostname().lower()
    # On loopback alone the name of this machine may lead past the gateway.
    past = {own} - {"localhost"} if gateway.bind == "loopback" else set()
    host = next((name for name in told.names if not name.startswith("*") and name not in past), "localhost")
    address = f"{f'[{host}]' if ':' in host else host}:{port(place, gateway.port)}"
    path = shlex.quote(clean(files.certificate))
    click.echo(f"""
Clients trust it by the file (copy it; it is no secret), or by the fingerprint:
  curl --cacert {path} https://{address}/healthz
  Python (OpenAI's client and others): SSL_CERT_FILE={path}
  Node: NODE_EXTRA_CA_CERTS={path}
  mayros status --url wss://{address}/ --tls-fingerprint {told.fingerprint}
  mayros elsewhere, always: gateway.remote.url and gateway.remote.tlsFingerprint""")
