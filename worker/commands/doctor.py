"""Checks this machine and the store."""

import argparse
from typing import Final

from image_search.settings import Settings
from worker.commands.options import EXIT_FAILED, Commands, add_index_options
from worker.doctor import as_line, examine

_EXIT_CODES: Final = """\
exit codes:
  0    all checks passed
  1    a check failed; its line says what to do
  2    wrong usage or bad setting
  130  stopped by SIGINT (Ctrl-C)
"""


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "doctor",
        help="check this machine and the store",
        description="Check settings, clock, disk, GPU, store and weights, one line each. A record\n"
        "is written apart from all images, found again, and removed. The output contains no key:\n"
        "please paste it into reports.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_index_options(parser)
    parser.set_defaults(run=run)


def run(_arguments: argparse.Namespace, settings: Settings) -> int:
    """Check; returns the exit code."""
    code = 0
    for finding in examine(settings):
        print(as_line(finding), flush=True)
        if not finding.is_well:
            code = EXIT_FAILED
    return code
