"""Connections within limits: of headers, of time, and of their number. For uvicorn.

Uvicorn and httptools have no limits of these kinds; the proxies that have them are optional here.
"""

import json
import socket
import time
from http import HTTPStatus
from operator import attrgetter
from typing import Any, Final, cast

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from service import browsers, problems

# A page of the largest query string, 100 labels, is within; nginx and Apache allow less.
MAX_HEAD_BYTES: Final = 64 * 1024
MAX_HEADERS: Final = 100
SECONDS_FOR_HEAD: Final = 10.0
# For the rest of a body that is not wanted.
SECONDS_AFTER_ANSWER: Final = 5.0
_SECONDS_OF_KEEP_ALIVE: Final = 5
# Together with those that are accepted at once they leave room in the usual 1,024 descriptors.
MAX_CONNECTIONS: Final = 512
_ACCEPTED_AT_ONCE: Final = 128
# Where the kernel has no room for a connection that comes, its client tries again after a second.
_WAITING: Final = 2048
_WAITS_SINCE: Final = attrgetter("_waits_since")


class LimitedServer(uvicorn.Server):
    """Serves the application on sockets that are bound, within the limits."""

    def __init__(self, app: Any, *, seconds_to_finish: int | None = None) -> None:
        super().__init__(config(app, seconds_to_finish=seconds_to_finish))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        if self.started:
            for each in sockets or ():
                let_wait(each)


def config(app: Any, *, seconds_to_finish: int | None = None, **others: Any) -> uvicorn.Config:
    """What a server is made with that serves within the limits."""
    return uvicorn.Config(
        app,
        http=LimitedProtocol,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        # Nothing asks where a request came from.
        proxy_headers=False,
        backlog=_ACCEPTED_AT_ONCE,
        timeout_keep_alive=_SECONDS_OF_KEEP_ALIVE,
        timeout_graceful_shutdown=seconds_to_finish,
        **others,
    )


def let_wait(listener: socket.socket) -> None:
    """Let more connections wait than asyncio does: as many as it accepts at once."""
    listener.listen(_WAITING)


class LimitedProtocol(HttpToolsProtocol):
    """One connection. When there are too many, those without a request are closed, oldest first."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._refusal = ("bad_request", "this is not a valid HTTP request")
        self._timer: Any = None
        # When the connection last began to wait for a request; the loop counts milliseconds alone.
        self._waits_since = time.monotonic()
        # Whether a request's head, and whether its body, is being received.
        self._in_body = False
        # Bytes received that became neither a request nor a part of its body.
        self._pending_bytes = 0
        self._unsent_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """Wait for a request; close others where there are too many connections."""
        super().connection_made(transport)
        self._close_after(SECONDS_FOR_HEAD)
        if len(self.connections) > MAX_CONNECTIONS:
            others = cast("set[LimitedProtocol]", self.connections)
            # This one is idle, too, and the last to be chosen.
            idle = (other for other in others if other.is_idle)
            min(idle, key=_WAITS_SINCE).abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget it."""
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def abort(self) -> None:
        """Close at once, without sending what the client does not take."""
        self.connections.discard(self)
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Parse it, within the limits."""
        self._unset_keepalive_if_required()
        if self._timer is None and self.is_idle:
            self._close_after(SECONDS_FOR_HEAD)
        self._pending_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as any other request
        except httptools.HttpParserError:
            self._refuse()
            return
        if self._pending_bytes > MAX_HEAD_BYTES:
            self._refusal = ("headers_too_large", problems.CODES["headers_too_large"][1])
            self._refuse()

    def on_headers_complete(self) -> None:
        """Begin the request."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if len(self.headers) > MAX_HEADERS or size > MAX_HEAD_BYTES:
            self._refusal = ("headers_too_large", problems.CODES["headers_too_large"][1])
            raise ValueError
        self._stop_timer()
        self._pending_bytes = 0
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Hand it on."""
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Wait for the next request, where this one is answered."""
        self._pending_bytes = 0
        self._in_body = False
        super().on_message_complete()
        if self.is_idle and not self.transport.is_closing():
            self._stop_timer()
            self._keep_alive()

    def on_response_complete(self) -> None:
        """Wait for the next request, or for the rest of this one."""
        self._waits_since = time.monotonic()
        super().on_response_complete()
        if (self._in_body and self.is_idle) or self.transport.is_closing():
            self._close_after(SECONDS_AFTER_ANSWER)

    def timeout_keep_alive_handler(self) -> None:
        """Close it, unless the client still takes the answer."""
        left = self.transport.get_write_buffer_size()
        if left and left != self._unsent_bytes:
            self._unsent_bytes = left
            self._keep_alive()
        else:
            self.abort()

    def send_400_response(self, msg: str) -> None:
        """Not used: `_refuse` answers."""
        raise NotImplementedError

    def _refuse(self) -> None:
        """Answer what is no request with problem details, and close."""
        code, detail = self._refusal
        problem = problems.problem(code, detail)
        content = json.dumps(problem.model_dump()).encode()
        headers = {
            **browsers.HEADERS,
            "Content-Type": problems.MEDIA_TYPE,
            "Content-Length": str(len(content)),
            "Connection": "close",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if self.is_idle:  # else another answer may be on its way
            status = STATUS_LINE[HTTPStatus(problem.status)]
            self.transport.write(status + lines.encode() + b"\r\n" + content)
        self.transport.close()
        self._close_after(SECONDS_AFTER_ANSWER)

    def _keep_alive(self) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def _close_after(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self.abort)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
