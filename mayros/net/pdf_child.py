"""The program that reads one PDF, in a process of its own with little memory and time: a file may be made to use up both. Imports nothing of ours.

It is run by its path. Standard input: one line of JSON,

    {"parent": its process id, "bytes": of the file, "max_pages": n, "max_chars": n, "memory": in bytes, "seconds": of the processor}

and the file. Standard output: lines of JSON, {"pages": n}, then {"text": "..."} in pieces, then {"read": pages, "cut": whether the text ended at its
limit}; or {"error": "..."}.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
#: Characters of one line of output.
_PIECE = 4096


def main() -> None:
    """Read the file and say what is in it."""
    asked = json.loads(sys.stdin.buffer.readline(4096))
    isolate(asked["parent"])
    data = sys.stdin.buffer.read(asked["bytes"])
    try:
        import pypdf

        limit(asked["memory"], asked["seconds"])
        read(pypdf.PdfReader(io.BytesIO(data)), asked["max_pages"], asked["max_chars"])
    except ImportError:
        say(error="the package pypdf is not installed here")
    except MemoryError:
        say(error="reading it needs too much memory")
    except Exception as error:  # noqa: BLE001  a damaged file can fail in any way, and all are the same to its sender
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        say(error="it is no PDF that can be read")


def isolate(parent: int) -> None:
    """Leave the parent's session, die with it, yield the processor to it."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(PermissionError):  # a service of systemd may not (SystemCallFilter=~@resources), and serves all the same
        os.nice(5)
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)  # it died before the signal was asked for


def limit(memory: int, seconds: int) -> None:
    """From now on: so much memory and time of the processor, no files, no other processes, no core file."""
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def read(reader: Any, max_pages: int, max_chars: int) -> None:
    """Say the text of the first pages, to the limit."""
    if reader.is_encrypted and not reader.decrypt(""):
        say(error="it is encrypted with a password")
        return
    pages = len(reader.pages)
    say(pages=pages)
    left, done = max_chars, 0
    for number in range(min(pages, max_pages)):
        text = reader.pages[number].extract_text().replace("\0", "").strip()
        text = ("\n\n" if done and text else "") + text.encode("utf-8", "replace").decode()
        for start in range(0, min(len(text), left), _PIECE):
            say(text=text[start : min(start + _PIECE, left)])
        done += 1
        if len(text) > left:
            say(read=done, cut=True)
            return
        left -= len(text)
    say(read=done, cut=False)


def say(**what: Any) -> None:
    """One line of output."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
