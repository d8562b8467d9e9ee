"""OpenAI's list of models as bytes: what `GET /v1/models` answers. No I/O. Source: openai-compat facts, section 3."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec


class ModelObject(msgspec.Struct, frozen=True, kw_only=True):
    """One entry: an agent. `created` in Unix seconds; `name` is for people."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: Literal["mayros"] = "mayros"
    name: str


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All entries."""

    object: Literal["list"] = "list"
    data: tuple[ModelObject, ...]


_encode = msgspec.json.Encoder().encode


def model_list(models: Iterable[ModelObject]) -> bytes:
    """The whole list."""
    return _encode(ModelList(data=tuple(models)))


def one_model(model: ModelObject) -> bytes:
    """One entry by itself."""
    return _encode(model)
