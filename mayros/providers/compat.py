"""What a server of chat completions can take, and how it wants it: guessed from its address, or said by `compat` of a model's entry. Pure.

Of a server that is not known the least is assumed: no `store`, no role `developer`, `max_tokens`. What it refuses after all, the adapter drops.
Imports core.models and core.remembered.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import msgspec

from mayros.core.models import Model
from mayros.core.remembered import Remembered

#: OpenAI's models that know `max_completion_tokens` only.
_NEW_LIMIT_NAME = re.compile(r"(?:openai/)?(?:o\d|gpt-[5-9]|gpt-\d\d)")
_FORMATS = ("openai", "zai", "qwen")


class Compat(msgspec.Struct, frozen=True, rename="camel"):
    """The keys of `compat`, under their names of there; see docs/models/compatible.md."""

    #: `store: false` is sent.
    supports_store: bool = False
    #: The system prompt of a model that reasons has the role `developer`.
    supports_developer_role: bool = False
    supports_reasoning_effort: bool = True
    #: `stream_options.include_usage` is sent.
    supports_usage_in_streaming: bool = True
    #: `strict: false` is sent with each tool.
    supports_strict_mode: bool = False
    max_tokens_field: str = "max_tokens"
    #: The name of the tool goes with its result.
    requires_tool_result_name: bool = False
    #: A user's message may not follow a result.
    requires_assistant_after_tool_result: bool = False
    #: Accepted and without effect: reasoning is never part of what is sent.
    requires_thinking_as_text: bool = False
    #: Ids of calls have nine letters and digits.
    requires_mistral_tool_ids: bool = False
    #: Of models that reason: the reasoning of a turn with calls goes back with it. **+**
    requires_reasoning_content_on_assistant_messages: bool = False
    #: How thinking is switched: by its effort, or on and off in the way of z.ai or of Qwen.
    thinking_format: str = "openai"
    #: A text that begins with `<think>` is reasoning up to `</think>`. **+**
    think_tags: bool = True
    #: From the address only, and no keys: the server is OpenAI's own; it knows every level of reasoning that its models have; the most characters
    #: that the id of a call may have (0: any).
    openai: bool = False
    every_effort: bool = False
    longest_id: int = 0

    @property
    def rewrites(self) -> bool:
        """Whether messages cannot go as they are kept."""
        return (
            self.requires_tool_result_name
            or self.requires_assistant_after_tool_result
            or self.requires_mistral_tool_ids
            or self.longest_id > 0
            or self.requires_reasoning_content_on_assistant_messages
        )


_OPENAI = Compat(supports_store=True, supports_developer_role=True, think_tags=False, openai=True, every_effort=True, longest_id=40)
#: By the end of the host's name.
_HOSTS: tuple[tuple[str, Compat], ...] = (
    ("api.openai.com", _OPENAI),
    ("openai.azure.com", _OPENAI),
    ("openrouter.ai", Compat(every_effort=True, longest_id=40)),
    ("mistral.ai", Compat(requires_tool_result_name=True, requires_mistral_tool_ids=True)),
    ("api.x.ai", Compat(supports_reasoning_effort=False)),
    ("deepseek.com", Compat(requires_reasoning_content_on_assistant_messages=True)),
    ("moonshot.ai", Compat(requires_reasoning_content_on_assistant_messages=True)),
    ("moonshot.cn", Compat(requires_reasoning_content_on_assistant_messages=True)),
    ("z.ai", Compat(thinking_format="zai", supports_reasoning_effort=False)),
    ("bigmodel.cn", Compat(thinking_format="zai", supports_reasoning_effort=False)),
    ("aliyuncs.com", Compat(thinking_format="qwen", supports_reasoning_effort=False)),
)
_UNKNOWN = Compat()
_KEYS = {field.encode_name: field for field in msgspec.structs.fields(Compat) if field.name not in ("openai", "every_effort", "longest_id")}


_LONGEST_KEY = 64


@lru_cache(maxsize=256)
def guessed(base_url: str) -> Compat:
    """What is known of the server at an address."""
    host = (urlsplit(base_url).hostname or "").lower()
    return next((known for end, known in _HOSTS if host == end or host.endswith("." + end)), _UNKNOWN)


def cache_key(name: str) -> str:
    """A `prompt_cache_key` of the length that OpenAI takes."""
    return name if len(name) <= _LONGEST_KEY else hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def _compat_of(model: Model) -> Compat:
    known = guessed(model.provider.base_url)
    said: dict[str, Any] = {
        field.name: value
        for name, value in model.compat.items()
        if (field := _KEYS.get(name)) is not None and type(value) is type(field.default) and (name != "thinkingFormat" or value in _FORMATS)
    }
    if said.get("max_tokens_field", "max_tokens") not in ("max_tokens", "max_completion_tokens"):
        del said["max_tokens_field"]
    ours = known.openai or model.provider.id.startswith("openai")
    if "max_tokens_field" not in said and (ours or model.id.startswith("openai/")) and _NEW_LIMIT_NAME.match(model.id):
        said["max_tokens_field"] = "max_completion_tokens"
    if not model.reasoning and known.requires_reasoning_content_on_assistant_messages:
        said["requires_reasoning_content_on_assistant_messages"] = False
    return msgspec.structs.replace(known, **said) if said else known


#: What holds for a model. A key with a value that makes no sense counts as not there.
compat_of = Remembered(_compat_of)
