"""Transcripts: whatever happened to one, what a model gets is valid."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.core.pending import joined, left_open
from mayros.core.repair import LOST, repair
from mayros.messages import Function, Message, ToolCall, pack, unpack


def user(text: str = "hi") -> msgspec.Raw:
    return pack(Message("user", text))


def says(text: str | None, *ids: str) -> msgspec.Raw:
    """A model turn, perhaps with calls."""
    return pack(Message("assistant", text, tool_calls=tuple(ToolCall(id_, Function("look", "{}")) for id_ in ids) or None))


def result(id_: str, text: str = "found") -> msgspec.Raw:
    return pack(Message("tool", text, tool_call_id=id_))


def faults(messages: Sequence[msgspec.Raw]) -> list[str]:
    """What a strict provider would refuse."""
    found: list[str] = []
    open_calls: list[str] = []
    seen: set[str] = set()
    for raw in messages:
        message = unpack(raw)
        if message.role == "tool":
            if not open_calls or message.tool_call_id != open_calls.pop(0):
                found.append(f"result of {message.tool_call_id} out of place")
            continue
        if open_calls:
            found.append(f"no result of {open_calls}")
        ids = [call.id for call in message.tool_calls or ()]
        if set(ids) & seen or len(set(ids)) != len(ids):
            found.append("an id twice")
        seen.update(ids)
        open_calls = ids
        if not ids and not message.content:
            found.append("an empty message")
    return [*found, *([f"no result of {open_calls}"] if open_calls else [])]


def closed(history: Sequence[msgspec.Raw]) -> Sequence[msgspec.Raw]:
    """The history with results for the calls that are open at its end."""
    return joined(history, [result(id_) for id_ in left_open(history)])


IDS = st.sampled_from(["a", "b", "c", ""])
ANY = st.one_of(
    st.builds(user, st.sampled_from(["", "hi"])),
    st.builds(lambda text, ids: says(text, *ids), st.sampled_from([None, "", "text"]), st.lists(IDS, max_size=3)),
    st.builds(result, IDS, st.sampled_from(["", "found"])),
    st.binary(max_size=12).map(msgspec.Raw),
    st.sampled_from([msgspec.Raw(b"{}"), msgspec.Raw(b'{"role":"tool"}'), msgspec.Raw(b'{"role":"user","tool_calls":[{}]}')]),
)


class RepairTests(SynchronousTestCase):
    """`repair`, on load."""

    GOOD = (user(), says("Let me look.", "a", "b"), result("a"), result("b"), says(None, "c"), result("c", ""), says("Done."))

    def test_what_is_whole_stays_as_it_is(self) -> None:
        """The same messages, byte for byte."""
        self.assertEqual(repair(self.GOOD), self.GOOD)
        self.assertEqual(faults(self.GOOD), [])

    def test_a_lost_result_is_said_to_be_lost(self) -> None:
        """The model must not think that nothing happened."""
        damaged = [message for message in self.GOOD if message is not self.GOOD[3]]
        repaired = repair(damaged)
        self.assertEqual(unpack(repaired[3]), Message("tool", LOST, tool_call_id="b"))
        self.assertEqual(faults(repaired), [])

    def test_a_result_comes_directly_after_its_call(self) -> None:
        """Also where something came between."""
        damaged = [user(), says(None, "a"), user("are you there?"), result("a"), says("Yes.")]
        self.assertEqual(repair(damaged), (damaged[0], damaged[1], damaged[3], damaged[2], damaged[4]))

    def test_results_without_calls_and_repetitions_are_dropped(self) -> None:
        """A provider would refuse the whole conversation for them."""
        damaged = [result("x"), user(), says(None, "a"), result("a"), result("a", "again"), says("So.", "a"), says("Done.")]
        self.assertEqual([unpack(message).content for message in repair(damaged)], ["hi", None, "found", "So.", "Done."])

    def test_calls_at_the_end_are_left_open(self) -> None:
        """Whoever has to answer them may still do it; what came before them may not be left so."""
        history = (user(), says(None, "a"), user(), says("Let me see.", "b", "c"), result("b"))
        repaired = repair(history)
        self.assertEqual([unpack(message).tool_call_id for message in repaired], [None, None, "a", None, None, "b"])
        self.assertEqual((unpack(repaired[2]).content, left_open(repaired)), (LOST, ("c",)))
        self.assertEqual(faults(closed(repaired)), [])

    @settings(deadline=None, max_examples=80)
    @given(st.lists(ANY, max_size=12))
    def test_any_damage_gives_a_valid_history(self, damaged: list[msgspec.Raw]) -> None:
        """Whatever is stored, the session goes on; and what is repaired is whole."""
        repaired = repair(damaged)
        self.assertEqual(faults(closed(repaired)), [])
        self.assertEqual(list(map(bytes, repair(repaired))), list(map(bytes, repaired)))

    @settings(deadline=None, max_examples=60)
    @given(st.data())
    def test_any_loss_keeps_what_is_left(self, data: st.DataObject) -> None:
        """Messages lost, doubled or in another order: every text of a person is still there."""
        places = data.draw(st.lists(st.integers(0, len(self.GOOD) - 1), max_size=10))
        damaged = [self.GOOD[place] for place in places]
        repaired = repair(damaged)
        self.assertEqual(faults(closed(repaired)), [])
        self.assertEqual([m for m in map(unpack, repaired) if m.role == "user"], [m for m in map(unpack, damaged) if m.role == "user"])
