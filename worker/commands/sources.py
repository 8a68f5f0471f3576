"""Lists where the images of an index came from."""

import argparse

from image_search.settings import Settings
from image_search.stores import open_index
from worker.commands.options import Commands, add_index_options
from worker.listing import as_json, as_text, list_sources


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    parser = commands.add_parser(
        "sources",
        help="list where the images of the index came from",
        description="List the sources that were ingested: how many images the index has of each,\n"
        "when its last complete ingest was, and where it is. Images that were added over HTTP are\n"
        "counted under (others).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print JSON, a list of objects")
    add_index_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, settings: Settings) -> int:
    """List the sources; returns the exit code."""
    with open_index(settings) as index:
        sources = list_sources(index)
    print(as_json(sources) if arguments.json else as_text(sources))
    return 0
