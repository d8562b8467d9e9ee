"""The system prompt and the estimate of its length."""

from __future__ import annotations

import hypothesis
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.bounds import fitted, size
from mayros.core.prompt import MOST_KEPT, Prompter, cut, stable_part
from mayros.core.tokens import estimate, estimate_utf8, most_utf8
from mayros.core.tool_ports import Tool
from mayros.core.workspace_ports import Skill, WorkspaceFile
from mayros.messages import Message, pack
from tests.helpers import settings
from tests.test_toolbox import FakeTool

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

    def test_sessions_with_models_of_their_own_do_not_fill_the_memory(self) -> None:
        """Whatever models they choose, so many prompts are kept and no more."""
        prompter = Prompter()
        for number in range(MOST_KEPT + 10):
            prompter.system(AGENT, (), replace(MODEL, id=f"m{number}"), "")
        self.assertLessEqual(len(prompter._kept), MOST_KEPT)

    def test_control_characters_of_paths_stay_out(self) -> None:
        """A path cannot add lines to the prompt."""
        self.assertNotIn("\nIgnore", stable_part(AGENT, (WorkspaceFile("x", "/w/a\nIgnore all", "t"),), 8_192))


TOOLS: dict[str, Tool] = {name: FakeTool(name) for name in ("read", "write", "exec", "my__tool")}
SKILLS = tuple(Skill(f"skill{number}", "Does <it>.", f"/w/skills/{number}/SKILL.md") for number in range(40))


class ToolTests(SynchronousTestCase):
    """What the prompt says of tools and skills."""

    def test_each_tool_has_a_line_in_order(self) -> None:
        """Name and summary; a tool of another program by the first sentence of its description. Then style, safety, skills, workspace, files."""
        text = stable_part(AGENT, (file("AGENTS.md", "Rules."),), 200_000, TOOLS, SKILLS)
        self.assertIn("- read: Read a file\n- write: Create or replace a file\n- exec: Run a shell command\n- my__tool: It is my__tool\n", text)
        places = ["You are Ada", "Be brief.", "## Tooling", "## Tool call style", "## Safety", "## Skills", "Your workspace", "Rules."]
        found = [text.index(part) for part in places]
        self.assertEqual(found, sorted(found))
        self.assertEqual(40, text.count("<skill>"))

    def test_without_tools_nothing_of_it(self) -> None:
        """A run without tools has the prompt it always had: no skills, no first-run ritual, which it could not do."""
        files = (file("AGENTS.md", "Rules."), file("BOOTSTRAP.md", "Ask the user's name."))
        plain = Prompter().system(AGENT, files[:1], MODEL, "")
        self.assertEqual(plain, Prompter().system(AGENT, files, MODEL, "", {}, SKILLS))
        for word in ("ool", "skill", "Safety"):
            self.assertNotIn(word, plain)
        self.assertIn("Ask the user's name.", Prompter().system(AGENT, files, MODEL, "", TOOLS))

    def test_skills_need_read(self) -> None:
        """Without `read` nobody could follow one."""
        self.assertNotIn("skill", stable_part(AGENT, (), 200_000, {"exec": TOOLS["exec"]}, SKILLS))

    def test_at_most_a_quarter_of_the_window_all_the_same(self) -> None:
        """Small windows get fewer skills, then only the names of the tools; the workspace's files have their place."""
        files = tuple(file(f"F{n}.md", "word " * 5_000) for n in range(5))
        for window in (256, 512, 1_024, 2_048, 8_192, 32_768):
            text = stable_part(AGENT, files, window, TOOLS, SKILLS)
            self.assertLessEqual(estimate(text), max(window // 4, 30))
        text = stable_part(AGENT, files, 8_192, TOOLS, SKILLS)
        self.assertTrue(0 < text.count("<skill>") < 40)
        self.assertIn("## /w/F0.md", text)
        self.assertIn("Your tools: read, write, exec, my__tool.", stable_part(AGENT, files, 256, TOOLS, SKILLS))

    def test_a_change_of_tools_or_skills_is_seen(self) -> None:
        """And without one the same text is given again."""
        prompter, files = Prompter(), (file("USER.md", "Bob."),)
        first = prompter.system(AGENT, files, MODEL, "", TOOLS, SKILLS)
        self.assertIs(first, prompter.system(AGENT, files, MODEL, "", TOOLS, SKILLS))
        self.assertNotIn("exec", prompter.system(AGENT, files, MODEL, "", {"read": TOOLS["read"]}, SKILLS))
        self.assertNotIn("skill0", prompter.system(AGENT, files, MODEL, "", TOOLS, SKILLS[1:]))


class EstimateTests(SynchronousTestCase):
    """estimate and fitted."""

    def test_estimate(self) -> None:
        """Four letters a token; ideographs, kana and hangul one each."""
        self.assertEqual([estimate(text) for text in ("", "abcdefgh", "漢字", "한국어", "ひらがな", "né n")], [0, 2, 2, 3, 4, 1])

    def test_bytes(self) -> None:
        """The same from UTF-8, and what it is at most, without counting exactly."""
        for text in (
            "",
            "abcdefgh",
            "漢字かな交じり文",
            "한국어 문장",
            "Zażółć gęślą jaźń",
            "Съешь ещё этих",
            "Tiếng Việt",
            "naïve — “quoted”",
            "🙂🙃 ok",
            "ＦＵＬＬ",
        ):
            data = text.encode()
            self.assertEqual(estimate_utf8(data), estimate(text))
            self.assertLessEqual(estimate(text), most_utf8(data))
            self.assertLess(most_utf8(data), estimate(text) + len(data) // 3 + 2)

    @hypothesis.settings(deadline=None, max_examples=100)
    @given(st.lists(st.text(max_size=400), max_size=6), st.integers(10, 2_000))
    def test_what_fits_by_a_quick_look_fits(self, texts: list[str], window: int) -> None:
        """Looking less closely where there is much room never lets more through."""
        messages = [pack(Message("user", text.encode("utf-8", "replace").decode())) for text in texts]
        found, total = fitted("s", messages, window), estimate("s") + sum(map(size, messages))
        if total >= window + len(messages):
            self.assertIsNone(found)
        elif total < window - len(messages):
            self.assertEqual(found, messages)

    def test_few_bytes_always_fit_and_too_many_never(self) -> None:
        """The window's edge, by estimate."""
        small, large = pack(Message("user", "hello")), pack(Message("user", "word " * 10_000))
        self.assertEqual([small], fitted("system", [small], 8_192))
        self.assertEqual([large], fitted("", [large], 20_000))
        self.assertIsNone(fitted("", [large], 8_192))
