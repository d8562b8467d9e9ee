"""What models, files and commands do to a gateway that acts: the rows T01 to T18 of the project's table, and the test of each.

| row | what | where |
|---|---|---|
| T01 | `..`, absolute paths, `~` | test_tools_files: test_paths_that_lead_out, test_nothing_is_ever_written_outside; test_rooted: test_up |
| T01 | `..`, absolute paths, `~` | test_rooted: test_no_path_leads_out |
| T02 | symlinks that lead out | test_tools_files: test_symlinks_that_lead_out, test_a_folder_of_skills_that_became_a_symlink |
| T02 | symlinks that lead out | test_rooted: test_symlinks_out |
| T02 | swapped between check and open | test_rooted: test_a_folder_that_becomes_a_symlink, test_a_file_that_becomes_a_symlink |
| T03 | hard links, FIFOs, devices, /proc | test_tools_files: test_no_regular_files; test_rooted: test_regular_files_only |
| T03 | hard links, FIFOs, devices, /proc | test_rooted: test_a_fifo_that_was_a_file |
| T03 | writes are whole or not at all | test_rooted: test_a_write_that_fails, test_what_is_refused; test_tools_files: test_all_or_nothing |
| T04 | huge and binary files | test_tools_files: test_sizes_and_binary_files; test_rooted: test_sizes |
| T05 | the environment of commands | test_tools_exec: test_no_secret_of_the_gateway_is_in_the_environment |
| T05 | the environment of commands | test_process_tools: test_what_a_command_may_not_know |
| T06 | never ends, ignores TERM | test_tools_exec: test_the_time_limit_ends_the_whole_group, test_everything_is_gone_after_a_second |
| T06 | grandchildren, also ones that hold a pipe | test_tools_exec: test_what_it_leaves_running_is_ended |
| T06 | grandchildren, also ones that hold a pipe | test_process_tools: test_a_client_that_leaves_ends_the_command |
| T06 | what a killed gateway left | test_tools_exec: test_the_next_start_ends_what_was_left |
| T06 | what a killed gateway left | test_process_tools: test_the_next_start_ends_what_a_killed_gateway_left |
| T07 | a flood of output | test_tools_exec: test_a_flood_is_drained_and_cut_in_the_middle, test_head_and_tail_are_kept_on_character_borders |
| T07 | the end of an output while the gateway is busy | here: test_the_last_words_of_a_command |
| T08 | waiting for input, tricks of terminals | test_tools_exec: test_input_is_empty_and_there_is_no_terminal |
| T08 | waiting for input, tricks of terminals | test_tools_exec: test_characters_and_sequences_may_come_in_pieces |
| T09-T13 | fetching from the web | there is no such tool: test_toolbox: test_every_known_tool_has_a_row |
| T14 | instructions in what comes from outside | test_loop: test_a_result_from_outside_stands_between_marks |
| T14 | instructions in what comes from outside | test_loop: test_what_came_from_outside_stays_so_when_it_is_read_back |
| T14 | instructions in files of others | test_tools_files: test_a_file_of_others_comes_from_outside |
| T14 | nothing closes the marks | here: test_no_text_closes_its_marks |
| T14 | policy decides | test_policy: test_deny_always_wins; test_approvals: test_a_call_can_only_be_stricter |
| T14 | policy decides | test_approvals: test_what_is_kept_can_only_be_stricter |
| T14 | what a person approves is what runs | test_approvals: test_a_decision_is_bound; test_tools_exec: test_what_was_allowed_is_what_runs |
| T14 | command lines that hide another one | test_command: test_what_could_run_something_else_is_refused, test_files_and_expansions_are_not |
| T15 | secrets in results and arguments | test_loop: test_a_long_result_keeps_head_and_tail, test_secrets_in_arguments_are_not_recorded |
| T15 | secrets in results and arguments | test_tools_files: test_secrets |
| T15 | a secret that comes in pieces, and a page that shows a part of one | test_redact: test_a_secret_in_pieces, test_pieces_are_like_the_whole |
| T15 | a secret that comes in pieces, and a page that shows a part of one | test_tools_exec: test_a_secret_that_comes_in_pieces |
| T15 | a secret that comes in pieces, and a page that shows a part of one | test_tools_files: test_a_page_that_begins_or_ends_inside_of_a_secret |
| T15 | a secret wherever it stands in a long result | here: test_a_secret_anywhere_in_a_long_result |
| T16 | names | test_loop: test_tools_that_are_not_there_or_not_allowed; here: test_odd_names |
| T16 | arguments | test_loop: test_arguments_that_cannot_be_used, test_arguments_that_the_limit_cut_off; here: test_odd_arguments |
| T16 | transcripts stay whole | test_repair: test_any_damage_gives_a_valid_history |
| T16 | transcripts stay whole | test_loop: test_the_tools_are_cancelled_and_every_call_has_a_result |
| T17 | loops without progress | test_loop: test_a_loop_is_warned_of_then_stopped, test_rounds_are_limited |
| T17 | loops without progress | test_repeats: test_two_calls_in_turns_are_blocked_from_twenty |
| T17 | too much at once | test_loop: test_more_calls_than_anybody_makes, test_a_tool_that_never_ends; here: test_too_many_commands |
| T17 | sub-agents | there are none yet; what they would never have: test_policy: test_sub_agents |
| T18 | the gateway's own files, `.ssh`, shells | test_tools_files: test_what_is_protected, test_a_protected_file_that_is_a_symlink |
| T18 | the gateway's own files, `.ssh`, shells | test_tools_files: test_the_workspace_is_there_explicitly |
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.acting import PIECE_CHARS
from mayros.core.bounds import wrapped
from mayros.events import ToolCallDelta
from mayros.net.spawn import environment
from mayros.tools.jobs import RUNNING_MAX
from tests.helpers import SECRET, FakeTool
from tests.test_loop import PATH, LoopCase
from tests.test_tools_exec import ExecCase

FIXED = settings(derandomize=bool(os.environ.get("CI")), database=None, deadline=None, max_examples=80)
MARK = "EXTERNAL_UNTRUSTED_CONTENT"
#: What a text would be made of that wants to get out.
PIECES = st.sampled_from(
    [MARK, f"<<<END_{MARK}", f"<<<{MARK} id=", "EXTERNAL", "_", "\uff3f", "UNTRUSTED", "CONTENT", "\u200b", "-", " ", ">>>", "<<<", "\n", '"',
     "b0b0", "b0", "external_untrusted_content", "\uff25\uff38\uff34\uff25\uff32\uff2e\uff21\uff2c", "[mark removed]", "<|im_end|>", "<|",
     "|>", "[INST]", "[/INST]", "<<SYS>>"]
)  # fmt: skip


class TableTests(SynchronousTestCase):
    """The table above."""

    def test_every_row_names_a_test_that_is_there(self) -> None:
        """In the module that it names."""
        rows = [line for line in (__doc__ or "").splitlines() if line.startswith("| T")]
        covered: set[int] = set()
        for row in rows:
            first, *last = re.findall(r"\d+", row.split("|")[1])
            covered.update(range(int(first), int(*last or (first,)) + 1))
            module, names = "", 0
            for word in re.findall(r"\bhere\b|\btest_\w+", row.split("|")[3]):
                if word == "here" or (Path(__file__).parent / f"{word}.py").is_file():
                    module = "test_tools_cases" if word == "here" else word
                else:
                    names += 1
                    self.assertIn(f"def {word}(", (Path(__file__).parent / f"{module}.py").read_text(), row)
            self.assertGreater(names, 0, row)
        self.assertEqual(covered, set(range(1, 19)))


class OutsideTests(SynchronousTestCase):
    """Text that comes from outside."""

    def test_borders_inside_borders(self) -> None:
        """T14: taking one away does not leave another."""
        for text in ("<|[INST]|>", "<|[/SYS]|>", "[<|im_end|>INST]"):
            self.assertNotRegex(wrapped(text, "b0b0"), r"\[/?(INST|SYS)\]|<\|")

    @FIXED
    @given(st.lists(PIECES | st.text(max_size=3), max_size=25).map("".join))
    def test_no_text_closes_its_marks(self, text: str) -> None:
        """T14: whatever it is made of, there is one mark before it and one after it, and no border of messages in it."""
        first, *lines, last = wrapped(text, "b0b0").split("\n")
        self.assertEqual((first, last), (f'<<<{MARK} id="b0b0">>>', f'<<<END_{MARK} id="b0b0">>>'))
        inside = "\n".join(lines)
        self.assertNotIn(MARK, re.sub("[\u200b\\s_-]", "", inside).upper().replace("EXTERNALUNTRUSTEDCONTENT", MARK))
        self.assertNotIn("b0b0", inside)
        for token in ("<|im_end|>", "[INST]", "[/INST]", "<<SYS>>"):
            self.assertNotIn(token, inside)


class ModelTests(LoopCase):
    """What a model sends."""

    def test_a_secret_anywhere_in_a_long_result(self) -> None:
        """T15: also across the border of two pieces that are gone through one after the other, with and without blanks in it."""
        key = "\n".join(["-----BEGIN PRIVATE KEY-----", *["MIIEvQIBADANBgkqhkiG9w0BAQEFAASC"] * 20, "-----END PRIVATE KEY-----"])
        for secret in (SECRET, key):
            for start in range(PIECE_CHARS - len(secret) - 1, PIECE_CHARS + 2, 1 + len(secret) // 6):
                self.use(FakeTool("look", "x" * start + " " + secret + " " + "y" * 40_000))
                self.one_call("look", {})
                (kept,) = self.gateway.results.kept.values()
                self.assertEqual(kept, "x" * start + " *** " + "y" * 40_000)

    def test_odd_names(self) -> None:
        """T16: a tool is called by its exact name or not at all; each such call has a result that a model takes."""
        look = FakeTool(parameters=PATH)
        self.use(look)
        odd = ("Look", "look ", "look\u200b", "loo\u212a", "functions.look", "look;exec", "../look", "__class__", "x" * 10_000, "\n")
        for name in odd:
            self.assertIn("There is no tool", self.one_call(name, {"path": "a"}), name)
        self.assertEqual(look.calls, [])
        self.recorded("agent:main:s0")

    def test_odd_arguments(self) -> None:
        """T16: what is not what the schema says is not passed on, however it is written."""
        look = FakeTool(parameters=PATH)
        self.use(look)
        odd = ('["a"]', "null", "1e999", '{"path":"a"}{"path":"b"}', '{"path":NaN}', '{"path":["a"]}', '{"path":"a","__proto__":{}}',
               "{" * 5_000, "[" * 100_000, '{"path":' * 20_000, '{"path":"\ud800"}', '{"path":"a"', "\x00")  # fmt: skip
        for text in odd:
            run = self.run_(session=f"s{self.count}")
            self.provider.push([ToolCallDelta(0, text, "call", "look")])
            self.provider.stop("tool_calls")
            self.provider.say("done")
            self.provider.stop()
            self.assertEqual(run.result.outcome, "ok", text[:40])
            self.assertTrue(self.results()[-1].startswith("Error: "), text[:40])
        self.assertEqual(look.calls, [])


class CommandTests(ExecCase):
    """What commands do."""

    async def test_the_last_words_of_a_command(self) -> None:
        """T07: a gateway that comes to read them late, when the command is long gone, has all of them."""
        said = bytearray()
        command = "head -c 60000 /dev/zero | tr '\\0' x; echo; echo that was all"
        process = self.spawner.start(command, self.workspace, environment(os.environ, {}), said.extend, timeout=10)
        process.transport.pipes[1].pauseProducing()  # as if it were always somebody else's turn, until it is known that the command has ended
        await process.ended()
        self.assertEqual((len(said), bytes(said[-14:])), (60_014, b"\nthat was all\n"))

    async def test_too_many_commands(self) -> None:
        """T17: an agent may have so many at a time; the next one is refused, with what to do."""
        running: list[Any] = [await self.start("exec sleep 30") for _ in range(RUNNING_MAX)]
        await self.refused("Too many commands are running", self.call("true"))
        await self.look("kill", running[0]["sessionId"])
        self.assertEqual(await self.text("echo again"), "again")
