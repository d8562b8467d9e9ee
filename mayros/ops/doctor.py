"""`mayros doctor` and `mayros security audit`: which checks there are, running them, and mending what can be mended. Imports ops.checks.

For commands: the daemon never loads this.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from mayros.errors import StartError
from mayros.ops.checks import agents, doors, files, machine, store
from mayros.ops.subject import LEVELS, Check, Finding, Subject

#: Who may do what. These need no configuration that can be read.
SECURITY: tuple[Check, ...] = (
    machine.configuration_good,
    files.state_directory,
    files.written_by_others,
    files.secrets_read_by_others,
    files.store_read_by_others,
    files.configuration_elsewhere,
    machine.not_root,
)
SECURITY_CONFIGURED: tuple[Check, ...] = (
    doors.open_without_authentication,
    doors.http_without_authentication,
    doors.proxies_without_authentication,
    doors.secret_strong,
    doors.failures_limited,
    doors.encrypted_off_loopback,
    doors.proxy_users_listed,
    doors.real_ip_not_believed,
    doors.devices_authenticated,
    doors.hooks_apart,
    doors.strong_tools_over_http,
    doors.log_discreet,
    doors.secrets_in_the_file,
    files.tls_key_private,
    files.certificate_valid,
    agents.commands_asked_for,
    agents.workspaces_narrow,
    agents.small_models_weak,
    store.store_whole,
    store.administrators_used,
)
#: Whether it works.
HEALTH: tuple[Check, ...] = (machine.lock_clean, machine.disk_free, machine.clock_right, machine.service_good)
HEALTH_CONFIGURED: tuple[Check, ...] = (store.store_of_this_version, store.no_old_copies, machine.port_answers, agents.models_usable)


class Report(msgspec.Struct, frozen=True):
    """What was found, the worst first; what was mended, as sentences; and what could not be."""

    findings: tuple[Finding, ...]
    mended: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()

    def count(self, level: str) -> int:
        """How many findings of a level."""
        return sum(finding.level == level for finding in self.findings)


def checks(subject: Subject, health: bool) -> Sequence[Check]:
    """Those that can be made. `health`: also whether it works."""
    always = (*SECURITY, *(HEALTH if health else ()))
    if subject.loaded is None:
        return always
    return (*always, *SECURITY_CONFIGURED, *(HEALTH_CONFIGURED if health else ()))


def examine(subject: Subject, chosen: Iterable[Check]) -> Report:
    """Make the checks. One that cannot be made is a finding of its own."""
    found: list[Finding] = []
    for check in chosen:
        try:
            found += check(subject)
        except (OSError, StartError) as error:
            why = " ".join(_why(error).split())
            found.append(Finding("doctor.unchecked", "warn", f"{check.__name__.replace('_', ' ')}: could not be checked ({why})", "mend that first"))
    return Report(tuple(sorted(found, key=lambda finding: LEVELS.index(finding.level))))


def mend(report: Report) -> tuple[Sequence[str], Sequence[str]]:
    """Repair what can be repaired; what was done, and what failed."""
    done: list[str] = []
    failed: list[str] = []
    for finding in report.findings:
        if finding.repair is None:
            continue
        try:
            done.append(finding.repair())
        except (OSError, StartError) as error:
            failed.append(f"{finding.id}: {_why(error)} ({finding.remedy})")
    return done, failed


def _why(error: OSError | StartError) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
