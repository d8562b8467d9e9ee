"""What a failure leads to: kinds, breakers, rests of keys, and who is asked next. Tables with a clock that is passed in."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace
from twisted.internet.defer import succeed
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import Models
from mayros.core.breaker import Breaker
from mayros.core.candidates import Plans, session_name
from mayros.core.course import Course
from mayros.core.failover import MOST, Candidate, CoolDowns, most_tries, rest_seconds, step_after
from mayros.core.health import Block, ModelHealth, Try
from mayros.core.health_ports import KeptCoolDown
from mayros.core.keys import SessionKey
from mayros.core.models import Catalogue, Credential, Model
from mayros.errors import (
    ContextLengthExceeded,
    GatewayError,
    InsufficientQuota,
    InvalidRequest,
    RateLimited,
    StorageUnavailable,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from mayros.net.connection import BadResponse, ConnectFailed, ConnectTimeout, FirstByteTimeout
from mayros.net.redact import Redactor
from mayros.providers.failures import client_failure, refusal, stream_failure

HOUR, MINUTE = 3600.0, 60.0


def model(provider: str = "acme", name: str = "m", keys: str = "a", ordered: bool = True) -> Model:
    """A model of a provider whose keys have these letters as their ids."""
    found = Catalogue(Models(), {}).find("openrouter/x")
    assert found is not None
    credentials = tuple(Credential(f"key:{letter}", f"secret-{provider}-{letter}") for letter in keys)
    return replace(found, id=name, provider=replace(found.provider, id=provider, credentials=credentials, ordered=ordered))


def failure(kind: str, retry_after: int | None = None) -> GatewayError:
    """An error of a kind, as adapters make it."""
    made: dict[str, type[GatewayError]] = {
        "rate_limit": RateLimited, "billing": InsufficientQuota, "timeout": UpstreamTimeout, "server": UpstreamError, "connect": UpstreamError,
        "overflow": ContextLengthExceeded,
    }  # fmt: skip
    error = made.get(kind, UpstreamRefused)(f"it said {kind}", retry_after=retry_after)
    error.kind = kind
    if kind in ("auth", "model_not_found", "format"):
        error.fallback = True
    return error


class Kinds(SynchronousTestCase):
    """From what a provider says to a kind, and from a kind to who is asked next."""

    def test_answers(self) -> None:
        """Status and words of a refusal."""
        for status, body, kind in (
            (429, b"", "rate_limit"),
            (429, b'{"error":{"code":"insufficient_quota"}}', "billing"),
            (402, b"", "billing"),
            (400, b'{"error":{"message":"Your credit balance is too low to access the API."}}', "billing"),
            (401, b"", "auth"),
            (403, b"", "auth"),
            (400, b'{"error":{"status":"INVALID_ARGUMENT","message":"API key not valid. Please pass a valid API key."}}', "auth"),
            (404, b"", "model_not_found"),
            (400, b'{"error":{"code":"model_not_found","message":"The model `x` does not exist"}}', "model_not_found"),
            (400, b'{"error":{"message":"messages.1: `tool_use` ids were found without `tool_result` blocks"}}', "format"),
            (400, b'{"error":{"message":"messages: roles must alternate"}}', "format"),
            (400, b'{"error":{"message":"temperature must be below 2"}}', "refused"),
            (418, b"", "refused"),
            (400, b'{"error":{"message":"prompt is too long"}}', "overflow"),
            (413, b"", "overflow"),
            (408, b"", "timeout"),
            (409, b"", "server"),
            (500, b"", "server"),
            (503, b"", "server"),
            (529, b'{"error":{"type":"overloaded_error"}}', "server"),
            (302, b"", "server"),
        ):
            error = refusal(status, {}, body, "acme", Redactor(()), 0.0)
            self.assertEqual(error.kind, kind, (status, body))
        self.assertEqual(stream_failure({"type": "overloaded_error", "message": "Overloaded"}, "acme", Redactor(())).kind, "server")
        self.assertEqual(stream_failure({"type": "rate_limit_error", "message": "x"}, "acme", Redactor(())).kind, "rate_limit")

    def test_connections(self) -> None:
        """What the HTTP client says."""
        for error, kind in (
            (ConnectFailed("x"), "connect"),
            (ConnectTimeout("x"), "connect"),
            (FirstByteTimeout("x"), "timeout"),
            (BadResponse("x"), "server"),
        ):
            self.assertEqual(client_failure(error, "acme").kind, kind)

    def test_when_to_come_back(self) -> None:
        """`retry-after-ms` wins over `retry-after`; what makes no sense is not there."""
        for headers, seconds in (
            ({b"retry-after": b"7"}, 7),
            ({b"retry-after-ms": b"1500", b"retry-after": b"7"}, 2),
            ({b"retry-after-ms": b"20"}, 1),
            ({b"retry-after-ms": b"999999999999"}, 3600),
            ({b"retry-after-ms": b"soon", b"retry-after": b"7"}, 7),
            ({b"retry-after-ms": b"-1"}, None),
        ):
            self.assertEqual(refusal(429, headers, b"", "acme", Redactor(()), 0.0).retry_after, seconds, headers)

    def test_the_providers_advice(self) -> None:
        """`x-should-retry` is handed on; true makes another model worth trying after a refusal, and nothing changes what is known of a key."""
        for status, advice, should_retry, step in (
            (400, b"true", True, "model"),
            (400, b"false", False, "stop"),
            (429, b"false", False, "key"),
            (500, b"false", False, "model"),
            (500, b"true", True, "model"),
            (401, b"true", False, "key"),
            (402, b"true", False, "key"),
            (413, b"true", None, "stop"),
            (500, b"maybe", None, "model"),
        ):
            error = refusal(status, {b"x-should-retry": advice}, b"", "acme", Redactor(()), 0.0)
            self.assertEqual((error.should_retry, step_after(error)), (should_retry, step), (status, advice))

    def test_steps(self) -> None:
        """Who may be asked next."""
        for kind, step in (
            *(("rate_limit", "key"), ("billing", "key"), ("auth", "key")),
            *(("timeout", "model"), ("server", "model"), ("connect", "model"), ("model_not_found", "model"), ("format", "model")),
            *(("refused", "stop"), ("overflow", "stop")),
        ):
            self.assertEqual(step_after(failure(kind)), step, kind)
        self.assertEqual([step_after(error) for error in (InvalidRequest("x"), Unavailable("x"))], ["stop", "stop"])


class Breakers(SynchronousTestCase):
    """Promise R10."""

    def test_five_failures_within_thirty_seconds(self) -> None:
        """They open it for 15 s, whose end lets one probe through."""
        breaker = Breaker()
        opened = [breaker.failed(now, False, "server") for now in (0.0, 1.0, 2.0, 3.0, 4.0)]
        self.assertEqual(opened, [False, False, False, False, True])
        self.assertEqual([breaker.admit(now) for now in (4.0, 18.9, 19.0, 19.0)], ["no", "no", "probe", "no"])
        breaker.succeeded(True)
        self.assertEqual((breaker.admit(19.1), breaker.state()), ("yes", "closed"))

    def test_spread_out(self) -> None:
        """Five in more than 30 s are none too many."""
        breaker = Breaker()
        self.assertFalse(any(breaker.failed(now, False, "server") for now in (0.0, 8.0, 16.0, 24.0, 31.0, 39.0, 47.0)))

    def test_each_time_twice_as_long(self) -> None:
        """15, 30, 60, 120, 240, 300, 300 s; and 15 again once it has answered."""
        breaker, now, pauses = Breaker(), 0.0, []
        for _ in range(5):
            breaker.failed(now, False, "connect")
        for _ in range(7):
            pauses.append(breaker.left(now))
            now += breaker.left(now)
            self.assertEqual(breaker.admit(now), "probe")
            self.assertTrue(breaker.failed(now, True, "connect"))
        self.assertEqual(pauses, [15, 30, 60, 120, 240, 300, 300])
        now += breaker.left(now)
        breaker.admit(now)
        breaker.succeeded(True)
        for _ in range(5):
            breaker.failed(now, False, "connect")
        self.assertEqual(breaker.left(now), 15)

    def test_a_probe_that_is_cancelled(self) -> None:
        """The next request is the probe."""
        breaker = Breaker()
        for _ in range(5):
            breaker.failed(0.0, False, "server")
        self.assertEqual((breaker.admit(15.0), breaker.admit(15.0), breaker.left(15.0)), ("probe", "no", 1.0))
        breaker.dropped(True)
        self.assertEqual(breaker.admit(15.0), "probe")

    def test_what_was_asked_before_it_opened(self) -> None:
        """Neither prolongs nor closes it."""
        breaker = Breaker()
        for _ in range(5):
            breaker.failed(0.0, False, "server")
        self.assertFalse(breaker.failed(10.0, False, "server"))
        breaker.succeeded(False)
        self.assertEqual((breaker.left(10.0), breaker.state()), (5.0, "open"))

    def test_a_success_takes_one_back(self) -> None:
        """A provider that fails once in a while under load stays in use."""
        breaker = Breaker()
        for number in range(1000):
            self.assertFalse(breaker.failed(number / 100, False, "server"))
            breaker.succeeded(False)
        self.assertTrue(breaker.idle(10.0))


class Rests(SynchronousTestCase):
    """How long a key is left alone."""

    def test_how_they_grow(self) -> None:
        """Minutes for limits and credentials, hours for bills."""
        self.assertEqual([rest_seconds("rate_limit", count) / MINUTE for count in (1, 2, 3, 4, 5, 99)], [1, 5, 25, 60, 60, 60])
        self.assertEqual([rest_seconds("auth", count) / MINUTE for count in (1, 2, 3, 4, 5)], [1, 5, 25, 60, 60])
        self.assertEqual([rest_seconds("billing", count) / HOUR for count in (1, 2, 3, 4, 99)], [5, 10, 20, 24, 24])

    def fail(self, cools: CoolDowns, candidate: Candidate, error: GatewayError, now: float, asked: float | None = None) -> float:  # type: ignore[override]
        """Let it fail; how long it rests."""
        cool = cools.failed(candidate, error, now if asked is None else asked, now)
        cools.put(cool)
        return cool.until - now

    def test_retry_after(self) -> None:
        """It rests at least as long as the provider says."""
        for said, seconds in ((None, 60), (7, 60), (600, 600), (3600, 3600)):
            self.assertEqual(self.fail(CoolDowns(), Candidate(model(), None), failure("rate_limit", said), 100.0), seconds)

    def test_failures_of_a_day_count(self) -> None:
        """Older ones do not."""
        cools, one = CoolDowns(), Candidate(model(), None)
        rests = [self.fail(cools, one, failure("rate_limit"), now) for now in (0.0, HOUR, 2 * HOUR, 26 * HOUR, 27 * HOUR)]
        self.assertEqual([seconds / MINUTE for seconds in rests], [1, 5, 25, 1, 5])

    def test_those_that_were_out_together(self) -> None:
        """A hundred requests that meet the same limit are one failure."""
        cools, one = CoolDowns(), Candidate(model(), None)
        rests = [self.fail(cools, one, failure("rate_limit"), 10.0 + number / 100, asked=9.0) for number in range(100)]
        self.assertEqual(round(max(rests)), 60)
        self.assertEqual(self.fail(cools, one, failure("rate_limit"), 80.0), 300)

    def test_another_kind_begins_anew(self) -> None:
        """A refused key that then cannot pay."""
        cools, one = CoolDowns(), Candidate(model(), None)
        self.assertEqual(
            [self.fail(cools, one, failure(kind), 0.0) for kind in ("auth", "auth", "billing", "billing")], [60, 300, 5 * HOUR, 10 * HOUR]
        )

    def test_whom_they_concern(self) -> None:
        """Limits are by model, credentials and bills are not."""
        small, large = model(name="small", keys="ab"), model(name="large", keys="ab")
        a, b = small.provider.credentials
        for kind, resting in (("rate_limit", [True, False, False]), ("auth", [True, True, False]), ("billing", [True, True, False])):
            cools = CoolDowns()
            self.fail(cools, Candidate(small, a), failure(kind), 0.0)
            found = [cools.of(candidate, 1.0) is not None for candidate in (Candidate(small, a), Candidate(large, a), Candidate(small, b))]
            self.assertEqual(found, resting, kind)

    def test_an_answer_ends_them(self) -> None:
        """Unless it was asked for before the failure."""
        cools, one = CoolDowns(), Candidate(model(), None)
        self.fail(cools, one, failure("rate_limit"), 10.0)
        self.assertEqual((cools.answered(one, 9.0), len(cools)), ([], 1))
        self.assertEqual((len(cools.answered(one, 70.0)), len(cools)), (1, 0))

    def test_bounded(self) -> None:
        """What failed longest ago is forgotten first."""
        cools = CoolDowns()
        gone = [
            put
            for number in range(MOST + 2)
            for put in cools.put(cools.failed(Candidate(model(name=str(number)), None), failure("rate_limit"), 0.0, float(number)))
        ]
        self.assertEqual(([cool.model for cool in gone], len(cools)), (["0", "1"], MOST))


class Kept:
    """A store that remembers what it was told."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str, str], KeptCoolDown] = {}
        self.broken = False

    def save(self, cool: KeptCoolDown) -> Any:
        self.rows[cool.provider, cool.credential, cool.model] = cool
        return self._done()

    def delete(self, provider: str, credential: str, model: str) -> Any:
        self.rows.pop((provider, credential, model), None)
        return self._done()

    async def _done(self) -> None:
        if self.broken:
            raise StorageUnavailable
        await succeed(None)


class CourseCase(SynchronousTestCase):
    """Some models, a clock, and who is asked."""

    def setUp(self) -> None:
        self.now = 1_000.0
        self.kept = Kept()
        self.health = ModelHealth(self.kept, lambda: int(self.now * 1000))
        self.plans = Plans()

    def use(self, *models: Model) -> None:
        """The models of the agent, in order."""
        self.models = models

    def course(self, session: str = "s") -> Course:
        """A new run."""
        return Course(self.health, self.plans.candidates(self.models, session))

    @staticmethod
    def name(tried: Try) -> str:
        """Provider, model and key of what is asked."""
        return f"{tried.candidate.model.ref}:{tried.candidate.key_id.removeprefix('key:')}"

    def run_(self, *outcomes: GatewayError | None) -> list[str]:
        """One run whose tries end like this (None: it answers). Who was asked; at the end `ok`, or the error's class and Retry-After."""
        course, asked = self.course(), []
        for outcome in outcomes:
            try:
                tried = course.next(self.now)
            except GatewayError as error:
                return [*asked, f"{type(error).__name__} {error.retry_after}"]
            course.tell("run")
            asked.append(self.name(tried))
            if outcome is None:
                course.answered()
                course.finished()
                return [*asked, "ok"]
            if not course.failed(outcome, False, self.now):
                return [*asked, type(outcome).__name__]
        try:
            course.next(self.now)
        except GatewayError as error:
            return [*asked, f"{type(error).__name__} {error.retry_after}"]
        self.fail("there is still somebody to ask")
        return []

    def probes(self, seconds: float) -> list[float]:
        """Ask once a second while nobody answers but with the same limit: when somebody was asked, from now."""
        began, asked = self.now, []
        while self.now < began + seconds:
            self.now += 1.0
            if not self.run_(failure("rate_limit"))[0].startswith("RateLimited"):
                asked.append(self.now - began)
        return asked


class Courses(CourseCase):
    """What happens after a failure."""

    def test_the_table(self) -> None:
        """(failure of the first try, who is asked then, what is told, how long the first one is left alone while there is another)."""
        for kind, then, told, seconds in (
            ("rate_limit", "acme/m:b", ["rate_limit"], 60.0),
            ("auth", "acme/m:b", ["auth"], 60.0),
            ("billing", "acme/m:b", ["billing"], 5 * HOUR),
            ("timeout", "other/n:x", ["timeout"], 0.0),
            ("server", "other/n:x", ["server"], 0.0),
            ("connect", "other/n:x", ["connect"], 0.0),
            ("model_not_found", "other/n:x", ["model_not_found"], 0.0),
            ("format", "other/n:x", ["format"], 0.0),
            ("refused", None, [], 0.0),
            ("overflow", None, [], 0.0),
        ):
            self.setUp()
            self.use(model(keys="ab"), model("other", "n", "x"))
            course = self.course()
            self.assertEqual(self.name(course.next(self.now)), "acme/m:a")
            self.assertEqual(course.failed(failure(kind), False, self.now), then is not None, kind)
            if then is not None:
                self.assertEqual(self.name(course.next(self.now)), then, kind)
                self.assertEqual([event.kind for event in course.tell("run")], told)  # type: ignore[attr-defined]
            found = self.health.admit(self.plans.candidates(self.models, "s")[0], self.now)
            self.assertEqual(found.left if isinstance(found, Block) else 0.0, seconds, kind)
            if seconds:
                self.assertEqual(self.run_(None), [then, "ok"], kind)
            self.now += seconds
            self.assertEqual(self.run_(None), ["acme/m:a", "ok"], kind)

    def test_events(self) -> None:
        """Each step tells what failed, how, and what is asked instead; who rests is told too."""
        self.use(model(keys="ab"), model("other", "n", ""))
        course = self.course()
        course.next(self.now)
        self.assertFalse(course.untold)
        course.failed(failure("rate_limit"), False, self.now)
        course.next(self.now)
        first = course.tell("run1")[0]
        self.assertEqual(
            (first.provider, first.model, first.credential, first.kind, first.error, first.next_provider, first.next_model, first.next_credential),  # type: ignore[attr-defined]
            ("acme", "m", "key:a", "rate_limit", "it said rate_limit", "acme", "m", "key:b"),
        )
        course.failed(failure("server"), False, self.now)
        course.next(self.now)
        self.assertEqual(
            [(one.kind, one.credential, one.next_provider, one.next_credential) for one in course.tell("run1")], [("server", "key:b", "other", "")]
        )  # type: ignore[attr-defined]
        again = self.course()
        again.next(self.now)
        self.assertEqual([(one.kind, one.credential, one.next_credential) for one in again.tell("run2")], [("cooling_down", "key:a", "key:b")])  # type: ignore[attr-defined]

    def test_never_after_a_delta(self) -> None:
        """Whatever failed, and whoever is left."""
        for kind in ("rate_limit", "billing", "auth", "timeout", "server", "connect", "model_not_found", "format"):
            self.use(model(keys="ab"), model("other", "n"))
            course = Course(ModelHealth(), self.plans.candidates(self.models, "s"))
            course.next(self.now)
            self.assertFalse(course.failed(failure(kind), True, self.now), kind)

    def test_bounded_tries(self) -> None:
        """24 and 8 for each key, from 32 to 160; then the last failure is the run's."""
        for keys, models, most in (("", 1, 32), ("a", 40, 32), ("abc", 40, 48), ("abcdefghijklmnopqrstuvwxyz", 40, 160)):
            self.use(*(model(name=str(number), keys=keys) for number in range(models)))
            candidates = self.plans.candidates(self.models, "s")
            self.assertEqual(most_tries(candidates), most)
            course, tries = Course(ModelHealth(), candidates), 0
            going = True
            while going:
                course.next(self.now)
                tries += 1
                going = course.failed(failure("rate_limit", 1), False, self.now)
            self.assertEqual(tries, min(most, len(candidates)))

    def test_a_refused_key_is_not_tried_with_another_model(self) -> None:
        """It is as wrong there."""
        self.use(model(name="large"), model(name="small"), model("other", "n"))
        self.assertEqual(self.run_(failure("auth"), None), ["acme/large:a", "other/n:a", "ok"])

    def test_a_limit_of_one_model(self) -> None:
        """Another model of the same vendor may have some left."""
        self.use(model(name="large"), model(name="small"))
        self.assertEqual(self.run_(failure("rate_limit"), None), ["acme/large:a", "acme/small:a", "ok"])
        self.assertEqual(self.run_(None), ["acme/small:a", "ok"])
        self.now += 61.0
        self.assertEqual(self.run_(None), ["acme/large:a", "ok"])

    def test_the_same_candidate_goes_on(self) -> None:
        """The next model turn of a run asks who answered the last one."""
        self.use(model(keys="ab"), model("other", "n"))
        course = self.course()
        course.next(self.now)
        course.failed(failure("server"), False, self.now)
        self.assertEqual(self.name(course.next(self.now)), "other/n:a")
        course.answered()
        course.finished()
        self.assertEqual(self.name(course.next(self.now)), "other/n:a")

    def test_one_key_and_nobody_else(self) -> None:
        """Then only the provider's own Retry-After keeps it from being asked: a rest of ours would be worse than asking."""
        self.use(model())
        self.assertEqual(self.run_(failure("rate_limit")), ["acme/m:a", "RateLimited"])
        self.assertEqual(self.run_(failure("rate_limit", 7)), ["acme/m:a", "RateLimited"])
        self.assertEqual(self.run_(), ["RateLimited 7"])
        self.now += 6.5
        self.assertEqual(self.run_(), ["RateLimited 1"])
        self.now += 0.5
        self.assertEqual(self.run_(None), ["acme/m:a", "ok"])
        for kind in ("auth", "billing"):
            self.assertEqual([self.run_(failure(kind))[0] for _ in range(3)], ["acme/m:a"] * 3)

    def test_all_rest(self) -> None:
        """The primary is asked in its last two minutes, once in 30 s; everybody else is told who rests until when."""
        self.use(model(), model("other", "n"))
        self.assertEqual(self.run_(failure("rate_limit"), failure("rate_limit", 600)), ["acme/m:a", "other/n:a", "RateLimited"])
        course = self.course()
        error = self.failureResultOf(self._next(course), RateLimited).value
        self.assertEqual(
            error.message,
            "No model can be asked at the moment: acme/m cools down (rate_limit) for another 60 s, until 00:17:40 UTC;"
            " other/n cools down (rate_limit) for another 600 s, until 00:26:40 UTC.",
        )
        self.assertEqual((error.retry_after, error.should_retry), (30, None))
        # Its rest is a minute, then five, of which the last two count, then 25.
        self.assertEqual(self.probes(450.0), [30.0, 30.0 + 180.0])

    async def _next(self, course: Course) -> Try:
        return course.next(self.now)

    def test_all_rest_for_hours(self) -> None:
        """Clients are not told to wait that long."""
        self.use(model(), model("other", "n"))
        self.run_(failure("billing"), failure("billing"))
        error = self.failureResultOf(self._next(self.course()), InsufficientQuota).value
        self.assertEqual((error.retry_after, error.should_retry), (5 * 3600 - 120, False))
        self.now += 5 * HOUR - 119
        self.assertEqual(self.run_(None), ["acme/m:a", "ok"])

    def test_a_run_goes_on_with_its_own_key(self) -> None:
        """That others have met a limit with it does not end a run that is being answered."""
        self.use(model(), model("other", "n"))
        course = self.course()
        course.next(self.now)
        course.answered()
        course.finished()
        self.now += 1.0
        self.run_(failure("rate_limit"), failure("rate_limit"))
        self.assertEqual(self.name(course.next(self.now)), "acme/m:a")

    def test_an_open_breaker(self) -> None:
        """The provider is passed over; alone it is a 503 that says for how long; after that one run probes it."""
        self.use(model(keys="ab"), model("other", "n"))
        for _ in range(5):
            self.run_(failure("connect"), None)
        self.assertEqual(self.run_(None), ["other/n:a", "ok"])
        self.use(model(keys="ab"))
        self.assertEqual(self.run_(), ["Unavailable 15"])
        self.now += 15.0
        probe = self.course()
        self.assertTrue(probe.next(self.now).probe)
        self.assertEqual(self.run_(), ["Unavailable 1"])
        probe.release()
        self.assertEqual(self.run_(None), ["acme/m:a", "ok"])
        self.assertTrue(self.health.quiet)

    def test_what_opens_a_breaker(self) -> None:
        """Failures of the server, and limits of the only key without a Retry-After; no other refusal: a provider that refuses is there."""
        for kind, retry_after, opens in (
            *(("server", None, True), ("timeout", None, True), ("connect", None, True), ("rate_limit", None, True)),
            *(("rate_limit", 1, False), ("auth", None, False), ("billing", None, False), ("format", None, False)),
            *(("refused", None, False), ("model_not_found", None, False), ("overflow", None, False)),
        ):
            self.setUp()
            self.use(model())
            for _ in range(6):
                self.run_(failure(kind, retry_after))
                self.now += 1.0
            self.assertEqual(self.run_(None), ["Unavailable 13"] if opens else ["acme/m:a", "ok"], kind)

    def test_the_embedded_model_has_no_breaker(self) -> None:
        """It has a back-off of its own, and says why it cannot answer."""
        local = model()
        self.use(replace(local, provider=replace(local.provider, api="local")))
        for _ in range(9):
            self.assertEqual(self.run_(failure("server")), ["acme/m:a", "UpstreamError"])

    def test_nobody_to_ask(self) -> None:
        """An agent without a model."""
        self.use()
        self.assertEqual(self.run_(), ["Unavailable 1"])


class Keys(CourseCase):
    """Which key a session gets."""

    def firsts(self, sessions: range) -> list[str]:
        """The key that each session asks first."""
        return [self.course(session_name(SessionKey("main", f"user:{number}"))).next(self.now).candidate.key_id for number in sessions]

    def test_in_order(self) -> None:
        """`auth.order` is the order for all."""
        self.use(model(keys="abc"))
        self.assertEqual(set(self.firsts(range(20))), {"key:a"})

    def test_spread(self) -> None:
        """Without an order, sessions are spread over the keys and each keeps its own."""
        self.use(model(keys="abc", ordered=False))
        firsts = self.firsts(range(300))
        self.assertEqual(firsts, self.firsts(range(300)))
        for letter in "abc":
            self.assertGreater(firsts.count(f"key:{letter}"), 60)

    def test_when_one_rests(self) -> None:
        """Its sessions move to the others and come back; the others stay."""
        self.use(model(keys="abc", ordered=False))
        before = self.firsts(range(100))
        resting = Candidate(self.models[0], self.models[0].provider.credentials[1])
        self.health.failed(Try(resting, self.now), failure("rate_limit"), self.now)
        during = self.firsts(range(100))
        self.assertNotIn("key:b", during)
        self.assertTrue(all(now == was for now, was in zip(during, before, strict=True) if was != "key:b"))
        self.now += 61.0
        self.assertEqual(self.firsts(range(100)), before)

    def test_names_of_sessions(self) -> None:
        """Stable, short, and nothing of the key is in them."""
        name = session_name(SessionKey("main", "openai-user:alice@example.com"))
        self.assertEqual(name, session_name(SessionKey("main", "openai-user:alice@example.com")))
        self.assertRegex(name, r"^[0-9a-f]{24}$")

    def test_lists_are_made_once(self) -> None:
        """For one key there is nothing to choose."""
        self.use(model(), model("other", "n", ""))
        self.assertIs(self.plans.candidates(self.models, "s"), self.plans.candidates(self.models, "t"))


class OtherConfigurations(CourseCase):
    """What is known of providers and keys when the configuration changes."""

    def change(self, *models: Model) -> None:
        """The configuration is another one."""
        before = {one.provider.id: one.provider for one in self.models}
        self.use(*models)
        self.health.changed(before, {one.provider.id: one.provider for one in models})

    def test_another_key_of_the_same_name(self) -> None:
        """May be asked at once; the others rest on, also when something else has changed."""
        self.use(model(keys="ab"))
        self.run_(failure("auth"), failure("auth"))
        fresh = model(keys="ab")
        self.change(replace(fresh, name="Another name"))
        self.assertEqual({("acme", "key:a", ""), ("acme", "key:b", "")}, set(self.kept.rows))
        one, two = fresh.provider.credentials
        self.change(replace(fresh, provider=replace(fresh.provider, credentials=(replace(one, key="another"), two))))
        self.assertEqual({("acme", "key:b", "")}, set(self.kept.rows))
        self.assertEqual(self.run_(None), ["acme/m:a", "ok"])

    def test_another_address(self) -> None:
        """Nothing is known of it yet: neither rests nor a breaker are left."""
        self.use(model(keys="a"))
        for _ in range(6):
            self.run_(failure("timeout"))
        self.run_(failure("billing"))
        fresh = model(keys="a")
        self.change(replace(fresh, provider=replace(fresh.provider, base_url="http://elsewhere/v1")))
        self.assertEqual((self.run_(None), self.kept.rows), (["acme/m:a", "ok"], {}))
        self.assertTrue(self.health.quiet)


class Restarts(CourseCase):
    """What outlives the process."""

    def restarted(self, *models: Model, after: float = 0.0) -> None:
        """A new process, whose clock begins anew, some seconds later."""
        kept = list(self.kept.rows.values())
        self.wall = self.now + after
        self.health = ModelHealth(self.kept, lambda: int((self.wall - 5.0 + self.now) * 1000))
        self.now = 5.0
        self.use(*models)
        self.health.restore(kept, {one.provider.id: one.provider for one in models}, self.now)

    def test_rests_go_on(self) -> None:
        """For what is left of them, and the failures count."""
        self.use(model(keys="ab"))
        self.run_(failure("billing"), None)
        self.restarted(model(keys="ab"), after=HOUR)
        self.assertEqual(self.run_(None), ["acme/m:b", "ok"])
        self.now += 4 * HOUR - 1
        self.assertEqual(self.run_(None), ["acme/m:b", "ok"])
        self.now += 2
        self.assertEqual(self.run_(failure("billing"), None), ["acme/m:a", "acme/m:b", "ok"])
        self.assertEqual(self.kept.rows["acme", "key:a", ""].failures, 2)

    def test_another_key_of_the_same_name(self) -> None:
        """Whoever replaced a key has a fresh one."""
        self.use(model(keys="ab"))
        self.run_(failure("auth"), None)
        fresh = model(keys="ab")
        one, two = fresh.provider.credentials
        self.restarted(replace(fresh, provider=replace(fresh.provider, credentials=(replace(one, key="another"), two))))
        self.assertEqual((self.run_(None), self.kept.rows), (["acme/m:a", "ok"], {}))

    def test_what_is_old_is_forgotten(self) -> None:
        """Also in the store."""
        self.use(model(keys="ab"))
        self.run_(failure("rate_limit"), None)
        self.restarted(model(keys="ab"), after=25 * HOUR)
        self.assertEqual(self.kept.rows, {})

    def test_a_clock_that_was_set_back(self) -> None:
        """Nothing rests for longer than the longest rest."""
        self.use(model(keys="ab"))
        self.run_(failure("billing"), None)
        self.restarted(model(keys="ab"), after=-1000 * HOUR)
        self.now += 24 * HOUR
        self.assertEqual(self.run_(None), ["acme/m:a", "ok"])

    def test_an_answer_ends_it_in_the_store_too(self) -> None:
        """There is nothing to restore."""
        self.use(model(keys="ab"))
        self.run_(failure("rate_limit"), None)
        self.assertEqual(list(self.kept.rows), [("acme", "key:a", "m")])
        self.now += 61.0
        self.run_(None)
        self.assertEqual(self.kept.rows, {})

    def test_a_broken_store(self) -> None:
        """Is logged, and keeps nobody."""
        self.kept.broken = True
        self.use(model(keys="ab"))
        self.assertEqual(self.run_(failure("rate_limit"), None), ["acme/m:a", "acme/m:b", "ok"])
        self.assertEqual(self.run_(None), ["acme/m:b", "ok"])

    def test_no_key_in_what_is_kept(self) -> None:
        """Nor in what is shown."""
        self.use(model(keys="ab"))
        self.run_(failure("auth"), None)
        shown = repr(list(self.kept.rows.values())) + repr(self.health.status([self.models[0].provider], self.now))
        self.assertNotIn("secret-acme", shown)


class Status(CourseCase):
    """What `models.status` says."""

    def test_all_is_well(self) -> None:
        """Each key is ready."""
        self.use(model(keys="ab"))
        (found,) = self.health.status([self.models[0].provider], self.now)
        self.assertEqual(found["breaker"], {"state": "closed", "failures": 0})
        self.assertEqual(found["keys"], [{"id": "key:a", "state": "ready", "rests": []}, {"id": "key:b", "state": "ready", "rests": []}])

    def test_who_rests_and_why(self) -> None:
        """Until when, after how many failures, and what was said."""
        self.use(model(keys="ab"))
        self.run_(failure("rate_limit", 90), failure("server"))
        self.now += 10.0
        (found,) = self.health.status([self.models[0].provider], self.now)
        self.assertEqual(found["breaker"], {"state": "closed", "failures": 1, "lastKind": "server"})
        keys: Any = found["keys"]
        rest = {"model": "m", "kind": "rate_limit", "failures": 1, "since": 1_000_000, "until": 1_090_000, "error": "it said rate_limit"}
        self.assertEqual((keys[0]["state"], keys[0]["rests"], keys[1]["state"]), ("cooling", [rest], "ready"))
        for _ in range(4):
            self.health.failed(Try(Candidate(self.models[0], self.models[0].provider.credentials[1]), self.now), failure("connect"), self.now)
        (found,) = self.health.status([self.models[0].provider], self.now)
        self.assertEqual(found["breaker"], {"state": "open", "failures": 5, "lastKind": "connect", "openUntil": 1_025_000})

    def test_blocks(self) -> None:
        """Why one is not asked."""
        self.use(model(keys="ab"))
        self.run_(failure("auth"), None)
        found = self.health.admit(self.plans.candidates(self.models, "s")[0], self.now + 10)
        assert isinstance(found, Block)
        self.assertEqual((found.kind, found.left), ("auth", 50.0))
