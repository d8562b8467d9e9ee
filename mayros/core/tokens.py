"""How long is a text for a model, roughly: four characters a token, and one token a character where scripts are written without spaces. Pure."""

from __future__ import annotations

import re

# CJK, kana, hangul and full-width forms: about one token each, where four characters a token would be far too few.
_WIDE = re.compile("[\u1100-\u11ff\u2e80-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]")


def estimate(text: str) -> int:
    """Tokens of a text, by estimate."""
    if text.isascii():
        return len(text) // 4
    wide = len(_WIDE.findall(text))
    return wide + (len(text) - wide) // 4
