"""Copies an index to another, or to a file and back."""

import argparse
import time
from typing import Final

from image_search.settings import Settings
from worker.commands.options import Commands
from worker.copying import copy, parse_end
from worker.signals import StopSignals

_EXIT_CODES: Final = """\
exit codes:
  0    TO has the same records as FROM
  1    stopped by an error (no index, store, another model, other images in TO)
  2    wrong usage or bad setting
  130  stopped by SIGINT (Ctrl-C), 143 by SIGTERM; run it again to resume
"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "copy",
        help="copy an index to another, or to a file and back",
        description="Copy an index with everything that belongs to it, without embedding again.\n"
        "Run it again at any time: it resumes where it stopped. At the end, both sides are\n"
        "compared.\n\n"
        "FROM and TO are [STORE:]INDEX[/NAMESPACE], or the path of a parquet file:\n"
        "  images             the index images, in the store that is set\n"
        "  images/2024        its namespace 2024\n"
        "  pinecone:images    the index images at Pinecone; embedded:images in the data folder\n"
        "  backup.parquet     a file",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="FROM", help="the index or file to copy")
    parser.add_argument(
        "target", metavar="TO", help="the index or file to write; an existing file is replaced"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, _settings: Settings) -> int:
    """Copy; returns the exit code."""
    stop = StopSignals()
    started = time.monotonic()
    source, target = parse_end(arguments.source), parse_end(arguments.target)
    copied = copy(source, target, stop.event)
    if copied.interrupted:
        print("stopped; run it again to resume")
        return stop.exit_code
    print(
        f"copied {arguments.source} to {arguments.target}: {copied.written:,} images written, "
        f"{copied.unchanged:,} already there, in {time.monotonic() - started:.1f} s; "
        "count and records are the same"
    )
    return stop.exit_code
