"""Waiting for a moment, so that others have their turn or something else can happen. Imports core.ports."""

from __future__ import annotations

from typing import cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from mayros.core.ports import Clock


def pause(clock: Clock, seconds: float) -> Deferred[None]:
    """Fires after so many seconds; cancelled, it leaves no timer behind."""
    return deferLater(cast(IReactorTime, clock), seconds)
