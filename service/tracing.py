"""Traces by OpenTelemetry: a span for each request, and one in it for each stage of a search."""

import logging
import os
import time
from contextvars import ContextVar
from typing import Any, Final, Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger(__name__)

# Of OpenTelemetry's specification; its exporter reads these, and others, itself.
_ENDPOINTS: Final = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


class Stages(Protocol):
    """What a search has gone through: the name, begin and end of each stage, by `perf_counter`."""

    spans: list[tuple[str, float, float]]


# The searches of the request that is being answered.
_searches: ContextVar[list[Stages] | None] = ContextVar("searches", default=None)


def note(search: Stages) -> None:
    """Let the request's trace have this search, if the request has one."""
    searches = _searches.get()
    if searches is not None:
        searches.append(search)


class Tracer:
    """Sends traces to the collector that OTEL_EXPORTER_OTLP_ENDPOINT names."""

    def __init__(self) -> None:
        """Raises ModuleNotFoundError where the extra `otel` is not installed."""
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME") or "image-search"
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": name}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("image_search")
        self._trace: Any = trace
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()

    def record(
        self, scope: Scope, began: float, searches: list[Stages], status: int | None
    ) -> None:
        """Record a request that is answered; `began` is by `perf_counter`."""
        ended = time.perf_counter()
        to_wall = time.time() - ended

        def wall(seconds: float) -> int:
            return int((seconds + to_wall) * 1e9)

        state = scope["state"]
        method, route = scope["method"], state.get("route", "other")
        kind, code = self._trace.SpanKind.SERVER, self._trace.StatusCode
        span = self._tracer.start_span(
            f"{method} {route}",
            # The client's own span, if it says so.
            self._propagator.extract(dict(Headers(scope=scope))),
            kind=kind,
            start_time=wall(began),
            attributes={
                "http.request.method": method,
                "http.route": route,
                "request_id": state.get("request_id", ""),
            },
        )
        if status is not None:
            span.set_attribute("http.response.status_code", status)
        if status is None or status >= 500:
            span.set_status(code.ERROR)
        inside = self._trace.set_span_in_context(span)
        stages = [stage for search in searches for stage in search.spans]
        if stages:
            stages.append(("answer", max(end for _, _, end in stages), ended))
        for name, start, end in stages:
            self._tracer.start_span(name, inside, start_time=wall(start)).end(wall(end))
        span.end(wall(ended))


def tracer() -> Tracer | None:
    """What traces are recorded by, or None where no collector is named."""
    if not any(map(os.environ.get, _ENDPOINTS)):
        return None
    try:
        return Tracer()
    except ModuleNotFoundError as exc:
        # Clusters set the variable for all that runs in them.
        _log.warning(
            "no traces are sent, as %s is not installed: it comes with the extra 'otel'",
            exc.name,
        )
        return None


class Trace:
    """ASGI middleware that records every request."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), None
        searches: list[Stages] = []
        _searches.set(searches)
        scope.setdefault("state", {})

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            self._tracer.record(scope, began, searches, status)
