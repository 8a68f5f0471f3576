"""The worker's command line."""

import argparse
import io
import logging
import os
import signal
import sys

from image_search import __version__
from image_search.errors import ImageSearchError, SettingsError, SourceError
from image_search.program import program
from image_search.settings import load_settings
from worker.commands import copy, doctor, duplicates, evaluate, ingest, refit, sources
from worker.commands.options import EXIT_FAILED, EXIT_USAGE


def main() -> int:
    """Parse the command line and run; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name must not end what a terminal cannot show
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    arguments = make_parser(program("worker")).parse_args()
    overrides = {
        name: value
        for name in ("batch_size", "metric", "index", "namespace")
        if (value := getattr(arguments, name, None)) is not None
    }
    try:
        return int(arguments.run(arguments, load_settings(**overrides)))
    except (SettingsError, SourceError) as exc:
        return _fail(exc.in_full, EXIT_USAGE)
    except ImageSearchError as exc:
        return _fail(exc.in_full, EXIT_FAILED)
    except BrokenPipeError:
        # Who reads has seen enough, as `head` has; nothing is left to be written at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return _fail("stopped", 128 + signal.SIGINT)
    except Exception as exc:  # a defect: say where it is, without a traceback
        trace = exc.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else "?"
        return _fail(f"unexpected, please report it: {exc!r} at {where}", EXIT_FAILED)


def make_parser(prog: str = "python -m worker") -> argparse.ArgumentParser:
    """The parser of the command line; `prog` is what the user has called."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Embed images with VGG16, and look after the vector index.",
        epilog=ingest.EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"image-search {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (ingest, evaluate, copy, sources, refit, duplicates, doctor):
        command.add(commands)
    return parser


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
