"""How many requests are worked on at once, and for how long."""

import asyncio
import functools
import time
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
from service.problems import ProblemError

# Images that are being decoded, embedded and searched, all together.
MAX_REQUESTS: Final = 80
# Bodies that are being read; fewer than there may be connections.
MAX_READING: Final = 240
DEADLINE_SECONDS: Final = 10.0
# Bytes of a body that always have room, and those beyond of all bodies together.
_SMALL_BYTES: Final = 512 * 1024
MAX_LARGE_BYTES: Final = 128 * 1024 * 1024
# What a body has before it can be called slow.
_GRACE_SECONDS: Final = 0.2
MAX_QUERY_PARAMETERS: Final = 1000
_MOST_QUERIES_REMEMBERED: Final = 256
_MOST_BYTES_REMEMBERED: Final = 1024
# What nginx logs for them; nobody reads the answer.
_CLIENT_CLOSED_REQUEST: Final = 499
# In the event loop's time: long ago.
_NOW: Final = 0.0


class Admission:
    """A bound on what the service does at once, and on the bodies that it reads and holds.

    Where there is no room to read, a body that comes more slowly than all others makes some.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        # Those that have been admitted, and those of them whose bodies are being read.
        self._requests: set[Admitted] = set()
        self._reading: set[Admitted] = set()
        self.large_json = asyncio.Lock()

    @contextmanager
    def take(self, places: int = 1) -> Iterator[None]:
        """Hold places for work; raises OverloadedError when there are not so many."""
        if places > self._free:
            raise OverloadedError("too many searches at once: try again in a second")
        self._free -= places
        try:
            yield
        finally:
            self._free += places

    @contextmanager
    def admit(self) -> Iterator["Admitted"]:
        """Begin to read a request; raises OverloadedError when nobody would work on it."""
        if not self._free:
            raise OverloadedError("too many searches at once: try again in a second")
        if len(self._reading) >= MAX_READING and (slowest := self._slowest()):
            self._end(slowest)
        if len(self._reading) >= MAX_READING:
            raise OverloadedError("too many requests at once: try again in a second")
        admitted = Admitted(self)
        self._requests.add(admitted)
        self._reading.add(admitted)
        try:
            yield admitted
        finally:
            self._forget(admitted)

    def is_read(self, request: "Admitted") -> None:
        """It cannot be called slow any more."""
        self._reading.discard(request)

    def make_room(self, request: "Admitted") -> None:
        """End slower requests for this one's bytes; raises OverloadedError if there are none."""
        while sum(each.large_bytes for each in self._requests) > MAX_LARGE_BYTES:
            slowest = self._slowest(large=True)
            if slowest in {None, request}:
                raise OverloadedError("too many large uploads at once: try again in a second")
            self._end(slowest)

    def _slowest(self, *, large: bool = False) -> "Admitted | None":
        # There are hundreds, and there is much of this where it matters: the clock is asked once.
        now = time.monotonic()
        latest = now - _GRACE_SECONDS
        reading = [
            each
            for each in self._reading
            if each.since <= latest and (not large or each.large_bytes)
        ]
        return min(
            reading, key=lambda each: each.received / max(now - each.since, 1e-9), default=None
        )

    def _end(self, request: "Admitted") -> None:
        request.end()
        self._forget(request)

    def _forget(self, request: "Admitted") -> None:
        self._requests.discard(request)
        self._reading.discard(request)


class Admitted:
    """A request whose body is being read or was read."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        # When it was admitted, by the monotonic clock.
        self.since = time.monotonic()
        self.received = 0
        # Whether its room was taken from it.
        self.is_ended = False
        self.deadline = asyncio.timeout(DEADLINE_SECONDS)

    @property
    def large_bytes(self) -> int:
        """Bytes of its body beyond those that every request may have."""
        return max(0, self.received - _SMALL_BYTES)

    def receive(self, size: int) -> None:
        """Count bytes of the body; raises OverloadedError when there is no room for them."""
        self.received += size
        if self.large_bytes:
            self._admission.make_room(self)

    @contextmanager
    def work(self) -> Iterator[None]:
        """Hold a place, once the body is read; raises OverloadedError when there is none."""
        self._admission.is_read(self)
        with self._admission.take():
            yield

    def end(self) -> None:
        """Cancel it."""
        self.is_ended = True
        if not self.deadline.expired():
            self.deadline.reschedule(_NOW)


class AdmittedRoute(APIRoute):
    """A route whose body, if it has one, is JSON or a multipart form with images alone.

    One that declares its body by `openapi_extra` takes either, and reads it from the request.

    The key comes first. At most `MAX_READING` are read and `MAX_REQUESTS` worked on at once, and
    each has `DEADLINE_SECONDS`, the reading of its body included. What is beyond that, or whose
    client has gone, is cancelled.

    The application's state is a `service.state.State`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Check the request, then hand it to FastAPI's own handler."""
        handle = super().get_route_handler()
        if isinstance(self.endpoint, RemembersParameters):
            handle = self.endpoint.handler(handle)
        read = reader(self)

        async def counted(request: Request) -> Response:
            try:
                request.state.keys.check(request)
                if request.scope["query_string"].count(b"&") >= MAX_QUERY_PARAMETERS:
                    raise ProblemError(
                        "invalid_parameters",
                        f"there are more than {MAX_QUERY_PARAMETERS:,} parameters: send fewer",
                    )
                return await _admitted(request, checked)
            except ImageSearchError as exc:
                if code := problems.unavailable(exc):
                    request.state.metrics.rejected(code)
                raise
            except _GoneError:
                request.state.metrics.rejected("disconnected")
                return Response(status_code=_CLIENT_CLOSED_REQUEST)

        async def checked(request: Request, admitted: Admitted) -> Response:
            limited = BodyRequest(request, admitted.receive, request.state.admission.large_json)
            async with read(limited):
                with admitted.work():
                    watcher = asyncio.create_task(_watch(request.receive, admitted.deadline))
                    try:
                        return await handle(limited)
                    finally:
                        watcher.cancel()

        return counted


class RemembersParameters:
    """An endpoint of an upload that is called at once where its query string is known to be valid.

    FastAPI looks for each parameter anew in every request, which takes longer than all of HTTP. So
    it does that once for each query string; what it makes of them does not depend on the rest.
    `file` is the endpoint's file, and `several` tells whether it is a list of them.
    """

    def __init__(
        self, endpoint: Callable[..., Awaitable[Response]], *, file: str, several: bool = False
    ) -> None:
        functools.update_wrapper(self, endpoint)
        self._endpoint = endpoint
        self._file = file
        self._several = several
        self._known: dict[bytes, Any] = {}

    async def __call__(self, request: Request, parameters: Any, **file: Any) -> Response:
        """As FastAPI does it, with what it has validated."""
        query = request.scope["query_string"]
        if len(query) <= _MOST_BYTES_REMEMBERED:
            while len(self._known) >= _MOST_QUERIES_REMEMBERED:
                del self._known[next(iter(self._known))]
            self._known[query] = parameters
        return await self._endpoint(request=request, parameters=parameters, **file)

    def handler(
        self, handle: Callable[[Request], Coroutine[Any, Any, Response]]
    ) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers requests whose form was read and checked; `handle` is FastAPI's."""

        async def known(request: Request) -> Response:
            parameters = self._known.get(request.scope["query_string"])
            if parameters is None:
                return await handle(request)
            form = await request.form()
            file = form.getlist(self._file) if self._several else form[self._file]
            return await self._endpoint(
                request=request, parameters=parameters, **{self._file: file}
            )

        return known


class _GoneError(Exception):
    """The client has closed its connection."""


async def _admitted(
    request: Request, handle: Callable[[Request, Admitted], Awaitable[Response]]
) -> Response:
    """Answer if there is room, in time, and as long as the client waits."""
    with request.state.admission.admit() as admitted:
        try:
            async with admitted.deadline:
                return await handle(request, admitted)
        except ClientDisconnect:
            raise _GoneError from None
        except TimeoutError:
            if not admitted.deadline.expired():
                raise
            if admitted.is_ended:
                raise OverloadedError(
                    "the request arrived too slowly while others were waiting: try again"
                ) from None
            if admitted.deadline.when() == _NOW:
                raise _GoneError from None
            raise DeadlineExceededError(
                f"the request was not finished within {DEADLINE_SECONDS:g} seconds: try again"
            ) from None


async def _watch(receive: Receive, deadline: asyncio.Timeout) -> None:
    """End the request when its client goes away."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if not deadline.expired():
        deadline.reschedule(_NOW)
