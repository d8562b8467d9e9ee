"""Ways to say what shall be another in a tree: a value at a path, a merge patch, and the values that were hidden from who sends a text. Pure."""

from __future__ import annotations

from itertools import islice
from typing import Any

from mayros.config.check import REDACTED
from mayros.config.source import join, split
from mayros.errors import InvalidRequest

#: Deeper than any key of the schema.
MAX_STEPS = 32
_NOTHING = object()


def steps(path: str) -> list[str | int]:
    """The keys and indices of `a.b[0].c` or `a["b/c"].d`. Raises InvalidRequest for what is no path."""
    try:
        found = [step for step, _ in islice(split(path), MAX_STEPS + 1)]
    except ValueError:
        found = []
    if not found or isinstance(found[0], int) or len(found) > MAX_STEPS:
        raise InvalidRequest('not a path of the configuration: write it like gateway.port, agents.list[0].name or models.providers["my.one"].apiKey')
    return found


def assign(tree: Any, path: str, value: Any) -> None:
    """Put a value at a path; objects on the way are made, and an index may be the next one of its list. Raises InvalidRequest."""
    *way, last = steps(path)
    for number, step in enumerate(way):
        below = _at(tree, step, path)
        if below is _NOTHING:
            below = [] if isinstance([*way, last][number + 1], int) else {}
            _put(tree, step, below, path)
        tree = below
    _put(tree, last, value, path)


def remove(tree: Any, path: str) -> bool:
    """Take the value at a path away; False where there is none. Objects that hold nothing any more stay. Raises InvalidRequest for no path."""
    *way, last = steps(path)
    for step in way:
        tree = _at(tree, step, path)
        if tree is _NOTHING:
            return False
    if _at(tree, last, path) is _NOTHING:
        return False
    del tree[last]
    return True


def _at(tree: Any, step: str | int, path: str) -> Any:
    if isinstance(step, int):
        if not isinstance(tree, list):
            raise InvalidRequest(f"{path}: [{step}] stands behind what is no list")
        return tree[step] if step < len(tree) else _NOTHING
    if not isinstance(tree, dict):
        raise InvalidRequest(f"{path}: {step!r} stands below what is no object")
    return tree.get(step, _NOTHING)


def _put(tree: Any, step: str | int, value: Any, path: str) -> None:
    present = _at(tree, step, path) is not _NOTHING
    if isinstance(step, str) or present:
        tree[step] = value
    elif step == len(tree):
        tree.append(value)
    else:
        raise InvalidRequest(f"{path}: the list has {len(tree)} items")


def patch(tree: Any, changes: Any) -> Any:
    """The tree with a merge patch laid over it (RFC 7396); of lists of objects with an `id`, those with the same id are merged. Changes nothing."""
    if not isinstance(changes, dict):
        return _listed(tree, changes) if isinstance(changes, list) and isinstance(tree, list) else changes
    result = dict(tree) if isinstance(tree, dict) else {}
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = patch(result.get(key), value)
    return result


def _listed(old: list[Any], new: list[Any]) -> list[Any]:
    if not new or not (_named(old) and _named(new)):
        return new
    result = list(old)
    places = {item["id"]: number for number, item in enumerate(old)}
    for item in new:
        number = places.get(item["id"])
        if number is None:
            places[item["id"]] = len(result)
            result.append(patch(None, item))
        else:
            result[number] = patch(result[number], item)
    return result


def _named(items: list[Any]) -> bool:
    return all(isinstance(item, dict) and isinstance(item.get("id"), str) for item in items)


def restored(tree: Any, old: Any, path: str = "") -> Any:
    """The tree with every value that was hidden from its sender (`__MAYROS_REDACTED__`) as it is in `old`. Raises InvalidRequest: it is not there."""
    if isinstance(tree, dict):
        known = old if isinstance(old, dict) else {}
        if REDACTED in tree:
            raise InvalidRequest(f"{path or 'the file'}: a key that was hidden cannot be sent back; change other parts with config.patch")
        return {key: restored(value, known.get(key, _NOTHING), join(path, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        return [restored(item, _partner(tree, number, old), f"{path}[{number}]") for number, item in enumerate(tree)]
    if not isinstance(tree, str) or REDACTED not in tree:
        return tree
    # Of a URL only the password was hidden, so the whole text must be the one that was shown.
    if isinstance(old, str | int | float) and not isinstance(old, bool) and (tree == REDACTED or _covers(tree, str(old))):
        return old
    raise InvalidRequest(f"{path}: {REDACTED} stands for a value that was hidden, and there is none here: send the value itself")


def _covers(shown: str, old: str) -> bool:
    head, _, tail = shown.partition(REDACTED)
    return len(old) >= len(head) + len(tail) and old.startswith(head) and old.endswith(tail)


def _partner(items: list[Any], number: int, old: Any) -> Any:
    """Which item of the old list this one was."""
    if not isinstance(old, list):
        return _NOTHING
    item = items[number]
    if isinstance(item, dict) and isinstance(item.get("id"), str):
        return next((one for one in old if isinstance(one, dict) and one.get("id") == item["id"]), _NOTHING)
    return old[number] if number < len(old) and len(old) == len(items) else _NOTHING
