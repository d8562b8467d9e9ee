"""Counters and histograms as plain numbers, and their text for Prometheus. Imports nothing of ours.

prometheus-client needs 70 ms for as many series as are allowed here, in the reactor thread; this needs 2 (docs/decisions/0013). Labels hold names of
our own only, and however many there are, the series are bounded: what would be one too many is counted, not kept.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

#: Lines with a value in one answer, but for gauges.
MAX_SERIES = 2048

#: Labels and value of one line.
Sample = tuple[tuple[str, ...], float]


class Family(Protocol):
    """All that has one name."""

    name: str

    def lines(self) -> Iterable[str]: ...


class Counter:
    """Counts by the values of its labels."""

    def __init__(self, registry: Registry, name: str, about: str, labels: Sequence[str] = ()) -> None:
        self.name, self._about, self._labels, self._registry = name, about, labels, registry
        self.cells: dict[tuple[str, ...], float] = {}
        #: How the line of each begins; made once, so that a scrape is quick.
        self._begins: dict[tuple[str, ...], str] = {}
        if not labels:
            self._begin((), 0)
        registry.add(self)

    def add(self, *values: str, by: float = 1) -> None:
        """Count one more, or `by`."""
        cells = self.cells
        if values in cells:
            cells[values] += by
        elif self._registry.room(1):
            self._begin(values, by)

    def _begin(self, values: tuple[str, ...], value: float) -> None:
        self.cells[values] = value
        self._begins[values] = f"{self.name}{_labels(self._labels, values)} "

    def lines(self) -> Iterable[str]:
        """See Family."""
        yield _head(self.name, self._about, "counter")
        for begin, value in zip(self._begins.values(), self.cells.values(), strict=True):  # in the same order
            yield begin + _number(value)


class Histogram:
    """Counts how many values were at most each of `bounds`, by the values of its labels."""

    def __init__(self, registry: Registry, name: str, about: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        self.name, self._about, self._bounds, self._labels, self._registry = name, about, tuple(bounds), labels, registry
        self._shown = [f'le="{_number(bound)}"' for bound in bounds] + ['le="+Inf"']
        #: For each interval how many values were in it, then their sum.
        self.cells: dict[tuple[str, ...], list[float]] = {}
        self._begins: dict[tuple[str, ...], Sequence[str]] = {}
        registry.add(self)

    def observe(self, value: float, *values: str) -> None:
        """One more value."""
        cell = self.cells.get(values)
        if cell is None:
            if not self._registry.room(len(self._bounds) + 3):
                return
            cell = self.cells[values] = [0] * (len(self._bounds) + 1) + [0.0]
            self._begins[values] = self._begin(values)
        cell[bisect_left(self._bounds, value)] += 1
        cell[-1] += value

    def _begin(self, values: tuple[str, ...]) -> Sequence[str]:
        """How the lines of these labels begin: the intervals, the sum, the count."""
        inside, around = _inside(self._labels, values), _labels(self._labels, values)
        before = f"{inside}," if inside else ""
        buckets = [f"{self.name}_bucket{{{before}{shown}}} " for shown in self._shown]
        return (*buckets, f"{self.name}_sum{around} ", f"{self.name}_count{around} ")

    def lines(self) -> Iterable[str]:
        """See Family."""
        yield _head(self.name, self._about, "histogram")
        for begins, cell in zip(self._begins.values(), self.cells.values(), strict=True):
            counts = list(accumulate(cell[:-1]))
            yield from [f"{begin}{count}" for begin, count in zip(begins, counts, strict=False)]
            yield f"{begins[-2]}{cell[-1]!r}"
            yield f"{begins[-1]}{counts[-1]}"


class Gathered:
    """Values that are kept elsewhere and read when somebody asks: `read` gives them."""

    def __init__(
        self, registry: Registry, name: str, about: str, read: Callable[[], Iterable[Sample]], labels: Sequence[str] = (), kind: str = "gauge"
    ) -> None:
        self.name, self._about, self._read, self._labels, self._kind = name, about, read, labels, kind
        registry.add(self)

    def lines(self) -> Iterable[str]:
        """See Family."""
        yield _head(self.name, self._about, self._kind)
        for values, value in self._read():
            yield f"{self.name}{_labels(self._labels, values)} {_number(value)}"


class Registry:
    """All families, and how many lines they may have together."""

    def __init__(self, most: int = MAX_SERIES) -> None:
        self._families: list[Family] = []
        self._left, self.dropped = most, 0

    def add(self, family: Family) -> None:
        """One more family, at the end."""
        self._families.append(family)

    def room(self, lines: int) -> bool:
        """Whether so many more lines fit; they are taken then."""
        if self._left < lines:
            self.dropped += 1
            return False
        self._left -= lines
        return True

    def text(self) -> bytes:
        """Everything, in Prometheus' text format 0.0.4."""
        lines = [line for family in self._families for line in family.lines()]
        return ("\n".join(lines) + "\n").encode()


def one(read: Callable[[], float]) -> Callable[[], Iterable[Sample]]:
    """For a value without labels."""
    return lambda: (((), read()),)


def each(read: Callable[[], Mapping[str, float]]) -> Callable[[], Iterable[Sample]]:
    """For values by one label."""
    return lambda: [((name,), value) for name, value in read().items()]


def _head(name: str, about: str, kind: str) -> str:
    return f"# HELP {name} {about}\n# TYPE {name} {kind}"


def _labels(names: Sequence[str], values: Sequence[str]) -> str:
    return f"{{{_inside(names, values)}}}" if names else ""


def _inside(names: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"") if not value.isalnum() else value


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
