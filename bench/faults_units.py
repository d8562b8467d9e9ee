"""Row UNIT of bench.faults: what systemd's own checker thinks of the units that an installation writes. Nothing is installed or started."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator

from bench.faults_rig import Part, Place, Row
from mayros.ops.units import Plan

#: Of 10; below 1.3 an agent could not run commands, or the gateway not see where it is.
MOST_EXPOSED = 1.3
_LEVEL = re.compile(r"Overall exposure level for \S+: ([\d.]+)")


def exposure(place: Place) -> Iterator[Part]:
    """The services of the system, plain and as an instance: errors and warnings, and how exposed they are."""
    checker = shutil.which("systemd-analyze")
    for instance in (None, "blue"):
        done = "the units of a service of the system" if instance is None else "the same for an instance"
        if checker is None:
            yield Part(done, "there is no systemd-analyze here", None)
            continue
        folder = place.folder / (instance or "plain")
        folder.mkdir()
        (program := folder / "mayros").write_text("#!/bin/sh\n")
        program.chmod(0o755)
        plan = Plan(True, str(program), ("127.0.0.1:18789",), "/etc/mayros/mayros.json", "/var/lib/mayros", os.defpath, instance)
        for name, text in plan.texts().items():
            (folder / name).write_text(text)
        unit = str(folder / plan.service)
        said = subprocess.run([checker, "verify", unit], capture_output=True, text=True, timeout=60, check=False).stderr
        ours = [line for line in said.splitlines() if "mayros" in line]
        told = subprocess.run([checker, "security", "--offline=true", unit], capture_output=True, text=True, timeout=60, check=False)
        level = _LEVEL.search(told.stdout)
        seen = f"{len(ours)} warnings; exposure {level[1] if level else 'not told: ' + told.stderr[-200:]} of 10 ({MOST_EXPOSED} at most)"
        yield Part(done, seen, not ours and level is not None and float(level[1]) <= MOST_EXPOSED)


ROWS: dict[str, Row] = {"UNIT": exposure}
