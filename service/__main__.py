"""Serve on the configured address: python -m service."""

import argparse
import ctypes
import logging
import signal
import sys
from contextlib import suppress
from typing import Final

from image_search.errors import ImageSearchError, SettingsError
from image_search.settings import load_settings
from service import access_log
from service.app import create_app
from service.connections import LimitedServer
from service.listening import ListenError, listen

# Shorter than the ten seconds after which Docker kills.
_SECONDS_TO_FINISH: Final = 8

# Of glibc's malloc.h; the first is what it begins with, and then learns to raise.
_MMAP_THRESHOLD: Final = (-3, 128 * 1024)
_TRIM_THRESHOLD: Final = (-1, 4 * 1024 * 1024)

_PROG: Final = "python -m service"
_HELP: Final = """\
exit codes:
  0  stopped by SIGINT or SIGTERM, after the requests in flight
  1  could not start, as when the port is in use
  2  bad setting

Settings are environment variables, IMAGE_SEARCH_*; docs/reference/settings.md lists them.
"""


def main(prog: str = _PROG) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    arguments = make_parser(prog).parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s")
    try:
        settings = load_settings()
        if arguments.check:
            listen(settings.host, settings.port).close()
            return 0
        if settings.access_log != "off":
            access_log.write_to_stdout()
        app = create_app(settings)
        listener = listen(settings.host, settings.port)
    except SettingsError as exc:
        print(f"error: {exc.in_full}", file=sys.stderr)
        return 2
    except ImageSearchError as exc:
        print(f"error: {exc.in_full}", file=sys.stderr)
        return 1
    except ListenError as exc:
        print(f"error: {exc}", file=sys.stderr)
        return 1
    give_memory_back()
    # Uvicorn, once it has ended in order, raises the signal again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    with listener:
        LimitedServer(app, seconds_to_finish=_SECONDS_TO_FINISH).run(sockets=[listener])
    return 0


def make_parser(prog: str = _PROG) -> argparse.ArgumentParser:
    """The parser of the command line; `prog` is what the user has called."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Answer image searches over HTTP.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--check", action="store_true", help="only see whether the settings and the port are usable"
    )
    return parser


def give_memory_back() -> None:
    """Let large blocks go back to the system when they are freed, where the C library is glibc.

    By default it learns to keep them once it has seen some: up to 64 MiB for each thread.
    """
    with suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            mallopt(*option)


if __name__ == "__main__":
    sys.exit(main())
