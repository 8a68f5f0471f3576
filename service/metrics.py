"""What the service counts and times, in Prometheus' format.

Where several processes answer on one port, each writes to files in a folder, which is named by a
variable that the library reads, and whichever is asked adds them up.
"""

import math
import os
from collections.abc import Callable
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from image_search.errors import ImageSearchError

FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
MEDIA_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
STAGES: Final = ("decode", "queue", "embed", "search", "total")

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_SIZES: Final = (1, 2, 4, 8, 16, 32)
# Only these routes are told apart: clients can name any number of others.
_OTHER: Final = "other"


class Metrics:
    """The metrics of one application.

    `rejections` are searches that were answered 503, by `code`, or whose client went away,
    `disconnected`.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        # What is shown, and whether other processes add to it.
        self._shown = self._registry
        self._shared = FOLDER_VARIABLE in os.environ
        if self._shared:
            self._shown = CollectorRegistry()
            MultiProcessCollector(self._shown)  # type: ignore[no-untyped-call]
        else:
            ProcessCollector(registry=self._shown)
            PlatformCollector(registry=self._shown)
        self._requests = Counter(
            "image_search_requests",
            "Requests answered, by route and HTTP status.",
            ("route", "status"),
            registry=self._registry,
        )
        self._seconds = Histogram(
            "image_search_stage_seconds",
            "Seconds that searches took, by stage.",
            ("stage",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._rejections = Counter(
            "image_search_rejections",
            "Searches that were not answered, by reason.",
            ("reason",),
            registry=self._registry,
        )
        self._familiarity = Counter(
            "image_search_queries",
            "Searches, by whether the query is like anything in the index.",
            ("familiar",),
            registry=self._registry,
        )
        self.batch_size = Histogram(
            "image_search_batch_size",
            "Images embedded at once.",
            buckets=_BATCH_SIZES,
            registry=self._registry,
        )
        self._queue_depth = Gauge(
            "image_search_queue_depth",
            "Searches that are waiting for the engine.",
            multiprocess_mode="livesum",
            registry=self._registry,
        )
        self._stages = {stage: self._seconds.labels(stage) for stage in STAGES}
        self._index_images = _IndexImages()
        self._shown.register(self._index_images)
        for familiar in (True, False, None):
            self._familiarity.labels(_name(familiar))
        for reason in ("overloaded", "deadline_exceeded", "disconnected", "engine_failed"):
            self._rejections.labels(reason)

    def watch(self, queue_depth: Callable[[], int], index_images: Callable[[], int]) -> None:
        """Where the gauges' values come from; `index_images` may raise ImageSearchError."""
        self._index_images.count = index_images
        if not self._shared:
            self._queue_depth.set_function(queue_depth)

    def queued(self, searches: int) -> None:
        """Tell the other processes, where there are any, how many wait for this one's engine."""
        if self._shared:
            self._queue_depth.set(searches)

    def answered(self, seconds: dict[str, float]) -> None:
        """Count the stages of one search."""
        for stage, value in seconds.items():
            self._stages[stage].observe(value)

    def searched(self, familiar: bool | None) -> None:  # noqa: FBT001
        """Count a search by whether its query is familiar; None where that cannot be told."""
        self._familiarity.labels(_name(familiar)).inc()

    def rejected(self, reason: str) -> None:
        """Count a search that was not answered."""
        self._rejections.labels(reason).inc()

    def requested(self, route: str, status: int) -> None:
        """Count a request."""
        self._requests.labels(route, status).inc()

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._shown)


class _IndexImages(Collector):
    """Asked for when metrics are; it is the same in all processes."""

    def __init__(self) -> None:
        self.count: Callable[[], int] = lambda: 0

    def collect(self) -> Any:
        """A gauge."""
        try:
            images = float(self.count())
        except ImageSearchError:
            images = math.nan
        name, what = (
            "image_search_index_images",
            "Images in the index; NaN while the store is not available.",
        )
        yield GaugeMetricFamily(name, what, value=images)


def _name(familiar: bool | None) -> str:  # noqa: FBT001
    return "unknown" if familiar is None else str(familiar).lower()


class CountRequests:
    """ASGI middleware that counts every request and its status."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # What Starlette answers when the application raises.
        status = 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, counted)
        finally:
            route = getattr(scope.get("route"), "path_format", _OTHER)
            scope["state"]["route"] = route  # for the access log
            self._metrics.requested(route, status)
