"""Fetching an image from a URL that a client names, from public addresses alone."""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from typing import Final
from urllib.parse import urljoin

import httpx2

from service.problems import ProblemError

MAX_REDIRECTS: Final = 3
_SECONDS: Final = 5.0
_SCHEMES: Final = {"http": 80, "https": 443}
# Of its own, so that slow name servers keep nothing else from being done.
_RESOLVERS: Final = ThreadPoolExecutor(4, thread_name_prefix="resolver")
# NAT64 carries any IPv4 address in its last four bytes, also private ones: RFC 6052.
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")
# All that is routed globally, but for NAT64: RFC 4291, section 2.4.
_GLOBAL_IPV6: Final = ipaddress.IPv6Network("2000::/3")
# IANA's registries of special-purpose addresses, where `is_global` is not as strict; and the
# virtual address at which Azure's machines find their host.
_NOT_PUBLIC: Final = tuple(
    map(
        ipaddress.ip_network,
        ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32", "2001::/23", "3fff::/20"),
    )
)
# Interfaces that are tunnelled to the IPv4 address in the last four bytes: RFC 5214.
_ISATAP: Final = {0x00005EFE, 0x02005EFE}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether the address, and any IPv4 address within it, is globally routable."""
    if isinstance(address, ipaddress.IPv6Address):
        last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address in _NAT64:
            return is_public(last)
        if address.ipv4_mapped:
            return is_public(address.ipv4_mapped)
        if address not in _GLOBAL_IPV6:
            return False
        if address.sixtofour and not is_public(address.sixtofour):
            return False
        if int(address) >> 32 & 0xFFFFFFFF in _ISATAP and not is_public(last):
            return False
    special = any(address in network for network in _NOT_PUBLIC)
    return address.is_global and not (special or address.is_multicast or address.is_reserved)


@cache
def _tls() -> ssl.SSLContext:
    """Made once: it takes milliseconds, and the event loop waits for them."""
    return httpx2.create_ssl_context()


async def fetch_image(
    url: str, *, max_bytes: int, allowed: Callable[[Address], bool] = is_public
) -> bytes:
    """The bytes at an http or https URL, after at most three redirects.

    Every address that a host name resolves to must be `allowed`; the connection goes to one of
    those that were checked, so that a name that resolves to another a moment later gains nothing.
    Raises ProblemError.
    """
    try:
        async with asyncio.timeout(_SECONDS):
            return await _fetch(url, max_bytes, allowed)
    except TimeoutError:
        raise _not_fetched(url, f"it took more than {_SECONDS:g} seconds") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, UnicodeError, ValueError) as exc:
        raise _not_fetched(url, "its server could not be reached") from exc


async def _fetch(url: str, max_bytes: int, allowed: Callable[[Address], bool]) -> bytes:
    # A proxy of the environment would connect to addresses that it resolves itself.
    async with httpx2.AsyncClient(trust_env=False, timeout=_SECONDS, verify=_tls()) as client:
        for _ in range(MAX_REDIRECTS + 1):
            request = await _request(client, url, allowed)
            response = await client.send(request, stream=True)
            try:
                if response.is_redirect:
                    url = urljoin(url, response.headers["location"])
                    continue
                if response.status_code != httpx2.codes.OK:
                    raise _not_fetched(url, f"its server answered {response.status_code}")
                return await _body(url, response, max_bytes)
            finally:
                await response.aclose()
    raise _not_fetched(url, f"it has more than {MAX_REDIRECTS} redirects")


async def _request(
    client: httpx2.AsyncClient, url: str, allowed: Callable[[Address], bool]
) -> httpx2.Request:
    """A request to an address that was checked, in the name of the URL's host."""
    parsed = httpx2.URL(url)
    if parsed.scheme not in _SCHEMES or not parsed.host:
        raise _not_fetched(url, "only http and https are fetched")
    if parsed.userinfo:
        raise _not_fetched(url, "it contains a user name or a password")
    port = parsed.port or _SCHEMES[parsed.scheme]
    found = await asyncio.get_running_loop().run_in_executor(
        _RESOLVERS,
        partial(socket.getaddrinfo, parsed.raw_host.decode(), port, type=socket.SOCK_STREAM),
    )
    addresses = [ipaddress.ip_address(str(address[0]).partition("%")[0]) for *_, address in found]
    if not addresses or not all(map(allowed, addresses)):
        raise _not_fetched(url, "its address is not public")
    return client.build_request(
        "GET",
        parsed.copy_with(host=str(addresses[0])),
        headers={
            "Host": parsed.netloc.decode(),
            "Accept": "image/*",
            # A few bytes that decompress to gigabytes would pass the limit.
            "Accept-Encoding": "identity",
            "User-Agent": "image-search",
        },
        extensions={"sni_hostname": parsed.host},
    )


async def _body(url: str, response: httpx2.Response, max_bytes: int) -> bytes:
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise _not_fetched(url, "its server compresses it without being asked to")
    body = bytearray()
    async for part in response.aiter_raw():
        body += part
        if len(body) > max_bytes:
            raise _not_fetched(url, f"it has more than {max_bytes:,} bytes")
    return bytes(body)


def _not_fetched(url: str, reason: str) -> ProblemError:
    return ProblemError("url_not_fetched", f"{url!r:.200} was not fetched: {reason}")
