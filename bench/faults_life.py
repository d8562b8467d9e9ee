"""Rows P06, P09, P10, P11 and P14 of bench.faults: bad configurations, signals, whose directory it is, and a log that nobody takes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

from bench.faults_rig import HELLO, Gateway, Load, Part, Place, Row, Turns, refusal, wait_until
from bench.rig import pause
from tests.daemon import read_until

#: What is said once for each bad file.
_KEPT = "the configuration of before stays in force"


def bad_configuration(place: Place) -> Iterator[Part]:
    """P06: while requests come the file is cut, emptied, and written slowly; the last good one stays, and one line says why."""
    with Gateway(place.folder / "gateway", place.upstream, reload={"mode": "hot"}) as gateway:
        gateway.start()
        file = gateway.folder / "mayros.json"
        good = file.read_text()
        with Load(gateway, 4) as load:
            for name, text in (("cut in the middle", good[: len(good) // 2]), ("empty", "")):
                told = gateway.said(_KEPT)
                file.write_text(text)
                heard = wait_until(lambda told=told: gateway.said(_KEPT) > told, 5)  # type: ignore[misc]
                pause(2)  # four more looks at the file
                said, served = gateway.said(_KEPT) - told, gateway.request("GET", "/v1/models")[0]
                seen = f"{said} warning; requests are served ({served})"
                yield Part(f"its configuration is {name} while requests come", seen, heard and said == 1 and served == 200)
            told = gateway.said(_KEPT)
            with file.open("w") as slow:  # in ten pieces, quicker after one another than a file must have been at rest
                for number in range(10):
                    slow.write(good[number * len(good) // 10 : (number + 1) * len(good) // 10])
                    slow.flush()
                    pause(0.1)
            pause(1.5)
            half = gateway.said(_KEPT) - told
            file.write_text(good.replace('"graceMs": 2000', '"graceMs": 2001'))
            new = wait_until(lambda: gateway.said("graceMs in force") > 0, 5)
        ok = half == 0 and new and load.answered > 20 and not load.wrong
        seen = (
            f"nothing half is read ({half} warnings); a good one is in force afterwards; of {load.answered} turns meanwhile {len(load.wrong)} failed"
        )
        yield Part("it is written slowly, in ten pieces", f"{seen} {load.wrong[:1] or ''}", ok)


def second_signal(place: Place) -> Iterator[Part]:
    """P09: a second signal, whichever, ends the grace."""
    pairs = ((signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGINT), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGTERM))
    for first, second in pairs:
        name = f"{first.name}-{second.name}"
        with Gateway(place.folder / name, place.upstream, shutdown={"graceMs": 60_000}) as gateway:
            gateway.start(cli=True)
            place.upstream.hold()
            with gateway.stream(HELLO) as client:
                read_until(client, b'"one"')
                assert gateway.process is not None
                gateway.process.send_signal(first)
                pause(0.7)
                waits = gateway.process.poll() is None
                began = time.monotonic()
                gateway.process.send_signal(second)
                status, took = gateway.process.wait(15), time.monotonic() - began
                told = b'"code":"server_shutdown"' in read_until(client, b"0\r\n\r\n")
            place.upstream.go()
        seen = f"it ends after {took:.1f} s with status {status}, its client is told"
        yield Part(f"{first.name} with a live stream and a minute of grace, then {second.name}", seen, waits and status == 0 and took < 5 and told)


def hangups(place: Place) -> Iterator[Part]:
    """P10: a hundred in a second are at most two readings, and ten such seconds leave nothing behind."""
    with Gateway(place.folder / "gateway", place.upstream) as gateway:
        gateway.start()
        assert gateway.process is not None
        told = "SIGHUP: reading the configuration again"
        most, before = 0, (0, 0.0)
        for second in range(13):
            if second == 3:
                before = gateway.descriptors(), gateway.megabytes()
            read, began = gateway.said(told), time.monotonic()
            for number in range(100):
                gateway.process.send_signal(signal.SIGHUP)
                pause(began + (number + 1) / 100 - time.monotonic())
            pause(1.2)  # what the last of them ask for is over, too
            most = max(most, gateway.said(told) - read)
        after = gateway.descriptors(), gateway.megabytes()
        grown, more = after[1] - before[1], after[0] - before[0]
        seen = f"at most {most} readings; after 1,000 more {more:+d} descriptors, {grown:+.1f} MB of {after[1]:.0f}"
        yield Part("SIGHUP a hundred times in a second", seen, most <= 2 and more <= 0 and grown < 2 and gateway.up())


def whose(place: Place) -> Iterator[Part]:
    """P11: a state directory that is another user's, that everybody may write to, that others may read."""
    with Gateway(place.folder / "gateway", place.upstream) as gateway:
        gateway.state.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(gateway.state, 65_534, 65_534)
            status, said = refusal(gateway)
            os.chown(gateway.state, 0, 0)
            yield Part("the state directory is another user's", f"status {status}: {said}", status == 78 and _one_line(said, gateway))
        else:
            yield Part("the state directory is another user's", "only root can give it away", None)
        gateway.state.chmod(0o777)
        status, said = refusal(gateway)
        yield Part("every user may write to it", f"status {status}: {said}", status == 78 and _one_line(said, gateway))
        gateway.state.chmod(0o755)
        gateway.start()
        warned = gateway.said("chmod 700")
        yield Part("others may read it", f"it starts, with {warned} warning", warned == 1)


def _one_line(said: str, gateway: Gateway) -> bool:
    return "\n" not in said and str(gateway.state) in said


#: What becomes of standard output and error: a word for it, and how the shell says it.
_OUTPUTS = (("are closed", ">&- 2>&-"), ("go to a full disk", ">/dev/full 2>&1"))


def unheard(place: Place) -> Iterator[Part]:
    """P14: nobody takes what it says."""
    for number, (name, words) in enumerate(_OUTPUTS):
        with Gateway(place.folder / f"output-{number}", place.upstream) as gateway:
            gateway.before = ["sh", "-c", f'exec "$@" {words}', "sh"]
            yield _goes_on(f"standard output and error {name}", gateway)
    with Gateway(place.folder / "pipe", place.upstream) as gateway:
        reader, gateway.output = os.pipe()
        gateway.start()
        os.close(gateway.output)
        os.close(reader)  # the next line that it writes gets EPIPE, and SIGPIPE
        yield _goes_on("the reader of its standard output and error is gone", gateway, started=True)
    for number, (name, path) in enumerate((("a full disk", "/dev/full"), ("a folder that is not there", "/proc/none/mayros.log"))):
        with Gateway(place.folder / f"file-{number}", place.upstream) as gateway:
            gateway.config["logging"] = {"file": path}
            yield _goes_on(f"its log file is on {name}", gateway, words="log file")
    with Gateway(place.folder / "logs", place.upstream) as gateway:
        gateway.state.mkdir(mode=0o700)
        (gateway.state / "logs").write_text("a file in the place of the folder")
        yield _goes_on("the folder of its log files cannot be made", gateway, words="cannot be made")


def _goes_on(done: str, gateway: Gateway, *, started: bool = False, words: str = "") -> Part:
    """It answers, reads its configuration again (which it has something to say about), answers again, and ends in order."""
    if not started:
        gateway.start()
    assert gateway.process is not None
    turns = Turns(gateway)
    answers = [turns.ask()]
    gateway.process.send_signal(signal.SIGHUP)
    pause(1.5)
    answers.append(turns.ask())
    told = gateway.said(words) if words else 0
    status, wrong = gateway.stop(), turns.kept()
    ok = all(answer.status == 200 for answer in answers) and status == -signal.SIGTERM and not wrong and (not words or 0 < told < 6)
    seen = f"turns {answers[0].status}, {answers[1].status}; SIGTERM ends it in order ({status})"
    return Part(done, seen + (f"; {told} warnings on standard output" if words else "") + (f"; {wrong}" if wrong else ""), ok)


ROWS: dict[str, Row] = {"P06": bad_configuration, "P09": second_signal, "P10": hangups, "P11": whose, "P14": unheard}
