"""The certificates that servers are checked against."""

import ssl
from functools import cache

import httpx2


@cache
def context() -> ssl.SSLContext:
    """The usual ones; loaded once, since that takes most of the time that a new client takes."""
    return httpx2.create_ssl_context()
