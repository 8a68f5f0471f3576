"""How many requests are worked on at once, and for how long."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from image_search.errors import ImageSearchError
from service import problems
from service.bodies import BodyRequest, reader
from service.errors import DeadlineExceededError, OverloadedError

# Images that are being read, decoded, embedded and searched, all together.
MAX_REQUESTS: Final = 80
DEADLINE_SECONDS: Final = 10.0
# What nginx logs for them; nobody reads the answer.
_CLIENT_CLOSED_REQUEST: Final = 499
# In the event loop's time: long ago.
_NOW: Final = 0.0


class Admission:
    """A bound on what the service does at once."""

    def __init__(self, places: int) -> None:
        self._free = places

    @contextmanager
    def take(self, places: int = 1) -> Iterator[None]:
        """Hold places; raises OverloadedError when there are not so many."""
        if places > self._free:
            raise OverloadedError("too many searches at once: try again in a second")
        self._free -= places
        try:
            yield
        finally:
            self._free += places


class AdmittedRoute(APIRoute):
    """A route whose body, if it has one, is JSON or a multipart form with images alone.

    One that declares its body by `openapi_extra` takes either, and reads it from the request.

    The key comes first. At most `MAX_REQUESTS` are admitted at once, and each has
    `DEADLINE_SECONDS`, the reading of its body included. What is beyond that, or whose client has
    gone, is cancelled.

    The application's state is a `service.state.State`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check the request, then hand it to FastAPI's own handler."""
        handle = super().get_route_handler()
        read = reader(self)

        async def counted(request: Request) -> Response:
            try:
                request.state.keys.check(request)
                return await _admitted(request, checked)
            except ImageSearchError as exc:
                if code := problems.unavailable(exc):
                    request.state.metrics.rejected(code)
                raise
            except _GoneError:
                request.state.metrics.rejected("disconnected")
                return Response(status_code=_CLIENT_CLOSED_REQUEST)

        async def checked(request: Request, deadline: asyncio.Timeout) -> Response:
            limited = BodyRequest(request)
            async with read(limited):
                watcher = asyncio.create_task(_watch(request.receive, deadline))
                try:
                    return await handle(limited)
                finally:
                    watcher.cancel()

        return counted


class _GoneError(Exception):
    """The client has closed its connection."""


async def _admitted(
    request: Request, handle: Callable[[Request, asyncio.Timeout], Awaitable[Response]]
) -> Response:
    """Answer if there is room, in time, and as long as the client waits."""
    with request.state.admission.take():
        try:
            async with asyncio.timeout(DEADLINE_SECONDS) as deadline:
                return await handle(request, deadline)
        except ClientDisconnect:
            raise _GoneError from None
        except TimeoutError:
            if not deadline.expired():
                raise
            if deadline.when() == _NOW:
                raise _GoneError from None
            raise DeadlineExceededError(
                f"the request was not done within {DEADLINE_SECONDS:g} seconds: try again"
            ) from None


async def _watch(receive: Receive, deadline: asyncio.Timeout) -> None:
    """End the request when its client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not deadline.expired():
        deadline.reschedule(_NOW)
