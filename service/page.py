"""The web page at `/`: static files, from memory, under a strict content security policy."""

import hashlib
import mimetypes
from collections.abc import Callable
from pathlib import Path
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER: Final = Path(__file__).parent / "web"
_MEDIA_TYPES: Final = {".js": "text/javascript", ".svg": "image/svg+xml"}
_HEADERS: Final = {
    # Nothing from other hosts, no inline code, no frames; Trusted Types: no text becomes markup.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept, but asked for at each use: after an upgrade no part of the page is an old one.
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """`/` and `/web/…`, for GET and HEAD."""
    files = {
        path.relative_to(_FOLDER).as_posix(): _responder(path)
        for path in sorted(_FOLDER.rglob("*"))
        if path.is_file()
    }

    async def page(request: Request) -> Response:
        return files["index.html"](request)

    async def file(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in files:
            raise HTTPException(404, f"the page has no file {name}")
        return files[name](request)

    return [
        Route("/", page, name="page", include_in_schema=False),
        Route("/web/{name:path}", file, name="page file", include_in_schema=False),
    ]


def _responder(path: Path) -> Callable[[Request], Response]:
    content = path.read_bytes()
    media_type = _MEDIA_TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0]
    etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**_HEADERS, "ETag": etag}

    def respond(request: Request) -> Response:
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return respond
