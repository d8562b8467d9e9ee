"""A session's settings as they are kept: JSON without what is not set, and the label in a column of its own. Imports core.ports."""

from __future__ import annotations

import msgspec

from mayros.core.ports import SessionSettings

_NONE = SessionSettings()
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(SessionSettings).decode


def read_settings(settings: str | None, label: str | None) -> SessionSettings:
    """What the two columns say."""
    found = _NONE if settings is None else _decode(settings)
    return found if label is None else msgspec.structs.replace(found, label=label)


def write_settings(settings: SessionSettings) -> tuple[str | None, str | None]:
    """The two columns. Raises msgspec.ValidationError where a value has the wrong type."""
    text = _encode(msgspec.structs.replace(settings, label=None)).decode()
    _decode(text)
    return None if text == "{}" else text, settings.label
