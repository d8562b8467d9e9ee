"""The way to a running child of the embedded model, over its loopback port. Imports core, net and providers.openai_chat."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, Protocol

from mayros.core.models import Provider
from mayros.core.ports import ModelRequest
from mayros.events import Event
from mayros.net.http import Failed, origin_for
from mayros.providers.openai_chat import OpenAIChat

HEALTH_SECONDS = 5.0  # for one look


class Upstream(Protocol):
    """The way to a running child."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """As ModelProvider's."""
        ...

    async def healthy(self) -> bool:
        """Whether the child answers, as itself, within a few seconds. Raises nothing."""
        ...

    def close(self) -> None:
        """Keep no connection."""
        ...


class Loopback:
    """The way to a real child: the same adapter as for any other upstream, and a call that shows that the child is alive and is ours.

    `/health` would not do: it asks for no key, so that whoever got the port could answer it.
    """

    def __init__(self, provider: Provider, reactor: Any) -> None:
        self._chat = OpenAIChat.connect(provider, reactor)
        self._alive = origin_for(
            provider.base_url.removesuffix("/v1"),
            {"Authorization": f"Bearer {provider.key}", "Content-Type": "application/json"},
            reactor,
            connect_timeout=HEALTH_SECONDS,
            first_byte_timeout=HEALTH_SECONDS,
            idle_timeout=HEALTH_SECONDS,
            keep=0,
        )

    def stream(self, request: ModelRequest) -> AsyncGenerator[list[Event], None]:
        """See Upstream."""
        return self._chat.stream(request)

    async def healthy(self) -> bool:
        """See Upstream. Asks for the tokens of an empty text, which needs the key and not the model."""
        try:
            async with await self._alive.post(b"/tokenize", b"{}") as response:
                await response.read(1024)
                return response.status == 200
        except Failed:
            return False

    def close(self) -> None:
        """See Upstream."""
        self._chat.close()
        self._alive.close()
