"""The program that runs the embedded model, in a process of its own: `python -m mayros.providers.llama_child`. Imports nothing of ours.

The parent writes one line of JSON to standard input and keeps it open:

    {"parent": its process id, "model": path, "alias": name, "api_key": secret, "context": tokens, "max_tokens": of one answer}

The answer is one line on standard output, {"port": number}, when the model is loaded and its HTTP server listens on 127.0.0.1. Errors go to
standard error. The process ends when standard input does, and on Linux also by signal when its parent dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import threading
from typing import Any
from urllib.parse import urlsplit

_PR_SET_PDEATHSIG = 1
#: More do not make so small a model faster.
_MOST_THREADS = 8
#: Tokens read at once. A cancelled request is noticed between two batches, so they must be short: this is about 0.7 s of two slow cores and
#: costs no speed that could be measured, where the library's 2,048 would go on for 12 s.
_BATCH = 128
#: MiB for the state of earlier conversations, so that each does not have to be read again at each turn; 24 KiB a token.
_CACHE_MIB = 256


def main() -> None:
    """Serve the model until standard input ends."""
    settings = json.loads(sys.stdin.buffer.readline(64 * 1024))
    isolate(settings["parent"])
    # What the native library prints goes to standard error; standard output belongs to the parent's protocol.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=end_with_stdin, daemon=True).start()
    server = serve(settings)  # serves for as long as it is referred to
    answer.write(json.dumps({"port": urlsplit(server.listening_address).port}) + "\n")
    answer.flush()
    threading.Event().wait()


def isolate(parent: int) -> None:
    """Leave the parent's session, die with it, be killed before it when memory runs out, yield the processor to it, and leave no core file."""
    if os.getsid(0) != os.getpid():
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A core file would hold people's conversations.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(PermissionError):  # a service of systemd may not (SystemCallFilter=~@resources), and serves all the same
        os.nice(5)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")
    if os.getppid() != parent:
        os._exit(0)  # it died before the signal was asked for


def end_with_stdin() -> None:
    """Wait for the end of standard input and end the process, whatever it is doing."""
    while sys.stdin.buffer.read(1):
        pass
    os._exit(0)


def serve(settings: dict[str, str | int]) -> Any:
    """Load the model and start its server."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.model_alias = {settings["alias"]}
    params.api_keys = [settings["api_key"]]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_threads_http = 4
    params.sse_ping_interval = 15
    params.ui = params.endpoint_slots = params.endpoint_props = params.endpoint_metrics = False
    params.cors_origins = ""  # no web page may ask
    params.verbosity = 1  # errors only
    params.n_ctx = settings["context"]
    params.n_parallel = 1
    params.n_predict = settings["max_tokens"]
    params.n_batch = params.n_ubatch = _BATCH
    params.cache_prompt = True
    params.cache_ram_mib = _CACHE_MIB
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads()
    # What the model's makers advise for this size, and a penalty against the loops it falls into; a request's own values win.
    params.sampling.temp, params.sampling.top_p, params.sampling.penalty_repeat = 0.2, 0.9, 1.1
    return xllamacpp.Server(params)


def threads() -> int:
    """How many threads to compute with: the cores this process may use, by affinity and by the quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(cores, _MOST_THREADS, quota("/proc/self/cgroup", "/sys/fs/cgroup")))


def quota(membership: str, root: str) -> int:
    """Cores that the control groups (version 2) allow, rounded up; a large number where there is no limit."""
    allowed = 1 << 16
    try:
        with open(membership) as file:
            path = next(line[3:].strip() for line in file if line.startswith("0::"))
    except (OSError, StopIteration):
        return allowed
    while True:
        with contextlib.suppress(OSError, ValueError), open(os.path.join(root, path.strip("/"), "cpu.max")) as file:
            most, period = file.read().split()
            allowed = min(allowed, -(-int(most) // int(period)))
        if path in ("", "/"):
            return allowed
        path = os.path.dirname(path)


if __name__ == "__main__":
    main()
