"""Comment-keeping changes of a JSON5 text: examples, and properties over texts in many manners."""

from __future__ import annotations

import copy
import itertools
import json
import re
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mayros.config.edit import rewrite, same, spans
from mayros.config.source import parse
from mayros.errors import ConfigError

FILE = """\
// The gateway of the workshop.
{
  gateway: { mode: 'local', port: 0x4965 /* 18789 */ }, // do not touch
  "agents": {
    // The first one is the default.
    list: [
      { id: "main", name: "Main" }, // everybody's
      {
        id: "beta", // on trial
        name: "Beta",
      },
    ],
  },
  /* the end */
}
"""


def edited(text: str, change: Any) -> str:
    """The text after `change` has been done to its tree."""
    tree = parse(text.encode(), "f")
    change(tree)
    new = rewrite(text, tree, "f")
    assert same(parse(new.encode(), "f"), tree)
    return new


class ExampleTests(SynchronousTestCase):
    """What a person who keeps a commented file sees."""

    def test_one_value(self) -> None:
        """Only the value changes."""
        new = edited(FILE, lambda tree: tree["agents"]["list"][1].update(name="Gamma"))
        self.assertEqual(FILE.replace('"Beta"', '"Gamma"'), new)

    def test_nothing_to_change(self) -> None:
        """The same tree is the same text, byte for byte."""
        self.assertEqual(FILE, edited(FILE, lambda tree: None))

    def test_a_new_key(self) -> None:
        """It comes after the others, in their manner: bare key, own line, trailing comma."""
        new = edited(FILE, lambda tree: tree["agents"]["list"][1].update(workspace="/srv/beta"))
        self.assertEqual(FILE.replace('name: "Beta",\n', 'name: "Beta",\n        workspace: "/srv/beta",\n'), new)

    def test_a_new_key_in_an_object_on_one_line(self) -> None:
        """It stays on that line, and the comment after it too."""
        new = edited(FILE, lambda tree: tree["agents"]["list"][0].update(emoji="🦊"))
        self.assertEqual(FILE.replace('name: "Main" }', 'name: "Main", emoji: "🦊" }'), new)

    def test_a_new_item(self) -> None:
        """With keys as bare as those of its neighbours."""
        new = edited(FILE, lambda tree: tree["agents"]["list"].append({"id": "new", "identity": {"emoji": "x"}, "tags": ["a", 1]}))
        entry = '      {\n        id: "new",\n        identity: {\n          emoji: "x"\n        },\n        tags: ["a", 1]\n      },\n'
        self.assertEqual(FILE.replace('"Beta",\n      },\n', '"Beta",\n      },\n' + entry), new)

    def test_an_item_goes(self) -> None:
        """With its lines; what the comments around it say stays."""
        new = edited(FILE, lambda tree: tree["agents"]["list"].pop())
        self.assertEqual(re.sub(r"      \{\n.*?\},\n", "", FILE, count=1, flags=re.DOTALL), new)
        new = edited(FILE, lambda tree: tree["agents"]["list"].pop(0))
        self.assertIn('list: [\n      // everybody\'s\n      {\n        id: "beta"', new)

    def test_an_item_goes_and_another_changes(self) -> None:
        """Objects are known by their id, so the text of those that stay is not mixed up."""

        def change(tree: Any) -> None:
            del tree["agents"]["list"][0]
            tree["agents"]["list"][0]["name"] = "B"

        self.assertIn('id: "beta", // on trial\n        name: "B",', edited(FILE, change))

    def test_plain_json_stays_plain_json(self) -> None:
        """No trailing comma appears, on one line or on many."""
        tree = {"gateway": {"mode": "local"}, "agents": {"list": [{"id": "main"}, {"id": "beta"}]}}
        for indent in (None, 2, "\t"):
            text = json.dumps(tree, indent=indent)
            for change in (
                lambda tree: tree["agents"]["list"].append({"id": "x", "model": {"fallbacks": []}}),
                lambda tree: tree["agents"]["list"].pop(),
                lambda tree: tree["agents"]["list"].clear(),
                lambda tree: tree.pop("agents"),
                lambda tree: tree.update(logging={}),
                lambda tree: tree.clear(),
                lambda tree: tree["agents"]["list"].insert(0, 1),
            ):
                new = edited(text, change)
                wanted = json.loads(text)
                change(wanted)
                self.assertEqual(wanted, json.loads(new))
                self.assertTrue("\n" in text or "\n" not in new, new)

    def test_a_missing_file(self) -> None:
        """The first write makes a readable one."""
        new = edited("{}\n", lambda tree: tree.update(agents={"list": [{"id": "main"}]}))
        self.assertEqual(json.dumps({"agents": {"list": [{"id": "main"}]}}, indent=2) + "\n", new)

    def test_line_ends_and_marks(self) -> None:
        """Windows' line ends and a byte order mark stay."""
        text = "\ufeff" + FILE.replace("\n", "\r\n")
        new = edited(text, lambda tree: tree["agents"]["list"].append({"id": "new"}))
        self.assertTrue(new.startswith("\ufeff"))
        self.assertEqual(new.count("\n"), new.count("\r\n"))

    def test_keys_that_stand_twice(self) -> None:
        """The last one counts, so it is the one that changes; both go."""
        text = '{ "a": 1, b: 2, "a": 3 }'
        self.assertEqual('{ "a": 1, b: 2, "a": 4 }', edited(text, lambda tree: tree.update(a=4)))
        self.assertEqual("{ b: 2 }", edited(text, lambda tree: tree.pop("a")))

    def test_comments_where_it_hurts(self) -> None:
        """Between key and colon, before commas, in empty objects, at the end of a line that grows."""
        for text in (
            "{ /* empty */ }",
            "{ // empty\n}",
            "{ a: 1 // one\n}",
            "{ a: 1 /* one */ , }",
            "{\n  a: 1 // one\n  , b /* two */ : /* 2 */ 2\n}",
            "{\n  a: 1, /* of b */ b: 2,\n}",
            "// x\n{a:[ // list\n]}// y",
        ):
            for change in (
                lambda tree: tree.update(new={"x": [1]}),
                lambda tree: tree.pop("a", None),
                lambda tree: (tree.clear(), tree.update(z=[])),
                lambda tree: tree.update(a=[0, {"k": 1}]),
            ):
                new = edited(text, change)
                inside = {"/* two */", "/* 2 */", "// list"}
                for comment in re.findall(r"/\*.*?\*/|//[^\n]*", text):
                    self.assertTrue(comment in new or comment in inside, f"{comment} is lost: {new!r}")

    def test_what_cannot_be_written(self) -> None:
        """Half a character is refused, not written."""
        self.assertRaises(ConfigError, edited, "{}", lambda tree: tree.update(a="\ud800"))


KEYS = st.sampled_from(["a", "b", "c", "id", "Long name", "true", "é", 'q"', "list"])
WORD = r"c\d{3}c"
LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-2, 2), st.text(max_size=5), st.sampled_from(["//", "/*", "${X}", "{,}"]))
TREES = st.recursive(LEAVES, lambda below: st.one_of(st.lists(below, max_size=4), st.dictionaries(KEYS, below, max_size=4)), max_leaves=12)
ROOTS = st.dictionaries(KEYS, TREES, max_size=4)


@st.composite
def manners(draw: st.DrawFn, tree: Any) -> str:
    """A text that says `tree`, in some manner; its comments hold words such as c003c."""
    counted = itertools.count()

    def gap() -> str:
        kind = draw(st.integers(0, 7))
        if kind > 3:
            return ""
        if kind < 2:
            return draw(st.sampled_from([" ", "\n", "\n  ", "\r\n\t", "  "]))
        word = f"c{next(counted):03}c"
        return f"/* {word} , */" if kind == 2 else f"// {word} }}\n"

    def say(value: Any) -> str:
        if isinstance(value, list):
            return "[" + joined([say(item) for item in value]) + "]"
        if isinstance(value, dict):
            return "{" + joined([f"{name(key)}{gap()}:{gap()}{say(below)}" for key, below in value.items()]) + "}"
        if isinstance(value, str) and draw(st.booleans()) and value.isalnum():
            return f"'{value}'"
        return json.dumps(value, ensure_ascii=draw(st.booleans()))

    def name(key: str) -> str:
        return key if key.isalpha() and key.isascii() and key != "true" and draw(st.booleans()) else json.dumps(key)

    def joined(items: list[str]) -> str:
        text = gap() + ("," + gap()).join(item + gap() for item in items)
        return text + ("," + gap() if items and draw(st.booleans()) else "")

    return gap() + say(tree) + gap()


class PropertyTests(SynchronousTestCase):
    """Whatever the manner of the text and whatever the change."""

    @settings(max_examples=30, deadline=None)
    @given(st.data(), ROOTS, ROOTS)
    def test_any_change(self, data: st.DataObject, before: Any, after: Any) -> None:
        """The text says afterwards what it shall say, and a text that says it already stays as it is."""
        new = rewrite(data.draw(manners(before)), after, "f")
        self.assertTrue(same(after, parse(new.encode(), "f")))
        self.assertEqual(new, rewrite(new, after, "f"))

    @settings(max_examples=30, deadline=None)
    @given(st.data(), ROOTS, TREES)
    def test_an_addition_keeps_everything(self, data: st.DataObject, tree: Any, value: Any) -> None:
        """A key more at the top: every character that was there is there, in its order, but for blanks in an empty file."""
        text = data.draw(manners(tree))
        new = rewrite(text, {**copy.deepcopy(tree), "new": value}, "f")
        rest = iter(new)
        kept = text if tree else "".join(text.split())
        self.assertTrue(all(character in rest for character in kept), f"{text!r} is not in {new!r}")

    @settings(max_examples=30, deadline=None)
    @given(st.data(), ROOTS)
    def test_a_removal_keeps_the_comments_outside(self, data: st.DataObject, tree: Any) -> None:
        """Values and commas go; remarks outside of the removed members stay."""
        text = data.draw(manners({**tree, "keep": 1}))
        inside = "".join(text[member.start : member.value.end] for member in spans(text).members if member.key != "keep")
        new = rewrite(text, {"keep": 1}, "f")
        words = re.findall(WORD, text)
        self.assertEqual([word for word in words if word not in inside], re.findall(WORD, new))
