"""Skills: what the head of a SKILL.md says, which are found, and how the prompt lists them."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Sequence
from typing import Any

import msgspec
from twisted.internet.defer import fail
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.schema import Skills as SkillSettings
from mayros.core.routing import Agent
from mayros.core.skills import MOST_CHARS, MOST_LISTED, head_of, section
from mayros.core.workspace_ports import Skill
from mayros.storage.skills import CHECK_SECONDS, MAX_BYTES, FileSkills
from mayros.tools.access import Access
from tests.test_workspace import Threads


def skill_text(name: str, description: str = "Does it.", *lines: str) -> str:
    """A SKILL.md."""
    return "\n".join(["---", f"name: {name}", f"description: {description}", *lines, "---", "", "# How", ""])


class HeadTests(SynchronousTestCase):
    """head_of."""

    def test_plain(self) -> None:
        """Name and description, comments and other keys beside them."""
        head = head_of("---\n# about\nname: pdf\ndescription: Make PDF files. # really\nhomepage: https://x\n---\nname: other\n")
        assert head is not None
        self.assertEqual(("pdf", "Make PDF files.", False), (head.name, head.description, head.hidden))

    def test_ways_to_write_a_text(self) -> None:
        """Quoted, folded, literal, over several lines."""
        for written, expected in (
            ('"a: \\"b\\" # c"', 'a: "b" # c'),
            ("'it''s # this'", "it's # this"),
            (">-\n  one\n  two", "one two"),
            ("|\n  one\n  two", "one two"),
            ("one\n  two", "one two"),
            ("one\r", "one"),
        ):
            head = head_of(f"---\nname: a\ndescription: {written}\n---\n")
            self.assertEqual(expected, head and head.description, written)

    def test_no_head(self) -> None:
        """Without a name or a description, or a head at all, it is no skill."""
        for text in (
            "",
            "# pdf",
            "---\n---",
            "---\nname: a\n---",
            "---\ndescription: b\n---",
            "---\nname: <x>\ndescription: b\n---",
            "x\n---\nname: a\n",
        ):
            self.assertIsNone(head_of(text), text)

    def test_metadata(self) -> None:
        """One line of JSON, or several, under this gateway's name or the original's; nonsense counts as none."""
        for written, expected in (
            ('{"mayros": {"always": true}}', {"always": True}),
            ('{"openclaw": {"os": ["linux"]}}', {"os": ["linux"]}),
            ('\n  {\n    "openclaw": {\n      "emoji": "x",\n    },\n  }', {"emoji": "x"}),
            ("{", {}),
            ("[]", {}),
            ('{"mayros": 5}', {}),
        ):
            head = head_of(skill_text("a", "b", f"metadata: {written}"))
            self.assertEqual(expected, head and head.needs, written)

    def test_it_stays_on_its_line(self) -> None:
        """Control characters cannot add lines to a prompt, and a description is not endless."""
        head = head_of(skill_text("a", '"one\\u0000\\ntwo"'))
        self.assertEqual("one two", head and head.description)
        head = head_of(skill_text("a", "x" * 5_000))
        self.assertEqual(1_024, len(head.description) if head else 0)


class SectionTests(SynchronousTestCase):
    """section."""

    def test_values_are_escaped(self) -> None:
        """A description cannot close the list or add to it."""
        text = section([Skill("a", '</description></skill> & <b> "q"', "/w/skills/a/SKILL.md\n")], 10_000)
        self.assertIn("<description>&lt;/description&gt;&lt;/skill&gt; &amp; &lt;b&gt; &quot;q&quot;</description>", text)
        self.assertIn("<location>/w/skills/a/SKILL.md</location></skill>\n</available_skills>", text)

    def test_limits(self) -> None:
        """At most 150 skills and 30,000 characters, and no more than there is room for; nothing where there is none."""
        many = [Skill(f"s{number}", "short", f"/s/{number}/SKILL.md") for number in range(300)]
        self.assertEqual(MOST_LISTED, section(many, 1_000_000).count("<skill>"))
        long = [Skill(f"s{number}", "x" * 1_000, f"/s/{number}/SKILL.md") for number in range(300)]
        self.assertLessEqual(len(section(long, 1_000_000)), MOST_CHARS)
        self.assertLessEqual(len(section(long, 3_000)), 3_000)
        self.assertEqual("", section(long, 100))
        self.assertEqual("", section([], 10_000))


class FindingTests(SynchronousTestCase):
    """FileSkills."""

    def setUp(self) -> None:
        self.base = os.path.abspath(self.mktemp())
        self.places = {name: os.path.join(self.base, name) for name in ("workspace", "home", "state", "extra")}
        for path in self.places.values():
            os.makedirs(path)
        self.agent = Agent("main", None, None, self.places["workspace"], (), "", {}, 600.0, 20_000, 150_000, None, None)
        self.clock, self.threads = Clock(), Threads()
        self.environ: dict[str, str] = {"PATH": os.path.join(self.base, "bin")}
        self.skills = self.finder()

    def finder(self, workspaces: Sequence[str] = (), **settings: Any) -> FileSkills:
        known = msgspec.convert({"load": {"extraDirs": [self.places["extra"]]}, **settings}, SkillSettings)
        return FileSkills(known, self.places["state"], self.places["home"], self.environ, self.clock, self.threads, lambda: workspaces)

    def put(self, folder: str, name: str, text: str | None = None) -> str:
        """Write a SKILL.md; its path."""
        path = os.path.join(self.base, folder, name, "SKILL.md")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write(skill_text(name) if text is None else text)
        return path

    def found(self, agent: Agent | None = None) -> dict[str, Skill]:
        """What the agent has once the time between two looks is over."""
        self.clock.advance(CHECK_SECONDS)
        return {skill.name: skill for skill in self.successResultOf(self.skills.skills(agent or self.agent))}

    def test_places_and_precedence(self) -> None:
        """The workspace's, those beside it, the user's, the gateway's, further ones: the first of a name wins. By name."""
        places = ["workspace/skills", "workspace/.agents/skills", "home/.agents/skills", "state/skills", "extra"]
        for number, folder in enumerate(places):
            self.put(folder, f"only{number}")
            self.put(folder, "same", skill_text("same", f"From {folder}."))
        self.assertEqual(["only0", "only1", "only2", "only3", "only4", "same"], list(self.found()))
        for folder in places:
            self.assertEqual(f"From {folder}.", self.found()["same"].description)
            os.unlink(os.path.join(self.base, folder, "same", "SKILL.md"))
        workspace, *others = [(os.path.join(self.base, folder), "") for folder in ("workspace", *places[2:])]
        own = [(workspace[0], "skills"), (workspace[0], os.path.join(".agents", "skills"))]
        self.assertEqual([*own, *others], self.skills.folders(self.agent))

    def test_a_folder_in_a_workspace_is_walked_from_there(self) -> None:
        """Also where links lead to it, of this agent or of another: once a model has put a link in its place, nothing is read through it."""
        real, link, way = (os.path.join(self.base, name) for name in ("real", "link", "way"))
        os.makedirs(real)
        os.symlink("real", link)
        os.symlink(os.path.join(link, "shared"), way)
        self.put("outside", "a")
        access = Access((), lambda agent: self.skills.folders(agent))
        shared = os.path.join(real, "shared")
        cases = ((msgspec.structs.replace(self.agent, workspace=link), link), (self.agent, real), (self.agent, link))
        for (agent, workspace), extra in itertools.product(cases, (shared, f"{link}/shared", way, f"{link}/../real/./shared/")):
            self.put("real/shared", "a")
            self.skills = self.finder([workspace], load={"extraDirs": [extra]})
            location = self.found(agent)["a"].path
            self.assertEqual(((workspace, "shared"), f"{workspace}/shared/a/SKILL.md"), (self.skills.folders(agent)[-1], location), extra)
            access.enter(agent, location, True, reading=True).__exit__()
            shutil.rmtree(shared)
            os.symlink(os.path.join(self.base, "outside"), shared)
            self.assertEqual({}, self.found(agent), extra)
            self.assertRaises(PermissionError, access.enter, agent, location, True, reading=True)
            os.unlink(shared)

    def test_no_folders(self) -> None:
        """No skills, and nothing in the log."""
        self.assertEqual({}, self.found())

    def test_what_is_not_listed(self) -> None:
        """Hidden from the model, switched off, not the agent's, without a head, too large, behind a link that leads out."""
        self.put("state/skills", "good")
        self.put("state/skills", "hidden", skill_text("hidden", "x", "disable-model-invocation: true"))
        self.put("state/skills", "off")
        self.put("state/skills", "headless", "# nothing")
        self.put("state/skills", "large", skill_text("large") + "x" * MAX_BYTES)
        self.put("outside", "linked")
        os.symlink(os.path.join(self.base, "outside", "linked"), os.path.join(self.base, "state", "skills", "linked"))
        os.mkfifo(os.path.join(self.base, "state", "skills", "pipe"))
        self.skills = self.finder(entries={"off": {"enabled": False}})
        self.assertEqual(["good"], list(self.found()))
        self.assertEqual({}, self.found(msgspec.structs.replace(self.agent, skills=("other",))))
        self.assertEqual(["good"], list(self.found(msgspec.structs.replace(self.agent, skills=("good",)))))

    def test_needs(self) -> None:
        """What its metadata asks for must be there: programs, variables, the system."""

        def listed(metadata: str) -> bool:
            self.put("state/skills", "a", skill_text("a", "x", f'metadata: {{"openclaw": {metadata}}}'))
            return "a" in self.found()

        os.makedirs(os.path.join(self.base, "bin"))
        program = os.path.join(self.base, "bin", "there")
        with open(program, "w") as file:
            file.write("#!/bin/sh\n")
        os.chmod(program, 0o700)
        self.environ["SET"] = "1"
        for metadata in (
            '{"requires": {"bins": ["there"]}}',
            '{"requires": {"anyBins": ["missing", "there"]}}',
            '{"requires": {"env": ["SET"]}, "emoji": "x", "install": [{"kind": "brew"}]}',
            '{"os": ["linux", "darwin"]}',
            '{"always": true, "requires": {"bins": ["missing"]}}',
        ):
            self.assertTrue(listed(metadata), metadata)
        for metadata in (
            '{"requires": {"bins": ["there", "missing"]}}',
            '{"requires": {"anyBins": ["missing"]}}',
            '{"requires": {"env": ["UNSET"]}}',
            '{"requires": {"config": ["channels.discord"]}}',
            '{"os": ["win32"], "always": true}',
            '{"requires": 5}',
        ):
            self.assertFalse(listed(metadata), metadata)

    def test_looking_is_shared_and_rare(self) -> None:
        """One look every few seconds, whoever asks; the same tuple as long as nothing changes, and a file is read once."""
        path = self.put("state/skills", "a")
        self.threads.held = []
        first, second = self.skills.skills(self.agent), self.skills.skills(self.agent)
        self.threads.held.pop()()
        self.threads.held = None
        once = self.successResultOf(first)
        self.assertIs(once, self.successResultOf(second))
        self.assertIs(once, self.successResultOf(self.skills.skills(self.agent)))
        self.assertEqual(1, self.threads.calls)
        self.clock.advance(CHECK_SECONDS)
        self.assertIs(once, self.successResultOf(self.skills.skills(self.agent)))
        with open(path, "w") as file:
            file.write(skill_text("a", "Changed it."))
        self.assertEqual("Changed it.", self.found()["a"].description)

    def test_other_settings(self) -> None:
        """Hold for the next who asks, without waiting for the next look."""
        self.put("state/skills", "a")
        self.put("more", "b")
        self.assertEqual({"a"}, set(self.found()))
        more = os.path.join(self.base, "more")
        self.skills.use(msgspec.convert({"load": {"extraDirs": [more]}, "entries": {"a": {"enabled": False}}}, SkillSettings))
        self.assertEqual({"b"}, {skill.name for skill in self.successResultOf(self.skills.skills(self.agent))})

    def test_too_many(self) -> None:
        """Of one folder 300 entries are looked at and 200 skills taken."""
        for number in range(310):
            self.put("state/skills", f"s{number:03}")
        self.assertEqual([f"s{number:03}" for number in range(200)], list(self.found()))

    def test_whoever_leaves_only_stops_waiting(self) -> None:
        """A run that is cancelled meanwhile takes nothing from the others."""
        self.put("state/skills", "a")
        self.threads.held = []
        first, second = self.skills.skills(self.agent), self.skills.skills(self.agent)
        first.cancel()
        self.failureResultOf(first)
        self.threads.held.pop()()
        self.assertEqual(1, len(self.successResultOf(second)))

    def test_a_look_that_fails(self) -> None:
        """Leaves what was known, says so in the log, and nobody's run fails."""
        self.put("state/skills", "a")
        self.assertEqual(["a"], list(self.found()))
        self.patch(self.skills, "_in_thread", lambda *_: fail(OSError("disk")))
        self.assertEqual(["a"], list(self.found()))
        self.assertEqual(1, len(self.flushLoggedErrors(OSError)))
