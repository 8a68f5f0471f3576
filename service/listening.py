"""The address that the service listens on. Needs no other package, so that it can be tried first.

usage: python -m service.listening, before anything is installed
"""

import os
import socket
import sys


class ListenError(OSError):
    """The address cannot be listened on; its text says what to do."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound there.

    Raises ListenError where another program uses the port, or the address is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        # Only with the protocol named does asyncio turn off Nagle's delay, 40 ms an answer.
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as exc:
        raise ListenError(
            f"cannot listen on {host} port {port}: {exc.strerror}. Stop the "
            "program that uses it, or set IMAGE_SEARCH_PORT or IMAGE_SEARCH_HOST"
        ) from exc
    return listener


def main() -> int:
    """Try the address that the environment names; returns the exit code."""
    port = os.environ.get("IMAGE_SEARCH_PORT") or "8000"
    if not (port.isdecimal() and 1 <= int(port) <= 65535):
        message = f"IMAGE_SEARCH_PORT={port!r}: a number from 1 to 65535 is expected"
        print(f"error: {message}", file=sys.stderr)
        return 2
    try:
        listen(os.environ.get("IMAGE_SEARCH_HOST") or "127.0.0.1", int(port)).close()
    except ListenError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
