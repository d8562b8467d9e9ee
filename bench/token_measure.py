"""What it costs to find out who asks, where a gateway has 10,000 tokens: in this process, without a server."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from bench.measure import Effort, Failures, Row, own
from bench.rig import Rig
from mayros.config.schema import Config
from mayros.core.address import Address, AddressRules
from mayros.core.api_tokens import ApiTokens
from mayros.core.auth import Authenticator, secret_digest
from mayros.core.quota import Quotas
from mayros.core.spending import Spending
from mayros.core.token_ports import ApiToken

TOKENS = 10_000
_SCOPES = ("operator.read", "operator.write")


class _Nowhere:
    """A store that keeps nothing."""

    async def save(self, token: ApiToken) -> None: ...


def tokens(rig: Rig, failures: Failures, effort: Effort) -> list[Row]:
    """Each of them once in a round: its secret is looked up, and a request is counted against its limit."""
    secrets = [f"mgt_{number:043d}" for number in range(TOKENS)]
    register = ApiTokens(_Nowhere(), lambda: time.time_ns() // 1_000_000)
    register.restore(
        ApiToken(f"t{number}", secret_digest(secret), _SCOPES, None, None, 1_000_000, 10**12, 1) for number, secret in enumerate(secrets)
    )
    config = msgspec.convert({"gateway": {"auth": {"token": "x" * 32}}}, Config)
    rules = AddressRules.build(config.gateway, ["127.0.0.1"])
    door = Authenticator("token", "x" * 32, config.gateway.auth, rules, None, register)
    quotas = Quotas(Spending(), register.now_ms)
    address = Address("192.0.2.1", "192.0.2.1", "192.0.2.1", direct_local=False, exempt=False, trusted_peer=False)
    heads = [{b"authorization": [b"Bearer " + secret.encode()]}.get for secret in secrets]
    found = []
    for _ in range(effort.rounds + 1):
        began = time.perf_counter()
        for headers in heads:
            quotas.take(door.http(headers, address, began), began)
        found.append((time.perf_counter() - began) / TOKENS * 1e6)
    return [own("one of 10,000 tokens found and its request counted: us", found[1:], "{:.1f}", 20.0)]


MEASURES: dict[str, Callable[[Rig, Failures, Effort], list[Row]]] = {"tokens": tokens}
