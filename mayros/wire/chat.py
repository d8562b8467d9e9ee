"""The body of a chat completion request, read strictly, field by field. No I/O; chat_messages.py reads the messages, chat_tools.py tools and formats.

Source: openai-compat facts, section 1.1. A request that is not valid raises InvalidRequest naming the field in `param`.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta

from mayros.errors import InvalidRequest, InvalidValue, RequestTooLarge, UnsupportedParameter
from mayros.wire.chat_messages import SentMessage, conversation
from mayros.wire.chat_tools import AskedFormat, AskedTool, Choice, SentFormat, Tools, bounded, read_choice, read_format, read_tools
from mayros.wire.lift import Lifted, Rest, lift, no_rest
from mayros.wire.parts import ANY_PARTS, AttachedFile, PartLimits, Parts, RemoteImage

#: More would keep everybody else waiting while they are read.
MAX_MESSAGES = 10_000
#: Bytes of a body that are not its messages; for the same reason.
MAX_BESIDES = 1 << 20

_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


_Unit = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
#: In place of a field of any type that was not sent: a union of Raw and None takes nothing but null.
_ABSENT = msgspec.Raw(b"null")
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class _Request(msgspec.Struct, gc=False):
    messages: Annotated[list[SentMessage], Meta(max_length=MAX_MESSAGES)]
    model: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    user: str | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: _Unit | None = None
    frequency_penalty: _Penalty | None = None
    presence_penalty: _Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    max_tokens: _Count | None = None
    max_completion_tokens: _Count | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    reasoning_effort: _Effort | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    tools: Tools | None = None
    tool_choice: str | Choice | None = None
    parallel_tool_calls: bool | None = None
    functions: msgspec.Raw = _ABSENT
    function_call: msgspec.Raw = _ABSENT
    response_format: SentFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    modalities: list[str] | None = None
    audio: msgspec.Raw = _ABSENT
    web_search_options: msgspec.Raw = _ABSENT
    moderation: msgspec.Raw = _ABSENT
    verbosity: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prediction: dict[str, Any] | None = None
    logit_bias: dict[str, float] | None = None


#: Fields that only providers of OpenAI's own kind understand.
_EXTRA = (
    "verbosity", "prompt_cache_key", "prompt_cache_retention", "service_tier", "safety_identifier", "prediction", "logit_bias",
)  # fmt: skip


#: Fields that mean here what they mean there.
_SAMPLING = ("temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "reasoning_effort", "top_logprobs")


class _Outline(msgspec.Struct, gc=False):
    """A large body at first sight: nothing is made of it, so that this is quick whatever it holds."""

    messages: msgspec.Raw = _ABSENT


class ChatRequest(msgspec.Struct, frozen=True):
    """A valid request. `messages` are canonical JSON; `new_from` is where the messages after the last assistant turn begin."""

    model: str
    messages: tuple[msgspec.Raw, ...]
    new_from: int
    system: str
    stream: bool
    include_usage: bool
    user: str | None
    sampling: dict[str, Any]
    metadata: dict[str, str] | None
    #: The caller's own tools, and whether one must be called: `none`, `auto`, `required`, or `function:NAME`.
    tools: tuple[AskedTool, ...] = ()
    tool_choice: str = "auto"
    parallel_calls: bool = True
    format: AskedFormat | None = None
    #: A place and a sentence: the error of a request whose conversation is not kept by a session (chat_messages.Conversation).
    incomplete: tuple[str, str] | None = None
    #: Images that are to be fetched, how many bytes the others have, and files whose text the model is to get.
    remote: tuple[RemoteImage, ...] = ()
    image_bytes: int = 0
    files: tuple[AttachedFile, ...] = ()


_decode = msgspec.json.Decoder(_Request).decode
_outline = msgspec.json.Decoder(_Outline).decode


def decode_request(body: bytes | bytearray, limits: PartLimits = ANY_PARTS, rest: Rest = no_rest) -> ChatRequest:
    """The request of a body. Raises InvalidRequest, InvalidValue or UnsupportedParameter, naming the field, or RequestTooLarge.

    A large body is better read in a thread: its images are not read as JSON, but they are looked through. `rest` is called between steps of that.
    """
    if body[:3] == b"\xef\xbb\xbf":
        body = body[3:]
    small, lifted = lift(body, rest)
    if small is not body:
        try:
            request = _read(small, limits, lifted)
        except InvalidRequest:
            if lifted.complete:
                raise
        else:
            if lifted.complete:
                return request
        lifted = Lifted(rest)
    return _read(body, limits, lifted)


def _read(body: bytes | bytearray, limits: PartLimits, lifted: Lifted) -> ChatRequest:
    try:
        if len(body) > MAX_BESIDES and len(body) - memoryview(_outline(body).messages).nbytes > MAX_BESIDES:
            raise RequestTooLarge(f"Besides its messages a request may have {MAX_BESIDES} bytes.")
        request = _decode(body)
    except msgspec.ValidationError as error:
        refuse_field(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {_brief(error)}.") from error
    _refuse_unsupported(request)
    tools = read_tools(request.tools)
    parts = Parts(limits, lifted)
    messages, new_from, system, incomplete = conversation(request.messages, parts)
    return ChatRequest(
        model=_CONTROL.sub("", request.model)[:256] if request.model else "mayros",
        messages=messages,
        new_from=new_from,
        system=system,
        stream=bool(request.stream),
        include_usage=bool(request.stream and request.stream_options is not None and request.stream_options.include_usage),
        user=request.user,
        sampling=_sampling(request),
        metadata=_metadata(request.metadata),
        tools=tools,
        tool_choice=read_choice(request.tool_choice, tools),
        parallel_calls=request.parallel_tool_calls is not False,
        format=read_format(request.response_format),
        incomplete=incomplete,
        remote=tuple(parts.remote),
        image_bytes=parts.image_bytes,
        files=parts.files,
    )


def refuse_field(text: str) -> NoReturn:
    """Turn msgspec's sentence into ours, with the field as `param`."""
    found = _PATH.search(text)
    param = found[1] if found else None
    sentence = (text[: found.start()] if found else text)[:200]
    if missing := re.match(r"Object missing required field `([^`]+)`", sentence):
        param = f"{param}.{missing[1]}" if param else missing[1]
        raise InvalidRequest(f"{param} is missing.", param=param)
    if not param:
        raise InvalidRequest(f"The body must be a JSON object: {sentence}.")
    kind = InvalidValue if any(word in sentence for word in (">=", "<=", "Invalid enum", "out of range")) else InvalidRequest
    raise kind(f"{param}: {sentence[:1].lower()}{sentence[1:]}.", param=param)


def _brief(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    if isinstance(error, RecursionError):
        return "it nests too deep"
    return str(error).removeprefix("JSON is malformed: ")[:200]


def _refuse_unsupported(request: _Request) -> None:
    def no(param: str, why: str) -> NoReturn:
        raise UnsupportedParameter(f"{param} is not supported: {why}.", param=param)

    if request.n is not None and request.n != 1:
        raise InvalidValue("n must be 1: this gateway makes one choice.", param="n")
    for param in ("functions", "function_call"):
        if _given(getattr(request, param)):
            no(param, "use tools and tool_choice")
    if request.top_logprobs is not None and not request.logprobs:
        raise InvalidValue("top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.modalities is not None and request.modalities != ["text"]:
        no("modalities", "only text is")
    for param in ("audio", "web_search_options", "moderation"):
        if _given(getattr(request, param)):
            no(param, "the gateway does not offer it")


def _given(value: msgspec.Raw) -> bool:
    return value is not _ABSENT and bytes(value) != b"null"


def _sampling(request: _Request) -> dict[str, Any]:
    stop = request.stop
    if isinstance(stop, str):
        stop = [stop]
    if stop is not None and (len(stop) > 4 or not all(stop)):
        raise InvalidValue("stop must be a text or at most 4 texts, none of them empty.", param="stop")
    if request.prediction is not None:
        bounded(request.prediction, "prediction")
    asked: dict[str, Any] = {name: value for name in _SAMPLING if (value := getattr(request, name)) is not None}
    for name, value in asked.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidValue(f"{name} must be a finite number.", param=name)
    if limit := request.max_completion_tokens or request.max_tokens:
        asked["max_tokens"] = limit
    if stop:
        asked["stop"] = tuple(stop)
    if request.logprobs:
        asked["logprobs"] = True
    if extra := {name: value for name in _EXTRA if (value := getattr(request, name)) is not None}:
        asked["extra"] = extra
    return asked


def _metadata(metadata: dict[str, str] | None) -> dict[str, str] | None:
    if metadata and (len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items())):
        raise InvalidValue("metadata takes at most 16 pairs, keys of 64 and values of 512 characters.", param="metadata")
    return metadata or None
