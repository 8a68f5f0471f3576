"""The web page at `/` and Swagger UI at `/docs`, under strict content security policies."""

import base64
import hashlib
import mimetypes
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from fastapi.openapi.docs import get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER: Final = Path(__file__).parent / "web"
_MEDIA_TYPES: Final = {
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".webmanifest": "application/manifest+json",
}
_HEADERS: Final = {
    # Nothing from other hosts, no inline code, no frames; Trusted Types: no text becomes markup.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; "
    "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Kept, but asked for at each use: after an upgrade no part of the page is an old one.
    "Cache-Control": "no-cache",
}


def routes() -> list[Route]:
    """`/`, `/web/…` and `/docs`."""
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

    async def docs(request: Request) -> Response:
        return _swagger_ui(request)

    return [
        Route("/docs", docs, name="docs", include_in_schema=False),
        Route("/", page, name="page", include_in_schema=False),
        Route("/web/{name:path}", file, name="page file", include_in_schema=False),
    ]


def _swagger_ui(request: Request) -> Response:
    """Swagger UI from fastapi_offline's files; its policy names the one inline script."""
    root = request.scope.get("root_path", "")
    response = get_swagger_ui_html(
        openapi_url=f"{root}/openapi.json",
        title="Image search",
        swagger_js_url=f"{root}/static-offline-docs/swagger-ui-bundle.js",
        swagger_css_url=f"{root}/static-offline-docs/swagger-ui.css",
        swagger_favicon_url=f"{root}/static-offline-docs/favicon.png",
        swagger_ui_parameters={"tryItOutEnabled": True},
    )
    scripts = re.findall(rb"<script>(.*?)</script>", bytes(response.body), re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script).digest()).decode() for script in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    response.headers["Content-Security-Policy"] = (
        f"default-src 'none'; script-src 'self' {allowed}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return response


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
