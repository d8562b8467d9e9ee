"""The machine and the service: whose process it is, one gateway at a time, its port, room on the disk, the clock, the units of systemd."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator

from mayros.config.load import refuse_unsupported
from mayros.config.tls import own_trust
from mayros.errors import ConfigError
from mayros.net.certificates import WrongCertificate
from mayros.net.statedir import LOCK_FILE, StateDir
from mayros.ops.subject import Finding, Subject

FREE_BYTES = 1 << 30


def configuration_good(subject: Subject) -> Iterator[Finding]:
    """A gateway starts with the configuration, and does all that it asks for."""
    if subject.loaded is None:
        yield Finding("config.invalid", "critical", f"the configuration cannot be used: {subject.trouble}", "mayros config edit")
        return
    if not subject.loaded.exists:
        yield Finding("config.missing", "critical", f"{subject.config_path} does not exist", "run mayros setup")
        return
    try:
        refuse_unsupported(subject.config, subject.loaded.raw)
    except ConfigError as error:
        yield Finding("config.unsupported", "critical", str(error), "take the key out of the file")
    if subject.gateway.mode is None:
        text = "gateway.mode is not set: a gateway does not start without it"
        yield Finding("config.mode", "critical", text, "mayros config set gateway.mode local")
    if subject.trouble is not None:
        yield Finding("config.secret", "critical", subject.trouble, "mayros config edit")
    warnings = subject.settings.warnings if subject.settings is not None else subject.loaded.warnings
    for warning in warnings:
        yield Finding("config.warning", "warn", warning, "mayros config edit; docs/configuration.md has all keys")


def not_root(subject: Subject) -> Iterator[Finding]:
    """The gateway does not run as root: its agents' commands would."""
    try:
        owner = os.stat(subject.state_dir).st_uid
    except OSError:
        return  # another check tells of it
    if owner == 0:
        text = f"the state directory {subject.state_dir} is root's, so the gateway runs as root, and every command of its agents too"
        yield Finding("host.root", "warn", text, "mayros gateway install --system runs it as a user of its own")


def lock_clean(subject: Subject) -> Iterator[Finding]:
    """The last gateway ended properly. A lock that is left behind keeps nobody out."""
    held, holder = _lock(subject)
    if held or not holder:
        return

    def repair() -> str:
        state = StateDir(subject.state_dir)
        state.lock()
        state.unlock()
        return f"emptied {state.join(LOCK_FILE)}"

    text = f"the last gateway (process {holder}) did not end properly: it was killed, or the machine went down"
    yield Finding("host.stale-lock", "warn", text, "nothing: the next start takes over. Its log, and the system's, may say why", repair)


def port_answers(subject: Subject) -> Iterator[Finding]:
    """The gateway that runs answers on its port; where none runs nobody else has it."""
    held, holder = _lock(subject)
    host = subject.gateway.custom_bind_host if subject.gateway.bind == "custom" else None
    host = "127.0.0.1" if host in (None, "", "0.0.0.0") else "::1" if host == "::" else host  # noqa: S104  compared, not bound
    assert host is not None
    if held:
        try:
            code = subject.machine.get(host, subject.port, "/healthz", own_trust(subject.gateway.tls, subject.state_dir))
        except OSError as error:
            text = f"the gateway (process {holder}) does not answer on {host}, port {subject.port}: {error.strerror or error}"
            how = "mayros logs" if isinstance(error, WrongCertificate) else "mayros gateway status; is another port given with --port or --listen?"
            yield Finding("gateway.silent", "warn", text, how)
            return
        if code != 200:
            text = f"on {host}, port {subject.port}, something answers /healthz with {code}; the gateway (process {holder}) would say 200"
            yield Finding("gateway.port-of-another", "warn", text, "find who listens there (ss -ltnp), or change gateway.port")
    elif subject.service is None and subject.machine.taken(host, subject.port):
        text = f"no gateway runs on {subject.state_dir}, but somebody listens on {host}, port {subject.port}: a second gateway, or another program"
        yield Finding("gateway.port-taken", "warn", text, "find who it is (ss -ltnp), or change gateway.port")


def disk_free(subject: Subject) -> Iterator[Finding]:
    """There is a gigabyte left for the store."""
    path = subject.state_dir if os.path.isdir(subject.state_dir) else os.path.dirname(subject.state_dir)
    free = subject.machine.free_bytes(path)
    if free < FREE_BYTES:
        text = f"{free >> 20} MB are free where {subject.state_dir} is; without room no turn is recorded"
        yield Finding("host.disk-full", "warn", text, "make room: logs, models, copies of the store (see store.old-copies)")


def clock_right(subject: Subject) -> Iterator[Finding]:
    """The clock is synchronised: signatures of devices and expiries of tokens need it."""
    done = subject.machine.run(["timedatectl", "show", "-p", "NTPSynchronized", "--value"])
    if done.status == 0 and done.out.strip() == "no":
        text = "the clock is not synchronised: devices are refused when it is ten minutes wrong"
        yield Finding("host.clock", "warn", text, "sudo timedatectl set-ntp true")


def service_good(subject: Subject) -> Iterator[Finding]:
    """The gateway is a service that is up to date, starts with the machine and goes on after a logout."""
    service = subject.service
    if service is None:
        if subject.machine.booted:
            text = "the gateway is no service: it does not start by itself, and systemd does not confine it"
            yield Finding("service.none", "info", text, "mayros gateway install")
        return
    flag = " --system" if service.system else ""
    if service.outdated:
        text = f"{', '.join(service.outdated)} would be written in another way now: an older version wrote it, or the port changed"
        yield Finding("service.outdated", "warn", text, f"mayros gateway install{flag} --force")
    if not service.starts:
        text = f"{service.unit} does not start with the machine"
        yield Finding("service.disabled", "warn", text, f"systemctl {'' if service.system else '--user '}enable {service.unit}")
    if service.lingers is False:
        yield Finding("service.no-linger", "warn", f"{service.unit} ends when you log out", "sudo loginctl enable-linger $USER")
    if not service.system:
        text = f"{service.unit} is a user's service: systemd hides no files from it"
        yield Finding("service.not-hardened", "info", text, "mayros gateway install --system runs it confined, as a user of its own")


def _lock(subject: Subject) -> tuple[bool, str]:
    """Whether a gateway runs on the state directory, and the process that the lock names; empty: none."""
    try:
        fd = os.open(os.path.join(subject.state_dir, LOCK_FILE), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False, ""
    try:
        holder = os.pread(fd, 32, 0).strip().decode("ascii", "replace")
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, holder if holder.isdigit() else "unknown"
        return False, holder if holder.isdigit() else ""
    finally:
        os.close(fd)
