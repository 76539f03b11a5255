"""Health for orchestrators, figures for Prometheus, and the sign of life for systemd."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response

from ..service import DEAD_BEAT, Service
from .notify import notify, watchdog_seconds


def health_routes(service: Service) -> APIRouter:
    """/healthz, /readyz, /metrics."""
    routes = APIRouter()
    reading: dict[str, Any] = {"response_model": dict[str, Any]}

    @routes.get("/healthz", responses={503: {"description": "Not healthy"}}, **reading)
    async def healthz(response: Response) -> dict[str, Any]:
        """Whether the server itself works. 200 with status "degraded" where somebody should look at something."""
        dead, notes = service.problems()
        response.status_code = 503 if dead else 200
        return {"status": "unhealthy" if dead else "degraded" if notes else "ok", "problems": dead + notes}

    @routes.get("/readyz", responses={503: {"description": "No stream yet, or none at the moment"}}, **reading)
    async def readyz(response: Response) -> dict[str, Any]:
        """Whether a stream is running."""
        response.status_code = 200 if service.ready() else 503
        return {"ready": service.ready(), "generator": service.supervisor.state}

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        """For Prometheus."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


async def tell_systemd(service: Service) -> None:
    """Tell systemd that we live, as long as the picture does."""
    interval = watchdog_seconds()
    while interval is not None:
        if time.monotonic() - service.channel.beat < DEAD_BEAT:
            notify("WATCHDOG=1")
        await asyncio.sleep(interval)
