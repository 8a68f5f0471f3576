"""What keeps web pages of others from using the service: hosts, origins and policies."""

import functools
import ipaddress
import socket
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from image_search.errors import SettingsError
from image_search.settings import Settings

_ANY: Final = "*"
_HOSTS_REMEMBERED: Final = 64

# Answers are data: no browser runs them, shows them in a frame, or lends them to other sites.
HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def listed(text: str) -> list[str]:
    """The parts of a setting with commas between."""
    return [part.strip() for part in text.split(",") if part.strip()]


class Hosts:
    """The host names that the service answers for.

    A page whose name resolves to this machine can read what it serves ("DNS rebinding"): the
    browser takes both for one site. It sends the page's name, so that names nobody gave the
    service are refused. Addresses are always right: no page has them but those served here.
    """

    def __init__(self, settings: Settings) -> None:
        names = ["localhost", ".localhost", "host.docker.internal", settings.host]
        # In a container it is the container's name.
        names += ["api", "gateway", socket.gethostname()]
        names += [urlsplit(settings.public_url).hostname or ""]
        names += listed(settings.trusted_hosts)
        self._names = {name.lower().removeprefix("*") or _ANY for name in names if name}

    def trusts(self, header: str) -> bool:
        """Whether a `Host` header, or none, names this service."""
        host = urlsplit(f"//{header}").hostname or "" if _is_host(header) else None
        if host is None:
            return False
        return (
            not host
            or _is_address(host)
            or not self._names.isdisjoint({_ANY, host, *_suffixes(host)})
        )


def _is_host(header: str) -> bool:
    return not set(header) & set("/?#@\\ \t")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def _suffixes(host: str) -> list[str]:
    parts = host.split(".")
    return ["." + ".".join(parts[number:]) for number in range(1, len(parts))]


def root_path(settings: Settings) -> str:
    """Where the service is at its public address, if not at the top.

    Raises SettingsError for an address that is none.
    """
    url = urlsplit(settings.public_url)
    if settings.public_url and (url.scheme not in {"http", "https"} or not url.hostname):
        raise SettingsError(
            f"IMAGE_SEARCH_PUBLIC_URL={settings.public_url!r}: an address is expected, such as "
            "https://example.org/find"
        )
    return url.path.rstrip("/")


class Guard:
    """ASGI middleware: refuses unknown hosts, answers HEAD as GET, and adds headers.

    `root_path` is what a proxy has removed from the paths.
    """

    def __init__(
        self, app: ASGIApp, hosts: Hosts, refuse: ASGIApp, root_path: str, *, shared: bool
    ) -> None:
        self._app = app
        self._root_path = root_path
        self._trusts = functools.lru_cache(_HOSTS_REMEMBERED)(hosts.trusts)
        self._refuse = refuse
        headers = dict(HEADERS)
        if shared:
            headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        self._headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._root_path:
            # By the specification of ASGI the path has it, too.
            scope = {
                **scope,
                "root_path": self._root_path,
                "path": self._root_path + scope["path"],
                "raw_path": self._root_path.encode() + scope.get("raw_path", b""),
            }
        is_head = scope["method"] == "HEAD"
        if is_head:
            scope = {**scope, "method": "GET"}

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message["headers"])
                names = {name for name, _ in given}
                given += [header for header in self._headers if header[0] not in names]
                message["headers"] = given
            elif is_head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        if scope["path"] and scope["path"] == scope.get("root_path"):
            # Links of the page are relative. No host is named: whoever asks stays where they are.
            to_page = RedirectResponse(scope["path"] + "/")
            await to_page(scope, receive, guarded)
            return
        trusted = self._trusts(Headers(scope=scope).get("host", ""))
        await (self._app if trusted else self._refuse)(scope, receive, guarded)
