"""How long a client's requests take, where somebody measures (context.Gateway.measure). Imports mayros.ws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from mayros.ws.methods.table import METHODS

if TYPE_CHECKING:
    from mayros.ws.context import Gateway


class Timing:
    """The requests of one client. Each `begins`, and is either `answered` at once or `goes_on`."""

    __slots__ = ("_asked", "_gateway")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._asked: tuple[str, float] | None = None

    def begins(self, method: str) -> None:
        """A request is about to be answered."""
        if self._gateway.measure is not None:
            self._asked = method if method in METHODS else "other", self._gateway.monotonic()

    def goes_on(self, task: Deferred[None]) -> None:
        """It is answered by this task, which may have ended."""
        if self._asked is not None:
            (method, since), self._asked = self._asked, None
            task.addBoth(self._ended, method, since)

    def answered(self, ok: bool) -> None:
        """The handler has returned; nothing where it goes on."""
        if self._asked is not None:
            (method, since), self._asked = self._asked, None
            self._tell(method, ok, since)

    def _ended(self, result: Failure | None, method: str, since: float) -> Failure | None:
        self._tell(method, not isinstance(result, Failure), since)
        return result

    def _tell(self, method: str, ok: bool, since: float) -> None:
        if self._gateway.measure is not None:
            self._gateway.measure(method, ok, self._gateway.monotonic() - since)
