"""Serve on the configured address: python -m service."""

import argparse
import logging
import signal
import sys
from typing import Final

from image_search import __version__
from image_search.errors import ImageSearchError, SettingsError
from image_search.program import program
from image_search.settings import load_settings
from service import access_log, memory, workers
from service.app import create_app
from service.connections import LimitedServer
from service.listening import ListenError, listen

# Shorter than the ten seconds after which Docker kills.
_SECONDS_TO_FINISH: Final = 8

_HELP: Final = """\
exit codes:
  0  stopped by SIGINT or SIGTERM, after the requests in flight
  1  could not start, for example because the port is in use
  2  bad setting

Settings are environment variables, IMAGE_SEARCH_*; docs/reference/settings.md lists them.
"""


def main() -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    arguments = make_parser(program("service")).parse_args()
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
    memory.give_back()
    if arguments.workers > 1:
        with listener:
            workers.serve(listener, arguments.workers, seconds_to_finish=_SECONDS_TO_FINISH)
        return 0
    # Uvicorn, once it has ended in order, raises the signal again.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    with listener:
        LimitedServer(app, seconds_to_finish=_SECONDS_TO_FINISH).run(sockets=[listener])
    return 0


def make_parser(prog: str = "python -m service") -> argparse.ArgumentParser:
    """The parser of the command line; `prog` is what the user has called."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Answer image searches over HTTP.",
        epilog=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"image-search {__version__}")
    parser.add_argument(
        "--check",
        action="store_true",
        help="only check whether the settings and the port are usable",
    )
    parser.add_argument(
        "--workers",
        type=_count,
        default=1,
        metavar="N",
        help="processes that answer, for machines with many cores; SIGHUP replaces one after "
        "another (default: %(default)s)",
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: a whole number from 1 is expected")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
