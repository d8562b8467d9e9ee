"""What is never shown, however a text comes: whole, in pieces, or in part."""

from __future__ import annotations

import itertools
import os

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.net.lookalikes import PEM_MAX
from mayros.net.redact import HIDDEN, Redactor, names_secret, secret_values

FIXED = settings(derandomize=bool(os.environ.get("CI")), database=None, deadline=None, max_examples=150)
SECRETS = ("very/hidden+value", 'two "words" and\na line', "aabaabaab", "Zz9-Zz9-Zz9-Zz9")
LINES = [f"{chr(65 + number)}IIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQ{number:02d}" for number in range(20)]
KEY = "\n".join(["-----BEGIN RSA PRIVATE KEY-----", *LINES, "-----END RSA PRIVATE KEY-----"])
#: What texts are made of that have secrets in them, whole and in parts.
PARTS = st.sampled_from(
    [*SECRETS, "very/hid", "very%2Fhidden%2Bvalue", "aab", 'two "words', 'two \\"words\\" and\\na line', KEY, KEY[:200], KEY[200:],
     "-----BEGIN PRIVATE KEY-----",
     "-----END PRIVATE KEY-----", "-----", "Bearer ", "Authorization: Basic ", "basic words", "Basic dXNlcjpwYXNz", "sk-ant-abcdefgh12345",
     "sk-", "gsk_", "pk_live_1",
     "xai-", "ghp_0123456789abcdef", "github_pat_", "xoxb-12345678-abc", "AKIAABCDEFGHIJKLMNOP", "AIza", "eyJ", "eyJhbGciOi.",
     "token=", "abcdefghijkl", "a1b2", 'secret": "', "API-KEY: ",
     "password ", "//user:pass@host/", "//", ":", "@", "=", " ", "\n", "x", "\u00e9", "\u0130", "z" * 300,
     "z" * PEM_MAX]
)  # fmt: skip
TEXTS = st.lists(PARTS | st.text(max_size=3), max_size=12).map("".join)
WORDS = st.sampled_from(["one ", "line\n", "x", "\u00e9", ". ", "very", "Zz9", "0123"])
PLAIN = st.lists(WORDS | st.text("abz \n", max_size=5), max_size=12).map("".join)
CUTS = st.lists(st.integers(0, 3_000), max_size=12)


def pieces(text: str, cuts: list[int]) -> list[str]:
    """The text cut at these places."""
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


def told(redact: Redactor, parts: list[str]) -> str:
    """What a stream shows of a text in pieces."""
    stream = redact.stream()
    return "".join([*map(stream.feed, parts), stream.end()])


def bodies(secret: str) -> set[str]:
    """Each part of a secret with twelve characters."""
    return {secret[start : start + 12] for start in range(max(1, len(secret) - 11))}


class WholeTests(SynchronousTestCase):
    """A text in one piece."""

    def test_known_secrets(self) -> None:
        """As they are, and as a URL, a form and JSON hold them; of two the longer one; not what is too short for a secret."""
        redact = Redactor(["very/hidden+value", "very/hidden+value-and-more", None, "", "short", 'a "quoted" one', " with blanks around it "])
        for text in ("very/hidden+value", "very/hidden+value-and-more", "very%2Fhidden%2Bvalue", 'a \\"quoted\\" one', "a+%22quoted%22+one",
                     "with blanks around it"):  # fmt: skip
            self.assertEqual(redact(f"<{text}>"), "<***>")
        self.assertEqual(redact("short"), "short")
        self.assertNotIn("secret", repr(redact))

    def test_what_is_learned_later(self) -> None:
        """A secret that is made while the gateway starts."""
        redact = Redactor(["very/hidden+value"])
        redact.know("another-secret", None)
        self.assertEqual(redact("very/hidden+value another-secret"), "*** ***")

    def test_what_looks_like_a_secret(self) -> None:
        """The secret is hidden, the words around it stay."""
        redact = Redactor()
        for text, shown in {
            "Authorization: Bearer abc.def\n": "Authorization: Bearer ***\n",
            'authorization: "basic YTpi"': 'authorization: "basic ***"',
            "Basic dXNlcjpwYXNzd29yZA==": "Basic ***",
            "sk-ant-abcdefgh12345": "sk-***",
            "key sk-0123456789*****6789": "key sk-***",
            "gsk_abcdefgh1, pk_live_12345": "gsk_***, pk_***",
            "ghp_0123456789abcdef": "ghp_***",
            "mgt_0123456789-abcdef_XYZ": "mgt_***",
            "xoxb-12345678-abc": "xoxb-***",
            "AKIAABCDEFGHIJKLMNOP": "AKIA***",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def": "eyJ***",
            '{"token":"abcdefghijkl"}': '{"token":"***"}',
            "API-Key: abcdefghijkl.mn": "API-Key: ***",
            "Bearer zzz0123456789zzz": "Bearer ***",
            "https://user:pa:ss@host/": "https://***@host/",
            "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----": "***",
            f"key:\n{KEY}\nend": "key:\n***\nend",
            KEY[:300]: "***",
        }.items():
            self.assertEqual(redact(text), shown)
            self.assertEqual(redact(shown), shown)

    def test_what_does_not(self) -> None:
        """Names, words and addresses."""
        for text in (
            "short", "the token is here", "/v1/chat/completions", "passwords are good", "Basic JavaScript, basic client-side words", "sk_buff_head",
            "pk_orders, task-force_one", "https://localhost:8080/x@y", "max_tokens=512", "-----BEGIN CERTIFICATE-----", "-----",
        ):  # fmt: skip
            self.assertEqual(Redactor()(text), text)

    def test_every_line_stays(self) -> None:
        """Where lines are counted."""
        self.assertEqual(Redactor(SECRETS).lines(f"1\n2 {KEY}\nlast very/hidden+value\n"), "1\n2 ***" + "\n***" * 21 + "\nlast ***\n")

    def test_a_key_without_an_end(self) -> None:
        """So much is hidden as one can be long; what comes after that is shown."""
        text = "-----BEGIN PRIVATE KEY-----" + "x" * PEM_MAX + "rest"
        self.assertEqual(Redactor()(text), "***rest")


class PiecesTests(SynchronousTestCase):
    """A text in pieces, and a part of one."""

    @FIXED
    @given(PLAIN, st.sampled_from(SECRETS[:3]), PLAIN, PLAIN, CUTS)
    def test_a_secret_in_pieces(self, before: str, secret: str, between: str, after: str, cuts: list[int]) -> None:
        """Nothing of it is shown, and all of the rest is, wherever a key and a known secret are cut."""
        text = "".join((before, secret, between, KEY, after))
        shown = told(Redactor(SECRETS), pieces(text, cuts))
        self.assertEqual(shown, text.replace(secret, HIDDEN).replace(KEY, HIDDEN))
        for hidden in (secret, KEY[31:-30]):
            self.assertFalse([body for body in bodies(hidden) if body in shown and body not in before + between + after])

    @FIXED
    @given(TEXTS, CUTS)
    @example("aabaabaabaabaabaab", [5, 9, 13])
    def test_pieces_are_like_the_whole(self, text: str, cuts: list[int]) -> None:
        """Whatever the text is made of, and wherever it is cut."""
        redact = Redactor(SECRETS)
        self.assertEqual(told(redact, pieces(text, cuts)), redact(text))

    @FIXED
    @given(st.lists(PARTS, max_size=6).map("".join), st.integers(0, 2_000), st.integers(0, 2_000))
    def test_letter_by_letter(self, text: str, start: int, size: int) -> None:
        """The smallest pieces."""
        redact, text = Redactor(SECRETS), text[start : start + size]
        self.assertEqual(told(redact, list(text)), redact(text))

    @FIXED
    @given(st.sampled_from(SECRETS), st.integers(0, 2_000), st.integers(0, 2_000))
    def test_a_part(self, secret: str, begin: int, length: int) -> None:
        """What is hidden of a part depends on what is around it."""
        text, redact = f"begin {secret} x {KEY} end\n", Redactor(SECRETS)
        begin = begin % len(text)
        shown = redact.window(text, begin, min(len(text), begin + length))
        for hidden in (secret, KEY[31:]):
            self.assertFalse([body for body in bodies(hidden) if body in shown])
        self.assertEqual(redact.window(text, 0, len(text)), redact(text))

    def test_what_waits(self) -> None:
        """Only what may be the beginning of a secret: a prompt is shown as it comes."""
        stream = Redactor(SECRETS).stream()
        pieces = ("Your password: ", "abc", "\nvery/hi", "de\nvery/hi", "dden+value", "-----BEGIN PRIVATE KEY-----\n", "x" * 500, "\nname? ")
        self.assertEqual([stream.feed(piece) for piece in pieces], ["Your password: ", "", "abc\n", "very/hide\n", HIDDEN, HIDDEN, "", ""])
        self.assertEqual(stream.end(), "")
        self.assertEqual(Redactor(SECRETS).window("x very/h", 0, 8, ended=False), "x ")

    def test_long_runs(self) -> None:
        """A run that has begun is hidden however long it is, and nothing is kept for that."""
        stream = Redactor(()).stream()
        shown = "".join(stream.feed(text) for text in ("token=", *["abcdef" * 1_000] * 50, " end"))
        self.assertEqual(shown, "token=*** end")
        self.assertLess(len(stream._held) + len(stream._before), 300)


class NamesTests(SynchronousTestCase):
    """Which names are a secret's."""

    def test_names(self) -> None:
        """Of variables, and of keys of the configuration."""
        secret = (
            "TOKEN", "GH_TOKEN", "OPENAI_API_KEY", "SSHKEY", "DB_PASSWD", "AWS_SECRET_ACCESS_KEY", "SECRET_KEY_BASE", "GOOGLE_CREDENTIALS", "apiKey",
            "x-api-key", "botToken", "clientSecret", "Authorization", "password", "session_cookie",
        )  # fmt: skip
        harmless = (
            "PATH", "KEYBOARD", "CREDENTIALS_DIRECTORY", "TOKENIZERS_PARALLELISM", "SECRETS_FILE", "maxTokens", "contextTokens", "mainKey",
            "allowRequestSessionKey", "SSH_AUTH_SOCK",
        )  # fmt: skip
        self.assertEqual([name for name in secret if not names_secret(name)], [])
        self.assertEqual([name for name in harmless if names_secret(name)], [])
        self.assertEqual(secret_values({"A_TOKEN": "x", "HOME": "/root"}), ["x"])
