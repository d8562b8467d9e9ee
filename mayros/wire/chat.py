"""OpenAI chat completions as bytes: the request, read strictly, and the answers, plain and streamed. No I/O.

Source: openai-compat facts, sections 1 and 2. A request that is not valid raises InvalidRequest naming the field in `param`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NoReturn

import msgspec
from msgspec import Meta

from mayros.errors import GatewayError, InvalidRequest, InvalidValue, RequestTooLarge, UnsupportedParameter
from mayros.events import Event, FinishReason, TextDelta, Usage
from mayros.messages import Function, Message, ToolCall, pack

#: Objects and arrays within each other.
MAX_DEPTH = 64
#: More would keep everybody else waiting while they are read.
MAX_MESSAGES = 10_000
#: Bytes of a body that are not its messages; for the same reason.
MAX_BESIDES = 1 << 20
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
ROLES = ("system", "developer", "user", "assistant", "tool", "function")

_PATH = re.compile(r" - at `\$\.?([^`]*)`$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class _Function(msgspec.Struct, gc=False):
    name: str
    arguments: str = "{}"


class _Call(msgspec.Struct, gc=False):
    id: str
    function: _Function
    type: str = "function"


class _Part(msgspec.Struct, gc=False):
    type: str
    text: str | None = None
    refusal: str | None = None


class _Message(msgspec.Struct, gc=False):
    role: str
    content: str | list[_Part] | None = None
    name: str | None = None
    tool_calls: list[_Call] | None = None
    tool_call_id: str | None = None
    function_call: _Function | None = None


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool | None = None


_Unit = Annotated[float, Meta(ge=0, le=1)]
_Penalty = Annotated[float, Meta(ge=-2, le=2)]
_Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
#: In place of a field of any type that was not sent: a union of Raw and None takes nothing but null.
_ABSENT = msgspec.Raw(b"null")
_Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class _Request(msgspec.Struct, gc=False):
    messages: Annotated[list[_Message], Meta(max_length=MAX_MESSAGES)]
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
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: msgspec.Raw = _ABSENT
    function_call: msgspec.Raw = _ABSENT
    response_format: dict[str, Any] | None = None
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


_decode = msgspec.json.Decoder(_Request).decode
_outline = msgspec.json.Decoder(_Outline).decode
_encode = msgspec.json.Encoder().encode


def decode_request(body: bytes | bytearray) -> ChatRequest:
    """The request of a body. Raises InvalidRequest, InvalidValue or UnsupportedParameter, naming the field, or RequestTooLarge."""
    if body[:3] == b"\xef\xbb\xbf":
        body = body[3:]
    try:
        if len(body) > MAX_BESIDES and len(body) - memoryview(_outline(body).messages).nbytes > MAX_BESIDES:
            raise RequestTooLarge(f"Besides its messages a request may have {MAX_BESIDES} bytes.")
        request = _decode(body)
    except msgspec.ValidationError as error:
        refuse_field(str(error))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is not valid JSON: {_brief(error)}.") from error
    _refuse_unsupported(request)
    messages, new_from, system = _conversation(request.messages)
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
    )


def _check_depth(value: dict[str, Any], param: str) -> None:
    """Refuse objects and arrays within each other beyond MAX_DEPTH. Only what is passed on as it came needs it; what is ignored may nest."""
    level: list[dict[str, Any] | list[Any]] = [value]
    for _ in range(MAX_DEPTH):
        inner = [one for outer in level for one in (outer.values() if isinstance(outer, dict) else outer)]
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return
    raise InvalidRequest(f"{param} nests objects and arrays more than {MAX_DEPTH} levels deep.", param=param)


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
    if request.tools:
        no("tools", "this version does not hand function calls back to the caller")
    if isinstance(request.tool_choice, dict) or request.tool_choice not in (None, "none", "auto"):
        no("tool_choice", "only none and auto are")
    if request.response_format is not None and request.response_format.get("type") != "text":
        no("response_format", "only the type text is")
    if request.logprobs:
        no("logprobs", "the gateway cannot give them")
    if request.top_logprobs is not None:
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
        _check_depth(request.prediction, "prediction")
    asked: dict[str, Any] = {
        "temperature": request.temperature,
        "top_p": request.top_p,
        "max_tokens": request.max_completion_tokens or request.max_tokens,
        "stop": tuple(stop) if stop else None,
        "seed": request.seed,
        "frequency_penalty": request.frequency_penalty,
        "presence_penalty": request.presence_penalty,
        "reasoning_effort": request.reasoning_effort,
        "extra": {name: value for name in _EXTRA if (value := getattr(request, name)) is not None} or None,
    }
    for name, value in asked.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidValue(f"{name} must be a finite number.", param=name)
    return {name: value for name, value in asked.items() if value is not None}


def _metadata(metadata: dict[str, str] | None) -> dict[str, str] | None:
    if metadata and (len(metadata) > 16 or any(len(key) > 64 or len(value) > 512 for key, value in metadata.items())):
        raise InvalidValue("metadata takes at most 16 pairs, keys of 64 and values of 512 characters.", param="metadata")
    return metadata or None


def _conversation(given: list[_Message]) -> tuple[tuple[msgspec.Raw, ...], int, str]:
    """Canonical messages, where the new ones begin, and the system text of the whole request."""
    if not given:
        raise InvalidRequest("messages must hold at least one message.", param="messages")
    messages: list[Message] = []
    system: list[str] = []
    open_calls: dict[str, None] = {}
    functions: dict[str, str] = {}
    new_from, asked = 0, False
    for index, message in enumerate(given):
        where, role = f"messages[{index}]", message.role
        if role not in ROLES:
            raise InvalidRequest(f"{where}.role must be one of {', '.join(ROLES)}.", param=f"{where}.role")
        if role in ("system", "developer"):
            if text := _text(message, where, required=True):
                system.append(text)
            continue
        if open_calls and role != "tool":
            call = next(iter(open_calls))
            raise InvalidRequest(f"{where} comes before the tool call {call[:64]!r} was answered.", param=f"{where}.tool_call_id")
        if role == "user":
            messages.append(Message("user", _text(message, where, required=True), name=message.name))
            asked = True
        elif role == "assistant":
            calls = _calls(message, where, index)
            open_calls = dict.fromkeys(call.id for call in calls if message.tool_calls)
            functions = {call.function.name: call.id for call in calls if not message.tool_calls}
            messages.append(Message("assistant", _text(message, where) or ("" if not calls else None), tool_calls=calls or None))
            # The results of calls that this gateway never made are new together with the turn that made them.
            new_from = len(messages) - (1 if calls else 0)
        elif role == "tool":
            if message.tool_call_id is None or message.tool_call_id not in open_calls:
                raise InvalidRequest(f"{where}.tool_call_id answers no open tool call.", param=f"{where}.tool_call_id")
            del open_calls[message.tool_call_id]
            messages.append(Message("tool", _text(message, where) or "", tool_call_id=message.tool_call_id))
            asked = True
        else:
            new_from = _function_result(message, where, index, functions, messages, new_from)
            asked = True
    if open_calls:
        raise InvalidRequest(
            f"messages end before the tool call {next(iter(open_calls))[:64]!r} was answered.", param=f"messages[{len(given) - 1}].tool_call_id"
        )
    if not asked:
        raise InvalidRequest("Missing user message in `messages`.", param="messages")
    return tuple([pack(message) for message in messages]), new_from, "\n\n".join(system)


def _function_result(message: _Message, where: str, index: int, functions: dict[str, str], messages: list[Message], new_from: int) -> int:
    """A result of the older `function` role: it becomes a tool result, after a call where the caller left the call out."""
    if not message.name:
        raise InvalidRequest(f"{where}.name is missing.", param=f"{where}.name")
    call_id = functions.pop(message.name, None)
    if call_id is None:
        call_id = f"call_{index}"
        messages.append(Message("assistant", None, tool_calls=(ToolCall(call_id, Function(message.name, "{}")),)))
        new_from = min(new_from, len(messages) - 1)
    messages.append(Message("tool", _text(message, where) or "", tool_call_id=call_id))
    return new_from


def _calls(message: _Message, where: str, index: int) -> tuple[ToolCall, ...]:
    if message.tool_calls:
        for number, call in enumerate(message.tool_calls):
            if call.type != "function" or not call.id or not call.function.name:
                raise InvalidRequest(f"{where}.tool_calls[{number}] must be a function call with id and name.", param=f"{where}.tool_calls[{number}]")
        if len({call.id for call in message.tool_calls}) != len(message.tool_calls):
            raise InvalidRequest(f"{where}.tool_calls has an id twice.", param=f"{where}.tool_calls")
        return tuple([ToolCall(call.id, Function(call.function.name, call.function.arguments or "{}")) for call in message.tool_calls])
    if message.function_call is not None:
        return (ToolCall(f"call_{index}", Function(message.function_call.name, message.function_call.arguments or "{}")),)
    return ()


def _text(message: _Message, where: str, required: bool = False) -> str:
    """The text of a message: a string, or its text parts joined by newlines."""
    content = message.content
    if isinstance(content, str):
        return content
    if content is None:
        if required:
            raise InvalidRequest(f"{where}.content must be a string or a list of parts.", param=f"{where}.content")
        return ""
    texts = []
    for number, part in enumerate(content):
        if part.type in ("text", "input_text") and part.text is not None:
            texts.append(part.text)
        elif part.type == "refusal" and message.role == "assistant":
            texts.append(part.refusal or "")
        elif part.type in ("text", "input_text"):
            raise InvalidRequest(f"{where}.content[{number}].text is missing.", param=f"{where}.content[{number}].text")
        else:
            raise UnsupportedParameter(
                f"{where}.content[{number}] has the type {part.type[:40]!r}: this version takes text only.", param=f"{where}.content[{number}].type"
            )
    if required and not texts:
        raise InvalidRequest(f"{where}.content must not be empty.", param=f"{where}.content")
    return "\n".join(texts)


# What goes back


class _Cached(msgspec.Struct, gc=False):
    cached_tokens: int


class _Reasoning(msgspec.Struct, gc=False):
    reasoning_tokens: int


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: _Cached
    completion_tokens_details: _Reasoning


class _Answer(msgspec.Struct, gc=False):
    role: str
    content: str
    refusal: str | None = None


class _Choice(msgspec.Struct, gc=False):
    index: int
    message: _Answer
    logprobs: None
    finish_reason: str


class _Completion(msgspec.Struct, gc=False):
    id: str
    object: str
    created: int
    model: str
    choices: list[_Choice]
    usage: _Usage


class _ErrorBody(msgspec.Struct, gc=False):
    message: str
    type: str
    param: str | None
    code: str | None


def _usage(usage: Usage) -> _Usage:
    prompt = usage.input + usage.cache_read + usage.cache_write
    return _Usage(prompt, usage.output, prompt + usage.output, _Cached(usage.cache_read), _Reasoning(usage.reasoning))


def completion(run_id: str, created: int, model: str, text: str, finish_reason: FinishReason | None, usage: Usage) -> bytes:
    """The whole `chat.completion` of a run; `created` in Unix seconds."""
    choice = _Choice(0, _Answer("assistant", text), None, finish_reason or "stop")
    return _encode(_Completion(f"chatcmpl-{run_id}", "chat.completion", created, model, [choice], _usage(usage)))


def error_body(error: GatewayError) -> bytes:
    """`{"error": {...}}` for an error, plain or as the data of an error event."""
    return _encode({"error": _ErrorBody(error.message, error.type, error.param, error.code)})


class Stream:
    """The frames of one streamed answer; what is the same in each is encoded once."""

    def __init__(self, run_id: str, created: int, model: str) -> None:
        head = _encode({"id": f"chatcmpl-{run_id}", "object": "chat.completion.chunk", "created": created, "model": model})[:-1]
        self._head = b"data: " + head + b',"choices":['
        self._text = self._head + b'{"index":0,"delta":{"content":'

    def role(self) -> bytes:
        """The first chunk."""
        return self._head + b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'

    def deltas(self, events: Sequence[Event]) -> bytes:
        """A content chunk for each text delta; other events are not for this door."""
        head = self._text
        return b"".join(
            [b'%b%b},"logprobs":null,"finish_reason":null}]}\n\n' % (head, _encode(e.text)) for e in events if type(e) is TextDelta and e.text]
        )

    def finish(self, reason: FinishReason | None) -> bytes:
        """The chunk that says why it ended."""
        return self._head + b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"%b"}]}\n\n' % (reason or "stop").encode()

    def usage(self, usage: Usage) -> bytes:
        """The chunk with no choices that clients ask for by `stream_options.include_usage`."""
        return self._head + b'],"usage":' + _encode(_usage(usage)) + b"}\n\n"

    @staticmethod
    def error(error: GatewayError) -> bytes:
        """An error after the first byte; the stream ends after it, without DONE."""
        return b"event: error\ndata: " + error_body(error) + b"\n\n"
