"""A line for each request, and an id by which the client and the operator mean the same one."""

import json
import logging
import random
import re
import sys
import time
from datetime import UTC, datetime
from typing import Any, Final, Literal

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADER: Final = "X-Request-ID"

_log = logging.getLogger(__name__)
_USABLE: Final = re.compile(r"[!-~]{1,64}")


def write_to_stdout() -> None:
    """Let the lines go to standard output as they are, apart from the service's own log."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    _log.addHandler(handler)
    _log.propagate = False
    _log.setLevel(logging.INFO)


class AccessLog:
    """ASGI middleware: gives each request an id, answers with it, and logs the request.

    The id is the client's, if that is printable ASCII of at most 64 characters. What is logged of
    the path is its template, which `CountRequests` notes: the ids of images stay out of the log.
    """

    def __init__(self, app: ASGIApp, form: Literal["off", "text", "json"]) -> None:
        self._app = app
        self._form = form

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the application does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        given = Headers(scope=scope).get(HEADER, "")
        # No secret: the system's random numbers would let another thread have its turn first.
        id_ = given if _USABLE.fullmatch(given) else f"{random.getrandbits(128):032x}"
        # Shared with the copies that other middleware makes of the scope.
        state = scope.setdefault("state", {})
        state["request_id"] = id_
        status: int | None = None
        sent = 0

        async def noted(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = id_
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except BaseException:
            status = status or 500  # what Starlette answers then
            raise
        finally:
            if self._form != "off":
                entry = {
                    "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                    "request_id": id_,
                    "method": scope["method"],
                    "route": state.get("route", "other"),
                    "status": status,
                    "milliseconds": round((time.perf_counter() - began) * 1000, 1),
                    "bytes": sent,
                }
                _log.info("%s", json.dumps(entry) if self._form == "json" else _text(entry))


def _text(entry: dict[str, Any]) -> str:
    return (
        f"{entry['time']} {entry['method']} {entry['route']} {entry['status'] or '-'} "
        f"{entry['milliseconds']} ms {entry['bytes']} bytes {entry['request_id']}"
    )
