"""`GET /openapi.json`: the HTTP interface as OpenAPI 3.1, from the types that requests are read with and answers have. Made when first asked for.

`python -m mayros.web.openapi FILE` writes it (`make docs`); a test compares docs/openapi.json with what this gives. Imports config, wire and errors.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

from mayros import errors
from mayros.config.describe import DIALECT, components_of
from mayros.web.shapes import SHAPES
from mayros.wire import chat

Json = dict[str, Any]
_PLACE = "#/components/schemas/{name}"
CHAT_REQUEST = "ChatCompletionRequest"
ABOUT = """One port, one agent run behind it: any OpenAI client works with this base URL and a token.

Every path is served with one final slash too, and those below `/v1` also without `/v1`. `HEAD` is answered wherever `GET` is, and `OPTIONS`
everywhere with 204 and `Allow`. Bodies are `application/json` in UTF-8 without a content encoding. Pages of other origins are answered with CORS
headers where `gateway.http.cors.allowedOrigins` lists them. docs/http-api.md says what things mean."""

#: What is said of the fields of a chat request besides their types; fields that are not here speak for themselves, or are passed on to the model.
FIELDS: Mapping[str, str] = {
    "messages": "The conversation. In a stable session the gateway has the history: what follows the last assistant message is new.",
    "model": "The agent: mayros, mayros/<agentId>, mayros:<agentId> or agent:<agentId>; any name that is no agent's means the default agent.",
    "stream": "Answer as server-sent events.",
    "stream_options": "include_usage: one more chunk, without choices, that says what the run used.",
    "user": "The same user is the same session. Without it, and without x-mayros-session-key, a request is a session of its own.",
    "max_completion_tokens": "Wins over max_tokens.",
    "tools": "The caller's own functions. The run ends with their calls; send these, and their results as tool messages, to go on.",
    "tool_choice": "none, auto, required, or one function.",
    "response_format": "The form of the answer: text, json_object, or json_schema.",
    "n": "1: this gateway makes one choice.",
    "metadata": "At most 16 pairs, keys of 64 and values of 512 characters; kept with the turn.",
    "store": "Ignored.",
}

#: Request headers by name: who they are for is said at the routes.
REQUEST_HEADERS: Mapping[str, str] = {
    "x-mayros-agent-id": "The agent, instead of the one that `model` names. Also: x-mayros-agent.",
    "x-mayros-session-key": "The session: a name, or agent:<agentId>:<name>. At most 512 bytes, no control characters.",
    "x-mayros-model": "The model, as provider/model or an alias, instead of the agent's own; without fallbacks. Needs the scope operator.admin, or "
    "`allowModelOverride` in the agent's configuration.",
    "x-mayros-scopes": "In the modes none and trusted-proxy: the scopes that the request is to have at most, with commas. It gives none.",
    "idempotency-key": "1 to 255 visible ASCII characters: the same key and body is the same run, and gets its first answer, for a day.",
    "last-event-id": "Resume the stream of the same idempotency-key and body behind this event.",
    "traceparent": "A W3C trace context: its trace id is logged, and told to providers that may know it.",
    "x-request-id": "1 to 128 of A-Z a-z 0-9 . _ -; comes back in the answer and stands in the log.",
}

#: Headers of answers: of all, of those that a run gave.
COMMON_HEADERS: Mapping[str, str] = {
    "x-request-id": "The caller's, or a new one.",
    "openai-processing-ms": "Milliseconds until the head of the answer was written.",
}
RUN_HEADERS: Mapping[str, str] = {
    "x-mayros-run-id": "The run.",
    "x-mayros-agent-id": "The agent that ran.",
    "x-mayros-session-key": "The session, percent-encoded.",
    "x-mayros-model": "provider/model that answered, after fallbacks, percent-encoded; missing where none had when the head left.",
}
#: Of answers to a token with limits.
QUOTA_HEADERS: Mapping[str, str] = {
    "x-ratelimit-limit-requests": "Requests a minute that begin runs.",
    "x-ratelimit-remaining-requests": "Those that are left.",
    "x-ratelimit-reset-requests": "How long until all of them are there again, as in 1m6s.",
    "x-ratelimit-limit-tokens": "The models' tokens a day.",
    "x-ratelimit-remaining-tokens": "Those that are left.",
    "x-ratelimit-reset-tokens": "How long until all of them are there again, at midnight UTC, as in 7h0m1s.",
}
REPLAY_HEADERS: Mapping[str, str] = {"idempotent-replayed": "true where an idempotency-key was known: the answer of its run, not of a new one."}
ERROR_HEADERS: Mapping[str, str] = {
    "retry-after": "Whole seconds.",
    "x-should-retry": "true or false: what OpenAI's clients obey before they look at the status.",
}
STREAM = """A stream of server-sent events. The data of each is one of these: a chunk with the role, chunks as the model makes them, one with
`finish_reason`, the one with `usage` where it was asked for; then `data: [DONE]`, which says that the turn is on disk. Events of requests with an
idempotency-key have an `id`. A comment line comes every 15 s of silence. A stream that fails after its head ends with an event named `error`, whose
data is an ErrorResponse, and without `[DONE]`."""


def document() -> bytes:
    """The document as it is served."""
    return _served()


def text() -> str:
    """The document as it is written to its file."""
    return json.dumps(_document(), indent=1, ensure_ascii=False) + "\n"


@cache
def _served() -> bytes:
    return msgspec.json.encode(_document())


def _document() -> Json:
    run_errors = (400, 401, 403, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504)
    answer = {
        "application/json": _schema("ChatCompletion"),
        "text/event-stream": {"schema": {"$ref": _PLACE.format(name="ChatCompletionChunk"), "description": STREAM}},
    }
    chat_route = {
        "post": {
            "operationId": "createChatCompletion",
            "summary": "One run of an agent, answered at once or streamed",
            "tags": ["OpenAI"],
            "parameters": [_part("parameters", name) for name in REQUEST_HEADERS],
            "requestBody": {"required": True, "content": {"application/json": _schema(CHAT_REQUEST)}},
            "responses": {
                "200": _answer("The turn is on disk, or being streamed.", answer, (*RUN_HEADERS, *REPLAY_HEADERS, *QUOTA_HEADERS)),
                **_refusals(run_errors),
            },
        }
    }
    model_errors = (401, 403, 404, 429)
    models = _get("listModels", "The agents that may be asked", {"application/json": _schema("ModelList")}, model_errors, tag="OpenAI")
    model = _get("retrieveModel", "One of them", {"application/json": _schema("ModelObject")}, model_errors, tag="OpenAI")
    name = {"type": "string", "examples": ["mayros", "mayros/main"]}
    model["get"]["parameters"].append(
        {"name": "model", "in": "path", "required": True, "description": "Its slash may be sent as it is, or as %2F.", "schema": name}
    )
    plain = {"text/plain": {"schema": {"type": "string"}}}
    ready = _get("ready", "Whether the gateway can take work", {"application/json": _schema("Ready")}, ())
    ready["get"]["responses"]["503"] = _answer("It cannot.", {"application/json": _schema("Ready")})
    return {
        "openapi": "3.1.0",
        "info": {"title": "Mayros Gateway", "version": "1", "description": ABOUT, "license": {"name": "MIT", "identifier": "MIT"}},
        "jsonSchemaDialect": DIALECT,
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": {
            "/v1/chat/completions": chat_route,
            "/chat/completions": _again(chat_route),
            "/v1/models": models,
            "/models": _again(models),
            "/v1/models/{model}": model,
            "/models/{model}": _again(model),
            "/healthz": _get("healthy", "The process answers", {"application/json": _schema("Health")}, ()),
            "/readyz": ready,
            "/metrics": _get("metrics", "What is measured, in Prometheus' text format, where gateway.metrics.enabled says so", plain, model_errors),
            "/openapi.json": _get("openapi", "This document", {"application/json": {"schema": {"type": "object"}}}, ()),
            "/": _get("about", "What this is, in words", plain, ()),
        },
        "components": {
            "schemas": _schemas(),
            "parameters": {name: _header_parameter(name, words) for name, words in REQUEST_HEADERS.items()},
            "headers": {
                name: {"description": words, "schema": {"type": "string"}}
                for name, words in {**COMMON_HEADERS, **RUN_HEADERS, **REPLAY_HEADERS, **QUOTA_HEADERS, **ERROR_HEADERS}.items()
            },
            "responses": {str(status): _error(status, kinds) for status, kinds in sorted(_by_status().items())},
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "The gateway's token or password, or a token of its own."}
            },
        },
    }


def _schema(name: str) -> Json:
    return {"schema": {"$ref": _PLACE.format(name=name)}}


def _part(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _header_parameter(name: str, words: str) -> Json:
    return {"name": name, "in": "header", "required": False, "description": words, "schema": {"type": "string"}}


def _answer(words: str, content: Json, headers: Iterable[str] = ()) -> Json:
    return {"description": words, "headers": {name: _part("headers", name) for name in (*COMMON_HEADERS, *headers)}, "content": content}


def _refusals(statuses: Iterable[int]) -> Json:
    return {str(status): _part("responses", str(status)) for status in statuses}


def _get(name: str, summary: str, content: Json, refused: Iterable[int], tag: str = "Gateway") -> Json:
    """A route without a body; one that is never refused is open to all."""
    operation: Json = {"operationId": name, "summary": summary, "tags": [tag], "parameters": [_part("parameters", "x-request-id")]}
    if not (refusals := _refusals(refused)):
        operation["security"] = []
    return {"get": {**operation, "responses": {"200": _answer("As asked.", content), **refusals}}}


def _again(route: Json) -> Json:
    """The same at another address."""
    return {method: {**one, "operationId": one["operationId"] + "Short"} for method, one in route.items()}


def _schemas() -> Json:
    """Of the bodies. Answers may get further fields, so nothing forbids these."""
    parts = components_of([chat._Request], _PLACE)
    names = {chat._Request.__name__: CHAT_REQUEST}
    for name in parts:
        short = "Request" + name.lstrip("_").removeprefix("Sent")
        names.setdefault(name, short if short not in names.values() else "Request" + name.lstrip("_"))
    requests = {names[name]: _renamed(part, names) for name, part in parts.items()}
    fields = requests[CHAT_REQUEST]["properties"]
    for name in [name for name, field in fields.items() if set(field) == {"default"}]:
        del fields[name]  # taken note of only to be refused
    for name, words in FIELDS.items():
        fields[name] = {"description": words, **fields[name]}
    answers = {
        name: {key: value for key, value in part.items() if key != "additionalProperties"} for name, part in components_of(SHAPES, _PLACE).items()
    }
    return {**requests, **answers}


def _renamed(part: Any, names: Mapping[str, str]) -> Any:
    """A schema whose references and title have our names."""
    if isinstance(part, list):
        return [_renamed(one, names) for one in part]
    if not isinstance(part, dict):
        return part
    renamed = {key: _renamed(value, names) for key, value in part.items()}
    if isinstance(target := part.get("$ref"), str):
        renamed["$ref"] = _PLACE.format(name=names[target.rpartition("/")[2]])
    if isinstance(title := part.get("title"), str) and title in names:
        renamed["title"] = names[title]
    return renamed


def _by_status() -> dict[int, list[type[errors.GatewayError]]]:
    """The errors that there are, by HTTP status."""
    found: dict[int, list[type[errors.GatewayError]]] = {}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.GatewayError):
            found.setdefault(kind.status, []).append(kind)
    return found


def _error(status: int, kinds: list[type[errors.GatewayError]]) -> Json:
    """All errors of one status: their codes, and what these say."""
    words = "\n".join(f"- `{kind.code}`: {' '.join((kind.__doc__ or '').split())}" for kind in kinds)
    headers = [*ERROR_HEADERS, *(RUN_HEADERS if status not in (401, 404, 405, 408, 413, 415) else ())]
    return _answer(words, {"application/json": _schema("ErrorResponse")}, headers)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(text(), encoding="utf-8")
