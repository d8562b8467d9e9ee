"""What all sections of `mayros.json` are made of. Pure; imports nothing of ours."""

from __future__ import annotations

import msgspec


class Milliseconds(int):
    """A duration. In the file: milliseconds, or a number with `ms`, `s`, `m`, `h` or `d`."""


class Bytes(int):
    """A size. In the file: bytes, or a number with `b`, `kb`, `mb` or `gb` (powers of 1024)."""


class Section(msgspec.Struct, frozen=True, rename="camel", kw_only=True, omit_defaults=True):
    """Root of all sections."""
