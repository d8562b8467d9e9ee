"""Agent ids and session keys: one grammar for both doors, by example and by property."""

from __future__ import annotations

import os
import unicodedata

from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.keys import MAX_KEY_BYTES, RESERVED, SessionKey, check_text, new_id, normalise_agent_id, valid_agent_id
from mayros.errors import InvalidRequest

FIXED = settings(derandomize=bool(os.environ.get("CI")), database=None, deadline=None, max_examples=100)
HEADER = "x-mayros-session-key"


def parse(text: str, agent: str | None = None, main_key: str = "main", reserved: bool = False) -> SessionKey:
    """As a door does it, with `main` as the default agent."""
    return SessionKey.parse(text, agent, "main", main_key, param=HEADER, reserved=reserved)


def casings(text: str) -> st.SearchStrategy[str]:
    """All ways to write a text in upper and lower case."""
    return st.tuples(*(st.sampled_from((c.lower(), c.upper())) for c in text)).map("".join)


#: Session keys as anybody may send them: with and without an agent, any characters.
anything = st.one_of(st.text(), st.builds("agent:{}:{}".format, st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,9}", fullmatch=True), st.text()))


class SessionKeyTests(SynchronousTestCase):
    """What each text names."""

    def test_examples(self) -> None:
        """Bare keys go to the chosen or default agent, full keys to their own; the rest keeps its case."""
        for text, agent, expected in (
            ("work", None, "agent:main:work"),
            ("work", "research", "agent:research:work"),
            (" Work Notes ", None, "agent:main:Work Notes"),
            ("agent:research:Work", None, "agent:research:Work"),
            ("AGENT:Research:Work", "research", "agent:research:Work"),
            ("agent:research:a:b:c", None, "agent:research:a:b:c"),
            ("agent:research: padded", None, "agent:research:padded"),
            ("main", "research", "agent:research:main"),
            ("MAIN", None, "agent:main:main"),
            ("телеграм:чат", None, "agent:main:телеграм:чат"),
            ("x" * MAX_KEY_BYTES, None, "agent:main:" + "x" * MAX_KEY_BYTES),
        ):
            self.assertEqual(str(parse(text, agent)), expected, text)

    def test_the_main_session_has_the_configured_name(self) -> None:
        """`main` and `session.mainKey` are the same session."""
        for text in ("main", "home", "HOME", "agent:main:main", "agent:main:home"):
            self.assertEqual(str(parse(text, main_key="home")), "agent:main:home", text)

    def test_what_is_refused(self) -> None:
        """Each with a 400 that names the header."""
        for text in (
            "",
            "   ",
            "agent:",
            "agent:research",
            "agent:research:",
            "agent:research:  ",
            "agent::work",
            "agent:../x:work",
            "agent:a b:work",
            "agent:" + "a" * 65 + ":work",
            "a\x00b",
            "a\nb",
            "work\n",
            "\tmain",
            "a\x7f",
            "a\x85b",
            "a\u2028b",
            "a\ud800b",
            "x" * (MAX_KEY_BYTES + 1),
            "é" * 257,
            "subagent:x",
            "cron:",
            "ACP:x",
            "agent:main:subagent:x",
            "agent:main: cron:x",
            " cron:x",
        ):
            error = self.assertRaises(InvalidRequest, parse, text)
            self.assertEqual((error.status, error.param), (400, HEADER), text)

    def test_a_key_of_another_agent_than_the_chosen_one_is_refused(self) -> None:
        """The message names both."""
        error = self.assertRaises(InvalidRequest, parse, "agent:research:work", "main")
        self.assertIn('"research"', error.message)
        self.assertIn('"main"', error.message)

    def test_the_gateway_itself_may_use_its_name_spaces(self) -> None:
        """`reserved` is for keys that did not come from a request."""
        for space in RESERVED:
            self.assertEqual(str(parse(f"{space}1", reserved=True)), f"agent:main:{space}1")

    @given(anything, st.sampled_from((None, "main", "research")), st.sampled_from(("main", "home")))
    @example("agent:main:x ", None, "main")
    @FIXED
    def test_a_key_is_the_same_when_it_comes_back(self, text: str, agent: str | None, main_key: str) -> None:
        """The canonical text of a key, sent in turn, names that key; whichever agent is the default."""
        try:
            key = parse(text, agent, main_key)
        except InvalidRequest:
            return
        assume(len(str(key).encode()) <= MAX_KEY_BYTES)
        self.assertEqual(SessionKey.parse(str(key), None, "other", main_key, param=HEADER), key)
        self.assertEqual(SessionKey.parse(str(key), key.agent_id, "other", main_key, param=HEADER), key)

    @given(anything)
    @FIXED
    def test_an_accepted_key_is_clean(self, text: str) -> None:
        """One line of at most 512 bytes plus its agent, no control characters, an agent id that is one, nothing reserved."""
        try:
            key = parse(text)
        except InvalidRequest as error:
            self.assertEqual(error.param, HEADER)
            return
        self.assertFalse([c for c in str(key) if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")])
        self.assertTrue(valid_agent_id(key.agent_id) and key.agent_id == key.agent_id.lower())
        self.assertTrue(key.rest and key.rest == key.rest.strip())
        self.assertLessEqual(len(key.rest.encode()), MAX_KEY_BYTES)
        self.assertFalse(key.rest.casefold().startswith(RESERVED))

    @given(st.text(max_size=20), st.characters(categories=("Cc", "Zl", "Zp")), st.text(max_size=20))
    @FIXED
    def test_control_characters_never_pass(self, before: str, control: str, after: str) -> None:
        """Wherever they stand, at the ends too, in keys and in `user`."""
        for text in (before + control + after, "agent:main:" + before + control + after):
            self.assertRaises(InvalidRequest, parse, text)
            self.assertRaises(InvalidRequest, check_text, text, "user")

    @given(st.sampled_from(RESERVED).flatmap(casings), casings("agent:main:"), st.sampled_from(("", " ", "\u00a0")), st.text(max_size=10))
    @example("\u017fubagent:", "agent:main:", "", "x")
    @FIXED
    def test_reserved_name_spaces_never_pass(self, space: str, agent: str, pad: str, rest: str) -> None:
        """In no casing, bare or with an agent, padded or not."""
        self.assertRaises(InvalidRequest, parse, pad + space + rest)
        self.assertRaises(InvalidRequest, parse, agent + pad + space + rest)


class AgentIdTests(SynchronousTestCase):
    """Ids in the configuration are normalised, ids in requests are taken as they are."""

    def test_examples(self) -> None:
        """As the configuration reference says."""
        for text, expected in (
            ("Main", "main"),
            (" research ", "research"),
            ("My Agent!", "my-agent"),
            ("--x--", "x"),
            ("_x!", "x"),
            ("a_b-c", "a_b-c"),
            ("Ünïcode", "n-code"),
            ("", "main"),
            ("!!!", "main"),
            ("a" * 70, "a" * 64),
            ("a" * 63 + "! b", "a" * 63),
        ):
            self.assertEqual(normalise_agent_id(text), expected, text)

    def test_ids_in_requests(self) -> None:
        """Only the pattern, nothing that a path or a pattern could be made of."""
        for text in ("main", "Main", "a", "0", "a-b_c", "a" * 64):
            self.assertTrue(valid_agent_id(text), text)
        for text in ("", "-a", "_a", "a b", "../../etc", "..%2f", "a/b", "a:b", "a\x00", "a\n", "é", "\u212a", "a" * 65, "a" * 10_000):
            self.assertFalse(valid_agent_id(text), text)

    @given(st.text())
    @FIXED
    def test_normalised_ids_are_ids(self, text: str) -> None:
        """Whatever the configuration says, a request can name the agent; and normalising again changes nothing."""
        agent_id = normalise_agent_id(text)
        self.assertTrue(valid_agent_id(agent_id), agent_id)
        self.assertEqual(normalise_agent_id(agent_id), agent_id)

    def test_new_ids(self) -> None:
        """24 hexadecimal digits, never the same twice."""
        ids = {new_id() for _ in range(1000)}
        self.assertEqual(len(ids), 1000)
        self.assertTrue(all(len(text) == 24 and set(text) <= set("0123456789abcdef") for text in ids))
