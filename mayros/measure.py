"""Where the numbers of the metrics come from: what is told to them, and what they read. Imported only where they are on; imports seeing and ops."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mayros.ops.meters import one
from mayros.ops.metrics import Metrics

if TYPE_CHECKING:
    from mayros.seeing import Parts


def measure(metrics: Metrics, parts: Parts) -> None:
    """Let the parts tell the metrics, and the metrics read the parts."""
    core, sockets, traffic, control = parts.core, parts.sockets, parts.conversations.traffic, parts.control
    core.runs.watch(metrics.run)
    core.model_health.heard = metrics.provider
    core.database.measure(metrics.committed)
    parts.conversations.measure = metrics.request
    lanes, slots = core.lanes, core.slots
    metrics.gauge("mayros_runs_active", "Runs that have not ended.", one(core.runs.live))
    metrics.by("mayros_run_queue_depth", "Runs that wait.", "cause", lambda: {"lane": lanes.waiting, "global": slots.waiting})
    metrics.gauge("mayros_http_connections", "Open HTTP connections.", one(lambda: len(parts.site.channels)))
    metrics.gauge("mayros_sse_streams", "Open streams.", one(lambda: len(parts.ticker)))
    metrics.gauge("mayros_sse_paused_streams", "Streams that wait for slow clients.", one(lambda: parts.ticker.paused))
    metrics.by("mayros_ws_connections", "Open WebSockets.", "role", lambda: {"operator": 0, "node": 0, **sockets.roles()})
    metrics.counted(
        "mayros_ws_frames_total",
        "Messages of WebSocket clients.",
        lambda: (
            (("in", "req"), traffic.received),
            (("out", "res"), traffic.answered),
            (("out", "event"), traffic.sent - traffic.answered),
        ),
        ("direction", "kind"),
    )
    metrics.counted("mayros_ws_slow_consumers_total", "Clients that were given up.", one(lambda: parts.conversations.budget.given_up))
    broadcaster = parts.conversations.broadcaster
    metrics.counted("mayros_ws_deltas_dropped_total", "Deltas that were left out for slow clients.", one(lambda: broadcaster.left_out))
    metrics.by("mayros_ws_refused_total", "WebSocket clients that were not let in.", "reason", lambda: dict(traffic.turned_away), counter=True)
    metrics.by("mayros_auth_failures_total", "Wrong credentials.", "reason", lambda: dict(parts.doors.wrong), counter=True)
    metrics.counted("mayros_auth_lockouts_total", "Clients that were locked out.", one(lambda: _limiter(parts)[0]))
    metrics.gauge("mayros_auth_limiter_entries", "Clients with failures.", one(lambda: _limiter(parts)[1]))
    metrics.gauge("mayros_store_queue_depth", "Jobs that wait for the batch that is written.", one(lambda: core.database.waiting))
    metrics.by("mayros_config_reloads_total", "Readings of the configuration.", "outcome", lambda: _reloads(parts), counter=True)
    metrics.gauge(
        "mayros_config_last_reload_success_timestamp_seconds",
        "When the configuration in force was read.",
        one(lambda: control.state.loaded_at_ms / 1000),
    )
    if (certificates := parts.certificates) is not None:
        metrics.gauge(
            "mayros_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that is shown ends.",
            one(lambda: certificates.current.about.ends_ms / 1000),
        )
    metrics.gauge("mayros_model_child_up", "Whether the embedded model's process is healthy.", one(lambda: _child(parts)[0]))
    metrics.counted("mayros_model_child_restarts_total", "How often it ended without being told to.", one(lambda: _child(parts)[1]))


def _limiter(parts: Parts) -> tuple[int, int]:
    limiter = parts.doors.limiter
    return (0, 0) if limiter is None else (limiter.lockouts, len(limiter))


def _child(parts: Parts) -> tuple[int, int]:
    local = parts.core.providers.local
    return (0, 0) if local is None else (int(local.up), local.crashes)


def _reloads(parts: Parts) -> Mapping[str, float]:
    return {"ok": 0, "unchanged": 0, "failed": 0, **parts.control.state.reloads}
