"""Lists near-duplicates of a whole index."""

import argparse
import sys
from pathlib import Path
from typing import Final

from image_search.duplicates import NEAR_DUPLICATE_COSINE
from image_search.errors import SettingsError
from image_search.program import install
from image_search.settings import Settings
from image_search.stores import open_index
from worker.commands.options import Commands, add_index_options, positive
from worker.duplicates import find_duplicates, json_lines, summary, text_lines

_EXIT_CODES: Final = """\
exit codes:
  0    the groups, if any, were listed
  1    stopped by an error (no index, store)
  2    wrong usage, bad setting, or a page that cannot be written
  130  stopped by SIGINT (Ctrl-C)
"""
_GROUPS_SHOWN: Final = 100


def _cosine(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return number


_cosine.__name__ = "number"  # argparse names the type in its message


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "duplicates",
        help="list images that are nearly the same picture",
        description="List groups of near-duplicates in the whole index: the same picture saved "
        "again,\nresized or slightly cropped. Nothing is changed.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--threshold",
        type=_cosine,
        metavar="COSINE",
        help="least cosine similarity of two near-duplicates, above 0 and at most 1 (default: "
        "measured for the recipe of the index)",
    )
    parser.add_argument(
        "--limit",
        type=positive,
        metavar="N",
        help=f"only the N largest groups (default: {_GROUPS_SHOWN}; with --json all)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON object per line, one for each group"
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FILE",
        help="also write the groups as an HTML page of pictures",
    )
    add_index_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """List the groups; returns the exit code."""
    if arguments.page is not None:
        try:
            # It comes with an extra, as neither ingest nor the service needs it.
            from worker.duplicates_page import check_page, write_page
        except ModuleNotFoundError as exc:
            raise SettingsError(f"--page needs {exc.name}: {install('evaluate')}") from exc
        check_page(arguments.page)
    with open_index(settings) as index:
        recipe = index.manifest.model.recipe
        found = find_duplicates(index, arguments.threshold or NEAR_DUPLICATE_COSINE[recipe])
        if arguments.page is not None:
            groups_shown = arguments.limit or _GROUPS_SHOWN
            write_page(found, index, settings.index, arguments.page, groups_shown)
    most = arguments.limit or (None if arguments.json else _GROUPS_SHOWN)
    for line in json_lines(found, most) if arguments.json else text_lines(found, most):
        print(line)
    about = sys.stderr if arguments.json else sys.stdout
    for line in summary(found, most):
        print(line, file=about)
    if arguments.page is not None:
        print(f"page: {arguments.page}", file=about)
    sys.stdout.flush()  # here, where it is noticed that nobody reads
    return 0
