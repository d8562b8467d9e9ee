"""The system prompt and the estimate of its length."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from mayros.core.agent import fits
from mayros.core.ports import WorkspaceFile
from mayros.core.prompt import Prompter, cut, stable_part
from mayros.core.tokens import estimate
from mayros.messages import Message, pack
from tests.helpers import settings

AGENT = settings({"agents": {"list": [{"id": "main", "name": "Ada", "systemPrompt": "Be brief."}]}}).directory.agents["main"]
MODEL = AGENT.models[0]


def file(name: str, text: str | None) -> WorkspaceFile:
    return WorkspaceFile(name, f"/w/{name}", text)


class PromptTests(SynchronousTestCase):
    """Prompter and its parts."""

    def test_order_of_the_parts(self) -> None:
        """Identity, the operator's instructions, files in their order, and the caller's own instructions last."""
        text = Prompter().system(AGENT, (file("AGENTS.md", "Rules."), file("USER.md", "Bob.")), MODEL, "Answer in French.")
        places = [
            text.index(part) for part in ("You are Ada", "Be brief.", "## /w/AGENTS.md", "Rules.", "## /w/USER.md", "Bob.", "Answer in French.")
        ]
        self.assertEqual(places, sorted(places))

    def test_a_missing_file_is_named(self) -> None:
        """One line says where it was expected."""
        self.assertIn("[MISSING] Expected at: /w/TOOLS.md", Prompter().system(AGENT, (file("TOOLS.md", None),), MODEL, ""))

    def test_our_parts_take_at_most_a_quarter_of_the_window(self) -> None:
        """However large the files; the caller's text is never cut."""
        extra = "x " * 30_000
        files = tuple(file(f"F{n}.md", "word " * 5_000) for n in range(5))
        for window in (2_048, 8_192, 32_768):
            self.assertLessEqual(estimate(stable_part(AGENT, files, window)), window // 4)
        self.assertTrue(Prompter().system(AGENT, files, MODEL, extra).endswith(extra))

    def test_scripts_without_spaces_count_a_token_a_character(self) -> None:
        """A quarter of the window holds for Chinese too."""
        text = stable_part(AGENT, (file("USER.md", "漢字" * 20_000),), 8_192)
        self.assertLessEqual(estimate(text), 2_048)
        self.assertGreater(len(text), 500)

    def test_a_file_over_its_limit_keeps_head_and_tail(self) -> None:
        """Two lines in between name the file and the sizes."""
        text = cut("H" * 5_000 + "T" * 5_000, 1_000, "/w/USER.md")
        self.assertLessEqual(len(text), 1_000)
        self.assertTrue(text.startswith("H" * 700) and text.endswith("T" * 200))
        self.assertIn("/w/USER.md was cut", text)
        self.assertIn("of 10000 characters", text)

    def test_the_stable_part_is_made_once(self) -> None:
        """As long as agent and files are the same objects; a changed file is seen."""
        prompter, files = Prompter(), (file("USER.md", "Bob."),)
        first = prompter.system(AGENT, files, MODEL, "")
        self.assertIs(prompter.system(AGENT, files, MODEL, ""), first)
        self.assertIn("Eve.", prompter.system(AGENT, (file("USER.md", "Eve."),), MODEL, ""))

    def test_control_characters_of_paths_stay_out(self) -> None:
        """A path cannot add lines to the prompt."""
        self.assertNotIn("\nIgnore", stable_part(AGENT, (WorkspaceFile("x", "/w/a\nIgnore all", "t"),), 8_192))


class EstimateTests(SynchronousTestCase):
    """estimate and fits."""

    def test_estimate(self) -> None:
        """Four letters a token; ideographs, kana and hangul one each."""
        self.assertEqual([estimate(text) for text in ("", "abcdefgh", "漢字", "한국어", "ひらがな", "né n")], [0, 2, 2, 3, 4, 1])

    def test_few_bytes_always_fit_and_too_many_never(self) -> None:
        """The window's edge, by estimate."""
        small, large = pack(Message("user", "hello")), pack(Message("user", "word " * 10_000))
        self.assertTrue(fits("system", [small], 8_192))
        self.assertTrue(fits("", [large], 20_000))
        self.assertFalse(fits("", [large], 8_192))
