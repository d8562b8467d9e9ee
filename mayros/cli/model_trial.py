"""Trying a model: is it configured so that it can be asked, and does it answer. For `mayros models test` and `set`, and `mayros setup`.

Imports config, core types and providers; a live trial asks through the same adapter as a run.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import click
from twisted.internet.defer import Deferred, TimeoutError

from mayros.cli.models import key_wanted
from mayros.cli.place import Place
from mayros.core.cost import priced
from mayros.core.keys import new_id
from mayros.core.models import Credential, Model
from mayros.core.ports import ModelRequest, Sampling
from mayros.core.routing import Settings
from mayros.errors import GatewayError, StartError, Unavailable
from mayros.events import ReasoningDelta, TextDelta, Usage
from mayros.messages import Message, pack
from mayros.providers.adapters import Adapters
from mayros.providers.embedded import installed

QUESTION = "Answer with the single word: ready"
#: Enough for a reasoning model that thinks a little before its word.
MOST_TOKENS = 2_000


def ready(settings: Settings, ref: str) -> Model:
    """The model of a reference or alias. Raises ClickException where it cannot be asked as the configuration stands."""
    model = settings.catalogue.find(settings.directory.full(ref))
    if model is None:
        near = ", ".join(sorted(settings.catalogue.providers))
        raise click.ClickException(f"there is no model {ref!r}: write provider/model, with one of the providers {near}")
    way = key_wanted(settings, model.provider)
    if way is not None:
        raise click.ClickException(f"{ref}: there is no key for {model.provider.id}: {way}")
    return model


def try_models(place: Place, refs: Sequence[str], live: bool, timeout: float) -> list[dict[str, Any]]:
    """One row `{ref, ok, detail, credential?, firstMs?, totalMs?, usage?, costUsd?}` for each model, live ones for each of its keys."""
    settings = place.settings(place.load())
    if not refs:
        refs = list(dict.fromkeys(model.ref for agent in settings.directory.agents.values() for model in agent.models))
    rows: list[dict[str, Any]] = []

    async def trying(reactor: Any) -> None:
        adapters = Adapters(settings, settings.state_dir, reactor)
        try:
            for ref in refs:
                try:
                    model = ready(settings, ref)
                    if adapters.get(model.provider.id) is None:
                        raise click.ClickException(f"nothing here speaks {model.provider.api}")
                    if model.provider.api == "local" and installed(settings.state_dir) is None:
                        raise click.ClickException("not installed: mayros models install smollm2")
                except (click.ClickException, StartError) as error:
                    rows.append({"ref": ref, "ok": False, "detail": error.message if isinstance(error, click.ClickException) else str(error)})
                    continue
                if not live:
                    place_of = model.provider.base_url or "its own process"
                    rows.append({"ref": ref, "ok": True, "detail": f"can be asked at {place_of} (not tried: --live)"})
                    continue
                for credential in model.provider.credentials or (None,):
                    rows.append(await _asked(adapters, model, credential, reactor, timeout))
        finally:
            await adapters.close()

    place.drive(trying)
    return rows


async def _asked(adapters: Adapters, model: Model, credential: Credential | None, reactor: Any, timeout: float) -> dict[str, Any]:
    row: dict[str, Any] = {"ref": model.ref, "ok": False, "credential": credential.id if credential is not None else None}
    asking = Deferred.fromCoroutine(_answer(adapters, model, credential))
    try:
        first, total, text, usage = await asking.addTimeout(timeout, reactor)
    except TimeoutError:
        return {**row, "detail": f"no answer within {timeout:g} s"}
    except GatewayError as error:
        return {**row, "detail": error.message}
    cost = usage.cost_nano / 1e9
    tokens = f"{usage.input + usage.cache_read + usage.cache_write} + {usage.output} tokens"
    shown = f"answered {text[:40]!r} in {total:.0f} ms (first text after {first:.0f} ms), {tokens}"
    return {
        **row,
        "ok": True,
        "detail": shown + (f", ${cost:.6f}" if cost else ""),
        "firstMs": round(first, 1),
        "totalMs": round(total, 1),
        "usage": {"input": usage.input, "output": usage.output, "cacheRead": usage.cache_read, "cacheWrite": usage.cache_write},
        "costUsd": cost,
    }


async def _answer(adapters: Adapters, model: Model, credential: Credential | None) -> tuple[float, float, str, Usage]:
    """Milliseconds to the first text and to the end, the text, and what it took."""
    provider = adapters.get(model.provider.id)
    if provider is None:
        raise Unavailable(f"nothing here speaks {model.provider.api}")
    sampling = Sampling(max_tokens=min(MOST_TOKENS, model.max_tokens), reasoning_effort="low" if model.reasoning else None)
    request = ModelRequest(model, "", (pack(Message("user", QUESTION)),), sampling, new_id(), credential=credential)
    began = time.perf_counter()
    first, texts, usage = None, list[str](), Usage()
    async with aclosing(provider.stream(request)) as batches:
        async for batch in batches:
            for event in batch:
                if isinstance(event, TextDelta | ReasoningDelta):
                    first = first if first is not None else time.perf_counter()
                if type(event) is TextDelta:
                    texts.append(event.text)
                elif type(event) is Usage:
                    usage = priced(event, model.cost)
    ended = time.perf_counter()
    return ((first or ended) - began) * 1e3, (ended - began) * 1e3, "".join(texts).strip(), usage
